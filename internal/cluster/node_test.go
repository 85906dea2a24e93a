package cluster

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"joold/internal/session"
	"joold/internal/wire"
)

// pair is two nodes that are synced, of which the first translates.
func pair(t testing.TB, seed uint64, keyed bool) (s *sim, a, b *simNode) {
	s = newSim(t, seed, 2, keyed)
	a, b = s.nodes[0], s.nodes[1]
	a.start(false)
	b.start(false)
	s.until(3*time.Second, "synced", s.synced)
	a.translate(1)
	return s, a, b
}

func TestNothingIsAllocatedForADatagram(t *testing.T) {
	s, a, b := pair(t, 1, false)
	s.run(time.Second)
	refs := make([]Ref, 35)
	number := a.node.ring.last
	if n := testing.AllocsPerRun(1000, func() {
		number++
		a.node.Numbered(number, refs, a.clock())
	}); n != 0 {
		t.Errorf("%v allocations for one that is sent", n)
	}
	dg := &wire.Datagram{Stamp: wire.Stamp{Epoch: a.node.cfg.Epoch, Number: b.node.peers[a.node.cfg.Epoch].window.Top()}}
	if n := testing.AllocsPerRun(1000, func() {
		dg.Number++
		if r := b.node.Receive(dg, a.addr, b.clock()); r.Verdict != Taken {
			t.Fatalf("it is %v", r.Verdict)
		}
	}); n != 0 {
		t.Errorf("%v allocations for one that comes", n)
	}
}

// record has every datagram that n sends kept.
func (n *simNode) record() *[][]byte {
	var kept [][]byte
	n.tap = func(b []byte) { kept = append(kept, slices.Clone(b)) }
	return &kept
}

// replay gives n a recording, and tells how many datagrams counted.
func (n *simNode) replay(recording [][]byte) (taken int) {
	for _, b := range recording {
		dg, _ := n.opener.Open(b, n.clock())
		if r := n.node.Receive(&dg, n.addr, n.clock()); r.Verdict == Taken {
			taken++
		}
	}
	return taken
}

func TestARecordingNeverCounts(t *testing.T) {
	s, a, b := pair(t, 2, true)
	recording := a.record()
	a.born(500)
	s.run(5 * time.Second)
	if n := b.replay(*recording); n != 0 || len(*recording) < 10 {
		t.Errorf("a running node takes %d of %d datagrams again", n, len(*recording))
	}
	b.stop(true)
	s.run(time.Second)
	b.start(true)
	if n := b.replay(*recording); n != 0 {
		t.Errorf("a node that has just started takes %d datagrams of a recording", n)
	}
	s.run(5 * time.Second)
	if n := b.replay(*recording); n != 0 {
		t.Errorf("a node that was restarted takes %d datagrams of a recording", n)
	}
	a.stop(false)
	s.run(2 * forgetAfter)
	if len(b.node.peers) != 0 {
		t.Fatalf("it remembers %d peers", len(b.node.peers))
	}
	if n := b.replay(*recording); n != 0 {
		t.Errorf("a node that has forgotten the sender takes %d datagrams of a recording", n)
	}
}

func TestWhatCameBeforeTheSenderHadProvenItselfIsMadeUpFor(t *testing.T) {
	s, a, b := pair(t, 3, true)
	s.run(time.Second)
	a.stop(true)
	s.run(time.Second)
	a.start(true)
	a.born(5000)
	s.run(3 * time.Second)
	if b.node.counts.Unfresh == 0 {
		t.Fatal("nothing came too early: this test tries nothing")
	}
	if n, r := a.lacks(b, 0); n > 0 {
		t.Errorf("%d sessions are missing, as %v", n, s.describe(r))
	}
}

func TestWhatWasSentBeforeItsSenderWasHeardIsNotTakenFromARecording(t *testing.T) {
	s, a, b := pair(t, 17, true)
	s.run(time.Second)
	a.stop(true)
	s.run(time.Second)
	s.cut[0][1], s.cut[1][0] = true, true
	recording := a.record()
	a.start(true)
	a.born(500)
	s.run(10 * time.Minute)
	s.cut[0][1], s.cut[1][0] = false, false
	until := s.now.Add(5 * time.Second)
	for p := (*peer)(nil); p == nil || !p.window.Begun(); p = b.node.peers[a.node.cfg.Epoch] {
		if s.run(time.Millisecond); s.now.After(until) {
			t.Fatal("it is not heard")
		}
	}
	if n := b.replay((*recording)[:len(*recording)-1]); n != 0 {
		t.Errorf("%d of %d datagrams count that are ten minutes old", n, len(*recording))
	}
}

