package session

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
)

// holds is the plain rule for what newMasks prepares.
func holds(ranges []Range, addr [4]byte, port uint16) bool {
	for _, r := range ranges {
		if r.Prefix.Contains(netip.AddrFrom4(addr)) && r.MinPort <= port && port <= r.MaxPort {
			return true
		}
	}
	return false
}

// edges asks masks and the plain rule about each corner of each range, about
// what lies just outside of it, and about the corners of all addresses.
func edges(t *testing.T, ranges []Range) {
	m := newMasks(ranges)
	ask := func(addr uint32, port uint16) {
		var a [4]byte
		binary.BigEndian.PutUint32(a[:], addr)
		if got, want := m.contain(a, port), holds(ranges, a, port); got != want {
			t.Fatalf("%v:%d: contained %v, want %v, in %v", netip.AddrFrom4(a), port, got, want, ranges)
		}
	}
	for _, r := range append(ranges, Range{Prefix: netip.MustParsePrefix("0.0.0.0/0"), MaxPort: 65535}) {
		if !r.Prefix.IsValid() || !r.Prefix.Addr().Is4() {
			continue
		}
		a := r.Prefix.Masked().Addr().As4()
		first := binary.BigEndian.Uint32(a[:])
		last := first | uint32(1<<(32-r.Prefix.Bits())-1)
		for _, addr := range []uint32{first - 1, first, first + (last-first)/2, last, last + 1} {
			for _, port := range []uint16{r.MinPort - 1, r.MinPort, r.MinPort/2 + r.MaxPort/2, r.MaxPort, r.MaxPort + 1} {
				ask(addr, port)
			}
		}
	}
}

func FuzzMasksAreThoseOfTheRanges(f *testing.F) {
	f.Add([]byte{192, 0, 2, 1, 32, 0, 80, 0, 80, 192, 0, 2, 1, 32, 0, 81, 0, 81}) // ports that touch
	f.Add([]byte{192, 0, 2, 1, 32, 0, 0, 255, 255, 192, 0, 2, 2, 32, 0, 0, 0, 9}) // and addresses
	f.Add([]byte{10, 0, 0, 0, 8, 0, 1, 0, 9, 10, 1, 0, 0, 16, 0, 5, 0, 20, 10, 1, 2, 0, 24, 0, 30, 0, 40})
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255, 32, 255, 255, 255, 255})
	f.Add([]byte{10, 1, 2, 3, 8, 0, 9, 0, 1, 10, 1, 2, 3, 40, 0, 1, 0, 9}) // ports the wrong way round, no such length
	f.Fuzz(func(t *testing.T, b []byte) {
		var ranges []Range
		for ; len(b) >= 9 && len(ranges) < 64; b = b[9:] {
			ranges = append(ranges, Range{
				Prefix:  netip.PrefixFrom(netip.AddrFrom4([4]byte(b)), int(b[4])),
				MinPort: binary.BigEndian.Uint16(b[5:]), MaxPort: binary.BigEndian.Uint16(b[7:]),
			})
		}
		edges(t, ranges)
	})
}

func TestMasksAreThoseOfTheRangesHoweverTheyOverlap(t *testing.T) {
	rnd := rand.New(rand.NewPCG(6, 4))
	for n := range 2000 {
		ranges := make([]Range, 1+n%40)
		for i := range ranges {
			// Few addresses and ports, so that they meet.
			r := Range{
				Prefix:  netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(rnd.IntN(2)), byte(rnd.IntN(8))}), 32-rnd.IntN(min(1+n%33, 33))),
				MinPort: uint16(rnd.IntN(12)), MaxPort: uint16(rnd.IntN(12)),
			}
			if n%2 == 0 { // at the upper end
				r.MinPort, r.MaxPort = 65535-r.MinPort, 65535-r.MaxPort
			}
			ranges[i] = r
		}
		edges(t, ranges)
	}
}

func TestRangesOfOtherAddressesAreNone(t *testing.T) {
	edges(t, []Range{{}, {Prefix: netip.MustParsePrefix("::/0"), MaxPort: 65535},
		{Prefix: netip.MustParsePrefix("::ffff:0:0/96"), MaxPort: 65535}})
}

// nested are n ranges in a chain of prefixes within each other, none of whose
// ports touch: the shape that would make the most pieces if it were cut up.
func nested(n int) []Range {
	ranges := make([]Range, n)
	for i := range ranges {
		port := uint16(2 * (i % 32768))
		ranges[i] = Range{TCP, netip.PrefixFrom(netip.AddrFrom4([4]byte{203, 0, 113, 7}), i%33), port, port}
	}
	return ranges
}

// apart are n ranges of one address each: a static BIB, or an operator's pool4.
func apart(n int) []Range {
	ranges := make([]Range, n)
	for i := range ranges {
		addr := [4]byte{10, byte(i >> 15), byte(i >> 7), byte(i << 1)}
		ranges[i] = Range{TCP, netip.PrefixFrom(netip.AddrFrom4(addr), 32), 1024, 65535}
	}
	return ranges
}

func TestMasksTakeNoMoreRoomThanTheirRanges(t *testing.T) {
	for what, ranges := range map[string][]Range{"nested": nested(10_000), "apart": apart(10_000)} {
		spans := 0
		for _, l := range newMasks(ranges) {
			spans += len(l.spans)
		}
		if spans > len(ranges) {
			t.Errorf("%s: %d spans of %d ranges", what, spans, len(ranges))
		}
	}
}

func TestRangesThatTouchBecomeOne(t *testing.T) {
	var ranges []Range
	for port := range uint16(1000) {
		ranges = append(ranges, Range{TCP, netip.MustParsePrefix("203.0.113.1/32"), port, port})
	}
	if m := newMasks(ranges); len(m) != 1 || len(m[0].spans) != 1 {
		t.Errorf("%d levels of %v", len(m), m)
	}
}

func BenchmarkPolicyCheck(b *testing.B) {
	for _, shape := range []struct {
		name   string
		ranges func(int) []Range
	}{{"apart", apart}, {"nested", nested}} {
		for _, n := range []int{10, 1_000, 10_000} {
			ranges := shape.ranges(n)
			p := NewPolicy(pool6(b, "64:ff9b::/96"), DefaultTimeouts, ranges)
			hit := samples()[0]
			hit.Src4, hit.Src4Port = ranges[n/2].Prefix.Addr().As4(), ranges[n/2].MaxPort
			miss := hit
			miss.Src4[0], miss.Src4Port = 198, 1
			for _, c := range []struct {
				name string
				s    Session
				want bool
			}{{"hit", hit, true}, {"miss", miss, false}} {
				b.Run(fmt.Sprintf("%s/%d/%s", shape.name, n, c.name), func(b *testing.B) {
					b.ReportAllocs()
					for b.Loop() {
						if why, ok := p.Check(&c.s); ok != c.want {
							b.Fatalf("accepted %v (%s)", ok, why)
						}
					}
				})
			}
		}
	}
}

func BenchmarkNewPolicy(b *testing.B) {
	for name, ranges := range map[string][]Range{"apart": apart(10_000), "nested": nested(10_000)} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				NewPolicy(Pool6{}, DefaultTimeouts, ranges)
			}
		})
	}
}
