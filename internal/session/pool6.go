package session

import (
	"fmt"
	"net/netip"
)

// Pool6 is the prefix that an instance embeds IPv4 addresses in (RFC 6052).
// The zero value embeds nothing; make one with NewPool6.
type Pool6 struct {
	prefix [16]byte
	bits   uint8
}

// NewPool6 accepts the six prefix lengths of RFC 6052, section 2.2.
func NewPool6(p netip.Prefix) (Pool6, error) {
	if !p.Addr().Is6() || p.Addr().Is4In6() {
		return Pool6{}, fmt.Errorf("pool6 %s: not an IPv6 prefix", p)
	}
	switch p.Bits() {
	case 32, 40, 48, 56, 64, 96:
	default:
		return Pool6{}, fmt.Errorf("pool6 %s: length /%d, want /32, /40, /48, /56, /64 or /96 (RFC 6052)", p, p.Bits())
	}
	return Pool6{prefix: p.Masked().Addr().As16(), bits: uint8(p.Bits())}, nil
}

// Prefix is the prefix that p was made of.
func (p Pool6) Prefix() netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom16(p.prefix), int(p.bits))
}

func (p Pool6) String() string { return p.Prefix().String() }

// positions are the octets that hold the IPv4 address behind a prefix of each
// length: the four after it, stepping over octet 8 (RFC 6052's "u", bits 64 to 71).
func (p Pool6) positions() [4]int {
	var at [4]int
	o := int(p.bits) / 8
	for i := range at {
		if o == 8 {
			o++
		}
		at[i] = o
		o++
	}
	return at
}

// Embed is the IPv6 address that stands for a4.
func (p Pool6) Embed(a4 [4]byte) [16]byte {
	a6 := p.prefix
	for i, o := range p.positions() {
		a6[o] = a4[i]
	}
	return a6
}

// Contains tells whether a6 lies under the prefix, whatever its suffix.
func (p Pool6) Contains(a6 [16]byte) bool {
	return p.bits != 0 && p.Prefix().Contains(netip.AddrFrom16(a6))
}
