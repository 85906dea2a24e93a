//go:build lab

package guest

import (
	"testing"
	"time"
)

// What follows is measured by make bench-lab and left out of make test: nothing here fails for being slow. What is short is measured in several
// rounds on the newest Jool, the daemons in turn, and its median is told.

const (
	steadyFlows = 1000
	perSecond   = 8000 // as much of it as the guest can do
	oneAge      = tcpEstablished / 10
)

var (
	oursOften = named("ours, C nodes listen", Ours.With("--net.c-peers"))
	oursKeep  = named("ours, ss-capacity kept", Ours.With("--mod.capacity", "keep"))
)

// oursKeyed gets a key before each round, and encrypts with it.
var oursKeyed = named("ours, encrypted", Ours)

func named(name string, d Daemon) Daemon {
	d.Name = name
	return d
}

// rounds runs f with each daemon in turn, round after round, each time with empty tables.
func rounds(t *testing.T, n int, workload string, daemons []Daemon, f func(*Bench, Daemon)) {
	l := New(t, Config{NoInstance: true})
	if l.J.Jool() != "4.1.15" {
		n = 1
	}
	for range n {
		for _, d := range daemons {
			t.Run(d.Name, func(t *testing.T) {
				l.Part(t, Config{})
				if d.Name == oursKeyed.Name {
					d = named(d.Name, d.With(l.Key()...))
				}
				f(l.Bench(workload, d.Name, d, d), d)
			})
		}
	}
}

func TestBenchSteadyTraffic(t *testing.T) {
	rounds(t, 2, "steady", []Daemon{C, Ours, oursOften}, func(b *Bench, _ Daemon) {
		b.Measure(func() (int, time.Duration) {
			return 80 * steadyFlows, b.Packets(80*steadyFlows, steadyFlows, perSecond)
		})
	})
}

// Refreshes become rarer as a session grows old, so the first minute is not measured. The C daemon does the same in any minute.
func TestBenchSteadyTrafficLater(t *testing.T) {
	rounds(t, 1, "later", []Daemon{C, Ours}, func(b *Bench, d Daemon) {
		if d.ours {
			b.Minute(steadyFlows, perSecond)
		}
		b.Measure(func() (int, time.Duration) { return b.Minute(steadyFlows, perSecond) })
	})
}

func TestBenchNewFlows(t *testing.T) {
	rounds(t, 3, "new", []Daemon{C, Ours, oursKeyed}, func(b *Bench, _ Daemon) {
		b.Measure(func() (int, time.Duration) { return 40_000, b.Packets(40_000, 40_000, perSecond) })
	})
}

func TestBenchAnAdvertisement(t *testing.T) {
	advertise(t, 1, "advertise", 40_000)
}

func TestBenchABigAdvertisement(t *testing.T) {
	advertise(t, 1, "advertise-big", 500_000)
}

// advertise measures an advertisement of sessions of mixed ages.
func advertise(t *testing.T, n int, workload string, sessions int) {
	rounds(t, n, workload, []Daemon{C, Ours}, func(b *Bench, d Daemon) {
		if !d.ours && b.J.Jool() == "4.1.9" {
			return // its module sends nothing
		}
		b.J.Load(b.IdleTable(sessions, oneAge))
		b.Measure(func() (int, time.Duration) { return 0, b.Advertise(d, sessions) })
	})
}

// TestBenchABigJoin starts a daemon on K, whose table is empty, while J has many sessions and makes new ones. Then it looks at new ones without that.
func TestBenchABigJoin(t *testing.T) {
	const sessions = 500_000
	l := New(t, Config{})
	l.J.Load(l.IdleTable(sessions, oneAge))
	b := &Bench{Lab: l, Workload: "join-big", Daemon: Ours.Name, ours: true}
	b.j = l.J.StartDaemon(Ours, SyncGroup6)
	l.J.WaitReady(sessions)
	ids := uint16(0)
	b.Measure(func() (int, time.Duration) {
		start := time.Now()
		b.k = l.K.StartDaemon(Ours, SyncGroup6)
		for l.K.Count() < sessions && time.Since(start) < limit {
			ids++
			b.lag(ids)
		}
		return int(ids), time.Since(start)
	})
	l.K.WaitVerified(l.J)

	b.Daemon = "ours, nothing to copy"
	b.Measure(func() (int, time.Duration) {
		start := time.Now()
		for range 100 {
			ids++
			b.lag(ids)
		}
		return 100, time.Since(start)
	})
}

// TestBenchTheOrderOfSessions sends a table to either daemon in the order that the C daemon sends it in, the table's own, and oldest first, as
// joold does. What the order costs is the system time of K's daemon.
func TestBenchTheOrderOfSessions(t *testing.T) {
	l := New(t, Config{NoInstance: true})
	table := l.IdleTable(100_000, oneAge)
	for _, p := range []struct {
		name string
		j, k Daemon
	}{
		{"C, sorted", Ours, C}, {"C, in the table's order", C, C},
		{"ours, sorted", Ours, Ours}, {"ours, in the table's order", C, Ours},
	} {
		t.Run(p.name, func(t *testing.T) {
			l.Part(t, Config{})
			b := l.Bench("order", p.name, p.j, p.k)
			l.J.Load(table)
			b.Measure(func() (int, time.Duration) { return 0, b.Advertise(p.j, len(table)) })
		})
	}
}

func TestBenchAsManyPacketsAsTheGuestMakes(t *testing.T) {
	const packets = 60_000
	rounds(t, 3, "flood", []Daemon{C, oursKeep, Ours}, func(b *Bench, _ Daemon) {
		b.Measure(func() (int, time.Duration) { return packets, b.Packets(packets, steadyFlows, 0) })
	})
}
