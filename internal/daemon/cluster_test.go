package daemon

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"joold/internal/batch"
	"joold/internal/config"
	"joold/internal/control"
	"joold/internal/mcast"
	"joold/internal/session"
)

// ether is a network between daemons, which loses some of what it carries.
type ether struct {
	mu    sync.Mutex
	r     *rand.Rand
	loss  float64
	bytes int // sent by anybody
	ports []*etherPort
}

// etherPort is a daemon's access to it.
type etherPort struct {
	*modelGroup
	net  *ether
	from netip.AddrPort
	in   chan mcast.Datagram
	cut  bool // what it sends and would hear is lost
}

func (e *ether) port() *etherPort {
	e.mu.Lock()
	defer e.mu.Unlock()
	p := &etherPort{
		modelGroup: newModelGroup(), net: e, in: make(chan mcast.Datagram, 100_000),
		from: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(10 + len(e.ports))}), 6400),
	}
	e.ports = append(e.ports, p)
	return p
}

func (e *ether) set(change func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	change()
}

func (p *etherPort) Write(b []byte) error { return p.WriteTo(b, netip.AddrPort{}) }

func (p *etherPort) WriteTo(b []byte, to netip.AddrPort) error {
	e := p.net
	e.mu.Lock()
	defer e.mu.Unlock()
	e.bytes += len(b)
	for _, o := range e.ports {
		if o != p && (!to.IsValid() || to == o.from) && !p.cut && !o.cut && e.r.Float64() >= e.loss {
			o.in <- mcast.Datagram{Payload: bytes.Clone(b), From: p.from}
		}
	}
	return nil
}

func (p *etherPort) ReadBatch(d []mcast.Datagram) (int, error) {
	select {
	case d[0] = <-p.in:
		return 1, nil
	case <-p.ended:
		return 0, os.ErrDeadlineExceeded
	case <-p.closed:
		return 0, net.ErrClosed
	}
}

// site is a daemon on an ether, and its kernel.
type site struct {
	*bench
	k    *hookedKernel
	port *etherPort
}

func (e *ether) start(t *testing.T, change func(*config.Config)) *site {
	return e.startWith(t, change, func(*hookedKernel) {})
}

// startNoted has the daemon find, and leave, a note.
func (e *ether) startNoted(t *testing.T, noted func(*site), prepare func(*hookedKernel)) *site {
	s := e.make(t, nil, prepare)
	noted(s)
	s.run()
	return s
}

// startWith has prepare change the kernel before the daemon sees it.
func (e *ether) startWith(t *testing.T, change func(*config.Config), prepare func(*hookedKernel)) *site {
	s := e.make(t, change, prepare)
	s.run()
	return s
}

func (e *ether) make(t *testing.T, change func(*config.Config), prepare func(*hookedKernel)) *site {
	cfg := testConfig()
	cfg.Refresh = 0
	if change != nil {
		change(cfg)
	}
	s := &site{bench: bench0(t, cfg, 0), k: newHookedKernel(session.Enc4113), port: e.port()}
	s.k.pool4 = nil
	prepare(s.k)
	s.name = fmt.Sprintf("node %d", len(e.ports))
	s.open = func(context.Context) (network, error) { return s.port, nil }
	s.dial = func() (kernel, error) { return siteKernel{s.k}, nil }
	return s
}

// says is what it says of the cluster.
func (s *site) says() *control.Cluster { return s.out.clusterStatus(time.Now()) }

// state waits for one.
func (s *site) state(want string) {
	s.t.Helper()
	for limit := time.Now().Add(time.Minute); s.says() == nil || s.says().State != want; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(limit) {
			s.t.Fatalf("not %s within a minute: %+v", want, s.says())
		}
	}
}

// lacks are those of the sessions that its kernel was never given.
func (s *site) lacks(ss []session.Session) (n int) {
	has := make(map[uint16]bool)
	for _, got := range s.k.taken() {
		has[got.Src6Port] = true
	}
	for _, want := range ss {
		if !has[want.Src6Port] {
			n++
		}
	}
	return n
}

// fills waits until its kernel has all of them, and tells for how long.
func (s *site) fills(ss []session.Session) time.Duration {
	s.t.Helper()
	began := time.Now()
	for s.lacks(ss) > 0 {
		if time.Since(began) > time.Minute {
			s.t.Fatalf("%d of %d sessions are missing after a minute: %+v", s.lacks(ss), len(ss), s.says())
		}
		time.Sleep(10 * time.Millisecond)
	}
	return time.Since(began)
}

