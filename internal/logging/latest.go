package logging

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

const (
	latestBurst = 30               // lines that are told as they come
	latestSpan  = 20 * time.Second // between those beyond
)

// Latest is a logger of how something stands, each line of which puts those before
// it out of date. Beyond a burst only the latest is told, at most every 20 s, with
// how many were not: so the log always ends with how things are. It may be used by
// several goroutines at once.
type Latest struct {
	*slog.Logger
	bound *bound
}

// NewLatest makes one whose lines go to log.
func NewLatest(log *slog.Logger) Latest {
	b := new(bound)
	return Latest{slog.New(latestHandler{log.Handler(), b}), b}
}

// Flush tells what is kept back.
func (l Latest) Flush() { l.bound.flush(time.Now()) }

// latestHandler is a handler before another, and all that are made from it.
type latestHandler struct {
	slog.Handler
	bound *bound
}

func (h latestHandler) WithAttrs(as []slog.Attr) slog.Handler {
	return latestHandler{h.Handler.WithAttrs(as), h.bound}
}

func (h latestHandler) WithGroup(name string) slog.Handler {
	return latestHandler{h.Handler.WithGroup(name), h.bound}
}

func (h latestHandler) Handle(ctx context.Context, r slog.Record) error {
	return h.bound.handle(ctx, h.Handler, r)
}

// bound is how many lines may still be told, and the latest that was not.
type bound struct {
	mu         sync.Mutex
	spent      time.Time // when all lines of the burst may be told again
	tell       func() error
	suppressed uint64 // before that one
	timer      *time.Timer
}

func (b *bound) handle(ctx context.Context, h slog.Handler, r slog.Record) error {
	now := time.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	wait := b.spent.Add(-(latestBurst - 1) * latestSpan).Sub(now)
	switch {
	case b.tell != nil:
		b.suppressed++
	case wait > 0:
		b.timer = time.AfterFunc(wait, func() { b.flush(time.Now()) })
	default:
		b.spend(now)
		return h.Handle(ctx, r)
	}
	r = r.Clone()
	b.tell = func() error {
		if b.suppressed > 0 {
			r.AddAttrs(slog.Uint64("suppressed", b.suppressed))
		}
		return h.Handle(ctx, r)
	}
	return nil
}

func (b *bound) spend(now time.Time) {
	if b.spent.Before(now) {
		b.spent = now
	}
	b.spent = b.spent.Add(latestSpan)
}

func (b *bound) flush(now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.tell == nil {
		return
	}
	b.timer.Stop()
	b.spend(now)
	b.tell()
	b.tell, b.suppressed = nil, 0
}
