package session

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"
)

func pool6(tb testing.TB, s string) Pool6 {
	tb.Helper()
	p, err := NewPool6(netip.MustParsePrefix(s))
	if err != nil {
		tb.Fatal(err)
	}
	return p
}

// samples are one session of each kind.
func samples() []Session {
	tcp := Session{
		Src6:     netip.MustParseAddr("2001:db8::8").As16(),
		Src4:     [4]byte{192, 0, 2, 1},
		Dst4:     [4]byte{192, 0, 2, 8},
		Src6Port: 37878, Src4Port: 62805, Dst4Port: 1234,
		Proto: TCP, State: V4FinRcv, Timer: TimerEst, Expiration: 7_198_232,
	}
	udp := tcp
	udp.Proto, udp.State, udp.Expiration = UDP, Established, 299_028
	icmp := tcp
	icmp.Proto, icmp.State, icmp.Expiration = ICMP, Established, 57_512
	icmp.Src6Port, icmp.Src4Port, icmp.Dst4Port = 211, 15308, 15308
	syn := tcp
	syn.State, syn.Timer, syn.Expiration = V4Init, TimerSYN4, 5_999
	return []Session{tcp, udp, icmp, syn}
}

func encode(e Encoding, p Pool6, ss ...Session) (b []byte) {
	for i := range ss {
		b = e.Append(b, &ss[i], p)
	}
	return b
}

func TestEverySessionSurvivesEveryEncodingUnderEveryPool6(t *testing.T) {
	for _, prefix := range []string{
		"2001:db8::/32", "2001:db8:100::/40", "2001:db8:122::/48",
		"2001:db8:122:300::/56", "2001:db8:122:344::/64", "64:ff9b::/96",
	} {
		p := pool6(t, prefix)
		for _, e := range Encodings {
			want := samples()
			b := encode(e, p, want...)
			if len(b) != len(want)*e.EntrySize() {
				t.Errorf("%s: %d entries take %d bytes, want %d each", e, len(want), len(b), e.EntrySize())
			}
			got, r := Decode(nil, b, p)
			if !slices.Equal(got, want) {
				t.Errorf("%s under %s: got %+v, want %+v", e, prefix, got, want)
			}
			if r.Encoding != e || r.Read != len(want) || r.BadTotal() != 0 || r.End != len(b) || r.Swapped {
				t.Errorf("%s under %s: report %+v", e, prefix, r)
			}
		}
	}
}

// The addresses are those of RFC 6052, section 2.4.
func TestPool6EmbedsAsRFC6052Shows(t *testing.T) {
	a4 := [4]byte{192, 0, 2, 33}
	for prefix, want := range map[string]string{
		"2001:db8::/32":         "2001:db8:c000:221::",
		"2001:db8:100::/40":     "2001:db8:1c0:2:21::",
		"2001:db8:122::/48":     "2001:db8:122:c000:2:2100::",
		"2001:db8:122:300::/56": "2001:db8:122:3c0:0:221::",
		"2001:db8:122:344::/64": "2001:db8:122:344:c0:2:2100::",
		"2001:db8:122:344::/96": "2001:db8:122:344::192.0.2.33",
	} {
		p := pool6(t, prefix)
		a6 := p.Embed(a4)
		if got := netip.AddrFrom16(a6); got != netip.MustParseAddr(want) {
			t.Errorf("%s: got %s, want %s", prefix, got, want)
		}
	}
}

func TestPool6RefusesWhatRFC6052DoesNotAllow(t *testing.T) {
	for _, prefix := range []string{"2001:db8::/33", "2001:db8::/128", "::/0", "192.0.2.0/24", "::ffff:0:0/96"} {
		if _, err := NewPool6(netip.MustParsePrefix(prefix)); err == nil {
			t.Errorf("%s was accepted", prefix)
		}
	}
}

