package batch

import (
	"encoding/binary"

	"joold/internal/session"
)

// instant is a moment, in milliseconds of a table's clock: 40 bits, which last
// for 34 years. Zero is never.
type instant [5]byte

const lastInstant = 1<<40 - 1

func (i *instant) get() int64 {
	return int64(binary.LittleEndian.Uint32(i[:4])) | int64(i[4])<<32
}

func (i *instant) set(ms int64) {
	ms = min(ms, lastInstant)
	binary.LittleEndian.PutUint32(i[:4], uint32(ms))
	i[4] = byte(ms >> 32)
}

// kind is a session's state and timer.
type kind uint8

// nothing is the kind of a session that peers do not know.
const nothing kind = 0xff

func kindOf(s *session.Session) kind { return kind(s.State&7)<<2 | kind(s.Timer&3) }

func (k kind) state() session.State { return session.State(k >> 2) }
func (k kind) timer() session.Timer { return session.Timer(k & 3) }

// record is one session: what this kernel has of it, and what its peers know.
// It fills one line of the processor's cache.
type record struct {
	key
	dies      instant // in this kernel
	known     instant // when peers believe that it dies
	announced instant // when this kernel last did so
	shared    instant // when peers last learned of it, from here or from each other
	from      uint32  // which peer had the last word, by Source.word; 0 if this kernel had, or nobody
	waits     uint32  // its place among those that wait to be sent, or 0; of a free record, the next free one
	here      kind    // in this kernel
	there     kind    // as peers know it
	seen      uint8   // the last sweep of the kernel's table that came by, or during which it was announced; the next if a peer sent it
	flags     flags
}

type flags uint8

const (
	inUse      flags = 1 << iota
	lacking          // peers may lack what they are believed to know
	passing          // there was no room: to be forgotten once sent
	secondHand       // the last word was not that of a kernel that translated it, as far as is known
	steps      = 4   // above it: how often the interval between refreshes has doubled
	maxStep    = 6   // 64 s, more than any cap
	firstStep  = 1000
)

func (r *record) step() uint { return uint(r.flags >> steps) }

func (r *record) setStep(n uint) { r.flags = r.flags&(1<<steps-1) | flags(n)<<steps }

// neighbours link the sessions of one BIB entry in a ring.
type neighbours struct{ next, prev uint32 }

const pageSlots = 1024

// page is a step by which a table grows. It holds no pointers, so the garbage
// collector does not look into it.
type page struct {
	records [pageSlots]record
	rings   [pageSlots]neighbours
}

func (t *Table) at(slot uint32) *record { return &t.pages[slot/pageSlots].records[slot%pageSlots] }

func (t *Table) ring(slot uint32) *neighbours { return &t.pages[slot/pageSlots].rings[slot%pageSlots] }

// find is the slot of the session with key k, whose hash is h, or 0.
func (t *Table) find(k *key, h uint64) uint32 {
	g := t.sessions.segment(h)
	for at := home(h); g.words[at] != 0; at = after(at) {
		if w := g.words[at]; w&^slotMask == tag(h) && t.at(w&slotMask).key == *k {
			return w & slotMask
		}
	}
	return 0
}

// lookAhead is how many sessions are looked up at once.
const lookAhead = 36 // what the kernel announces in one message

// guess is where a session probably stands, if it does.
type guess struct {
	key  key
	hash uint64
	word uint32 // at its home in the index
	slot uint32
}

// lookUp guesses where sessions stand. In a large table each look waits for
// memory twice; here all wait together, since none depends on another, and no
// branch on what has not come yet is taken before all has been asked for.
func (t *Table) lookUp(g *[lookAhead]guess, s []session.Session) {
	for i := range s {
		g[i].key = keyOf(&s[i])
		g[i].hash = t.secret.hash(&g[i].key)
	}
	for i := range s {
		g[i].word = t.sessions.word(g[i].hash)
	}
	for i := range s {
		g[i].slot = t.sessions.guess(g[i].hash, g[i].word)
	}
	for i := range s {
		if t.at(g[i].slot).ports != g[i].key.ports {
			g[i].slot = 0
		}
	}
}

