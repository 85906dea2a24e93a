package daemon

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"time"

	"joold/internal/batch"
	"joold/internal/control"
	"joold/internal/nlchan"
	"joold/internal/session"
)

const (
	// contestAfter is when a session that contradicts what this kernel announces
	// is looked at again: by then it announces that no more, or it is a conflict.
	contestAfter = 2500 * time.Millisecond

	maxContests = 1024 // conflicts that wait to be resolved

	// maxNamed is how many of those that were not resolved status names.
	maxNamed = 8
)

// conflict is a session that a peer sent and that the kernel would drop without
// a word, or make under another mask, since it has a BIB entry that contradicts it.
type conflict struct {
	session session.Session
	from    origin
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
	u := named{
		proto: c.session.Proto, session: c.session.Src6Addr(), mask: c.session.Src4Addr(),
		from: c.from.peer, why: why, heard: c.heard, times: 1,
	}
	u.bib, u.bibMask = c.bib.Addrs()
	d.conflicts.add(u)
	d.limit.WarnWith("a peer's session contradicts the BIB and was left out", func() []any {
		return []any{"because", why, "session", u.session, "mask", u.mask, "bib", u.bib, "bib_mask", u.bibMask}
	})
}

// named is a conflict that was not resolved.
type named struct {
	proto         session.Proto
	session, mask netip.AddrPort // what the peer says
	bib, bibMask  netip.AddrPort // what the kernel has
	from          uint32         // the peer that said so last
	why           string
	heard         time.Time // when it did
	times         uint64    // how often it was said
}

// about tells whether two conflicts are between the same claims.
func (u *named) about(v *named) bool {
	return u.proto == v.proto && u.session == v.session && u.mask == v.mask && u.bib == v.bib && u.bibMask == v.bibMask
}

// conflicts remembers the last that were not resolved, the latest first. One that
// a peer repeats is one.
type conflicts struct {
	mu   sync.Mutex
	last []named
}

func (cs *conflicts) add(u named) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	at := slices.IndexFunc(cs.last, func(v named) bool { return u.about(&v) })
	switch {
	case at >= 0:
		u.times += cs.last[at].times
	case len(cs.last) < maxNamed:
		cs.last = append(cs.last, named{})
		fallthrough
	default:
		at = len(cs.last) - 1
	}
	copy(cs.last[1:], cs.last[:at])
	cs.last[0] = u
}

// snapshot lists them for status. Who sent one is not named once too many others
// have been heard since.
func (cs *conflicts) snapshot(senders map[uint32]netip.Addr, now time.Time) []control.Conflict {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	list := make([]control.Conflict, 0, len(cs.last))
	for _, u := range cs.last {
		c := control.Conflict{
			Proto: u.proto.String(), Session: u.session.String(), Mask: u.mask.String(), BIB: u.bib.String(), BIBMask: u.bibMask.String(),
			Because: u.why, Times: u.times, LastHeard: u.heard, Ago: now.Sub(u.heard).Seconds(),
		}
		if from, ok := senders[u.from]; ok {
			c.From = from.String()
		}
		list = append(list, c)
	}
	return list
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
		verdict, bib := d.out.judge(&c.from.Source, &s, now)
		if verdict == batch.Inject {
			d.put(l.inbox, []session.Session{s}, now)
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
func (o *outlet) judge(from *batch.Source, s *session.Session, now time.Time) (verdict batch.Verdict, bib batch.BIB) {
	verdict = batch.Stale // of an instance that is gone
	o.with(func(t *batch.Table) { verdict, bib = t.Accept(from, s, now) })
	return verdict, bib
}
