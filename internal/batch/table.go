package batch

import (
	"math"
	"net/netip"
	"slices"
	"time"

	"joold/internal/session"
)

// MaxTable is the most sessions that a Table can be told to remember.
const MaxTable = 8_000_000

// TableConfig is what a Table is told. It may change while the table is used.
type TableConfig struct {
	Limit    int              // sessions remembered, 1 to MaxTable
	Pending  int              // sessions that may wait to be sent, 1 to MaxTable
	Timeouts session.Timeouts // the instance's
	Refresh  time.Duration    // cap of the interval between refreshes of an unchanged session
	OwnFor   time.Duration    // how long what this kernel announced is its own
}

const (
	// older is by how much news must be older than what is known to be refused:
	// an announcement may lie in its kernel for as long.
	older = 2000 // ms

	// inbox is for how long what a peer told may wait to be injected.
	inbox = 60_000 // ms

	// linger is how long after its end a session may still stand in the kernel,
	// which looks every 2 s.
	linger = 2500 // ms

	// rounding is by how much the end of a session's life moves at most, for no
	// reason, while it waits.
	rounding = 100 // ms

	// patience is for how much longer a refresh may wait than news: at most a
	// hundredth of the timeout, which is between the nine hundredths after which it
	// is due and the tenth of their lives that sessions may lose at a peer.
	patience = 150 // ms

	// lap is how long it takes to look through the whole table for the dead.
	lap = 30_000 // ms

	lookAtMost   = 1 << 16 // slots in one Expire
	forgetAtMost = 1 << 13 // sessions in one Expire
	birthSlots   = 4       // for each new session
	searchSlots  = 128     // for each when the table is full

	ringSearch = 256 // sessions of one BIB entry
)

// Table remembers sessions: what this kernel has of each, and what its peers
// know. From that it tells what is worth sending and what is worth injecting.
// A session leaves when its life is over. Memory is taken in steps as sessions
// come and is kept; sessions that find no room are sent, but not remembered.
//
// Sessions must be such as Decode yields. Times passed in must not go backwards,
// unless it says otherwise. A Table is not safe for concurrent use.
type Table struct {
	config TableConfig
	limits [16]limits // by protocol and timer
	ownFor int64      // ms

	epoch time.Time // where the table's clock is at beforeEpoch
	now   int64     // when it was last used

	secret                 secret
	sessions               index
	nodes, masks           index // BIB entries, each by one of its sessions
	rehash                 func(slot uint32) uint64
	rehashNode, rehashMask func(slot uint32) uint64

	pages   []*page
	top     uint32 // the first slot that was never used; 0 is none
	free    uint32 // the first of those that were
	records int    // sessions in the table
	passers int    // of them, those that will not be remembered

	places          []*[pagePlaces]place
	topPlace        uint32
	freePlace       uint32
	news, refreshes queue

	hand     uint32 // the slot where the search for the dead goes on
	looked   int64  // when it last went on
	sweep    uint8  // counts sweeps of the kernel's table
	complete uint8  // the last that went through all of it

	doubtFrom, doubtTill int64 // see Doubt

	digest session.Digest // of what peers know
	taken  []session.Ref  // see Taken

	counts TableCounts
}

// limits are a timer's, in ms.
type limits struct {
	timeout int64
	hold    int64 // a refresh waits for no longer than this
	jitter  int64 // deaths as close as this are the same
	spare   int64 // what the receiver of a refresh may hold back in turn
}

// TableCounts are what a Table holds and has seen.
type TableCounts struct {
	Sessions int // remembered now
	Pending  int // wait to be sent now

	Unchanged        uint64 // announcements that told nothing new
	Held             uint64 // refreshes that came before they were due
	DroppedRefreshes uint64 // pending sessions for which there was no room
	DroppedNews      uint64
	Died             uint64 // sessions whose life ended while they waited
	Full             uint64 // sessions that were not remembered, for lack of room
	Displaced        uint64 // BIB entries forgotten, since the kernel announced another
	Vanished         uint64 // sessions forgotten, since the kernel's table no longer has them
	Told             uint64 // sessions that were not known and that a peer told of

	Verdicts [Verdicts]uint64
}

