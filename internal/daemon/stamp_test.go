package daemon

import (
	"bytes"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"joold/internal/control"
	"joold/internal/logging"
	"joold/internal/mcast"
	"joold/internal/session"
	"joold/internal/wire"
)

// stamped is a datagram of sessions as s sends it.
func stamped(s *wire.Signer, ss ...session.Session) []byte {
	return s.Stamp(encode(session.Enc4113, wkp, ss...), 0, nil)
}

func signerOf(cluster string) *wire.Signer { return wire.NewSigner(cluster, wire.Keys{}, false, nil) }

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

func TestLossesOfAPeerAreSeenByItsNumbers(t *testing.T) {
	d, l := idle(t, newModelKernel(session.Enc4113))
	in := newIntake(d)
	now := time.Now()
	hear := func(datagrams ...[]byte) {
		for _, b := range datagrams {
			in.accept(l, &mcast.Datagram{Payload: b, From: sender}, now)
		}
	}
	run := func(n int) (sent [][]byte) {
		s := signerOf("")
		for i := range n {
			sent = append(sent, stamped(s, udp(uint16(i), 300_000)))
		}
		return sent
	}
	check := func(what string, want control.Peer) {
		t.Helper()
		p := d.status(now).Peers
		if len(p) != 1 {
			t.Fatalf("%s: %d peers", what, len(p))
		}
		got := control.Peer{
			Stamped: p[0].Stamped, Starts: p[0].Starts, Lost: p[0].Lost, Late: p[0].Late,
			Duplicates: p[0].Duplicates, Jumps: p[0].Jumps,
		}
		if got != want {
			t.Errorf("%s: %+v, want %+v", what, got, want)
		}
	}

	hear(encode(session.Enc4113, wkp, udp(999, 300_000)))
	check("a C node", control.Peer{})
	sent := run(10)
	hear(sent[2:5]...)
	check("heard from its third datagram on", control.Peer{Stamped: true, Starts: 1})
	hear(sent[9], sent[3])
	check("four that have not come and one that came twice", control.Peer{Stamped: true, Starts: 1, Lost: 4, Duplicates: 1})
	hear(sent[6])
	check("one of them came late", control.Peer{Stamped: true, Starts: 1, Lost: 3, Late: 1, Duplicates: 1})
	sent = run(3)
	hear(sent[0], sent[2])
	check("the peer was started anew", control.Peer{Stamped: true, Starts: 2, Lost: 4, Late: 1, Duplicates: 1})

	if got := len(l.inbox.Take(nil, now)); got != 7 {
		t.Errorf("%d sessions for the kernel, want 6 of numbered datagrams and the C node's", got)
	}
	if s := d.status(now).Net; s.Stamps["intact"] != 8 || s.Stamps["unstamped"] != 1 || s.RcvdDatagrams != 9 {
		t.Errorf("counted %+v of %d", s.Stamps, s.RcvdDatagrams)
	}
}

// Without a key anybody can make numbers up.
func TestAForgedNumberMutesNobody(t *testing.T) {
	d, l := idle(t, newModelKernel(session.Enc4113))
	in := newIntake(d)
	now := time.Now()
	s := signerOf("")
	epoch := s.Epoch()
	forger := wire.NewSigner("", wire.Keys{}, false, func(b []byte) { copy(b, epoch[:]) })
	for range 20_000 {
		forger.Stamp(nil, 0, nil)
	}
	for i := range 10 {
		in.accept(l, &mcast.Datagram{Payload: stamped(s, udp(uint16(i), 300_000)), From: sender}, now)
		if i == 4 {
			in.accept(l, &mcast.Datagram{Payload: stamped(forger), From: sender}, now)
		}
	}
	if got := len(l.inbox.Take(nil, now)); got != 10 {
		t.Errorf("%d sessions for the kernel, want 10", got)
	}
	if p := d.status(now).Peers[0]; p.Lost != 0 || p.Jumps != 2 || p.Late != 0 {
		t.Errorf("%+v: want a jump there and one back", p)
	}
}

func TestADatagramsStampDecidesWhetherItsEntriesAreTaken(t *testing.T) {
	one := udp(1, 300_000)
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
		{wire.Intact, stamped(signerOf("blue"), one), true, ""},
		{wire.OtherCluster, stamped(signerOf(""), one), false, `because_of="other cluster"`},
		{wire.OtherCluster, stamped(signerOf("red"), one), false, `because_of="other cluster"`},
		{wire.Damaged, change(1, stamped(signerOf("blue"), one)), false, "because_of=damaged"},
		{wire.Damaged, change(60, stamped(signerOf("blue"), one)), false, "because_of=damaged"},
		{wire.OtherVersion, change(46, stamped(signerOf("blue"), one)), true, "of another version of joold"},
		{wire.OtherKey, stamped(wire.NewSigner("blue", key, false, nil), one), true, "a peer signs"},
		{wire.OtherKey, stamped(wire.NewSigner("blue", key, true, nil), one), false, "a peer signs"},
		{wire.Trailing, append(encode(session.Enc4113, wkp, one), 0, 0, 0, 0, 1), true, ""},
	} {
		d, l := idle(t, newModelKernel(session.Enc4113))
		d.fixed.Cluster = "blue"
		var log bytes.Buffer
		d.limit = logging.NewLimiter(slog.New(slog.NewTextHandler(&log, nil)))
		now := time.Now()
		newIntake(d).accept(l, &mcast.Datagram{Payload: slices.Clone(c.datagram), From: sender}, now)
		s := d.status(now)
		if got := len(l.inbox.Take(nil, now)) == 1; got != c.taken || s.Net.Stamps[c.verdict.String()] != 1 {
			t.Errorf("%s: taken %v, counted %v", c.verdict, got, s.Net.Stamps)
		}
		if (len(s.Peers) == 1 && s.Peers[0].Stamped) != (c.verdict == wire.Intact) || s.Network.Cluster != "blue" {
			t.Errorf("%s: peers %+v in cluster %q", c.verdict, s.Peers, s.Network.Cluster)
		}
		if !strings.Contains(log.String(), c.logged) || (c.logged == "") != (log.Len() == 0) {
			t.Errorf("%s: logged %q, want %q", c.verdict, log.String(), c.logged)
		}
	}
}
