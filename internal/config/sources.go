package config

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Sources are prefixes as NewSources leaves them: sorted, none within another.
type Sources []netip.Prefix

// NewSources makes Sources of valid prefixes that are masked, IPv4 ones as such.
// It takes their slice over.
func NewSources(prefixes []netip.Prefix) Sources {
	// A prefix comes before all that lie in it.
	slices.SortFunc(prefixes, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	apart := prefixes[:0]
	for _, p := range prefixes {
		if n := len(apart); n == 0 || !apart[n-1].Contains(p.Addr()) {
			apart = append(apart, p)
		}
	}
	return apart
}

// Contains tells whether a lies in one of s. Its zone does not matter.
func (s Sources) Contains(a netip.Addr) bool {
	a = a.WithZone("").Unmap()
	i, found := slices.BinarySearchFunc(s, a, func(p netip.Prefix, a netip.Addr) int { return p.Addr().Compare(a) })
	return found || i > 0 && s[i-1].Contains(a)
}

// anySource stands for no list of sources.
const anySource = "any"

// setSources takes one or more prefixes or addresses, with commas between them.
func setSources(c *Config, s string) error {
	c.Sources = nil
	if s == anySource {
		return nil
	}
	return setPrefixes(&c.Sources, s, anySource)
}

// setPrefixes sets a list that is not empty. word is what stands for one that is.
func setPrefixes(dst *Sources, s, word string) error {
	var prefixes []netip.Prefix
	for one := range strings.SplitSeq(s, ",") {
		p, ok := parseSource(one)
		if !ok {
			err := errors.New("want prefixes or addresses, as in 2001:db8:ff08::/96, or " + word)
			if one != s {
				err = fmt.Errorf("%q: %w", shorten(one), err)
			}
			return err
		}
		prefixes = append(prefixes, p)
	}
	*dst = NewSources(prefixes)
	return nil
}

// parseSource takes an address for the prefix that holds it alone. A sender's
// address is compared without its zone, so there is none here.
func parseSource(s string) (netip.Prefix, bool) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		a, err := netip.ParseAddr(s)
		if err != nil || a.Zone() != "" {
			return netip.Prefix{}, false
		}
		p = netip.PrefixFrom(a, a.BitLen())
	}
	if p.Addr().Is4In6() {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p.Masked(), p.IsValid()
}