// NewTable makes an empty table.
func NewTable(c TableConfig) *Table {
	t := &Table{
		secret:   newSecret(),
		sessions: newIndex(), nodes: newIndex(), masks: newIndex(),
		pages: []*page{new(page)},
		top:   1, hand: 1, topPlace: 1,
	}
	t.rehash = func(slot uint32) uint64 { return t.secret.hash(&t.at(slot).key) }
	t.rehashNode = func(slot uint32) uint64 { return t.secret.hashNode(&t.at(slot).key) }
	t.rehashMask = func(slot uint32) uint64 { return t.secret.hashMask(&t.at(slot).key) }
	t.Configure(c)
	return t
}

// Configure changes what the table was told. Of a table that holds more than the
// new Limit nothing is thrown out: it remembers no more until enough have left.
// What waits beyond the new Pending is dropped as if it had just come.
func (t *Table) Configure(c TableConfig) {
	c.Limit = min(max(c.Limit, 1), MaxTable)
	c.Pending = min(max(c.Pending, 1), MaxTable)
	t.config = c
	t.ownFor = c.OwnFor.Milliseconds()
	for p := range t.limits {
		ms, ok := c.Timeouts.Of(session.Proto(p>>2), session.Timer(p&3))
		if !ok { // Jool has no such session
			ms = session.SYN4Timeout
		}
		l := limits{timeout: int64(ms)}
		// Of the tenth of its life that a session may lose, a hundredth is left to
		// the receiver.
		l.hold = min(l.timeout*9/100, c.Refresh.Milliseconds())
		l.jitter = min(l.timeout/100, 100)
		l.spare = l.timeout/10 - l.hold
		t.limits[p] = l
	}
	t.trim(c.Pending)
}

func (t *Table) limitsOf(p session.Proto, k kind) *limits {
	return &t.limits[uint(p&3)<<2|uint(k.timer())]
}

// beforeEpoch lets moments before the table's first use be told apart.
const beforeEpoch = 24 * 60 * 60 * 1000 // ms

// ms is a moment on the table's clock.
func (t *Table) ms(at time.Time) int64 {
	if t.epoch.IsZero() {
		t.epoch = at
	}
	return min(max(at.Sub(t.epoch).Milliseconds()+beforeEpoch, 1), lastInstant-math.MaxUint32)
}

// tick is ms for the moment that it is.
func (t *Table) tick(now time.Time) int64 {
	t.now = t.ms(now)
	return t.now
}

// Observe takes in what this kernel announced. A session that is new, or whose
// state or timer is, is due at once. A refresh is due when it moves the session's
// death and enough time has passed since peers learned of it: 1 s, then 2, 4, 8
// and so on, up to the cap or a tenth of the timeout.
func (t *Table) Observe(s []session.Session, now time.Time) {
	ms := t.tick(now)
	for chunk := range slices.Chunk(s, lookAhead) {
		var ahead [lookAhead]guess
		t.lookUp(&ahead, chunk)
		for i := range chunk {
			t.observe(&chunk[i], &ahead[i], ms)
		}
	}
}

func (t *Table) observe(s *session.Session, g *guess, now int64) {
	slot := g.slot
	if r := t.at(slot); r.key != g.key || r.flags&inUse == 0 { // as slot 0 never is
		slot = t.find(&g.key, g.hash)
	}
	if slot == 0 {
		if s.Expiration == 0 {
			return
		}
		if slot = t.add(&g.key, g.hash, now); slot == 0 {
			return
		}
	}
	r := t.at(slot)
	r.here = kindOf(s)
	r.dies.set(now + int64(s.Expiration))
	r.announced.set(now)
	r.from = 0
	r.flags &^= secondHand
	r.seen = t.sweep
	if r.waits != 0 {
		if r.there != r.here {
			t.promote(slot)
		}
	} else if due, refresh := t.due(r, now); due {
		t.enqueue(slot, refresh, false, now)
		t.trim(t.config.Pending)
	}
}