func TestStrangersDoNotPushOutWhoIsKnown(t *testing.T) {
	s, a, b := pair(t, 4, false)
	s.run(time.Second)
	known := b.node.peers[a.node.cfg.Epoch]
	for i := range 10_000 {
		var e wire.Epoch
		s.random(e[:])
		dg := wire.Datagram{Stamp: wire.Stamp{Epoch: e, Number: uint64(i + 1)}}
		if i%2 == 0 {
			dg.Number, dg.Body = wire.Apart|1, someHello().append(nil)
		}
		b.node.Receive(&dg, a.addr, b.clock())
	}
	if len(b.node.peers) != maxPeers || b.node.peers[a.node.cfg.Epoch] != known {
		t.Errorf("of %d peers, the one that was known is %p, was %p", len(b.node.peers), b.node.peers[a.node.cfg.Epoch], known)
	}
	s.run(5 * time.Second)
	if n := b.control[1]; n > 64<<10 {
		t.Errorf("they had it say %d bytes in a second", n)
	}
	if a.born(100); s.until(2*time.Second, "heard", func() bool { n, _ := a.lacks(b, 0); return n == 0 }) > time.Second {
		t.Error("who is known is heard late")
	}
}

func TestAForgedNumberMutesNobody(t *testing.T) {
	s, a, b := pair(t, 5, false)
	s.run(time.Second)
	for _, number := range []uint64{1 << 20, 1 << 40, wire.Apart - 1, wire.Apart | 1<<40, ^uint64(0)} {
		dg := wire.Datagram{Stamp: wire.Stamp{Epoch: a.node.cfg.Epoch, Number: number}}
		b.node.Receive(&dg, a.addr, b.clock())
	}
	if b.node.state.is != Synced {
		t.Error("they brought the node out of sync")
	}
	lie := someHello()
	lie.Name, lie.Last = "node 0", 1<<40
	dg := wire.Datagram{Stamp: wire.Stamp{Epoch: a.node.cfg.Epoch, Number: wire.Apart | 1<<50}, Body: lie.append(nil)}
	b.node.Receive(&dg, a.addr, b.clock())
	s.run(2 * time.Second)
	a.born(100)
	s.until(time.Second, "heard", func() bool { n, _ := a.lacks(b, 0); return n == 0 })
	s.until(5*time.Second, "synced again", s.synced)
}

func TestWhatIsTooOldIsAnsweredByOneSweepForAll(t *testing.T) {
	s := newSim(t, 6, 8, false)
	for _, n := range s.nodes {
		n.start(false)
	}
	s.until(5*time.Second, "synced", s.synced)
	a := s.nodes[0]
	a.translate(1)
	a.node.ring.last += 10 * ringSpan // as if it had sent as much
	for range 45 {
		for _, n := range s.nodes[1:] {
			b := appendRequest(nil, a.node.cfg.Epoch, []wire.Range{{First: 1, Last: 60_000}})
			n.node.say(b)
		}
		s.run(time.Second)
	}
	if got := a.node.counts.Sweeps; got != 1 {
		t.Errorf("seven nodes that ask for 45 s have it sweep %d times, want once", got)
	}
	if len(a.node.ring.debts) > ringSpan {
		t.Errorf("it owes %d datagrams", len(a.node.ring.debts))
	}
}

func TestWhenAGiverDiesAnotherGoesOn(t *testing.T) {
	forBoth(t, func(t *testing.T, keyed bool) {
		s := newSim(t, 7, 4, keyed)
		for _, n := range s.nodes[:3] {
			n.start(false)
		}
		s.until(5*time.Second, "synced", s.synced)
		s.nodes[0].translate(1)
		s.nodes[0].born(50_000)
		s.run(10 * time.Second)
		d := s.nodes[3]
		d.start(false)
		s.until(5*time.Second, "half copied", func() bool { return len(d.byID) > 5000 })
		giver := s.nodes[slices.IndexFunc(s.nodes, func(n *simNode) bool { return n.up && len(n.node.gifts) > 0 })]
		giver.stop(false)
		took := s.until(15*time.Second, "synced", func() bool { return d.node.state.is == Synced })
		t.Logf("synced %v after the giver's death", took)
		if n, r := s.nodes[0].lacks(d, 5*time.Second); n > 0 {
			t.Errorf("%d sessions are missing, as %v", n, s.describe(r))
		}
	})
}

