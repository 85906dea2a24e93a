package mcast

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"joold/internal/brief"
)

const (
	// maxBatch is how many datagrams one system call receives at most.
	maxBatch = 64

	// patience bounds the wait for room in the send buffer.
	patience = 100 * time.Millisecond
)

// Datagram is one received datagram. Its owner is the caller.
type Datagram struct {
	// Payload is what came. The next ReadBatch overwrites it, up to its
	// capacity.
	Payload []byte
	// From is who sent it; a link-local address has its interface as zone.
	From netip.AddrPort
	// HopLimit is the TTL or hop limit that it arrived with, 0 to 255. Each router
	// on the way has taken one off: 255 was sent on this link.
	HopLimit int
	// Alone is set when it was sent to this node's own address, and unset when to the
	// group.
	Alone bool
	// Truncated is set when the datagram was longer than Payload's capacity: the
	// rest is lost.
	Truncated bool
}

// NewDatagrams makes n datagrams with room for size bytes each.
func NewDatagrams(n, size int) []Datagram {
	buf := make([]byte, n*size)
	ds := make([]Datagram, n)
	for i := range ds {
		ds[i].Payload = buf[i*size : i*size : (i+1)*size]
	}
	return ds
}

// ReadBatch waits for a datagram, to the group or to this node alone, and fills ds
// with it and those of its kind that are there already, 64 at most. It returns how
// many it filled. It allocates nothing.
func (c *Conn) ReadBatch(ds []Datagram) (int, error) {
	n, err := c.inlets.read(ds)
	if err != nil {
		return 0, c.fail("receive from", c.in.name, err)
	}
	return n, nil
}

// SetReadDeadline ends ReadBatch with os.ErrDeadlineExceeded at t, or at once if
// t is past. The zero time is never.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.inlets.setReadDeadline(t) }

// Write sends b to the group as one datagram. While the send buffer is full it
// waits, 100 ms at most: then it fails with os.ErrDeadlineExceeded. If b does not
// fit (ErrTooBig), the path is looked at again first: MaxPayload then tells what
// does. It allocates nothing.
func (c *Conn) Write(b []byte) error { return c.send(b, true) }

// send waits for room if it is told to; else it is as if it had.
func (c *Conn) send(b []byte, wait bool) error {
	if c.lost.Load() {
		// IPv4 would send from 0.0.0.0, which nobody takes, and say nothing.
		if err := c.Refresh(); err != nil {
			return err
		}
	}
	err := c.tx.write(b, &c.to, wait)
	if errors.Is(err, unix.EMSGSIZE) {
		// If the path is gone altogether, the next datagrams will tell.
		_ = c.Refresh()
		err = fmt.Errorf("%w: it has %d bytes, %d do", ErrTooBig, len(b), c.MaxPayload())
	}
	if err != nil {
		return c.fail("send to", c.out.name, explain(err, c.out))
	}
	return nil
}

// mmsghdr is the kernel's struct mmsghdr.
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32 // bytes received
}

// ancillary is the one control message that is asked for: the hop limit.
type ancillary struct {
	header unix.Cmsghdr
	value  int32
}

// receiver is a socket and what recvmmsg works on, one header, one address and one
// buffer a datagram. The runtime's own calls move one datagram at a time, and x/net's
// batches allocate each datagram's address: BenchmarkReceive has both.
type receiver struct {
	socket syscall.Conn
	conn   syscall.RawConn // socket's
	alone  bool            // whether it hears what is sent to this node alone
	link   *link           // that it is on, where there are several

	hdrs  [maxBatch]mmsghdr
	iovs  [maxBatch]unix.Iovec
	names [maxBatch]unix.RawSockaddrInet6 // has room for IPv4's too
	hops  [maxBatch]ancillary
	size  int // headers in use
	n     int // what the call returned
	errno unix.Errno
	calls brief.Caller
	try   func(fd uintptr) bool // tryOnce, likewise

	scope uint32 // the last scope id seen
	zone  string // its interface's name

	dropsMu sync.Mutex
	dropped uint64
}

