package cluster

import (
	"slices"
	"time"

	"joold/internal/wire"
)

const (
	// reorder is how long a number may be missing before its datagram counts as
	// lost: so much may the network turn around what it carries.
	reorder = 40 * time.Millisecond

	// askAgain is how long an answer may take: twice as long if there was none
	// before.
	askAgain = 150 * time.Millisecond

	// answerAgain is how long an answer may be under way before the same question
	// is a new one.
	answerAgain = 100 * time.Millisecond

	// sweepAgain and goneAgain are between two answers to all who ask for what is
	// too old.
	sweepAgain = 30 * time.Second
	goneAgain  = 200 * time.Millisecond
)

// gapState is how far the search for a peer's lost datagrams is.
type gapState struct {
	holes  bool      // some number may be missing
	since  time.Time // and the lowest of them was then
	lowest uint64    // which is that, once it was asked for
	mark   uint64    // what was the top at markAt
	markAt time.Time // so those up to mark have been missing since then
	ripe   uint64    // and those up to this long enough
	askAt  time.Time
	asks   int // without an answer
}

// chases tells whether p may be asked for something that is missing.
func (n *Node) chases(p *peer) bool {
	return p.holes && n.trusts(p) && n.now.Sub(p.heardAt) <= liveFor
}

// hole says that some number below top is missing.
func (g *gapState) hole(top uint64, now time.Time) {
	if !g.holes {
		g.holes, g.since, g.lowest, g.mark, g.markAt = true, now, 0, top, now
	}
}

// chase asks p for what was lost.
func (n *Node) chase(p *peer) {
	if !n.chases(p) {
		return
	}
	if n.now.Sub(p.markAt) >= reorder {
		if p.ripe < p.mark {
			p.ripe = p.mark
			if soon := n.now.Add(n.jitter(reorder / 2)); p.askAt.Before(soon) {
				p.askAt = soon
			}
		}
		p.mark, p.markAt = p.window.Top(), n.now
	}
	if n.now.Before(p.askAt) {
		return
	}
	gaps := p.window.AppendGaps(n.gaps[:0], p.ripe)
	if len(gaps) == 0 {
		p.holes = len(p.window.AppendGaps(n.gaps[:0:1], p.window.Top())) > 0
		p.since, p.lowest = p.markAt, 0
		return
	}
	if lowest := gaps[0].First; p.lowest != lowest {
		if p.lowest != 0 { // what has been missing since then is no longer
			p.since = p.markAt
		}
		p.lowest = lowest
	}
	if !n.control(datagramSize(14 + len(gaps)*rangeSize)) {
		return
	}
	n.say(appendRequest(n.body[:0], p.epoch, gaps))
	n.counts.Requests++
	p.counts.Requests++
	p.askAt = n.now.Add(askAgain<<min(p.asks, 1) + n.jitter(askAgain/2))
	p.asks++
}

// heardRequest has lost datagrams made up for, if they are this node's; else it
// waits with asking for the same: the answer goes to all.
func (n *Node) heardRequest(to wire.Epoch, ranges []wire.Range) {
	if p := n.peers[to]; p != nil && p.holes {
		first := p.window.AppendGaps(n.gaps[:0:1], p.ripe)
		covers := func(g wire.Range) bool { return g.First <= first[0].First && first[0].First <= g.Last }
		if later := n.now.Add(askAgain / 2); len(first) > 0 && slices.ContainsFunc(ranges, covers) && p.askAt.Before(later) {
			p.askAt = later
		}
		return
	}
	if to != n.cfg.Epoch {
		return
	}
	next := n.ring.oldest() // ranges rise, and no number is looked at twice
	for _, g := range ranges {
		if g.First < n.ring.oldest() {
			n.unknown(min(g.Last, n.ring.oldest()-1))
		}
		for next = max(next, g.First); next <= min(g.Last, n.ring.last); next++ {
			n.ring.owe(next, n.now)
		}
	}
}

// answer sends what is owed to those who have lost it: the sessions, as they are
// by now, and the numbers that this settles.
func (n *Node) answer() {
	if n.goneDue && n.now.Sub(n.goneAt) >= goneAgain && n.control(datagramSize(9)) {
		n.goneAt, n.goneDue = n.now, false
		n.say(appendGone(n.body[:0], n.ring.oldest()))
	}
	if n.sweepDue && n.now.Sub(n.sweptAt) >= sweepAgain {
		n.sweptAt, n.sweepDue, n.sweptTo = n.now, false, n.ring.last
		n.counts.Sweeps++
		n.host.Sweep()
	}
	for n.ring.owed() && n.budget.repair.take(0, n.now) {
		refs, ranges := n.refs[:0], n.gaps[:0]
		for n.ring.owed() && len(ranges) < maxRanges/2 {
			if len(ranges) > 0 && len(refs)+n.ring.owes() > n.entries(repairSize+(len(ranges)+1)*rangeSize) {
				break
			}
			number, lost, known := n.ring.pay(refs, n.now)
			if !known {
				n.unknown(number)
				if number < n.ring.oldest() {
					continue
				}
			}
			refs = lost
			if last := len(ranges) - 1; last >= 0 && ranges[last].Last == number-1 {
				ranges[last].Last = number
			} else {
				ranges = append(ranges, wire.Range{First: number, Last: number})
			}
			n.counts.Repaired++
		}
		if len(ranges) > 0 {
			n.resend(refs, ranges)
		}
	}
}