func TestANodeThatWasStoppedTakesNothingThatWaitedInItsSocket(t *testing.T) {
	forBoth(t, func(t *testing.T, keyed bool) {
		s, a, b := pair(t, 8, keyed)
		a.translate(3)
		s.run(10 * time.Second)
		b.freeze(time.Hour)
		s.run(time.Hour - time.Second)
		waiting := len(b.socket)
		s.run(time.Second + 30*time.Millisecond)
		if got := b.node.counts.Unfresh; waiting == 0 || got < uint64(waiting) {
			t.Errorf("of %d datagrams that waited for an hour, it refused %d", waiting, got)
		}
		s.until(10*time.Second, "synced again", s.synced)
		s.run(5 * time.Second)
		if n, r := a.lacks(b, 4*time.Second); n > 0 {
			t.Errorf("%d sessions are missing, as %v", n, s.describe(r))
		}
	})
}

func TestThirtyTwoNodesBehindASwitchThatReturnsMakeNoStorm(t *testing.T) {
	s := newSim(t, 9, 32, true)
	for _, n := range s.nodes {
		n.start(false)
	}
	s.until(10*time.Second, "synced", s.synced)
	s.nodes[5].translate(20)
	s.nodes[5].born(5000)
	s.run(5 * time.Second)
	off := func(is bool) {
		for i := range s.cut {
			for j := range s.cut[i] {
				s.cut[i][j] = is
			}
		}
	}
	off(true)
	s.run(30 * time.Second)
	off(false)
	for _, n := range s.nodes {
		n.bytes, n.control = [2]int{}, [2]int{}
	}
	s.run(time.Second)
	took := s.until(30*time.Second, "synced", s.synced)
	total, talk := 0, 0
	for _, n := range s.nodes {
		total, talk = total+n.bytes[1], talk+n.control[1]
	}
	t.Logf("all synced %v later; in its worst second a node sends %d bytes of talk on average, %d in all", took, talk/32, total/32)
	s.manners()
	if n, r := s.nodes[5].lacks(s.nodes[6], 4*time.Second); n > 0 {
		t.Errorf("%d sessions are missing, as %v", n, s.describe(r))
	}
}

func TestThirtyOneNodesThatJoinAtOnceMakeNoStorm(t *testing.T) {
	s := newSim(t, 15, 32, true)
	a := s.nodes[0]
	a.start(false)
	a.translate(20)
	s.until(10*time.Second, "given up", func() bool { return a.node.state.is == GaveUp })
	a.born(20_000)
	s.run(5 * time.Second)
	for _, n := range s.nodes[1:] {
		n.start(false)
	}
	took := s.until(time.Minute, "synced", s.synced)
	talk, most := 0, 0
	for _, n := range s.nodes {
		talk, most = talk+n.control[1], max(most, n.bytes[1])
	}
	t.Logf("all synced after %v; in its worst second a node sends %d bytes of talk on average, and none more than %d in all", took, talk/32, most)
	s.manners()
	for _, n := range s.nodes[1:] {
		if n, r := a.lacks(n, 4*time.Second); n > 0 {
			t.Fatalf("%d sessions are missing, as %v", n, s.describe(r))
		}
	}
}

