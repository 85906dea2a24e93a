// Package batch owns sessions while they wait: an Outbox gathers what the
// kernel announced into full datagrams, an Inbox gathers what the network
// brought into cheap injections. Waiting never makes a session younger: the
// time is taken off its expiration. The package does no I/O, and the clock
// comes from outside.
package batch

import (
	"sync"
	"time"

	"joold/internal/session"
)

// waiting is a session and the moment since which it has waited.
type waiting struct {
	session session.Session
	since   time.Time
}

// Outbox gathers sessions until they fill a datagram or the first of them has
// waited for the deadline. It holds no more than one datagram's worth. It is
// not safe for concurrent use.
type Outbox struct {
	encoding session.Encoding
	pool6    session.Pool6
	deadline time.Duration
	room     int
	pending  []waiting
}

// NewOutbox makes an Outbox whose datagrams carry at most maxPayload bytes.
func NewOutbox(e session.Encoding, p session.Pool6, maxPayload int, deadline time.Duration) *Outbox {
	o := &Outbox{encoding: e, pool6: p, deadline: deadline}
	o.Resize(maxPayload)
	return o
}

// Resize changes the size of the datagrams to come. Each carries one entry at
// the least: a path that cannot even carry that says so when it is sent.
func (o *Outbox) Resize(maxPayload int) {
	o.room = max(1, maxPayload/o.encoding.EntrySize())
}

// Add takes s in, and tells whether a datagram is now full: then Pack must
// come before the next Add.
func (o *Outbox) Add(s *session.Session, now time.Time) (full bool) {
	o.pending = append(o.pending, waiting{*s, now})
	return len(o.pending) >= o.room
}

// Len is how many sessions wait.
func (o *Outbox) Len() int { return len(o.pending) }

// Due is when the datagram must leave though it is not full; ok is false when
// nothing waits.
func (o *Outbox) Due() (at time.Time, ok bool) {
	if len(o.pending) == 0 {
		return time.Time{}, false
	}
	return o.pending[0].since.Add(o.deadline), true
}

// Pack appends to b the datagram of what waits, and empties the Outbox.
func (o *Outbox) Pack(b []byte, now time.Time) []byte {
	for i := range o.pending {
		w := &o.pending[i]
		s := w.session.Aged(now.Sub(w.since))
		b = o.encoding.Append(b, &s, o.pool6)
	}
	o.pending = o.pending[:0]
	return b
}

// Inbox gathers sessions until the kernel takes them: of each only what came
// last, at most a given number. One side may Put while the other waits and
// Takes.
type Inbox struct {
	capacity int
	ready    chan struct{} // holds a token while something may wait

	mu      sync.Mutex
	pending []waiting
	index   map[session.Key]int // into pending
	dropped uint64
	expired uint64
}

// NewInbox makes an Inbox of so many sessions.
func NewInbox(capacity int) *Inbox {
	return &Inbox{
		capacity: capacity,
		ready:    make(chan struct{}, 1),
		index:    make(map[session.Key]int),
	}
}

// Ready yields a value when something may be there to Take.
func (i *Inbox) Ready() <-chan struct{} { return i.ready }

// Put takes sessions in. Where there is no room it drops those that are new to
// it, and counts them; what it holds already is always brought up to date.
func (i *Inbox) Put(sessions []session.Session, now time.Time) {
	i.mu.Lock()
	for n := range sessions {
		s := &sessions[n]
		k := s.Key()
		if at, ok := i.index[k]; ok {
			i.pending[at] = waiting{*s, now}
			continue
		}
		if len(i.pending) >= i.capacity {
			i.dropped++
			continue
		}
		i.index[k] = len(i.pending)
		i.pending = append(i.pending, waiting{*s, now})
	}
	i.mu.Unlock()
	select {
	case i.ready <- struct{}{}:
	default:
	}
}

// Take appends to dst all that waits and still lives, in the order in which the
// kernel takes it in cheaply, and empties the Inbox.
func (i *Inbox) Take(dst []session.Session, now time.Time) []session.Session {
	i.mu.Lock()
	from := len(dst)
	for n := range i.pending {
		w := &i.pending[n]
		if s := w.session.Aged(now.Sub(w.since)); s.Expiration > 0 {
			dst = append(dst, s)
		} else {
			i.expired++
		}
	}
	i.pending = i.pending[:0]
	clear(i.index)
	i.mu.Unlock()
	session.SortOldestFirst(dst[from:])
	return dst
}

// InboxCounts are what an Inbox has seen.
type InboxCounts struct {
	Waiting int    // sessions now
	Dropped uint64 // sessions that found no room
	Expired uint64 // sessions that died waiting, or came dead
}

// Counts are safe to ask for at any time.
func (i *Inbox) Counts() InboxCounts {
	i.mu.Lock()
	defer i.mu.Unlock()
	return InboxCounts{len(i.pending), i.dropped, i.expired}
}
