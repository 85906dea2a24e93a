package cluster

import (
	"math/bits"
	"net/netip"
	"slices"
	"time"

	"joold/internal/session"
	"joold/internal/wire"
)

const (
	// copyWindow is how many datagrams of a copy may be under way, as many as an
	// ack has bits for.
	copyWindow = 64

	// maxGifts is how many copies a node gives at a time.
	maxGifts = 4

	// scansAtOnce bounds how much of the table is looked at between two looks at
	// anything else, and scanned what one of them finds.
	scansAtOnce = 8
	scanned     = 1024

	// An ack follows so many datagrams, or the first after so long.
	ackEach  = 16
	ackDelay = 20 * time.Millisecond

	// What was not acked for so long, or while later ones were, is sent again; the more
	// patiently the longer acks take and the more often it was, so that a slow link is
	// not filled with the same.
	lostAfter    = 60 * time.Millisecond
	silentAfter  = 300 * time.Millisecond
	maxDoublings = 2
	brokenAfter  = 3 * time.Second // on the taker's side
	forsakeAfter = 10 * time.Second

	maxTries = 6 // at getting a copy begun

	giftSpacing = time.Second // between the beginnings of two copies for the same node

	// shunFor is how long a node is not asked that did not give; shunBusy if it
	// said that it cannot now.
	shunFor  = 2 * time.Second
	shunBusy = time.Second
)

// gift is a copy that this node gives. The table is gone through first, since the
// other's kernel takes in what is oldest first, and at great cost anything else.
type gift struct {
	to      *peer
	addr    netip.AddrPort
	id      uint32
	chosen  session.Buckets
	at      Ref     // where the scan goes on
	scanned bool    // to the end
	waiting [2]pile // of first hand and second
	scratch []session.Placed
	slots   [copyWindow]giftSlot
	through uint32 // all before has come
	next    uint32 // the first that was not sent yet
	room    uint32 // that there is at the other side
	ended   bool   // the last has been sent
	begun   time.Time
	heardAt time.Time
	trip    time.Duration // until an ack comes, smoothed as RFC 6298 has it; 0 while that is not known
	vary    time.Duration // and by how much that varies
}

// giftSlot is a datagram of a copy until it has come.
type giftSlot struct {
	refs   []Ref
	second bool // hand
	last   bool
	come   bool
	again  bool
	times  int // that it was sent
	sentAt time.Time
}

// give begins a copy, or says that it cannot be.
func (n *Node) give(p *peer, f *fetch) {
	if !p.fresh { // else anybody could have the table sent, and to anybody; it asks again
		return
	}
	for _, g := range n.gifts {
		if g.to != p {
			continue
		}
		if g.id == f.id {
			g.heardAt = n.now
			return
		}
		if !g.over() && n.now.Sub(g.begun) < giftSpacing { // to go through the table has its price
			return
		}
	}
	n.gifts = slices.DeleteFunc(n.gifts, func(g *gift) bool { return g.to == p })
	if n.state.is != Synced || len(n.gifts) >= maxGifts || !p.addr.IsValid() {
		if a := (about{p.epoch, f.id}); n.control(datagramSize(17)) {
			n.say(a.append(n.body[:0], kindDecline))
		}
		return
	}
	n.counts.Given++
	n.gifts = append(n.gifts, &gift{to: p, addr: p.addr, id: f.id, chosen: f.buckets, room: copyWindow, begun: n.now, heardAt: n.now})
}

// acked takes in how far a copy has come.
func (n *Node) acked(p *peer, a *ack) {
	for _, g := range n.gifts {
		if g.to != p || g.id != a.id || a.through > g.next {
			continue
		}
		g.heardAt, g.room = n.now, uint32(a.room)
		for ; g.through < a.through; g.through++ {
			g.came(&g.slots[g.through%copyWindow], n.now)
		}
		for i := range uint32(copyWindow) {
			s, seen := &g.slots[(a.through+i)%copyWindow], a.seen>>i&1 == 1
			switch index := a.through + i; {
			case index < g.through || index >= g.next:
			case seen:
				g.came(s, n.now)
			case a.seen>>i != 0 && n.now.Sub(s.sentAt) >= g.patience():
				s.again = true
			}
		}
	}
}

// came says that a datagram has come. Of one that was sent twice it is not known which
// was acked.
func (g *gift) came(s *giftSlot, now time.Time) {
	if s.come {
		return
	}
	if s.come = true; s.times > 1 {
		return
	}
	took := now.Sub(s.sentAt)
	if g.trip == 0 {
		g.trip, g.vary = took, took/2
		return
	}
	g.vary += ((took - g.trip).Abs() - g.vary) / 4
	g.trip += (took - g.trip) / 8
}

// patience is how long an ack may take.
func (g *gift) patience() time.Duration {
	if g.trip == 0 {
		return silentAfter
	}
	return max(lostAfter, g.trip+4*g.vary)
}

// silent tells whether a datagram should have been acked long since.
func (g *gift) silent(s *giftSlot, now time.Time) bool {
	return now.Sub(s.sentAt) >= max(silentAfter, g.patience())<<min(s.times-1, maxDoublings)
}