func TestUnlikeConfigurationsAreNamedOnBothNodes(t *testing.T) {
	s, a, b := pair(t, 10, true)
	config := func(n *simNode, lines ...string) {
		c := n.node.cfg
		c.Parts = Configuration{Pool6: {"64:ff9b::/96"}, Timeouts: {"tcp-est 2:00:00"}}
		for i := range 300 { // more than one datagram has room for
			c.Parts[StaticBIB] = append(c.Parts[StaticBIB], strings.Repeat("x", i%40)+string(rune('0'+i%10)))
		}
		c.Parts[Pool4] = lines
		n.node.Configure(c)
	}
	config(a, "TCP 192.0.2.1/32 61001-65535", "UDP 192.0.2.1/32 61001-65535")
	config(b, "UDP 192.0.2.1/32 61001-65535", "TCP 192.0.2.2/32 61001-65535")
	s.run(5 * time.Second)
	for _, c := range []struct {
		n    *simNode
		want string
	}{
		{a, "pool4: only here: TCP 192.0.2.1/32 61001-65535; only there: TCP 192.0.2.2/32 61001-65535"},
		{b, "pool4: only here: TCP 192.0.2.2/32 61001-65535; only there: TCP 192.0.2.1/32 61001-65535"},
	} {
		if got := c.n.node.Status().Peers[0].Unlike; !slices.Equal(got, []string{c.want}) {
			t.Errorf("%v says %q, want %q", c.n, got, c.want)
		}
	}
	long := a.node.cfg
	long.Parts[StaticBIB] = slices.Clone(long.Parts[StaticBIB])[1:]
	a.node.Configure(long)
	s.run(30 * time.Second)
	if got := a.node.Status().Peers[0].Unlike; len(got) != 2 || !strings.HasPrefix(got[1], "static BIB: only here: nothing; only there: 0") {
		t.Errorf("it says %q", got)
	}
	config(a, b.node.cfg.Parts[Pool4]...)
	s.run(5 * time.Second)
	if got := b.node.Status().Peers[0].Unlike; len(got) != 0 {
		t.Errorf("what is alike is called %q", got)
	}
}

func TestWhatIsMissingWithoutAGapIsFoundByTheDigests(t *testing.T) {
	s, a, b := pair(t, 11, true)
	a.born(5000)
	s.run(10 * time.Second)
	missing := 0
	for _, r := range slices.Clone(b.slots) {
		if r != nil && r.ref%500 == 7 {
			b.forget(r)
			missing++
		}
	}
	if n, _ := a.lacks(b, 0); n != missing || n == 0 {
		t.Fatalf("%d sessions are missing, want %d", n, missing)
	}
	took := s.until(30*time.Second, "found", func() bool { n, _ := a.lacks(b, 5*time.Second); return n == 0 })
	s.run(2 * time.Second)
	p := b.node.Status().Peers[0]
	t.Logf("found after %v", took)
	if ago := b.clock().Sub(p.Equal); p.Differs != 0 || ago > 2*time.Second {
		t.Errorf("it says that %d buckets differ, and that it had all %v ago", p.Differs, ago)
	}
}

func TestABusyTableIsNotFetchedAllTheTime(t *testing.T) {
	s, a, b := pair(t, 12, false)
	s.expire()
	b.lazy = true // so that the tables are never quite the same
	a.translate(300)
	s.run(2 * time.Minute)
	given, bytes := a.node.counts.Given, 0
	meter := a.total
	s.run(5 * time.Minute)
	given, bytes = a.node.counts.Given-given, a.total-meter
	ago := b.clock().Sub(b.node.Status().Peers[0].Equal)
	t.Logf("%d sessions; %d looks in 5 minutes; %d bytes a second in all; had all %v ago", len(a.byID), given, bytes/300, ago)
	if given > 30 {
		t.Errorf("it was looked into %d times in 5 minutes", given)
	}
}

func TestAGoodbyeIsNotWaitedFor(t *testing.T) {
	s, a, b := pair(t, 13, true)
	s.run(time.Second)
	b.stop(true)
	s.run(100 * time.Millisecond)
	if p := a.node.Status().Peers[0]; !p.Left || p.Live {
		t.Errorf("who said goodbye is %+v", p)
	}
	b.start(false)
	s.run(3 * time.Second)
	if p := a.node.Status().Peers; len(p) != 1 || p[0].Left || !p[0].Live {
		t.Errorf("who came back is %+v", p)
	}
}

func TestWhatIsNotRememberedIsSweptAndNotAskedForForEver(t *testing.T) {
	s, a, b := pair(t, 16, true)
	s.run(time.Second)
	for range 5 {
		s.cut[0][1] = true
		number := a.send(Datagram{}, false)
		s.cut[0][1] = false
		a.node.Numbered(number, []Ref{0}, a.clock())
		a.schedule()
		s.run(2 * time.Second)
	}
	if got := a.node.counts.Sweeps; got != 1 {
		t.Errorf("it sweeps %d times in 10 s, want once", got)
	}
	p := b.node.peers[a.node.cfg.Epoch]
	if missing := p.window.Missing(); missing != 0 || b.node.chases(p) || p.counts.Requests > 10 {
		t.Errorf("%d datagrams are missing still, asked for %d times", missing, p.counts.Requests)
	}
	s.run(30 * time.Second)
	if got := a.node.counts.Sweeps; got != 2 {
		t.Errorf("it has swept %d times when the rest is due, want twice", got)
	}
}

