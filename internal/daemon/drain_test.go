package daemon

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"joold/internal/config"
	"joold/internal/nlchan"
	"joold/internal/session"
)

// acksOf has k note when it is ACKed, by the daemon's own doing, and returns what
// yields what was noted since it was asked last.
func acksOf(k *hookedKernel) func() []time.Time {
	var at times
	k.hook(func() { k.onAck = func() error { at.note(); return nil } })
	return at.taken
}

func TestLateACKsFollowTheLastMessageAFlushDeadlineApartAndThenNone(t *testing.T) {
	for ms, apart := range map[uint32]time.Duration{
		20: 20 * time.Millisecond, 0: 10 * time.Millisecond, 1: 10 * time.Millisecond, 2000: time.Second,
	} {
		apart += kernelTick
		synctest.Test(t, func(t *testing.T) {
			k := newHookedKernel(session.Enc4113)
			k.globals.Set(nlchan.SSFlushDeadline, ms)
			startHooked(t, k, nil)
			time.Sleep(time.Minute)
			acks := acksOf(k)
			time.Sleep(time.Minute)
			if got := acks(); len(got) != 0 {
				t.Errorf("%d ACKs in an idle minute", len(got))
			}
			for range 3 {
				k.announce(udp(1, 300_000))
				time.Sleep(apart / 3)
			}
			last := time.Now().Add(-apart / 3)
			time.Sleep(time.Minute)
			var after []time.Duration
			for _, at := range acks() {
				if d := at.Sub(last); d > 0 {
					after = append(after, d)
				}
			}
			if len(after) != lateACKs || after[0] > apart { // none follows the others
				t.Fatalf("flush deadline %d ms: ACKs %v after the last message", ms, after)
			}
			for i := 1; i < len(after); i++ {
				if gap := after[i] - after[i-1]; gap != apart {
					t.Errorf("flush deadline %d ms: ACKs %v after the last message, want %v between them", ms, after, apart)
				}
			}
		})
	}
}

func TestAMessageIsFollowedByFourACKsAndOneAmongThemByFourAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newHookedKernel(session.Enc4113)
		k.globals.Set(nlchan.SSFlushDeadline, 20)
		startHooked(t, k, nil)
		acks := acksOf(k)
		began := time.Now()
		ms := time.Millisecond
		k.announce(udp(1, 300_000))
		time.Sleep(50 * ms)
		k.announce(udp(1, 300_000))
		time.Sleep(time.Minute)
		var after []time.Duration
		for _, at := range acks() {
			after = append(after, at.Sub(began))
		}
		if want := []time.Duration{24 * ms, 48 * ms, 74 * ms, 98 * ms, 122 * ms, 146 * ms}; !slices.Equal(after, want) {
			t.Errorf("ACKs after %v, want %v", after, want)
		}
	})
}

func TestADisabledInstanceIsNotACKed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newHookedKernel(session.Enc4113)
		k.globals.SyncEnabled = false
		acks := acksOf(k)
		startHooked(t, k, nil)
		time.Sleep(time.Minute)
		k.announce(udp(1, 300_000)) // it was turned off in this moment
		time.Sleep(time.Minute)
		if got := acks(); len(got) != 0 {
			t.Errorf("%d ACKs", len(got))
		}
		k.set(func() { k.globals.SyncEnabled = true })
		time.Sleep(time.Minute)
		k.announce(udp(1, 300_000))
		time.Sleep(time.Minute)
		if got := acks(); len(got) != lateACKs {
			t.Errorf("turned on, %d ACKs follow a message", len(got))
		}
	})
}

func TestNothingWaitsForCompanyThatWouldComeTooLate(t *testing.T) {
	for _, c := range []struct {
		flush  uint32 // ms
		waits  time.Duration
		atOnce bool
	}{
		{20, 20 * time.Millisecond, true},
		{20, 21 * time.Millisecond, false},
	} {
		synctest.Test(t, func(t *testing.T) {
			k := newHookedKernel(session.Enc4113)
			k.globals.Set(nlchan.SSMaxSessionsPerPacket, 20)
			k.globals.Set(nlchan.SSFlushDeadline, c.flush)
			b := startHooked(t, k, func(o *config.Config) { o.BatchDeadline = c.waits })
			k.announced <- encode(session.Enc4113, wkp, distinct(20)...) // full: there may be more
			time.Sleep(time.Millisecond)
			if all, _ := b.g.sent(wkp); len(all) != 0 {
				t.Errorf("%d sessions were sent before the deadline", len(all))
			}
			k.announce(udp(1, 300_000))
			time.Sleep(time.Millisecond)
			want := 0
			if c.atOnce {
				want = 21
			}
			if all, _ := b.g.sent(wkp); len(all) != want {
				t.Errorf("with a flush deadline of %d ms and %v to wait for company, %d sessions were sent at once, want %d", c.flush, c.waits, len(all), want)
			}
		})
	}
}

