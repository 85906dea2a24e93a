package daemon

import (
	"cmp"
	"context"
	"errors"
	"net"
	"slices"
	"sync"
	"time"

	"joold/internal/alarm"
	"joold/internal/batch"
	"joold/internal/mcast"
	"joold/internal/nlchan"
	"joold/internal/session"
	"joold/internal/wire"
)

const (
	// pumpAtMost is how many datagrams are sent before others have their turn.
	pumpAtMost = 64

	// flushTime bounds what is sent at the end.
	flushTime = 500 * time.Millisecond

	// maxHold bounds the wait before a datagram is tried again. The first waits
	// are parts of the deadline.
	maxHold = time.Second

	// lateACKs is how many ACKs follow the kernel's last message, a flush
	// deadline apart. They make it look at its queue, where the tail of a burst
	// lies otherwise until the module's own timer comes by, each 2 s.
	lateACKs = 4

	// kernelTick is the kernel's, at its longest but for rare builds: an ACK that
	// comes one earlier than the flush deadline finds it not passed.
	kernelTick = 4 * time.Millisecond

	// restTime is for how long the kernel's queue is left alone after a full message
	// that had to be waited for, which is acknowledged after that. Where so much is
	// announced, messages are then there when they are asked for, several in a row,
	// instead of waking the daemon one by one, which is most of what they cost.
	// Meanwhile restCapacity, which is what the queue gets by default, has room for a
	// million sessions a second.
	restTime     = 15 * time.Millisecond
	restCapacity = 16384

	// atOnce is the time within which a message, or a datagram, comes that was there.
	atOnce = time.Millisecond
)

// hear takes what the kernel announces and hands it to the outlet. The channel has
// ACKed each message before it is seen here, but for those that it rests after.
func (d *Daemon) hear(ctx context.Context, l *link) error {
	defer d.work.hearing.end()
	doze := d.newDoze()
	defer doze.end()
	buf := make([]byte, nlchan.MessageSize)
	var heard []session.Session
	var asked time.Time
	entry := l.Module().Encoding.EntrySize()
	l.Hold(func(entries int) bool { return time.Since(asked) > atOnce && l.crowded(entries/entry) })
	for {
		d.work.hearing.end()
		asked = time.Now()
		m, err := l.Receive(buf)
		d.work.hearing.begin()
		waited := time.Since(asked) > atOnce
		if errors.Is(err, nlchan.ErrOverrun) {
			d.count.overruns.Add(1)
			d.limit.Warn("the kernel announced faster than the daemon heard: its table will be swept", "instance", d.fixed.Instance)
			d.repairs.owe(missedSweep)
			continue
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return err
		}
		l.spoken()
		if l.loses() {
			d.repairs.oweQuietly(routineSweep)
		}
		var r session.Report
		heard, r = session.Decode(heard[:0], m.Entries, l.pool6)
		d.count.kernelMessages.Add(1)
		d.count.kernelSessions.Add(uint64(r.Read))
		d.count.kernelBytes.Add(uint64(len(m.Entries)))
		if r.BadTotal() > 0 {
			addReasons(d.count.kernelBad[:], r.Bad[:])
			d.limit.WarnWith("the kernel announced sessions that cannot be read", func() []any {
				return []any{"entries", r.BadTotal(), "why", reasonList[session.Defect](r.Bad[:])}
			})
		}
		if d.debugs(ctx) {
			d.Log.Debug("the kernel announced", "sessions", r.Read, "bytes", len(m.Entries))
		}
		announced := r.Read + r.BadTotal()
		d.out.announce(heard, l.last(announced, d.live.Load().BatchDeadline), time.Now())
		if waited && l.crowded(announced) {
			d.work.hearing.end()
			d.out.rest(time.Now())
			doze.wait(restTime)
		}
		if m.Held {
			if err := l.Ack(); err != nil {
				return err
			}
		}
	}
}

