package nlchan

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

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
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_GENERIC)
	if err != nil {
		return nil, os.NewSyscallError("open a netlink socket", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("bind a netlink socket", err)
	}
	s := &socket{file: os.NewFile(uintptr(fd), "netlink")}
	if s.raw, err = s.file.SyscallConn(); err != nil {
		s.file.Close()
		return nil, err
	}
	s.onReadable, s.onWritable = s.recvfrom, s.write
	return s, nil
}

// socket does its system calls within the callbacks of a syscall.RawConn, so
// that the runtime's poller waits and Close is safe. The callbacks are made
// once, and take their arguments from fields, so that nothing is allocated.
type socket struct {
	file   *os.File
	raw    syscall.RawConn
	closed atomic.Bool

	in struct {
		buf     []byte
		wait    bool
		n       int
		errno   syscall.Errno
		from    unix.RawSockaddrNetlink
		fromLen uint32
	}
	onReadable func(fd uintptr) bool

	sending sync.Mutex
	out     struct {
		buf []byte
		err error
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
		n, _, errno := unix.Syscall6(unix.SYS_RECVFROM, fd,
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
	}
	return s.out.err
}

func (s *socket) write(fd uintptr) bool {
	for {
		_, s.out.err = unix.Write(int(fd), s.out.buf)
		if s.out.err != unix.EINTR {
			return s.out.err != unix.EAGAIN
		}
	}
}

func (s *socket) Join(group uint32) error {
	return s.control(fmt.Sprintf("join netlink group %d", group), func(fd int) error {
		return unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, int(group))
	})
}

func (s *socket) SetReadBuffer(bytes int) (got int, err error) {
	err = s.control("set the receive buffer", func(fd int) error {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, bytes); err != nil {
			// Without the privilege, as far as net.core.rmem_max allows.
			if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, bytes); err != nil {
				return err
			}
		}
		got, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF)
		return err
	})
	return got, err
}

func (s *socket) control(what string, f func(fd int) error) error {
	var err error
	if ctlErr := s.raw.Control(func(fd uintptr) { err = f(int(fd)) }); ctlErr != nil {
		return ErrClosed
	}
	return os.NewSyscallError(what, err)
}

func (s *socket) SetReadDeadline(t time.Time) error { return s.file.SetReadDeadline(t) }

func (s *socket) Close() error {
	if s.closed.Swap(true) {
		return nil
	}
	return s.file.Close()
}
