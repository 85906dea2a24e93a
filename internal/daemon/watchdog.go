package daemon

import (
	"context"
	"sync/atomic"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"
)

// work is what the goroutines on the sessions' ways are at.
type work struct {
	started                                time.Time
	hearing, listening, injecting, polling task
}

// task is a goroutine's present piece of work. One that waits for work has none.
type task struct {
	name  string
	since atomic.Int64 // when it was begun, in ns after the daemon's start; 0 for none
	start *time.Time
}

func (w *work) init(started time.Time) {
	w.started = started
	for name, t := range map[string]*task{
		"hear the kernel": &w.hearing, "listen to the network": &w.listening, "feed the kernel": &w.injecting, "poll the instance": &w.polling,
	} {
		t.name, t.start = name, &w.started
	}
}

func (t *task) begin() { t.since.Store(max(1, int64(time.Since(*t.start)))) }
func (t *task) end()   { t.since.Store(0) }

// stuck is the name of a task that has been at one piece of work for longer than
// limit, or "".
func (w *work) stuck(limit time.Duration) string {
	now := time.Since(w.started)
	for _, t := range []*task{&w.hearing, &w.listening, &w.injecting, &w.polling} {
		if since := t.since.Load(); since != 0 && now-time.Duration(since) > limit {
			return t.name
		}
	}
	return ""
}

// watchdog tells the service manager, where it wants to know (WatchdogSec), that
// the daemon lives: while no piece of work takes longer than a third of that time.
func (d *Daemon) watchdog(ctx context.Context) error {
	interval, err := sd.SdWatchdogEnabled(false)
	if err != nil {
		d.Log.Warn("the service manager's watchdog makes no sense", "err", err)
	}
	if interval == 0 {
		return nil
	}
	tick := time.NewTicker(interval / 4)
	defer tick.Stop()
	for {
		if name := d.work.stuck(interval / 3); name != "" {
			d.limit.Warn("the daemon does not get on: the service manager will start it again", "with", name)
		} else {
			d.condition.notify(sd.SdNotifyWatchdog)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}
