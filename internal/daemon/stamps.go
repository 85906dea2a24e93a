package daemon

import (
	"net/netip"
	"time"

	"joold/internal/batch"
	"joold/internal/cluster"
	"joold/internal/config"
	"joold/internal/mcast"
	"joold/internal/session"
	"joold/internal/wire"
)

// maxSigners bounds the addresses that are remembered for having signed.
const maxSigners = 256

// stamps decides by a datagram's stamp, or for want of one, whether it is heard.
// It owns what must be remembered for that, but for the numbers, which are the
// cluster's: it lives as long as the daemon, and belongs to the goroutine that takes
// datagrams in.
type stamps struct {
	d       *Daemon
	cfg     *config.Config // whose keys the opener has
	opener  *wire.Opener
	opened  wire.Datagram
	signers map[netip.Addr]time.Time // who was seen signing, and when last
}

func newStamps(d *Daemon) *stamps {
	cfg := d.live.Load()
	return &stamps{
		d: d, cfg: cfg, opener: wire.NewOpener(d.fixed.Cluster, cfg.Keys), signers: make(map[netip.Addr]time.Time),
	}
}

// heard is what is taken of a datagram.
type heard struct {
	entries  []byte
	stamp    wire.Verdict     // what was found about it
	source   batch.Source     // if it is numbered
	timeouts session.Timeouts // the sender's, if it is numbered
	copied   bool             // part of a copy of another's table
}

// numbered tells of what was found about a stamp whether it is as is the way of this
// cluster: its number can be used.
func numbered(stamp wire.Verdict) bool { return stamp == wire.Intact || stamp == wire.Proven }

// open tells what is taken of a datagram, if anything is.
func (s *stamps) open(l *link, dg *mcast.Datagram, now time.Time) (h heard, ok bool) {
	d, from := s.d, dg.From.Addr()
	if cfg := d.live.Load(); cfg != s.cfg {
		s.cfg = cfg
		s.opener.Rekey(cfg.Keys)
	}
	var verdict wire.Verdict
	s.opened, verdict = s.opener.Open(dg.Payload, now)
	d.count.stamps[verdict].Add(1)
	if !s.hears(verdict, from, dg.Alone) {
		d.count.unheard[verdict].Add(1)
		s.sayUnheard(verdict, dg.From)
		return h, false
	}
	h.entries, h.stamp = s.opened.Entries, verdict
	switch verdict {
	case wire.Unstamped, wire.Trailing: // as much of it as Jool would read
		h.entries = dg.Payload
	case wire.Proven, wire.Intact:
		if l != nil {
			return s.meet(l, verdict, dg.From, now)
		}
	case wire.OtherVersion:
		d.limit.WarnWith("a peer's stamp is of another version of joold: its sessions are taken, its losses are not seen",
			func() []any { return []any{"from", dg.From} })
	case wire.OtherKey:
		if s.opened.Sealed() {
			d.limit.WarnWith("a peer encrypts, and there is no key here to read that: nothing of it is taken",
				func() []any { return []any{"from", dg.From} })
			break
		}
		d.limit.WarnWith("a peer signs, and there is no key here to check that: its sessions are taken, its losses are not seen",
			func() []any { return []any{"from", dg.From} })
	}
	return h, true
}

// meet asks the cluster what a datagram counts for that is stamped as it should be.
func (s *stamps) meet(l *link, verdict wire.Verdict, from netip.AddrPort, now time.Time) (h heard, ok bool) {
	d, dg := s.d, &s.opened
	r, ok := d.out.receive(l, dg, from, now)
	if !ok { // the instance has just gone
		return h, false
	}
	d.count.unmet[r.Verdict].Add(1)
	switch r.Verdict {
	case cluster.Taken:
		if verdict == wire.Proven { // and no recording
			s.signs(from.Addr(), now)
		}
		h = heard{entries: dg.Entries, stamp: verdict, copied: r.Copied, source: batch.Source{
			From: stampedSource(r.From), Order: r.Order, SecondHand: dg.Flags&wire.SecondHand != 0,
		}, timeouts: r.Timeouts}
		if r.From == 0 { // nodes say something; what else is in there is for later versions
			h.entries = nil
		}
		return h, true
	case cluster.Mine:
		if !d.signer.Used(dg.Number) && d.out.renew(now) {
			d.limit.Warn("another node sends in the name of this one, as a copy of its machine would: this one takes a new name")
		}
	}
	return h, false
}

// hears tells whether what was found about a datagram from there lets it in.
// Without a key a stamp counts, and keeps out only what is not for this node.
// C nodes speak to the group only: what comes to this node alone, as from beyond a
// router, and is not stamped, is of none of them.
func (s *stamps) hears(verdict wire.Verdict, from netip.Addr, alone bool) bool {
	switch verdict {
	case wire.Intact, wire.Proven:
		return true
	case wire.Unstamped:
		return !alone && (!s.cfg.Keys.Signing() || s.believes(from))
	case wire.Unsigned:
		return s.believes(from)
	case wire.Trailing:
		return !alone && !s.cfg.Keys.Signing()
	case wire.OtherVersion, wire.OtherKey:
		return !s.cfg.Keys.Signing()
	}
	return false
}

// believes tells whether a node need not sign: it is named, and never did.
func (s *stamps) believes(from netip.Addr) bool {
	return s.cfg.Unsigned.Contains(from) && s.signers[from].IsZero()
}

// signs notes that a node signs. Who was not heard signing the longest makes room.
func (s *stamps) signs(from netip.Addr, now time.Time) {
	if len(s.signers) >= maxSigners && s.signers[from].IsZero() {
		oldest, last := from, now
		for a, at := range s.signers {
			if at.Before(last) {
				oldest, last = a, at
			}
		}
		delete(s.signers, oldest)
	}
	s.signers[from] = now
}

func (s *stamps) sayUnheard(verdict wire.Verdict, from netip.AddrPort) {
	unsigned := verdict == wire.Unstamped || verdict == wire.Unsigned
	if unsigned && !s.signers[from.Addr()].IsZero() {
		s.d.limit.WarnWith("refused an unsigned datagram in the name of a node that signs", func() []any { return []any{"from", from} })
		return
	}
	s.d.limit.WarnWith("refused a datagram", func() []any { return []any{"from", from, "because_of", verdict} })
}
