package cluster

import (
	"net/netip"
	"slices"
	"time"

	"joold/internal/session"
	"joold/internal/wire"
)

// unsettled is how many of the last datagrams of a node the giver of a copy may have
// missed itself, and not been sent again, when it gave what was in them.
const unsettled = 256

// peer is one run of another node.
type peer struct {
	epoch     wire.Epoch
	number    uint32 // tells it from every peer there was
	addr      netip.AddrPort
	fresh     bool   // it has repeated this node's challenge
	known     bool   // by a hello since
	gone      bool   // it said goodbye
	lived     bool   // it took part when last looked at
	from      uint64 // the first number after that: what was sent before may be a recording
	window    wire.Window
	skipped   uint64      // the last number that was left to a copy; 0 if none was
	reopens   bool        // those before it are looked at again once the copy has come
	apart     wire.Window // for the numbers of what not all need to have
	floor     uint64      // of these: what is older comes too late
	floorNext uint64      // at the next hello
	challenge challenge   // what it wants to hear
	hello     hello       // its last
	helloAt   time.Time   // when that was
	heardAt   time.Time

	gapState
	shunTill time.Time // it gives no copy before

	differs [session.DigestBuckets]uint8     // hellos in a row in which that bucket was another
	equalAt [session.DigestBuckets]time.Time // when a bucket was last known to hold nothing that is not here
	unlike  [Parts]unlike

	counts PeerCounts
}

// PeerCounts are what was seen of a peer's datagrams.
type PeerCounts struct {
	Missing   uint64 // have not come, nor been made up for; it falls when they are
	Repaired  uint64 // have not come, and were made up for
	Late      uint64 // came after later ones
	Duplicate uint64
	TooOld    uint64
	Requests  uint64 // for lost ones, to this peer
}

// admit makes room for a run that was not heard before. One that has proven
// itself gives way to nobody.
func (n *Node) admit(e wire.Epoch, from netip.AddrPort) *peer {
	if len(n.order) >= maxPeers {
		var idle *peer
		for _, p := range n.order {
			if !p.fresh && (idle == nil || p.heardAt.Before(idle.heardAt)) {
				idle = p
			}
		}
		if idle == nil {
			return nil
		}
		n.forget(idle)
	}
	n.numbers++
	p := &peer{epoch: e, number: n.numbers, addr: from, heardAt: n.now}
	n.peers[e] = p
	n.order = append(n.order, p)
	return p
}

// forget leaves nothing of a run. Its numbers are forgotten with it, so what it
// ever said, with this node's challenge in it, must not count again.
func (n *Node) forget(p *peer) {
	delete(n.peers, p.epoch)
	n.order = slices.DeleteFunc(n.order, func(o *peer) bool { return o == p })
	n.gifts = slices.DeleteFunc(n.gifts, func(g *gift) bool { return g.to == p })
	if n.quest != nil && n.quest.from == p {
		n.endQuest("its giver has gone")
	}
	if n.cfg.Keyed && p.fresh { // of any other nothing has counted under this challenge
		n.renewChallenge()
	}
}

// trusts tells whether what p says counts: with keys when it has proven that it
// is no recording, and without unless it may have waited in the socket.
func (n *Node) trusts(p *peer) bool { return p.fresh || !n.cfg.Keyed && !n.now.Before(n.deafTill) }

// live tells whether p takes part.
func (n *Node) live(p *peer) bool {
	return p.fresh && !p.gone && !p.helloAt.IsZero() && n.now.Sub(p.helloAt) < liveFor
}

// meet takes in a hello of a run that has not proven itself. It is answered
// soon, so that this may happen.
func (n *Node) meet(p *peer, h *hello) {
	if p.challenge != h.Challenge {
		p.challenge = h.Challenge
		n.hurry()
	}
	if !slices.Contains(h.Echoes, n.challenge) {
		return
	}
	p.fresh, p.from = true, h.Last+1
	n.hurry()
}

// begin decides what is missing of a run of which number is the first that comes,
// or the next to come. A node that will be given a copy needs nothing from before;
// one that has its copy needs all of it.
func (n *Node) begin(p *peer, number uint64) {
	if number = max(number, 1); n.quest == nil && n.state.wants || number == 1 {
		p.window.Expect(number)
		p.skip(number - 1)
		return
	}
	if number > ringSpan/2 {
		p.window.Expect(number)
		p.skip(number - 1)
		if differs := p.hello.Digest.Differs(n.host.Digest()); differs.Len() > 0 {
			n.want("it has met a node that was there for long")
		}
		return
	}
	p.window.Expect(1)
	p.window.Advance(number - 1)
	p.hole(number-1, n.now)
}

// skip says that the numbers up to last are not for this node: a copy brings what
// was in them.
func (p *peer) skip(last uint64) {
	p.skipped, p.reopens = last, last > 0
	p.settle(wire.Range{First: 0, Last: last})
}

// reopen asks, after a copy, for the last of what was left to it, unless that is so
// long ago that p may know no more of it.
func (n *Node) reopen(p *peer) {
	if p.reopens && p.window.Top()-p.skipped < ringSpan/2 {
		p.window.Reopen(p.skipped - min(p.skipped-1, unsettled))
		p.hole(p.window.Top(), n.now)
	}
	p.reopens = false
}

// sent takes p's word for it that all numbers up to last have been sent.
func (n *Node) sent(p *peer, last uint64) {
	if !p.window.Begun() {
		n.begin(p, last+1)
	}
	top := p.window.Top()
	if last <= top {
		if top-last > wire.WindowSize && !n.cfg.Keyed { // somebody has claimed more in its name
			p.window.Expect(last + 1)
			n.want("somebody else has spoken for a node")
		}
		return
	}
	if last-top > wire.WindowSize { // too much to be asked for
		p.window.Expect(last + 1)
		p.skip(last)
		n.want("it was cut off from a node")
		return
	}
	p.window.Advance(last)
	p.hole(last, n.now)
}

// settle says that nothing more is to be expected of these numbers. What comes
// under them all the same is a duplicate.
func (p *peer) settle(g wire.Range) {
	if !p.window.Begun() {
		return
	}
	p.asks = 0
	top := p.window.Top()
	first, last := g.First, min(g.Last, top)
	if span := uint64(wire.WindowSize + 64); top > span {
		first = max(first, top-span)
	}
	for number := first; number <= last; number++ {
		if p.window.Note(number) == wire.Late && number > p.skipped {
			p.counts.Repaired++
		}
	}
}

// heardHello takes in a hello that counts.
func (n *Node) heardHello(p *peer, h *hello, from netip.AddrPort) {
	p.hello, p.helloAt, p.addr, p.gone = *h, n.now, from, false
	if p.challenge != h.Challenge {
		p.challenge = h.Challenge
		n.hurry()
	}
	if p.fresh && !p.known {
		p.known = true
		n.supersede(p)
	}
	n.sent(p, h.Last)
	n.compare(p)
	n.compareParts(p)
}

// supersede forgets the runs of p's node before this one.
func (n *Node) supersede(p *peer) {
	for _, o := range slices.Clone(n.order) {
		if o != p && o.hello.Name == p.hello.Name && o.addr.Addr() == p.addr.Addr() {
			n.forget(o)
		}
	}
}
