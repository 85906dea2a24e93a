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

	"joold/internal/cluster"
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
	g   *modelGroup
	log bytes.Buffer
	at  uint16 // port of the last session that was made
}

func newKeyed(t *testing.T, change func(*config.Config)) *keyed {
	t.Helper()
	d, l, _, g := between(t)
	k := &keyed{t: t, d: d, l: l, g: g}
	cfg := *d.live.Load()
	cfg.Keys = someKeys(t, 1)
	if change != nil {
		change(&cfg)
	}
	k.reload(cfg)
	d.limit = logging.NewLimiter(slog.New(slog.NewTextHandler(&k.log, nil)))
	k.in = newIntake(d)
	return k
}

// reload has the daemon go over to cfg.
func (k *keyed) reload(cfg config.Config) {
	k.d.live.Store(&cfg)
	k.d.signer.Rekey(cfg.Keys, cfg.Encrypt)
	k.d.out.rekeyed()
}

// friend is a node with the first key, which the daemon has met.
func (k *keyed) friend(sealing bool) *partner {
	p := newPartner(k.t, someKeys(k.t, 1), sealing)
	p.meet(k.d, k.l, k.in, k.g)
	return p
}

// numbered is how many well stamped datagrams the cluster found to be that.
func (k *keyed) numbered(v cluster.Verdict) uint64 {
	return k.d.status(time.Now()).Net.Numbered[v.String()]
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
	synctest.Test(t, nobodyWithoutTheKey)
}

