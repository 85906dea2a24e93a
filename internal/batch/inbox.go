// Package batch owns sessions while they wait, and what is remembered of them: a
// Table tells what of the kernel's announcements is worth sending and what of the
// network's is worth injecting, and an Inbox gathers the latter into cheap
// injections. Waiting never makes a session younger: the time is taken off its
// expiration. The package does no I/O, and the clock comes from outside.
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
// it, and counts them; what it holds already is always brought up to date. Those
// that it dropped are what it returns, moved to the front of sessions.
func (i *Inbox) Put(sessions []session.Session, now time.Time) (dropped []session.Session) {
	dropped = sessions[:0]
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
			dropped = append(dropped, *s)
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
	return dropped
}

// Clear throws away what waits.
func (i *Inbox) Clear() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.pending = i.pending[:0]
	clear(i.index)
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
