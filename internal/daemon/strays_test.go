package daemon

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"joold/internal/mcast"
	"joold/internal/nlchan"
	"joold/internal/session"
)

func TestADatagramFromWhereNoPeerIsIsCountedByReasonAndLeftUnread(t *testing.T) {
	prefixes := func(s ...string) (p []netip.Prefix) {
		for _, s := range s {
			p = append(p, netip.MustParsePrefix(s))
		}
		return p
	}
	both := prefixes("192.0.2.0/24", "2001:db8::/32", "fe80::/10")
	for _, c := range []struct {
		what      string
		sources   []netip.Prefix
		hops      int
		from      string
		arrived   int
		truncated bool
		want      stray // strays: it is let in
	}{
		{"anybody", nil, 0, "203.0.113.1", 0, false, strays},
		{"an IPv4 source", both, 0, "192.0.2.200", 1, false, strays},
		{"another IPv4 source", both, 0, "203.0.113.1", 1, false, straySender},
		{"a mapped IPv4 source", both, 0, "::ffff:192.0.2.200", 1, false, strays},
		{"another mapped IPv4 source", both, 0, "::ffff:203.0.113.1", 1, false, straySender},
		{"an IPv6 source", both, 0, "2001:db8:5::1", 1, false, strays},
		{"another IPv6 source", both, 0, "2001:db9::1", 1, false, straySender},
		{"a link-local source with its zone", both, 0, "fe80::1%eth2", 1, false, strays},
		{"a link-local source where only IPv4 is let in", prefixes("0.0.0.0/0"), 0, "fe80::1%eth2", 1, false, straySender},
		{"an IPv4 source where only IPv6 is let in", prefixes("::/0"), 0, "192.0.2.1", 1, false, straySender},
		{"from this very link", nil, 255, "192.0.2.1", 255, false, strays},
		{"from behind a router", nil, 255, "192.0.2.1", 254, false, strayHopLimit},
		{"a hop limit of the least", nil, 2, "192.0.2.1", 2, false, strays},
		{"cut off", nil, 0, "192.0.2.1", 1, true, strayOversize},
		{"cut off, and all else wrong", both, 255, "203.0.113.1", 1, true, strayOversize},
	} {
		d, l := idle(t, newModelKernel(session.Enc4113))
		cfg := testConfig()
		cfg.Sources, cfg.HopLimit = c.sources, c.hops
		d.live.Store(cfg)
		dg := mcast.Datagram{
			Payload: encode(session.Enc4113, wkp, udp(1, 1000)), From: netip.AddrPortFrom(netip.MustParseAddr(c.from), 6400),
			HopLimit: c.arrived, Truncated: c.truncated,
		}
		now := time.Now()
		newIntake(d).accept(l, &dg, now)

		admitted := c.want == strays
		if got := len(l.inbox.Take(nil, now)); (got == 1) != admitted {
			t.Errorf("%s: %d sessions for the kernel", c.what, got)
		}
		s := d.status(now)
		if (s.Net.RcvdSessions == 1) != admitted || (len(s.Peers) == 1) != admitted || s.Net.RcvdDatagrams != 1 {
			t.Errorf("%s: counted %+v, peers %+v", c.what, s.Net, s.Peers)
		}
		for why := range strays {
			if got := s.Net.Strays[why.String()]; (got == 1) != (why == c.want) || got > 1 {
				t.Errorf("%s: %d strays by %q", c.what, got, why)
			}
		}
	}
}

func TestSessionsRefusedForTheirMaskAreKeptUntilPool4HasIt(t *testing.T) {
	d, l := idle(t, newModelKernel(session.Enc4113))
	in := newIntake(d)
	outside := func(port uint16, expiration uint32) session.Session {
		s := udp(port, expiration)
		s.Src4 = [4]byte{203, 0, 113, 1}
		return s
	}
	now := time.Now()
	heard := func(ss ...session.Session) {
		in.accept(l, &mcast.Datagram{Payload: encode(session.Enc4113, wkp, ss...), From: sender}, now)
	}
	elsewhere := udp(4, 300_000)
	elsewhere.Src4 = [4]byte{198, 51, 100, 1}
	heard(outside(1, 300_000), outside(2, 5_000), elsewhere, outside(5, 4_000_000_000))
	if got := l.inbox.Take(nil, now); len(got) != 0 {
		t.Fatalf("%v would reach the kernel", got)
	}
	if n := d.status(now).Net.RefusedWaiting; n != 3 {
		t.Errorf("%d wait, want all that were refused for their mask alone", n)
	}

	l.pool4 = append(slices.Clone(l.pool4), rangeOf("203.0.113.0/24"))
	l.apply()
	later := now.Add(10 * time.Second)
	d.readmit(l, later)
	got := l.inbox.Take(nil, later)
	if !slices.Equal(ports(got), []uint16{1}) || got[0].Expiration != 290_000 {
		t.Errorf("%v reach the kernel, want the one that still lives and is in pool4", got)
	}
	if n := d.status(later).Net.RefusedWaiting; n != 1 {
		t.Errorf("%d wait, want the one whose mask is elsewhere", n)
	}
	d.readmit(l, later)
	if got := l.inbox.Take(nil, later); len(got) != 0 {
		t.Errorf("%v reach the kernel twice", got)
	}
}

func TestSessionsRefusedForTheirMaskAreKeptInBounds(t *testing.T) {
	d, l := idle(t, newModelKernel(session.Enc4113))
	in := newIntake(d)
	now := time.Now()
	all := distinct(refusedSize + 5_000)
	for i := range all {
		all[i].Src4 = [4]byte{203, 0, 113, 1}
	}
	for chunk := range slices.Chunk(all, 200) {
		in.accept(l, &mcast.Datagram{Payload: encode(session.Enc4113, wkp, chunk...), From: sender}, now)
	}
	if n := d.status(now).Net.RefusedWaiting; n > refusedSize {
		t.Errorf("%d wait, want %d at most", n, refusedSize)
	}
	l.pool4 = append(slices.Clone(l.pool4), rangeOf("203.0.113.0/24"))
	l.apply()
	d.readmit(l, now)
	got := l.inbox.Take(nil, now)
	if !slices.ContainsFunc(got, func(s session.Session) bool { return s.Key() == all[len(all)-1].Key() }) {
		t.Error("those that came first stood in the way of the last")
	}
}

func rangeOf(prefix string) nlchan.Pool4Entry {
	return nlchan.Pool4Entry{Range: session.Range{
		Proto: session.UDP, Prefix: netip.MustParsePrefix(prefix), MaxPort: 65535,
	}}
}
