package daemon

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"joold/internal/config"
	"joold/internal/logging"
	"joold/internal/mcast"
	"joold/internal/session"
	"joold/internal/wire"
)

// someKeys are the keys of these numbers, always the same.
func someKeys(tb testing.TB, numbers ...int) wire.Keys {
	tb.Helper()
	var file strings.Builder
	for _, n := range numbers {
		fmt.Fprintf(&file, "%064x\n", 0xfeed0000+n)
	}
	k, err := wire.ParseKeys([]byte(file.String()))
	if err != nil {
		tb.Fatal(err)
	}
	return k
}

// keyed is an intake of a daemon that has keys, and what is on both sides of it.
type keyed struct {
	t   *testing.T
	d   *Daemon
	l   *link
	in  *intake
	log bytes.Buffer
	at  uint16 // port of the last session that was made
}

func newKeyed(t *testing.T, change func(*config.Config)) *keyed {
	d, l := idle(t, newModelKernel(session.Enc4113))
	k := &keyed{t: t, d: d, l: l}
	cfg := *d.live.Load()
	cfg.Keys = someKeys(t, 1)
	if change != nil {
		change(&cfg)
	}
	d.live.Store(&cfg)
	d.limit = logging.NewLimiter(slog.New(slog.NewTextHandler(&k.log, nil)))
	k.in = newIntake(d)
	return k
}

// next is a session that nobody has heard of.
func (k *keyed) next() session.Session {
	k.at++
	return udp(k.at, 300_000)
}

// hear takes a datagram in and tells whether its sessions are for the kernel.
func (k *keyed) hear(datagram []byte, from netip.AddrPort) bool {
	now := time.Now()
	k.in.accept(k.l, &mcast.Datagram{Payload: slices.Clone(datagram), From: from}, now)
	return len(k.l.inbox.Take(nil, now)) > 0
}

func (k *keyed) unheard(v wire.Verdict) uint64 {
	return k.d.status(time.Now()).Net.Unheard[v.String()]
}

var stranger = netip.MustParseAddrPort("[fe80::bad%eth2]:6400")