// over tells whether all has come.
func (g *gift) over() bool { return g.ended && g.through == g.next }

// giveOn goes on with the copies that this node gives.
func (n *Node) giveOn() {
	n.gifts = slices.DeleteFunc(n.gifts, func(g *gift) bool {
		if n.now.Sub(g.heardAt) > forsakeAfter {
			n.counts.Broken++
			return true
		}
		return g.over()
	})
	for _, g := range n.gifts {
		n.giveMore(g)
	}
}

func (n *Node) giveMore(g *gift) {
	for index := g.through; index < g.next; index++ {
		s := &g.slots[index%copyWindow]
		if !s.come && (s.again || g.silent(s, n.now)) {
			if !n.budget.copy.take(0, n.now) {
				return
			}
			n.sendPart(g, index)
		}
	}
	for range scansAtOnce {
		if g.scanned {
			break
		}
		n.scan(g)
	}
	for g.scanned && !g.ended && g.next-g.through < min(copyWindow, g.room) && n.budget.copy.take(0, n.now) {
		first, second := &g.waiting[0], &g.waiting[1]
		s := &g.slots[g.next%copyWindow]
		s.second, s.come, s.times = second.before(first), false, 0
		from := first
		if s.second {
			from = second
		}
		s.refs = s.refs[:0]
		for size := n.entries(partSize); len(s.refs) < size && len(*from) > 0; {
			one := from.pop()
			switch own := n.host.FirstHand(one.Ref()); {
			case own != s.second:
				s.refs = append(s.refs, one.Ref())
			case own: // it has changed hands since
				first.push(one)
			default:
				second.push(one)
			}
		}
		s.last = len(*first)+len(*second) == 0
		g.ended = s.last
		g.next++
		n.sendPart(g, g.next-1)
	}
}

// scan has more sessions wait to be given, by whose they are.
func (n *Node) scan(g *gift) {
	if g.scratch == nil {
		g.scratch = make([]session.Placed, 0, scanned)
	}
	g.scratch, g.at = n.host.Scan(g.scratch[:0], g.at, &g.chosen)
	for _, s := range g.scratch {
		hand := 1
		if n.host.FirstHand(s.Ref()) {
			hand = 0
		}
		g.waiting[hand].push(s)
	}
	if g.at == 0 {
		g.scanned, g.scratch = true, nil
	}
}

// sendPart sends one datagram of a copy, or sends it again: as its sessions are by
// now.
func (n *Node) sendPart(g *gift, index uint32) {
	s := &g.slots[index%copyWindow]
	s.sentAt, s.again = n.now, false
	s.times++
	flags := wire.Flags(0)
	if s.second {
		flags = wire.SecondHand
	}
	p := part{id: g.id, index: index, asOf: n.ring.last, last: s.last}
	n.body = p.append(n.body[:0])
	n.budget.copy.spend(datagramSize(partSize+len(s.refs)*n.cfg.Entry), n.now)
	n.host.Send(Datagram{To: g.addr, Sessions: s.refs, Flags: flags, Body: n.body})
}

// quest is a copy that this node takes.
type quest struct {
	from    *peer
	id      uint32
	chosen  session.Buckets
	all     bool // it is for what this node may lack, not to look into a difference
	begun   time.Time
	askAt   time.Time
	tries   int
	heardAt time.Time // zero before the first of it
	ackAt   time.Time // zero when none is due
	unacked int
	through uint32
	seen    uint64 // those from through on that have come
	end     uint32 // how many datagrams it has; 0 while that is not known
	room    uint16 // as last told
	news    int
	refused int
}

// receivePart takes in a datagram of a copy.
func (n *Node) receivePart(p *peer, dg *wire.Datagram) Reception {
	q := n.quest
	d, ok := parsePart(dg.Body)
	if !ok {
		n.counts.Unread++
		return Reception{Verdict: Unasked}
	}
	if q == nil || q.from != p || q.id != d.id {
		if n.done == (about{p.epoch, d.id}) { // the last ack was lost
			n.ack(&ack{about: n.done, through: n.doneAt, room: copyWindow})
		}
		return Reception{Verdict: Unasked}
	}
	q.heardAt = n.now
	switch ahead := uint64(d.index) - uint64(q.through); {
	case d.index < q.through, ahead < copyWindow && q.seen>>ahead&1 == 1:
		q.due(n.now)
		return Reception{Verdict: Duplicate}
	case ahead >= copyWindow, q.end != 0 && d.index >= q.end:
		return Reception{Verdict: Far}
	default:
		q.seen |= 1 << ahead
	}
	if d.last {
		q.end = d.index + 1
	}
	come := bits.TrailingZeros64(^q.seen)
	q.seen >>= come
	q.through += uint32(come)
	if q.unacked++; q.unacked >= ackEach || q.complete() {
		q.due(n.now)
	} else {
		q.due(n.now.Add(ackDelay))
	}
	return Reception{Verdict: Taken, From: p.number, Order: d.asOf, Copied: true, Timeouts: p.hello.Timeouts}
}

