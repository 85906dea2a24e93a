package cluster

import (
	"cmp"
	"container/heap"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"joold/internal/session"
	"joold/internal/wire"
)

// sim is some nodes, each with a model of a kernel, and the network between them.
// Its clock is its own, and all chance comes from one seed.
type sim struct {
	t      testing.TB
	r      *rand.Rand
	begun  time.Time
	now    time.Time
	events events
	count  uint64 // events so far
	nodes  []*simNode
	keys   wire.Keys

	loss, twice float64
	delay, vary time.Duration
	narrow      int           // bytes that reach a node in a second; 0: any
	queued      time.Duration // for which any was held up by that
	cut         [][]bool      // from, to

	truth  map[uint64]*truth
	ids    uint64
	nonces map[nonce]uint64
	trace  func(format string, args ...any)
}

// truth is what the kernels that translated made of a session.
type truth struct {
	deaths []time.Time // by version: when it would end
}

type nonce struct {
	epoch  wire.Epoch
	number uint64
}

// simNode is a machine. Its daemon may be away, or stopped; its kernel goes on.
type simNode struct {
	*sim
	index    int
	addr     netip.AddrPort
	offset   time.Duration // of its clock
	up       bool
	stopped  bool
	runs     int
	signer   *wire.Signer
	opener   *wire.Opener
	node     *Node
	ticks    uint64 // only the tick of this count is true
	tickAt   time.Time
	busyTill time.Time // its link
	socket   [][]byte
	senders  []*simNode
	room     int
	timeouts [3]time.Duration
	rate     float64 // of live traffic, per second; 0 if it does not translate
	flushing bool
	lazy     bool         // its kernel looks for what has ended twice a minute
	tap      func([]byte) // sees all that it sends
	total    int          // bytes
	calm     time.Time    // since when nothing has befallen it

	byID    map[uint64]*record
	byMask  map[uint32]*record
	slots   []*record // by Ref
	free    []Ref
	digest  session.Digest
	pending []Ref

	bytes, control [2]int // in this second and the most in any
	second         int64
}

// record is a session in a kernel, and what its daemon knows of it.
type record struct {
	id      uint64
	version uint32
	kind    uint8     // index into timeouts
	dies    time.Time // by the true clock, as its kernel sees it
	updated time.Time
	from    uint32
	order   uint64
	own     bool // this kernel had the last word
	second  bool // who had it is not who told it
	waits   bool
	sent    time.Time
	told    time.Time // when others were told that it dies
	changed time.Time // its kind
	ref     Ref
}

// timeouts are those of most nodes, by kind of session.
var timeouts = [3]time.Duration{600 * time.Second, 30 * time.Second, 6 * time.Second}

const (
	entrySize = 40
	maskBits  = 24

	ownFor = 2 * time.Second

	// newer is by how much what somebody knows of another's session must be newer to
	// count: more than what stops and the network make it look so.
	newer = 2500 * time.Millisecond
)

func maskOf(id uint64) uint32 { return uint32(id & (1<<maskBits - 1)) }

func (r *record) hash() uint64 {
	s := session.Session{Src4Port: uint16(maskOf(r.id)), State: session.State(r.kind)}
	binary.BigEndian.PutUint64(s.Src6[:], r.id)
	return s.Hash()
}

type event struct {
	at    time.Time
	count uint64
	do    func()
}

type events []event

func (e events) Len() int { return len(e) }
func (e events) Less(i, j int) bool {
	return e[i].at.Before(e[j].at) || e[i].at.Equal(e[j].at) && e[i].count < e[j].count
}
func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)   { *e = append(*e, x.(event)) }
func (e *events) Pop() any {
	last := (*e)[len(*e)-1]
	(*e)[len(*e)-1] = event{}
	*e = (*e)[:len(*e)-1]
	return last
}

