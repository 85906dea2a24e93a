package batch

import (
	"crypto/rand"
	"encoding/binary"
	"math/bits"

	"joold/internal/session"
)

// key is a session's identity in four words: the IPv6 node's address in two,
// the IPv4 addresses, then the ports and the protocol.
type key struct{ node0, node1, addrs, ports uint64 }

func keyOf(s *session.Session) key {
	return key{
		node0: binary.LittleEndian.Uint64(s.Src6[:8]),
		node1: binary.LittleEndian.Uint64(s.Src6[8:]),
		addrs: uint64(binary.LittleEndian.Uint32(s.Src4[:])) | uint64(binary.LittleEndian.Uint32(s.Dst4[:]))<<32,
		ports: uint64(s.Src6Port) | uint64(s.Src4Port)<<16 | uint64(s.Dst4Port)<<32 | uint64(s.Proto)<<48,
	}
}

// session is the session that k identifies, without state, timer and life.
func (k *key) session() (s session.Session) {
	binary.LittleEndian.PutUint64(s.Src6[:8], k.node0)
	binary.LittleEndian.PutUint64(s.Src6[8:], k.node1)
	binary.LittleEndian.PutUint32(s.Src4[:], uint32(k.addrs))
	binary.LittleEndian.PutUint32(s.Dst4[:], uint32(k.addrs>>32))
	s.Src6Port, s.Src4Port, s.Dst4Port = uint16(k.ports), uint16(k.ports>>16), uint16(k.ports>>32)
	s.Proto = k.proto()
	return s
}

func (k *key) proto() session.Proto { return session.Proto(k.ports >> 48) }

// The two sides of k's BIB entry, each alone in its words.
const (
	nodePorts = 0xff<<48 | 0xffff     // of ports: the protocol and the node's
	maskPorts = 0xff<<48 | 0xffff<<16 // of ports: the protocol and the mask's
	maskAddr  = 0xffff_ffff           // of addrs: the mask's
)

// sameNode tells whether both are sessions of one IPv6 transport address.
func (k *key) sameNode(o *key) bool {
	return k.node0 == o.node0 && k.node1 == o.node1 && (k.ports^o.ports)&nodePorts == 0
}

// sameMask tells whether both are sessions behind one IPv4 transport address.
func (k *key) sameMask(o *key) bool {
	return (k.addrs^o.addrs)&maskAddr == 0 && (k.ports^o.ports)&maskPorts == 0
}

// secret keys a table's hashes. Entries come from strangers: who does not know
// the secret cannot make them collide, but by trying at random.
type secret [4]uint64

func newSecret() (s secret) {
	var b [32]byte
	rand.Read(b[:])
	for i := range s {
		s[i] = binary.LittleEndian.Uint64(b[8*i:])
	}
	return s
}

// mix is the product of a and b folded in half. hash/maphash would do, at four
// to eight times the cost.
func mix(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	return hi ^ lo
}

func (s *secret) hash(k *key) uint64 {
	return mix(mix(k.node0^s[0], k.node1^s[1])^s[2], mix(k.addrs^s[1], k.ports^s[3])^s[0])
}

func (s *secret) hashNode(k *key) uint64 {
	return mix(mix(k.node0^s[0], k.node1^s[1])^s[2], k.ports&nodePorts^s[3])
}

func (s *secret) hashMask(k *key) uint64 {
	return mix(mix(k.addrs&maskAddr^s[1], k.ports&maskPorts^s[3])^s[0], s[2])
}

const (
	segmentSlots = 1023 // with its head, a segment is a page of memory
	segmentFull  = segmentSlots * 7 / 8
	maxDepth     = 20 // a million segments: no table gets there

	slotBits = 24
	slotMask = 1<<slotBits - 1
)

// index finds records by hash: extendible hashing, so that growing costs one
// segment's worth of work at a time. A word holds a record's slot, never zero,
// and above it eight bits of the hash, which spare most looks at records that
// are not the one.
type index struct {
	depth    uint8
	segments []*segment // by the first depth bits of the hash
}

