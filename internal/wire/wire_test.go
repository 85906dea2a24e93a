package wire

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

const cluster = "edge"

var now = time.Unix(1_700_000_000, 0)

func keys(tb testing.TB, seeds ...byte) Keys {
	tb.Helper()
	var file []byte
	for _, s := range seeds {
		for i := range byte(keySize) {
			file = append(file, "0123456789abcdef"[(s+i)>>4&15], "0123456789abcdef"[(s+i)&15])
		}
		file = append(file, '\n')
	}
	k, err := ParseKeys(file)
	if err != nil {
		tb.Fatal(err)
	}
	return k
}

// replayable is a source of bytes for a Signer that are the same each time.
func replayable(seed byte) func([]byte) {
	r := rand.NewChaCha8([32]byte{seed})
	return func(b []byte) { r.Read(b) }
}

// entries are n entries of 40 bytes, as a module since 4.1.13 writes them.
func entries(n int) (b []byte) {
	for i := range n {
		b = append(b, 40, 0, 1, 0)
		for j := range 36 {
			b = append(b, byte(i*7+j+1))
		}
	}
	return b
}

// mode is a way to stamp.
type mode struct {
	name    string
	keys    Keys
	sealing bool
	verdict Verdict
}

func modes(tb testing.TB) []mode {
	return []mode{
		{"unsigned", Keys{}, false, Intact},
		{"signed", keys(tb, 1), false, Proven},
		{"sealed", keys(tb, 1), true, Proven},
	}
}

func TestWhatIsStampedIsOpened(t *testing.T) {
	for _, m := range modes(t) {
		s, o := NewSigner(cluster, m.keys, m.sealing, replayable(1)), NewOpener(cluster, m.keys)
		number := uint64(0)
		for _, n := range []int{0, 1, 35, 51} {
			for _, body := range [][]byte{nil, {1}, bytes.Repeat([]byte{2}, 700)} {
				for _, flags := range []Flags{0, SecondHand, Resend, SecondHand | Resend} {
					number++
					b := s.Stamp(entries(n), flags, body)
					want := len(entries(n)) + Overhead
					if body != nil {
						want += len(body) + lengthSize
					}
					if len(b) != want {
						t.Fatalf("%s: %d entries and %d bytes of body make %d bytes, want %d", m.name, n, len(body), len(b), want)
					}
					dg, verdict := o.Open(b, now)
					if verdict != m.verdict || !bytes.Equal(dg.Entries, entries(n)) || !bytes.Equal(dg.Body, body) {
						t.Fatalf("%s: %s, %d bytes of entries, %d of body", m.name, verdict, len(dg.Entries), len(dg.Body))
					}
					if dg.Flags&chosen != flags || dg.Number != number || dg.Epoch != s.Epoch() || dg.Sealed() != m.sealing {
						t.Fatalf("%s: %+v", m.name, dg.Stamp)
					}
				}
			}
		}
		if s.Last() != number {
			t.Errorf("%s: the last number is %d, want %d", m.name, s.Last(), number)
		}
	}
}

func TestThirtyFiveEntriesFillAPacketOfIPv6(t *testing.T) {
	for _, m := range modes(t) {
		s := NewSigner(cluster, m.keys, m.sealing, nil)
		if b := s.Stamp(entries(35), 0, nil); len(b)+40+8 != 1500 {
			t.Errorf("%s: a packet of %d bytes", m.name, len(b)+40+8)
		}
	}
}

// To a C node's module a datagram of ours is its entries; a sealed one, and one
// that only controls, is empty.
func TestACNodeStopsReadingWhereTheEntriesEnd(t *testing.T) {
	for _, m := range modes(t) {
		s := NewSigner(cluster, m.keys, m.sealing, nil)
		for _, n := range []int{0, 1, 35} {
			want := n * 40
			if m.sealing {
				want = 0
			}
			b := s.Stamp(entries(n), 0, []byte("control"))
			if end := entriesEnd(b); end != want || binary.NativeEndian.Uint32(b[end:]) != 0 {
				t.Errorf("%s: of %d entries it reads %d bytes, want %d", m.name, n, end, want)
			}
		}
	}
}