// some are sessions from a port on, in the state in which they are announced.
func some(from, n int) (ss []session.Session) {
	for i := range n {
		s := udp(uint16(from+i), 300_000)
		s.Src4Port = uint16(from + i)
		ss = append(ss, s)
	}
	return ss
}

// siteKernel keeps what it is given.
type siteKernel struct{ *hookedKernel }

func (k siteKernel) Add(ss []session.Session, p session.Pool6) error {
	k.keep(ss)
	return k.hookedKernel.Add(ss, p)
}

// keep puts sessions into the table.
func (k siteKernel) keep(ss []session.Session) {
	k.set(func() {
		age := uint32(time.Since(k.made).Milliseconds())
		at := make(map[uint16]int)
		for i := range k.table {
			at[k.table[i].Src6Port] = i
		}
		for _, s := range ss {
			s.Expiration += age
			if i, ok := at[s.Src6Port]; ok {
				k.table[i] = s
			} else {
				k.table = append(k.table, s)
			}
		}
	})
}

// announce has its kernel announce sessions, as many as fit a message at once.
func (s *site) announce(ss []session.Session) {
	siteKernel{s.k}.keep(ss)
	for m := range slices.Chunk(ss, 36) {
		s.k.announced <- encode(session.Enc4113, wkp, m...)
		time.Sleep(5 * time.Millisecond)
	}
}

func withNet(t *testing.T, f func(*testing.T, *ether)) {
	synctest.Test(t, func(t *testing.T) { f(t, &ether{r: rand.New(rand.NewPCG(1, 2))}) })
}

func TestWhatIsLostOnItsWayIsAskedForAndComes(t *testing.T) {
	for _, c := range []struct {
		what string
		loss float64
		keys bool
		most time.Duration
	}{
		{"a tenth", 0.1, false, 2 * time.Second},
		{"a third", 0.3, false, 5 * time.Second},
		{"a third, with a key", 0.3, true, 5 * time.Second},
	} {
		t.Run(c.what, func(t *testing.T) {
			withNet(t, func(t *testing.T, e *ether) {
				conf := func(cfg *config.Config) {
					if c.keys {
						cfg.Keys, cfg.Encrypt = someKeys(t, 1), true
					}
				}
				j, k := e.start(t, conf), e.start(t, conf)
				j.state("synced")
				k.state("synced")
				if n := k.says().Nodes[0]; n.Repaired != 0 {
					t.Errorf("made up for before anything was lost: %+v", n)
				}
				e.set(func() { e.loss = c.loss })
				ss := some(1, 4000)
				j.announce(ss)
				took := k.fills(ss)
				if took > c.most {
					t.Errorf("all were there %v after the last was announced", took)
				}
				time.Sleep(10 * time.Second)
				n := k.says().Nodes[0]
				if n.Sessions != len(ss) || k.says().Sessions != len(ss) || n.Missing != 0 || n.Repaired == 0 || n.Requests == 0 {
					t.Errorf("%+v", n)
				}
				t.Logf("%v; %+v", took, n)
			})
		})
	}
}

func TestWhoComesLaterGetsTheWholeTableByItself(t *testing.T) {
	withNet(t, func(t *testing.T, e *ether) {
		j := e.start(t, nil)
		j.state("gave up") // alone
		old := some(1, 5000)
		j.announce(old)
		time.Sleep(10 * time.Second)
		k := e.start(t, nil)
		live := some(10_000, 500)
		go j.announce(live)
		t.Logf("the copy took %v, live ones %v", k.fills(old), k.fills(live))
		k.state("synced")
		j.state("synced")
		time.Sleep(5 * time.Second)
		if s := k.says(); s.Sessions != 5500 || s.CopiesTaken == 0 || s.Verified == nil || *s.Verified > 3 || s.Active {
			t.Errorf("%+v", s)
		}
		if n := j.count.sweeps.Load(); n > 1 {
			t.Errorf("%d sweeps", n)
		}
	})
}

func TestNobodyIsInSyncBeforeItsKernelHasWhatWasCopied(t *testing.T) {
	withNet(t, func(t *testing.T, e *ether) {
		j := e.start(t, nil)
		j.state("gave up")
		old := some(1, 5000)
		j.announce(old)
		time.Sleep(10 * time.Second)
		slow := func(k *hookedKernel) { k.onAdd = func() error { time.Sleep(200 * time.Millisecond); return nil } } // 4 s for all
		k := e.startWith(t, nil, slow)
		k.state("synced")
		if lacking := k.lacks(old); lacking > fewWait {
			t.Errorf("it says that it is in sync while its kernel lacks %d sessions", lacking)
		}
	})
}

