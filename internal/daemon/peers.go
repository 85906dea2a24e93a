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
	mu   sync.Mutex
	m    map[netip.Addr]*peer
	last uint32 // number that was given
}

type peer struct {
	number    uint32 // tells it from every other peer there was
	encoding  session.Encoding
	swapped   bool
	last      time.Time
	datagrams uint64
	sessions  uint64
	refused   uint64
	numbers   numbers
}

// numbers is what is known of a peer by its stamps.
type numbers struct {
	epoch                    wire.Epoch
	window                   wire.Window
	starts                   uint64
	lost                     uint64 // in windows before this one
	late, duplicates, jumped uint64
}

// note counts a stamp's number. One that is outside of the window begins another:
// nothing else yet tells where the numbers have got to.
func (n *numbers) note(st *wire.Stamp) {
	if st.Epoch != n.epoch || n.starts == 0 {
		n.epoch = st.Epoch
		n.starts++
		n.renew()
	}
	switch n.window.Note(st.Number) {
	case wire.Late:
		n.late++
	case wire.Duplicate:
		n.duplicates++
	case wire.TooOld, wire.Jump:
		n.jumped++
		n.renew()
		n.window.Note(st.Number)
	}
}

// renew forgets the window, but not what was lost in it.
func (n *numbers) renew() {
	n.lost += n.window.Missing()
	n.window = wire.Window{}
}

// heard notes a datagram from a, of which so many entries were not taken, and
// returns the sender's number.
func (p *peers) heard(a netip.Addr, r session.Report, refused int, now time.Time) uint32 {
	p.mu.Lock()
	defer p.mu.Unlock()
	q := p.of(a, now)
	q.datagrams++
	q.sessions += uint64(r.Read)
	q.refused += uint64(refused)
	if r.Read > 0 {
		q.encoding, q.swapped = r.Encoding, r.Swapped
	}
	return q.number
}

// numbered notes a stamp that came from a.
func (p *peers) numbered(a netip.Addr, st *wire.Stamp, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.of(a, now).numbers.note(st)
}

// repeated notes that what had come from a peer before has come again from a.
func (p *peers) repeated(a netip.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if q := p.m[a]; q != nil {
		q.numbers.duplicates++
	}
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
		n := &q.numbers
		order := "same"
		if q.swapped {
			order = "other"
		}
		list = append(list, control.Peer{
			Address: a.String(), Encoding: q.encoding.String(), ByteOrder: order,
			LastHeard: q.last, Ago: now.Sub(q.last).Seconds(),
			Datagrams: q.datagrams, Sessions: q.sessions, Refused: q.refused,
			Stamped: n.starts > 0, Starts: n.starts, Lost: n.lost + n.window.Missing(), Late: n.late, Duplicates: n.duplicates, Jumps: n.jumped,
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