// due tells whether what this kernel has of a session is worth sending, and
// whether it is a mere refresh. It counts what is not.
func (t *Table) due(r *record, now int64) (due, refresh bool) {
	if r.there != r.here || r.flags&lacking != 0 || r.known.get() <= now {
		return true, false
	}
	l := t.limitsOf(r.proto(), r.here)
	moved := r.dies.get() - r.known.get()
	if moved <= l.jitter {
		t.counts.Unchanged++
		return false, false
	}
	// Peers may believe in a death that was near already when they learned of it.
	if now-r.shared.get() < min(firstStep<<r.step(), l.hold) && moved <= l.hold {
		t.counts.Held++
		return false, false
	}
	return true, true
}

// add makes a record of a session of this kernel. What contradicts it has left
// the kernel. It is 0 when there is room neither to remember nor to wait.
func (t *Table) add(k *key, h uint64, now int64) uint32 {
	for _, rival := range t.rivals(k) {
		if rival != 0 {
			t.counts.Displaced++
			t.forgetRing(rival)
		}
	}
	room := t.room(now)
	slot := t.insert(k, h)
	if slot == 0 || !room {
		t.counts.Full++
	}
	if slot != 0 && !room {
		t.at(slot).flags |= passing
		t.passers++
	}
	return slot
}

// room tells whether one more session can be remembered. It looks for one that is
// dead, so that deaths keep pace with births, and looks further in a full table.
func (t *Table) room(now int64) bool {
	slots := birthSlots
	if t.records-t.passers >= t.config.Limit {
		slots = searchSlots
	}
	t.reap(slots, 1, now)
	return t.records-t.passers < t.config.Limit
}

// Pending is how many sessions wait to be sent.
func (t *Table) Pending() int { return t.news.len + t.refreshes.len }

// News is how many of them are new to peers, or have a state or timer that is.
func (t *Table) News() int { return t.news.len }

// Due is since when the session that has waited longest to be sent has done so;
// ok is false when none waits. A refresh, which may wait longer to travel in
// company, counts as one that came later.
func (t *Table) Due() (since time.Time, ok bool) {
	if t.Pending() == 0 {
		return time.Time{}, false
	}
	first := int64(lastInstant)
	if t.news.len > 0 {
		first = t.place(t.news.first).since.get()
	}
	if t.refreshes.len > 0 {
		p := t.place(t.refreshes.first)
		r := t.at(p.slot)
		first = min(first, p.since.get()+min(patience, t.limitsOf(r.proto(), r.here).timeout/100))
	}
	return t.epoch.Add(time.Duration(first-beforeEpoch) * time.Millisecond), true
}

// Take appends to dst at most so many of the sessions that wait to be sent: news
// before refreshes, the oldest first, as of now. From then on peers are believed
// to know them: see Unsent.
func (t *Table) Take(dst []session.Session, most int, now time.Time) []session.Session {
	ms := t.tick(now)
	t.taken = t.taken[:0]
	for taken := 0; taken < most && t.Pending() > 0; {
		n := t.news.first
		if n == 0 {
			n = t.refreshes.first
		}
		slot := t.place(n).slot
		r := t.at(slot)
		t.unqueue(slot)
		alive := r.dies.get() > ms
		if alive {
			dst = append(dst, r.asOf(ms))
			t.share(r, r.here, r.dies.get(), ms)
			taken++
		} else {
			t.counts.Died++
		}
		t.settle(slot)
		if alive {
			t.taken = append(t.taken, t.ref(slot))
		}
	}
	return dst
}