func newSim(t testing.TB, seed uint64, nodes int, keyed bool) *sim {
	s := &sim{
		t: t, r: rand.New(rand.NewPCG(seed, 0)), begun: time.Unix(1_000_000, 0), truth: make(map[uint64]*truth),
		nonces: make(map[nonce]uint64), delay: time.Millisecond, vary: 2 * time.Millisecond,
		trace: func(string, ...any) {},
	}
	s.now = s.begun
	if keyed {
		key := fmt.Sprintf("%064x\n", seed+1)
		var err error
		if s.keys, err = wire.ParseKeys([]byte(key)); err != nil {
			t.Fatal(err)
		}
	}
	for i := range nodes {
		s.cut = append(s.cut, make([]bool, nodes))
		n := &simNode{
			sim: s, index: i, addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)}), 6400),
			offset:   time.Duration(s.r.Int64N(int64(200*time.Hour))) - 100*time.Hour,
			timeouts: timeouts,
		}
		n.wipe()
		s.nodes = append(s.nodes, n)
	}
	return s
}

func (s *sim) after(d time.Duration, do func()) {
	s.count++
	heap.Push(&s.events, event{s.now.Add(d), s.count, do})
}

// run lets time pass.
func (s *sim) run(d time.Duration) {
	until := s.now.Add(d)
	for len(s.events) > 0 && !s.events[0].at.After(until) {
		e := heap.Pop(&s.events).(event)
		s.now = e.at
		e.do()
	}
	s.now = until
}

func (s *sim) random(b []byte) {
	for i := range b {
		b[i] = byte(s.r.Uint32())
	}
}

func (s *sim) elapsed() time.Duration { return s.now.Sub(s.begun) }

func (n *simNode) String() string { return fmt.Sprintf("node %d", n.index) }

// clock is the time that n believes it is.
func (n *simNode) clock() time.Time { return n.now.Add(n.offset) }

// wipe makes n's kernel a new one.
func (n *simNode) wipe() {
	n.byID, n.byMask = make(map[uint64]*record), make(map[uint32]*record)
	n.slots, n.free, n.pending, n.digest = []*record{nil}, nil, nil, session.Digest{}
}

// start starts n's daemon.
func (n *simNode) start(kept bool) {
	n.trace("%v %v starts, kept %v", n.elapsed(), n, kept)
	n.up, n.stopped, n.socket, n.senders = true, false, nil, nil
	n.calm = n.now
	n.runs++
	n.room, n.tickAt = 1<<17, time.Time{}
	n.signer = wire.NewSigner("sim", n.keys, n.r.IntN(2) == 0, n.random)
	n.opener = wire.NewOpener("sim", n.keys)
	for _, r := range n.byID {
		r.from, r.order, r.waits = 0, 0, false
	}
	n.pending = nil
	n.node = New(Config{
		Name: fmt.Sprint(n), Epoch: n.signer.Epoch(), Keyed: n.keys.Signing(), Kept: kept, Encoding: session.Enc4113,
		Timeouts: session.Timeouts{
			TCPEst: uint32(n.timeouts[0].Milliseconds()), TCPTrans: uint32(n.timeouts[1].Milliseconds()),
		},
		Payload: 1448 - wire.Overhead, Entry: entrySize, Random: n.random,
	}, n, n.clock())
	n.missed()
	n.schedule()
}

// missed sends what the kernel announced while nobody listened.
func (n *simNode) missed() {
	if n.rate > 0 {
		n.Sweep()
	}
}

func (n *simNode) stop(bye bool) {
	n.trace("%v %v stops", n.elapsed(), n)
	if bye {
		n.node.Bye()
	}
	n.up = false
	n.ticks++
}

// freeze is SIGSTOP for so long.
func (n *simNode) freeze(d time.Duration) {
	n.trace("%v %v freezes for %v", n.elapsed(), n, d)
	n.stopped, n.tickAt = true, time.Time{}
	n.ticks++
	n.after(d, func() {
		if !n.up || !n.stopped {
			return
		}
		n.trace("%v %v thaws", n.elapsed(), n)
		n.stopped, n.calm = false, n.now
		socket, senders := n.socket, n.senders
		n.socket, n.senders = nil, nil
		for i, b := range socket {
			n.receive(senders[i], b)
		}
		n.missed()
		n.schedule()
	})
}

