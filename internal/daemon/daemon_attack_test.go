package daemon

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"joold/internal/config"
	"joold/internal/control"
	"joold/internal/mcast"
	"joold/internal/nlchan"
	"joold/internal/session"
	"joold/internal/wire"
)

// distinct makes sessions that differ from each other.
func distinct(n int) []session.Session {
	ss := make([]session.Session, n)
	for i := range ss {
		ss[i] = udp(1, 300_000)
		ss[i].Dst4 = [4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}
	}
	return ss
}

func TestAKernelThatDoesNotReturnFillsTheInboxAndHoldsUpNothingElse(t *testing.T) {
	const excess = 100
	b := start(t, newModelKernel(session.Enc4113), nil)
	release := sync.OnceFunc(b.k.mu.Unlock)
	b.k.mu.Lock() // Add does not return
	defer release()
	first := mcast.Datagram{Payload: encode(session.Enc4113, wkp, udp(2, 300_000)), From: sender}
	newIntake(b.Daemon).accept(b.link.Load(), &first, time.Now())
	eventually(t, "the kernel is given a session", func() bool { return b.link.Load().inbox.Counts().Waiting == 0 })

	all := distinct(inboxSize + excess)
	for from := 0; from < len(all); from += 1000 {
		b.g.in <- encode(session.Enc4113, wkp, all[from:min(from+1000, len(all))]...)
	}
	b.k.announced <- encode(session.Enc4113, wkp, udp(3, 300_000))
	eventually(t, "all is heard", func() bool { return b.count.rcvdSessions.Load() == inboxSize+excess+1 })
	eventually(t, "what the kernel announces goes out", func() bool { sent, _ := b.g.sent(wkp); return len(sent) == 1 })
	eventually(t, "the inbox is full beside what the kernel is given, and what found no room is counted", func() bool {
		s := b.status(time.Now()).Kernel
		return s.Waiting == inboxSize+1 && s.Dropped == excess
	})

	release()
	eventually(t, "the kernel has all that waited", func() bool { return b.count.injected.Load() == inboxSize+1 })
}

func TestThousandsOfStrangersAreOneLineInTheLog(t *testing.T) {
	b := start(t, newModelKernel(session.Enc4113), nil)
	l := b.link.Load()
	random := rand.NewChaCha8([32]byte{})
	noise := make([]byte, 600)
	immortal := encode(session.Enc4113, wkp, udp(1, 4_000_000_000))
	tiny := make([]byte, 60_000) // as many attributes as fit
	for i := 0; i < len(tiny); i += 4 {
		copy(tiny[i:], []byte{4, 0, 1, 0x80})
	}
	in := newIntake(b.Daemon)
	for i := range 2_000 {
		from := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 6400)
		payload := immortal
		switch {
		case i%500 == 0:
			payload = tiny
		case i%2 == 0:
			random.Read(noise)
			payload = noise
		}
		in.accept(l, &mcast.Datagram{Payload: payload, From: from}, time.Now())
	}
	if n := strings.Count(b.logs.String(), "refused entries"); n != 1 {
		t.Errorf("%d lines in the log", n)
	}
	if s := b.status(time.Now()); len(s.Peers) != maxPeers || s.Kernel.Waiting != 0 || len(b.k.taken()) != 0 {
		t.Errorf("%d peers, %d sessions wait, %d taken", len(s.Peers), s.Kernel.Waiting, len(b.k.taken()))
	}
}

func TestNothingOutlivesADaemonWhoseInstanceCameAndWentUnderLoad(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	table := distinct(1000)
	instance := func(n int) *modelKernel {
		k := newModelKernel(session.Encodings[n%len(session.Encodings)])
		k.table = table
		return k
	}
	b := start(t, instance(0), nil)
	ctx, cancel := context.WithCancel(context.Background())
	var load sync.WaitGroup
	for range 2 {
		load.Go(func() {
			for ctx.Err() == nil {
				b.advertise(ctx, MaxRate, func(control.Progress) error { return nil })
				b.status(time.Now())
			}
		})
	}
	load.Go(func() {
		for ctx.Err() == nil {
			select {
			case b.g.in <- encode(session.Enc4112, wkp, table[:20]...):
			case <-ctx.Done():
			}
		}
	})
	for n := range 2 {
		b.events <- nlchan.ModuleRemoved
		if n == 0 {
			b.dials <- dialled{err: errors.New("not yet")}
		}
		next := instance(n + 1)
		next.announced <- encode(session.Enc4113, wkp, table[:50]...)
		b.dials <- dialled{k: next}
		eventually(t, "it is in service again", func() bool { l := b.link.Load(); return l != nil && l.kernel == kernel(next) })
		b.g.mu.Lock()
		b.g.out, b.g.narrow, b.g.max = nil, n*500, 1452-n*1480 // down to less than nothing
		b.g.mu.Unlock()
		b.checkPath()
	}
	cancel()
	load.Wait()
	b.stop()
}