// settle forgets a session that came when there was no room, now that it does not
// wait any more; unless there is room by now.
func (t *Table) settle(slot uint32) {
	r := t.at(slot)
	switch {
	case r.flags&passing == 0 || r.waits != 0:
	case t.records-t.passers < t.config.Limit:
		r.flags &^= passing
		t.passers--
	default:
		t.forget(slot)
	}
}

// asOf is the session as this kernel has it.
func (r *record) asOf(now int64) session.Session {
	s := r.session()
	s.State, s.Timer = r.here.state(), r.here.timer()
	s.Expiration = uint32(min(r.dies.get()-now, math.MaxUint32))
	return s
}

// share notes what peers know from now on.
func (t *Table) share(r *record, k kind, dies, now int64) {
	step := uint(0)
	if r.there == k && r.known.get() > now {
		step = min(r.step()+1, maxStep)
	}
	r.flags &^= lacking
	r.setStep(step)
	t.tell(r, k)
	r.known.set(dies)
	r.shared.set(now)
}

// Unsent takes back that sessions were sent: peers do not know them after all,
// and their next announcement is due at once. With retry they wait again, before
// all others. The sessions are as Take or Sweep just gave them.
func (t *Table) Unsent(s []session.Session, retry bool) {
	for i := len(s) - 1; i >= 0; i-- {
		k := keyOf(&s[i])
		h := t.secret.hash(&k)
		slot := t.find(&k, h)
		if slot == 0 {
			if !retry || t.rivals(&k) != [2]uint32{} {
				continue
			}
			if slot = t.add(&k, h, t.now); slot == 0 {
				continue
			}
			r := t.at(slot)
			r.here = kindOf(&s[i])
			r.dies.set(t.now + int64(s[i].Expiration))
		}
		r := t.at(slot)
		r.flags |= lacking
		r.setStep(0)
		if r.waits != 0 {
			t.promote(slot)
			continue
		}
		if !retry {
			continue
		}
		if t.Pending() >= t.config.Pending && t.refreshes.len == 0 {
			t.counts.DroppedNews++
			t.yield(slot)
			continue
		}
		t.enqueue(slot, false, true, t.now)
		t.trim(t.config.Pending)
	}
}

// Doubt says that what was sent from one moment to another may not have reached
// anybody. A sweep sends it again. Doubts that overlap, or that have not been
// settled, become one.
func (t *Table) Doubt(from, till time.Time) {
	if t.doubtTill == 0 {
		t.doubtFrom = lastInstant
	}
	t.doubtFrom, t.doubtTill = min(t.doubtFrom, t.ms(from)), max(t.doubtTill, t.ms(till))
}

// Settle says that all was sent that a sweep which began then found lacking.
func (t *Table) Settle(begun time.Time) {
	if t.doubtTill <= t.ms(begun) {
		t.doubtFrom, t.doubtTill = 0, 0
	}
}

// BeginSweep says that all of the kernel's table will be read now, and given to
// Lacks or Learn. Sweeps may overlap; each has a number.
func (t *Table) BeginSweep() (number uint8) {
	if t.sweep == t.complete { // else what the last one saw will do for this one
		t.sweep++
	}
	return t.sweep
}

// EndSweep says that all of the kernel's table was given to Lacks or Learn since
// BeginSweep gave this number. What was not in it, nor announced since, is gradually
// forgotten; but what a peer sent since the sweep before may yet have to be injected.
// EndSweep is not called when the reading failed.
func (t *Table) EndSweep(number uint8) {
	if int8(number-t.complete) > 0 {
		t.complete = number
	}
}

// vanished tells whether the last complete sweep did not come by a session.
func (t *Table) vanished(r *record) bool { return int8(t.complete-r.seen) > 0 }

