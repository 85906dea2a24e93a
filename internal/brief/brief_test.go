package brief

import (
	"os"
	"os/exec"
	"runtime"
	"sync/atomic"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The first letter wakes this goroutine while the runtime's monitor sleeps. It then
// makes calls until another has read the second letter, for which the only
// processor must be taken from it and the poller asked.
func TestWhoCallsWithoutEndDoesNotKeepTheProcessor(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	first, second := pipe(t), pipe(t)
	shell := exec.Command("sh", "-c", "sleep .3; printf 1; sleep .3; printf 2 >&2; exec sleep 60")
	shell.Stdout, shell.Stderr = first.w, second.w
	if err := shell.Start(); err != nil {
		t.Fatal(err)
	}
	defer shell.Wait()
	defer shell.Process.Kill()

	var heard atomic.Bool
	go func() {
		second.wait()
		heard.Store(true)
	}()
	first.wait()
	for !heard.Load() {
		if _, errno := first.c.Call(unix.SYS_GETPPID, 0, 0, 0, 0, 0, 0); errno != 0 {
			t.Fatal(errno)
		}
	}
}

// conduit is a pipe whose reader waits in the runtime's poller.
type conduit struct {
	r   syscall.RawConn
	w   *os.File
	buf [1]byte
	c   Caller
}

func pipe(t *testing.T) *conduit {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	c := &conduit{w: w}
	if c.r, err = r.SyscallConn(); err != nil {
		t.Fatal(err)
	}
	return c
}

func (p *conduit) wait() {
	p.r.Read(func(fd uintptr) bool {
		_, errno := p.c.Call(unix.SYS_READ, fd, uintptr(unsafe.Pointer(&p.buf)), 1, 0, 0, 0)
		return errno != unix.EAGAIN
	})
}

func TestACallReturnsWhatTheKernelDoes(t *testing.T) {
	var c Caller
	for range 3 * inARow {
		if id, errno := c.Call(unix.SYS_GETPID, 0, 0, 0, 0, 0, 0); errno != 0 || int(id) != unix.Getpid() {
			t.Fatalf("got %d, %v", id, errno)
		}
		if _, errno := c.Call(unix.SYS_CLOSE, ^uintptr(0), 0, 0, 0, 0, 0); errno != unix.EBADF {
			t.Fatalf("got %v", errno)
		}
	}
}

func TestACallAllocatesNothing(t *testing.T) {
	var c Caller
	if n := testing.AllocsPerRun(100, func() { c.Call(unix.SYS_GETPID, 0, 0, 0, 0, 0, 0) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
