// Package cluster owns what a node knows of the others, and what nodes do for each
// other: who is there, which of their datagrams were lost and what they held,
// copies of the table for who lacks it, and whether this node has all that there
// is. It is a state machine: time is passed in, and what is to be sent and known
// of sessions goes through a Host. It knows no socket, no file, no key and no
// clock, and of a session only a reference.
//
// docs/PROTOCOL.md describes what nodes say to each other byte by byte.
package cluster

import (
	"bytes"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"joold/internal/session"
	"joold/internal/wire"
)

// Ref is the Host's reference to a session that it remembers.
type Ref = session.Ref

// Host is what a Node needs of the daemon around it. A Node calls it from within
// its own methods, so under whatever lock those are called.
type Host interface {
	// Send stamps a datagram, as one that not all need to have, and sends it.
	Send(d Datagram)

	// FirstHand tells whether the last word on a session came from this node's own
	// kernel.
	FirstHand(r Ref) bool

	// Scan goes through some of the sessions that follow the reference at, in an
	// order of the Host's own, and appends to found those of the chosen buckets, as
	// long as it has room. It returns where to go on; 0 after the last, as before
	// the first. What is remembered from the first call to the last is come by.
	Scan(found []session.Placed, at Ref, chosen *session.Buckets) (_ []session.Placed, next Ref)

	// Digest is that of all sessions which are remembered.
	Digest() *session.Digest

	// Room is how many more sessions may wait for this node's kernel.
	Room() int

	// Sweep has all sessions of this node's own kernel sent once more, to all.
	Sweep()
}

// Datagram is one to be sent. Of its sessions those go that still live, as they
// are by then.
type Datagram struct {
	To       netip.AddrPort // the zero AddrPort: all
	Sessions []Ref
	Flags    wire.Flags
	Body     []byte
}

// Config is what a Node is told.
type Config struct {
	Name     string     // for people, in ASCII; its first 63 bytes are used
	Version  string     // the daemon's, likewise; its first 31 bytes
	Epoch    wire.Epoch // of the stamps to come
	Keyed    bool       // whether only proven datagrams come: then replay is refused, too
	Kept     bool       // whether the kernel's table is one that an earlier daemon kept in sync
	Module   [4]uint8   // version of the kernel module
	Encoding session.Encoding
	Timeouts session.Timeouts // the instance's
	Payload  int              // bytes of a datagram for entries and body, at least 1,000
	Entry    int              // bytes of an entry
	Parts    Configuration    // what should be equal on all nodes
	Random   func([]byte)     // fills its argument with random bytes
	Met      uint32           // how many runs of others were told apart before, by Nodes for the same Host
}

// State is whether a node has what there is to have.
type State uint8

// The states.
const (
	Syncing State = iota // it lacks what others have, or may
	Synced
	GaveUp // there is nobody to learn from
	states // count
)

func (s State) String() string { return [states]string{"syncing", "synced", "gave up"}[s] }

const (
	maxPeers = 64

	helloInterval = time.Second
	helloSpacing  = 100 * time.Millisecond // between two at the least
	liveFor       = 5 * time.Second        // after a hello
	forgetAfter   = time.Minute

	// A pulse tells that the last datagrams were the last: so long after them, then
	// twice as long, until the hello that comes anyway.
	firstPulse = 100 * time.Millisecond

	// stopped is how long nobody calls a Node whose process runs.
	stopped = 2 * time.Second

	// deafFor is how long after a stop what comes may have waited in the socket.
	deafFor = time.Second

	busy = 10 * time.Millisecond // between ticks
)

// Bytes per second that a node sends of each kind, and at once.
var (
	controlRate = rate{32 << 10, 16 << 10}
	repairRate  = rate{2 << 20, 128 << 10}
	copyRate    = rate{4 << 20, 128 << 10}
	detailRate  = rate{8 << 10, 8 << 10}
)

