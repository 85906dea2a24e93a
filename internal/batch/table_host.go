package batch

import (
	"time"

	"joold/internal/session"
)

// scanSlots is how many slots one Scan looks at.
const scanSlots = 2048

// Taken are references to the sessions that Take or Sweep gave last, in their
// order. A reference is 0 where the session is not remembered. They are the
// Table's until either is called again.
func (t *Table) Taken() []session.Ref { return t.taken }

// ref is a reference to the session in a slot, or to nothing if it was just
// forgotten.
func (t *Table) ref(slot uint32) session.Ref {
	if t.at(slot).flags&inUse == 0 {
		return 0
	}
	return session.Ref(slot)
}

// remembered is the record that a reference is to, whoever has its slot by now, or
// nil.
func (t *Table) remembered(ref session.Ref) *record {
	if uint32(ref) >= t.top {
		return nil
	}
	if r := t.at(uint32(ref)); r.flags&(inUse|passing) == inUse {
		return r
	}
	return nil
}

// AsOf appends to dst the sessions that are referred to, as they are now, without
// those that have ended or are not remembered.
func (t *Table) AsOf(dst []session.Session, refs []session.Ref, now time.Time) []session.Session {
	ms := t.tick(now)
	for _, ref := range refs {
		if r := t.remembered(ref); r != nil && r.dies.get() > ms {
			dst = append(dst, r.asOf(ms))
		}
	}
	return dst
}

// FirstHand tells whether the last word on a session came from this node's kernel.
func (t *Table) FirstHand(ref session.Ref) bool {
	r := t.remembered(ref)
	return r != nil && r.from == 0 && r.flags&secondHand == 0
}

// Untold tells whether no peer has ever said anything of a session, nor overruled
// what this kernel said.
func (t *Table) Untold(ref session.Ref) bool {
	r := t.remembered(ref)
	return r != nil && r.from == 0
}

// Scan goes through some of the sessions that follow the reference at, and appends
// to found those in the chosen buckets of the Digest, as long as it has room; of all
// buckets, also those that are in none yet. It returns where to go on: 0 after the
// last, as before the first. What is remembered from the first call to the last is
// come by.
func (t *Table) Scan(found []session.Placed, at session.Ref, chosen *session.Buckets) (_ []session.Placed, next session.Ref) {
	all := *chosen == session.AllBuckets
	for range scanSlots {
		if len(found) == cap(found) {
			return found, at
		}
		if at++; uint32(at) >= t.top {
			return found, 0
		}
		r := t.remembered(at)
		if r != nil && (all || r.there != nothing && chosen.Has(session.BucketOf(r.hash()))) {
			found = append(found, session.Place(at, r.proto(), r.here.timer(), r.dies.get()))
		}
	}
	return found, at
}

// Digest is that of all sessions in the table that peers know, as they know them:
// so two nodes that have heard all that each other sent have the same, though
// something may wait to be sent. It is the Table's, and changes with it.
func (t *Table) Digest() *session.Digest { return &t.digest }

// tell says what kind of session peers know from now on.
func (t *Table) tell(r *record, k kind) {
	if r.there == k {
		return
	}
	if r.there != nothing {
		t.digest.Remove(r.hash())
	}
	if r.there = k; k != nothing {
		t.digest.Add(r.hash())
	}
}

// hash is that by which nodes compare what they have been told.
func (r *record) hash() uint64 {
	s := r.session()
	s.State, s.Timer = r.there.state(), r.there.timer()
	return s.Hash()
}
