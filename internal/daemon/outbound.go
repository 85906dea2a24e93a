package daemon

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"joold/internal/batch"
	"joold/internal/mcast"
	"joold/internal/nlchan"
	"joold/internal/session"
)

// writeTimeout bounds the wait for a socket whose buffer is full.
const writeTimeout = 100 * time.Millisecond

// hear takes what the kernel announces and hands it to the outlet. The channel
// has ACKed each message before it is seen here.
func (d *Daemon) hear(ctx context.Context, l *link) error {
	buf := make([]byte, nlchan.MessageSize)
	var heard []session.Session
	for {
		m, err := l.Receive(buf)
		if errors.Is(err, nlchan.ErrOverrun) {
			d.count.overruns.Add(1)
			d.limit.Warn("the kernel announced faster than the daemon heard: sessions were lost", "instance", d.cfg.Instance)
			continue
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return err
		}
		var r session.Report
		heard, r = session.Decode(heard[:0], m.Entries, l.pool6)
		d.count.kernelMessages.Add(1)
		d.count.kernelSessions.Add(uint64(r.Read))
		d.count.kernelBytes.Add(uint64(len(m.Entries)))
		if r.BadTotal() > 0 {
			addReasons(d.count.kernelBad[:], r.Bad[:])
			d.limit.Warn("the kernel announced sessions that cannot be read",
				"entries", r.BadTotal(), "why", reasonList[session.Defect](r.Bad[:]))
		}
		if d.debug {
			d.log.Debug("the kernel announced", "sessions", r.Read, "bytes", len(m.Entries))
		}
		d.out.announce(heard, time.Now())
	}
}

// outlet is where sessions leave: a batch.Outbox behind a lock, and the timer
// that empties it when no more come.
type outlet struct {
	d            *Daemon
	ours, theirs freshSet // what was announced since a sweep began, here and by peers

	mu    sync.Mutex
	box   *batch.Outbox
	timer *time.Timer
	buf   []byte
}

func newOutlet(d *Daemon) *outlet {
	o := &outlet{d: d, ours: freshSet{bound: 1 << 20}, theirs: freshSet{bound: 1 << 17}}
	o.timer = time.AfterFunc(time.Hour, func() { o.flushDue(time.Now()) })
	o.timer.Stop()
	return o
}

// use makes what follows go out as l wants it.
func (o *outlet) use(l *link) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.box = o.d.newOutbox(l)
}

// resize fits the datagrams to come to the path.
func (o *outlet) resize(maxPayload int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.box.Resize(maxPayload)
}

func (d *Daemon) newOutbox(l *link) *batch.Outbox {
	return batch.NewOutbox(l.wire, l.pool6, d.group().MaxPayload(), d.cfg.BatchDeadline)
}

// announce sends sessions, at the latest when the first has waited for the
// deadline.
func (o *outlet) announce(sessions []session.Session, now time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ours.note(sessions, now)
	for i := range sessions {
		if o.box.Len() == 0 {
			o.timer.Reset(o.d.cfg.BatchDeadline)
		}
		if o.box.Add(&sessions[i], now) {
			o.send(now)
		}
	}
	if o.box.Len() == 0 {
		o.timer.Stop()
	}
}

// flushDue sends what has waited long enough.
func (o *outlet) flushDue(now time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.box == nil {
		return
	}
	if at, ok := o.box.Due(); ok && now.Before(at) {
		o.timer.Reset(at.Sub(now))
	} else if ok {
		o.send(now)
	}
}

// flush sends whatever waits.
func (o *outlet) flush(now time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.box != nil && o.box.Len() > 0 {
		o.send(now)
	}
}

func (o *outlet) send(now time.Time) {
	o.buf, _, _ = o.d.send(o.buf[:0], o.box, now)
}

// watch begins or ends remembering what is announced.
func (o *outlet) watch(on bool) {
	o.ours.watch(on)
	o.theirs.watch(on)
}