// The bytes are written out by hand, from the modules' sources, for one session,
// with headers in this machine's byte order.
func TestEncodingsAreThoseOfTheModules(t *testing.T) {
	header := func(length, typ uint16) []byte { return appendHeader(nil, length, typ) }
	native32 := func(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }
	native16 := func(v uint16) []byte { return append(binary.NativeEndian.AppendUint16(nil, v), 0, 0) }
	src6 := []byte{0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8}
	dst6 := []byte{0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0, 192, 0, 2, 8}
	src4, dst4 := []byte{192, 0, 2, 1}, []byte{192, 0, 2, 8}
	// expiration 7,198,232 = 0x6dd618; ports 37878 = 0x93f6, 62805 = 0xf555,
	// 1234 = 0x04d2; flags: TCP, V4_FIN_RCV, EST = 3 << 2
	want := map[Encoding][][]byte{
		Enc4113: {header(40, 1), src6, src4, dst4, {0, 0x6d, 0xd6, 0x18}, {0x93, 0xf6, 0xf5, 0x55, 0x04, 0xd2, 0, 0x0c}},
		Enc4112: {header(52, 1), src6, dst6, src4, {0, 0x6d, 0xd6, 0x18}, {0x93, 0xf6, 0x04, 0xd2, 0xf5, 0x55, 0, 0x0c}},
		Enc4111: {
			header(140, 0x8001),
			header(32, 0x8001), header(20, 1), src6, header(6, 2), native16(37878),
			header(32, 0x8002), header(20, 1), dst6, header(6, 2), native16(1234),
			header(20, 0x8003), header(8, 1), src4, header(6, 2), native16(62805),
			header(20, 0x8004), header(8, 1), dst4, header(6, 2), native16(1234),
			header(5, 5), {0, 0, 0, 0}, header(5, 6), {3, 0, 0, 0}, header(5, 7), {0, 0, 0, 0},
			header(8, 8), native32(7_198_232),
		},
	}
	for e, parts := range want {
		got := encode(e, pool6(t, "64:ff9b::/96"), samples()[0])
		if w := bytes.Join(parts, nil); !bytes.Equal(got, w) {
			t.Errorf("%s:\n got %x\nwant %x", e, got, w)
		}
	}
}

// swap turns the byte order of everything that a sender writes natively.
func swap(e Encoding, b []byte) []byte {
	b = bytes.Clone(b)
	swap16 := func(o int) { b[o], b[o+1] = b[o+1], b[o] }
	for o := 0; o < len(b); o += e.EntrySize() {
		swap16(o)
		swap16(o + 2)
		if e != Enc4111 {
			continue
		}
		for _, h := range []int{4, 8, 28, 36, 40, 60, 68, 72, 80, 88, 92, 100, 108, 116, 124, 132} {
			swap16(o + h)
			swap16(o + h + 2)
		}
		for _, port := range []int{32, 64, 84, 104} {
			swap16(o + port)
		}
		slices.Reverse(b[o+136 : o+140])
	}
	return b
}

func TestTheByteOrderOfAForeignMachineIsRecognised(t *testing.T) {
	p := pool6(t, "64:ff9b::/96")
	for _, e := range Encodings {
		got, r := Decode(nil, swap(e, encode(e, p, samples()...)), p)
		if !slices.Equal(got, samples()) || !r.Swapped {
			t.Errorf("%s: got %+v, report %+v", e, got, r)
		}
	}
}

func TestEncodingsMayBeMixedInOneDatagram(t *testing.T) {
	p := pool6(t, "2001:db8:64::/64")
	s := samples()
	b := slices.Concat(encode(Enc4112, p, s[0]), encode(Enc4111, p, s[1]), encode(Enc4113, p, s[2:]...))
	got, r := Decode(nil, b, p)
	if !slices.Equal(got, s) || r.Encoding != Enc4113 {
		t.Errorf("got %+v, report %+v", got, r)
	}
}

func TestNothingIsReadBehindAZeroHeader(t *testing.T) {
	p := pool6(t, "64:ff9b::/96")
	b := encode(Enc4113, p, samples()[0])
	end := len(b)
	b = append(b, 0, 0, 0, 0)
	b = append(b, encode(Enc4113, p, samples()[1])...)
	got, r := Decode(nil, b, p)
	if len(got) != 1 || r.End != end || r.BadTotal() != 0 {
		t.Errorf("got %d sessions, report %+v, want 1 and end %d", len(got), r, end)
	}
}

