package daemon

import (
	"context"
	"sync"
	"time"

	"joold/internal/control"
)

const (
	// restInterval is the least time between two sweeps that nobody asked for;
	// a large table is left alone for half as long as it took.
	restInterval = 500 * time.Millisecond

	// maxRest is the time between two attempts at a sweep that does not work out.
	maxRest = 30 * time.Second

	missedSweep = "the daemon did not hear all that the kernel announced"

	// routineSweep is why a module is swept that announces only most sessions.
	routineSweep = "this module does not announce all sessions (Jool up to 4.1.10)"
)

// repairs is what the daemon owes its peers: a sweep of the kernel's table, which
// sends what they may lack.
type repairs struct {
	kick chan struct{} // holds a token while something is owed

	mu   sync.Mutex
	owed repair
}

// repair is a sweep that is owed.
type repair struct {
	why   string // "" for none
	all   bool   // whether to send all sessions, not just those that peers may lack
	quiet bool   // whether it is no news
}

func newRepairs() repairs { return repairs{kick: make(chan struct{}, 1)} }

// owe has the kernel's table swept.
func (r *repairs) owe(why string) { r.add(repair{why: why}) }

// oweQuietly is owe for what happens all the time.
func (r *repairs) oweQuietly(why string) { r.add(repair{why: why, quiet: true}) }

// oweAll has all of the kernel's table sent.
func (r *repairs) oweAll(why string) { r.add(repair{why: why, all: true}) }

// add joins a repair to what is owed already: one sweep serves for both.
func (r *repairs) add(more repair) {
	r.mu.Lock()
	if r.owed.why == "" || r.owed.quiet {
		more.all = more.all || r.owed.all
		r.owed = more
	} else {
		r.owed.all = r.owed.all || more.all
	}
	r.mu.Unlock()
	signal(r.kick)
}

// take is what is owed; it then no longer is.
func (r *repairs) take() repair {
	r.mu.Lock()
	defer r.mu.Unlock()
	owed := r.owed
	r.owed = repair{}
	return owed
}

// repair sweeps the kernel's table when that is owed.
//
// Only the table of a node that translates, or may have, is worth sending: that
// of a backup is what it heard from others, less what it has missed since. So it
// waits for the kernel's first word, or for silence all round. But what the kernel
// holds when the daemon comes must be known at once, to tell what contradicts it.
func (d *Daemon) repair(ctx context.Context, l *link) error {
	if err := d.learn(ctx, l, MaxRate); err != nil {
		return err
	}
	select {
	case <-l.active:
	case <-ctx.Done():
		return ctx.Err()
	}
	rest := restInterval
	said := make(map[string]time.Time) // when a sweep was last told of, by its reason
	for {
		select {
		case <-d.repairs.kick:
		case <-ctx.Done():
			return ctx.Err()
		}
		if !pause(ctx, rest) {
			return ctx.Err()
		}
		owed := d.repairs.take()
		if owed.why == "" {
			continue
		}
		began := time.Now()
		p, err := d.sweep(ctx, l, owed.all, DefaultRate, func(control.Progress) error { return nil })
		if ctx.Err() != nil {
			d.repairs.add(owed) // the next link's
			return ctx.Err()
		}
		took := time.Since(began)
		if err != nil {
			rest = min(2*rest, maxRest)
		} else {
			rest = max(restInterval, took/2)
		}
		switch {
		case isOver(err):
			return err
		case err != nil:
			d.limit.Warn("the sweep of the kernel's table was cut short: it will be tried again", "why", owed.why, "err", err)
			d.repairs.add(owed)
		case owed.quiet && p.Sent == 0:
		case owed.quiet, time.Since(said[owed.why]) < time.Minute:
			d.Log.Debug("swept the kernel's table", "why", owed.why, "sessions", p.Read, "sent", p.Sent, "took", took.Round(time.Millisecond))
		default:
			said[owed.why] = time.Now()
			d.done.Info("swept the kernel's table", "why", owed.why, "sessions", p.Read, "sent", p.Sent, "took", took.Round(time.Millisecond))
		}
	}
}
