package nlchan

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"joold/internal/brief"
)

// briefly is the size of requests, in bytes, up to which the kernel is done with one
// at once. Longer ones are sessions to be added, 200 or more.
const briefly = 8 << 10

// linux is the machine that the process runs on.
type linux struct{}

var _ Host = linux{}

// Module reads /sys/module.
func (linux) Module(name string) (string, error) {
	b, err := os.ReadFile("/sys/module/" + name + "/version")
	return strings.TrimSpace(string(b)), err
}

// InUserNamespace looks at the namespace's inode: the initial one's is fixed
// (PROC_USER_INIT_INO).
func (linux) InUserNamespace() bool {
	ns, err := os.Readlink("/proc/self/ns/user")
	return err == nil && ns != "user:[4026531837]"
}

// Socket opens a socket in the network namespace of the calling thread.
func (linux) Socket() (Socket, error) {
	conn, err := netlink.Dial(unix.NETLINK_GENERIC, nil)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	s := &socket{conn: conn}
	if s.raw, err = conn.SyscallConn(); err != nil {
		conn.Close()
		return nil, err
	}
	s.onReadable, s.onWritable = s.recvfrom, s.write
	return s, nil
}

// socket sends and receives within the callbacks of its connection's RawConn, so
// that the runtime's poller waits and Close is safe. The callbacks are made
// once, and take their arguments from fields, so that nothing is allocated.
type socket struct {
	conn   *netlink.Conn
	raw    syscall.RawConn
	closed atomic.Bool
	drops  atomic.Uint64 // when last asked

	in struct {
		buf     []byte
		wait    bool
		n       int
		errno   syscall.Errno
		from    unix.RawSockaddrNetlink
		fromLen uint32
		calls   brief.Caller
	}
	onReadable func(fd uintptr) bool

	sending sync.Mutex
	out     struct {
		buf   []byte
		errno syscall.Errno
		calls brief.Caller
	}
	onWritable func(fd uintptr) bool
}

func (s *socket) Receive(b []byte) (int, error) { return s.receive(b, true) }

func (s *socket) Poll(b []byte) (int, error) {
	n, err := s.receive(b, false)
	if err == unix.EAGAIN {
		return 0, nil
	}
	return n, err
}

func (s *socket) receive(b []byte, wait bool) (int, error) {
	for {
		s.in.buf, s.in.wait = b, wait
		err := s.raw.Read(s.onReadable)
		s.in.buf = nil
		switch {
		case s.closed.Load():
			return 0, ErrClosed
		case err != nil:
			return 0, err
		case s.in.errno != 0:
			return 0, s.in.errno
		case s.in.from.Pid == 0: // the kernel; whoever else has the privilege to send here is no concern of ours
			return s.in.n, nil
		}
	}
}

// recvfrom is written out because unix.Recvfrom allocates the address.
func (s *socket) recvfrom(fd uintptr) bool {
	in := &s.in
	for {
		in.fromLen = uint32(unsafe.Sizeof(in.from))
		n, errno := in.calls.Call(unix.SYS_RECVFROM, fd,
			uintptr(unsafe.Pointer(unsafe.SliceData(in.buf))), uintptr(len(in.buf)), unix.MSG_TRUNC,
			uintptr(unsafe.Pointer(&in.from)), uintptr(unsafe.Pointer(&in.fromLen)))
		if errno == unix.EINTR {
			continue
		}
		in.n, in.errno = int(n), errno
		return errno != unix.EAGAIN || !in.wait
	}
}

func (s *socket) Send(b []byte) error {
	s.sending.Lock()
	defer s.sending.Unlock()
	s.out.buf = b
	err := s.raw.Write(s.onWritable)
	s.out.buf = nil
	switch {
	case s.closed.Load():
		return ErrClosed
	case err != nil:
		return err
	case s.out.errno != 0:
		return s.out.errno
	}
	return nil
}

// write has the runtime know of what keeps the kernel busy.
func (s *socket) write(fd uintptr) bool {
	out := &s.out
	for {
		if len(out.buf) > briefly {
			_, _, out.errno = unix.Syscall(unix.SYS_WRITE, fd,
				uintptr(unsafe.Pointer(unsafe.SliceData(out.buf))), uintptr(len(out.buf)))
		} else {
			_, out.errno = out.calls.Call(unix.SYS_WRITE, fd,
				uintptr(unsafe.Pointer(unsafe.SliceData(out.buf))), uintptr(len(out.buf)), 0, 0, 0)
		}
		if out.errno != unix.EINTR {
			return out.errno != unix.EAGAIN
		}
	}
}

func (s *socket) Join(group uint32) error {
	return s.wrap(fmt.Sprintf("join netlink group %d", group), s.conn.JoinGroup(group))
}

func (s *socket) SetReadBuffer(bytes int) (int, error) {
	// Without the privilege it goes as far as net.core.rmem_max allows.
	err := s.conn.SetReadBuffer(bytes)
	var got int
	if err == nil {
		got, err = s.conn.ReadBuffer()
	}
	return got, s.wrap("set the receive buffer", err)
}

// Drops asks for SO_MEMINFO: an overrun is an ENOBUFS once, however many
// messages it costs.
func (s *socket) Drops() uint64 {
	var info [9]uint32 // SK_MEMINFO_VARS
	const drops = 8    // SK_MEMINFO_DROPS
	var errno syscall.Errno
	err := s.raw.Control(func(fd uintptr) {
		size := uint32(unsafe.Sizeof(info))
		_, _, errno = unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_MEMINFO,
			uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
	})
	if err == nil && errno == 0 {
		s.drops.Store(uint64(info[drops]))
	}
	return s.drops.Load()
}

func (s *socket) SetReadDeadline(t time.Time) error {
	return s.wrap("set the read deadline", s.conn.SetReadDeadline(t))
}

// wrap says in this package's words what was tried.
func (s *socket) wrap(what string, err error) error {
	switch {
	case err == nil:
		return nil
	case s.closed.Load():
		return ErrClosed
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		err = errno
	}
	return fmt.Errorf("%s: %w", what, err)
}

func (s *socket) Close() error {
	s.Drops()
	s.closed.Store(true)
	return s.conn.Close()
}
