package daemon

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"joold/internal/batch"
	"joold/internal/control"
	"joold/internal/nlchan"
	"joold/internal/session"
)

const (
	// DefaultRate is how many sessions a second a sweep sends unless told
	// otherwise. The C daemon on the other side must be able to inject them as
	// they come: what its socket cannot hold is lost. On a slow machine its kernel
	// takes some 9,500 a second that it knows already.
	DefaultRate = 5_000

	// MaxRate bounds what a client may ask for.
	MaxRate = 10_000_000

	// maxSweeps is how many advertisements may run or wait. One that waits will
	// send all that a further one could.
	maxSweeps = 2

	// maxFailures is how many attempts in a row may fail before a sweep is given up.
	maxFailures = 10

	// resendInterval is how long after a failure it is tried again.
	resendInterval = 100 * time.Millisecond

	progressInterval = 250 * time.Millisecond
)

var errNotInService = errors.New("not in service")

// advertise sends the instance's whole table, at rate sessions per second (0:
// DefaultRate), and tells how far it is. One advertisement runs at a time, and one
// more may wait for it.
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
	for _, part := range []part{theInstance, theGroup} {
		if why := d.condition.why(part); why != "" {
			return p, fmt.Errorf("advertise: %w: %s", errNotInService, why)
		}
	}
	l := d.link.Load()
	if l == nil {
		return p, fmt.Errorf("advertise: %w", errNotInService)
	}
	select {
	case d.advertising <- struct{}{}:
		defer func() { <-d.advertising }()
	case <-ctx.Done():
		return p, ctx.Err()
	}
	if p, err = d.sweep(ctx, l, true, rate, tell); err != nil {
		return p, fmt.Errorf("advertise: %w", err)
	}
	d.Log.Info("advertised the table", "sessions", p.Total, "unreadable", p.Unreadable, "datagrams", p.Datagrams,
		"failed", p.Failed, "took", time.Duration(p.Seconds*float64(time.Second)).Round(time.Millisecond))
	return p, nil
}

// sweep reads l's table and sends, oldest updates first, all of it or what peers
// may lack. What the kernel announces meanwhile is left out, since it has gone
// out fresher. One sweep runs at a time; only a slow one lets others overtake it.
func (d *Daemon) sweep(ctx context.Context, l *link, all bool, rate int, tell func(control.Progress) error) (p control.Progress, err error) {
	select {
	case d.sweeping <- struct{}{}:
	case <-ctx.Done():
		return p, ctx.Err()
	}
	done := sync.OnceFunc(func() { <-d.sweeping })
	defer done()
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

	var table []session.Session
	if stats, err := l.Stats(ctx); err == nil { // room for what goes out at once, instead of growing into it
		n := stats.Sessions
		if !all {
			d.out.with(func(t *batch.Table) { n -= min(n, uint64(t.Counts().Sessions)) })
		}
		table = make([]session.Session, 0, min(n+n/16, 2*batch.MaxTable))
	}
	number := d.out.beginSweep()
	keep := func(page []session.Session) []session.Session { return d.out.lacking(l, page, all, time.Now()) }
	table, unreadable, err := readTable(ctx, l, table, start, keep, func(n int) error {
		p.Read = n
		return report(time.Now())
	})
	if err != nil {
		return p, err
	}
	if unreadable == 0 {
		d.out.with(func(t *batch.Table) { t.EndSweep(number) })
	}
	if rate <= DefaultRate/5 { // else both together might be too much for a peer's socket
		done()
	}
	session.SortOldestFirst(table)
	p.Total, p.Unreadable = len(table), unreadable

	pace := pacer{rate: rate, next: time.Now()}
	failures := 0
	for from := table; len(from) > 0; {
		if err := pace.wait(ctx); err != nil {
			return p, err
		}
		if d.link.Load() != l {
			return p, fmt.Errorf("%w: the instance went away", errNotInService)
		}
		through, sent, datagrams, err := d.out.sweep(l, from, start, all)
		if err == nil {
			failures = 0
		} else if failures++; failures == maxFailures {
			return p, fmt.Errorf("%d of %d sessions could not be sent: %w", len(from), p.Total, err)
		} else {
			p.Failed++
			pause(ctx, resendInterval)
		}
		from = from[through:]
		pace.spend(sent)
		p.Sent += through
		p.Datagrams += datagrams
		if err := report(time.Now()); err != nil {
			return p, err
		}
	}
	p.Seconds = time.Since(start).Seconds()
	d.out.settle(start)
	d.count.sweeps.Add(1)
	return p, nil
}

// readTable reads the kernel's whole table and appends to table what keep keeps
// of it. It counts what cannot be read. It takes a while, so each expiration is
// made to count from base.
func readTable(ctx context.Context, l *link, table []session.Session, base time.Time, keep func([]session.Session) []session.Session,
	tell func(read int) error) (_ []session.Session, unreadable int, err error) {
	read := 0
	for _, proto := range session.Protos {
		err := l.Sessions(ctx, proto, l.pool6, func(page []session.Session) error {
			read += len(page)
			since := uint64(time.Since(base).Milliseconds())
			for _, s := range keep(page) {
				s.Expiration = uint32(min(uint64(s.Expiration)+since, math.MaxUint32))
				table = append(table, s)
			}
			return tell(read)
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
