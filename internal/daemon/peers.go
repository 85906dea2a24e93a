package daemon

import (
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"joold/internal/control"
	"joold/internal/session"
	"joold/internal/wire"
)

// maxPeers bounds the senders that are remembered. A cluster has a handful; who
// makes up addresses only pushes out the one unheard the longest.
const maxPeers = 64

// keptPeer is the number for sessions of which it is no longer known who sent
// them.
const keptPeer = 1

// peers remembers who was heard.
type peers struct {
	mu      sync.Mutex
	m       map[netip.Addr]*peer
	last    uint32    // number that was given
	plainAt time.Time // when one was last heard whose datagrams have no numbers that can be used
}

type peer struct {
	number    uint32 // tells it from every other peer there was
	encoding  session.Encoding
	swapped   bool
	last      time.Time
	datagrams uint64
	sessions  uint64
	refused   uint64
	stamp     wire.Verdict // what was found about that of its last datagram
}

// heard notes a datagram from a, of which so many entries were not taken, and
// returns the sender's number. stamp is what was found about the datagram's.
func (p *peers) heard(a netip.Addr, r session.Report, refused int, stamp wire.Verdict, now time.Time) uint32 {
	p.mu.Lock()
	defer p.mu.Unlock()
	q := p.of(a, now)
	q.datagrams++
	q.sessions += uint64(r.Read)
	q.refused += uint64(refused)
	if q.stamp = stamp; !numbered(stamp) {
		p.plainAt = now
	}
	if r.Read > 0 {
		q.encoding, q.swapped = r.Encoding, r.Swapped
	}
	return q.number
}

// of is the sender a, which has just been heard.
func (p *peers) of(a netip.Addr, now time.Time) *peer {
	q := p.m[a]
	if q == nil {
		if p.m == nil {
			p.m = make(map[netip.Addr]*peer)
		}
		if len(p.m) >= maxPeers {
			p.forgetOldest()
		}
		p.last = max(keptPeer+1, p.last+1) // also when it has gone round
		q = &peer{number: p.last}
		p.m[a] = q
	}
	q.last = now
	return q
}

// plain tells whether somebody was heard lately whose datagrams have no numbers: a
// C node, as a rule, which does not find out what it lacks.
func (p *peers) plain(now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.plainAt.IsZero() && now.Sub(p.plainAt) < plainFor
}

func (p *peers) forgetOldest() {
	var oldest netip.Addr
	var last time.Time
	for a, q := range p.m {
		if last.IsZero() || q.last.Before(last) {
			oldest, last = a, q.last
		}
	}
	delete(p.m, oldest)
}

// snapshot lists the peers in the order of their addresses.
func (p *peers) snapshot(now time.Time) []control.Peer {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := make([]control.Peer, 0, len(p.m))
	for _, a := range slices.SortedFunc(maps.Keys(p.m), netip.Addr.Compare) {
		q := p.m[a]
		order := "same"
		if q.swapped {
			order = "other"
		}
		list = append(list, control.Peer{
			Address: a.String(), Encoding: q.encoding.String(), ByteOrder: order,
			LastHeard: q.last, Ago: now.Sub(q.last).Seconds(),
			Datagrams: q.datagrams, Sessions: q.sessions, Refused: q.refused,
			Stamp: q.stamp.String(), Stamped: numbered(q.stamp),
		})
	}
	return list
}

// numbers are the peers by their numbers.
func (p *peers) numbers() map[uint32]netip.Addr {
	p.mu.Lock()
	defer p.mu.Unlock()
	m := make(map[uint32]netip.Addr, len(p.m))
	for a, q := range p.m {
		m[q.number] = a
	}
	return m
}