// drain sends the late ACKs: none while messages follow each other.
func (d *Daemon) drain(ctx context.Context, l *link) error {
	doze := d.newDoze()
	defer doze.end()
	for {
		select {
		case <-l.heard:
		case <-ctx.Done():
			return ctx.Err()
		}
		for left := lateACKs; left > 0; left-- {
			apart := l.flushDeadline() + kernelTick
			for wait := apart; wait > 0; wait = apart - l.since(&l.spoke) {
				doze.alarm.Reset(wait)
				select {
				case <-doze.over:
				case <-ctx.Done():
					return ctx.Err()
				}
				select {
				case <-l.heard:
					left = lateACKs
				default:
				}
			}
			if !l.sync.Load() { // each ACK would be a line in the kernel's log
				break
			}
			if err := l.Ack(); isOver(err) {
				return err
			} else if err != nil {
				d.limit.Warn("cannot acknowledge", "instance", d.fixed.Instance, "err", err)
			}
		}
	}
}

// outlet is where sessions leave: the table of sessions, what of it waits to be
// sent, and the timer that sends it when no more comes. All of it is behind one
// lock.
type outlet struct {
	d *Daemon

	mu       sync.Mutex
	link     *link             // whose table it is; nil while there is no instance
	table    *batch.Table      // likewise
	past     batch.TableCounts // of the tables before
	encoding session.Encoding
	pool6    session.Pool6
	room     int          // entries in a datagram
	timer    *alarm.Alarm // calls ring
	wakes    time.Time    // when timer fires; zero when it is not set
	failed   int          // datagrams in a row that could not be sent
	failedAt time.Time    // since when
	dropped  uint64       // what drops was then
	heldTill time.Time    // no datagram is tried before
	restTill time.Time    // more is likely to have come by then
	packed   []session.Session
	refs     []session.Ref // to what is sent, where that is not all of what was taken
	some     []session.Session
	buf      []byte

	tableConfig batch.TableConfig
	expired     time.Time            // when what has died was last looked for
	asleep      func() time.Duration // tells how long this machine has slept since it was booted
	member      member
	standing    standing
}

func newOutlet(d *Daemon) *outlet {
	o := &outlet{d: d, asleep: asleep}
	o.standing.init(d)
	return o
}

// close ends the alarms.
func (o *outlet) close() {
	o.timer.Close()
	o.member.timer.Close()
}

// ring sends what has waited long enough.
func (o *outlet) ring() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.wakes = time.Time{}
	o.pump(time.Now(), false)
}

// begin makes the outlet l's. What was known of another instance is forgotten. kept
// is whether its table is one that was in sync just now.
func (o *outlet) begin(l *link, kept bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.follow(l)
	o.link, o.table = l, batch.NewTable(o.tableConfig)
	o.encoding, o.pool6 = l.wire, l.pool6
	o.describe(l)
	o.resizeLocked(o.d.maxPayload())
	o.enter(kept, time.Now())
}

// end sends what waits and forgets the instance.
func (o *outlet) end(now time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.flush(now)
	o.leave()
	o.past, o.table, o.link = o.counts(), nil, nil
	o.past.Sessions, o.past.Pending = 0, 0
}

// with calls f with the table, unless there is no instance.
func (o *outlet) with(f func(*batch.Table)) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.table != nil {
		f(o.table)
	}
}

// follow makes the table's settings those of the configuration and of l.
func (o *outlet) follow(l *link) {
	o.tableConfig = batch.TableConfig{
		Limit: tableLimit(o.d.fixed), Pending: o.d.live.Load().Pending, Timeouts: l.globals.Timeouts, Refresh: o.refresh(), OwnFor: ownFor,
	}
}

// maxPayload is the size of a datagram to the group.
func (d *Daemon) maxPayload() int {
	if group := d.group(); group != nil {
		return group.MaxPayload()
	}
	return assumedPayload
}

// configure follows settings that have changed.
func (o *outlet) configure(l *link) {
	o.with(func(t *batch.Table) {
		o.follow(l)
		t.Configure(o.tableConfig)
		o.describe(l)
		o.member.Configure(o.member.config)
		o.arm(time.Now())
	})
}

// resize fits the datagrams to come to the path, and tries at once what waits.
func (o *outlet) resize(maxPayload int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.table == nil {
		return
	}
	o.resizeLocked(maxPayload)
	o.heldTill = time.Time{}
	o.pump(time.Now(), false)
}

// resizeLocked leaves room for the stamp, and for one entry at the least: a path
// that cannot even carry that says so when it is sent.
func (o *outlet) resizeLocked(maxPayload int) {
	o.room = max(1, (maxPayload-wire.Overhead)/o.encoding.EntrySize())
	o.fit(maxPayload)
}

