package wire

import (
	"testing"
)

func BenchmarkStamp(b *testing.B) {
	for _, m := range modes(b) {
		b.Run(m.name, func(b *testing.B) {
			s := NewSigner(cluster, m.keys, m.sealing, nil)
			buf := append(make([]byte, 0, 2048), entries(35)...)
			b.ReportAllocs()
			for b.Loop() {
				s.Stamp(buf[:1400], 0, nil)
			}
		})
	}
}

func BenchmarkOpen(b *testing.B) {
	for _, m := range modes(b) {
		b.Run(m.name, func(b *testing.B) {
			o := NewOpener(cluster, m.keys)
			dg := NewSigner(cluster, m.keys, m.sealing, nil).Stamp(entries(35), 0, nil)
			b.ReportAllocs()
			for b.Loop() {
				if _, verdict := o.Open(dg, now); verdict != m.verdict {
					b.Fatal(verdict)
				}
			}
		})
	}
	b.Run("plain", func(b *testing.B) {
		o, dg := NewOpener(cluster, Keys{}), entries(36)
		for b.Loop() {
			o.Open(dg, now)
		}
	})
}

// What a datagram costs that nobody of the cluster has sent.
func BenchmarkForged(b *testing.B) {
	k := keys(b, 1)
	open := func(b *testing.B, known bool, want Verdict, change func(trailer []byte), credit float64) {
		o, s := NewOpener(cluster, k), NewSigner(cluster, k, false, nil)
		dg := s.Stamp(entries(35), 0, nil)
		if known {
			o.Open(dg, now)
		}
		dg[len(dg)-1] ^= 1
		o.credited = now
		trailer := dg[len(dg)-trailerSize:]
		b.ReportAllocs()
		for b.Loop() {
			o.credit = credit
			change(trailer)
			if _, verdict := o.Open(dg, now); verdict != want {
				b.Fatal(verdict)
			}
		}
	}
	b.Run("known epoch", func(b *testing.B) { open(b, true, Forged, func([]byte) {}, 0) })
	b.Run("unknown epoch", func(b *testing.B) {
		open(b, false, Forged, func(trailer []byte) { trailer[atEpoch]++ }, derivationBurst)
	})
	b.Run("unknown epoch, crowded", func(b *testing.B) {
		open(b, false, Crowded, func(trailer []byte) { trailer[atEpoch]++ }, 0)
	})
	b.Run("other key", func(b *testing.B) {
		open(b, true, OtherKey, func(trailer []byte) { trailer[atHint] = k.Hints()[0] ^ 0x80 | 1 }, 0)
	})
}

func BenchmarkNewOpener(b *testing.B) {
	k := keys(b, 1)
	for b.Loop() {
		NewOpener(cluster, k)
	}
}
