package session

import (
	"cmp"
	"encoding/binary"
	"slices"
)

// masks are the IPv4 transport addresses of one protocol's ranges, as one level
// for each length of prefix that occurs. Prefixes of one length do not overlap,
// so a level takes no more room than its ranges did, however those of different
// lengths lie within each other, and what is looked for is looked for once a
// level: at most 33 times.
type masks []level

// level is the ranges whose prefixes are of one length.
type level struct {
	netmask uint32
	spans   []span // sorted, apart from each other
}

// span is from one port of a prefix to another, both included, as transport
// addresses: the prefix's first address, then 16 bits of port.
type span struct{ first, last uint64 }

func transport(addr uint32, port uint16) uint64 { return uint64(addr)<<16 | uint64(port) }

// newMasks passes over ranges that hold nothing: of no IPv4 prefix, or whose
// ports end before they begin.
func newMasks(ranges []Range) masks {
	var levels [33]level
	for _, r := range ranges {
		bits := r.Prefix.Bits()
		if bits < 0 || !r.Prefix.Addr().Is4() || r.MinPort > r.MaxPort {
			continue
		}
		l := &levels[bits]
		l.netmask = ^uint32(0) << (32 - bits)
		addr := r.Prefix.Addr().As4()
		network := binary.BigEndian.Uint32(addr[:]) & l.netmask
		l.spans = append(l.spans, span{transport(network, r.MinPort), transport(network, r.MaxPort)})
	}
	var m masks
	for _, l := range levels {
		if len(l.spans) > 0 {
			m = append(m, level{l.netmask, merge(l.spans)})
		}
	}
	return m
}

// merge sorts spans and makes one of those that overlap or touch.
func merge(spans []span) []span {
	slices.SortFunc(spans, func(a, b span) int { return cmp.Compare(a.first, b.first) })
	merged := spans[:1]
	for _, s := range spans[1:] {
		if end := &merged[len(merged)-1]; s.first <= end.last+1 {
			end.last = max(end.last, s.last)
		} else {
			merged = append(merged, s)
		}
	}
	return slices.Clone(merged) // which may be far fewer
}

// contain tells whether a range holds the port of the address.
func (m masks) contain(addr [4]byte, port uint16) bool {
	a := binary.BigEndian.Uint32(addr[:])
	for i := range m {
		if m[i].contains(transport(a&m[i].netmask, port)) {
			return true
		}
	}
	return false
}

// contains tells whether one of the level's spans holds t: the last that begins
// no later does, or none.
func (l *level) contains(t uint64) bool {
	i, found := slices.BinarySearchFunc(l.spans, t, func(s span, t uint64) int { return cmp.Compare(s.first, t) })
	return found || i > 0 && t <= l.spans[i-1].last
}