// segment is an open-addressed table with linear probing.
type segment struct {
	used  uint16
	depth uint8 // how many bits of the hash its members share
	words [segmentSlots]uint32
}

func newIndex() index { return index{segments: []*segment{new(segment)}} }

func (x *index) segment(h uint64) *segment { return x.segments[h>>(64-x.depth)] }

func home(h uint64) uint32 { return uint32(uint64(uint32(h)) * segmentSlots >> 32) }

// tag is what a word of hash h has above the slot.
func tag(h uint64) uint32 { return uint32(h>>32) << slotBits }

func after(at uint32) uint32 {
	if at++; at == segmentSlots {
		return 0
	}
	return at
}

// word is what stands at the home of h.
func (x *index) word(h uint64) uint32 { return x.segment(h).words[home(h)] }

// guess is the first slot whose word could be that of h, or 0. w is the word at
// the home of h.
func (x *index) guess(h uint64, w uint32) uint32 {
	for g, at := x.segment(h), home(h); w != 0 && w&^slotMask != tag(h); w = g.words[at] {
		at = after(at)
	}
	return w & slotMask
}

// put adds a slot that is not in the index. rehash is the hash of any slot in
// it. It fails only if the hash does not tell slots apart.
func (x *index) put(h uint64, slot uint32, rehash func(uint32) uint64) bool {
	g := x.segment(h)
	for g.used >= segmentFull {
		if g.depth == maxDepth {
			return false
		}
		x.split(g, h, rehash)
		g = x.segment(h)
	}
	g.put(h, slot)
	return true
}

func (g *segment) put(h uint64, slot uint32) {
	at := home(h)
	for g.words[at] != 0 {
		at = after(at)
	}
	g.words[at] = tag(h) | slot
	g.used++
}

// split divides g, where h leads, by the next bit of its members' hashes.
func (x *index) split(g *segment, h uint64, rehash func(uint32) uint64) {
	if g.depth == x.depth {
		double := make([]*segment, 2*len(x.segments))
		for i, s := range x.segments {
			double[2*i], double[2*i+1] = s, s
		}
		x.segments = double
		x.depth++
	}
	zero, one := new(segment), new(segment)
	zero.depth, one.depth = g.depth+1, g.depth+1
	for _, w := range g.words {
		if w == 0 {
			continue
		}
		slot := w & slotMask
		if h := rehash(slot); h>>(63-g.depth)&1 == 0 {
			zero.put(h, slot)
		} else {
			one.put(h, slot)
		}
	}
	span := 1 << (x.depth - g.depth) // entries that lead to g
	first := int(h>>(64-x.depth)) &^ (span - 1)
	for i := range span / 2 {
		x.segments[first+i], x.segments[first+span/2+i] = zero, one
	}
}

// seek is where slot stands; ok is false where it does not.
func (x *index) seek(h uint64, slot uint32) (g *segment, at uint32, ok bool) {
	g = x.segment(h)
	for at = home(h); g.words[at] != 0; at = after(at) {
		if g.words[at]&slotMask == slot {
			return g, at, true
		}
	}
	return g, at, false
}

// replace makes another slot of the same hash stand for slot, if that is there.
func (x *index) replace(h uint64, slot, by uint32) {
	if g, at, ok := x.seek(h, slot); ok {
		g.words[at] = tag(h) | by
	}
}

// remove takes slot out, if it is there, and closes the gap.
func (x *index) remove(h uint64, slot uint32, rehash func(uint32) uint64) {
	g, gap, ok := x.seek(h, slot)
	if !ok {
		return
	}
	g.used--
	for at := after(gap); g.words[at] != 0; at = after(at) {
		// What stands at its home, or between the gap and it, stays.
		if from := home(rehash(g.words[at] & slotMask)); distance(from, at) >= distance(gap, at) {
			g.words[gap] = g.words[at]
			gap = at
		}
	}
	g.words[gap] = 0
}

// distance is how many steps lead from one place to a later one.
func distance(from, to uint32) uint32 {
	if to < from {
		to += segmentSlots
	}
	return to - from
}