func nobodyWithoutTheKey(t *testing.T) {
	var friend, other *partner
	from := func(cluster string, keys wire.Keys, sealing bool) func(*keyed) []byte {
		s := wire.NewSigner(cluster, keys, sealing, nil)
		return func(k *keyed) []byte { return s.Stamp(encode(session.Enc4113, wkp, k.next()), 0, nil) }
	}
	const stamp, epochAt, epochSize = wire.Overhead - 4, 8, 12
	for _, c := range []struct {
		what  string
		bytes func(*keyed) []byte
		want  wire.Verdict
	}{
		{"a C node's", func(k *keyed) []byte { return encode(session.Enc4113, wkp, k.next()) }, wire.Unstamped},
		{"no key", from("", wire.Keys{}, false), wire.Unsigned},
		{"another key", from("", someKeys(t, 2), false), wire.OtherKey},
		{"another key, sealed", from("", someKeys(t, 2), true), wire.OtherKey},
		{"no key, and a claim of one", func(k *keyed) []byte {
			b := from("", wire.Keys{}, false)(k)
			b[len(b)-stamp+7] = someKeys(k.t, 1).Hints()[0]
			return b
		}, wire.Forged},
		{"another cluster with the same key", from("red", someKeys(t, 1), false), wire.OtherCluster},
		{"a changed entry", func(k *keyed) []byte {
			b := friend.data(k.next())
			b[30] ^= 1
			return b
		}, wire.Forged},
		{"a changed number", func(k *keyed) []byte {
			b := friend.data(k.next())
			b[len(b)-stamp+24] ^= 0x80 // far away
			return b
		}, wire.Forged},
		{"a truncated tag", func(k *keyed) []byte {
			b := friend.data(k.next())
			return b[:len(b)-1]
		}, wire.Trailing},
		{"a tag cut to nothing", func(k *keyed) []byte {
			b := friend.data(k.next())
			return b[:len(b)-16]
		}, wire.Trailing},
		{"spliced entries", func(k *keyed) []byte {
			a, b := friend.data(k.next()), friend.data(k.next(), k.next())
			return append(a[:len(a)-stamp:len(a)-stamp], b[len(b)-stamp:]...)
		}, wire.Forged},
		{"entries put before", func(k *keyed) []byte {
			return append(encode(session.Enc4113, wkp, k.next()), friend.data()...)
		}, wire.Forged},
		{"the stamp stripped off", func(k *keyed) []byte {
			b := friend.data(k.next())
			return b[:len(b)-wire.Overhead]
		}, wire.Unstamped},
		{"swapped epochs", func(k *keyed) []byte {
			a, b := friend.data(k.next()), other.data(k.next())
			copy(a[len(a)-stamp+epochAt:][:epochSize], b[len(b)-stamp+epochAt:])
			return a
		}, wire.Forged},
		{"another version", func(k *keyed) []byte {
			b := friend.data(k.next())
			b[len(b)-stamp+2]++
			return b
		}, wire.OtherVersion},
	} {
		k := newKeyed(t, nil)
		friend, other = k.friend(false), k.friend(false)
		for _, s := range []*partner{friend, other} {
			if !k.hear(s.data(k.next()), sender) {
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
		for _, s := range []*partner{friend, other} {
			if !k.hear(s.data(k.next()), sender) {
				t.Errorf("%s: a friend is heard no longer", c.what)
			}
		}
	}
}

func TestNothingRecordedCountsTwice(t *testing.T) {
	for _, sealing := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			k := newKeyed(t, nil)
			p := newPartner(t, someKeys(t, 1), sealing)
			p.recording = true
			p.meet(k.d, k.l, k.in, k.g)
			tape := p.recorded
			for i := range uint16(40) {
				tape = append(tape, p.data(udp(i, 300_000)))
			}
			lost := tape[len(tape)-7]
			tape = slices.Delete(tape, len(tape)-7, len(tape)-6)
			for _, b := range tape {
				k.hear(b, sender)
			}
			taken := k.numbered(cluster.Taken)
			for _, from := range []netip.AddrPort{sender, stranger} {
				for _, b := range tape {
					k.hear(b, from)
				}
			}
			if n := k.numbered(cluster.Duplicate) + k.numbered(cluster.TooOld); k.numbered(cluster.Taken) != taken || n < uint64(2*len(tape)) {
				t.Errorf("sealed %v: of %d, %d were refused and %d taken", sealing, 2*len(tape), n, k.numbered(cluster.Taken)-taken)
			}
			if !k.hear(lost, sender) || k.hear(lost, sender) {
				t.Errorf("sealed %v: what comes late must be heard, and once", sealing)
			}
			if !k.hear(p.data(udp(1000, 300_000)), sender) {
				t.Errorf("sealed %v: the sender is heard no longer", sealing)
			}

			// To one that was started anew, or has forgotten all, with the hellos and what was
			// never heard.
			k.d.out.end(time.Now())
			k.d.out.begin(k.l, false)
			taken = k.numbered(cluster.Taken)
			for _, b := range append(tape, lost, p.data(udp(1001, 300_000))) {
				if k.hear(b, sender) {
					t.Errorf("sealed %v: a recording is heard", sealing)
				}
			}
			if k.numbered(cluster.Taken) != taken || k.numbered(cluster.Unfresh) < uint64(len(tape)) {
				t.Errorf("sealed %v: %v", sealing, k.d.status(time.Now()).Net.Numbered)
			}
			p.meet(k.d, k.l, k.in, k.g)
			if !k.hear(p.data(udp(1002, 300_000)), sender) {
				t.Errorf("sealed %v: once it has shown that it speaks now, the sender is not heard", sealing)
			}
			if n := k.d.out.clusterStatus(time.Now()).Nodes; len(n) != 1 {
				t.Errorf("sealed %v: %+v", sealing, n)
			}
		})
	}
}

