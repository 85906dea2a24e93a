package daemon

import (
	"cmp"
	"net"
	"os"
	"strings"
	"sync"
	"time"

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
	about  [parts]logging.Latest
	notify func(state string) error // to the service manager

	mu    sync.Mutex
	waits [parts]string // for what; "" when it is there
	ready bool          // the service manager was told that the daemon serves
}

func (c *condition) init(about [parts]logging.Latest, limit *logging.Limiter) {
	c.about = about
	c.notify = func(state string) error {
		err := notify(state)
		if err != nil {
			limit.Warn("cannot tell the service manager", "state", state, "err", err)
		}
		return err
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
	c.about[p].Info("waiting", "for", why)
	c.notify("STATUS=waiting: " + line(why))
}

// has says that p is there.
func (c *condition) has(p part) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waits[p] = ""
	c.tell()
}

// tell tells the service manager how it is. That the daemon serves is told again
// until it is taken: the manager starts nothing that depends on it before.
func (c *condition) tell() {
	if why := cmp.Or(c.waits[:]...); why != "" {
		c.notify("STATUS=waiting: " + line(why))
		return
	}
	state := "STATUS=in service"
	if !c.ready {
		state = sd.SdNotifyReady + "\n" + state
	}
	if c.notify(state) == nil {
		c.ready = true
	} else if !c.ready {
		time.AfterFunc(retryInterval, func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.tell()
		})
	}
}

// notifyTime bounds the wait for a service manager that does not read.
const notifyTime = 100 * time.Millisecond

// notify is sd_notify, which would wait for ever.
func notify(state string) error {
	name := os.Getenv("NOTIFY_SOCKET")
	if name == "" {
		return nil
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetWriteDeadline(time.Now().Add(notifyTime))
	_, err = conn.Write([]byte(state))
	return err
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