func TestNoBitOfADatagramCanBeChanged(t *testing.T) {
	for _, m := range modes(t) {
		s, o := NewSigner(cluster, m.keys, m.sealing, nil), NewOpener(cluster, m.keys)
		b := s.Stamp(entries(2), SecondHand, []byte("body"))
		for bit := range len(b) * 8 {
			b[bit/8] ^= 1 << (bit % 8)
			o.credit = derivationBurst
			if _, verdict := o.Open(b, now); verdict == m.verdict {
				t.Errorf("%s: byte %d, bit %d: %s", m.name, bit/8, bit%8, verdict)
			}
			b[bit/8] ^= 1 << (bit % 8)
		}
		if _, verdict := o.Open(b, now); verdict != m.verdict {
			t.Errorf("%s: unchanged: %s", m.name, verdict)
		}
		for cut := range len(b) {
			if _, verdict := o.Open(b[:cut], now); verdict == m.verdict {
				t.Errorf("%s: its first %d bytes: %s", m.name, cut, verdict)
			}
		}
		if _, verdict := o.Open(append(slices.Clone(b), 0), now); verdict == m.verdict {
			t.Errorf("%s: a byte longer: %s", m.name, verdict)
		}
	}
}

func TestEntriesCannotBeSplicedFromOneDatagramToAnother(t *testing.T) {
	for _, m := range modes(t) {
		s, o := NewSigner(cluster, m.keys, m.sealing, nil), NewOpener(cluster, m.keys)
		a, b := s.Stamp(entries(3), 0, nil), s.Stamp(append(entries(2), entries(1)...), 0, nil)
		at := len(a) - trailerSize
		if _, verdict := o.Open(append(a[:at:at], b[at:]...), now); verdict == m.verdict {
			t.Errorf("%s: %s", m.name, verdict)
		}
	}
}

func TestKindsAreToldApart(t *testing.T) {
	stamped := NewSigner(cluster, Keys{}, false, nil).Stamp(entries(2), 0, nil)
	change := func(at int, to byte) []byte {
		b := slices.Clone(stamped)
		b[len(b)-trailerSize+at] = to
		return b
	}
	swapped := entries(3)
	for i := range 3 {
		copy(swapped[i*40:], []byte{0, 40, 0, 1})
	}
	nested := append([]byte{140, 0, 1, 128}, make([]byte, 136)...)
	zero := make([]byte, 4)
	for name, c := range map[string]struct {
		b       []byte
		kind    Kind
		entries int
	}{
		"nothing":                             {nil, Plain, 0},
		"entries":                             {entries(36), Plain, 1440},
		"entries of the other byte order":     {swapped, Plain, 120},
		"nested entries":                      {append(nested, nested...), Plain, 280},
		"a stamp":                             {stamped, Stamped, 80},
		"a stamp alone":                       {stamped[80:], Stamped, 0},
		"a later version":                     {change(atVersion, Version+1), Newer, 80},
		"a flag that is not known":            {change(atFlags, 1<<7), Newer, 80},
		"another magic":                       {change(atMagic, 'x'), Torn, 80},
		"a body that would be longer":         {change(atFlags, byte(hasBody)), Torn, 80},
		"a seal behind entries":               {change(atFlags, byte(sealed)), Torn, 80},
		"a stamp cut short":                   {stamped[:len(stamped)-1], Torn, 80},
		"a terminator alone":                  {append(entries(1), zero...), Torn, 40},
		"garbage behind entries":              {append(entries(1), 1, 2, 3), Torn, 40},
		"garbage behind a terminator":         {append(append(entries(1), zero...), entries(1)...), Torn, 40},
		"garbage":                             {[]byte("jd, said the fox, and ran on its way"), Torn, 0},
		"a stamp without terminator":          {append(entries(1), stamped[84:]...), Torn, 40},
		"entries that hold a version's magic": {withMagic(Version + 1), Plain, 80},
		"entries that hold ours":              {withMagic(Version), Plain, 80},
	} {
		dg, kind := Parse(c.b)
		if kind != c.kind || len(dg.Entries) != c.entries {
			t.Errorf("%s: %s with %d bytes of entries, want %s with %d", name, kind, len(dg.Entries), c.kind, c.entries)
		}
	}
}

// withMagic is a C node's datagram with magic and version where a stamp has them.
func withMagic(version byte) []byte {
	b := entries(2)
	copy(b[len(b)-trailerSize:], []byte{'j', 'd', version, 0})
	return b
}

