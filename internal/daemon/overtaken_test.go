package daemon

import (
	"testing"
	"testing/synctest"
	"time"

	"joold/internal/session"
)

func TestWhatThisKernelAnnouncedWhileAPeersWordWaitedIsNotOverruled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newHookedKernel(session.Enc4113)
		b := startHooked(t, k, nil)
		time.Sleep(time.Minute)
		release := make(chan struct{})
		k.hook(func() { k.onAdd = func() error { <-release; return nil } })
		b.g.in <- encode(session.Enc4113, wkp, udp(1, 100_000))
		time.Sleep(time.Second)
		b.g.in <- encode(session.Enc4113, wkp, udp(2, 100_000), udp(3, 100_000))
		time.Sleep(time.Second)
		k.announce(udp(2, 300_000)) // the kernel is still at work
		time.Sleep(time.Second)
		close(release)
		time.Sleep(time.Second)
		for _, s := range k.taken() {
			if s.Src6Port == 2 {
				t.Errorf("the kernel, which had %d ms, was given %d", 300_000, s.Expiration)
			}
		}
		if n := len(k.taken()); n != 2 {
			t.Errorf("%d sessions were given to the kernel, want 2", n)
		}
	})
}