// Learn takes in a session of the kernel's table, as it was just read. Of one that
// is not known nobody has been told: it is neither new nor this kernel's own. What
// contradicts it is not in the kernel, whatever was believed, unless this kernel
// has just announced it. The kernel's word is taken for a known one that was not
// heard of for 2 s, but not its older word for what a peer told in the last minute,
// which may wait to be injected.
func (t *Table) Learn(s *session.Session, now time.Time) {
	ms := t.tick(now)
	if s.Expiration == 0 {
		return
	}
	k := keyOf(s)
	h := t.secret.hash(&k)
	if slot := t.find(&k, h); slot != 0 {
		t.read(t.at(slot), s, ms)
		return
	}
	for _, rival := range t.rivals(&k) {
		if rival != 0 && t.any(rival, func(r *record) bool { return t.own(r, ms) }) {
			return
		}
	}
	for _, rival := range t.rivals(&k) {
		if rival != 0 {
			t.counts.Displaced++
			t.forgetRing(rival)
		}
	}
	slot := uint32(0)
	if t.room(ms) {
		slot = t.insert(&k, h)
	}
	if slot == 0 {
		t.counts.Full++
		return
	}
	r := t.at(slot)
	r.here = kindOf(s)
	r.dies.set(ms + int64(s.Expiration))
}

// Lacks tells whether peers may lack a session of the kernel's table, as it was
// just read: one that was never sent, that has another state or timer than they
// know, or that lives longer by more than the refresh rule allows for. What waits
// to be sent is not lacking. The kernel's word is taken as by Learn.
func (t *Table) Lacks(s *session.Session, now time.Time) bool {
	ms := t.tick(now)
	if s.Expiration == 0 {
		return false
	}
	k := keyOf(s)
	slot := t.find(&k, t.secret.hash(&k))
	if slot == 0 {
		return true
	}
	r := t.at(slot)
	t.read(r, s, ms)
	return r.waits == 0 && t.lacks(r)
}

// read takes the kernel's word for a session that was not heard of for 2 s, which no
// page of its table is older than; unless what a peer told waits to be injected.
func (t *Table) read(r *record, s *session.Session, now int64) {
	r.seen = t.sweep
	if r.waits != 0 || max(r.announced.get(), r.shared.get()) >= now-older {
		return
	}
	k, dies := kindOf(s), now+int64(s.Expiration)
	here, there := t.limitsOf(r.proto(), k), t.limitsOf(r.proto(), r.here)
	if r.from != 0 && r.shared.get() >= now-inbox && dies-here.timeout <= r.dies.get()-there.timeout {
		return
	}
	r.here = k
	r.dies.set(dies)
}

func (t *Table) lacks(r *record) bool {
	l := t.limitsOf(r.proto(), r.here)
	shared := r.shared.get()
	return r.there != r.here || r.flags&lacking != 0 || shared >= t.doubtFrom && shared <= t.doubtTill ||
		r.dies.get()-r.known.get() > l.hold+l.timeout/100
}

// Sweep goes through from, sessions of the kernel's table whose expirations count
// from base, until it has appended so many to dst, as of now, or until the end.
// It tells how many it went through. With all, it appends what neither this node
// nor a peer has sent since begun, unless peers lack it all the same; else only
// what peers still lack. Of sessions that were announced since base the table's
// knowledge is sent, being fresher. Those appended count as sent: see Unsent.
func (t *Table) Sweep(dst, from []session.Session, base, begun time.Time, all bool, most int, now time.Time) (_ []session.Session, through int) {
	ms, read, since := t.tick(now), t.ms(base), t.ms(begun)
	t.taken = t.taken[:0]
	for taken := 0; through < len(from) && taken < most; through++ {
		s := &from[through]
		dies := read + int64(s.Expiration)
		k := keyOf(s)
		h := t.secret.hash(&k)
		slot := t.find(&k, h)
		if slot == 0 {
			if dies <= ms || t.contradicted(&k, read) {
				continue
			}
			if slot = t.add(&k, h, ms); slot == 0 {
				continue
			}
		}
		r := t.at(slot)
		if r.waits == 0 && r.announced.get() < read && r.shared.get() < read {
			r.here = kindOf(s)
			r.dies.set(dies)
		}
		due := r.dies.get() > ms && (all && r.shared.get() <= since || t.lacks(r))
		if due {
			t.unqueue(slot)
			dst = append(dst, r.asOf(ms))
			t.share(r, r.here, r.dies.get(), ms)
			taken++
		}
		t.settle(slot)
		if due {
			t.taken = append(t.taken, t.ref(slot))
		}
	}
	return dst, through
}

