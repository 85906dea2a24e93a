package daemon

import (
	"cmp"
	"log/slog"
	"strings"
	"sync"

	sd "github.com/coreos/go-systemd/v22/daemon"

	"joold/internal/logging"
)

// part is one of the things without which the daemon does not serve.
type part int

const (
	theInstance part = iota
	theGroup
	parts // count
)

// condition is whether the daemon serves, or what it waits for. It tells its log
// and the service manager when that changes.
type condition struct {
	log    *slog.Logger
	notify func(state string) // to the service manager

	mu    sync.Mutex
	waits [parts]string // for what; "" when it is there
	ready bool          // the service manager was told that the daemon serves
}

func (c *condition) init(log *slog.Logger, limit *logging.Limiter) {
	c.log = log
	c.notify = func(state string) {
		if _, err := sd.SdNotify(false, state); err != nil {
			limit.Warn("cannot tell the service manager", "state", state, "err", err)
		}
	}
	for p := range c.waits {
		c.waits[p] = "joold has just started"
	}
}

// waitsFor says that p is away, and why.
func (c *condition) waitsFor(p part, why string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.waits[p] == why {
		return
	}
	c.waits[p] = why
	c.log.Info("waiting", "for", why)
	c.notify("STATUS=waiting: " + line(why))
}

// has says that p is there.
func (c *condition) has(p part) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waits[p] = ""
	if why := cmp.Or(c.waits[:]...); why != "" {
		c.notify("STATUS=waiting: " + line(why))
		return
	}
	state := "STATUS=in service"
	if !c.ready {
		c.ready = true
		state = sd.SdNotifyReady + "\n" + state
	}
	c.notify(state)
}

// why is what keeps p away; "" when it is there.
func (c *condition) why(p part) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.waits[p]
}

// ended says that the daemon stops.
func (c *condition) ended() { c.notify(sd.SdNotifyStopping) }

// line keeps what is told from being taken for two assignments.
func line(s string) string { return strings.ReplaceAll(s, "\n", " ") }