func TestACopyIsTakenInOldestFirstAndNewsHasItsTurnMeanwhile(t *testing.T) {
	withNet(t, func(t *testing.T, e *ether) {
		j := e.start(t, nil)
		j.state("gave up")
		old := some(1, 5000)
		for i := range old { // the youngest first, and by more than it takes to announce them
			old[i].Expiration = uint32(100_000 + 30*(len(old)-i))
		}
		j.announce(old)
		time.Sleep(10 * time.Second)
		slow := func(k *hookedKernel) { k.onAdd = func() error { time.Sleep(200 * time.Millisecond); return nil } }
		k := e.startWith(t, nil, slow)
		for k.lacks(old) > len(old)/2 {
			time.Sleep(10 * time.Millisecond)
		}
		live := some(10_000, 1)
		j.announce(live)
		if took := k.fills(live); took > time.Second || k.lacks(old) == 0 {
			t.Errorf("news took %v while %d sessions of the copy were still to come", took, k.lacks(old))
		}
		k.fills(old)
		var last uint32
		for i, s := range k.k.taken() {
			if s.Src6Port == live[0].Src6Port {
				continue
			}
			expires := old[s.Src6Port-1].Expiration
			if expires < last {
				t.Fatalf("number %d that the kernel gets is older than the one before", i)
			}
			last = expires
		}
	})
}

func TestAKernelWhoseSynchronizationIsOffIsGivenNothingAndAllOnceItIsOn(t *testing.T) {
	withNet(t, func(t *testing.T, e *ether) {
		j := e.start(t, nil)
		j.state("gave up")
		old := some(1, 2000)
		j.announce(old)
		k := e.startWith(t, nil, func(k *hookedKernel) { k.globals.SyncEnabled = false })
		time.Sleep(time.Minute)
		j.announce(some(5000, 100))
		time.Sleep(time.Minute)
		if n := k.count.addMessages.Load() + k.count.addErrors.Load(); n > 0 {
			t.Errorf("its kernel was asked %d times to take sessions", n)
		}
		if n := j.says().CopiesGiven; n > 1 {
			t.Errorf("it was given %d copies", n)
		}
		k.k.set(func() { k.k.globals.SyncEnabled = true })
		t.Logf("all were there %v later", k.fills(old))
		k.state("synced")
	})
}

func TestWhoWasCutOffCatchesUpByItself(t *testing.T) {
	withNet(t, func(t *testing.T, e *ether) {
		j, k := e.start(t, nil), e.start(t, nil)
		k.state("synced")
		j.state("synced")
		e.set(func() { k.port.cut = true })
		ss := some(1, 3000)
		j.announce(ss)
		time.Sleep(20 * time.Second)
		if k.lacks(ss) != len(ss) {
			t.Fatal("it hears")
		}
		for _, s := range []*site{j, k} {
			if log := s.logs.String(); !strings.Contains(log, "in sync with the other nodes") || !strings.Contains(log, "another node is silent") {
				t.Errorf("the log of %s says %s", s.name, log)
			}
		}
		e.set(func() { k.port.cut = false })
		t.Logf("all were there %v later", k.fills(ss))
		time.Sleep(5 * time.Second)
		if s := k.says(); s.State != "synced" || s.Verified == nil || s.Sessions != 3000 {
			t.Errorf("%+v", s)
		}
	})
}

func TestTheLastDatagramsOfANodeThatDiedAreFoundMissingByOthers(t *testing.T) {
	withNet(t, func(t *testing.T, e *ether) {
		j, k, m := e.start(t, nil), e.start(t, nil), e.start(t, nil)
		k.state("synced")
		m.state("synced")
		e.set(func() { m.port.cut = true })
		ss := some(1, 100)
		j.announce(ss)
		k.fills(ss)
		e.set(func() { j.port.cut, m.port.cut = true, false })
		t.Logf("all were there %v later", m.fills(ss))
	})
}

func TestWhatIsUnlikeIsNamedOnBothNodes(t *testing.T) {
	withNet(t, func(t *testing.T, e *ether) {
		j, k := e.start(t, nil), e.start(t, nil)
		k.k.set(func() { k.k.globals.Timeouts.UDP = 120_000 })
		time.Sleep(30 * time.Second)
		for _, s := range []*site{j, k} {
			if !strings.Contains(s.logs.String(), "another node is configured differently") {
				t.Errorf("the log of %s says %s", s.name, s.logs)
			}
			if u := s.says().Nodes[0].Unlike; len(u) != 1 || !strings.Contains(u[0], "udp 2m0s") || !strings.Contains(u[0], "udp 5m0s") {
				t.Errorf("%s says %q", s.name, u)
			}
		}
	})
}

