package batch

// place is where a session waits to be sent, in one of two queues. Places are
// numbered from 1.
type place struct {
	slot       uint32
	prev, next uint32 // in the queue; of a free place, next is the next free one
	since      instant
	refresh    bool
}

const pagePlaces = 1024

// queue is a list of places, oldest first.
type queue struct {
	first, last uint32
	len         int
}

func (t *Table) place(n uint32) *place { return &t.places[n/pagePlaces][n%pagePlaces] }

func (t *Table) queueOf(p *place) *queue {
	if p.refresh {
		return &t.refreshes
	}
	return &t.news
}

// enqueue lets a session wait that does not wait yet, behind the others of its
// queue, or before them.
func (t *Table) enqueue(slot uint32, refresh, front bool, now int64) {
	n := t.freePlace
	if n != 0 {
		t.freePlace = t.place(n).next
	} else {
		n = t.topPlace
		if int(n/pagePlaces) == len(t.places) {
			t.places = append(t.places, new([pagePlaces]place))
		}
		t.topPlace++
	}
	p := t.place(n)
	*p = place{slot: slot, refresh: refresh}
	p.since.set(now)
	t.at(slot).waits = n
	q := t.queueOf(p)
	q.len++
	if front {
		p.next = q.first
	} else {
		p.prev = q.last
	}
	if p.prev == 0 {
		q.first = n
	} else {
		t.place(p.prev).next = n
	}
	if p.next == 0 {
		q.last = n
	} else {
		t.place(p.next).prev = n
	}
}

// unqueue lets a session wait no longer, if it does.
func (t *Table) unqueue(slot uint32) {
	n := t.at(slot).waits
	if n == 0 {
		return
	}
	t.at(slot).waits = 0
	p := t.place(n)
	q := t.queueOf(p)
	q.len--
	if p.prev == 0 {
		q.first = p.next
	} else {
		t.place(p.prev).next = p.next
	}
	if p.next == 0 {
		q.last = p.prev
	} else {
		t.place(p.next).prev = p.prev
	}
	*p = place{next: t.freePlace}
	t.freePlace = n
}

// promote makes news of a refresh that waits. It keeps the moment since which it
// has done so.
func (t *Table) promote(slot uint32) {
	p := t.place(t.at(slot).waits)
	if !p.refresh {
		return
	}
	since := p.since.get()
	t.unqueue(slot)
	t.enqueue(slot, false, false, since)
}

// trim drops what waits beyond so many: the oldest refreshes, and only when there
// are none the oldest news. What was dropped is due with its next announcement.
func (t *Table) trim(most int) {
	for t.Pending() > most {
		q, count := &t.refreshes, &t.counts.DroppedRefreshes
		if q.len == 0 {
			q, count = &t.news, &t.counts.DroppedNews
		}
		*count++
		t.yield(t.place(q.first).slot)
	}
}

// yield takes a session that was not sent out of its queue.
func (t *Table) yield(slot uint32) {
	r := t.at(slot)
	if r.flags&passing != 0 {
		t.forget(slot)
		return
	}
	t.unqueue(slot)
	r.flags |= lacking
}