func TestWhereThereIsAKeyNobodyIsHeardWithoutItAndNobodyIsMutedByThat(t *testing.T) {
	friend := wire.NewSigner("", someKeys(t, 1), false, nil)
	other := wire.NewSigner("", someKeys(t, 1), false, nil)
	from := func(s *wire.Signer) func(*keyed) []byte { return func(k *keyed) []byte { return stamped(s, k.next()) } }
	const stamp, epochAt, epochSize = wire.Overhead - 4, 8, 12
	for _, c := range []struct {
		what  string
		bytes func(*keyed) []byte
		want  wire.Verdict
	}{
		{"a C node's", func(k *keyed) []byte { return encode(session.Enc4113, wkp, k.next()) }, wire.Unstamped},
		{"no key", from(signerOf("")), wire.Unsigned},
		{"another key", from(wire.NewSigner("", someKeys(t, 2), false, nil)), wire.OtherKey},
		{"another key, sealed", from(wire.NewSigner("", someKeys(t, 2), true, nil)), wire.OtherKey},
		{"no key, and a claim of one", func(k *keyed) []byte {
			b := stamped(signerOf(""), k.next())
			b[len(b)-stamp+7] = someKeys(k.t, 1).Hints()[0]
			return b
		}, wire.Forged},
		{"another cluster with the same key", from(wire.NewSigner("red", someKeys(t, 1), false, nil)), wire.OtherCluster},
		{"a changed entry", func(k *keyed) []byte {
			b := stamped(friend, k.next())
			b[30] ^= 1
			return b
		}, wire.Forged},
		{"a changed number", func(k *keyed) []byte {
			b := stamped(friend, k.next())
			b[len(b)-stamp+24] ^= 0x80 // far away
			return b
		}, wire.Forged},
		{"a truncated tag", func(k *keyed) []byte {
			b := stamped(friend, k.next())
			return b[:len(b)-1]
		}, wire.Trailing},
		{"a tag cut to nothing", func(k *keyed) []byte {
			b := stamped(friend, k.next())
			return b[:len(b)-16]
		}, wire.Trailing},
		{"spliced entries", func(k *keyed) []byte {
			a, b := stamped(friend, k.next()), stamped(friend, k.next(), k.next())
			return append(a[:len(a)-stamp:len(a)-stamp], b[len(b)-stamp:]...)
		}, wire.Forged},
		{"entries put before", func(k *keyed) []byte {
			return append(encode(session.Enc4113, wkp, k.next()), stamped(friend)...)
		}, wire.Forged},
		{"the stamp stripped off", func(k *keyed) []byte {
			b := stamped(friend, k.next())
			return b[:len(b)-wire.Overhead]
		}, wire.Unstamped},
		{"swapped epochs", func(k *keyed) []byte {
			a, b := stamped(friend, k.next()), stamped(other, k.next())
			copy(a[len(a)-stamp+epochAt:][:epochSize], b[len(b)-stamp+epochAt:])
			return a
		}, wire.Forged},
		{"another version", func(k *keyed) []byte {
			b := stamped(friend, k.next())
			b[len(b)-stamp+2]++
			return b
		}, wire.OtherVersion},
		{"its own epoch", func(k *keyed) []byte { return stamped(k.d.signer, k.next()) }, wire.Reflected},
	} {
		k := newKeyed(t, nil)
		k.d.signer.Rekey(someKeys(t, 1), false)
		for _, s := range []*wire.Signer{friend, other} {
			if !k.hear(stamped(s, k.next()), sender) {
				t.Fatalf("%s: a friend is not heard", c.what)
			}
		}
		if k.hear(c.bytes(k), stranger) {
			t.Errorf("%s: it was heard", c.what)
		}
		if n := k.unheard(c.want); n != 1 {
			t.Errorf("%s: counted as %v, want %s", c.what, k.d.status(time.Now()).Net.Unheard, c.want)
		}
		if log := k.log.String(); !strings.Contains(log, fmt.Sprintf("because_of=%q", c.want)) && !strings.Contains(log, "because_of="+c.want.String()) ||
			!strings.Contains(log, "fe80::bad%eth2") {
			t.Errorf("%s: the log says %q", c.what, log)
		}
		if p := k.d.status(time.Now()).Peers; len(p) != 1 {
			t.Errorf("%s: %d peers are known", c.what, len(p))
		}
		for _, s := range []*wire.Signer{friend, other} {
			if !k.hear(stamped(s, k.next()), sender) {
				t.Errorf("%s: a friend is heard no longer", c.what)
			}
		}
	}
}

func TestNothingRecordedCountsTwice(t *testing.T) {
	for _, sealing := range []bool{false, true} {
		k := newKeyed(t, nil)
		s := wire.NewSigner("", someKeys(t, 1), sealing, nil)
		var tape [][]byte
		for i := range 40 {
			tape = append(tape, stamped(s, udp(uint16(i), 300_000)))
		}
		lost := tape[7]
		tape = slices.Delete(tape, 7, 8)
		for i, b := range tape {
			if !k.hear(b, sender) {
				t.Errorf("sealed %v: datagram %d is not heard", sealing, i)
			}
		}
		k.d.out.end(time.Now()) // as if by another instance: what the sessions are does not decide
		k.d.out.begin(k.l)
		for _, from := range []netip.AddrPort{sender, stranger} {
			for i, b := range tape {
				if k.hear(b, from) {
					t.Errorf("sealed %v: datagram %d is heard again from %s", sealing, i, from)
				}
			}
		}
		if n := k.unheard(wire.Replayed); n != uint64(2*len(tape)) {
			t.Errorf("sealed %v: %d replays were counted of %d", sealing, n, 2*len(tape))
		}
		if !k.hear(lost, sender) || k.hear(lost, sender) {
			t.Errorf("sealed %v: what comes late must be heard, and once", sealing)
		}
		if !k.hear(stamped(s, udp(1000, 300_000)), sender) {
			t.Errorf("sealed %v: the sender is heard no longer", sealing)
		}
		if p := k.d.status(time.Now()).Peers; len(p) != 1 || p[0].Lost != 0 || p[0].Duplicates != uint64(len(tape)+1) {
			t.Errorf("sealed %v: %+v", sealing, p)
		}
	}
}