func newReceiver(socket syscall.Conn, dev device, alone bool) (r *receiver, err error) {
	r = &receiver{socket: socket, alone: alone, scope: uint32(dev.index), zone: dev.name}
	r.try = r.tryOnce
	for i := range r.hdrs {
		h := &r.hdrs[i].hdr
		h.Name = (*byte)(unsafe.Pointer(&r.names[i]))
		h.Control = (*byte)(unsafe.Pointer(&r.hops[i]))
		h.Iov = &r.iovs[i]
		h.SetIovlen(1)
	}
	r.conn, err = socket.SyscallConn()
	return r, err
}

// tryOnce never has the poller wait: who reads waits for several sockets.
func (r *receiver) tryOnce(fd uintptr) bool {
	for {
		n, errno := r.calls.Call(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&r.hdrs[0])), uintptr(r.size), unix.MSG_DONTWAIT, 0, 0)
		r.n, r.errno = int(n), errno
		if errno != unix.EINTR {
			return true
		}
	}
}

// read fills ds with what is there, and fails with EAGAIN if nothing is.
func (r *receiver) read(ds []Datagram) (int, error) {
	r.size = min(len(ds), maxBatch)
	for i := range r.size {
		payload := ds[i].Payload[:cap(ds[i].Payload)]
		r.iovs[i].Base = unsafe.SliceData(payload)
		r.iovs[i].SetLen(len(payload))
		r.hdrs[i].hdr.Namelen = uint32(unsafe.Sizeof(r.names[i]))
		r.hdrs[i].hdr.SetControllen(int(unsafe.Sizeof(r.hops[i])))
	}
	if err := r.conn.Read(r.try); err != nil { // closed
		return 0, net.ErrClosed
	}
	if r.errno != 0 {
		return 0, r.errno
	}
	for i := range r.n {
		ds[i].Payload = ds[i].Payload[:r.hdrs[i].n]
		ds[i].Truncated = r.hdrs[i].hdr.Flags&unix.MSG_TRUNC != 0
		ds[i].HopLimit = int(r.hops[i].value)
		ds[i].From, ds[i].Alone = r.from(&r.names[i]), r.alone
	}
	return r.n, nil
}

func (r *receiver) from(sa *unix.RawSockaddrInet6) netip.AddrPort {
	var addr netip.Addr
	if sa.Family == unix.AF_INET {
		addr = netip.AddrFrom4((*unix.RawSockaddrInet4)(unsafe.Pointer(sa)).Addr)
	} else if addr = netip.AddrFrom16(sa.Addr); sa.Scope_id != 0 {
		addr = addr.WithZone(r.zoneName(sa.Scope_id))
	}
	port := (*[2]byte)(unsafe.Pointer(&sa.Port)) // at the same place for both families
	return netip.AddrPortFrom(addr, binary.BigEndian.Uint16(port[:]))
}

// zoneName remembers one name: a socket that is bound to its device sees no other.
func (r *receiver) zoneName(scope uint32) string {
	if scope != r.scope {
		r.scope, r.zone = scope, strconv.FormatUint(uint64(scope), 10)
		if iface, err := net.InterfaceByIndex(int(scope)); err == nil {
			r.zone = iface.Name
		}
	}
	return r.zone
}

// drops counts the messages that found the socket's buffer full, until it is
// closed.
func (r *receiver) drops() uint64 {
	r.dropsMu.Lock()
	defer r.dropsMu.Unlock()
	if n, err := socketDrops(r.conn); err == nil {
		r.dropped += uint64(n - uint32(r.dropped))
	}
	return r.dropped
}

// socketDrops reads the kernel's count of messages that found the socket's buffer
// full. It is the count that SO_RXQ_OVFL gives; but that comes with a datagram, as
// of when it was queued, and so says nothing of a burst's end until the next.
func socketDrops(conn syscall.RawConn) (uint32, error) {
	const skMeminfoDrops, skMeminfoVars = 8, 9 // linux/sock_diag.h
	var info [skMeminfoVars]uint32
	size := uint32(unsafe.Sizeof(info))
	var errno unix.Errno
	err := conn.Control(func(fd uintptr) {
		_, _, errno = unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_MEMINFO,
			uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
	})
	if err == nil && errno != 0 {
		err = errno
	}
	return info[skMeminfoDrops], err
}

