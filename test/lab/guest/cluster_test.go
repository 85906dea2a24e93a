//go:build lab

package guest

import (
	"fmt"
	"net/netip"
	"testing"
	"time"
)

func TestClusterLossesAreMadeUpFor(t *testing.T) {
	l := New(t, Config{NoInstance: true})
	for _, c := range []struct {
		name  string
		netem string
		flows int
		keyed bool
	}{
		{"one datagram in ten", "loss 10% duplicate 1% delay 10ms reorder 99%", 20_000, false},
		{"three datagrams in ten, which are encrypted", "loss 30% duplicate 1% delay 10ms reorder 99%", 20_000, true},
		{"one in ten, where each takes 50 ms, give or take 20", "loss 10% delay 50ms 20ms", 5000, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			l.Part(t, Config{})
			daemon := Ours
			if c.keyed {
				daemon = daemon.With(l.Key()...)
			}
			j, k := l.StartCluster(daemon)
			mendJ, mendK := l.J.Impair(c.netem), l.K.Impair(c.netem)

			l.Flows(c.flows, 8000)
			made := l.J.Count() // J's interface may drop what comes too fast
			if made < c.flows*9/10 {
				t.Fatalf("J has %d sessions of %d flows", made, c.flows)
			}
			took := l.K.WaitCount(made)
			toJ, toK := mendJ(), mendK()
			l.WaitCopied(l.J, l.K, made)
			l.K.WaitVerified(l.J)

			status := l.K.Status(l.Instance)
			_, of, _ := l.K.knows(l.J)
			t.Logf("of what J sent %d packets were lost, of what K sent %d; all %d sessions are in K %v after the last packet", toK, toJ, made, took)
			t.Logf("K says of J: repaired %d, duplicate %d, late %d, requests %d", of.Repaired, of.Duplicate, of.Late, of.Requests)
			if toK == 0 || of.Repaired == 0 {
				t.Error("nothing was lost, or K does not count it")
			}
			if encrypts := status.Network.Encrypts; encrypts != c.keyed {
				t.Errorf("K encrypts: %v", encrypts)
			}
			l.Lives(j, k)
		})
	}
}

func TestClusterANodeJoinsByItself(t *testing.T) {
	l := New(t, Config{NoInstance: true})
	table := l.IdleTable(20_000, tcpEstablished/10)
	for _, c := range []struct {
		name string
		anew bool // it is not K's daemon that starts, but its instance that is made anew
	}{
		{"its daemon starts while there is traffic", false},
		{"its instance is made anew", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			l.Part(t, Config{})
			l.J.Load(table)
			j := l.J.StartDaemon(Ours, SyncGroup6)
			l.J.WaitReady(len(table))
			var k *Process
			if c.anew {
				k = l.K.StartDaemon(Ours, SyncGroup6)
				l.K.WaitVerified(l.J)
				l.K.RemoveInstance()
				l.Wait("K's daemon waits for its instance", func() (string, bool) {
					s := l.K.Status(l.Instance)
					return s.Instance.WaitingFor, !s.Instance.InService
				})
			}
			want, stop := len(table), func() {}
			if !c.anew {
				const flows = 1000
				stop = l.Stream(flows, 2000)
				want += flows
			}
			before := l.J.Status(l.Instance)

			start := time.Now()
			if c.anew {
				l.K.AddInstance()
			} else {
				k = l.K.Start(Ours.command(l.K, netip.MustParseAddr(SyncGroup6))...)
			}
			l.K.WaitCount(want)
			took := time.Since(start).Round(time.Millisecond)
			stop()
			if n := Missing(table, l.K.Sessions()); n > 0 {
				t.Errorf("K lacks %d sessions", n)
			}
			l.K.WaitVerified(l.J)

			after := l.J.Status(l.Instance)
			t.Logf("K has %d sessions %v after its start; J gave %d copies, and swept its table %d times",
				want, took, after.Cluster.CopiesGiven-before.Cluster.CopiesGiven, after.Table.Sweeps-before.Table.Sweeps)
			if after.Cluster.CopiesGiven == before.Cluster.CopiesGiven {
				t.Error("J has given K no copy")
			}
			l.Lives(j, k)
		})
	}
}