// findNode is the slot of a session of k's IPv6 transport address, or 0.
func (t *Table) findNode(k *key) uint32 {
	h := t.secret.hashNode(k)
	g := t.nodes.segment(h)
	for at := home(h); g.words[at] != 0; at = after(at) {
		if w := g.words[at]; w&^slotMask == tag(h) && t.at(w&slotMask).sameNode(k) {
			return w & slotMask
		}
	}
	return 0
}

// findMask is the slot of a session behind k's IPv4 transport address, or 0.
func (t *Table) findMask(k *key) uint32 {
	h := t.secret.hashMask(k)
	g := t.masks.segment(h)
	for at := home(h); g.words[at] != 0; at = after(at) {
		if w := g.words[at]; w&^slotMask == tag(h) && t.at(w&slotMask).sameMask(k) {
			return w & slotMask
		}
	}
	return 0
}

// rivals are the sessions, each one of its BIB entry, that have k's IPv4 or IPv6
// transport address but not the other. Where there is none it is 0.
func (t *Table) rivals(k *key) (r [2]uint32) {
	if slot := t.findMask(k); slot != 0 && !t.at(slot).sameNode(k) {
		r[0] = slot
	}
	if slot := t.findNode(k); slot != 0 && !t.at(slot).sameMask(k) {
		r[1] = slot
	}
	return r
}

// insert makes a record for a session that has none, and that no BIB entry in
// the table contradicts. It fails, with 0, only if the hash does not tell
// sessions apart.
func (t *Table) insert(k *key, h uint64) uint32 {
	slot := t.free
	if slot != 0 {
		t.free = t.at(slot).waits
	} else {
		if t.top&^slotMask != 0 {
			return 0
		}
		slot = t.top
		if int(slot/pageSlots) == len(t.pages) {
			t.pages = append(t.pages, new(page))
		}
		t.top++
	}
	r := t.at(slot)
	*r = record{key: *k, there: nothing, flags: inUse | secondHand, seen: t.sweep}
	t.records++
	if !t.sessions.put(h, slot, t.rehash) {
		t.release(slot)
		return 0
	}
	if !t.enterRing(slot) {
		t.sessions.remove(h, slot, t.rehash)
		t.release(slot)
		return 0
	}
	return slot
}

func (t *Table) release(slot uint32) {
	*t.at(slot) = record{waits: t.free}
	t.free = slot
	t.records--
}

// enterRing joins the sessions of the same BIB entry. One of them, any, stands
// for it in both indexes.
func (t *Table) enterRing(slot uint32) bool {
	r := t.at(slot)
	if first := t.findMask(&r.key); first != 0 {
		last := t.ring(first).prev
		*t.ring(slot) = neighbours{next: first, prev: last}
		t.ring(first).prev, t.ring(last).next = slot, slot
		return true
	}
	*t.ring(slot) = neighbours{slot, slot}
	if !t.masks.put(t.secret.hashMask(&r.key), slot, t.rehashMask) {
		return false
	}
	if !t.nodes.put(t.secret.hashNode(&r.key), slot, t.rehashNode) {
		t.masks.remove(t.secret.hashMask(&r.key), slot, t.rehashMask)
		return false
	}
	return true
}

// forget leaves nothing of a session.
func (t *Table) forget(slot uint32) {
	r := t.at(slot)
	t.unqueue(slot)
	t.tell(r, nothing)
	hm, hn := t.secret.hashMask(&r.key), t.secret.hashNode(&r.key)
	if n := *t.ring(slot); n.next == slot {
		t.masks.remove(hm, slot, t.rehashMask)
		t.nodes.remove(hn, slot, t.rehashNode)
	} else {
		t.ring(n.prev).next, t.ring(n.next).prev = n.next, n.prev
		t.masks.replace(hm, slot, n.next)
		t.nodes.replace(hn, slot, n.next)
	}
	t.sessions.remove(t.secret.hash(&r.key), slot, t.rehash)
	if r.flags&passing != 0 {
		t.passers--
	}
	t.release(slot)
}

// forgetRing forgets all sessions of slot's BIB entry.
func (t *Table) forgetRing(slot uint32) {
	for next := t.ring(slot).next; next != slot; next = t.ring(slot).next {
		t.forget(next)
	}
	t.forget(slot)
}
