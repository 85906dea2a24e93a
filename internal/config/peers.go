package config

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// maxPeers is mcast.MaxPeers.
const maxPeers = 64

// noPeer stands for no list of peers.
const noPeer = "none"

// setPeers takes one or more addresses, with commas between them. Port 0 is for
// where none is given.
func setPeers(c *Config, s string) error {
	c.Peers = nil
	if s == noPeer {
		return nil
	}
	for one := range strings.SplitSeq(s, ",") {
		p, ok := parsePeer(one)
		if !ok {
			err := errors.New("want addresses of nodes, as in 2001:db8:ff08::5, 192.0.2.5:6464 or [fe80::5%eth2]:6464, or " + noPeer)
			if one != s {
				err = fmt.Errorf("%q: %w", shorten(one), err)
			}
			return err
		}
		c.Peers = append(c.Peers, p)
	}
	if len(c.Peers) > maxPeers {
		return fmt.Errorf("%d are too many: want at most %d", len(c.Peers), maxPeers)
	}
	return nil
}

func parsePeer(s string) (netip.AddrPort, bool) {
	a, err := netip.ParseAddr(s)
	p := netip.AddrPortFrom(a, 0)
	if err != nil {
		if p, err = netip.ParseAddrPort(s); err != nil || p.Port() == 0 {
			return netip.AddrPort{}, false
		}
	}
	a = p.Addr().Unmap()
	return netip.AddrPortFrom(a, p.Port()), !a.IsMulticast() && !a.IsUnspecified()
}

// completePeers gives those without a port that of the group, and refuses one that
// is there twice, which would be sent everything twice.
func (c *Config) completePeers() error {
	peers := make([]netip.AddrPort, 0, len(c.Peers))
	for _, p := range c.Peers {
		if p.Port() == 0 {
			p = netip.AddrPortFrom(p.Addr(), c.Port)
		}
		if slices.Contains(peers, p) {
			return fmt.Errorf("--net.peer: %v is named twice", p)
		}
		peers = append(peers, p)
	}
	if len(peers) > 0 {
		c.Peers = peers
	}
	return nil
}