// Node is this node's part in a cluster. It is not safe for concurrent use. Times
// must not go backwards.
type Node struct {
	cfg  Config
	host Host
	rand *rand.Rand

	now       time.Time
	active    bool
	peers     map[wire.Epoch]*peer
	order     []*peer // the same, for going through them
	numbers   uint32  // peers so far
	challenge challenge
	deafTill  time.Time

	helloAt  time.Time // when the next is due
	helloed  time.Time // when the last was
	pulseAt  time.Time // when the next is due, if unpulsed
	pulses   int
	unpulsed bool // others may not know of the last number

	ring     ring
	sweepDue bool
	sweptAt  time.Time
	sweptTo  uint64 // the last number before it
	goneDue  bool
	goneAt   time.Time

	state     state
	gifts     []*gift
	quest     *quest
	done      about         // the last copy that was taken
	doneAt    uint32        // how many datagrams it had
	quietTill time.Time     // differences are not looked into before
	backoff   time.Duration // and then not for so long
	doubtTill time.Time     // an active node looks into those with others before

	parts  [Parts]uint32
	budget struct{ control, repair, copy, detail allowance }
	told   struct { // the last lines that were told of this node's configuration
		part Part
		from uint16
		at   time.Time
	}
	body   []byte
	refs   []Ref
	gaps   [maxRanges]wire.Range
	counts Counts
}

// Counts are what a Node has seen and done.
type Counts struct {
	Requests uint64 // for lost datagrams, sent
	Repaired uint64 // numbers that were asked for here and answered
	Sweeps   uint64 // asked of the Host
	Given    uint64 // copies, begun
	Taken    uint64 // copies, complete
	Broken   uint64 // copies that ended half-way
	Crowded  uint64 // datagrams of nodes for which there is no room
	Unread   uint64 // bodies that cannot be read, of a later version perhaps
	Unfresh  uint64 // datagrams of nodes that have not proven to speak now
	Stops    uint64 // of this process, or its machine
}

// New makes a Node that says its first hello at once.
func New(c Config, h Host, now time.Time) *Node {
	var seed [32]byte
	c.Random(seed[:])
	n := &Node{
		host: h, rand: rand.New(rand.NewChaCha8(seed)), now: now,
		peers: make(map[wire.Epoch]*peer), numbers: c.Met, ring: newRing(),
	}
	n.budget.control = controlRate.full(now)
	n.budget.repair = repairRate.full(now)
	n.budget.copy = copyRate.full(now)
	n.budget.detail = detailRate.full(now)
	n.helloAt = now
	n.state.since, n.state.lived = now, now
	n.Configure(c)
	n.renewChallenge()
	n.want("it has just started")
	if c.Kept { // it lacks no more than what was said meanwhile
		n.become(Synced, "the kernel's table was kept while the daemon was away")
	}
	return n
}

// Configure changes what the node was told, but for Epoch, Keyed and Kept, which
// are for the start.
func (n *Node) Configure(c Config) {
	if n.cfg.Random != nil {
		c.Epoch, c.Keyed, c.Kept = n.cfg.Epoch, n.cfg.Keyed, n.cfg.Kept
	}
	c.Name, c.Version = c.Name[:min(len(c.Name), maxName)], c.Version[:min(len(c.Version), maxText)]
	c.Parts = c.Parts.sorted()
	n.cfg = c
	for p := range n.parts {
		n.parts[p] = hashLines(c.Parts[p])
	}
	for _, p := range n.order {
		p.unlike = [Parts]unlike{}
	}
	n.hurry()
}

// Lacks says that this node's kernel may lack anything, and why.
func (n *Node) Lacks(why string) {
	n.quest = nil
	n.want(why)
}

// Numbered says that a datagram to all with these sessions has got this number. The
// reference is 0 for a session that is not remembered. refs is not kept.
func (n *Node) Numbered(number uint64, refs []Ref, now time.Time) {
	n.ring.note(number, refs)
	n.pulses = 0
	n.pulseAt, n.unpulsed = now.Add(firstPulse), true
}

// Verdict is what a datagram counts for.
type Verdict uint8

// The verdicts.
const (
	Taken     Verdict = iota // its entries count
	Mine                     // it is this node's own
	Duplicate                // it has come before
	TooOld                   // it may have come before
	Far                      // its number is out of all proportion: perhaps forged
	Unfresh                  // its sender has not proven that it speaks now
	Unasked                  // it is of a copy that nobody waits for
	Crowded                  // there is no room for one more node
	Verdicts                 // count
)

func (v Verdict) String() string {
	return [Verdicts]string{"taken", "own", "duplicate", "too old", "far", "not fresh", "unasked", "crowded"}[v]
}