// nobody is a Host without sessions.
type nobody struct {
	digest session.Digest
	sent   int
}

func (h *nobody) Send(d Datagram)         { h.sent += datagramSize(len(d.Body)) }
func (h *nobody) FirstHand(Ref) bool      { return false }
func (h *nobody) Digest() *session.Digest { return &h.digest }
func (h *nobody) Room() int               { return 0 }
func (h *nobody) Sweep()                  {}
func (h *nobody) Scan(found []session.Placed, _ Ref, _ *session.Buckets) ([]session.Placed, Ref) {
	return found, 0
}

func FuzzWhateverIsSaidIsBorne(f *testing.F) {
	for _, c := range bodies {
		f.Add(c.body, uint64(1), uint64(wire.Apart|3), true)
		f.Add(c.body, uint64(wire.Apart-1), ^uint64(0), false)
	}
	f.Fuzz(func(t *testing.T, body []byte, first, second uint64, keyed bool) {
		now := time.Unix(1_000_000, 0)
		h := &nobody{}
		n := New(Config{
			Epoch: someEpoch, Keyed: keyed, Payload: 1178, Entry: entrySize, Random: func(b []byte) { clear(b) },
		}, h, now)
		hi := &hello{State: Synced, Last: 5, Echoes: []challenge{n.challenge}, Name: "x"}
		n.Receive(&wire.Datagram{Stamp: wire.Stamp{Epoch: wire.Epoch{1}, Number: wire.Apart | 1}, Body: hi.append(nil)}, netip.AddrPort{}, now)
		for i := range 300 {
			now = now.Add(10 * time.Millisecond)
			if i%50 == 0 {
				number := first
				if i%100 == 0 {
					number = second
				}
				n.Receive(&wire.Datagram{Stamp: wire.Stamp{Epoch: wire.Epoch{1}, Number: number + uint64(i)}, Body: body}, netip.AddrPort{}, now)
			}
			if !n.Next().After(now) {
				n.Tick(now, i%2 == 0)
			}
		}
		n.Status()
		if h.sent > 3*int(controlRate.second)+2*int(controlRate.once) {
			t.Errorf("it made the node say %d bytes in 3 s", h.sent)
		}
	})
}

func TestACopyWaitsForATakerWhoseKernelHasMoreToTakeIn(t *testing.T) {
	s, a, b := pair(t, 21, false)
	a.born(20_000)
	b.stop(true)
	s.run(10 * time.Second)
	b.start(false)
	s.until(5*time.Second, "begun", func() bool { return b.node.quest != nil && b.node.quest.through > 3 })
	b.room = 0
	s.run(20 * time.Second)
	b.room = 1 << 17
	s.until(5*time.Second, "synced", s.synced)
	if c := b.node.counts; c.Broken > 0 || c.Taken != 1 {
		t.Errorf("%d copies were broken off, and %d taken", c.Broken, c.Taken)
	}
}

func TestTheLagIsThatOfTheOldestThatIsMissingStill(t *testing.T) {
	s, a, b := pair(t, 22, false)
	s.loss = 0.1
	for range 300 { // 30 s in which something is always missing
		a.born(400)
		s.run(100 * time.Millisecond)
		for _, p := range b.node.order {
			if p.holes && b.node.now.Sub(p.since) > 5*time.Second {
				t.Fatalf("after %v something is said to be missing for %v", s.elapsed(), b.node.now.Sub(p.since))
			}
		}
	}
}

func TestRecordingsOfForgottenRunsDoNotKeepANewNodeOut(t *testing.T) {
	s, a, b := pair(t, 23, true)
	b.stop(true)
	s.run(time.Second)
	b.start(true)
	known := func() bool {
		p := b.node.peers[a.node.cfg.Epoch]
		return p != nil && b.node.live(p)
	}
	for i := 0; !known(); i++ {
		if i > 500 {
			t.Fatal("it does not get to know the other node")
		}
		for range 2 * maxPeers / 10 {
			var e wire.Epoch
			s.random(e[:])
			b.node.Receive(&wire.Datagram{Stamp: wire.Stamp{Epoch: e, Number: 7}}, b.addr, b.clock())
		}
		s.run(10 * time.Millisecond)
	}
}

