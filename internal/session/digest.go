package session

import (
	"encoding/binary"
	"math/bits"
)

// DigestBuckets is into how many parts a Digest divides sessions.
const DigestBuckets = 128

// Digest is a set of sessions in short: two nodes that have the same sessions in
// the same states have the same Digest, and where they have not, it tells which
// parts differ. How old the sessions are is no part of it. Whoever owns the set
// keeps it up to date: a session whose state or timer changes is removed as it was
// and added as it is.
type Digest struct {
	Sessions uint32
	Buckets  [DigestBuckets]uint32
}

// Buckets is a choice of a Digest's parts.
type Buckets [DigestBuckets / 64]uint64

// AllBuckets is all of them.
var AllBuckets = Buckets{^uint64(0), ^uint64(0)}

// Has tells whether bucket i, under DigestBuckets, is chosen.
func (b *Buckets) Has(i int) bool { return b[i/64]>>(i%64)&1 == 1 }

// Add chooses bucket i, under DigestBuckets.
func (b *Buckets) Add(i int) { b[i/64] |= 1 << (i % 64) }

// Len is how many are chosen.
func (b *Buckets) Len() int { return bits.OnesCount64(b[0]) + bits.OnesCount64(b[1]) }

// BucketOf is the bucket of a session with this Hash.
func BucketOf(hash uint64) int { return int(hash >> (64 - 7)) }

// Add takes in a session with this Hash.
func (d *Digest) Add(hash uint64) {
	d.Sessions++
	d.Buckets[BucketOf(hash)] ^= uint32(hash)
}

// Remove takes out a session that was added.
func (d *Digest) Remove(hash uint64) {
	d.Sessions--
	d.Buckets[BucketOf(hash)] ^= uint32(hash)
}

// Differs chooses the buckets in which d and o are not the same.
func (d *Digest) Differs(o *Digest) (b Buckets) {
	for i := range d.Buckets {
		if d.Buckets[i] != o.Buckets[i] {
			b.Add(i)
		}
	}
	return b
}

// The digits of pi, which hide nothing.
const (
	pi0 = 0x243f6a8885a308d3
	pi1 = 0x13198a2e03707344
	pi2 = 0xa4093822299f31d0
	pi3 = 0x082efa98ec4e6c89
)

// Hash is of s's identity, state and timer. It is the same on every node, so
// whoever wishes can make sessions whose hashes collide: it is for comparing
// what honest nodes have, not for finding sessions in a table.
func (s *Session) Hash() uint64 {
	node0 := binary.BigEndian.Uint64(s.Src6[:8])
	node1 := binary.BigEndian.Uint64(s.Src6[8:])
	addrs := uint64(binary.BigEndian.Uint32(s.Src4[:]))<<32 | uint64(binary.BigEndian.Uint32(s.Dst4[:]))
	rest := uint64(s.Src6Port)<<48 | uint64(s.Src4Port)<<32 | uint64(s.Dst4Port)<<16 |
		uint64(s.Proto&7)<<5 | uint64(s.State&7)<<2 | uint64(s.Timer&3)
	return fold(fold(node0^pi0, node1^pi1)^pi2, fold(addrs^pi1, rest^pi3)^pi0)
}

// fold is the product of a and b, its upper half XORed into the lower.
func fold(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	return hi ^ lo
}
