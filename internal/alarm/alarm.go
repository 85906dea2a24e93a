// Package alarm has timers of the kernel's, for what is waited for some hundred
// times a second. It owns how they are waited for, and knows nothing of what for.
//
// One of Go's timers that runs out wakes the thread that waits for whatever comes,
// and since that waits for whole milliseconds often a second time; it also wakes the
// runtime's monitor, which then naps, 20 µs at a time, for as long as anything
// runs. An Alarm is one more descriptor among those that are waited for anyway.
package alarm

import (
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"joold/internal/brief"
)

// Alarm calls a function when its time has come. Its methods must not be called at
// the same time as each other.
type Alarm struct {
	timer *time.Timer // nil if it is the kernel's, which is the rest

	file    *os.File
	conn    syscall.RawConn
	calls   brief.Caller
	spec    unix.ItimerSpec
	settime func(fd uintptr) // set; kept, so that no call allocates
}

// New makes an Alarm that is not set. It calls f in a goroutine of its own, never
// twice at the same time, and must be closed. Where the kernel has no descriptor for
// it, it is one of Go's.
func New(f func()) *Alarm {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK)
	if err != nil {
		return Go(f)
	}
	a := &Alarm{file: os.NewFile(uintptr(fd), "timerfd")}
	if a.conn, err = a.file.SyscallConn(); err != nil {
		a.file.Close()
		return Go(f)
	}
	a.settime = a.set
	go a.run(f)
	return a
}

// Go makes an Alarm of one of Go's timers, which follows the clock of
// testing/synctest.
func Go(f func()) *Alarm {
	a := &Alarm{timer: time.AfterFunc(time.Hour, f)}
	a.timer.Stop()
	return a
}

// Reset has f called once, after d, or at once if that is not positive. When it was
// to be called otherwise is forgotten; a call that has begun is not awaited.
func (a *Alarm) Reset(d time.Duration) {
	if a.timer != nil {
		a.timer.Reset(d)
		return
	}
	a.spec.Value = unix.NsecToTimespec(int64(max(1, d))) // 0 would be never
	a.conn.Control(a.settime)
}

// Stop has f not called.
func (a *Alarm) Stop() {
	if a.timer != nil {
		a.timer.Stop()
		return
	}
	a.spec.Value = unix.Timespec{}
	a.conn.Control(a.settime)
}

// Close is Stop for good. It waits for a call that has begun, and so must not be made
// by f.
func (a *Alarm) Close() {
	if a.timer != nil {
		a.timer.Stop()
		return
	}
	a.file.Close()
}

func (a *Alarm) set(fd uintptr) {
	a.calls.Call(unix.SYS_TIMERFD_SETTIME, fd, 0, uintptr(unsafe.Pointer(&a.spec)), 0, 0, 0)
}

// run waits until the file is closed. It reads all the time: to begin anew would be to
// look first whether there is anything to be read.
func (a *Alarm) run(f func()) {
	var calls brief.Caller
	var times uint64 // that it ran out
	a.conn.Read(func(fd uintptr) (done bool) {
		if _, errno := calls.Call(unix.SYS_READ, fd, uintptr(unsafe.Pointer(&times)), unsafe.Sizeof(times), 0, 0, 0); errno == 0 {
			f()
		}
		return false
	})
}
