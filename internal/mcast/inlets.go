package mcast

import (
	"errors"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"joold/internal/brief"
)

// inlets are sockets of which one goroutine reads whichever has something. They
// take turns: who floods one does not keep another from being read. Sockets may
// come and go meanwhile.
type inlets struct {
	file *os.File // an epoll instance, which Go's own poller waits for
	raw  syscall.RawConn

	mu   sync.Mutex
	open map[int32]*receiver // by descriptor

	// The reader's alone.
	ds    []Datagram
	n     int
	last  *receiver // that ds came from
	err   error
	event unix.EpollEvent
	calls brief.Caller
	try   func(fd uintptr) bool // tryOnce; a method value made anew would allocate
}

func newInlets() (*inlets, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil { // or it would not be waited for by the poller
		unix.Close(fd)
		return nil, os.NewSyscallError("fcntl", err)
	}
	in := &inlets{file: os.NewFile(uintptr(fd), "inlets"), open: make(map[int32]*receiver)}
	in.try = in.tryOnce
	in.raw, err = in.file.SyscallConn()
	return in, err
}

func (in *inlets) add(r *receiver) error {
	return in.control(r, unix.EPOLL_CTL_ADD)
}

// remove is for before r is closed: a copy of its descriptor, in a process that is
// just being forked, would keep it among those that are waited for.
func (in *inlets) remove(r *receiver) error {
	return in.control(r, unix.EPOLL_CTL_DEL)
}

func (in *inlets) control(r *receiver, op int) error {
	var errs [2]error
	errs[0] = in.raw.Control(func(epfd uintptr) {
		errs[1] = control(r.socket, func(fd int) error {
			in.mu.Lock()
			defer in.mu.Unlock()
			err := unix.EpollCtl(int(epfd), op, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)})
			if err != nil {
				return os.NewSyscallError("epoll_ctl", err)
			}
			if op == unix.EPOLL_CTL_ADD {
				in.open[int32(fd)] = r
			} else {
				delete(in.open, int32(fd))
			}
			return nil
		})
	})
	return errors.Join(errs[:]...)
}

// tryOnce tells the poller whether the call is done with, or must wait. The kernel
// names one socket that has something, another each time.
func (in *inlets) tryOnce(epfd uintptr) bool {
	for {
		n, errno := in.calls.Call(unix.SYS_EPOLL_PWAIT, epfd, uintptr(unsafe.Pointer(&in.event)), 1, 0, 0, 0)
		switch {
		case errno == unix.EINTR:
			continue
		case errno != 0:
			in.err = errno
			return true
		case n == 0:
			return false
		}
		in.mu.Lock()
		r := in.open[in.event.Fd]
		in.mu.Unlock()
		if r == nil { // just removed
			continue
		}
		in.last = r
		in.n, in.err = r.read(in.ds)
		if in.err != unix.EAGAIN && !errors.Is(in.err, net.ErrClosed) {
			return true
		}
	}
}

// read waits for a datagram and fills ds with what one socket has.
func (in *inlets) read(ds []Datagram) (int, error) {
	if len(ds) == 0 {
		return 0, nil
	}
	in.ds, in.n, in.err = ds, 0, nil
	err := in.raw.Read(in.try)
	in.ds = nil
	switch {
	case err == nil:
		return in.n, in.err
	case errors.Is(err, os.ErrDeadlineExceeded):
		return 0, err
	}
	return 0, net.ErrClosed // the one other way for a wait to end; files have another error for it
}

func (in *inlets) setReadDeadline(t time.Time) error { return in.file.SetReadDeadline(t) }

func (in *inlets) close() error { return in.file.Close() }