// contradicted tells whether a BIB entry other than k's has been heard of since.
func (t *Table) contradicted(k *key, since int64) bool {
	for _, rival := range t.rivals(k) {
		if rival != 0 && t.any(rival, func(r *record) bool {
			return r.announced.get() >= since || r.shared.get() >= since
		}) {
			return true
		}
	}
	return false
}

// any tells whether something is so of a session of slot's BIB entry. It is
// taken to be where there are more of them than can be looked at.
func (t *Table) any(slot uint32, is func(*record) bool) bool {
	first := slot
	for range ringSearch {
		if is(t.at(slot)) {
			return true
		}
		if slot = t.ring(slot).next; slot == first {
			return false
		}
	}
	return true
}

// Verdict is what is to be done with a session that a peer sent.
type Verdict uint8

// The verdicts.
const (
	Inject   Verdict = iota // give it to the kernel
	Own                     // this kernel announced it just now: leave it
	Stale                   // older than what is known: leave it
	Known                   // no news to speak of: leave it
	Conflict                // the kernel would drop it for a BIB entry that it has
	Verdicts                // count
)

var verdictNames = [Verdicts]string{"inject", "own", "stale", "known", "conflict"}

func (v Verdict) String() string { return verdictNames[v] }

// BIB is an entry of the kernel's Binding Information Base (RFC 6146, section
// 3.1): an IPv6 transport address and its mask.
type BIB struct {
	Proto              session.Proto
	Src6               [16]byte
	Src4               [4]byte
	Src6Port, Src4Port uint16
	Own                bool // this kernel announced a session of it just now
	Older              bool // nothing was heard of it since the session in question was last updated
}

// Addrs are the entry's two sides.
func (b *BIB) Addrs() (src6, src4 netip.AddrPort) {
	return netip.AddrPortFrom(netip.AddrFrom16(b.Src6), b.Src6Port), netip.AddrPortFrom(netip.AddrFrom4(b.Src4), b.Src4Port)
}

// Foresee says which sessions Accept or Learn will be asked for next. In a large table each
// of them would wait for memory alone; here all wait together. It changes nothing.
func (t *Table) Foresee(s []session.Session) {
	for chunk := range slices.Chunk(s, lookAhead) {
		var ahead [lookAhead]guess
		t.lookUp(&ahead, chunk)
	}
}

// Accept judges a session that passed the checks, src of which sent it. With Inject the table takes for granted that the kernel will
// have the session: see Refused. With Conflict it yields the BIB entry that is in
// the way. If that is Older it can be removed from the kernel, and the session
// accepted again after RemoveBIB; if it is Own, the session can be accepted again
// later.
//
// A session of which peers disagree is that of who updated it last, by its age; of
// one peer's words the last counts. What is not first-hand counts where nothing is
// known, or something much older.
func (t *Table) Accept(src *Source, s *session.Session, now time.Time) (Verdict, BIB) {
	ms := t.tick(now)
	v, b := t.judge(src, s, ms)
	t.counts.Verdicts[v]++
	return v, b
}