func (n *simNode) works() bool { return n.up && !n.stopped }

// schedule has the node ticked when it wants to be.
func (n *simNode) schedule() {
	at := n.node.Next().Add(-n.offset)
	if at.Before(n.now) {
		at = n.now
	}
	if !n.tickAt.Before(n.now) && !at.Before(n.tickAt) && n.ticks > 0 {
		return
	}
	n.ticks++
	tick, run := n.ticks, n.runs
	n.tickAt = at
	n.after(at.Sub(n.now), func() {
		if n.ticks != tick || n.runs != run || !n.works() {
			return
		}
		n.node.Tick(n.clock(), n.rate > 0)
		n.check()
		n.tickAt = time.Time{}
		n.schedule()
	})
}

// Send is for the node.
func (n *simNode) Send(d Datagram) { n.send(d, true) }

func (n *simNode) send(d Datagram, apart bool) (number uint64) {
	var b []byte
	for _, ref := range d.Sessions {
		if ref == 0 || int(ref) >= len(n.slots) || n.slots[ref] == nil {
			continue
		}
		if r := n.slots[ref]; r.dies.After(n.now) {
			b = n.appendEntry(b, r)
		}
	}
	if len(b)+len(d.Body)+2 > 1448-wire.Overhead && len(d.Body) > 0 || len(b) > 1448-wire.Overhead {
		n.t.Fatalf("%v sends a datagram of %d bytes of entries and %d of body", n, len(b), len(d.Body))
	}
	control := apart && kindOf(d.Body) != kindCopy && kindOf(d.Body) != kindRepair
	if apart {
		b = n.signer.StampApart(b, d.Flags, d.Body)
	} else {
		b = n.signer.Stamp(b, d.Flags, d.Body)
	}
	n.meter(len(b)+48, control)
	n.total += len(b) + 48
	if n.tap != nil {
		n.tap(b)
	}
	dg, kind := wire.Parse(b)
	if kind != wire.Stamped {
		n.t.Fatalf("%v sends what is %v", n, kind)
	}
	h := fnv.New64a()
	h.Write(b)
	if was, ok := n.nonces[nonce{dg.Epoch, dg.Number}]; ok && was != h.Sum64() {
		n.t.Fatalf("%v uses number %d twice", n, dg.Number)
	}
	n.nonces[nonce{dg.Epoch, dg.Number}] = h.Sum64()
	for _, o := range n.nodes {
		if o != n && (!d.To.IsValid() || d.To == o.addr) {
			n.transmit(o, b)
		}
	}
	return dg.Number
}

func (n *simNode) appendEntry(b []byte, r *record) []byte {
	at := len(b)
	b = append(b, make([]byte, entrySize)...)
	e := b[at:]
	binary.NativeEndian.PutUint16(e, entrySize)
	binary.NativeEndian.PutUint16(e[2:], 1)
	binary.BigEndian.PutUint64(e[4:], r.id)
	binary.BigEndian.PutUint32(e[12:], r.version)
	binary.BigEndian.PutUint32(e[16:], uint32(r.dies.Sub(n.now).Milliseconds()))
	e[20] = r.kind
	return b
}

func (n *simNode) transmit(to *simNode, b []byte) {
	if n.cut[n.index][to.index] || n.r.Float64() < n.loss {
		return
	}
	times := 1
	if n.r.Float64() < n.twice {
		times = 2
	}
	for range times {
		d := n.delay + time.Duration(n.r.Int64N(int64(n.vary)+1))
		if n.narrow > 0 {
			if to.busyTill.Before(n.now) {
				to.busyTill = n.now
			}
			to.busyTill = to.busyTill.Add(time.Duration(len(b)+48) * time.Second / time.Duration(n.narrow))
			n.queued = max(n.queued, to.busyTill.Sub(n.now))
			d += to.busyTill.Sub(n.now)
		}
		n.after(d, func() { to.arrive(n, b) })
	}
}

