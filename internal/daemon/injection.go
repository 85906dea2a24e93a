package daemon

import (
	"cmp"
	"context"
	"slices"
	"time"

	"joold/internal/batch"
	"joold/internal/session"
)

const (
	// perAdd is how many sessions one injection holds. While the kernel inserts
	// them, translation waits for the table's lock and ACKs for generic netlink's.
	perAdd = 250

	// maxLooks is how often the instance is looked at before it is fed, where the
	// answer keeps coming so late that it may have been made anew since.
	maxLooks = 3

	// The kernel looks for a session's place from the end of its list, past all that
	// were updated later: dear for old sessions in no order, as a C node advertises
	// them. So those wait for each other until no more has come for gatherPause, but
	// no longer than gatherTime. A session is old if it was updated before oldAge.
	oldAge      = 5 * time.Second
	gatherPause = 250 * time.Millisecond
	gatherTime  = 30 * time.Second
)

// give leaves sessions for the kernel. Those for which there is no room count as
// refused.
func (d *Daemon) give(l *link, sessions []session.Session, now time.Time) {
	policy := l.policy.Load()
	old := func(s session.Session) bool { return policy.Age(&s) > oldAge }
	if session.InOrder(sessions) || !slices.ContainsFunc(sessions, old) {
		d.put(l.inbox, sessions, now)
		return
	}
	for n := 0; len(sessions) > 0; sessions = sessions[n:] { // those of a kind together
		kind, box := old(sessions[0]), l.inbox
		if kind {
			box = l.held
		}
		for n = 1; n < len(sessions) && old(sessions[n]) == kind; n++ {
		}
		d.put(box, sessions[:n], now)
	}
}

func (d *Daemon) put(box *batch.Inbox, sessions []session.Session, now time.Time) {
	if dropped := box.Put(sessions, now); len(dropped) > 0 {
		d.out.refused(dropped)
	}
}

// inject gives the kernel what waits in a box of l's, oldest update first.
func (d *Daemon) inject(ctx context.Context, l *link, box *batch.Inbox) (err error) {
	var taken []session.Session
	for {
		select {
		case <-box.Ready():
		case <-ctx.Done():
			return ctx.Err()
		}
		if taken, err = d.empty(ctx, l, box, taken[:0]); err != nil {
			return err
		}
	}
}

// gather gives the kernel what is held until no more of the kind comes.
func (d *Daemon) gather(ctx context.Context, l *link) error {
	for {
		select {
		case <-l.held.Ready():
		case <-ctx.Done():
			return ctx.Err()
		}
		more := true
		for began := time.Now(); more && time.Since(began) < gatherTime && l.held.Counts().Waiting < inboxSize/2 && !l.translates(); {
			if !pause(ctx, gatherPause) {
				return ctx.Err()
			}
			select {
			case <-l.held.Ready():
			default:
				more = false
			}
		}
		if _, err := d.empty(ctx, l, l.held, nil); err != nil {
			return err
		}
	}
}

// empty gives the kernel what waits in a box, by way of dst, which is returned.
// Should the link be over, the rest is dropped.
func (d *Daemon) empty(ctx context.Context, l *link, box *batch.Inbox, dst []session.Session) (taken []session.Session, over error) {
	l.stir()
	most := int64(box.Counts().Waiting) // they are counted at every moment, if need be twice
	l.feeding.Add(most)
	at := time.Now()
	taken = box.Take(dst, at)
	l.feeding.Add(int64(len(taken)) - most)
	for chunk := range slices.Chunk(taken, perAdd) {
		if over = cmp.Or(over, ctx.Err()); over == nil {
			over = d.add(ctx, l, chunk, at)
		} else {
			d.count.dropped.Add(uint64(len(chunk)))
		}
		l.feeding.Add(-int64(len(chunk)))
	}
	return taken, over
}

// add gives the kernel some of what waited, as it was at a time, and fails if the
// link is over. Who waits with few sessions has a turn between two of who has many.
func (d *Daemon) add(ctx context.Context, l *link, chunk []session.Session, at time.Time) error {
	l.adding <- struct{}{}
	defer func() { <-l.adding }()
	d.work.injecting.begin()
	defer d.work.injecting.end()
	if chunk = d.checkAgain(l, d.out.current(chunk, at, time.Now())); len(chunk) == 0 {
		return nil
	}
	if !l.sync.Load() { // each attempt would be a line in the kernel's log
		d.count.dropped.Add(uint64(len(chunk)))
		d.out.refused(chunk)
		return nil
	}
	for looks := 0; looks < maxLooks && l.since(&l.seen) > trustInterval; looks++ { // it may have been made anew meanwhile
		if _, err := l.same(ctx); isOver(err) {
			d.count.dropped.Add(uint64(len(chunk)))
			return err
		} else if err != nil {
			break // poll says so
		}
	}
	if err := l.Add(chunk, l.pool6); err != nil {
		d.count.addErrors.Add(1)
		d.out.refused(chunk)
		d.limit.Warn("the module refused sessions", "sessions", len(chunk), "err", err)
		if isOver(err) {
			d.count.dropped.Add(uint64(len(chunk)))
			return err
		}
		return nil
	}
	if d.debugs(ctx) {
		d.Log.Debug("gave the kernel", "sessions", len(chunk))
	}
	d.count.addMessages.Add(1)
	d.count.injected.Add(uint64(len(chunk)))
	return nil
}

// checkAgain keeps of sessions that have waited those that are acceptable still:
// pool4 and timeouts may have changed since they came.
func (d *Daemon) checkAgain(l *link, waited []session.Session) []session.Session {
	return l.check(l.policy.Load(), waited, time.Now(), func(one []session.Session, why session.Refusal) {
		d.count.refused[why].Add(1)
		d.out.refused(one)
	})
}

// current leaves out what has ended, or of which newer word has come, since it was
// taken out of its box.
func (o *outlet) current(sessions []session.Session, at, now time.Time) []session.Session {
	o.mu.Lock()
	defer o.mu.Unlock()
	kept := sessions[:0]
	for _, s := range sessions {
		if s = s.Aged(now.Sub(at)); s.Expiration == 0 {
			o.d.count.expired.Add(1)
		} else if o.table == nil || !o.table.Overtaken(&s, now) {
			kept = append(kept, s)
		}
	}
	return kept
}

// refused forgets that the kernel has these sessions: it has not taken them.
func (o *outlet) refused(sessions []session.Session) {
	o.with(func(t *batch.Table) { t.Refused(sessions) })
}