// Reception is a Verdict, and what the entries are worth, if they are Taken.
type Reception struct {
	Verdict Verdict
	From    uint32 // tells this run of the sender from every other
	Order   uint64 // of a sender's entries on a session, only those count that are higher than what was
	Copied  bool   // tell Learned how much was news

	// Timeouts are the sender's, by its last hello: what a session's expiration is
	// less than its timeout is how long ago it was updated.
	Timeouts session.Timeouts
}

// Receive takes in a datagram that is intact, or if there are keys, proven.
func (n *Node) Receive(dg *wire.Datagram, from netip.AddrPort, now time.Time) Reception {
	n.clock(now)
	if dg.Epoch == n.cfg.Epoch {
		return Reception{Verdict: Mine}
	}
	p := n.peers[dg.Epoch]
	if p == nil {
		if p = n.admit(dg.Epoch, from); p == nil {
			n.counts.Crowded++
			return Reception{Verdict: Crowded}
		}
	}
	p.heardAt = now
	if dg.Number >= wire.Apart {
		return n.receiveApart(p, dg, from)
	}
	if !n.trusts(p) || dg.Number < p.from || p.helloAt.IsZero() { // what its sessions' ages mean is not known before
		n.counts.Unfresh++
		return Reception{Verdict: Unfresh}
	}
	top := p.window.Top()
	switch p.window.Note(dg.Number) {
	case wire.Duplicate:
		p.counts.Duplicate++
		return Reception{Verdict: Duplicate}
	case wire.TooOld:
		p.counts.TooOld++
		return Reception{Verdict: TooOld}
	case wire.Jump:
		return Reception{Verdict: Far}
	case wire.Late:
		p.counts.Late++
	case wire.InOrder:
		if dg.Number-top > 1 {
			p.hole(dg.Number, now)
		}
	}
	return Reception{Verdict: Taken, From: p.number, Order: dg.Number, Timeouts: p.hello.Timeouts}
}

// receiveApart takes in a datagram that not all need to have.
func (n *Node) receiveApart(p *peer, dg *wire.Datagram, from netip.AddrPort) Reception {
	k := kindOf(dg.Body)
	var h *hello
	if k == kindHello {
		if h = new(hello); !h.parse(dg.Body) {
			n.counts.Unread++
			return Reception{Verdict: Taken}
		}
		if !p.fresh {
			n.meet(p, h)
		}
	}
	if !n.trusts(p) || k == kindRepair && p.helloAt.IsZero() {
		n.counts.Unfresh++
		return Reception{Verdict: Unfresh}
	}
	arrival, ok := n.noteApart(p, dg.Number)
	switch {
	case ok:
	case arrival == wire.Duplicate:
		return Reception{Verdict: Duplicate}
	default:
		return Reception{Verdict: TooOld}
	}
	switch {
	case k == kindCopy:
		return n.receivePart(p, dg)
	case k == kindRepair:
		return n.receiveRepair(p, dg)
	case h == nil:
		n.heard(p, k, dg.Body)
	case arrival != wire.Late: // else it has said better since
		p.floor, p.floorNext = p.floorNext, dg.Number
		n.heardHello(p, h, from)
	}
	return Reception{Verdict: Taken}
}

// noteApart tells what a number from wire.Apart on is, and whether its datagram
// counts. With keys, who says a number is who he claims to be, and what is older
// than the hello before the last may be a recording of what was lost then. Without,
// the true sender must be heard whatever others have claimed in its name.
func (n *Node) noteApart(p *peer, number uint64) (wire.Arrival, bool) {
	if n.cfg.Keyed && !p.apart.Begun() {
		p.floor, p.floorNext = number, number
	}
	arrival := wire.TooOld
	if !n.cfg.Keyed || number >= p.floor {
		arrival = p.apart.Note(number)
	}
	switch {
	case arrival == wire.Duplicate:
		p.counts.Duplicate++
		return arrival, false
	case arrival == wire.TooOld && n.cfg.Keyed:
		p.counts.TooOld++
		return arrival, false
	case arrival == wire.Jump && n.cfg.Keyed:
		p.apart.Advance(number - 1)
		p.apart.Note(number)
	case arrival == wire.Jump, arrival == wire.TooOld:
		p.apart.Expect(number)
		p.apart.Note(number)
	}
	return arrival, true
}

