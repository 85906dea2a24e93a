package mcast

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxBatch is how many datagrams one system call moves at most.
const maxBatch = 64

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

// ReadBatch waits for a datagram and fills ds with it and those that are there
// already, 64 at most. It returns how many it filled. It allocates nothing.
func (c *Conn) ReadBatch(ds []Datagram) (int, error) {
	n, err := c.rx.read(ds)
	if err != nil {
		return 0, c.fail("receive from", c.in.name, err)
	}
	return n, nil
}

// SetReadDeadline ends ReadBatch with os.ErrDeadlineExceeded at t, or at once if
// t is past. The zero time is never.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.read.SetReadDeadline(t) }

// SetWriteDeadline ends Write and WriteBatch, which wait while the send buffer
// is full, with os.ErrDeadlineExceeded at t. The zero time is never.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.write.SetWriteDeadline(t) }

// Write sends b to the group as one datagram. If it does not fit (ErrTooBig), the
// path is looked at again first: MaxPayload then tells what does.
func (c *Conn) Write(b []byte) error {
	c.tx.mu.Lock()
	defer c.tx.mu.Unlock()
	c.tx.one[0] = b
	_, err := c.writeBatch(c.tx.one[:])
	return err
}

// WriteBatch sends each of bs to the group as one datagram, in order, and returns
// how many it sent. If that is fewer than len(bs), the error is about bs[n], and
// those behind it were not tried. It allocates nothing.
func (c *Conn) WriteBatch(bs [][]byte) (n int, err error) {
	c.tx.mu.Lock()
	defer c.tx.mu.Unlock()
	return c.writeBatch(bs)
}

func (c *Conn) writeBatch(bs [][]byte) (n int, err error) {
	if c.lost.Load() {
		// IPv4 would send from 0.0.0.0, which nobody takes, and say nothing.
		if err := c.Refresh(); err != nil {
			return 0, err
		}
	}
	for n < len(bs) {
		sent, err := c.tx.write(bs[n:])
		n += sent
		if errors.Is(err, unix.EMSGSIZE) {
			// If the path is gone altogether, the next datagrams will tell.
			_ = c.Refresh()
			err = fmt.Errorf("%w: it has %d bytes, %d do", ErrTooBig, len(bs[n]), c.MaxPayload())
		}
		if err != nil {
			return n, c.fail("send to", c.out.name, explain(err, c.out))
		}
	}
	return n, nil
}

// mmsghdr is the kernel's struct mmsghdr.
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32 // bytes received
}

// messages is what recvmmsg and sendmmsg work on, one header, one address and one
// buffer a datagram. The runtime's own calls move one datagram at a time, and
// x/net's batches allocate each datagram's address: BenchmarkReceive has both.
type messages struct {
	conn  syscall.RawConn
	hdrs  [maxBatch]mmsghdr
	iovs  [maxBatch]unix.Iovec
	trap  uintptr
	size  int // headers in use
	n     int // what the call returned
	errno unix.Errno
	try   func(fd uintptr) bool // tryOnce; a method value made anew would allocate
}

func (m *messages) init(conn *net.UDPConn, trap uintptr) (err error) {
	m.trap = trap
	m.try = m.tryOnce
	for i := range m.hdrs {
		m.hdrs[i].hdr.Iov = &m.iovs[i]
		m.hdrs[i].hdr.SetIovlen(1)
	}
	m.conn, err = conn.SyscallConn()
	return err
}

// tryOnce tells the poller whether the call is done with, or must wait.
func (m *messages) tryOnce(fd uintptr) bool {
	for {
		n, _, errno := unix.Syscall6(m.trap, fd, uintptr(unsafe.Pointer(&m.hdrs[0])), uintptr(m.size), 0, 0, 0)
		m.n, m.errno = int(n), errno
		if errno != unix.EINTR {
			return errno != unix.EAGAIN
		}
	}
}

// done is the outcome of a call that the poller waited for with err.
func (m *messages) done(err error) (int, error) {
	switch {
	case err != nil:
		return 0, err
	case m.errno != 0:
		return 0, m.errno
	}
	return m.n, nil
}