func TestNothingIsTakenOfWhatComesWithWordsThatAreNotUnderstood(t *testing.T) {
	for _, sealing := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			k := newKeyed(t, nil)
			p := k.friend(sealing)
			if k.hear(p.StampApart(encode(session.Enc4113, wkp, k.next()), 0, []byte("of a later version")), sender) {
				t.Error("its sessions are taken")
			}
			if k.hear(k.d.signer.StampApart(nil, 0, []byte("body")), stranger) || k.numbered(cluster.Mine) != 1 {
				t.Error("this node's own is heard")
			}
			if s := k.d.out.clusterStatus(time.Now()); s.Unread != 1 || len(s.Nodes) != 1 || s.Nodes[0].Missing != 0 || strings.Contains(k.log.String(), "takes a new name") {
				t.Errorf("sealed %v: %+v", sealing, s)
			}
			if !k.hear(p.data(k.next()), sender) {
				t.Error("the sender is heard no longer")
			}
		})
	}
}

// What was held back until nobody can tell any more whether it has come before.
func TestWhatIsBelowTheWindowIsNotHeardEvenIfItNeverCame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKeyed(t, nil)
		p := k.friend(false)
		heard, heldBack := p.data(k.next()), p.data(k.next())
		if !k.hear(heard, sender) {
			t.Fatal("the first is not heard")
		}
		for p.Last() < 3*wire.WindowSize {
			p.data()
		}
		if k.hear(p.data(k.next()), sender) || k.numbered(cluster.Far) != 1 {
			t.Fatal("what is far away is heard without the sender's word for it")
		}
		for range 5 {
			for _, b := range p.says(nil) {
				k.hear(b, sender)
			}
		}
		if !k.hear(p.data(k.next()), sender) {
			t.Fatal("what comes long after is not heard")
		}
		if k.hear(heard, sender) || k.hear(heldBack, sender) || k.numbered(cluster.TooOld) != 2 {
			t.Errorf("it is heard: %v", k.d.status(time.Now()).Net.Numbered)
		}
		if !k.hear(p.data(k.next()), sender) {
			t.Error("the sender is heard no longer")
		}
	})
}

func TestAReloadDoesNotMakeARecordingNewAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKeyed(t, nil)
		p := k.friend(false)
		b := p.data(k.next())
		if !k.hear(b, sender) {
			t.Fatal("it is not heard")
		}
		for _, keys := range []wire.Keys{someKeys(t, 2), {}, someKeys(t, 1, 2)} {
			cfg := *k.d.live.Load()
			cfg.Keys = keys
			k.reload(cfg)
			k.hear(encode(session.Enc4113, wkp, k.next()), stranger)
		}
		taken := k.numbered(cluster.Taken)
		if k.hear(b, sender); k.numbered(cluster.Taken) != taken {
			t.Errorf("it is heard again: %v", k.d.status(time.Now()).Net.Numbered)
		}
	})
}

func TestACopyOfThisMachineHasItTakeANewName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKeyed(t, nil)
		name := k.d.signer.Epoch()
		copied := wire.NewSigner("", someKeys(t, 1), false, func(b []byte) { copy(b, name[:]) })
		stamped := func(s *wire.Signer) []byte { return s.Stamp(encode(session.Enc4113, wkp, k.next()), 0, nil) }
		if k.hear(stamped(k.d.signer), stranger) || k.d.signer.Epoch() != name || k.log.Len() > 0 {
			t.Fatalf("what comes back: log %q", k.log.String())
		}
		stamped(copied)
		if k.hear(stamped(copied), stranger) {
			t.Error("the copy is heard in this node's name")
		}
		if k.d.signer.Epoch() == name || !strings.Contains(k.log.String(), "takes a new name") || k.numbered(cluster.Mine) != 2 {
			t.Errorf("%q, %v", k.log.String(), k.d.status(time.Now()).Net.Numbered)
		}
		if k.hear(stamped(copied), stranger) {
			t.Error("the copy is heard without having been met")
		}
	})
}

func TestWhoNeedNotSignIsHeardUntilItIsSeenSigning(t *testing.T) {
	synctest.Test(t, needNotSign)
}