func (t *Table) judge(src *Source, s *session.Session, now int64) (Verdict, BIB) {
	if s.Expiration == 0 {
		return Stale, BIB{}
	}
	k := keyOf(s)
	h := t.secret.hash(&k)
	slot := t.find(&k, h)
	alive := slot != 0 && t.at(slot).dies.get() > now && !t.vanished(t.at(slot))
	kind, dies := kindOf(s), now+int64(s.Expiration)
	if alive {
		r := t.at(slot)
		if v := t.compare(r, src, kind, dies, now); v != Inject {
			if v == Known {
				t.share(r, kind, max(dies, r.knownAs(kind)), now)
				if !src.SecondHand {
					r.attribute(src)
				}
			} else if kind != r.here {
				r.flags |= lacking // by at least this peer
			}
			return v, BIB{}
		}
	}
	if slot == 0 {
		for _, rival := range t.rivals(&k) {
			if rival == 0 {
				continue
			}
			if standing := t.standing(rival, now); standing != 0 {
				updated := dies - t.limitsOf(s.Proto, kind).timeout
				if src.SecondHand {
					updated -= newer
				}
				return Conflict, t.bib(standing, updated, now)
			}
		}
		if !t.room(now) {
			t.counts.Full++
			return Inject, BIB{}
		}
		if slot = t.insert(&k, h); slot == 0 {
			t.counts.Full++
			return Inject, BIB{}
		}
	}
	r := t.at(slot)
	if !alive {
		t.counts.Told++
		r.announced.set(0)
		r.seen = t.sweep + 1 // a sweep that begins now may be over before this is injected
	}
	t.share(r, kind, dies, now)
	r.here = kind
	r.attribute(src)
	r.dies.set(dies)
	t.unqueue(slot) // this is newer
	t.settle(slot)
	return Inject, BIB{}
}

// knownAs is when peers believe that the session dies, if they believe in this
// kind of it.
func (r *record) knownAs(k kind) int64 {
	if r.there != k {
		return 0
	}
	return r.known.get()
}

// attribute notes whose the last word is.
func (r *record) attribute(src *Source) {
	r.from = src.word()
	if r.flags &^= secondHand; src.SecondHand {
		r.flags |= secondHand
	}
}

// compare judges what a peer says of a session that is in the table and alive.
func (t *Table) compare(r *record, src *Source, k kind, dies, now int64) Verdict {
	if t.own(r, now) {
		return Own
	}
	mine, l := r.dies.get(), t.limitsOf(r.proto(), k)
	updated, was := dies-l.timeout, mine-t.limitsOf(r.proto(), r.here).timeout
	second := r.flags&secondHand != 0
	switch {
	case src.SecondHand && updated-was < newer, second && src.Order != 0 && was-updated > newer:
		if k == r.here && dies >= mine-l.jitter {
			return Known
		}
		return Stale
	case !src.SecondHand && !second && src.overtaken(r, now):
		return Stale
	}
	if k == r.here {
		switch {
		case dies < mine-l.jitter:
			return Stale
		case dies-mine <= l.spare:
			return Known
		}
		return Inject
	}
	// The first FIN is announced with the update time of the packet before it.
	if r.here.state() == session.Established && k.timer() == r.here.timer() && dies >= mine-l.timeout/10-older {
		return Inject
	}
	switch {
	case src.Order == 0: // a C node: nobody knows whose word it passes on
		return t.comparePlain(r, src, updated, was)
	case src.SecondHand, second, src.same(r), updated > was:
		return Inject
	}
	return Stale
}

// comparePlain judges another state or timer, told by who does not number its words.
func (t *Table) comparePlain(r *record, src *Source, updated, was int64) Verdict {
	if at := r.announced.get(); at > 0 && updated+older < at {
		return Stale
	}
	if !src.same(r) && r.from != 0 && updated+t.limitsOf(r.proto(), r.here).timeout/10+older < was {
		return Stale
	}
	return Inject
}

