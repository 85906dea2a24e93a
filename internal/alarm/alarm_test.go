package alarm

import (
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const limit = 30 * time.Second

// each runs a test with either kind.
func each(t *testing.T, test func(t *testing.T, make func(func()) *Alarm)) {
	t.Run("the kernel's", func(t *testing.T) {
		test(t, func(f func()) *Alarm {
			a := New(f)
			if a.timer != nil {
				t.Fatal("it is one of Go's")
			}
			t.Cleanup(a.Close)
			return a
		})
	})
	t.Run("Go's", func(t *testing.T) {
		test(t, func(f func()) *Alarm {
			a := Go(f)
			t.Cleanup(a.Close)
			return a
		})
	})
}

// rung makes an alarm and what it does.
func rung(make_ func(func()) *Alarm) (*Alarm, chan time.Time) {
	c := make(chan time.Time, 16)
	return make_(func() { c <- time.Now() }), c
}

func await(t *testing.T, c chan time.Time) time.Time {
	t.Helper()
	select {
	case at := <-c:
		return at
	case <-time.After(limit):
		t.Fatal("it was not called")
		return time.Time{}
	}
}

func silent(t *testing.T, c chan time.Time) {
	t.Helper()
	select {
	case <-c:
		t.Fatal("it was called")
	case <-time.After(100 * time.Millisecond):
	}
}

func TestAnAlarmCallsWhenItsTimeHasComeAndOnce(t *testing.T) {
	each(t, func(t *testing.T, make func(func()) *Alarm) {
		a, c := rung(make)
		silent(t, c)
		for _, d := range []time.Duration{20 * time.Millisecond, 0, -time.Second, time.Nanosecond} {
			set := time.Now()
			a.Reset(d)
			if after := await(t, c).Sub(set); after < d {
				t.Errorf("called after %v, not %v", after, d)
			}
			silent(t, c)
		}
	})
}

func TestAnAlarmThatIsSetAnewOrStoppedForgetsWhatItWasToDo(t *testing.T) {
	each(t, func(t *testing.T, make func(func()) *Alarm) {
		a, c := rung(make)
		for _, forget := range []func(){func() { a.Reset(time.Hour) }, a.Stop, a.Close} {
			a.Reset(time.Millisecond)
			await(t, c)
			for soon := 20 * time.Millisecond; ; soon *= 2 { // until the machine lets it be forgotten in time
				set := time.Now()
				a.Reset(soon)
				forget()
				if time.Since(set) < soon {
					time.Sleep(soon)
					break
				}
				await(t, c)
			}
			silent(t, c)
		}
	})
}

func TestAnAlarmMaySetItself(t *testing.T) {
	each(t, func(t *testing.T, make_ func(func()) *Alarm) {
		var mu sync.Mutex // who sets it does so one after the other
		var a *Alarm
		n, done := 0, make(chan struct{})
		reset := func(d time.Duration) {
			mu.Lock()
			defer mu.Unlock()
			a.Reset(d)
		}
		a = make_(func() {
			if n++; n == 100 {
				close(done)
				return
			}
			reset(time.Microsecond)
		})
		reset(0)
		select {
		case <-done:
		case <-time.After(limit):
			t.Fatal("it was not called 100 times")
		}
	})
}

func TestNoAlarmCallsTwiceAtOnce(t *testing.T) {
	var inside, calls atomic.Int32
	a := New(func() {
		if inside.Add(1) > 1 {
			t.Error("called while it was being called")
		}
		time.Sleep(time.Millisecond)
		inside.Add(-1)
		calls.Add(1)
	})
	defer a.Close()
	for start := time.Now(); calls.Load() < 20 && time.Since(start) < limit; time.Sleep(100 * time.Microsecond) {
		a.Reset(0)
	}
	if calls.Load() < 20 {
		t.Errorf("called %d times", calls.Load())
	}
}

// Without a descriptor it is dearer, but it rings.
func TestAnAlarmNeedsNoDescriptor(t *testing.T) {
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	none := unix.Rlimit{Cur: 0, Max: was.Max}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &none); err != nil {
		t.Fatal(err)
	}
	a, c := rung(New)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	if a.timer == nil {
		t.Error("it has a descriptor")
	}
	a.Reset(time.Millisecond)
	await(t, c)
}

func TestAnAlarmAllocatesNothing(t *testing.T) {
	called := make(chan struct{}, 1)
	a := New(func() { called <- struct{}{} })
	defer a.Close()
	if n := testing.AllocsPerRun(100, func() {
		a.Reset(time.Hour)
		a.Stop()
		a.Reset(0)
		<-called
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// What an alarm is for: a thread that has nothing to do but to wait for it wakes
// once. (The monitor is what Go's timers wake besides.)
func TestAnAlarmWakesOneThreadOnce(t *testing.T) {
	const n = 50
	rings := func(make_ func(func()) *Alarm) int {
		called := make(chan struct{})
		a := make_(func() { called <- struct{}{} })
		defer a.Close()
		before := sleeps(t)
		for range n {
			a.Reset(2500 * time.Microsecond)
			<-called
		}
		return sleeps(t) - before
	}
	ours, gos := rings(New), rings(Go)
	t.Logf("%d rings put threads to sleep %d times; Go's %d times", n, ours, gos)
	if ours > gos {
		t.Errorf("%d sleeps, Go's %d", ours, gos)
	}
}

// sleeps is how often the process's threads have gone to sleep.
func sleeps(t *testing.T) (n int) {
	t.Helper()
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, thread := range threads {
		status, err := os.ReadFile("/proc/self/task/" + thread.Name() + "/status")
		if err != nil {
			continue // it has ended
		}
		for line := range strings.Lines(string(status)) {
			if value, ok := strings.CutPrefix(line, "voluntary_ctxt_switches:"); ok {
				k, err := strconv.Atoi(strings.TrimSpace(value))
				if err != nil {
					t.Fatal(err)
				}
				n += k
			}
		}
	}
	return n
}

func BenchmarkAlarm(b *testing.B) {
	for name, make_ := range map[string]func(func()) *Alarm{"kernel": New, "Go": Go} {
		b.Run(name, func(b *testing.B) {
			called := make(chan struct{})
			a := make_(func() { called <- struct{}{} })
			defer a.Close()
			for b.Loop() {
				a.Reset(time.Millisecond)
				<-called
			}
		})
	}
}
