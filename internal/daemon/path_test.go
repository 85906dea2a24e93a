package daemon

import (
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"joold/internal/mcast"
)

func TestWhatWasSentWhileThePathWasAwayIsSentAgainThoughTheInterfaceIsAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, k := sweeper(t)
		b.g.becomes(mcast.Away, mcast.ErrInterfaceDown)
		b.pathEvents <- struct{}{}
		time.Sleep(time.Second)
		k.announce(udp(2, 300_000)) // leaves without an error, for nowhere
		time.Sleep(time.Minute)
		b.g.becomes(mcast.Reopen, mcast.ErrNoInterface)
		b.pathEvents <- struct{}{}
		time.Sleep(time.Minute)
		b.g = newModelGroup()
		b.groups <- b.g
		time.Sleep(time.Minute)
		if n := sentOf(b, 2); n != 1 {
			t.Errorf("sent %d times on the new interface", n)
		}
	})
}

func TestAPathThatHasChangedIsTriedAtTheDeadlineAndNotAtTheNextAttempt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, k, g := startRefusing(t)
		time.Sleep(time.Minute)
		g.refuse(syscall.ENETDOWN)
		k.announce(udp(1, 300_000))
		time.Sleep(time.Minute)
		for n := g.writes.Load(); g.writes.Load() == n; { // the next attempt is a second away
			time.Sleep(time.Millisecond)
		}
		g.refuse(nil)
		g.becomes(mcast.Changed, nil)
		b.pathEvents <- struct{}{}
		time.Sleep(2 * b.fixed.BatchDeadline)
		if n := sentOf(b, 1); n != 1 {
			t.Errorf("sent %d times", n)
		}
	})
}

func TestWhatWasSentWithoutACarrierIsSentAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, k := sweeper(t)
		b.g.plug(false)
		b.pathEvents <- struct{}{}
		time.Sleep(time.Second)
		k.announce(udp(2, 300_000)) // leaves without an error, for nowhere
		time.Sleep(time.Minute)
		before := sentOf(b, 2)
		b.g.plug(true)
		b.pathEvents <- struct{}{}
		time.Sleep(time.Minute)
		if n := sentOf(b, 2) - before; n != 1 {
			t.Errorf("sent %d times when the carrier was back", n)
		}
		for _, line := range []string{"has no carrier", "has its carrier back"} {
			if strings.Count(b.logs.String(), line) != 1 {
				t.Errorf("the log does not say once that the interface %s", line)
			}
		}
	})
}
