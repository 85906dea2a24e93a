package daemon

import (
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"joold/internal/mcast"
	"joold/internal/session"
)

func TestSessionsWaitWhileDatagramsAreRefusedAndAreSentLaterOneDatagramAtATime(t *testing.T) {
	for why, name := range map[error]string{
		syscall.EPERM: "EPERM", syscall.ENOBUFS: "ENOBUFS", syscall.ENETDOWN: "ENETDOWN", syscall.EHOSTUNREACH: "EHOSTUNREACH",
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b, k, g := startRefusing(t)
				time.Sleep(time.Minute)

				g.refuse(why)
				g.writes.Store(0)
				k.announce(udp(1, 300_000))
				k.announce(udp(2, 5_000)) // dies waiting
				for range 60 {
					time.Sleep(time.Second)
					k.announce(udp(3, 300_000))
				}
				// The deadline, and waits that double until they are a second long.
				if n := g.writes.Load(); n < 60 || n > 72 {
					t.Errorf("%d datagrams were tried in a minute", n)
				}
				if s := b.status(time.Now()); s.Net.SendErrors[name] != uint64(g.writes.Load()) || s.Table.Pending != 2 || !s.Instance.InService {
					t.Errorf("counted %v, %d sessions wait, in service %v", s.Net.SendErrors, s.Table.Pending, s.Instance.InService)
				}
				sweeps := b.count.sweeps.Load()
				g.refuse(nil)
				time.Sleep(2 * maxHold)
				all, _ := g.sent(wkp)
				slices.SortFunc(all, func(a, b session.Session) int { return int(a.Src6Port) - int(b.Src6Port) })
				if !slices.Equal(ports(all), []uint16{1, 3}) {
					t.Fatalf("sent %+v", all)
				}
				if left := all[0].Expiration; left > 240_000 || left < 238_000 {
					t.Errorf("after a minute's wait %d ms are left of 300,000", left)
				}
				time.Sleep(time.Minute)
				if b.count.sweeps.Load() == sweeps {
					t.Error("no sweep followed")
				}
				if all, _ := g.sent(wkp); len(all) != 2 {
					t.Errorf("the sweep sent what had been sent: %+v", all)
				}
			})
		})
	}
}

func TestSessionsWaitForAGroupThatIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newAway(t)
		k := newHookedKernel(session.Enc4113)
		b.instance.Store(k)
		b.run()
		time.Sleep(time.Minute)
		k.announce(udp(1, 300_000))
		time.Sleep(time.Minute)
		if n := b.status(time.Now()).Net.SendErrors["no group"]; n == 0 || n > 72 {
			t.Errorf("%d datagrams were tried in a minute without a group", n)
		}
		b.there.Store(true)
		time.Sleep(2 * retryInterval)
		if all, _ := b.g.sent(wkp); len(all) != 1 || all[0].Expiration > 240_000 {
			t.Errorf("sent %+v", all)
		}
	})
}

func TestADatagramThatNeverFitsIsNotTriedForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newHookedKernel(session.Enc4113)
		b := startHooked(t, k, nil)
		time.Sleep(time.Minute)
		b.g.mu.Lock()
		b.g.narrow = 20 // less than one entry
		b.g.mu.Unlock()
		k.announce(udp(1, 300_000))
		time.Sleep(time.Second)
		if s := b.status(time.Now()); s.Table.Pending != 0 || s.Net.SendErrors["EMSGSIZE"] == 0 {
			t.Errorf("%d wait, counted %v", s.Table.Pending, s.Net.SendErrors)
		}
		b.g.mu.Lock()
		b.g.narrow, b.g.max = 0, 1452
		b.g.mu.Unlock()
		b.g.becomes(mcast.Changed, nil)
		b.pathEvents <- struct{}{}
		synctest.Wait()
		k.announce(udp(1, 300_000))
		time.Sleep(time.Second)
		if all, _ := b.g.sent(wkp); len(all) != 1 {
			t.Errorf("on a wider path %d sessions were sent", len(all))
		}
	})
}