// announce sends what peers must know of it, at the latest when it has waited for
// the deadline, and at once with the last: then there is nothing to wait for.
func (o *outlet) announce(sessions []session.Session, last bool, now time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	dropped := o.table.Counts().DroppedNews
	o.table.Observe(sessions, now)
	if o.failed == 0 && o.table.Counts().DroppedNews > dropped { // else sendWorks has them swept
		o.d.repairs.owe("more was announced at once than --batch.capacity lets wait")
	}
	o.pump(now, last)
}

// rest says that the kernel is not listened to for restTime, and has more to say
// then: what waits may wait for that.
func (o *outlet) rest(now time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.restTill = now.Add(restTime + 2*atOnce)
}

// pump sends what fills datagrams or has waited long enough, or all news, and sets
// the timer for the rest.
func (o *outlet) pump(now time.Time, news bool) {
	if o.table == nil {
		return
	}
	cfg := o.d.live.Load()
	deadline := cfg.BatchDeadline
	full := min(o.room, cfg.Pending) // where fewer may wait, the oldest would always give way
	for sent := 0; !now.Before(o.heldTill); sent++ {
		since, ok := o.table.Due()
		if !ok {
			return
		}
		if sent == pumpAtMost { // others want the lock
			o.wakes = now
			o.timer.Reset(0)
			return
		}
		if !(news && o.table.News() > 0) && o.table.Pending() < full && (now.Sub(since) < deadline || now.Before(o.restTill)) {
			break
		}
		o.sendNext(now)
	}
	since, ok := o.table.Due()
	if !ok {
		return
	}
	at := since.Add(deadline)
	for _, later := range []time.Time{o.heldTill, o.restTill} {
		if at.Before(later) {
			at = later
		}
	}
	if !o.wakes.IsZero() && !at.Before(o.wakes) {
		return
	}
	o.wakes = at
	o.timer.Reset(max(0, at.Sub(now)))
}

// flush sends whatever waits, for as long as that works, but not for long.
func (o *outlet) flush(now time.Time) {
	for o.table.Pending() > 0 && time.Since(now) < flushTime {
		failed := o.failed
		if !o.sendNext(now) || o.failed > failed {
			return
		}
	}
}

// sendNext sends the next datagram. One that fails is put back, and no other is
// tried for a while: first for part of the deadline, then for longer.
func (o *outlet) sendNext(now time.Time) (some bool) {
	o.packed = o.table.Take(o.packed[:0], o.room, now)
	if len(o.packed) == 0 {
		return false
	}
	_, unsent, err := o.send(o.packed, o.table.Taken(), 0)
	if err == nil {
		o.sendWorks()
		return true
	}
	if o.failed == 0 {
		o.failedAt, o.dropped = now, o.drops()
	}
	o.table.Unsent(unsent, passes(err))
	hold := o.d.live.Load().BatchDeadline / 4 << min(o.failed, 16)
	o.heldTill = now.Add(min(hold, maxHold))
	o.failed++
	return true
}

// sendWorks notes that a datagram has left. What failed before has waited for
// that, unless there was no room to; and where nothing can be sent for long, some
// of what seemed to be may not have arrived.
func (o *outlet) sendWorks() {
	if o.failed == 0 {
		return
	}
	o.failed, o.heldTill = 0, time.Time{}
	if o.drops() != o.dropped || time.Since(o.failedAt) > maxHold {
		o.d.repairs.owe("datagrams could not be sent for a while")
	}
}

// drops counts the sessions for which there was no room to wait.
func (o *outlet) drops() uint64 {
	c := o.table.Counts()
	return c.DroppedNews + c.DroppedRefreshes
}

