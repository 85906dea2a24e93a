package daemon

import (
	"context"
	"errors"
	"time"

	"joold/internal/batch"
	"joold/internal/nlchan"
	"joold/internal/session"
)

const (
	// contestAfter is when a session that contradicts what this kernel announces
	// is looked at again: by then it announces that no more, or it is a conflict.
	contestAfter = 2500 * time.Millisecond

	maxContests = 1024 // conflicts that wait to be resolved
)

// conflict is a session that a peer sent and that the kernel would drop without
// a word, or make under another mask, since it has a BIB entry that contradicts it.
type conflict struct {
	session session.Session
	from    uint32
	heard   time.Time
	bib     batch.BIB
}

// contest has a conflict resolved: at once, if the BIB entry is the older news;
// later, if it may be about to become that.
func (d *Daemon) contest(l *link, c conflict) {
	queue := l.contests
	switch {
	case c.bib.Own, l.translates():
		queue = l.contestsLater
	case !c.bib.Older:
		d.unresolved(c, "the BIB entry is the newer")
		return
	}
	select {
	case queue <- c:
	default:
		d.unresolved(c, "too many wait")
	}
}

// unresolved says that a peer's session was left out.
func (d *Daemon) unresolved(c conflict, why string) {
	d.count.conflicts.Add(1)
	src6, src4 := c.bib.Addrs()
	d.limit.Warn("a peer's session contradicts the BIB and was left out", "because", why,
		"session", c.session.Src6Addr(), "mask", c.session.Src4Addr(), "bib", src6, "bib_mask", src4)
}

// contend resolves the conflicts of a queue, each some time after it was heard of,
// by removing BIB entries that are older news than the sessions that contradict
// them. A node that translates has none removed: nobody knows better than it.
func (d *Daemon) contend(ctx context.Context, l *link, queue <-chan conflict, after time.Duration) error {
	for {
		var c conflict
		select {
		case c = <-queue:
		case <-ctx.Done():
			return ctx.Err()
		}
		if !pause(ctx, time.Until(c.heard.Add(after))) {
			return ctx.Err()
		}
		if err := d.resolve(ctx, l, c); isOver(err) {
			return err
		} else if err != nil {
			d.unresolved(c, err.Error())
		}
	}
}

var errInUse = errors.New("the BIB entry is in use or the newer")

// resolve makes room for a session. It may be in the way of both sides of it.
func (d *Daemon) resolve(ctx context.Context, l *link, c conflict) error {
	for {
		now := time.Now()
		s := c.session.Aged(now.Sub(c.heard))
		verdict, bib := d.out.judge(c.from, &s, now)
		if verdict == batch.Inject {
			l.inbox.Put([]session.Session{s}, now)
		}
		if verdict != batch.Conflict {
			return nil
		}
		if bib.Own || !bib.Older || l.translates() {
			return errInUse
		}
		src6, src4 := bib.Addrs()
		err := l.RemoveBIB(ctx, bib.Proto, src6, src4)
		if err != nil && !errors.Is(err, nlchan.ErrNoBIB) {
			return err
		}
		d.out.with(func(t *batch.Table) { t.RemoveBIB(bib) })
		d.count.resolved.Add(1)
		if d.debugs(ctx) {
			d.Log.Debug("a BIB entry made way for a peer's session", "bib", src6, "mask", src4, "session", s.Src6Addr(), "session_mask", s.Src4Addr())
		}
	}
}

// judge asks the table about one session.
func (o *outlet) judge(from uint32, s *session.Session, now time.Time) (verdict batch.Verdict, bib batch.BIB) {
	verdict = batch.Stale // of an instance that is gone
	o.with(func(t *batch.Table) { verdict, bib = t.Accept(from, s, now) })
	return verdict, bib
}
