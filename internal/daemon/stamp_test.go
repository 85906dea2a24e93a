package daemon

import (
	"bytes"
	"log/slog"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"joold/internal/control"
	"joold/internal/logging"
	"joold/internal/mcast"
	"joold/internal/session"
	"joold/internal/wire"
)

func TestWhatIsSentIsNumberedBehindItsEntries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newHookedKernel(session.Enc4113)
		b := startHooked(t, k, nil)
		time.Sleep(time.Minute)
		for message := range slices.Chunk(distinct(108), 36) {
			k.announced <- encode(session.Enc4113, wkp, message...)
		}
		time.Sleep(time.Minute)
		b.g.mu.Lock()
		out := b.g.out
		b.g.mu.Unlock()
		if len(out) < 3 {
			t.Fatalf("%d datagrams", len(out))
		}
		o := wire.NewOpener("", wire.Keys{})
		for i, datagram := range out {
			dg, verdict := o.Open(datagram, time.Now())
			if verdict != wire.Intact || dg.Number != uint64(i+1) || dg.Epoch != b.signer.Epoch() || dg.Flags != 0 || dg.Body != nil {
				t.Errorf("datagram %d: %s, %+v", i, verdict, dg.Stamp)
			}
			if n := len(dg.Entries) / 40; n > 35 || len(datagram) > 1452 || !bytes.HasPrefix(datagram, dg.Entries) {
				t.Errorf("datagram %d: %d entries, %d bytes", i, n, len(datagram))
			}
			// Where a C node's module stops.
			if _, r := session.Decode(nil, datagram, wkp); r.BadTotal() != 0 || r.End != len(dg.Entries) {
				t.Errorf("datagram %d: as a C node reads it: %+v, want %d bytes of entries", i, r, len(dg.Entries))
			}
		}
	})
}

func TestNoNumberIsTakenForAGroupThatIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newAway(t)
		k := newHookedKernel(session.Enc4113)
		b.instance.Store(k)
		b.run()
		time.Sleep(time.Minute)
		k.announce(udp(1, 300_000))
		time.Sleep(time.Minute)
		if b.status(time.Now()).Net.SendErrors["no group"] == 0 || b.signer.Last() != 0 {
			t.Errorf("the number is %d", b.signer.Last())
		}
	})
}

// between is a daemon that does nothing by itself, on a group.
func between(t *testing.T) (d *Daemon, l *link, in *intake, g *modelGroup) {
	d, l = idle(t, newModelKernel(session.Enc4113))
	g = newModelGroup()
	group := network(g)
	d.current.Store(&group)
	return d, l, newIntake(d), g
}

func TestLossesOfAPeerAreSeenByItsNumbers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, l, in, g := between(t)
		hear := func(datagrams ...[]byte) {
			for _, b := range datagrams {
				in.accept(l, &mcast.Datagram{Payload: b, From: sender}, time.Now())
			}
		}
		check := func(what string, want ...control.Node) {
			t.Helper()
			nodes := d.out.clusterStatus(time.Now()).Nodes
			var got []control.Node
			for _, n := range nodes {
				got = append(got, control.Node{Missing: n.Missing, Late: n.Late, Duplicate: n.Duplicate})
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("%s: %+v, want %+v", what, got, want)
			}
		}
		hear(encode(session.Enc4113, wkp, udp(999, 300_000)))
		check("a C node")
		p := newPartner(t, wire.Keys{}, false)
		p.meet(d, l, in, g)
		var sent [][]byte
		for i := range uint16(10) {
			sent = append(sent, p.data(udp(i, 300_000)))
		}
		hear(sent[2:5]...)
		check("two that have not come", control.Node{Missing: 2})
		hear(sent[9], sent[3])
		check("six, and one that came twice", control.Node{Missing: 6, Duplicate: 1})
		hear(sent[6])
		check("one of them came late", control.Node{Missing: 5, Late: 1, Duplicate: 1})
		if got := len(l.inbox.Take(nil, time.Now())); got != 6 {
			t.Errorf("%d sessions for the kernel, want 5 of numbered datagrams and the C node's", got)
		}
		if s := d.status(time.Now()).Net; s.Numbered["duplicate"] != 1 || s.Stamps["unstamped"] != 1 {
			t.Errorf("counted %+v and %+v", s.Stamps, s.Numbered)
		}
	})
}

// Without a key anybody can make numbers up.
func TestAForgedNumberMutesNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, l, in, g := between(t)
		p := newPartner(t, wire.Keys{}, false)
		p.meet(d, l, in, g)
		epoch := p.Epoch()
		forger := wire.NewSigner("", wire.Keys{}, false, func(b []byte) { copy(b, epoch[:]) })
		for range 20_000 {
			forger.Stamp(nil, 0, nil)
		}
		for i := range uint16(10) {
			in.accept(l, &mcast.Datagram{Payload: p.data(udp(i, 300_000)), From: sender}, time.Now())
			if i == 4 {
				in.accept(l, &mcast.Datagram{Payload: forger.Stamp(nil, 0, nil), From: sender}, time.Now())
			}
		}
		if got := len(l.inbox.Take(nil, time.Now())); got != 10 {
			t.Errorf("%d sessions for the kernel, want 10", got)
		}
		if n := d.status(time.Now()).Net.Numbered; n["far"] != 1 {
			t.Errorf("counted %v", n)
		}
	})
}