// Learned says of a datagram that was Copied how many sessions were news here, and how
// many entries were refused.
func (n *Node) Learned(news, refused int) {
	if n.quest != nil {
		n.quest.news += news
		n.quest.refused += refused
	}
}

func (q *quest) complete() bool { return q.end != 0 && q.through == q.end }

// due has an ack sent then at the latest.
func (q *quest) due(at time.Time) {
	if q.ackAt.IsZero() || at.Before(q.ackAt) {
		q.ackAt = at
	}
}

// takeOn goes on with the copy that this node takes, or begins one.
func (n *Node) takeOn() {
	q := n.quest
	if q == nil {
		n.seek()
		return
	}
	if !n.live(q.from) {
		n.endQuest("its giver has gone")
		return
	}
	if q.heardAt.IsZero() {
		if n.now.Before(q.askAt) {
			return
		}
		if q.tries++; q.tries > maxTries {
			n.endQuest("it was not begun")
			return
		}
		q.askAt = n.now.Add(silentAfter<<(q.tries-1) + n.jitter(silentAfter/2))
		f := fetch{about{q.from.epoch, q.id}, q.chosen}
		if n.control(datagramSize(33)) {
			n.say(f.append(n.body[:0]))
		}
		return
	}
	room := n.room()
	if q.room == 0 { // then it should be silent
		q.heardAt = n.now
	}
	if n.now.Sub(q.heardAt) > brokenAfter {
		n.endQuest("its giver fell silent")
		return
	}
	if q.room < copyWindow/2 && room > copyWindow/2 {
		q.due(n.now)
	}
	if q.ackAt.IsZero() || n.now.Before(q.ackAt) {
		return
	}
	a := ack{about{q.from.epoch, q.id}, q.through, q.seen, room}
	if !n.ack(&a) {
		return
	}
	q.unacked, q.room, q.ackAt = 0, room, time.Time{}
	if !q.complete() {
		q.due(n.now.Add(silentAfter))
		return
	}
	n.done, n.doneAt = a.about, q.end
	n.counts.Taken++
	n.quest = nil
	n.finish(q)
}

func (n *Node) ack(a *ack) bool {
	if !n.control(datagramSize(32)) {
		return false
	}
	n.say(a.append(n.body[:0]))
	return true
}

// room is for how many datagrams of a copy there is some.
func (n *Node) room() uint16 { return uint16(min(n.host.Room()/n.entries(partSize), copyWindow)) }

// seek looks for somebody who can give what this node wants.
func (n *Node) seek() {
	switch {
	case n.room() == 0: // the kernel takes nothing, or has more to take in than is good
	case !n.state.wants:
		n.investigate()
	case n.now.Sub(n.state.wantAt) >= gather:
		if p := n.giver(); p != nil { // also of buckets that are equal: a digest knows no ages
			n.ask(p, session.AllBuckets).all = true
		}
	}
}

// giver is the fullest node that is synced, by what it has said since this node
// wants a copy.
func (n *Node) giver() (best *peer) {
	for _, p := range n.order {
		if n.gives(p) && p.helloAt.After(n.state.wantAt) && (best == nil || best.hello.Digest.Sessions < p.hello.Digest.Sessions) {
			best = p
		}
	}
	return best
}

func (n *Node) gives(p *peer) bool {
	return n.live(p) && p.hello.State == Synced && !n.now.Before(p.shunTill)
}

// ask begins to take a copy of some buckets.
func (n *Node) ask(p *peer, chosen session.Buckets) *quest {
	n.quest = &quest{
		from: p, id: n.rand.Uint32(), chosen: chosen, begun: n.now, askAt: n.now.Add(n.jitter(silentAfter / 2)), room: copyWindow,
	}
	return n.quest
}

// declined ends a copy before it has begun.
func (n *Node) declined(p *peer, id uint32) {
	if q := n.quest; q != nil && q.from == p && q.id == id && q.heardAt.IsZero() {
		n.quest = nil
		p.shunTill = n.now.Add(shunBusy + n.jitter(shunBusy))
	}
}

// endQuest ends a copy half-way: another node is asked for the rest.
func (n *Node) endQuest(why string) {
	q := n.quest
	if q == nil {
		return
	}
	n.quest = nil
	n.counts.Broken++
	q.from.shunTill = n.now.Add(shunFor)
	if q.all && n.state.is != Synced {
		n.state.why = "a copy from " + q.from.hello.Name + " was broken off: " + why
	}
}

// finish says what a copy was good for.
func (n *Node) finish(q *quest) {
	for i := range q.from.equalAt {
		if q.refused == 0 && (q.all || q.chosen.Has(i)) {
			q.from.equalAt[i], q.from.differs[i] = n.now, 0
		}
	}
	if !q.all {
		n.investigated(q.news)
		return
	}
	if n.state.wantAt.Before(q.begun) {
		n.state.wants = false
		n.become(Synced, "it has all that "+q.from.hello.Name+" has")
		for _, p := range n.order {
			n.reopen(p)
		}
	}
}
