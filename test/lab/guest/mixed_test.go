//go:build lab

package guest

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"
)

// J and K have modules of different versions here, which no C daemon can bridge; ours does, also for a C daemon.

// moduleGone is possible only here, where J's module is not K's as well.
var moduleGone = Death{
	Name:   "Jool's module is gone",
	kill:   func(n *Node) { n.Run("modprobe", "-r", "jool") },
	revive: func(n *Node) { n.Run("modprobe", "jool"); n.AddInstance() },
}

func TestMixedTutorial(t *testing.T) {
	for _, death := range append(Deaths, moduleGone) {
		t.Run(death.Name, func(t *testing.T) {
			New(t, Config{}).Tutorial(Ours, Ours, death, 5000)
		})
	}
}

// encodingOf names the encoding of a module's sessions by the last version of Jool that brought a new one, or had the first.
func encodingOf(module string) string {
	if module == "4.1.9" {
		return "4.1.11"
	}
	return "4.1.13"
}

func TestMixedSessionsAreMirrored(t *testing.T) {
	l := New(t, Config{NoInstance: true})
	t.Run("ours to C", func(t *testing.T) {
		l.Part(t, Config{})
		l.mirrors(Ours.With("--net.wire", encodingOf(l.K.Jool())), C, SyncGroup6)
	})
	t.Run("C to ours", func(t *testing.T) {
		l.Part(t, Config{})
		l.mirrors(C, Ours, SyncGroup6)
		l.hears(l.K, l.J)
	})
}

// Here K has a clock of its own.
func TestMixedAClockThatIsSetTurnsNothingBack(t *testing.T) {
	l := New(t, Config{})
	k, j := l.K.StartDaemon(Ours, SyncGroup6), l.J.StartDaemon(Ours, SyncGroup6)
	l.J.WaitVerified(l.K)
	l.K.WaitVerified(l.J)
	const flows = 500
	f := &Fresh{lab: l}
	for i, by := range []int{0, 3600, -7200, 3600} {
		l.K.Sh(fmt.Sprintf("date -s @$(($(date +%%s) + %d))", by))
		f.Make(flows, 1000)
		table := slices.Collect(maps.Values(l.J.Sessions()))
		if want := (i + 1) * flows; len(table) < want {
			t.Fatalf("J has %d sessions of %d flows", len(table), want)
		}
		l.K.WaitSessions(table)
		l.K.WaitVerified(l.J)
	}
	const margin = time.Minute // what K knows of a session may be a refresh old
	have := l.K.Sessions()
	for id, s := range l.J.Sessions() {
		if d := have[id].Expires - s.Expires; d > margin || d < -margin {
			t.Fatalf("%v lives for %v in K and for %v in J", id, have[id].Expires, s.Expires)
		}
	}
	l.Lives(j, k)
}

func TestMixedAdvertisedTablesArriveWhole(t *testing.T) {
	l := New(t, Config{})
	l.J.StartDaemon(Ours.With("--net.wire", encodingOf(l.K.Jool())), SyncGroup6)
	l.K.StartDaemon(C, SyncGroup6)
	table := l.IdleTable(20_000, tcpEstablished/10)
	l.J.Load(table)
	start := time.Now()
	l.J.Advertise(Ours)
	l.K.WaitSessions(table)
	t.Logf("%d sessions in K after %v", len(table), time.Since(start).Round(time.Millisecond))
}
