package cluster

import (
	"testing"
	"time"
)

// born makes n's kernel have so many sessions at once.
func (n *simNode) born(sessions int) {
	for range sessions {
		n.ids++
		id := n.ids<<maskBits | 1<<20 + n.ids // no mask that packet would take
		r := &record{id: id, dies: n.now.Add(n.timeouts[0]), updated: n.now, changed: n.now, own: true}
		n.truth[id] = &truth{deaths: []time.Time{r.dies}}
		n.insert(r)
		if n.works() {
			n.enqueue(r)
		}
	}
}

// until lets time pass until something is so, and tells how long that took.
func (s *sim) until(most time.Duration, what string, is func() bool) time.Duration {
	s.t.Helper()
	step := max(10*time.Millisecond, most/500)
	for took := time.Duration(0); took <= most; took += step {
		if is() {
			return took
		}
		s.run(step)
	}
	for _, n := range s.nodes {
		if n.up {
			s.t.Logf("%v: %d sessions, %+v", n, len(n.byID), n.node.Status())
		}
	}
	s.t.Fatalf("not %s within %v", what, most)
	return 0
}

func (s *sim) synced() bool {
	for _, n := range s.nodes {
		if n.up && n.node.state.is != Synced {
			return false
		}
	}
	return true
}

func forBoth(t *testing.T, f func(t *testing.T, keyed bool)) {
	t.Run("without a key", func(t *testing.T) { f(t, false) })
	t.Run("with a key", func(t *testing.T) { f(t, true) })
}

func TestTwoNodesThatStartColdDoNotWaitForEachOther(t *testing.T) {
	forBoth(t, func(t *testing.T, keyed bool) {
		s := newSim(t, 1, 2, keyed)
		for _, n := range s.nodes {
			n.start(false)
		}
		t.Log(s.until(3*time.Second, "synced", s.synced))
	})
}

func TestALoneNodeServesAndALaterOneGetsItsTable(t *testing.T) {
	forBoth(t, func(t *testing.T, keyed bool) {
		s := newSim(t, 2, 2, keyed)
		a, b := s.nodes[0], s.nodes[1]
		a.start(false)
		a.translate(1)
		s.until(6*time.Second, "given up", func() bool { return a.node.state.is == GaveUp })
		a.born(20_000)
		s.run(30 * time.Second)
		b.start(false)
		t.Log(s.until(4*time.Second, "synced", s.synced))
		if n, r := a.lacks(b, 3*time.Second); n > 0 {
			t.Errorf("%d sessions are missing, as %+v", n, r)
		}
	})
}

func TestACopyOverASlowLinkIsNotSentAgainAndAgain(t *testing.T) {
	for _, c := range []struct {
		what  string
		loss  float64
		times float64 // as many bytes as the sessions have, at most
	}{{"nothing lost", 0, 1.3}, {"a tenth lost", 0.1, 1.6}} {
		s, a, b := pair(t, 20, false)
		const sessions, second = 20_000, 125_000
		b.stop(true)
		a.born(sessions)
		s.run(10 * time.Second)
		s.narrow, s.loss = second, c.loss
		before := a.total
		b.start(false)
		took := s.until(time.Minute, "synced", s.synced)
		if n, _ := a.lacks(b, 0); n > 0 {
			t.Errorf("%s: %d sessions are missing", c.what, n)
		}
		sent := float64(a.total-before) / (sessions * entrySize)
		t.Logf("%s: %.2f times what the sessions take, in %v", c.what, sent, took)
		if sent > c.times {
			t.Errorf("%s: %.2f times as many bytes were sent as the sessions take", c.what, sent)
		}
	}
}

func TestWhatIsLostIsMadeUpFor(t *testing.T) {
	forBoth(t, func(t *testing.T, keyed bool) {
		for _, c := range []struct {
			loss   float64
			within time.Duration
		}{{0.1, 2 * time.Second}, {0.3, 5 * time.Second}} {
			s := newSim(t, 3, 2, keyed)
			a, b := s.nodes[0], s.nodes[1]
			for _, n := range s.nodes {
				n.start(false)
			}
			s.until(3*time.Second, "synced", s.synced)
			s.loss, s.twice, s.vary = c.loss, 0.01, 30*time.Millisecond
			for range 50 {
				a.born(400)
				s.run(50 * time.Millisecond)
			}
			took := s.until(c.within, "all known", func() bool { n, _ := a.lacks(b, 0); return n == 0 })
			t.Logf("%v of the datagrams lost: all there after %v", c.loss, took)
		}
	})
}
