package brief

import (
	"bytes"
	"os"
	"os/exec"
	"runtime"
	"slices"
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

func TestRandomFillsAllOfItWithWhatIsNeverTheSame(t *testing.T) {
	random := Random()
	for _, size := range []int{1, 12, 256, 1 << 16} { // of which up to 256 bytes come whole
		a, b := make([]byte, size+2), make([]byte, size+2)
		var in [256]int
		for range 64 {
			random(a[1 : 1+size])
			random(b[1 : 1+size])
			if size > 8 && bytes.Equal(a, b) {
				t.Fatalf("%d bytes twice: %x", size, a[:9])
			}
			in[a[size]]++
		}
		if a[0] != 0 || a[size+1] != 0 {
			t.Errorf("%d bytes: others were written to", size)
		}
		if slices.Max(in[:]) > 32 {
			t.Errorf("the last of %d bytes is often the same", size)
		}
	}
	random(nil)
	b := make([]byte, 4)
	if n := testing.AllocsPerRun(100, func() { random(b) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
