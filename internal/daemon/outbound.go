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
		d.out.announce(heard, time.Now())
	}
}

// outlet is where sessions leave: a batch.Outbox behind a lock, and the timer
// that empties it when no more come.
type outlet struct {
	d     *Daemon
	fresh freshSet // what a sweep need not send

	mu    sync.Mutex
	box   *batch.Outbox
	timer *time.Timer
	buf   []byte
}

func newOutlet(d *Daemon) *outlet {
	o := &outlet{d: d}
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
	o.fresh.note(sessions)
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
	o.buf, _ = o.d.send(o.buf[:0], o.box, now)
}

// sweep sends as many of the table's sessions as fit one datagram. It returns
// how many it went through, how many it sent, and how many datagrams failed.
// Expirations count from base. It leaves out those that have died since, and
// those that were heard of since the sweep began. Nothing is announced
// meanwhile, so that what it sends is no older than that.
func (o *outlet) sweep(box *batch.Outbox, table []session.Session, base time.Time) (through, sent, failed int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for through < len(table) {
		s := &table[through]
		through++
		if s.Aged(time.Since(base)).Expiration > 0 && !o.fresh.has(s) && box.Add(s, base) {
			break
		}
	}
	if sent = box.Len(); sent > 0 {
		o.buf, failed = o.d.send(o.buf[:0], box, time.Now())
	}
	return through, sent, failed
}

// freshBound is how many sessions a freshSet remembers. Of more, a sweep sends
// some although it need not.
const freshBound = 1 << 20

// freshSet remembers what was announced, here or by a peer, while a sweep runs.
type freshSet struct {
	on atomic.Bool

	mu sync.Mutex
	m  map[session.Key]struct{}
}

// watch begins, or ends and forgets.
func (f *freshSet) watch(on bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.m = make(map[session.Key]struct{})
	f.on.Store(on)
}

func (f *freshSet) note(sessions []session.Session) {
	if !f.on.Load() {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range sessions {
		if len(f.m) < freshBound {
			f.m[sessions[i].Key()] = struct{}{}
		}
	}
}

func (f *freshSet) has(s *session.Session) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, ok := f.m[s.Key()]
	return ok
}

// send packs what box holds into buf and sends it, and returns how many
// datagrams failed. Should the path have become too narrow, it goes in pieces.
func (d *Daemon) send(buf []byte, box *batch.Outbox, now time.Time) (_ []byte, failed int) {
	entries := box.Len()
	buf = box.Pack(buf, now)
	err := d.write(buf)
	if errors.Is(err, mcast.ErrTooBig) {
		size, room := len(buf)/entries, d.group().MaxPayload()
		box.Resize(room)
		if piece := room / size * size; piece > 0 && piece < len(buf) {
			for b := range slices.Chunk(buf, piece) {
				failed += d.sent(d.write(b), len(b)/size, len(b))
			}
			return buf, failed
		}
	}
	return buf, d.sent(err, entries, len(buf))
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
	d.count.sentDatagrams.Add(1)
	d.count.sentSessions.Add(uint64(entries))
	d.count.sentBytes.Add(uint64(bytes))
	return 0
}
