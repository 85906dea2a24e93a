package daemon

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"joold/internal/batch"
	"joold/internal/mcast"
	"joold/internal/nlchan"
	"joold/internal/session"
)

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

// liveBound is how many sessions announced during a sweep are remembered. With
// more, the sweep sends some a second time.
const liveBound = 1 << 20

// outlet is where announced sessions leave: a batch.Outbox behind a lock, and
// the timer that empties it when no more come.
type outlet struct {
	d *Daemon

	mu    sync.Mutex
	box   *batch.Outbox
	timer *time.Timer
	buf   []byte
	live  map[session.Key]struct{} // what was announced since a sweep began; nil between sweeps
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
	return batch.NewOutbox(l.wire, l.pool6, d.group.MaxPayload(), d.cfg.BatchDeadline)
}

// announce sends sessions, at the latest when the first has waited for the
// deadline.
func (o *outlet) announce(sessions []session.Session, now time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for i := range sessions {
		if o.live != nil && len(o.live) < liveBound {
			o.live[sessions[i].Key()] = struct{}{}
		}
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
	o.buf = o.d.send(o.buf[:0], o.box, now)
}

// watchLive begins (true) or ends (false) remembering what is announced.
func (o *outlet) watchLive(on bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.live = nil
	if on {
		o.live = make(map[session.Key]struct{})
	}
}

// isLive tells whether s was announced since watchLive.
func (o *outlet) isLive(s *session.Session) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	_, ok := o.live[s.Key()]
	return ok
}

// send packs what box holds into buf and sends it. Should the path have become
// too narrow for it, it goes in pieces.
func (d *Daemon) send(buf []byte, box *batch.Outbox, now time.Time) []byte {
	entries := box.Len()
	buf = box.Pack(buf, now)
	err := d.group.Write(buf)
	if errors.Is(err, mcast.ErrTooBig) {
		size := len(buf) / entries
		box.Resize(d.group.MaxPayload())
		if piece := d.group.MaxPayload() / size * size; piece > 0 && piece < len(buf) {
			for b := range slices.Chunk(buf, piece) {
				d.sent(d.group.Write(b), len(b)/size, len(b))
			}
			return buf
		}
	}
	d.sent(err, entries, len(buf))
	return buf
}

// sent counts a datagram.
func (d *Daemon) sent(err error, entries, bytes int) {
	if err != nil {
		d.count.sendFailed.Add(1)
		d.count.sendErrors.add(err)
		d.limit.Warn("a datagram could not be sent", "sessions", entries, "err", err)
		return
	}
	d.count.sentDatagrams.Add(1)
	d.count.sentSessions.Add(uint64(entries))
	d.count.sentBytes.Add(uint64(bytes))
}