func TestMessagesThatFollowEachOtherAreTakenByTheHandful(t *testing.T) {
	for _, c := range []struct {
		name     string
		sessions int
		capacity uint32
		handful  bool
	}{
		{"full messages", 20, restCapacity, true},
		{"messages that are not full", 19, restCapacity, false},
		{"a small queue", 20, restCapacity - 1, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := newHookedKernel(session.Enc4113)
				k.globals.Set(nlchan.SSMaxSessionsPerPacket, 20)
				k.globals.Set(nlchan.SSCapacity, c.capacity)
				b := startHooked(t, k, nil)
				time.Sleep(time.Minute)
				heard, most := b.count.kernelMessages.Load(), uint64(0)
				for range 100 {
					k.announced <- encode(session.Enc4113, wkp, distinct(c.sessions)...)
					time.Sleep(restTime / 3)
					now := b.count.kernelMessages.Load()
					most, heard = max(most, now-heard), now
				}
				if handful := most > 1; handful != c.handful {
					t.Errorf("up to %d messages are taken at a time", most)
				}
				time.Sleep(time.Second)
				if left := len(k.announced); left > 0 {
					t.Errorf("%d messages were not taken", left)
				}
			})
		})
	}
}

// Acknowledged at once, it would be followed by another in the middle of the rest.
func TestAFullMessageThatWasWaitedForIsAcknowledgedAfterTheRest(t *testing.T) {
	for sessions, held := range map[int]bool{20: true, 19: false} {
		synctest.Test(t, func(t *testing.T) {
			k := newHookedKernel(session.Enc4113)
			k.globals.Set(nlchan.SSMaxSessionsPerPacket, 20)
			k.globals.Set(nlchan.SSCapacity, restCapacity)
			k.globals.Set(nlchan.SSFlushDeadline, 20)
			startHooked(t, k, nil)
			time.Sleep(time.Minute)
			acks := acksOf(k)
			start := time.Now()
			k.announced <- encode(session.Enc4113, wkp, distinct(sessions)...)
			time.Sleep(time.Minute)
			var after []time.Duration
			for _, at := range acks() {
				after = append(after, at.Sub(start))
			}
			if held {
				if len(after) != 1+lateACKs || after[0] != restTime {
					t.Errorf("ACKs %v after the message", after)
				}
			} else if len(after) != lateACKs { // the channel's own is not among them
				t.Errorf("ACKs %v after a message that is not full", after)
			}
		})
	}
}

func TestRefreshesWaitForCompanyAndLeaveWithNews(t *testing.T) {
	d, l := idle(t, newModelKernel(session.Enc4113))
	g := newModelGroup()
	var group network = g
	d.current.Store(&group)
	sent := func() int { return len(g.out) }

	start := time.Now()
	d.out.announce([]session.Session{udp(1, 300_000), udp(2, 300_000)}, true, start)
	if sent() != 1 {
		t.Fatalf("news left in %d datagrams", sent())
	}
	later := start.Add(1500 * time.Millisecond) // refreshes are due after 1 s
	d.out.announce([]session.Session{udp(1, 300_000)}, true, later)
	if sent() != 1 {
		t.Error("a refresh left alone, at once")
	}
	d.out.announce([]session.Session{udp(3, 300_000)}, true, later)
	if all, n := g.sent(wkp); n != 2 || !slices.Equal(ports(all), []uint16{1, 2, 3, 1}) {
		t.Errorf("sent %v in %d datagrams, want the refresh behind the news", ports(all), n)
	}
	l.Close()
}

func TestWhatAHandfulOfMessagesLeavesOverWaitsForTheNext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, _, _, g := between(t)
		d.out.resize(g.MaxPayload())
		all := distinct(35 * 36) // as many full messages as datagrams have room
		for message := range slices.Chunk(all, 36) {
			d.out.announce(message, false, time.Now())
			d.out.rest(time.Now())
			time.Sleep(restTime)
		}
		if _, n := g.sent(wkp); n != len(all)/35 {
			t.Errorf("%d sessions left in %d datagrams, want them full", len(all), n)
		}
		d.out.announce(distinct(len(all) + 1)[len(all):], false, time.Now())
		d.out.rest(time.Now())
		time.Sleep(restTime + 3*atOnce)
		if sent, _ := g.sent(wkp); len(sent) != len(all)+1 {
			t.Errorf("%d of %d sessions were sent soon after a rest that brought no more", len(sent), len(all)+1)
		}
	})
}