// As what nodes are to say to each other will be.
func TestWhatIsNumberedApartIsMissedByNobodyAndMutesNobody(t *testing.T) {
	for _, sealing := range []bool{false, true} {
		k := newKeyed(t, nil)
		s := wire.NewSigner("", someKeys(t, 1), sealing, nil)
		k.d.signer.Rekey(someKeys(t, 1), sealing)
		for range 3 {
			apart := s.StampApart(encode(session.Enc4113, wkp, k.next()), 0, []byte("to one alone"))
			for _, b := range [][]byte{stamped(s, k.next()), apart} {
				if !k.hear(b, sender) || k.hear(b, sender) {
					t.Errorf("sealed %v: it must be heard, and once", sealing)
				}
			}
			if k.hear(k.d.signer.StampApart(nil, 0, []byte("body")), stranger) {
				t.Error("this node's own is heard")
			}
		}
		if strings.Contains(k.log.String(), "takes a new name") {
			t.Error("what comes back is taken for a copy's")
		}
		if p := k.d.status(time.Now()).Peers; len(p) != 1 || p[0].Lost != 0 || p[0].Jumps != 0 || p[0].Starts != 1 {
			t.Errorf("sealed %v: %+v", sealing, p)
		}
	}
}

// What was held back until nobody can tell any more whether it has come before.
func TestWhatIsBelowTheWindowIsNotHeardEvenIfItNeverCame(t *testing.T) {
	k := newKeyed(t, nil)
	s := wire.NewSigner("", someKeys(t, 1), false, nil)
	heard, heldBack := stamped(s, k.next()), stamped(s, k.next())
	if !k.hear(heard, sender) {
		t.Fatal("the first is not heard")
	}
	for s.Last() < 3*wire.WindowSize {
		s.Stamp(nil, 0, nil)
	}
	if !k.hear(stamped(s, k.next()), sender) {
		t.Fatal("what comes long after is not heard")
	}
	if k.hear(heard, sender) || k.hear(heldBack, sender) || k.unheard(wire.Replayed) != 2 {
		t.Errorf("it is heard: %v", k.d.status(time.Now()).Net.Unheard)
	}
	if !k.hear(stamped(s, k.next()), sender) {
		t.Error("the sender is heard no longer")
	}
}

func TestAReloadDoesNotMakeARecordingNewAgain(t *testing.T) {
	k := newKeyed(t, nil)
	s := wire.NewSigner("", someKeys(t, 1), false, nil)
	b := stamped(s, k.next())
	if !k.hear(b, sender) {
		t.Fatal("it is not heard")
	}
	for _, keys := range []wire.Keys{someKeys(t, 2), {}, someKeys(t, 1, 2)} {
		cfg := *k.d.live.Load()
		cfg.Keys = keys
		k.d.live.Store(&cfg)
		k.hear(encode(session.Enc4113, wkp, k.next()), stranger)
	}
	if k.hear(b, sender) || k.unheard(wire.Replayed) != 1 {
		t.Errorf("it is heard again: %v", k.d.status(time.Now()).Net.Unheard)
	}
}

func TestACopyOfThisMachineHasItTakeANewName(t *testing.T) {
	k := newKeyed(t, nil)
	same := func(b []byte) { clear(b) }
	k.d.signer = wire.NewSigner("", someKeys(t, 1), false, same)
	copied := wire.NewSigner("", someKeys(t, 1), false, same)
	name := k.d.signer.Epoch()
	recorded := stamped(k.d.signer, k.next())
	if k.hear(recorded, stranger) || k.d.signer.Last() != 1 || k.log.Len() == 0 {
		t.Fatalf("what comes back: number %d, log %q", k.d.signer.Last(), k.log.String())
	}
	stamped(copied, k.next())
	if k.hear(stamped(copied, k.next()), stranger) {
		t.Error("the copy is heard in this node's name")
	}
	if k.d.signer.Last() != 0 || k.d.signer.Epoch() != name { // the same again, for its source is fixed
		t.Error("it goes on with its numbers")
	}
	if !strings.Contains(k.log.String(), "takes a new name") || k.unheard(wire.Reflected) != 2 {
		t.Errorf("%q, %v", k.log.String(), k.d.status(time.Now()).Net.Unheard)
	}
}