func TestRefreshesAreRareWhereOnlyOursListen(t *testing.T) {
	withNet(t, func(t *testing.T, e *ether) {
		j, k := e.start(t, nil), e.start(t, nil)
		k.state("synced")
		refresh := func() time.Duration {
			j.out.mu.Lock()
			defer j.out.mu.Unlock()
			return j.out.tableConfig.Refresh
		}
		time.Sleep(5 * time.Second)
		if r := refresh(); r != commonRefresh {
			t.Errorf("refreshed each %v while only joold is heard", r)
		}
		c := e.port()
		c.Write(encode(session.Enc4113, wkp, udp(9, 300_000)))
		time.Sleep(5 * time.Second)
		if r := refresh(); r != lonelyRefresh {
			t.Errorf("refreshed each %v while a C node is heard", r)
		}
		time.Sleep(2 * plainFor)
		if r := refresh(); r != commonRefresh {
			t.Errorf("refreshed each %v long after", r)
		}
		e.set(func() { k.port.cut = true })
		time.Sleep(time.Minute)
		if r := refresh(); r != lonelyRefresh {
			t.Errorf("refreshed each %v while nobody is heard", r)
		}
	})
}

func TestAMachineThatSleptDoubtsWhatItHas(t *testing.T) {
	withNet(t, func(t *testing.T, e *ether) {
		j, k := e.start(t, nil), e.start(t, nil)
		k.state("synced")
		j.state("synced")
		taken := k.says().CopiesTaken
		k.out.mu.Lock()
		k.out.asleep = func() time.Duration { return time.Hour }
		k.out.mu.Unlock()
		time.Sleep(10 * time.Second)
		if s := k.says(); s.Stops != 1 || s.CopiesTaken == taken || s.State != "synced" {
			t.Errorf("%+v", s)
		}
	})
}

func TestWhenAGiverDiesDuringACopyAnotherGoesOn(t *testing.T) {
	withNet(t, func(t *testing.T, e *ether) {
		j, k := e.start(t, nil), e.start(t, nil)
		k.state("synced")
		j.state("synced")
		old := some(1, 20_000)
		j.announce(old)
		k.fills(old)
		time.Sleep(5 * time.Second)
		m := e.start(t, nil)
		for m.says() == nil || m.says().Copying == "" || len(m.k.taken()) == 0 && m.link.Load().waiting().Waiting == 0 {
			time.Sleep(time.Millisecond)
		}
		for _, giver := range []*site{j, k} {
			if giver.name == m.says().Copying {
				e.set(func() { giver.port.cut = true })
			}
		}
		if m.lacks(old) == 0 {
			t.Fatal("it has all before its giver dies")
		}
		t.Logf("all were there %v after the giver's death", m.fills(old))
		m.state("synced")
		if s := m.says(); s.CopiesBroken != 1 {
			t.Errorf("%+v", s)
		}
	})
}

func TestNoStormFollowsWhenTheNetworkReturns(t *testing.T) {
	withNet(t, func(t *testing.T, e *ether) {
		var all []*site
		for range 8 {
			all = append(all, e.start(t, nil))
		}
		for _, s := range all {
			s.state("synced")
		}
		old := some(1, 5000)
		all[0].announce(old)
		for _, s := range all[1:] {
			s.fills(old)
		}
		time.Sleep(10 * time.Second)
		e.set(func() { e.loss = 1 })
		missed := some(10_000, 5000)
		all[0].announce(missed)
		time.Sleep(20 * time.Second)
		e.set(func() { e.loss, e.bytes = 0, 0 })
		most := 0
		for range 20 {
			time.Sleep(time.Second)
			e.set(func() { most, e.bytes = max(most, e.bytes), 0 })
		}
		for _, s := range all[1:] {
			s.fills(missed)
			s.state("synced")
		}
		// The sessions are 200 KB, and as a copy for each of the seven others 2.8 MB.
		t.Logf("%d bytes in a second at most", most)
		if most > 4<<20 {
			t.Error("that is a storm")
		}
	})
}

