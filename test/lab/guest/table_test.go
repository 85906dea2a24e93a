//go:build lab

package guest

import (
	"fmt"
	"maps"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestTableABackupsAdvertisementTurnsNothingBack(t *testing.T) {
	l := New(t, Config{NoInstance: true})
	pairs := [][2]Daemon{{Ours, Ours}, {Ours, C}, {C, C}}
	if l.J.Jool() == "4.1.9" { // its ADVERTISE sends nothing
		pairs = [][2]Daemon{{Ours, Ours}, {C, Ours}}
	}
	for _, p := range pairs {
		j, k := p[0], p[1]
		t.Run(k.Name+" advertises to "+j.Name, func(t *testing.T) {
			l.Part(t, Config{})
			l.J.StartDaemon(j, SyncGroup6)
			l.K.StartDaemon(k, SyncGroup6)
			if j.ours {
				l.J.WaitInService()
			}
			if k.ours {
				l.K.WaitInService()
			}
			l.K.Deafen() // it stays behind
			conn := l.Connect()
			const flows = 100
			stop := l.Stream(flows, flows) // each is announced once a second
			l.J.WaitCount(flows + 1)
			l.WaitLines(conn, 5)
			look := l.J.Look()
			var old []Session
			var connection ID
			for id, s := range look.Sessions {
				if s.Proto == protoTCP { // as if K had heard of the connection's first packet, and no more
					connection = id
					s.State, s.Timer, s.Expires = stateV6Init, timerTrans, 3*time.Minute
				} else {
					s.Expires -= 2 * time.Minute
				}
				old = append(old, s)
			}
			l.K.Load(old)

			// heard is how much of what K advertises J's daemon has heard, if it can be asked.
			heard := func() (n uint64) {
				if j.ours {
					n = l.J.Status(l.Instance).Net.RcvdSessions
				}
				return n
			}
			before := heard()
			advertisement := l.K.Start(k.advertise(l.K)...)
			turned := map[ID]bool{}
			var over time.Time // when all was heard; what follows is time for it to take effect
			for start := time.Now(); over.IsZero() || time.Since(over) < 2*time.Second; {
				last := look
				look = l.J.Look()
				for id := range last.Sessions {
					if look.NotAfter(id).Before(last.NotBefore(id).Add(-100 * time.Millisecond)) {
						turned[id] = true
					}
				}
				ended, err := advertisement.Ended()
				switch {
				case err != nil:
					t.Fatalf("the advertisement ends with %v: %s", err, advertisement.Output())
				case time.Since(start) > limit:
					t.Fatalf("J has heard %d sessions of %d", heard()-before, len(old))
				case over.IsZero() && ended && (!j.ours || heard()-before >= uint64(len(old))):
					over = time.Now()
				}
			}
			state := look.Sessions[connection].State
			t.Logf("%d of %d sessions lived for less time than before; the connection's state is %d", len(turned), len(old), state)
			if !j.ours {
				stop()
				return // that is what happens there
			}
			if len(turned) > 0 || state != stateEstablished {
				t.Errorf("K's old table has turned J's sessions back: %v", look.Sessions[connection])
			}
			l.WaitLines(conn, 5)
			stop()
			t.Logf("J's daemon found K's sessions to be %v", l.J.Status(l.Instance).Net.Verdicts)
		})
	}
}

func TestTableAnEmptiedPeerGetsAllAfterAnAdvertisement(t *testing.T) {
	l := New(t, Config{NoInstance: true})
	remade := func(k *Process) {
		served := func() int { return strings.Count(k.Output(), "in service") }
		before := served()
		l.K.RemoveInstance()
		l.K.AddInstance()
		start := time.Now()
		l.Wait("K's daemon serves the new instance", func() (string, bool) { return k.Output(), served() > before })
		l.t.Logf("K's daemon serves the new instance after %v", time.Since(start).Round(time.Millisecond))
	}
	// A daemon is not told of what the operator removes. It finds out when it goes through the table.
	unbound := func(*Process) {
		var script strings.Builder
		for id := range l.K.Sessions() {
			fmt.Fprintf(&script, "jool bib remove --%s %s#%d %s#%d\n", [...]string{"tcp", "udp"}[id.Proto],
				id.Src6.Addr(), id.Src6.Port(), id.Src4.Addr(), id.Src4.Port())
		}
		l.K.Sh(script.String())
		for range 2 { // what came since the sweep before might wait for the kernel still, and is not missed
			l.K.Advertise(Ours)
		}
	}
	for _, c := range []struct {
		name   string
		module bool // whether it is the module's own advertisement
		idle   int
		empty  func(k *Process)
	}{
		{"the module's, to a new instance", true, 2000, remade},
		{"joold's, to a new instance", false, 2000, remade},
		{"joold's, to one that has lost BIB entries", false, 20, unbound},
	} {
		if c.module && l.J.Jool() == "4.1.9" {
			continue // it sends nothing there
		}
		t.Run(c.name, func(t *testing.T) {
			l.Part(t, Config{})
			idle := l.IdleTable(c.idle, tcpEstablished/10)
			l.J.Load(idle)
			daemon := Ours.With("--batch.refresh", "60s") // so that the busy sessions do not come by themselves
			l.J.StartDaemon(daemon, SyncGroup6)
			k := l.K.StartDaemon(daemon, SyncGroup6)
			l.K.WaitInService()
			const busy = 20
			stop := l.Stream(busy, 10*busy)
			l.K.WaitCount(len(idle) + busy)

			for c.empty(k); l.K.Count() > 0; { // busy sessions that have come by themselves would prove nothing
				c.empty(k)
			}
			if c.module {
				sweeps := l.J.Status(l.Instance).Table.Sweeps
				l.J.Advertise(C)
				l.Wait("J has swept its table", func() (string, bool) {
					n := l.J.Status(l.Instance).Table.Sweeps
					return fmt.Sprint(n), n > sweeps
				})
			} else {
				l.J.Advertise(Ours)
			}
			stop() // so that nothing is announced any more
			t.Logf("all %d in K %v after the advertisement", len(idle)+busy, l.K.WaitCount(len(idle)+busy))
			if n := Missing(idle, l.K.Sessions()); n > 0 {
				t.Errorf("K lacks %d idle sessions", n)
			}
			l.WaitMirrored(len(idle) + busy)
		})
	}
}

func TestTableAMaskThatMovedToAnotherNodeMovesAtThePeerToo(t *testing.T) {
	l := New(t, Config{NoInstance: true})
	const a, b, p, q = 0, 1, 61001, 61002 // flows, and ports of the IPv4 address that hides them
	onePort := Config{Pool4: []string{"udp 192.0.2.1 61001-61001", "icmp 192.0.2.1 0-65535"}}
	twoPorts := Config{Pool4: []string{"udp 192.0.2.1 61001-61002", "icmp 192.0.2.1 0-65535"}}
	begin := func(t *testing.T, c Config) (k *Process) {
		l.Part(t, c)
		l.J.StartDaemon(Ours, SyncGroup6)
		k = l.K.StartDaemon(Ours, SyncGroup6)
		l.J.WaitInService()
		l.K.WaitInService()
		return k
	}

	for _, restart := range []bool{false, true} {
		t.Run(map[bool]string{false: "to a node that had none", true: "while K's daemon was started anew"}[restart], func(t *testing.T) {
			k := begin(t, onePort)
			l.WaitReplies(l.Ping(), 3) // J translates all the time
			from := l.flows()
			defer from.close()
			if err := from.send(a); err != nil {
				t.Fatal(err)
			}
			l.K.WaitMasks(map[int]uint16{a: p})
			if restart {
				if err := k.Stop(); err != nil {
					t.Fatal(err)
				}
				l.K.StartDaemon(Ours, SyncGroup6)
				l.K.WaitInService()
			}
			l.J.Run("jool", "bib", "remove", "--udp", fmt.Sprintf("2001:db8::8#%d", firstSource+a), fmt.Sprintf("192.0.2.1#%d", p))
			if err := from.send(b); err != nil {
				t.Fatal(err)
			}
			l.J.WaitMasks(map[int]uint16{b: p})
			l.K.WaitMasks(map[int]uint16{b: p})
			if n := l.K.Status(l.Instance).Kernel.BIBRemoved; n != 1 {
				t.Errorf("%d BIB entries were removed in K", n)
			}
		})
	}

	t.Run("from a node that has another now", func(t *testing.T) {
		begin(t, twoPorts)
		from := l.flows()
		defer from.close()
		if err := from.send(a); err != nil {
			t.Fatal(err)
		}
		l.Wait("J has the flow", func() (string, bool) { m := l.J.masks(); return fmt.Sprint(m), len(m) == 1 })
		first := l.J.masks()
		l.K.WaitMasks(first)
		second := map[int]uint16{a: p}
		if first[a] == p {
			second[a] = q
		}
		l.J.Sh(fmt.Sprintf("jool pool4 remove --udp 192.0.2.1 61001-61002; jool pool4 add --udp 192.0.2.1 %d-%[1]d", second[a]))
		if err := from.send(a); err != nil {
			t.Fatal(err)
		}
		l.J.WaitMasks(second)
		l.K.WaitMasks(second)
	})

	t.Run("but not while K translates for the old one", func(t *testing.T) {
		k := begin(t, onePort)
		// What the other flow goes to is reached through J, whoever owns the virtual addresses.
		l.N4.Run("ip", "address", "add", "192.0.2.9/24", "dev", "eth0")
		l.N6.Run("ip", "route", "add", "64:ff9b::192.0.2.9", "via", "2001:db8::4")
		t.Cleanup(func() {
			l.N4.Run("ip", "address", "del", "192.0.2.9/24", "dev", "eth0")
			l.N6.Run("ip", "route", "del", "64:ff9b::192.0.2.9")
		})
		l.J.Deafen() // it does not know what K does
		l.J.GiveAddressesTo(l.K)
		old, heir := l.flows(), l.flows()
		defer old.close()
		defer heir.close()
		heir.to.Addr = Embed(netip.MustParsePrefix(l.Pool6), netip.MustParseAddr("192.0.2.9")).As16()
		stop := l.Repeat(old, a)
		l.K.WaitMasks(map[int]uint16{a: p})
		defer l.Repeat(heir, b)()
		l.J.WaitMasks(map[int]uint16{b: p})

		conflicts := func() uint64 { return l.K.Status(l.Instance).Kernel.Conflicts }
		l.Wait("K counts a conflict, and one more", func() (string, bool) {
			if have, want := l.K.masks(), (map[int]uint16{a: p}); !maps.Equal(have, want) {
				t.Fatalf("K has flows with the masks %v", have)
			}
			n := conflicts()
			return fmt.Sprint(n), n >= 2
		})
		if text := l.K.Run("joold", "status", "-i", l.Instance); !strings.Contains(text, "contradict the BIB") {
			t.Errorf("joold status does not name it:\n%s", text)
		}
		node := fmt.Sprintf("[2001:db8::8]:%d", firstSource+b)
		if !strings.Contains(k.Output(), node) {
			t.Errorf("the log does not name %s:\n%s", node, k.Output())
		}
		stop()
		l.K.WaitMasks(map[int]uint16{b: p})
	})
}

func TestTableNoPeersSessionLivesMuchShorterThanHere(t *testing.T) {
	l := New(t, Config{})
	for _, n := range []*Node{l.J, l.K} {
		n.Run("jool", "global", "update", "udp-timeout", "120") // the least, so that a tenth of it is soon over
		n.StartDaemon(Ours, SyncGroup6)
		n.WaitInService()
	}
	const flows, deadline = 40, 10 * time.Millisecond
	ping, conn := l.Ping(), l.Connect()
	stop := l.Stream(flows, 5*flows)
	l.WaitReplies(ping, 1)
	l.WaitLines(conn, 1)
	l.K.WaitCount(flows + 2)

	// What K has is compared with what J had just before: with the least that this certainly had left by then. An announcement may be under way,
	// on a machine as slow as this for a while: then K is looked at again. Sessions that K holds back for too long are short until the next refresh.
	const patience = 1500 * time.Millisecond
	looks, again := 0, time.Duration(0)
	closest := 1.0
	for end := time.Now().Add(16 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		j := l.J.Look()
		for short := j.Sessions; len(short) > 0; {
			k := l.K.Look()
			looks++
			short = map[ID]Session{}
			for id, s := range j.Sessions {
				left, here := k.Sessions[id].Expires, j.NotBefore(id).Sub(k.Till)
				closest = min(closest, float64(left)/float64(here))
				if left < here*9/10-deadline {
					short[id] = s
				}
			}
			if waited := k.Till.Sub(j.Till); len(short) > 0 {
				again = max(again, waited)
				if waited > patience {
					t.Fatalf("%d of %d sessions have less than nine tenths of their life left in K: %v, of these in K: %v", len(short), len(j.Sessions), short, k.Sessions)
				}
			}
		}
	}
	stop()
	t.Logf("in %d looks no session had less than %.3f of the life left in K that it had in J; announcements were waited for for up to %v", looks, closest, again)
}