// receiveRepair takes in what makes up for datagrams that were lost.
func (n *Node) receiveRepair(p *peer, dg *wire.Datagram) Reception {
	r, ok := parseRepair(dg.Body)
	if !ok {
		n.counts.Unread++
		return Reception{Verdict: Taken}
	}
	whole := true
	for i := range uint64(r.with) {
		whole = whole && p.apart.Has(dg.Number-1-i)
	}
	next := uint64(0) // ranges rise, and no number is looked at twice
	for _, g := range r.ranges {
		if g.First = max(g.First, next); whole && g.First <= g.Last {
			p.settle(g)
			next = g.Last + 1
		}
	}
	return Reception{Verdict: Taken, From: p.number, Order: r.asOf, Timeouts: p.hello.Timeouts}
}

// heard takes in what p says, unless that is a hello.
func (n *Node) heard(p *peer, k kind, b []byte) {
	ok := true
	switch k {
	case kindNone:
	case kindPulse:
		var last uint64
		if last, ok = parsePulse(b); ok {
			n.sent(p, last)
		}
	case kindBye:
		p.gone = true
		n.gifts = slices.DeleteFunc(n.gifts, func(g *gift) bool { return g.to == p })
	case kindRequest:
		var to wire.Epoch
		var ranges []wire.Range
		if to, ranges, ok = parseRequest(b); ok {
			n.heardRequest(to, ranges)
		}
	case kindGone:
		var below uint64
		if below, ok = parseGone(b); ok && below > 0 {
			p.settle(wire.Range{First: 0, Last: below - 1})
		}
	case kindFetch:
		var f fetch
		if f, ok = parseFetch(b); ok && f.to == n.cfg.Epoch {
			n.give(p, &f)
		}
	case kindDecline:
		var a about
		if a, ok = parseDecline(b); ok && a.to == n.cfg.Epoch {
			n.declined(p, a.id)
		}
	case kindAck:
		var a ack
		if a, ok = parseAck(b); ok && a.to == n.cfg.Epoch {
			n.acked(p, &a)
		}
	case kindAsk:
		var a ask
		if a, ok = parseAsk(b); ok && a.to == n.cfg.Epoch {
			n.tell(&a)
		}
	case kindDetail:
		var d detail
		if d, ok = parseDetail(b); ok {
			n.learn(p, &d)
		}
	default:
		ok = false
	}
	if !ok {
		n.counts.Unread++
	}
}

// Met is how many runs of others there have been so far.
func (n *Node) Met() uint32 { return n.numbers }

// Accompanied tells whether another node takes part.
func (n *Node) Accompanied() bool { return slices.ContainsFunc(n.order, n.live) }

// Next is when Tick is to be called at the latest.
func (n *Node) Next() time.Time {
	at := n.helloAt
	if n.unpulsed && n.pulseAt.Before(at) {
		at = n.pulseAt
	}
	soon := n.now.Add(busy)
	if !soon.Before(at) {
		return at
	}
	if n.ring.owed() || n.quest != nil || len(n.gifts) > 0 || n.state.wants && n.room() > 0 && slices.ContainsFunc(n.order, n.gives) ||
		slices.ContainsFunc(n.order, n.chases) {
		return soon
	}
	return at
}

// Tick does what is due. active is whether this node's kernel has announced
// sessions of its own in the last few seconds.
func (n *Node) Tick(now time.Time, active bool) {
	n.clock(now)
	if n.active != active {
		n.active = active
		if !now.Before(n.doubtTill) { // with little traffic it comes and goes
			n.Doubt()
		}
		n.hurry()
	}
	for _, p := range slices.Clone(n.order) {
		if now.Sub(p.heardAt) > forgetAfter {
			n.forget(p)
		} else if live := n.live(p); live != p.lived {
			p.lived = live
			n.Doubt()
		}
	}
	n.decide()
	for _, p := range n.order {
		n.chase(p)
	}
	n.answer()
	n.giveOn()
	n.takeOn()
	switch {
	case !now.Before(n.helloAt):
		n.sayHello()
	case n.unpulsed && !now.Before(n.pulseAt):
		if n.control(datagramSize(9)) {
			n.say(appendPulse(n.body[:0], n.ring.last))
		}
		n.pulses++
		n.pulseAt = now.Add(firstPulse << n.pulses)
		n.unpulsed = firstPulse<<n.pulses < helloInterval
	}
}

// Bye tells the others that this node stops.
func (n *Node) Bye() { n.say(append(n.body[:0], byte(kindBye))) }

