package daemon

import (
	"log/slog"
	"sync"

	"joold/internal/logging"
	"joold/internal/mcast"
)

// links says to the log how each of several links stands, when that changes.
type links struct {
	mu    sync.Mutex
	about []logging.Latest
	said  []linkState
}

type linkState uint8

const (
	linkWorks linkState = iota
	linkMute            // it has no carrier
	linkAway
)

// say is told of links whenever they have been looked at.
func (l *links) say(log *slog.Logger, states []mcast.LinkState) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, s := range states {
		if i == len(l.said) {
			l.about, l.said = append(l.about, logging.NewLatest(log)), append(l.said, linkWorks)
		}
		now := linkWorks
		switch {
		case s.Away != nil:
			now = linkAway
		case !s.Carrier:
			now = linkMute
		}
		if now == l.said[i] {
			continue
		}
		l.said[i] = now
		switch about := l.about[i].With("in", s.In, "out", s.Out); now {
		case linkAway:
			about.Warn("a link is away: the others carry on", "err", s.Away)
		case linkMute:
			about.Warn("a link has no carrier: the others carry on")
		default:
			about.Info("a link is in use again", "from", s.Source, "mtu", s.MTU)
		}
	}
}

// flush tells what is kept back.
func (l *links) flush() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, about := range l.about {
		about.Flush()
	}
}