// sweep sends as many of the sessions in from as fit one datagram. It returns how
// many it went through, how many of them it sent, and in how many datagrams; if
// that failed, they are still to be gone through. Expirations count from base.
// Nothing is announced meanwhile, so that what it sends is no older than that.
func (o *outlet) sweep(l *link, from []session.Session, base time.Time, all bool) (through, sent, datagrams int, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.link != l {
		return 0, 0, 0, errNotInService
	}
	o.packed, through = o.table.Sweep(o.packed[:0], from, base, base, all, o.room, time.Now())
	if len(o.packed) == 0 {
		return through, 0, 0, nil
	}
	for _, flags := range []wire.Flags{0, wire.SecondHand} {
		o.some, o.refs = o.some[:0], o.refs[:0]
		for i, ref := range o.table.Taken() {
			if o.firstHand(ref) == (flags == 0) {
				o.some, o.refs = append(o.some, o.packed[i]), append(o.refs, ref)
			}
		}
		if len(o.some) == 0 {
			continue
		}
		n, unsent, failure := o.send(o.some, o.refs, flags)
		if failure != nil {
			o.table.Unsent(unsent, false)
			err = failure
		}
		datagrams += n
	}
	if err != nil {
		return 0, 0, 0, err
	}
	o.sendWorks()
	return through, len(o.packed), datagrams, nil
}

// beginSweep says that all of the kernel's table is about to be read.
func (o *outlet) beginSweep() (number uint8) {
	o.with(func(t *batch.Table) { number = t.BeginSweep() })
	return number
}

// doubt says that what was sent since then may not have arrived.
func (o *outlet) doubt(since, now time.Time) {
	o.with(func(t *batch.Table) { t.Doubt(since, now) })
}

// settle says that a sweep which began then has been sent.
func (o *outlet) settle(begun time.Time) {
	o.with(func(t *batch.Table) { t.Settle(begun) })
}

// lacking keeps of sessions, part of the kernel's table, those that peers may
// lack; or all.
func (o *outlet) lacking(l *link, sessions []session.Session, all bool, now time.Time) []session.Session {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.link != l {
		return nil
	}
	return slices.DeleteFunc(sessions, func(s session.Session) bool { return !o.table.Lacks(&s, now) && !all })
}

// send sends sessions, to which refs are references: in one datagram, or in pieces
// should the path have become too narrow. It returns in how many, those that could
// not be sent, and why.
func (o *outlet) send(sessions []session.Session, refs []session.Ref, flags wire.Flags) (datagrams int, unsent []session.Session, err error) {
	o.buf = o.buf[:0]
	for i := range sessions {
		o.buf = o.encoding.Append(o.buf, &sessions[i], o.pool6)
	}
	o.buf, err = o.write(o.buf, refs, flags)
	if errors.Is(err, mcast.ErrTooBig) {
		room := o.room
		if o.resizeLocked(o.d.maxPayload()); o.room < room && o.room < len(sessions) {
			err = nil
			for from, to := 0, 0; from < len(sessions); from = to {
				to = min(from+o.room, len(sessions)) // which the sending may change once more
				n, left, failure := o.send(sessions[from:to], refs[from:to], flags)
				datagrams += n
				unsent = append(unsent, left...)
				err = cmp.Or(err, failure)
			}
			return datagrams, unsent, err
		}
	}
	o.d.sent(err, len(sessions), len(o.buf))
	if err != nil {
		unsent = sessions
	}
	return 1, unsent, err
}

// passes tells whether a datagram that could not be sent may be sent later.
func passes(err error) bool {
	return mcast.Temporary(err) || errors.Is(err, errNoGroup) || errors.Is(err, net.ErrClosed)
}

// write stamps entries and sends them; it returns them with their stamp. Where
// there is no group they take no number, since peers would miss it. Of one that
// could not be sent peers hear that it held nothing.
func (o *outlet) write(entries []byte, refs []session.Ref, flags wire.Flags) ([]byte, error) {
	group := o.d.group()
	if group == nil {
		return entries, errNoGroup
	}
	b := o.d.signer.Stamp(entries, flags, nil)
	err := group.Write(b)
	if err != nil {
		refs = nil
	}
	now := time.Now()
	o.member.Numbered(o.d.signer.Last(), refs, now)
	o.arm(now)
	return b, err
}

// sent counts a datagram.
func (d *Daemon) sent(err error, entries, bytes int) {
	if err != nil {
		d.count.sendErrors.add(err)
		d.limit.WarnWith("a datagram could not be sent", func() []any {
			return []any{"sessions", entries, "tried_again", passes(err), "err", err}
		})
		return
	}
	if d.debugs(context.Background()) {
		d.Log.Debug("sent", "sessions", entries, "bytes", bytes)
	}
	d.count.sentDatagrams.Add(1)
	d.count.sentSessions.Add(uint64(entries))
	d.count.sentBytes.Add(uint64(bytes))
}