func (n *simNode) arrive(from *simNode, b []byte) {
	switch {
	case !n.up:
	case n.stopped:
		if len(n.socket) < 500 {
			n.socket, n.senders = append(n.socket, b), append(n.senders, from)
		}
	default:
		n.receive(from, b)
		n.schedule()
	}
}

func (n *simNode) receive(from *simNode, b []byte) {
	dg, verdict := n.opener.Open(b, n.clock())
	if want := wire.Intact; n.keys.Signing() {
		if want = wire.Proven; verdict == wire.Crowded {
			return
		} else if verdict != want {
			n.t.Fatalf("%v takes a datagram to be %v", n, verdict)
		}
	}
	rec := n.node.Receive(&dg, from.addr, n.clock())
	if rec.Verdict != Taken {
		return
	}
	news := 0
	for e := dg.Entries; len(e) >= entrySize; e = e[entrySize:] {
		r := record{
			id: binary.BigEndian.Uint64(e[4:]), version: binary.BigEndian.Uint32(e[12:]), kind: e[20], from: rec.From, order: rec.Order,
		}
		left := time.Duration(binary.BigEndian.Uint32(e[16:])) * time.Millisecond
		full := []uint32{rec.Timeouts.TCPEst, rec.Timeouts.TCPTrans, session.SYN4Timeout}[r.kind] // at the sender
		if rec.Timeouts == (session.Timeouts{}) {
			full = uint32(n.timeouts[r.kind].Milliseconds())
		}
		r.updated = n.now.Add(left - time.Duration(full)*time.Millisecond)
		if left = min(left, r.updated.Add(n.timeouts[r.kind]).Sub(n.now)); left <= 0 {
			continue
		}
		r.dies = n.now.Add(left)
		if r.second = dg.Flags&wire.SecondHand != 0; n.accept(&r) {
			news++
		}
	}
	if rec.Copied {
		n.node.Learned(news, 0)
	}
}

// accept does what internal/batch does, and tells whether the session was not
// there.
func (n *simNode) accept(r *record) (news bool) {
	was, second := n.byID[r.id], r.second
	alive := was != nil && was.dies.After(n.now)
	if alive {
		switch {
		case second && r.updated.Sub(was.updated) < newer,
			was.own && n.now.Sub(was.updated) < ownFor,
			!second && was.from == r.from && !was.own && !was.second && r.order <= was.order,
			!second && was.second && was.updated.Sub(r.updated) > newer,
			!second && !was.second && (was.own || was.from != r.from) && !r.updated.After(was.updated):
			return false
		}
		if r.version < was.version {
			n.t.Fatalf("%v: %v turns session %x back from version %d (own %v, from %d, order %d) to %d (from %d, order %d)", n.elapsed(), n, r.id,
				was.version, was.own, was.from, was.order, r.version, r.from, r.order)
		}
	}
	if rival := n.byMask[maskOf(r.id)]; rival != nil && rival.id != r.id {
		if rival.dies.After(n.now) && (second && r.updated.Sub(rival.updated) < newer || !r.updated.After(rival.updated)) {
			return false
		}
		n.forget(rival)
	}
	if death := n.truth[r.id].deaths[r.version]; r.dies.After(death.Add(n.slack())) {
		n.t.Fatalf("%v: %v makes session %x live for %v longer than it should", n.elapsed(), n, r.id, r.dies.Sub(death))
	}
	if was != nil {
		n.digest.Remove(was.hash())
		was.version, was.kind, was.dies, was.updated, was.from, was.order, was.own, was.second = r.version, r.kind, r.dies, r.updated, r.from, r.order, false, second
		n.digest.Add(was.hash())
		return !alive
	}
	n.insert(r)
	return true
}

// slack is how much longer a session may live than it would: each way that it is
// sent adds what the network delays it, and a stop that is too short to be noticed.
func (s *sim) slack() time.Duration { return 10*(s.delay+s.vary+s.queued) + stopped }

func (n *simNode) insert(r *record) {
	if len(n.free) > 0 {
		r.ref = n.free[len(n.free)-1]
		n.free = n.free[:len(n.free)-1]
		n.slots[r.ref] = r
	} else {
		r.ref = Ref(len(n.slots))
		n.slots = append(n.slots, r)
	}
	n.byID[r.id], n.byMask[maskOf(r.id)] = r, r
	n.digest.Add(r.hash())
}

