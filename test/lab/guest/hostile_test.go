//go:build lab

package guest

import (
	"slices"
	"strings"
	"testing"
)

func TestHostileDatagramsPutNothingIntoTheKernel(t *testing.T) {
	l := New(t, Config{})
	p := l.J.StartDaemon(Ours, SyncGroup6)
	l.J.WaitInService()
	l.script(l.J.machine, "dmesg -c")

	f := &forger{lab: l}
	all := f.forgeries()
	from := l.K.sender("eth2", "2001:db8:ff08::5", 1)
	var sound []Session
	for _, forged := range all {
		from.send(SyncGroup6, forged.bytes)
		sound = append(sound, forged.sound...)
	}
	sound = append(sound, l.pass(f, from)...)
	table := l.J.Sessions()
	t.Logf("%d forged datagrams; the sound sessions in them: %d", len(all), len(sound))
	if n := Missing(sound, table); n > 0 {
		t.Errorf("%d of the sound sessions in them are not in the kernel", n)
	}
	for _, s := range sound {
		delete(table, s.ID)
	}
	for _, s := range table {
		t.Errorf("in the kernel: %v", s)
	}
	if log := ofJool(l.script(l.J.machine, "dmesg -c")); log != "" {
		t.Errorf("in the kernel's log:\n%s", log)
	}
	l.Lives(p)
	if !strings.Contains(p.Output(), "2001:db8:ff08::5") {
		t.Errorf("the log does not name the sender:\n%s", p.Output())
	}
	if n := strings.Count(p.Output(), "\n"); n > len(all)/20 {
		t.Errorf("the log has %d lines for %d datagrams:\n%s", n, len(all), p.Output())
	}
}

// pass waits until all that was sent before has been dealt with: what comes in order goes to the kernel in order, but for what comes together.
func (l *Lab) pass(f *forger, from *sender) (sent []Session) {
	l.t.Helper()
	for range 2 {
		s := f.session(protoTCP)
		from.send(SyncGroup6, encodings[2].entry(s))
		l.J.WaitSessions([]Session{s})
		sent = append(sent, s)
	}
	return sent
}

func TestHostileALongLifeIsCutToTheInstancesOwn(t *testing.T) {
	l := New(t, Config{})
	l.J.StartDaemon(Ours, SyncGroup6)
	l.J.WaitInService()
	f := &forger{lab: l}
	s := f.session(protoTCP)
	s.Expires = 9 * tcpEstablished
	l.K.sender("eth2", "2001:db8:ff08::5", 1).send(SyncGroup6, encodings[2].entry(s))
	l.J.WaitSessions([]Session{s})
	if got := l.J.Sessions()[s.ID]; got.Expires > tcpEstablished {
		t.Errorf("it lives %v", got.Expires)
	}
}

func TestHostileSendersAreRefusedByAddressHopLimitAndInterface(t *testing.T) {
	l := New(t, Config{})
	l.K.Sh("ip address add 2001:db8:ff08::66/96 dev eth2; ip address add 2001:db8:ff08::77/96 dev eth2")
	l.J.StartDaemon(Ours.With("--net.source", "2001:db8:ff08::5/128", "--net.source", "2001:db8:ff08::70/124", "--net.hop-limit", "255"), SyncGroup6)
	l.J.WaitInService()
	f := &forger{lab: l}
	const friend, friend2, stranger, neighbour = "2001:db8:ff08::5", "2001:db8:ff08::77", "2001:db8:ff08::66", "2001:db8::8"
	var refused []ID
	for _, c := range []struct {
		node        *Node
		dev, source string
		hops        int
		to          string
		fits        bool
	}{
		{l.K, "eth2", friend, 255, SyncGroup6, true},
		{l.K, "eth2", friend2, 255, SyncGroup6, true},
		{l.K, "eth2", stranger, 255, SyncGroup6, false},
		{l.K, "eth2", friend, 254, SyncGroup6, false},
		{l.N6, "eth0", neighbour, 255, SyncGroup6, false},
		{l.N6, "eth0", neighbour, 255, "2001:db8::4", false}, // J's own address there
	} {
		s := f.session(protoTCP)
		c.node.sender(c.dev, c.source, c.hops).send(c.to, encodings[2].entry(s))
		if c.fits {
			l.J.WaitSessions([]Session{s})
		} else {
			refused = append(refused, s.ID)
		}
	}
	l.pass(f, l.K.sender("eth2", friend, 255))
	for id := range l.J.Sessions() {
		if slices.Contains(refused, id) {
			t.Errorf("in the kernel: %v", id)
		}
	}
}