func TestWhoHasNotHeardThisNodeIsGivenNoCopy(t *testing.T) {
	s, a, _ := pair(t, 24, false)
	s.run(time.Second)
	var e wire.Epoch
	s.random(e[:])
	forged := func(number uint64, body []byte) {
		dg := wire.Datagram{Stamp: wire.Stamp{Epoch: e, Number: wire.Apart | number}}
		dg.Body = body
		a.node.Receive(&dg, a.addr, a.clock())
	}
	f := fetch{about{a.node.cfg.Epoch, 7}, session.AllBuckets}
	forged(1, someHello().append(nil))
	forged(2, f.append(nil))
	if n := len(a.node.gifts); n > 0 {
		t.Errorf("it is given %d", n)
	}
}

func TestTheSameLinesAreToldOnceToAll(t *testing.T) {
	s := newSim(t, 25, 12, false)
	for _, n := range s.nodes {
		n.start(false)
	}
	s.until(5*time.Second, "synced", s.synced)
	odd := s.nodes[0]
	c := odd.node.cfg
	c.Parts[Pool4] = []string{"another"}
	details := 0
	odd.tap = func(b []byte) {
		if dg, _ := wire.Parse(b); dg.Number >= wire.Apart && kindOf(dg.Body) == kindDetail {
			details++
		}
	}
	odd.node.Configure(c)
	s.run(10 * time.Second)
	for _, n := range s.nodes[1:] {
		said := n.node.unlikeness(n.node.peers[odd.node.cfg.Epoch])
		if len(said) != 1 || !strings.Contains(said[0], "only there: another") {
			t.Fatalf("%v says %q", n, said)
		}
	}
	if details > 3 {
		t.Errorf("the same was told %d times", details)
	}
}

func TestANumberWhoseReferencesAreOverwrittenIsAnsweredAgain(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	r := newRing()
	refs := make([]Ref, 35)
	for i := range refs {
		refs[i] = Ref(i + 1)
	}
	for n := uint64(1); n <= 7600; n++ {
		r.note(n, refs)
	}
	if r.oldest() != 1 {
		t.Fatal(r.oldest())
	}
	r.owe(1, now)
	if n, _, known := r.pay(nil, now); n != 1 || known {
		t.Fatal(n, known)
	}
	// the answer is lost, and a minute later it is asked again
	r.owe(1, now.Add(time.Minute))
	if !r.owed() {
		t.Error("whoever asks again is never answered")
	}
}

func TestAMachineThatSleptHasNotTranslated(t *testing.T) {
	s, a, _ := pair(t, 1, true)
	s.run(5 * time.Second)
	if !a.node.active || a.node.state.is != Synced {
		t.Fatal(a.node.active, a.node.state)
	}
	a.node.Slept(30*time.Second, a.clock())
	if a.node.state.is == Synced {
		t.Errorf("it is %v (%s) though others have had 30 s to take over", a.node.state.is, a.node.state.why)
	}
}

func TestWhatACopyMakesUpForIsNotMissingForEver(t *testing.T) {
	s, a, b := pair(t, 1, false)
	s.run(2 * time.Second)
	p := b.node.peers[a.node.cfg.Epoch]
	b.node.sent(p, p.window.Top()+20_000) // as a hello tells after a long cut
	if m := p.window.Missing(); m != 0 {
		t.Errorf("%d are missing for as long as that node runs", m)
	}
	if p.counts.Repaired != 0 {
		t.Errorf("%d were made up for, and nobody has sent anything", p.counts.Repaired)
	}
}

func TestAnEmptyNodeDoesNotSayThatItHasAllWhileAFullOneIsThere(t *testing.T) {
	for seed := uint64(1); seed < 9; seed++ {
		s, a, b := pair(t, seed, true)
		a.translate(100)
		s.run(20 * time.Second)
		a.translate(0)
		s.run(5 * time.Second)
		full := a.digest.Sessions
		b.stop(false)
		b.wipe()
		a.node.Slept(10*time.Second, a.clock()) // as when one host holds both: b's machine boots, a's was suspended
		b.start(false)
		var lied time.Duration
		for range 1000 {
			s.run(10 * time.Millisecond)
			if b.node.state.why == "no other node has more" && b.node.state.is == Synced && b.digest.Sessions < full*9/10 {
				lied += 10 * time.Millisecond
			}
		}
		if lied > 0 {
			t.Errorf("seed %d: it said for %v that it has all, with %d of %d sessions: %s", seed, lied, b.digest.Sessions, full, b.node.state.why)
		}
	}
}