func (n *simNode) forget(r *record) {
	n.digest.Remove(r.hash())
	delete(n.byID, r.id)
	delete(n.byMask, maskOf(r.id))
	n.slots[r.ref] = nil
	n.free = append(n.free, r.ref)
}

func (n *simNode) FirstHand(ref Ref) bool {
	return int(ref) < len(n.slots) && n.slots[ref] != nil && n.slots[ref].own
}

func (n *simNode) Scan(found []session.Placed, at Ref, chosen *session.Buckets) ([]session.Placed, Ref) {
	for looked := 0; looked < 512 && len(found) < cap(found); looked++ {
		if at++; int(at) >= len(n.slots) {
			return found, 0
		}
		if r := n.slots[at]; r != nil && chosen.Has(session.BucketOf(r.hash())) {
			found = append(found, session.Place(at, session.TCP, session.TimerEst, r.dies.UnixMilli()))
		}
	}
	return found, at
}

func (n *simNode) Digest() *session.Digest { return &n.digest }

func (n *simNode) Room() int { return n.room }

func (n *simNode) Sweep() {
	n.trace("%v %v sweeps", n.elapsed(), n)
	for _, r := range n.slots {
		if r != nil && r.own {
			n.enqueue(r)
		}
	}
}

// translate has live traffic go through n, at so many packets a second; 0 ends it.
func (n *simNode) translate(rate float64) {
	n.trace("%v %v translates %v/s", n.elapsed(), n, rate)
	was := n.rate
	n.rate, n.calm = rate, n.now
	if was == 0 && rate > 0 {
		n.packet()
	}
	if n.works() {
		n.node.Tick(n.clock(), rate > 0)
		n.schedule()
	}
}

func (n *simNode) packet() {
	if n.rate == 0 {
		return
	}
	n.after(time.Duration(n.r.ExpFloat64()/n.rate*float64(time.Second)), n.packet)
	var r *record
	if len(n.slots) > 1 && n.r.Float64() < 0.6 {
		r = n.slots[1+n.r.IntN(len(n.slots)-1)]
	}
	if r == nil || !r.dies.After(n.now) {
		n.ids++
		id := n.ids<<maskBits | uint64(n.r.IntN(1<<14))
		if rival := n.byMask[maskOf(id)]; rival != nil {
			if rival.dies.After(n.now) {
				return
			}
			n.forget(rival)
		}
		n.truth[id] = &truth{}
		r = &record{id: id, kind: uint8(n.r.IntN(2)), dies: n.now}
		n.insert(r)
	}
	n.digest.Remove(r.hash())
	news := r.updated.IsZero() || !r.own
	late := n.now.Sub(r.updated) > timeouts[r.kind]*3/4
	if n.r.IntN(8) == 0 { // it opens or closes
		r.kind, news = uint8(n.r.IntN(3)), true
	}
	n.digest.Add(r.hash())
	t := n.truth[r.id]
	r.version = uint32(len(t.deaths))
	r.dies, r.updated, r.own, r.second = n.now.Add(n.timeouts[r.kind]), n.now, true, false
	if news || late { // others may have had it end
		r.changed = n.now
	}
	t.deaths = append(t.deaths, r.dies)
	if n.works() && (news || r.dies.Sub(r.told) >= n.timeouts[r.kind]/20) {
		n.enqueue(r)
	}
}

func (n *simNode) enqueue(r *record) {
	if !r.waits {
		r.waits = true
		n.pending = append(n.pending, r.ref)
	}
	if !n.flushing {
		n.flushing = true
		n.after(20*time.Millisecond, n.flush)
	}
}