func TestClusterAnotherGoesOnWhereAGiverDied(t *testing.T) {
	l := New(t, Config{})
	table := l.IdleTable(20_000, tcpEstablished/10)
	l.J.Load(table)
	daemons := map[*Node]*Process{l.J: l.J.StartDaemon(Ours, SyncGroup6)}
	l.J.WaitReady(len(table))
	m := l.Third()
	daemons[m] = m.StartDaemon(Ours, SyncGroup6)
	m.WaitVerified(l.J)

	l.K.Impair("rate 1mbit") // so that a copy takes several seconds
	given := map[*Node]uint64{}
	for n := range daemons {
		given[n] = n.Status(l.Instance).Cluster.CopiesGiven
	}
	k := l.K.StartDaemon(Ours, SyncGroup6)
	l.K.WaitCount(2000)
	giver, other := l.J, m
	if l.J.Status(l.Instance).Cluster.CopiesGiven == given[l.J] {
		giver, other = m, l.J
	}
	daemons[giver].Kill()
	have := l.K.Count()

	l.K.WaitCount(len(table))
	if n := Missing(table, l.K.Sessions()); n > 0 {
		t.Errorf("K lacks %d sessions", n)
	}
	l.K.WaitVerified(other)
	of := l.K.Status(l.Instance).Cluster
	t.Logf("K had %d sessions when %s died; of its copies %d were broken off, %d became whole", have, giver.Name, of.CopiesBroken, of.CopiesTaken)
	if of.CopiesBroken == 0 || of.CopiesTaken == 0 {
		t.Error("no copy was broken off, or none became whole")
	}
	l.Lives(daemons[other], k)
}

func TestClusterANodeThatWasCutOffCatchesUp(t *testing.T) {
	l := New(t, Config{NoInstance: true})
	const flows, away = 2000, 7 * time.Second // longer than nodes are waited for
	for _, c := range []struct {
		name     string
		from, to *Node
		cut      func() (mend func())
	}{
		{"its interface is down", l.J, l.K, func() func() {
			l.K.Run("ip", "link", "set", "eth2", "down")
			return func() { l.K.Run("ip", "link", "set", "eth2", "up") }
		}},
		{"it hears nothing", l.J, l.K, func() func() {
			mend := l.K.Impair("loss 100%")
			return func() { mend() }
		}},
		{"it is not heard", l.K, l.J, func() func() {
			mend := l.J.Impair("loss 100%")
			return func() { mend() }
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			l.Part(t, Config{})
			j, k := l.StartCluster(Ours)
			if !c.from.Owns() {
				c.to.GiveAddressesTo(c.from)
			}
			f := &Fresh{lab: l}
			f.Make(100, 500)
			l.WaitCopied(c.from, c.to, 100)

			began := time.Now()
			mend := c.cut()
			f.Make(flows, 1000)
			if have := c.to.Count(); have > 200 {
				t.Fatalf("%s is not cut off: it has %d sessions", c.to.Name, have)
			}
			time.Sleep(time.Until(began.Add(away)))
			mend()
			took := c.to.WaitCount(100 + flows)
			l.WaitCopied(c.from, c.to, 100+flows)
			c.to.WaitVerified(c.from)
			_, of, _ := c.to.knows(c.from)
			t.Logf("%s has the %d sessions that it missed %v after; repaired %d", c.to.Name, flows, took, of.Repaired)
			l.Lives(j, k)
		})
	}
}

func TestClusterACNodeAmongThemIsNotDisturbed(t *testing.T) {
	l := New(t, Config{})
	m := l.Third()
	c := m.StartDaemon(C, SyncGroup6)
	j, k := l.StartCluster(Ours)
	l.K.Impair("loss 20%") // so that J and K have something to say to each other
	l.script(local{}, "dmesg -c")
	before := c.said()

	const flows = 3000
	l.Flows(flows, 1000)
	l.WaitCopied(l.J, l.K, flows)
	l.WaitCopied(l.J, m, flows)
	_, of, _ := l.K.knows(l.J)
	if err := k.Stop(); err != nil {
		t.Errorf("K's daemon ended with %v", err)
	}
	k = l.K.StartDaemon(Ours, SyncGroup6)
	l.K.WaitVerified(l.J)
	here, _, _ := l.K.knows(l.J)
	t.Logf("K had %d datagrams of J's made up for, and took %d copies when it was started anew", of.Repaired, here.CopiesTaken)
	if of.Repaired == 0 || here.CopiesTaken == 0 {
		t.Error("J and K did not say to each other what the C node should not mind")
	}
	if have := m.Count(); have != flows {
		t.Errorf("the C node has %d sessions of %d", have, flows)
	}
	if text := c.complaints(before); text != "" {
		t.Errorf("the C daemon has written:\n%s", text)
	}
	if log := ofJool(l.script(local{}, "dmesg -c")); log != "" {
		t.Errorf("in the kernel's log:\n%s", log)
	}
	l.Lives(j, k, c)
}

