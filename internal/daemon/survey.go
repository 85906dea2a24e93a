package daemon

import (
	"context"
	"time"

	"joold/internal/batch"
	"joold/internal/session"
)

const (
	// surveyInterval is how often the kernel's tables are read for what nothing tells:
	// a session or a BIB entry that somebody removed, or that the kernel did not take,
	// and the static BIB. Until then what a peer says of such a session may be taken
	// for known. It is rare, and all of both tables must be read.
	surveyInterval = 10 * time.Minute

	// surveyRate is how many entries of them are read in a second. It takes 5 s for
	// 100,000; everybody else's requests come in between any two pages of 25.
	surveyRate = 20_000
)

// survey looks the kernel's tables through now and then, and when it is asked to.
// Neither the poll of the settings nor a sweep waits for it.
func (d *Daemon) survey(ctx context.Context, l *link) error {
	timer := time.NewTimer(surveyInterval)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-l.asked:
		case <-ctx.Done():
			return ctx.Err()
		}
		if err := d.readStatic(ctx, l); err != nil {
			return err
		}
		if err := d.learn(ctx, l, surveyRate); err != nil {
			return err
		}
		timer.Reset(surveyInterval)
	}
}

// readStatic reads the static BIB, and has it applied. It fails if the link is over.
func (d *Daemon) readStatic(ctx context.Context, l *link) error {
	pace := pacer{rate: surveyRate}
	static, err := l.StaticBIB(ctx, func(entries int) error {
		pace.spend(entries)
		return pace.wait(ctx)
	})
	if err != nil {
		return d.unread(err)
	}
	l.bib.Store(&static)
	signal(l.stirred)
	return nil
}

// learn reads l's table, at rate sessions a second, for what the outlet does not
// know of it, and for what has left it. It fails if the link is over.
func (d *Daemon) learn(ctx context.Context, l *link, rate int) error {
	pace := pacer{rate: rate}
	number := d.out.beginSweep()
	keep := func(page []session.Session) []session.Session {
		now := time.Now()
		d.out.with(func(t *batch.Table) {
			t.Foresee(page)
			for i := range page {
				t.Learn(&page[i], now)
			}
		})
		pace.spend(len(page))
		return nil
	}
	_, unreadable, err := readTable(ctx, l, nil, time.Now(), keep, func(int) error { return pace.wait(ctx) })
	if err != nil {
		return d.unread(err)
	}
	if unreadable == 0 {
		d.out.with(func(t *batch.Table) { t.EndSweep(number) })
	}
	return nil
}

// unread says that a table could not be read, and is err if that ends the link.
func (d *Daemon) unread(err error) error {
	if isOver(err) {
		return err
	}
	d.limit.Warn("cannot read the kernel's table", "instance", d.fixed.Instance, "err", err)
	return nil
}
