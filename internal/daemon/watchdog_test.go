package daemon

import (
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"

	"joold/internal/nlchan"
	"joold/internal/session"
)

// fed runs the watchdog of a daemon and returns what counts how often it was fed
// since that was asked last.
func fed(t *testing.T, b *bench) func() int64 {
	var n atomic.Int64
	b.condition.mu.Lock()
	b.condition.notify = func(state string) error {
		if state == sd.SdNotifyWatchdog {
			n.Add(1)
		}
		return nil
	}
	b.condition.mu.Unlock()
	go b.watchdog(t.Context())
	return func() int64 { return n.Swap(0) }
}

func TestTheWatchdogIsFedFourTimesInItsTimeWhileTheDaemonIsIdleOrWaits(t *testing.T) {
	t.Setenv("WATCHDOG_USEC", "30000000")
	for _, there := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			b := newAway(t)
			if there {
				b.instance.Store(newHookedKernel(session.Enc4113))
				b.there.Store(true)
			}
			times := fed(t, b.bench)
			b.run()
			time.Sleep(time.Hour)
			if n := times(); n < 479 || n > 481 {
				t.Errorf("instance and group there: %v; fed %d times in an hour, want 480", there, n)
			}
		})
	}
}

func TestTheWatchdogIsNotFedWhileWorkDoesNotEnd(t *testing.T) {
	t.Setenv("WATCHDOG_USEC", "3000000")
	for task, hang := range map[string]func(k *hookedKernel, hook func() error){
		"feed the kernel":   func(k *hookedKernel, hook func() error) { k.onAdd = hook },
		"poll the instance": func(k *hookedKernel, hook func() error) { k.onGlobals = hook },
	} {
		t.Run(task, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := newHookedKernel(session.Enc4113)
				b := startHooked(t, k, nil)
				times := fed(t, b)
				time.Sleep(time.Minute)
				times()
				release := make(chan struct{})
				k.hook(func() { hang(k, func() error { <-release; return nil }) })
				b.g.in <- encode(session.Enc4113, wkp, udp(1, 300_000))
				time.Sleep(2 * idleInterval)
				times()
				time.Sleep(time.Minute)
				if n := times(); n != 0 {
					t.Errorf("fed %d times in a minute", n)
				}
				if !strings.Contains(b.logs.String(), task) {
					t.Error("the log does not say what hangs")
				}
				close(release)
				time.Sleep(10 * time.Second)
				times()
				time.Sleep(time.Minute)
				if n := times(); n < 39 {
					t.Errorf("when it has ended, fed %d times in a minute", n)
				}
			})
		})
	}
}

func TestWorkThatEndsInTimeDoesNotStarveTheWatchdog(t *testing.T) {
	t.Setenv("WATCHDOG_USEC", "30000000")
	synctest.Test(t, func(t *testing.T) {
		k := newHookedKernel(session.Enc4113)
		b := startHooked(t, k, nil)
		times := fed(t, b)
		time.Sleep(time.Minute)
		k.hook(func() { k.onAdd = func() error { time.Sleep(14 * time.Second); return nil } })
		for port := range uint16(100) {
			times()
			b.g.in <- encode(session.Enc4113, wkp, udp(port, 300_000))
			time.Sleep(29 * time.Second)
			if times() == 0 {
				t.Fatal("not fed for 29 s")
			}
		}
	})
}

func TestAnyTaskOnASessionsWayCanBeFoundStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var w work
		w.init(time.Now())
		for _, task := range []*task{&w.hearing, &w.listening, &w.injecting, &w.polling} {
			task.begin()
			time.Sleep(time.Second)
			if got := w.stuck(time.Second); got != "" {
				t.Errorf("%s: %q is stuck after the very limit", task.name, got)
			}
			time.Sleep(time.Millisecond)
			if got := w.stuck(time.Second); got == "" || got != task.name {
				t.Errorf("%q is stuck, want %q", got, task.name)
			}
			task.end()
			if got := w.stuck(time.Second); got != "" {
				t.Errorf("%s has ended, and %q is stuck", task.name, got)
			}
		}
	})
}

func TestTheWatchdogIsFedAfterTheChannelFailed(t *testing.T) {
	t.Setenv("WATCHDOG_USEC", "3000000")
	synctest.Test(t, func(t *testing.T) {
		b, k := startThere(t)
		time.Sleep(time.Minute)
		times := fed(t, b.bench)
		b.instance.Store(nil)
		k.receiveErr <- nlchan.ErrClosed
		time.Sleep(10 * time.Second)
		times()
		time.Sleep(time.Minute)
		if n := times(); n < 39 {
			t.Errorf("fed %d times in a minute while it waits for the instance", n)
		}
	})
}