func needNotSign(t *testing.T) {
	cNode, moved, both := netip.MustParseAddrPort("192.0.2.7:6400"), netip.MustParseAddrPort("[fe80::7%eth2]:6400"), netip.MustParseAddrPort("[fe80::8%eth2]:6400")
	k := newKeyed(t, func(c *config.Config) {
		c.Unsigned = config.NewSources([]netip.Prefix{netip.MustParsePrefix("192.0.2.7/32"), netip.MustParsePrefix("fe80::/10")})
	})
	plain := func() []byte { return encode(session.Enc4113, wkp, k.next()) }
	unsigned, signed := wire.NewSigner("", wire.Keys{}, false, nil), newPartner(t, someKeys(t, 1), false)
	stamped := func(s *wire.Signer) []byte { return s.Stamp(encode(session.Enc4113, wkp, k.next()), 0, nil) }
	signed.from = moved
	var recording []byte
	steps := []struct {
		what     string
		datagram []byte
		from     netip.AddrPort
		heard    bool
	}{
		{"a C node that is named", plain(), cNode, true},
		{"one that is not", plain(), netip.MustParseAddrPort("192.0.2.8:6400"), false},
		{"joold without a key", stamped(unsigned), both, true},
		{"a C node that will be moved", plain(), moved, true},
		{"the same, damaged", append(plain(), 0, 0, 0, 0, 7), moved, false},
		{"the same with another's key", stamped(wire.NewSigner("", someKeys(t, 2), false, nil)), moved, false},
		{"once it signs", nil, moved, true},
		{"a C node in its name", plain(), moved, false},
		{"joold without a key in its name", stamped(unsigned), moved, false},
		{"its recording in a C node's name", nil, cNode, false},
		{"that C node still", plain(), cNode, true},
		{"the one that signs still", nil, moved, true},
	}
	for i, s := range steps {
		switch {
		case s.datagram != nil:
		case recording == nil:
			signed.meet(k.d, k.l, k.in, k.g)
			recording = signed.data(k.next())
			s.datagram = recording
		case i == len(steps)-1:
			s.datagram = signed.data(k.next())
		default:
			s.datagram = recording
		}
		if got := k.hear(s.datagram, s.from); got != s.heard {
			t.Errorf("%s: heard %v, want %v", s.what, got, s.heard)
		}
	}
	s := k.d.status(time.Now())
	if s.Net.Unheard["unstamped"] != 2 || s.Net.Unheard["unsigned"] != 1 || s.Net.Numbered["duplicate"] != 1 || s.Net.Unheard["trailing"] != 1 || s.Net.Unheard["other key"] != 1 {
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
	synctest.Test(t, strangersSign)
}

func strangersSign(t *testing.T) {
	k := newKeyed(t, nil)
	friend := k.friend(false)
	addr := func(i int) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 6400)
	}
	if !k.hear(friend.data(k.next()), sender) {
		t.Fatal("the friend is not heard")
	}
	for i := range 5000 { // without the key
		forged := wire.NewSigner("", someKeys(t, 2), false, nil).Stamp(encode(session.Enc4113, wkp, k.next()), 0, nil)
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
	if !k.hear(friend.data(k.next()), sender) {
		t.Error("the friend is heard no longer")
	}
}

// Of two nodes, one reads its keys again before the other.
func TestKeysChangeByReloadsWithoutAGapEitherWay(t *testing.T) {
	synctest.Test(t, keysChange)
}

func keysChange(t *testing.T) {
	k := newKeyed(t, nil)
	peer, opener := k.friend(false), wire.NewOpener("", someKeys(t, 1))
	check := func(what string) {
		t.Helper()
		if !k.hear(peer.data(k.next()), sender) {
			t.Errorf("%s: the peer is not heard: %v", what, k.d.status(time.Now()).Net.Unheard)
		}
		if _, verdict := opener.Open(k.d.signer.Stamp(nil, 0, nil), time.Now()); verdict != wire.Proven {
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
	if n := k.d.out.clusterStatus(time.Now()).Nodes; len(n) != 1 || n[0].Missing != 0 {
		t.Errorf("%+v", n)
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
