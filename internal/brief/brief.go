// Package brief makes system calls that return at once. It owns the choice of
// whether Go's runtime is told of them, and knows nothing of what they do.
//
// The runtime is told of a system call so that other goroutines may have the
// processor, should it take long. For that it wakes its monitor, a thread which
// then looks again and again for as long as anything runs: for a daemon that wakes
// some hundred times a second, each time for a few short calls, most of its cost.
// But the monitor also sees to it that nobody keeps the processor. So the runtime
// is told of calls that follow each other without a pause. One that finds nothing to
// do is a pause: who made it waits.
package brief

import (
	"crypto/rand"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	inARow = 32 // calls of which the runtime is not told
	apart  = time.Millisecond
)

// Caller makes system calls, one at a time. The zero value is ready.
type Caller struct {
	row      int
	returned time.Time
}

// Call makes a system call that does not block. Arguments may be pointers that
// were made uintptrs in the call's own expression.
//
//go:uintptrescapes
func (c *Caller) Call(trap, a1, a2, a3, a4, a5, a6 uintptr) (uintptr, unix.Errno) {
	if c.row++; c.row > inARow && time.Since(c.returned) > apart {
		c.row = 1
	}
	if c.row > inARow {
		r, _, errno := unix.Syscall6(trap, a1, a2, a3, a4, a5, a6)
		c.end(errno)
		return r, errno
	}
	r, _, errno := unix.RawSyscall6(trap, a1, a2, a3, a4, a5, a6)
	c.end(errno)
	return r, errno
}

func (c *Caller) end(errno unix.Errno) {
	switch {
	case errno == unix.EAGAIN:
		c.row = 0
	case c.row >= inARow:
		c.returned = time.Now()
	}
}

// Random returns what fills b with random bytes from where crypto/rand has them, the
// kernel's generator. What it returns makes one call at a time.
func Random() func(b []byte) {
	var c Caller
	return func(b []byte) {
		n, errno := c.Call(unix.SYS_GETRANDOM, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), 0, 0, 0, 0)
		if errno != 0 || int(n) != len(b) {
			rand.Read(b)
		}
	}
}