func TestWhatBeganWhileSynchronizationWasOffIsSentOnceItIsOn(t *testing.T) {
	withNet(t, func(t *testing.T, e *ether) {
		j := e.startWith(t, nil, func(k *hookedKernel) { k.globals.SyncEnabled = false })
		k := e.start(t, nil)
		time.Sleep(20 * time.Second)
		idle := some(1, 50)
		siteKernel{j.k}.keep(idle) // translated, and not announced
		time.Sleep(20 * time.Second)
		j.k.set(func() { j.k.globals.SyncEnabled = true })
		time.Sleep(time.Second)
		j.announce(some(100, 1)) // somebody else's packet
		time.Sleep(4 * time.Minute)
		if n := k.lacks(idle); n > 0 {
			t.Errorf("%d of %d sessions never reach the backup: %s, %s; verified %v; sweeps %d", n, len(idle), k.says().State, k.says().Why,
				k.says().Verified, j.status(time.Now()).Table.Sweeps)
		}
	})
}

func TestTheDeadLeaveTheTableOfAQuietNodeInTime(t *testing.T) {
	withNet(t, func(t *testing.T, e *ether) {
		j := e.start(t, nil)
		j.state("gave up")
		time.Sleep(30 * time.Second)
		const n = 200_000
		j.out.with(func(tab *batch.Table) {
			for i := range n {
				s := udp(uint16(i), 10_000)
				s.Src6[15], s.Src6[14] = byte(i>>16), 7
				s.Src4, s.Src4Port = [4]byte{192, 0, byte(i >> 16), 2}, uint16(i)
				tab.Accept(&batch.Source{From: 1, Order: 1}, &s, time.Now())
			}
		})
		for range 8 {
			time.Sleep(2 * time.Minute)
			t.Logf("%v after their end: %d of %d in the table, %d in the digest", time.Since(j.started).Round(time.Second)-45*time.Second,
				j.status(time.Now()).Table.Sessions, n, j.says().Sessions)
		}
		if left := j.says().Sessions; left > 0 {
			t.Errorf("%d are still there", left)
		}
	})
}

func TestANodeThatCannotTakeACopyIsNotWokenAllTheTime(t *testing.T) {
	withNet(t, func(t *testing.T, e *ether) {
		j := e.start(t, nil)
		j.state("gave up")
		k := e.startWith(t, nil, func(k *hookedKernel) { k.globals.SyncEnabled = false })
		time.Sleep(time.Minute)
		for _, s := range []*site{j, k} {
			var ticks atomic.Int64
			s.out.mu.Lock()
			s.out.asleep = func() time.Duration { ticks.Add(1); return 0 }
			s.out.mu.Unlock()
			time.Sleep(time.Minute)
			if n := ticks.Load(); n > 200 {
				t.Errorf("%s: %d ticks in a minute of silence: %s, %s", s.name, n, s.says().State, s.says().Why)
			}
		}
	})
}

func TestANodeWhoseModuleMisreadsIsNotInSync(t *testing.T) {
	withNet(t, func(t *testing.T, e *ether) {
		pool := pool6("2001:db8:64::/64")
		j := e.startWith(t, nil, func(k *hookedKernel) { k.globals.Pool6 = pool })
		j.state("gave up")
		siteKernel{j.k}.keep(some(1, 1000))
		j.k.announced <- encode(session.Enc4113, pool, some(1, 30)...)
		time.Sleep(3 * time.Second)
		k := e.startWith(t, nil, func(k *hookedKernel) { k.globals.Pool6 = pool; k.module.Encoding = session.Enc4112 })
		time.Sleep(20 * time.Second)
		if s := k.says(); s.State == "synced" {
			t.Errorf("%s: %s; it has %d sessions, and its kernel was given %d; unfit %d; verified %v",
				s.State, s.Why, s.Sessions, len(k.k.taken()), k.status(time.Now()).Kernel.Unfit, s.Verified)
		}
	})
}

func TestWhatWasLeftOutForAConflictIsNotVerified(t *testing.T) {
	withNet(t, func(t *testing.T, e *ether) {
		j := e.start(t, nil)
		j.state("gave up")
		theirs := some(1, 30)
		j.announce(theirs)
		time.Sleep(3 * time.Second)
		k := e.startWith(t, nil, func(k *hookedKernel) {
			mine := some(1, 1)
			mine[0].Src6Port = 999 // another node behind the mask of the first
			mine[0].Expiration = 300_000
			siteKernel{k}.keep(mine)
			k.removeErr = context.DeadlineExceeded // as for a static entry
		})
		var least float64 = 1e9
		for range 240 {
			time.Sleep(time.Second)
			if s := k.says(); s.State == "synced" && s.Verified != nil {
				least = min(least, *s.Verified)
			}
		}
		if s := k.says(); k.lacks(theirs) > 0 && least < 30 {
			t.Errorf("it lacks %d sessions, and said %.1f s after it had been sure that it lacks none: %+v", k.lacks(theirs), least, s)
		}
	})
}