func TestAnotherClustersDatagramsAreRefused(t *testing.T) {
	for _, m := range modes(t) {
		b := NewSigner(cluster, m.keys, m.sealing, nil).Stamp(entries(2), 0, nil)
		for _, other := range []string{"", "core"} {
			if _, verdict := NewOpener(other, m.keys).Open(b, now); verdict != OtherCluster {
				t.Errorf("%s: in cluster %q: %s", m.name, other, verdict)
			}
		}
		// Were the short forms equal, the tag would still tell.
		o := NewOpener("core", m.keys)
		o.short = ClusterOf(cluster)
		want := Forged
		if !m.keys.Signing() {
			want = Damaged
		}
		if _, verdict := o.Open(b, now); verdict != want {
			t.Errorf("%s: in a cluster with the same short form: %s, want %s", m.name, verdict, want)
		}
	}
}

func TestNothingIsAllocatedToStampAndToOpen(t *testing.T) {
	for _, m := range modes(t) {
		s, o := NewSigner(cluster, m.keys, m.sealing, nil), NewOpener(cluster, m.keys)
		buf, body := append(make([]byte, 0, 2048), entries(35)...), []byte("body")
		for _, body := range [][]byte{nil, body} {
			if n := testing.AllocsPerRun(200, func() {
				if _, verdict := o.Open(s.Stamp(buf[:1400], 0, body), now); verdict != m.verdict {
					t.Fatal(verdict)
				}
			}); n != 0 {
				t.Errorf("%s: %v allocations", m.name, n)
			}
			copy(buf, entries(35))
		}
	}
	plain := entries(36)
	if n := testing.AllocsPerRun(200, func() { Parse(plain) }); n != 0 {
		t.Errorf("to parse a C node's: %v allocations", n)
	}
}

func FuzzParseIsTotal(f *testing.F) {
	for _, m := range modes(f) {
		s := NewSigner(cluster, m.keys, m.sealing, replayable(1))
		f.Add(s.Stamp(entries(2), 0, nil))
		f.Add(s.Stamp(entries(1), Resend, []byte("body")))
		f.Add(s.Stamp(nil, 0, []byte("control")))
	}
	f.Add(entries(3))
	f.Add(withMagic(2))
	openers := []*Opener{NewOpener(cluster, Keys{}), NewOpener(cluster, keys(f, 1, 2))}
	f.Fuzz(func(t *testing.T, b []byte) {
		before := slices.Clone(b)
		dg, kind := Parse(b)
		switch {
		case kind == Plain && len(dg.Entries) != len(b):
			t.Errorf("of a plain datagram of %d bytes %d are entries", len(b), len(dg.Entries))
		case kind == Stamped && len(dg.Entries)+len(dg.Body)+Overhead > len(b):
			t.Errorf("%d and %d bytes out of %d", len(dg.Entries), len(dg.Body), len(b))
		case !bytes.HasPrefix(b, dg.Entries):
			t.Error("entries are not the beginning")
		}
		for _, o := range openers {
			o.credit = derivationBurst
			dg, verdict := o.Open(b, now)
			if dg.Body != nil && verdict != Intact && verdict != Proven && verdict != Unsigned {
				t.Errorf("a body that was not opened: %s", verdict)
			}
			if (verdict == Unstamped) != (kind == Plain) || (verdict == OtherVersion) != (kind == Newer) {
				t.Errorf("%s, but %s", kind, verdict)
			}
		}
		if !bytes.Equal(b, before) {
			t.Error("the datagram was changed")
		}
	})
}

func FuzzStampAndOpenAgree(f *testing.F) {
	f.Add([]byte("entries"), []byte("body"), uint8(1))
	f.Add([]byte{}, []byte{}, uint8(0))
	modes := modes(f)
	f.Fuzz(func(t *testing.T, entries, body []byte, flags uint8) {
		if len(body) > MaxBody {
			return
		}
		for _, m := range modes {
			s, o := NewSigner(cluster, m.keys, m.sealing, replayable(2)), NewOpener(cluster, m.keys)
			b := s.Stamp(slices.Clone(entries), Flags(flags)&chosen, body)
			dg, verdict := o.Open(b, now)
			if verdict != m.verdict || !bytes.Equal(dg.Entries, entries) || !bytes.Equal(dg.Body, body) {
				t.Errorf("%s: %s, %q and %q", m.name, verdict, dg.Entries, dg.Body)
			}
		}
	})
}