func TestWhoNeedNotSignIsHeardUntilItIsSeenSigning(t *testing.T) {
	cNode, moved, both := netip.MustParseAddrPort("192.0.2.7:6400"), netip.MustParseAddrPort("[fe80::7%eth2]:6400"), netip.MustParseAddrPort("[fe80::8%eth2]:6400")
	k := newKeyed(t, func(c *config.Config) {
		c.Unsigned = config.NewSources([]netip.Prefix{netip.MustParsePrefix("192.0.2.7/32"), netip.MustParsePrefix("fe80::/10")})
	})
	plain := func() []byte { return encode(session.Enc4113, wkp, k.next()) }
	unsigned, signed := signerOf(""), wire.NewSigner("", someKeys(t, 1), false, nil)
	recording := stamped(signed, k.next())
	steps := []struct {
		what     string
		datagram []byte
		from     netip.AddrPort
		heard    bool
	}{
		{"a C node that is named", plain(), cNode, true},
		{"one that is not", plain(), netip.MustParseAddrPort("192.0.2.8:6400"), false},
		{"joold without a key", stamped(unsigned, k.next()), both, true},
		{"a C node that will be moved", plain(), moved, true},
		{"the same, damaged", append(plain(), 0, 0, 0, 0, 7), moved, false},
		{"the same with another's key", stamped(wire.NewSigner("", someKeys(t, 2), false, nil), k.next()), moved, false},
		{"once it signs", recording, moved, true},
		{"a C node in its name", plain(), moved, false},
		{"joold without a key in its name", stamped(unsigned, k.next()), moved, false},
		{"its recording in a C node's name", recording, cNode, false},
		{"that C node still", plain(), cNode, true},
		{"the one that signs still", stamped(signed, k.next()), moved, true},
	}
	for _, s := range steps {
		if got := k.hear(s.datagram, s.from); got != s.heard {
			t.Errorf("%s: heard %v, want %v", s.what, got, s.heard)
		}
	}
	s := k.d.status(time.Now())
	if s.Net.Unheard["unstamped"] != 2 || s.Net.Unheard["unsigned"] != 1 || s.Net.Unheard["replayed"] != 1 || s.Net.Unheard["trailing"] != 1 || s.Net.Unheard["other key"] != 1 {
		t.Errorf("counted %v", s.Net.Unheard)
	}
	if s.Network.Keys != 1 || !slices.Equal(s.Network.Unsigned, []string{"192.0.2.7/32", "fe80::/10"}) {
		t.Errorf("status: %+v", s.Network)
	}
	if !strings.Contains(k.log.String(), "refused an unsigned datagram in the name of a node that signs") {
		t.Errorf("log: %s", k.log.String())
	}
}

func TestStrangersCannotFillWhatIsRememberedOfSigners(t *testing.T) {
	k := newKeyed(t, nil)
	friend := wire.NewSigner("", someKeys(t, 1), false, nil)
	addr := func(i int) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 6400)
	}
	if !k.hear(stamped(friend, k.next()), sender) {
		t.Fatal("the friend is not heard")
	}
	for i := range 5000 { // without the key
		forged := stamped(wire.NewSigner("", someKeys(t, 2), false, nil), k.next())
		forged[len(forged)-wire.Overhead+4+7] = someKeys(t, 1).Hints()[0]
		k.hear(forged, addr(i))
		k.hear(encode(session.Enc4113, wkp, k.next()), addr(i))
	}
	if s := k.d.status(time.Now()); len(k.in.stamps.signers) != 1 || len(s.Peers) != 1 || s.Net.Unheard["forged"]+s.Net.Unheard["crowded"] != 5000 {
		t.Errorf("%d signers, %d peers, %v", len(k.in.stamps.signers), len(s.Peers), s.Net.Unheard)
	}
	for i := range 2 * maxSigners { // with recordings
		k.in.stamps.signs(addr(i).Addr(), time.Now().Add(time.Duration(i)))
	}
	if n := len(k.in.stamps.signers); n != maxSigners {
		t.Errorf("%d signers are remembered", n)
	}
	if k.in.stamps.signers[addr(2*maxSigners-1).Addr()].IsZero() {
		t.Error("the latest is not among them")
	}
	if !k.hear(stamped(friend, k.next()), sender) {
		t.Error("the friend is heard no longer")
	}
}