// sweep sends as many of the table's sessions as fit one datagram. It returns
// how many it went through, how many of them it sent, in how many datagrams, and
// how many of those failed. Expirations count from base. It leaves out those
// that have died since, and those that were heard of since, unless it was older
// news from a peer. Nothing is announced meanwhile, so that what it sends is no
// older than that.
func (o *outlet) sweep(box *batch.Outbox, table []session.Session, base time.Time) (through, sent, datagrams, failed int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for through < len(table) {
		s := &table[through]
		through++
		dies := base.Add(time.Duration(s.Expiration) * time.Millisecond)
		if !dies.After(time.Now()) || o.ours.has(s, time.Time{}) || o.theirs.has(s, dies) {
			continue
		}
		if box.Add(s, base) {
			break
		}
	}
	if sent = box.Len(); sent > 0 {
		o.buf, datagrams, failed = o.d.send(o.buf[:0], box, time.Now())
	}
	return through, sent, datagrams, failed
}

// freshSet remembers what was announced while a sweep runs: a bounded number of
// sessions. Of more, the sweep sends some although it need not.
type freshSet struct {
	bound int
	on    atomic.Bool

	mu sync.Mutex
	m  map[session.Key]news
}

// news is what was announced of a session.
type news struct {
	timer session.Timer
	dies  time.Time
}

// watch begins, or ends and forgets.
func (f *freshSet) watch(on bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.m = make(map[session.Key]news)
	f.on.Store(on)
}

func (f *freshSet) note(sessions []session.Session, now time.Time) {
	if !f.on.Load() {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range sessions {
		s := &sessions[i]
		k := s.Key()
		if _, known := f.m[k]; known || len(f.m) < f.bound {
			f.m[k] = news{s.Timer, now.Add(time.Duration(s.Expiration) * time.Millisecond)}
		}
	}
}

// has tells whether there is news of s, and no sign that it is older than what
// the caller has: the same timer, but an earlier death.
func (f *freshSet) has(s *session.Session, dies time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	n, ok := f.m[s.Key()]
	return ok && (n.timer != s.Timer || !n.dies.Before(dies))
}

// send packs what box holds into buf and sends it. It returns how many datagrams
// that took, since it goes in pieces should the path have become too narrow, and
// how many of them failed.
func (d *Daemon) send(buf []byte, box *batch.Outbox, now time.Time) (_ []byte, datagrams, failed int) {
	entries := box.Len()
	buf = box.Pack(buf, now)
	err := d.write(buf)
	if errors.Is(err, mcast.ErrTooBig) {
		size, room := len(buf)/entries, d.group().MaxPayload()
		box.Resize(room)
		if piece := room / size * size; piece > 0 && piece < len(buf) {
			for b := range slices.Chunk(buf, piece) {
				datagrams++
				failed += d.sent(d.write(b), len(b)/size, len(b))
			}
			return buf, datagrams, failed
		}
	}
	return buf, 1, d.sent(err, entries, len(buf))
}

// write sends a datagram. It waits for room in the socket, but not for long: the
// kernel's announcements wait behind it.
func (d *Daemon) write(b []byte) error {
	group := d.group()
	group.SetWriteDeadline(time.Now().Add(writeTimeout))
	return group.Write(b)
}

// sent counts a datagram, and returns 1 if it failed.
func (d *Daemon) sent(err error, entries, bytes int) (failed int) {
	if err != nil {
		d.count.sendErrors.add(err)
		d.limit.Warn("a datagram could not be sent", "sessions", entries, "err", err)
		return 1
	}
	if d.debug {
		d.log.Debug("sent", "sessions", entries, "bytes", bytes)
	}
	d.count.sentDatagrams.Add(1)
	d.count.sentSessions.Add(uint64(entries))
	d.count.sentBytes.Add(uint64(bytes))
	return 0
}
