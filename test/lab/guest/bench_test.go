//go:build lab

package guest

import (
	"testing"
	"time"
)

// What follows is measured by make bench-lab, and no part of make test: nothing here fails for being slow.

const (
	steadyFlows   = 1000
	steadyPackets = 80 * steadyFlows
	perSecond     = 8000 // as much of it as the guest can do
)

var oursRare = named("ours, refresh 60s", Ours.With("--batch.refresh", "60s"))

func named(name string, d Daemon) Daemon {
	d.Name = name
	return d
}

func TestBenchSteadyTraffic(t *testing.T) {
	l := New(t, Config{NoInstance: true})
	for _, d := range []Daemon{C, Ours, oursRare} {
		t.Run(d.Name, func(t *testing.T) {
			l.Part(t, Config{})
			j, k := l.Pair(d)
			start := time.Now()
			l.Measure("1,000 flows, 80 packets each", d.Name, j, k, func() (int, time.Duration) {
				return steadyPackets, l.Packets(steadyPackets, steadyFlows, perSecond)
			})
			if l.J.Jool() != "4.1.15" || d.Name == Ours.Name { // it takes minutes
				return
			}
			const rate = 1000
			if left := time.Minute - time.Since(start); d.ours && left > 0 { // refreshes become rarer
				l.Packets(int(left.Seconds()*rate), steadyFlows, rate)
			}
			l.Measure("1,000 flows, 60 packets each in a later minute", d.Name, j, k, func() (int, time.Duration) {
				return 60 * rate, l.Packets(60*rate, steadyFlows, rate)
			})
		})
	}
}

func TestBenchNewFlows(t *testing.T) {
	l := New(t, Config{NoInstance: true})
	for _, d := range []Daemon{C, Ours} {
		t.Run(d.Name, func(t *testing.T) {
			l.Part(t, Config{})
			j, k := l.Pair(d)
			l.Measure("40,000 new flows", d.Name, j, k, func() (int, time.Duration) {
				return 40_000, l.Packets(40_000, 40_000, perSecond)
			})
		})
	}
}

func TestBenchAdvertisement(t *testing.T) {
	l := New(t, Config{NoInstance: true})
	table := l.IdleTable(40_000, tcpEstablished/10)
	for _, d := range []Daemon{C, Ours} {
		t.Run(d.Name, func(t *testing.T) {
			l.Part(t, Config{})
			if !d.ours && !l.countsSync() {
				return // the module of 4.1.9 sends nothing
			}
			j, k := l.Pair(d)
			l.J.Load(table)
			l.Measure("40,000 sessions of mixed ages advertised", d.Name, j, k, func() (int, time.Duration) {
				l.J.Advertise(d)
				return 0, l.K.Growth(len(table), 15*time.Second)
			})
		})
	}
}

func TestBenchABigAdvertisement(t *testing.T) {
	l := New(t, Config{NoInstance: true})
	if l.J.Jool() != "4.1.15" {
		return
	}
	table := l.IdleTable(500_000, tcpEstablished/10)
	for _, d := range []Daemon{C, Ours} {
		t.Run(d.Name, func(t *testing.T) {
			l.Part(t, Config{})
			j, k := l.Pair(d)
			l.J.Load(table)
			l.Measure("500,000 sessions of mixed ages advertised", d.Name, j, k, func() (int, time.Duration) {
				start := time.Now()
				l.J.Advertise(d)
				l.K.Growth(len(table), 15*time.Second)
				return 0, time.Since(start)
			})
		})
	}
}

func TestBenchAsManyPacketsAsTheGuestMakes(t *testing.T) {
	l := New(t, Config{NoInstance: true})
	if !l.countsSync() {
		return
	}
	const packets = 60_000
	small := named("ours, capacity 512", Ours.With("--mod.capacity", "keep"))
	for _, d := range []Daemon{C, small, Ours} {
		t.Run(d.Name, func(t *testing.T) {
			l.Part(t, Config{})
			j, k := l.Pair(d)
			l.Measure("60,000 packets of 1,000 flows as fast as they go", d.Name, j, k, func() (int, time.Duration) {
				return packets, l.Packets(packets, steadyFlows, 0)
			})
		})
	}
}

// What K's kernel has to do for a table depends on the order: the C daemon sends it in the table's own, joold oldest first.
func TestBenchTheOrderOfAdvertisedSessions(t *testing.T) {
	l := New(t, Config{NoInstance: true})
	if l.J.Jool() != "4.1.15" {
		return
	}
	table := l.IdleTable(100_000, tcpEstablished/10)
	for _, p := range []struct {
		name string
		j, k Daemon
	}{{"C to C", C, C}, {"C to ours: in the table's order", C, Ours}, {"ours to ours: sorted", Ours, Ours}} {
		t.Run(p.name, func(t *testing.T) {
			l.Part(t, Config{})
			j := l.J.StartDaemon(p.j, SyncGroup6)
			k := l.K.StartDaemon(p.k, SyncGroup6)
			time.Sleep(5 * time.Second)
			l.J.Load(table)
			l.Measure("100,000 sessions of mixed ages advertised", p.name, j, k, func() (int, time.Duration) {
				start := time.Now()
				l.J.Advertise(p.j)
				l.K.Growth(len(table), 15*time.Second)
				return 0, time.Since(start)
			})
		})
	}
}