// Of two nodes, one reads its keys again before the other.
func TestKeysChangeByReloadsWithoutAGapEitherWay(t *testing.T) {
	k := newKeyed(t, nil)
	k.d.signer = wire.NewSigner("", someKeys(t, 1), false, nil)
	peer, opener := wire.NewSigner("", someKeys(t, 1), false, nil), wire.NewOpener("", someKeys(t, 1))
	check := func(what string) {
		t.Helper()
		if !k.hear(stamped(peer, k.next()), sender) {
			t.Errorf("%s: the peer is not heard: %v", what, k.d.status(time.Now()).Net.Unheard)
		}
		if _, verdict := opener.Open(stamped(k.d.signer, k.next()), time.Now()); verdict != wire.Proven {
			t.Errorf("%s: to the peer, what is sent here is %s", what, verdict)
		}
	}
	epoch := k.d.signer.Epoch()
	check("at first")
	for _, step := range []struct {
		what    string
		keys    []int
		encrypt bool
	}{
		{"the new key is added", []int{1, 2}, false},
		{"it is put first", []int{2, 1}, false},
		{"the old is taken away", []int{2}, false},
		{"encryption is turned on", []int{2}, true},
		{"and off", []int{2}, false},
	} {
		keys := someKeys(t, step.keys...)
		k.d.Load = func() (*config.Config, error) {
			next := *k.d.live.Load()
			next.Keys, next.Encrypt = keys, step.encrypt
			return &next, nil
		}
		k.d.reload()
		check(step.what + " here")
		peer.Rekey(keys, step.encrypt)
		opener.Rekey(keys)
		check(step.what + " there")
	}
	if k.d.signer.Epoch() != epoch || k.d.signer.Last() != 11 {
		t.Errorf("the numbers went to %d", k.d.signer.Last())
	}
	if s := k.d.status(time.Now()); s.Peers[0].Lost != 0 || s.Peers[0].Starts != 1 {
		t.Errorf("%+v", s.Peers)
	}

	k.d.Load = func() (*config.Config, error) { return nil, errors.New("--net.key-file: no key") }
	k.d.reload()
	check("when the file is broken")
}

func TestWhatADaemonWithAKeySendsIsProvenAndMayBeSealed(t *testing.T) {
	for _, encrypt := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			k := newHookedKernel(session.Enc4113)
			b := startHooked(t, k, func(c *config.Config) { c.Keys, c.Encrypt = someKeys(t, 1), encrypt })
			time.Sleep(time.Minute)
			for message := range slices.Chunk(distinct(108), 36) {
				k.announced <- encode(session.Enc4113, wkp, message...)
			}
			time.Sleep(time.Minute)
			b.g.mu.Lock()
			defer b.g.mu.Unlock()
			entries, o := 0, wire.NewOpener("", someKeys(t, 1))
			for i, datagram := range b.g.out {
				dg, verdict := o.Open(datagram, time.Now())
				if verdict != wire.Proven || dg.Sealed() != encrypt || dg.Number != uint64(i+1) || len(datagram) > 1452 {
					t.Errorf("datagram %d: %s, %+v, %d bytes", i, verdict, dg.Stamp, len(datagram))
				}
				entries += len(dg.Entries) / 40
				// Where a C node's module stops.
				all, r := session.Decode(nil, datagram, wkp)
				if seen := len(all); r.BadTotal() != 0 || encrypt && seen != 0 || !encrypt && seen != len(dg.Entries)/40 {
					t.Errorf("datagram %d: a C node reads %d entries: %+v", i, seen, r)
				}
			}
			if entries != 108 {
				t.Errorf("%d entries in %d datagrams", entries, len(b.g.out))
			}
		})
	}
}