// standing is a session of slot's BIB entry for which that may still be in the
// kernel, or 0. Those that it finds dead or vanished before are forgotten.
func (t *Table) standing(slot uint32, now int64) uint32 {
	for {
		switch r := t.at(slot); {
		case r.dies.get()+linger <= now:
		case r.waits == 0 && t.vanished(r):
			t.counts.Vanished++
		default:
			return slot
		}
		next := t.ring(slot).next
		t.forget(slot)
		if next == slot {
			return 0
		}
		slot = next
	}
}

// bib is slot's BIB entry, as a rival of a session that was updated then.
func (t *Table) bib(slot uint32, updated, now int64) BIB {
	s := t.at(slot).session()
	return BIB{
		Proto: s.Proto, Src6: s.Src6, Src4: s.Src4, Src6Port: s.Src6Port, Src4Port: s.Src4Port,
		Own: t.any(slot, func(r *record) bool { return t.own(r, now) }),
		Older: !t.any(slot, func(r *record) bool {
			return max(r.announced.get(), r.dies.get()-t.limitsOf(r.proto(), r.here).timeout) >= updated
		}),
	}
}

// own tells whether this kernel announced a session just now.
func (t *Table) own(r *record, now int64) bool {
	at := r.announced.get()
	return at > 0 && now-at < t.ownFor
}

// Overtaken tells whether there has been newer word of a session since Accept
// judged it fit to Inject, so that it no longer is: this kernel has just announced
// it itself, or a peer told more.
func (t *Table) Overtaken(s *session.Session, now time.Time) bool {
	k := keyOf(s)
	slot := t.find(&k, t.secret.hash(&k))
	if slot == 0 { // there was no room to remember it, or its BIB entry has made way for another
		return t.rivals(&k) != [2]uint32{}
	}
	r, ms := t.at(slot), t.tick(now)
	return t.own(r, ms) || r.here != kindOf(s) || r.dies.get() > ms+int64(s.Expiration)+rounding
}

// RemoveBIB forgets all sessions of a BIB entry that is no longer in the kernel.
func (t *Table) RemoveBIB(b BIB) {
	k := keyOf(&session.Session{Proto: b.Proto, Src6: b.Src6, Src4: b.Src4, Src6Port: b.Src6Port, Src4Port: b.Src4Port})
	if slot := t.findMask(&k); slot != 0 && t.at(slot).sameNode(&k) {
		t.forgetRing(slot)
	}
}

// Refused says that the kernel did not take sessions that Accept had judged fit
// to Inject. Those that it has announced since it has all the same.
func (t *Table) Refused(s []session.Session) {
	for i := range s {
		k := keyOf(&s[i])
		slot := t.find(&k, t.secret.hash(&k))
		if slot == 0 {
			continue
		}
		if r := t.at(slot); r.waits == 0 && r.announced.get() < r.shared.get() {
			t.forget(slot)
		}
	}
}

// Expire forgets sessions that are dead. Called once a second, it looks through a
// table of up to two million in half a minute; one call takes a bounded time.
func (t *Table) Expire(now time.Time) {
	ms := t.tick(now)
	slots := int64(t.top)*min(ms-t.looked, lap)/lap + 1
	t.looked = ms
	t.reap(int(min(slots, lookAtMost)), forgetAtMost, ms)
}

// reap looks at so many slots, and forgets at most so many sessions.
func (t *Table) reap(slots, sessions int, now int64) {
	for range min(slots, int(t.top)-1) {
		if t.hand++; t.hand >= t.top {
			t.hand = 1
		}
		r := t.at(t.hand)
		if r.flags&inUse == 0 || r.waits != 0 {
			continue
		}
		switch {
		case r.dies.get()+linger <= now:
		case t.vanished(r):
			t.counts.Vanished++
		default:
			continue
		}
		t.forget(t.hand)
		if sessions--; sessions == 0 {
			return
		}
	}
}

// Counts are the table's at this moment.
func (t *Table) Counts() TableCounts {
	c := t.counts
	c.Sessions, c.Pending = t.records-t.passers, t.Pending()
	return c
}