func TestABadEntryIsLeftOutAndTheOthersAreKept(t *testing.T) {
	p := pool6(t, "64:ff9b::/96")
	s := samples()
	other := pool6(t, "2001:db8:64::/96")
	withFlags := func(f uint16) []byte {
		b := encode(Enc4113, p, s[0])
		binary.BigEndian.PutUint16(b[38:], f)
		return b
	}
	nested := func(change func(b []byte)) []byte {
		b := encode(Enc4111, p, s[0])
		change(b)
		return b
	}
	lopsided := s[2]
	lopsided.Dst4Port++
	for name, c := range map[string]struct {
		bad  []byte
		want Defect
	}{
		"unknown attribute type":      {appendHeader(nil, 4, 9), BadHeader},
		"unknown length":              {append(appendHeader(nil, 44, 1), make([]byte, 40)...), BadHeader},
		"protocol 3":                  {withFlags(3 << 5), BadFields},
		"state 7":                     {withFlags(7 << 2), BadFields},
		"timer 3":                     {withFlags(3), BadFields},
		"flag beyond the known":       {withFlags(1 << 7), BadFields},
		"ICMP with two identifiers":   {encode(Enc4113, p, lopsided), BadFields},
		"dst6 under another pool6":    {encode(Enc4112, other, s[0]), BadPool6},
		"nested, another pool6":       {encode(Enc4111, other, s[0]), BadPool6},
		"nested, a field twice":       {nested(func(b []byte) { binary.NativeEndian.PutUint16(b[118:], aseProto) }), BadNested},
		"nested, a field missing":     {nested(func(b []byte) { binary.NativeEndian.PutUint16(b[118:], 99) }), BadNested},
		"nested, address of 12 bytes": {nested(func(b []byte) { binary.NativeEndian.PutUint16(b[8:], 16) }), BadNested},
		"nested, address sans port":   {nested(func(b []byte) { binary.NativeEndian.PutUint16(b[30:], 7) }), BadNested},
		"nested, inner length 3":      {nested(func(b []byte) { binary.NativeEndian.PutUint16(b[4:], 3) }), BadNested},
		"nested, inner length huge":   {nested(func(b []byte) { binary.NativeEndian.PutUint16(b[4:], 0xfff0) }), BadNested},
		"nested, u8 of two bytes":     {nested(func(b []byte) { binary.NativeEndian.PutUint16(b[108:], 6) }), BadNested},
		"nested, ports at odds":       {nested(func(b []byte) { b[64]++ }), BadFields},
	} {
		b := slices.Concat(encode(Enc4113, p, s[0]), c.bad, encode(Enc4113, p, s[1]))
		got, r := Decode(nil, b, p)
		if !slices.Equal(got, s[:2]) {
			t.Errorf("%s: got %d sessions, want the two good ones", name, len(got))
		}
		if r.Bad[c.want] != 1 || r.BadTotal() != 1 {
			t.Errorf("%s: counted %v, want one %q", name, r.Bad, c.want)
		}
	}
}

func TestATornDatagramYieldsItsWholeEntries(t *testing.T) {
	p := pool6(t, "64:ff9b::/96")
	for _, e := range Encodings {
		b := encode(e, p, samples()...)
		for n := range len(b) {
			got, r := Decode(nil, b[:n:n], p)
			if want := n / e.EntrySize(); len(got) != want {
				t.Fatalf("%s cut to %d bytes: %d sessions, want %d", e, n, len(got), want)
			}
			if torn := n%e.EntrySize() != 0; (r.BadTotal() == 1) != torn || r.BadTotal() > 1 {
				t.Fatalf("%s cut to %d bytes: counted %v", e, n, r.Bad)
			}
		}
	}
}

func TestDecodeAndAppendDoNotAllocate(t *testing.T) {
	p := pool6(t, "64:ff9b::/96")
	for _, e := range Encodings {
		b := encode(e, p, samples()...)
		dst := make([]Session, 0, 16)
		out := make([]byte, 0, 4096)
		if n := testing.AllocsPerRun(100, func() {
			ss, _ := Decode(dst[:0], b, p)
			o := out[:0]
			for i := range ss {
				o = e.Append(o, &ss[i], p)
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations", e, n)
		}
	}
}

func FuzzDecode(f *testing.F) {
	p := pool6(f, "64:ff9b::/96")
	p64 := pool6(f, "2001:db8:64::/64")
	for _, e := range Encodings {
		b := encode(e, p, samples()...)
		f.Add(b)
		f.Add(swap(e, b))
		f.Add(append(b[:len(b)-3:len(b)-3], 0, 0, 0, 0, 1, 2, 3))
		f.Add(encode(e, p64, samples()...))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, p := range []Pool6{p, p64} {
			got, r := Decode(nil, b, p)
			if r.Read != len(got) || r.End < 0 || r.End > len(b) || (r.Read > 0) != (r.Encoding != 0) {
				t.Fatalf("report %+v of %d sessions in %d bytes", r, len(got), len(b))
			}
			for _, e := range Encodings {
				again, r := Decode(nil, encode(e, p, got...), p)
				if !slices.Equal(again, got) || r.BadTotal() != 0 {
					t.Fatalf("%s: %+v became %+v", e, got, again)
				}
			}
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	p := pool6(b, "64:ff9b::/96")
	for _, e := range Encodings {
		b.Run(e.String(), func(b *testing.B) {
			const n = 36
			var ss []Session
			for range n / 4 {
				ss = append(ss, samples()...)
			}
			buf := encode(e, p, ss...)
			dst := make([]Session, 0, n)
			b.ReportAllocs()
			b.SetBytes(int64(len(buf)))
			for b.Loop() {
				dst, _ = Decode(dst[:0], buf, p)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/n, "ns/session")
		})
	}
}

func BenchmarkAppend(b *testing.B) {
	p := pool6(b, "64:ff9b::/96")
	s := samples()[0]
	for _, e := range Encodings {
		b.Run(e.String(), func(b *testing.B) {
			buf := make([]byte, 0, e.EntrySize())
			b.ReportAllocs()
			for b.Loop() {
				buf = e.Append(buf[:0], &s, p)
			}
		})
	}
}
