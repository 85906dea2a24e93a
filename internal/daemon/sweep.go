package daemon

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"joold/internal/control"
	"joold/internal/nlchan"
	"joold/internal/session"
)

const (
	// DefaultRate is how many sessions a second an advertisement sends unless
	// told otherwise. The C daemon on the other side must be able to inject
	// them as they come: what its socket cannot hold is lost.
	DefaultRate = 10_000

	// MaxRate bounds what a client may ask for.
	MaxRate = 10_000_000

	// maxSweeps is how many advertisements may run or wait. One that waits will
	// send all that a further one could.
	maxSweeps = 2

	progressInterval = 250 * time.Millisecond
)

var errNotInService = errors.New("not in service")

// advertise sends the instance's whole table, oldest updates first, at rate
// sessions per second (0: DefaultRate), and tells how far it is. What the kernel
// announces meanwhile is left out, since it has gone out fresher. One
// advertisement runs at a time, and one more may wait for it.
func (d *Daemon) advertise(ctx context.Context, rate int, tell func(control.Progress) error) (p control.Progress, err error) {
	if rate == 0 {
		rate = DefaultRate
	}
	if rate < 0 || rate > MaxRate {
		return p, fmt.Errorf("advertise: rate %d: want 1 to %d sessions a second", rate, MaxRate)
	}
	select {
	case d.sweeps <- struct{}{}:
		defer func() { <-d.sweeps }()
	default:
		return p, errors.New("advertise: an advertisement is under way and another waits for it already")
	}
	select {
	case d.sweeping <- struct{}{}:
		defer func() { <-d.sweeping }()
	case <-ctx.Done():
		return p, ctx.Err()
	}
	l := d.link.Load()
	if l == nil {
		return p, fmt.Errorf("advertise: %w: %s", errNotInService, d.waitingFor.Load())
	}

	start := time.Now()
	told := start
	report := func(now time.Time) error {
		if now.Sub(told) < progressInterval {
			return nil
		}
		told = now
		p.Seconds = now.Sub(start).Seconds()
		return tell(p)
	}

	d.out.watch(true)
	defer d.out.watch(false)
	table, unreadable, err := readTable(ctx, l, start, func(n int) error {
		p.Read = n
		return report(time.Now())
	})
	if err != nil {
		return p, err
	}
	session.SortOldestFirst(table)
	p.Total, p.Unreadable = len(table), unreadable

	box := d.newOutbox(l)
	pace := pacer{rate: rate, next: time.Now()}
	for p.Sent < p.Total {
		if err := pace.wait(ctx); err != nil {
			return p, err
		}
		if d.link.Load() != l {
			return p, fmt.Errorf("advertise: %w: the instance went away", errNotInService)
		}
		through, sent, datagrams, failed := d.out.sweep(box, table[p.Sent:], start)
		pace.spend(sent)
		p.Sent += through
		p.Datagrams += datagrams
		p.Failed += failed
		if err := report(time.Now()); err != nil {
			return p, err
		}
	}
	p.Seconds = time.Since(start).Seconds()
	d.log.Info("advertised the table", "sessions", p.Total, "unreadable", p.Unreadable, "datagrams", p.Datagrams,
		"failed", p.Failed, "took", time.Since(start).Round(time.Millisecond))
	if p.Failed > 0 {
		return p, fmt.Errorf("advertise: %d of %d datagrams could not be sent: see the daemon's log", p.Failed, p.Datagrams)
	}
	return p, nil
}

// readTable reads the kernel's whole table, and counts what of it cannot be read.
// It takes a while, so each expiration is made to count from base.
func readTable(ctx context.Context, l *link, base time.Time, tell func(read int) error) (table []session.Session, unreadable int, err error) {
	for _, proto := range session.Protos {
		err := l.Sessions(ctx, proto, l.pool6, func(page []session.Session) error {
			since := uint64(time.Since(base).Milliseconds())
			for _, s := range page {
				s.Expiration = uint32(min(uint64(s.Expiration)+since, math.MaxUint32))
				table = append(table, s)
			}
			return tell(len(table))
		})
		var some *nlchan.UnreadableError
		if errors.As(err, &some) { // the others are no less worth sending
			unreadable += some.Count
		} else if err != nil {
			return nil, unreadable, err
		}
	}
	return table, unreadable, nil
}

// pacer spreads sessions over time.
type pacer struct {
	rate int       // per second
	next time.Time // when the next may go
}

// wait waits until the next sessions may go. Time that was slept through is not
// made up for by a burst.
func (p *pacer) wait(ctx context.Context) error {
	const slack = 5 * time.Millisecond // shorter sleeps are no longer exact
	now := time.Now()
	if d := p.next.Sub(now); d > slack {
		pause(ctx, d)
	} else if d < -slack {
		p.next = now
	}
	return ctx.Err()
}

// spend tells that n sessions went.
func (p *pacer) spend(n int) {
	p.next = p.next.Add(time.Duration(n) * time.Second / time.Duration(p.rate))
}