func (m *messages) setBuffer(i int, b []byte) {
	m.iovs[i].Base = unsafe.SliceData(b)
	m.iovs[i].SetLen(len(b))
}

// ancillary is the one control message that is asked for: the hop limit.
type ancillary struct {
	header unix.Cmsghdr
	value  int32
}

type receiver struct {
	messages
	names [maxBatch]unix.RawSockaddrInet6 // has room for IPv4's too
	hops  [maxBatch]ancillary
	scope uint32 // the last scope id seen
	zone  string // its interface's name
}

func newReceiver(conn *net.UDPConn, dev device) (*receiver, error) {
	r := &receiver{scope: uint32(dev.index), zone: dev.name}
	for i := range r.hdrs {
		r.hdrs[i].hdr.Name = (*byte)(unsafe.Pointer(&r.names[i]))
		r.hdrs[i].hdr.Control = (*byte)(unsafe.Pointer(&r.hops[i]))
	}
	return r, r.init(conn, unix.SYS_RECVMMSG)
}

func (r *receiver) read(ds []Datagram) (int, error) {
	r.size = min(len(ds), maxBatch)
	if r.size == 0 {
		return 0, nil
	}
	for i := range r.size {
		r.setBuffer(i, ds[i].Payload[:cap(ds[i].Payload)])
		r.hdrs[i].hdr.Namelen = uint32(unsafe.Sizeof(r.names[i]))
		r.hdrs[i].hdr.SetControllen(int(unsafe.Sizeof(r.hops[i])))
	}
	n, err := r.done(r.conn.Read(r.try))
	for i := range n {
		ds[i].Payload = ds[i].Payload[:r.hdrs[i].n]
		ds[i].Truncated = r.hdrs[i].hdr.Flags&unix.MSG_TRUNC != 0
		ds[i].HopLimit = int(r.hops[i].value)
		ds[i].From = r.from(&r.names[i])
	}
	return n, err
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

type sender struct {
	messages
	mu  sync.Mutex
	to  unix.RawSockaddrInet6
	one [1][]byte // Write's batch
}

func newSender(conn *net.UDPConn, to unix.Sockaddr) (*sender, error) {
	s := new(sender)
	size := s.setTo(to)
	for i := range s.hdrs {
		s.hdrs[i].hdr.Name = (*byte)(unsafe.Pointer(&s.to))
		s.hdrs[i].hdr.Namelen = size
	}
	return s, s.init(conn, unix.SYS_SENDMMSG)
}

func (s *sender) setTo(to unix.Sockaddr) (size uint32) {
	port := (*[2]byte)(unsafe.Pointer(&s.to.Port)) // at the same place for both families
	switch to := to.(type) {
	case *unix.SockaddrInet4:
		s.to.Family = unix.AF_INET
		binary.BigEndian.PutUint16(port[:], uint16(to.Port))
		(*unix.RawSockaddrInet4)(unsafe.Pointer(&s.to)).Addr = to.Addr
		return unix.SizeofSockaddrInet4
	case *unix.SockaddrInet6:
		s.to.Family = unix.AF_INET6
		binary.BigEndian.PutUint16(port[:], uint16(to.Port))
		s.to.Addr = to.Addr
		s.to.Scope_id = to.ZoneId
	}
	return unix.SizeofSockaddrInet6
}

// write sends as many of bs as one call takes; it waits for room for the first.
func (s *sender) write(bs [][]byte) (int, error) {
	s.size = min(len(bs), maxBatch)
	if s.size == 0 {
		return 0, nil
	}
	for i := range s.size {
		s.setBuffer(i, bs[i])
	}
	// An error may be left over from an ICMP message, which anybody can forge, and
	// is then not about this datagram: it is told once.
	var n int
	var err error
	for range 4 {
		if n, err = s.done(s.conn.Write(s.try)); err == nil || s.errno == 0 {
			break
		}
	}
	return n, err
}
