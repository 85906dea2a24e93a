package daemon

import (
	"net/netip"
	"time"

	"joold/internal/config"
	"joold/internal/mcast"
	"joold/internal/wire"
)

// maxSigners bounds the addresses that are remembered for having signed.
const maxSigners = 256

// stamps decides by a datagram's stamp, or for want of one, whether it is heard.
// It owns what must be remembered for that: it lives as long as the daemon, and
// belongs to the goroutine that takes datagrams in.
type stamps struct {
	d       *Daemon
	cfg     *config.Config // whose keys the opener has
	opener  *wire.Opener
	runs    wire.Runs
	signers map[netip.Addr]time.Time // who was seen signing, and when last
}

func newStamps(d *Daemon) *stamps {
	cfg := d.live.Load()
	return &stamps{
		d: d, cfg: cfg, opener: wire.NewOpener(d.fixed.Cluster, cfg.Keys), signers: make(map[netip.Addr]time.Time),
	}
}

// open returns a datagram's entries, if it is heard, and notes its number.
func (s *stamps) open(dg *mcast.Datagram, now time.Time) (entries []byte, ok bool) {
	d, from := s.d, dg.From.Addr()
	if cfg := d.live.Load(); cfg != s.cfg {
		s.cfg = cfg
		s.opener.Rekey(cfg.Keys)
	}
	opened, verdict := s.opener.Open(dg.Payload, now)
	if verdict == wire.Proven {
		verdict = s.fresh(&opened.Stamp)
	}
	d.count.stamps[verdict].Add(1)
	if !s.hears(verdict, from) {
		d.count.unheard[verdict].Add(1)
		if verdict == wire.Replayed {
			d.peers.repeated(from)
		}
		s.sayUnheard(verdict, dg.From)
		return nil, false
	}
	switch verdict {
	case wire.Unstamped, wire.Trailing: // as much of it as Jool would read
		return dg.Payload, true
	case wire.Proven:
		s.signs(from, now)
		s.number(from, &opened.Stamp, now)
	case wire.Intact:
		s.number(from, &opened.Stamp, now)
	case wire.OtherVersion:
		d.limit.WarnWith("a peer's stamp is of another version of joold: its sessions are taken, its losses are not seen",
			func() []any { return []any{"from", dg.From} })
	case wire.OtherKey:
		d.limit.WarnWith("a peer signs, and there is no key here to check that: its sessions are taken, its losses are not seen",
			func() []any { return []any{"from", dg.From} })
	}
	return opened.Entries, true
}

// number notes a number by which losses are seen.
func (s *stamps) number(from netip.Addr, st *wire.Stamp, now time.Time) {
	if st.Number < wire.Apart {
		s.d.peers.numbered(from, st, now)
	}
}

// fresh judges what is proven by its number. A run of which nothing was heard yet
// is fresh, be it over long since: what its recordings hold counts, but once.
func (s *stamps) fresh(st *wire.Stamp) wire.Verdict {
	if signer := s.d.signer; st.Epoch == signer.Epoch() {
		if st.Number > signer.Last() && st.Number < wire.Apart {
			signer.Renew()
			s.d.limit.Warn("another node sends in the name of this one, as a copy of its machine would: this one takes a new name")
		}
		return wire.Reflected
	}
	switch s.runs.Note(st.Epoch, st.Number) {
	case wire.Duplicate, wire.TooOld:
		return wire.Replayed
	}
	return wire.Proven
}

// hears tells whether what was found about a datagram from there lets it in.
// Without a key a stamp counts, and keeps out only what is not for this node.
func (s *stamps) hears(verdict wire.Verdict, from netip.Addr) bool {
	switch verdict {
	case wire.Intact, wire.Proven:
		return true
	case wire.Unstamped:
		return !s.cfg.Keys.Signing() || s.believes(from)
	case wire.Unsigned:
		return s.believes(from)
	case wire.Trailing, wire.OtherVersion, wire.OtherKey:
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
