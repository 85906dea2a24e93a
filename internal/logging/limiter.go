package logging

import (
	"log/slog"
	"sync"
	"time"
)

const (
	limiterSpan = time.Minute // between two lines with the same message
	limiterKeys = 32          // messages that are told apart
)

// Limiter bounds how often the same message is logged when a stranger, or a
// fault, decides how often there is cause for it: once a minute for each message.
// Its memory and its rate are bounded even if messages never repeat. It may be
// used by several goroutines at once.
type Limiter struct {
	log *slog.Logger

	mu     sync.Mutex
	muted  map[string]*mute
	others mute // of messages that found no room
}

// mute is when a message was last logged, and how often it was not since.
type mute struct {
	since      time.Time
	suppressed uint64
}

// NewLimiter makes a limiter of what goes to log.
func NewLimiter(log *slog.Logger) *Limiter {
	return &Limiter{log: log, muted: make(map[string]*mute)}
}

// Warn logs msg, or keeps it back if it was logged less than a minute ago. How
// many were kept back is an attribute of the next one.
func (l *Limiter) Warn(msg string, args ...any) {
	if suppressed, ok := l.allow(msg); ok {
		l.warn(msg, suppressed, args)
	}
}

// WarnWith is Warn for what may come with each datagram or session: args is only
// called, and the attributes only made, for a line that is logged.
func (l *Limiter) WarnWith(msg string, args func() []any) {
	if suppressed, ok := l.allow(msg); ok {
		l.warn(msg, suppressed, args())
	}
}

func (l *Limiter) warn(msg string, suppressed uint64, args []any) {
	if suppressed > 0 {
		args = append(args[:len(args):len(args)], "suppressed", suppressed)
	}
	l.log.Warn(msg, args...)
}

func (l *Limiter) allow(msg string) (suppressed uint64, ok bool) {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	m := l.muted[msg]
	if m == nil {
		if len(l.muted) >= limiterKeys {
			l.forget(now)
		}
		if m = &l.others; len(l.muted) < limiterKeys {
			m = new(mute)
			l.muted[msg] = m
		}
	}
	if !m.since.IsZero() && now.Sub(m.since) < limiterSpan {
		m.suppressed++
		return 0, false
	}
	suppressed = m.suppressed
	*m = mute{since: now}
	return suppressed, true
}

// forget makes room by dropping messages that would be logged again. What they
// suppressed is told with the next one that finds no room.
func (l *Limiter) forget(now time.Time) {
	for msg, m := range l.muted {
		if now.Sub(m.since) >= limiterSpan {
			l.others.suppressed += m.suppressed
			delete(l.muted, msg)
		}
	}
}