func TestADatagramsStampDecidesWhetherItsEntriesAreTaken(t *testing.T) {
	synctest.Test(t, stampDecides)
}

func stampDecides(t *testing.T) {
	one := udp(1, 300_000)
	stamped := func(cluster string, keys wire.Keys, sealing bool) []byte {
		return wire.NewSigner(cluster, keys, sealing, nil).Stamp(encode(session.Enc4113, wkp, one), 0, nil)
	}
	blue := asPartner(t, wire.NewSigner("blue", wire.Keys{}, false, nil), "blue", wire.Keys{})
	stranger := stamped("blue", wire.Keys{}, false)
	change := func(fromEnd int, b []byte) []byte {
		b[len(b)-fromEnd] ^= 0x40
		return b
	}
	key, err := wire.ParseKeys([]byte(strings.Repeat("0123456789abcdef", 4)))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		verdict  wire.Verdict
		datagram []byte
		taken    bool
		logged   string
	}{
		{wire.Unstamped, encode(session.Enc4113, wkp, one), true, ""},
		{wire.Intact, nil, true, ""}, // of a node that it has met
		{wire.Intact, stranger, false, ""},
		{wire.OtherCluster, stamped("", wire.Keys{}, false), false, `because_of="other cluster"`},
		{wire.OtherCluster, stamped("red", wire.Keys{}, false), false, `because_of="other cluster"`},
		{wire.Damaged, change(1, stamped("blue", wire.Keys{}, false)), false, "because_of=damaged"},
		{wire.Damaged, change(60, stamped("blue", wire.Keys{}, false)), false, "because_of=damaged"},
		{wire.OtherVersion, change(46, stamped("blue", wire.Keys{}, false)), true, "of another version of joold"},
		{wire.OtherKey, stamped("blue", key, false), true, "a peer signs"},
		{wire.OtherKey, stamped("blue", key, true), false, "a peer encrypts"},
		{wire.Trailing, append(encode(session.Enc4113, wkp, one), 0, 0, 0, 0, 1), true, ""},
	} {
		d, l, _, g := between(t)
		d.fixed.Cluster = "blue"
		d.signer = wire.NewSigner("blue", wire.Keys{}, false, nil)
		d.out.end(time.Now())
		d.out.begin(l, false)
		in := newIntake(d)
		known := c.verdict == wire.Intact && c.taken
		if known {
			blue.meet(d, l, in, g)
			c.datagram = blue.data(one)
		}
		before := d.count.stamps[c.verdict].Load()
		var log bytes.Buffer
		d.limit = logging.NewLimiter(slog.New(slog.NewTextHandler(&log, nil)))
		now := time.Now()
		in.accept(l, &mcast.Datagram{Payload: slices.Clone(c.datagram), From: sender}, now)
		s := d.status(now)
		if got := len(l.inbox.Take(nil, now)) == 1; got != c.taken || s.Net.Stamps[c.verdict.String()] != before+1 {
			t.Errorf("%s: taken %v, counted %v", c.verdict, got, s.Net.Stamps)
		}
		if (len(s.Peers) == 1 && s.Peers[0].Stamped) != known || s.Network.Cluster != "blue" ||
			len(s.Peers) == 1 && s.Peers[0].Stamp != c.verdict.String() {
			t.Errorf("%s: peers %+v in cluster %q", c.verdict, s.Peers, s.Network.Cluster)
		}
		if !strings.Contains(log.String(), c.logged) || (c.logged == "") != (log.Len() == 0) {
			t.Errorf("%s: logged %q, want %q", c.verdict, log.String(), c.logged)
		}
	}
}

func TestWhatIsNotStampedIsNotTakenFromWhoSpeaksToThisNodeAlone(t *testing.T) {
	d, l, in, _ := between(t)
	for _, payload := range [][]byte{encode(session.Enc4113, wkp, udp(1, 300_000)), append(encode(session.Enc4113, wkp, udp(2, 300_000)), 0, 0, 0, 0, 1)} {
		for _, alone := range []bool{true, false} {
			in.accept(l, &mcast.Datagram{Payload: slices.Clone(payload), From: sender, Alone: alone}, time.Now())
			if taken := len(l.inbox.Take(nil, time.Now())) == 1; taken == alone {
				t.Errorf("alone %v: taken %v", alone, taken)
			}
		}
	}
	if n := d.status(time.Now()).Net.Unheard; n["unstamped"] != 1 || n["trailing"] != 1 {
		t.Errorf("counted %v", n)
	}
}

func TestNoMoreAreRefusedForTheirStampsThanHadThem(t *testing.T) {
	d, _, _, _ := between(t)
	done := make(chan struct{})
	defer func() { <-done }()
	var stop atomic.Bool
	defer stop.Store(true)
	go func() {
		defer close(done)
		refused := &mcast.Datagram{Payload: wire.NewSigner("red", wire.Keys{}, false, nil).Stamp(nil, 0, nil), From: sender}
		for in := newIntake(d); !stop.Load(); {
			in.accept(nil, refused, time.Time{})
		}
	}()
	for range 20_000 {
		s := d.status(time.Time{}).Net
		if all, refused := s.Stamps["other cluster"], s.Unheard["other cluster"]; refused > all {
			t.Fatalf("%d of %d", refused, all)
		}
	}
}
