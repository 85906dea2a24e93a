package daemon

import (
	"testing"
	"testing/synctest"
	"time"

	"joold/internal/session"
)

func TestAnInstanceThatSpeaksAllTheTimeIsLookedAtOnceASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newHookedKernel(session.Enc4113)
		startHooked(t, k, nil)
		time.Sleep(time.Minute)
		var looks times
		k.hook(func() { k.onGlobals = func() error { looks.note(); return nil } })
		for range 1000 {
			k.announce(udp(1, 300_000))
			time.Sleep(10 * time.Millisecond)
		}
		if n := len(looks.taken()); n < 8 || n > 11 {
			t.Errorf("%d looks in 10 s", n)
		}
	})
}

func TestWhatAnInstanceSaysGoesBeforeALookAtIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newHookedKernel(session.Enc4113)
		b := startHooked(t, k, nil)
		time.Sleep(time.Minute + pollInterval + time.Second) // no look is due
		sent := make(chan int, 1)
		k.hook(func() {
			k.onGlobals = func() error {
				_, n := b.g.sent(wkp)
				sent <- n
				return nil
			}
		})
		k.announce(udp(1, 300_000))
		select {
		case n := <-sent:
			if n != 1 {
				t.Errorf("%d datagrams were sent before the look", n)
			}
		case <-time.After(time.Second):
			t.Error("it was not looked at")
		}
		k.hook(func() { k.onGlobals = nil })
	})
}