func TestClusterEitherOfTwoLinksIsEnough(t *testing.T) {
	l := New(t, Config{})
	l.SecondLink()
	j, k := l.StartCluster(Ours.With("--net.dev.in", "eth2,eth3", "--net.dev.out", "eth2,eth3"))
	f, made := &Fresh{lab: l}, 0
	const flows = 1500
	for _, dev := range []string{"eth2", "eth3"} {
		for _, n := range []*Node{l.J, l.K} {
			wait := f.Begin(flows, 1000)
			made += flows
			time.Sleep(500 * time.Millisecond)
			n.Carrier(dev, "down")
			wait()
			l.WaitCopied(l.J, l.K, made) // over the other
			_, of, _ := l.K.knows(l.J)
			t.Logf("without %s of %s: K says of J: repaired %d, duplicate %d, late %d", dev, n.Name, of.Repaired, of.Duplicate, of.Late)
			n.Carrier(dev, "up")
			l.Wait(n.Name+" uses both links again", func() (string, bool) {
				links := n.Status(l.Instance).Network.Links
				usable := 0
				for _, link := range links {
					if link.Carrier && link.WaitingFor == "" {
						usable++
					}
				}
				return fmt.Sprintf("%+v", links), usable == 2
			})
		}
	}
	l.K.WaitVerified(l.J)
	l.Lives(j, k)
}

func TestClusterAReturningMasterTakesTheAddressesOnlyWhenItIsFull(t *testing.T) {
	const idle, busy = 5000, 10
	l := New(t, Config{NoInstance: true})
	table := l.IdleTable(idle, tcpEstablished/4)
	for _, checked := range []bool{false, true} {
		name := map[bool]string{false: "unchecked, it lacks sessions", true: "checked, it lacks none"}[checked]
		t.Run(name, func(t *testing.T) {
			l.Part(t, Config{})
			l.J.Load(table)
			j, k := l.StartCluster(Ours)
			for _, n := range []*Node{l.J, l.K} {
				l.guard(n, l.noting(n, checked))
			}
			l.J.WaitOwner()
			var conns []*Conn
			for range busy {
				conns = append(conns, l.Connect())
			}
			conn := conns[0]
			l.WaitLines(conn, 20)
			all := append([]Session{}, table...)
			for id, s := range l.J.Sessions() {
				if id.Dst4.Addr() == server4 {
					all = append(all, s)
				}
			}
			if len(all) != idle+busy {
				t.Fatalf("J has %d sessions", len(all))
			}
			l.K.WaitSessions(all)

			j.Kill()
			l.J.RemoveInstance()
			l.K.WaitOwner()
			l.WaitLines(conn, 20)
			l.J.Run("rm", takeover)
			l.J.AddInstance()
			if !checked {
				missing := Missing(all, l.J.AtTakeover())
				t.Logf("J lacks %d sessions of %d at its takeover", missing, len(all))
				if missing == 0 {
					t.Error("nothing to check for")
				}
				return
			}
			l.stays(l.K, "J has no daemon")
			k.Kill()
			l.stays(l.K, "neither node has a daemon")
			k = l.K.StartDaemon(Ours, SyncGroup6)
			j = l.J.StartDaemon(Ours, SyncGroup6)
			if missing := Missing(all, l.J.AtTakeover()); missing > 0 {
				t.Errorf("J lacks %d sessions of %d at its takeover", missing, len(all))
			}
			l.J.WaitOwner()
			for _, c := range conns {
				l.WaitLines(c, 20)
			}

			if err := j.Stop(); err != nil {
				t.Errorf("J's daemon ended with %v", err)
			}
			j = l.J.StartDaemon(Ours, SyncGroup6)
			l.stays(l.J, "its daemon was started anew")
			j.Kill()
			k.Kill()
			l.stays(l.J, "neither node has a daemon")
			for i, c := range conns {
				if _, err := c.Close(); err != nil {
					t.Errorf("connection %d was harmed: %v", i, err)
				}
			}
		})
	}
}