func TestAnAdvertisementThatIsCalledOffMakesWayForTheNext(t *testing.T) {
	k := newModelKernel(session.Enc4113)
	k.table = distinct(1000)
	b := start(t, k, nil)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	for range 2 { // one runs, for 1,000 s, and one waits
		go func() {
			_, err := b.advertise(ctx, 1, func(control.Progress) error { return nil })
			ended <- err
		}()
	}
	eventually(t, "the first datagram is out", func() bool { _, n := b.g.sent(wkp); return n == 1 })
	cancel()
	for range 2 {
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	}
	if p, err := advertise(b, MaxRate); err != nil || p.Sent != 1000 {
		t.Errorf("%+v, %v", p, err)
	}
}

func TestAnAdvertisementEndsWithTheInstance(t *testing.T) {
	k := newModelKernel(session.Enc4113)
	k.table = distinct(1000)
	b := start(t, k, nil)
	ended := make(chan error)
	go func() {
		_, err := advertise(b, 3600) // a datagram each 10 ms
		ended <- err
	}()
	eventually(t, "the first datagram is out", func() bool { _, n := b.g.sent(wkp); return n >= 1 })
	b.events <- nlchan.ModuleRemoved
	if err := <-ended; !errors.Is(err, errNotInService) {
		t.Errorf("got %v", err)
	}
	b.dials <- dialled{k: newModelKernel(session.Enc4113)}
}

func TestWhereFewerMayWaitThanFillADatagramAllStillArrive(t *testing.T) {
	const few, many = 3, 50
	b := start(t, newModelKernel(session.Enc4113), func(c *config.Config) { c.Pending, c.BatchDeadline = few, time.Hour })
	all := distinct(few + many)
	for _, s := range all[:few] {
		b.k.announced <- encode(session.Enc4113, wkp, s)
	}
	eventually(t, "those that may wait are sent", func() bool { sent, _ := b.g.sent(wkp); return len(sent) == few })
	eventually(t, "the first sweep is over", func() bool { return b.count.sweeps.Load() > 0 })

	b.k.set(func() { b.k.table = all })
	b.k.announced <- encode(session.Enc4113, wkp, all[few:]...)
	eventually(t, "those that found no room are swept", func() bool { sent, _ := b.g.sent(wkp); return len(sent) >= few+many })
}

func TestAnInstanceOfWhichTheEndWouldNotBeHeardIsWaitedForAndNotServed(t *testing.T) {
	b := bench0(t, testConfig(), slog.LevelInfo)
	b.dial = func() (kernel, error) { return newModelKernel(session.Enc4113), nil }
	failures := 2
	b.newWatcher = func() (watcher, error) {
		if failures--; failures >= 0 {
			return nil, errors.New("too many open files")
		}
		return modelWatcher(b.events), nil
	}
	b.run()
	eventually(t, "the daemon is in service", func() bool { return b.condition.why(theInstance) == "" })
	for line, want := range map[string]int{"in service": 1, "too many open files": 1} {
		if n := strings.Count(b.logs.String(), line); n != want {
			t.Errorf("%q is logged %d times, want %d:\n%s", line, n, want, b.logs)
		}
	}
}

func TestASendersNumberIsItsOwnAfterAllHaveBeenGiven(t *testing.T) {
	p := peers{last: math.MaxUint32}
	if n := p.heard(sender.Addr(), session.Report{}, 0, wire.Unstamped, time.Now()); n <= keptPeer {
		t.Errorf("a sender is number %d, which means no sender", n)
	}
}
