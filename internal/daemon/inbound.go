package daemon

import (
	"context"
	"errors"
	"net"
	"time"

	"joold/internal/batch"
	"joold/internal/mcast"
	"joold/internal/session"
)

const (
	readBatch = 64 // datagrams per system call

	// largeDatagram is a size, in bytes, that a datagram has when its sender has more
	// to say than fits one.
	largeDatagram = 1000

	// ownFor is for how long nothing from the network overrules what the kernel
	// has announced.
	ownFor = 2 * time.Second
)

// stray is a reason for which a datagram is not even looked into.
type stray uint8

const (
	straySender   stray = iota // outside of --net.source
	strayHopLimit              // came from further away than --net.hop-limit allows
	strayOversize              // longer than any node sends
	strays                     // count
)

func (s stray) String() string { return [strays]string{"sender", "hop limit", "size"}[s] }

// intake is what takes datagrams in. It belongs to one goroutine.
type intake struct {
	d         *Daemon
	stamps    *stamps
	datagrams []mcast.Datagram
	scratch   []session.Session
}

func newIntake(d *Daemon) *intake {
	return &intake{d: d, stamps: newStamps(d), datagrams: mcast.NewDatagrams(readBatch, mcast.MaxReceived)}
}

// read takes in what group brings until it is closed or ctx ends.
func (in *intake) read(ctx context.Context, group network) {
	d := in.d
	doze := d.newDoze()
	defer doze.end()
	for {
		d.work.listening.end()
		asked := time.Now()
		n, err := group.ReadBatch(in.datagrams)
		d.work.listening.begin()
		if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
			d.work.listening.end()
			return
		}
		if err != nil {
			d.work.listening.end()
			d.count.readErrors.Add(1)
			d.limit.Warn("cannot read from the network", "err", err)
			if !pause(ctx, 100*time.Millisecond) { // it must not become a busy loop
				return
			}
			continue
		}
		now := time.Now()
		l, large := d.link.Load(), false
		for i := range in.datagrams[:n] {
			in.accept(l, &in.datagrams[i], now)
			large = large || len(in.datagrams[i].Payload) >= largeDatagram
		}
		if large && now.Sub(asked) > atOnce { // others follow: they are taken together, and given to the kernel together
			d.work.listening.end()
			doze.wait(restTime)
		}
	}
}

// accept takes one datagram in: what may be given to the kernel is left in l's
// inbox.
func (in *intake) accept(l *link, dg *mcast.Datagram, now time.Time) {
	d := in.d
	d.count.rcvdDatagrams.Add(1)
	d.count.rcvdBytes.Add(uint64(len(dg.Payload)))
	if why, ok := d.admits(dg); !ok {
		d.count.strays[why].Add(1)
		d.limit.WarnWith("refused a datagram", func() []any { return []any{"from", dg.From, "because_of", why} })
		return
	}
	heard, ok := in.stamps.open(l, dg, now)
	if !ok {
		return
	}
	if l == nil {
		d.count.unserved.Add(1)
		return
	}
	scratch, r := session.Decode(in.scratch[:0], heard.entries, l.pool6)
	in.scratch = scratch
	d.count.rcvdSessions.Add(uint64(r.Read))
	if l.misreads() {
		d.count.unfit.Add(uint64(r.Read))
		d.peers.heard(dg.From.Addr(), r, r.Read+r.BadTotal(), heard.stamp, now)
		return
	}

	var refused [session.Refusals]int
	policy := l.policy.Load()
	if numbered(heard.stamp) {
		for i := range scratch {
			policy.Adopt(&scratch[i], &heard.timeouts)
		}
	}
	kept := l.check(policy, scratch, now, func(_ []session.Session, why session.Refusal) { refused[why]++ })
	bad := r.Read - len(kept) + r.BadTotal()
	if bad > 0 {
		addReasons(d.count.rcvdBad[:], r.Bad[:])
		addReasons(d.count.refused[:], refused[:])
		d.limit.WarnWith("refused entries from the network", func() []any {
			return []any{"from", dg.From, "entries", bad,
				"unreadable", reasonList[session.Defect](r.Bad[:]), "unacceptable", reasonList[session.Refusal](refused[:])}
		})
	}
	peer := d.peers.heard(dg.From.Addr(), r, bad, heard.stamp, now)
	src := heard.source
	if !numbered(heard.stamp) {
		src.From = plainSource(peer)
	}
	if d.debugs(context.Background()) {
		d.Log.Debug("heard", "from", dg.From, "encoding", r.Encoding, "sessions", r.Read, "taken", len(kept))
	}
	if refused[session.RefusedPool4] > 0 {
		l.doubt.Store(true)
	}
	if bad > 0 { // the instance may have been made anew
		l.stir()
	}
	kept, news, contested := d.accept(l, origin{src, peer}, kept, now)
	if heard.copied { // the oldest come first
		d.put(l.copied, kept, now)
		d.out.learned(l, news, bad+contested, len(kept))
	} else {
		d.give(l, kept, now)
	}
	if refused[session.RefusedPool4] > 0 && l.policy.Load() != policy {
		d.readmit(l, now) // which may have been done before they were kept
	}
}

