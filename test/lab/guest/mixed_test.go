//go:build lab

package guest

import (
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