// clock notes what time it is, and that the process was stopped, if it was. What
// has waited in the socket is as old as the stop was long, though it does not say
// so: nobody is listened to until that is over.
func (n *Node) clock(now time.Time) {
	late := now.Sub(n.now)
	n.now = now
	if late > stopped {
		n.wake(late)
	}
}

// Slept says that the machine slept for so long, of which the time that is passed in
// knows nothing.
func (n *Node) Slept(late time.Duration, now time.Time) {
	n.clock(now)
	n.active = false // its kernel slept as well: others have taken over
	n.wake(late)
}

// wake forgets what may no longer be so after a stop.
func (n *Node) wake(late time.Duration) {
	now := n.now
	n.counts.Stops++
	n.renewChallenge()
	n.deafTill = now.Add(deafFor)
	for _, p := range n.order {
		p.fresh = false
		p.hole(p.window.Top(), now)
		p.helloAt = time.Time{}
		p.heardAt = now // for as long as it was not listened to it could not be heard
	}
	n.quest = nil
	n.gifts = n.gifts[:0]
	if late > forgetAfter {
		n.active = false // whatever it was: others have taken over
	}
	n.want("this node was stopped")
	n.hurry()
}

func (n *Node) renewChallenge() { n.cfg.Random(n.challenge[:]) }

// hurry has a hello said soon, but not by all at once.
func (n *Node) hurry() {
	at := n.now.Add(n.jitter(50 * time.Millisecond))
	if spaced := n.helloed.Add(helloSpacing); at.Before(spaced) {
		at = spaced
	}
	if at.Before(n.helloAt) {
		n.helloAt = at
	}
}

func (n *Node) jitter(most time.Duration) time.Duration {
	return time.Duration(n.rand.Int64N(int64(most)))
}

func (n *Node) sayHello() {
	h := hello{
		State: n.state.is, Active: n.active, Encoding: uint8(n.cfg.Encoding), Module: n.cfg.Module,
		Challenge: n.challenge, Last: n.ring.last, Parts: n.parts, Timeouts: n.cfg.Timeouts, Digest: *n.host.Digest(), Name: n.cfg.Name, Version: n.cfg.Version,
	}
	first := 0
	if len(n.order) > maxEchoes { // those for which there is no room have their turn
		first = n.rand.IntN(len(n.order))
	}
	for i := range n.order {
		p := n.order[(first+i)%len(n.order)]
		if p.challenge != (challenge{}) && len(h.Echoes) < maxEchoes {
			h.Echoes = append(h.Echoes, p.challenge)
		}
	}
	n.body = h.append(n.body[:0])
	n.budget.control.spend(datagramSize(len(n.body)), n.now) // it is what all else hangs on
	n.say(n.body)
	n.helloed, n.unpulsed = n.now, false
	n.helloAt = n.now.Add(helloInterval - helloInterval/10 + n.jitter(helloInterval/5))
}

// say sends a body, and nothing else, to all.
func (n *Node) say(body []byte) {
	n.body = body
	n.host.Send(Datagram{Body: body})
}

// control tells whether so many bytes more may be spent on talk.
func (n *Node) control(bytes int) bool { return n.budget.control.take(bytes, n.now) }

// datagramSize is how many bytes a body takes on the network, about.
func datagramSize(body int) int { return body + wire.Overhead + 48 }

// before orders runs where none is better than another.
func before(a, b wire.Epoch) bool { return bytes.Compare(a[:], b[:]) < 0 }

// rate is a limit in bytes: each second, and at once.
type rate struct{ second, once float64 }

func (r rate) full(now time.Time) allowance { return allowance{r, r.once, now} }

// allowance is what is left of a rate.
type allowance struct {
	rate rate
	left float64
	at   time.Time
}

// take spends bytes if there is anything left; what is spent too much is missing
// later.
func (a *allowance) take(bytes int, now time.Time) bool {
	a.spend(0, now)
	if a.left <= 0 {
		return false
	}
	a.left -= float64(bytes)
	return true
}

func (a *allowance) spend(bytes int, now time.Time) {
	if passed := now.Sub(a.at); passed > 0 {
		a.left = min(a.rate.once, a.left+passed.Seconds()*a.rate.second)
		a.at = now
	}
	a.left = max(a.left-float64(bytes), -a.rate.once)
}
