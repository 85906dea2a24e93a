package nlchan

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sys/unix"
)

// Event is something that happened to Jool's module.
type Event uint8

// The events. What is loaded first is the part that SIIT and NAT64 share: NAT64
// and its instances follow, unannounced.
const (
	ModuleLoaded Event = 1 + iota
	ModuleRemoved
	EventsLost // there were too many to keep: look for yourself
)

func (e Event) String() string {
	switch e {
	case ModuleLoaded:
		return "module loaded"
	case ModuleRemoved:
		return "module removed"
	}
	return "events lost"
}

// Watcher hears of Jool's module from the moment it is made: who looks at the
// state after that misses nothing.
type Watcher struct {
	socket Socket
	ctrl   uint16 // nlctrl's family id
}

// NewWatcher subscribes to nlctrl's notifications. It needs no privilege, and
// no module.
func NewWatcher(opts ...Option) (*Watcher, error) {
	const op = "watch for Jool's module"
	s, err := newOptions(opts).host.Socket()
	if err != nil {
		return nil, &Error{Op: op, Err: err}
	}
	f, err := resolve(s, "nlctrl")
	if err == nil {
		err = s.Join(f.groups["notify"])
	}
	if err != nil {
		s.Close()
		return nil, &Error{Op: op, Err: err}
	}
	return &Watcher{socket: s, ctrl: f.id}, nil
}

// Run gives each event to f until ctx ends, and returns ctx's error then.
func (w *Watcher) Run(ctx context.Context, f func(Event)) error {
	stop := context.AfterFunc(ctx, func() { w.socket.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	buf := make([]byte, answerSize)
	for {
		n, err := w.socket.Receive(buf)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, unix.ENOBUFS):
			f(EventsLost)
			continue
		case err != nil:
			return &Error{Op: "watch for Jool's module", Err: err}
		}
		m, _, ok := parseMessage(buf[:min(n, len(buf))])
		if !ok || m.family != w.ctrl {
			continue
		}
		if f, err := parseFamily(m.body); err != nil || f.name != joolFamily {
			continue
		}
		switch m.cmd {
		case unix.CTRL_CMD_NEWFAMILY:
			f(ModuleLoaded)
		case unix.CTRL_CMD_DELFAMILY:
			f(ModuleRemoved)
		}
	}
}

// Close ends the subscription, and a Run with ErrClosed.
func (w *Watcher) Close() error { return w.socket.Close() }