// endpoint is where a datagram goes, as the kernel wants it.
type endpoint struct {
	sa   unix.RawSockaddrInet6 // has room for IPv4's too
	size uintptr               // of sa
}

// endpointAt is a, on the interface with the index scope where a has one.
func endpointAt(a netip.AddrPort, scope int) (e endpoint) {
	port := (*[2]byte)(unsafe.Pointer(&e.sa.Port)) // at the same place for both families
	binary.BigEndian.PutUint16(port[:], a.Port())
	if a.Addr().Is4() {
		e.size = unix.SizeofSockaddrInet4
		e.sa.Family = unix.AF_INET
		(*unix.RawSockaddrInet4)(unsafe.Pointer(&e.sa)).Addr = a.Addr().As4()
		return e
	}
	e.size = unix.SizeofSockaddrInet6
	e.sa.Family = unix.AF_INET6
	e.sa.Addr = a.Addr().As16()
	e.sa.Scope_id = uint32(scope)
	return e
}

// sender sends a datagram at a time: more are hardly ever ready at once, and what
// sendmmsg would save on those is told in docs/BENCHMARKS.md.
type sender struct {
	conn     *net.UDPConn
	raw      syscall.RawConn // conn's
	discover int             // its IP_MTU_DISCOVER, if it is one of IPv4

	mu    sync.Mutex
	b     []byte
	to    endpoint
	waits bool // for room
	errno unix.Errno
	calls brief.Caller
	try   func(fd uintptr) bool // tryOnce, likewise
}

func newSender(conn *net.UDPConn, discover int) (s *sender, err error) {
	s = &sender{conn: conn, discover: discover}
	s.try = s.tryOnce
	s.raw, err = conn.SyscallConn()
	return s, err
}

// tryOnce tells the poller whether the call is done with, or must wait.
func (s *sender) tryOnce(fd uintptr) bool {
	for {
		_, s.errno = s.calls.Call(unix.SYS_SENDTO, fd, uintptr(unsafe.Pointer(unsafe.SliceData(s.b))), uintptr(len(s.b)),
			0, uintptr(unsafe.Pointer(&s.to.sa)), s.to.size)
		if s.errno != unix.EINTR {
			return s.errno != unix.EAGAIN || !s.waits
		}
	}
}

// alwaysFits is the payload in bytes that leaves over IPv4, too, whatever the MTU of
// the path is said to be: what IPv6 has room for everywhere. Anybody can forge an
// ICMP message that a path has but 552 bytes, which would end the hellos; IPv6's
// kernel believes in none of less than 1,280.
const alwaysFits = 1280 - 20 - 8

// write waits for room in the socket's buffer only if there is none.
func (s *sender) write(b []byte, to *endpoint, wait bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.b, s.to = b, *to
	err := s.put(wait)
	if err == unix.EMSGSIZE && to.sa.Family == unix.AF_INET && len(b) <= alwaysFits && s.setDiscover(unix.IP_PMTUDISC_OMIT) == nil {
		err = s.put(wait) // in pieces only if the interface or a router cannot do else
		err = cmp.Or(err, s.setDiscover(s.discover))
	}
	return err
}

func (s *sender) setDiscover(how int) error {
	return control(s.conn, option{"IP_MTU_DISCOVER", unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, how}.set)
}

// put is one attempt, or two: to set a deadline is not cheap.
func (s *sender) put(wait bool) error {
	s.waits = false
	err := s.attempt()
	if err == unix.EAGAIN && !wait {
		return os.ErrDeadlineExceeded
	}
	if err == unix.EAGAIN {
		s.conn.SetWriteDeadline(time.Now().Add(patience))
		s.waits = true
		err = s.attempt()
		s.conn.SetWriteDeadline(time.Time{}) // past, it would keep the next from being tried
	}
	return err
}

// attempt tries until it is clear what becomes of the datagram.
func (s *sender) attempt() error {
	// An error may be left over from an ICMP message, which anybody can forge, and
	// is then not about this datagram: it is told once.
	for range 4 {
		if err := s.raw.Write(s.try); err != nil {
			return err
		}
		switch {
		case s.errno == 0:
			return nil
		case s.errno == unix.EAGAIN:
			return s.errno
		}
	}
	return s.errno
}