// resend sends sessions to all, and with the last of them the numbers that they
// make up for. Nobody misses any of it: who needs it asks again.
func (n *Node) resend(refs []Ref, settled []wire.Range) {
	slices.Sort(refs)
	n.refs = slices.Compact(refs)
	r := repair{asOf: n.ring.last, ranges: settled}
	own := partition(n.refs, n.host.FirstHand)
	for others := n.refs[own:]; len(others) > 0; r.with++ {
		some := others[:min(len(others), n.entries(repairSize))]
		n.resendSome(some, wire.Resend|wire.SecondHand, &repair{asOf: r.asOf})
		others = others[len(some):]
	}
	rest := n.refs[:own]
	for ; len(rest) > n.entries(repairSize+len(settled)*rangeSize); r.with++ {
		some := rest[:n.entries(repairSize)]
		n.resendSome(some, wire.Resend, &repair{asOf: r.asOf})
		rest = rest[len(some):]
	}
	n.resendSome(rest, wire.Resend, &r)
}

func (n *Node) resendSome(refs []Ref, flags wire.Flags, r *repair) {
	n.body = r.append(n.body[:0])
	n.budget.repair.spend(datagramSize(len(n.body)+len(refs)*n.cfg.Entry), n.now)
	n.host.Send(Datagram{Sessions: refs, Flags: flags, Body: n.body})
}

// unknown answers all who ask for what this node no longer knows: they need not
// ask again, since it has its whole table sent, unless that was done since.
func (n *Node) unknown(number uint64) {
	n.goneDue = n.goneDue || number < n.ring.oldest()
	n.sweepDue = n.sweepDue || number > n.sweptTo
}

// entries is how many sessions fit a datagram with so long a body.
func (n *Node) entries(body int) int {
	if body > 0 {
		body += 2 // its length
	}
	return (n.cfg.Payload - body) / n.cfg.Entry
}

// partition puts those that are so before those that are not, and tells how many
// they are.
func partition(refs []Ref, is func(Ref) bool) (n int) {
	for i, r := range refs {
		if is(r) {
			refs[n], refs[i] = r, refs[n]
			n++
		}
	}
	return n
}

const (
	// ringSpan is for how many of its last datagrams a node knows what was in them,
	// a little more than a window of numbers, and ringRefs how many sessions these
	// may have been.
	ringSpan = 1 << 13
	ringRefs = 1 << 18
)

// ring remembers which sessions were in a node's last datagrams.
type ring struct {
	last    uint64 // number
	slots   []ringSlot
	refs    []Ref
	written uint64 // references so far
	debts   []uint64
}

type ringSlot struct {
	number   uint64
	at       uint64 // its first reference is the one written then
	n        uint16
	owed     bool
	answered time.Time
}

func newRing() ring {
	return ring{slots: make([]ringSlot, ringSpan), refs: make([]Ref, ringRefs)}
}

func (r *ring) note(number uint64, refs []Ref) {
	r.last = max(r.last, number)
	r.slots[number%ringSpan] = ringSlot{number: number, at: r.written, n: uint16(len(refs))}
	for _, ref := range refs {
		r.refs[r.written%ringRefs] = ref
		r.written++
	}
}

// oldest is the lowest number of which it may still be known what it held.
func (r *ring) oldest() uint64 { return max(r.last, ringSpan) - ringSpan + 1 }

func (r *ring) owed() bool { return len(r.debts) > 0 }

// owe has number answered, unless that is about to happen or just has.
func (r *ring) owe(number uint64, now time.Time) {
	s := &r.slots[number%ringSpan]
	if s.number != number { // an attempt that came to nothing
		*s = ringSlot{number: number, at: r.written}
	}
	if s.owed || now.Sub(s.answered) < answerAgain || len(r.debts) >= ringSpan {
		return
	}
	s.owed, s.answered = true, now
	r.debts = append(r.debts, number)
}

// owes is how many sessions the oldest debt may be.
func (r *ring) owes() int { return int(r.slots[r.debts[0]%ringSpan].n) }

// pay is the debt that is the oldest, and appends to refs what the number held.
// known is false if that is no longer so.
func (r *ring) pay(refs []Ref, now time.Time) (number uint64, _ []Ref, known bool) {
	number = r.debts[0]
	r.debts = r.debts[1:]
	s := &r.slots[number%ringSpan]
	if s.number != number {
		return number, refs, false
	}
	s.owed, s.answered = false, now
	if r.written-s.at > ringRefs {
		return number, refs, false
	}
	begin := len(refs)
	for i := range uint64(s.n) {
		ref := r.refs[(s.at+i)%ringRefs]
		if ref == 0 {
			return number, refs[:begin], false
		}
		refs = append(refs, ref)
	}
	return number, refs, true
}
