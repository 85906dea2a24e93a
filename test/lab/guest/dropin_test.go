//go:build lab

package guest

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// pairings are the daemons that may stand on J and K, and what else may differ from the tutorial.
var pairings = []struct {
	name   string
	j, k   Daemon
	group  string
	config Config
}{
	{"ours to C", Ours, C, SyncGroup6, Config{}},
	{"C to ours", C, Ours, SyncGroup6, Config{}},
	{"ours to C over IPv4", Ours, C, SyncGroup4, Config{}},
	{"C to ours over IPv4", C, Ours, SyncGroup4, Config{}},
	{"ours over IPv4", Ours, Ours, SyncGroup4, Config{}},
	{"ours for another instance", Ours, Ours, SyncGroup6, Config{Instance: "edge"}},
	{"ours with the C daemon's files", OursFiles, OursFiles, SyncGroup6, Config{}},
	{"ours with the C daemon's files over IPv4", OursFiles, CFiles, SyncGroup4, Config{}},
	{"ours with a pool6 of 64 bits", Ours, Ours, SyncGroup6, Config{Pool6: "2001:db8:64::/64"}},
}

func TestDropInSessionsAreMirrored(t *testing.T) {
	l := New(t, Config{NoInstance: true})
	for _, p := range pairings {
		t.Run(p.name, func(t *testing.T) {
			l.Part(t, p.config)
			l.mirrors(p.j, p.k, p.group)
		})
	}
}

// mirrors starts two daemons, and takes J out of service once K has its sessions: a ping and a connection must go on.
func (l *Lab) mirrors(j, k Daemon, group string) {
	l.t.Helper()
	l.J.StartDaemon(j, group)
	l.K.StartDaemon(k, group)
	ping, conn := l.Ping(), l.Connect()
	l.WaitReplies(ping, 3)
	l.WaitLines(conn, 10)
	l.WaitMirrored(2)
	l.J.GiveAddressesTo(l.K)
	l.WaitReplies(ping, 3)
	l.WaitLines(conn, 10)
	if _, err := conn.Close(); err != nil {
		l.t.Errorf("the connection did not survive the failover: %v", err)
	}
}

// WaitMirrored waits until K has each of J's sessions, of which there are at least n.
func (l *Lab) WaitMirrored(n int) {
	l.t.Helper()
	l.Wait("J's sessions are in K", func() (string, bool) {
		j, k := l.J.Sessions(), l.K.Sessions()
		for id := range j {
			if _, ok := k[id]; !ok {
				return fmt.Sprintf("J: %v K: %v", j, k), false
			}
		}
		return fmt.Sprintf("J: %v", j), len(j) >= n
	})
}

func TestDropInAdvertisedTablesArriveWhole(t *testing.T) {
	l := New(t, Config{NoInstance: true})
	for _, p := range []struct {
		name string
		j, k Daemon
	}{{"ours to ours", Ours, Ours}, {"ours to C", Ours, C}} {
		t.Run(p.name, func(t *testing.T) {
			l.Part(t, Config{})
			l.J.StartDaemon(p.j, SyncGroup6)
			l.K.StartDaemon(p.k, SyncGroup6)
			table := l.IdleTable(20_000, tcpEstablished/10)
			l.J.Load(table)
			start := time.Now()
			t.Log(strings.TrimSpace(l.J.Advertise(p.j)))
			l.K.WaitSessions(table)
			t.Logf("%d sessions in K after %v", len(table), time.Since(start).Round(time.Millisecond))
			if got := l.K.Sessions(); len(got) > len(table) {
				t.Errorf("K has %d sessions, J %d", len(got), len(table))
			}
		})
	}
}

func TestDropInTheModulesOwnAdvertisementIsCarried(t *testing.T) {
	l := New(t, Config{})
	if l.J.Jool() == "4.1.9" {
		// Its ADVERTISE sends nothing (docs/PROTOCOL.md): joold's own must do, and is tested above.
		if out := l.J.Advertise(C); out != "" {
			t.Errorf("the C command says %q", out)
		}
		return
	}
	l.J.StartDaemon(Ours, SyncGroup6)
	l.K.StartDaemon(Ours, SyncGroup6)
	table := l.IdleTable(5_000, tcpEstablished/10)
	l.J.Load(table)
	l.J.Advertise(C)
	l.K.WaitSessions(table)
}

func TestDropInInstancesInOneNamespaceDoNotHearEachOther(t *testing.T) {
	l := New(t, Config{NoInstance: true})
	// A namespace has room for one instance of Netfilter's; one of iptables' need not translate to be there. The C tool of 4.1.13 is built
	// without these: there the other instance, once it has its daemon, makes room for the tutorial's, and that daemon waits for its return.
	alone := l.J.Jool() == "4.1.13"
	framework := "--iptables"
	if alone {
		framework = "--netfilter"
	}
	second := Ours.With("-i", "other")
	for _, n := range []*Node{l.J, l.K} {
		n.Sh("jool instance add other " + framework + ` --pool6 2001:db8:64::/96
			jool -i other global update ss-enabled true`)
		n.StartDaemon(second, "ff08::db8:64:65") // another group on the same port
		if alone {
			n.Run("jool", "instance", "remove", "other")
		}
		n.AddInstance()
		n.StartDaemon(Ours, SyncGroup6)
	}
	l.WaitReplies(l.Ping(), 5)
	l.WaitMirrored(1)
	if n := l.K.Status("other").Net.RcvdSessions; n != 0 {
		t.Errorf("the other instance's daemon on K heard %d sessions", n)
	}
	s := l.J.Status("other")
	if s.Net.SentDatagrams != 0 {
		t.Errorf("the other instance's daemon on J sent %d datagrams", s.Net.SentDatagrams)
	}
	if s.Kernel.Foreign == 0 && !alone {
		t.Errorf("the other instance's daemon on J heard none of the messages that it leaves alone")
	}
}
