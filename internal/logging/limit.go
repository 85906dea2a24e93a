package logging

import (
	"sync"
	"time"
)

// Limit bounds how often messages of a kind are logged when a stranger, or a
// fault, decides how often they occur. Its memory and its rate are bounded
// whatever keys it is given. It may be used by several goroutines at once.
type Limit[K comparable] struct {
	every time.Duration
	max   int

	mu     sync.Mutex
	keys   map[K]*mute
	others mute // of keys that found no room
}

// mute is when a message was last let through, and how many were not since.
type mute struct {
	since      time.Time
	suppressed uint64
}

// NewLimit lets one message in every span of time through for each key, and
// remembers at most max keys: those beyond share one message.
func NewLimit[K comparable](every time.Duration, max int) *Limit[K] {
	return &Limit[K]{every: every, max: max, keys: make(map[K]*mute)}
}

// Allow tells whether a message of this key is to be logged now, and how many
// have been suppressed since the last one.
func (l *Limit[K]) Allow(key K) (suppressed uint64, ok bool) {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	m := l.keys[key]
	if m == nil {
		if len(l.keys) >= l.max {
			l.forget(now)
		}
		if m = &l.others; len(l.keys) < l.max {
			m = new(mute)
			l.keys[key] = m
		}
	}
	if !m.since.IsZero() && now.Sub(m.since) < l.every {
		m.suppressed++
		return 0, false
	}
	suppressed = m.suppressed
	*m = mute{since: now}
	return suppressed, true
}

// forget makes room by dropping keys that would be let through again. What
// they suppressed is told with the next message that shares.
func (l *Limit[K]) forget(now time.Time) {
	for k, m := range l.keys {
		if now.Sub(m.since) >= l.every {
			l.others.suppressed += m.suppressed
			delete(l.keys, k)
		}
	}
}