// admits tells whether a datagram comes from where peers are.
func (d *Daemon) admits(dg *mcast.Datagram) (stray, bool) {
	cfg := d.live.Load()
	switch {
	case dg.Truncated:
		return strayOversize, false
	case dg.HopLimit < cfg.HopLimit:
		return strayHopLimit, false
	case len(cfg.Sources) > 0 && !cfg.Sources.Contains(dg.From.Addr()):
		return straySender, false
	}
	return 0, true
}

// origin is who sent a session.
type origin struct {
	batch.Source
	peer uint32 // its number among the peers
}

// Two ways to tell senders from each other are in use, by address and by epoch. No
// number is of both.
func plainSource(peer uint32) uint32   { return max(2, peer<<1) }
func stampedSource(from uint32) uint32 { return from<<1 | 1 }

// accept keeps of sessions that a peer sent those that are worth injecting, and has
// the conflicts among them resolved. news is how many were not known.
func (d *Daemon) accept(l *link, from origin, sessions []session.Session, now time.Time) (kept []session.Session, news, contested int) {
	if len(sessions) == 0 {
		return nil, 0, 0
	}
	d.out.mu.Lock()
	defer d.out.mu.Unlock()
	if d.out.link != l { // it ended while the datagrams were read
		return nil, 0, 0
	}
	table := d.out.table
	table.Foresee(sessions)
	told := table.Counts().Told
	kept = sessions[:0]
	for _, s := range sessions {
		switch verdict, bib := table.Accept(&from.Source, &s, now); verdict {
		case batch.Inject:
			kept = append(kept, s)
		case batch.Conflict:
			contested++
			d.contest(l, conflict{s, from, now, bib})
		}
	}
	return kept, int(table.Counts().Told - told), contested
}

// check keeps of sessions, in their place, those that policy accepts, and tells
// refused of each of the others. Those whose mask is refused are kept for when
// pool4 has changed.
func (l *link) check(policy *session.Policy, sessions []session.Session, now time.Time,
	refused func(one []session.Session, why session.Refusal)) []session.Session {
	kept := sessions[:0]
	for i := range sessions {
		s, one := sessions[i], sessions[i:i+1]
		why, ok := policy.Check(&s)
		if ok {
			kept = append(kept, s)
			continue
		}
		refused(one, why)
		if why == session.RefusedPool4 {
			l.keep(one, now)
		}
	}
	return kept
}

// keep keeps refused sessions for when pool4 has changed. When there are too many
// it begins anew, so that a stranger's do not stand in the way of others for as
// long as they claim to live.
func (l *link) keep(sessions []session.Session, now time.Time) {
	if l.refused.Counts().Waiting >= refusedSize {
		l.refused.Clear()
	}
	l.refused.Put(sessions, now)
}

// readmit looks again at what was refused for its mask, after a change of the
// policy.
func (d *Daemon) readmit(l *link, now time.Time) {
	kept := l.check(l.policy.Load(), l.refused.Take(nil, now), now, func([]session.Session, session.Refusal) {})
	if len(kept) > 0 {
		d.done.Info("sessions that were refused are accepted now", "sessions", len(kept))
		kept, _, _ = d.accept(l, origin{batch.Source{From: plainSource(keptPeer)}, keptPeer}, kept, now)
		d.give(l, kept, now)
	}
	d.out.doubtful(l)
}

// pause waits; false when ctx ends first.
func pause(ctx context.Context, t time.Duration) bool {
	if t <= 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(t)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
