package config

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
)

// somePrefixes are n of few addresses, so that many lie within others.
func somePrefixes(rnd *rand.Rand, n int) []netip.Prefix {
	all := make([]netip.Prefix, n)
	for i := range all {
		a := someAddr(rnd)
		all[i] = netip.PrefixFrom(a, a.BitLen()-rnd.IntN(1+rnd.IntN(a.BitLen()))).Masked()
	}
	return all
}

func someAddr(rnd *rand.Rand) netip.Addr {
	if rnd.IntN(2) == 0 {
		return netip.AddrFrom4([4]byte{byte(rnd.IntN(2) * 255), byte(rnd.IntN(2) * 255), byte(rnd.IntN(2)), byte(rnd.IntN(8))})
	}
	return netip.AddrFrom16([16]byte{byte(rnd.IntN(2) * 255), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, byte(rnd.IntN(2) * 255), byte(rnd.IntN(8))})
}

func TestSourcesContainWhatOneOfTheirPrefixesDoes(t *testing.T) {
	rnd := rand.New(rand.NewPCG(4, 6))
	for n := range 5000 {
		all := somePrefixes(rnd, n%20)
		sources := NewSources(slices.Clone(all))
		for range 20 {
			a := someAddr(rnd)
			want := slices.ContainsFunc(all, func(p netip.Prefix) bool { return p.Contains(a) })
			if got := sources.Contains(a); got != want {
				t.Fatalf("%s in %v: %v, want %v", a, all, got, want)
			}
		}
	}
}

func TestASourcesZoneAndFormDoNotMatter(t *testing.T) {
	sources := NewSources(prefixes("fe80::/10", "192.0.2.0/24"))
	for text, want := range map[string]bool{
		"fe80::5%eth2": true, "febf::%eth2": true, "fec0::%eth2": false, "::ffff:192.0.2.255": true, "::ffff:192.0.3.0": false,
		"192.0.2.0": true, "192.0.1.255": false, "0.0.0.0": false, "::": false, "ffff::": false,
	} {
		if got := sources.Contains(netip.MustParseAddr(text)); got != want {
			t.Errorf("%s: %v, want %v", text, got, want)
		}
	}
}

func TestOrderAndRepetitionOfSourcesMakeNoDifference(t *testing.T) {
	parse := func(sources string) *Config {
		c, err := Parse([]string{"ff08::1", "--net.source", sources})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	one, other := parse("192.0.2.0/24,fe80::/10,10.0.0.0/8"), parse("fe80::/10,10.1.0.0/16,10.0.0.0/8,10.2.0.0/16,192.0.2.0/24,fe80::/10")
	if live, _ := one.Differ(other); len(live) > 0 {
		t.Errorf("%v and %v differ", one.Sources, other.Sources)
	}
}

func BenchmarkSources(b *testing.B) {
	for _, n := range []int{10, 1_000, 10_000} {
		all := make([]netip.Prefix, n)
		for i := range all {
			all[i] = netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, byte(i >> 8), byte(i)}), 64)
		}
		hit := all[n/2].Addr().Next()
		sources := NewSources(all)
		for name, a := range map[string]netip.Addr{"hit": hit, "miss": netip.MustParseAddr("2001:db8:0:1::")} {
			b.Run(fmt.Sprintf("%d/%s", n, name), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if got := sources.Contains(a); got != (name == "hit") {
						b.Fatal(got)
					}
				}
			})
		}
	}
}