func (n *simNode) flush() {
	n.flushing = false
	if !n.works() {
		return
	}
	for range 20 {
		if len(n.pending) == 0 {
			break
		}
		some := n.pending[:min(len(n.pending), 34)]
		n.pending = n.pending[len(some):]
		for _, ref := range some {
			if r := n.slots[ref]; r != nil {
				r.waits, r.sent, r.told = false, n.now, r.dies
			}
		}
		n.node.Numbered(n.send(Datagram{Sessions: some}, false), some, n.clock())
	}
	n.schedule()
	if len(n.pending) > 0 {
		n.flushing = true
		n.after(20*time.Millisecond, n.flush)
	}
}

// expire is the kernel's timer.
func (s *sim) expire() {
	for _, n := range s.nodes {
		if n.lazy && s.now.Unix()%30 != 0 {
			continue
		}
		for _, r := range n.slots {
			if r != nil && !r.dies.After(s.now) {
				n.forget(r)
			}
		}
	}
	s.after(time.Second, s.expire)
}

// meter counts what a node sends, second by second.
func (n *simNode) meter(bytes int, control bool) {
	if second := n.now.Unix(); second != n.second {
		n.second, n.bytes[0], n.control[0] = second, 0, 0
	}
	n.bytes[0] += bytes
	n.bytes[1] = max(n.bytes[1], n.bytes[0])
	if control {
		n.control[0] += bytes
		n.control[1] = max(n.control[1], n.control[0])
	}
}

// check looks at what must hold at any time.
func (n *simNode) check() {
	c := n.node
	for _, g := range c.gifts {
		if waiting := len(g.waiting[0]) + len(g.waiting[1]); waiting > len(n.slots) {
			n.t.Fatalf("%v has %d sessions wait in a copy, and never had more than %d", n, waiting, len(n.slots))
		}
	}
	if len(c.order) > maxPeers || len(c.peers) != len(c.order) || len(c.gifts) > maxGifts || len(c.ring.debts) > ringSpan {
		n.t.Fatalf("%v has %d peers, gives %d copies, owes %d datagrams", n, len(c.order), len(c.gifts), len(c.ring.debts))
	}
}

// know checks that what a kernel has told of its sessions is known to all nodes that
// call themselves synced, after some time for what was lost.
func (s *sim) know() {
	calm := func(n *simNode) bool { return n.works() && n.now.Sub(n.calm) > 20*time.Second }
	for _, n := range s.nodes {
		if n.rate == 0 || !calm(n) {
			continue
		}
		for _, o := range s.nodes {
			if o == n || !calm(o) || o.node.state.is != Synced || o.now.Sub(o.node.state.since.Add(-o.offset)) < 5*time.Second {
				continue
			}
			if lacking, r := n.lacks(o, s.bound()); lacking > 0 {
				s.t.Fatalf("%v: %v calls itself synced and lacks %d sessions of %v, as %v; it has %v", s.elapsed(), o, lacking, n,
					s.describe(r), s.describe(cmp.Or(o.byID[r.id], o.byMask[maskOf(r.id)])))
			}
		}
	}
	s.after(time.Duration(len(s.nodes))*time.Second, s.know)
}

func (s *sim) describe(r *record) string {
	if r == nil {
		return "nothing"
	}
	return fmt.Sprintf("%x version %d kind %d, changed %v ago, updated %v, sent %v, from %d order %d own %v", r.id, r.version, r.kind,
		s.now.Sub(r.changed), s.now.Sub(r.updated), s.now.Sub(r.sent), r.from, r.order, r.own)
}

// bound is for how long a node that is synced may not know of a session.
func (s *sim) bound() time.Duration {
	if s.loss > 0.1 {
		return 8 * time.Second
	}
	return 4 * time.Second
}

// lacks tells how many sessions of n's kernel, that have been so for so long and will
// live for a while, o has not in the same state.
func (n *simNode) lacks(o *simNode, age time.Duration) (lacking int, example *record) {
	for _, r := range n.byID {
		left := r.updated.Add(min(n.timeouts[r.kind], o.timeouts[r.kind])).Sub(n.now)
		if !r.own || n.now.Sub(r.changed) < age || left < n.timeouts[r.kind]/5 {
			continue
		}
		if there := o.byID[r.id]; there == nil || there.kind != r.kind {
			lacking++
			example = r
		}
	}
	return lacking, example
}
