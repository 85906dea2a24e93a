package cluster

import (
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

var (
	simSeeds = flag.Int("sim.seeds", 16, "how many seeds the simulation is run with")
	simFirst = flag.Uint64("sim.first", 1, "the first of them")
	simTrace = flag.Bool("sim.trace", false, "tell what happens in the simulation")
)

// TestWhateverHappensNodesAgreeWhenItIsOver is a random story for each seed, and for
// those in testdata/seeds, which failed once. To replay one:
//
//	go test ./internal/cluster -run WhateverHappens -sim.first SEED -sim.seeds 1 -sim.trace -v
func TestWhateverHappensNodesAgreeWhenItIsOver(t *testing.T) {
	kept, err := os.ReadFile("testdata/seeds")
	if err != nil {
		t.Fatal(err)
	}
	var seeds []uint64
	if *simSeeds > 1 {
		for _, f := range strings.Fields(string(kept)) {
			seed, err := strconv.ParseUint(f, 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			seeds = append(seeds, seed)
		}
	}
	for i := range *simSeeds {
		seeds = append(seeds, *simFirst+uint64(i))
	}
	for _, seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { story(t, seed) })
	}
}

// story is what befalls some nodes.
func story(t *testing.T, seed uint64) {
	nodes := []int{2, 2, 3, 3, 3, 8, 8, 32}[seed%8]
	s := newSim(t, seed, nodes, seed/8%2 == 0)
	if *simTrace {
		s.trace = t.Logf
	}
	s.after(time.Second, s.expire)
	s.after(time.Second, s.know)
	s.loss = []float64{0, 0.01, 0.1, 0.3}[s.r.IntN(4)]
	s.twice = []float64{0, 0.01, 0.1}[s.r.IntN(3)]
	s.delay = time.Duration(s.r.IntN(50)) * time.Millisecond
	s.vary = time.Duration(1+s.r.IntN(40)) * time.Millisecond
	if s.r.IntN(3) == 0 { // unlike timeouts
		s.nodes[0].timeouts[0] *= 2
	}
	s.trace("%d nodes, key %v, loss %v, duplicates %v, delay %v to %v", nodes, s.keys.Signing(), s.loss, s.twice, s.delay, s.delay+s.vary)
	for _, n := range s.nodes {
		s.after(time.Duration(s.r.Int64N(int64(4*time.Second))), func() { n.start(false) })
	}
	s.run(5 * time.Second)
	rate := []float64{20, 200, 1000}[s.r.IntN(3)]
	if nodes > 8 {
		rate = min(rate, 50)
	}
	active := s.nodes[s.r.IntN(nodes)]
	active.translate(rate)
	s.run(time.Duration(s.r.IntN(20)) * time.Second)

	for range 1 + s.r.IntN(4) {
		n := s.nodes[s.r.IntN(nodes)]
		long := time.Duration(1+s.r.IntN(20)) * time.Second
		switch s.r.IntN(6) {
		case 0: // a restart
			if n.works() {
				n.stop(s.r.IntN(2) == 0)
			}
			s.run(time.Duration(s.r.IntN(3000)) * time.Millisecond)
			n.start(s.r.IntN(2) == 0)
		case 1: // a reboot, with a failover if it translated
			if n.works() {
				n.stop(false)
			}
			if n == active {
				active.translate(0)
				s.run(3 * time.Second)
				active = s.nodes[(n.index+1)%nodes]
				active.translate(rate)
			}
			s.run(long)
			n.wipe()
			n.start(false)
		case 2: // a stop
			if n == active {
				active.translate(0)
				s.run(3 * time.Second)
				active = s.nodes[(n.index+1)%nodes]
				active.translate(rate)
			}
			if nodes <= 3 && s.r.IntN(4) == 0 {
				long = time.Hour
				active.translate(min(rate, 2))
			}
			if n.works() {
				n.freeze(long)
			}
			s.run(long + time.Second)
		case 3: // a partition, of one direction or both
			both := s.r.IntN(2) == 0
			s.trace("%v %v is cut off, both ways %v", s.elapsed(), n, both)
			n.calm = s.now.Add(time.Hour)
			for _, o := range s.nodes {
				s.cut[n.index][o.index] = true
				s.cut[o.index][n.index] = both
			}
			s.run(long)
			s.trace("%v %v is back", s.elapsed(), n)
			for _, o := range s.nodes {
				s.cut[n.index][o.index], s.cut[o.index][n.index] = false, false
			}
			n.calm = s.now
		case 4: // a failover
			active.translate(0)
			s.run(3 * time.Second)
			active = n
			if active.works() {
				active.translate(rate)
			}
		case 5: // a burst
			if active.works() {
				active.born(2000)
			}
		}
		s.run(long)
	}
	for _, n := range s.nodes {
		if n.stopped {
			s.run(time.Hour)
		}
		if !n.up {
			n.start(false)
		}
	}
	if active.rate == 0 {
		active.translate(rate)
	}
	s.trace("%v all is well again", s.elapsed())
	s.until(time.Minute, "synced", s.synced)
	took := s.until(time.Minute, "all known everywhere", func() bool {
		for _, o := range s.nodes {
			if lacking, _ := active.lacks(o, s.bound()); o != active && lacking > 0 {
				return false
			}
		}
		return true
	})
	s.trace("all is known everywhere after %v; %d sessions", took, len(active.byID))
	s.run(30 * time.Second)
	s.manners()
}

// manners looks at what each node sent in its worst second.
func (s *sim) manners() {
	for _, n := range s.nodes {
		if most := int(controlRate.second + 2*controlRate.once); n.control[1] > most {
			s.t.Errorf("%v sent %d bytes of talk in a second, want at most %d", n, n.control[1], most)
		}
		s.trace("%v sent at most %d bytes a second, %d of talk; %+v", n, n.bytes[1], n.control[1], n.node.counts)
	}
}
