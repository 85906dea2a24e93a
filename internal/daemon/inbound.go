package daemon

import (
	"context"
	"errors"
	"net"
	"slices"
	"time"

	"joold/internal/mcast"
	"joold/internal/session"
)

const (
	readBatch   = 64      // datagrams per system call
	maxDatagram = 1 << 16 // bytes; UDP carries no more

	// perAdd is how many sessions one injection holds. While the kernel inserts
	// them, translation waits for the table's lock and ACKs for generic netlink's.
	perAdd = 250
)

// listen takes what the network brings and leaves in the inbox what may be given
// to the kernel. It never waits for the kernel. When the group is closed it opens
// it anew, as soon as it can.
func (d *Daemon) listen(ctx context.Context) error {
	datagrams := mcast.NewDatagrams(readBatch, maxDatagram)
	var scratch []session.Session
	for {
		group := d.group()
		stop := context.AfterFunc(ctx, func() { group.SetReadDeadline(time.Unix(1, 0)) })
		for {
			n, err := group.ReadBatch(datagrams)
			if ctx.Err() != nil {
				return nil
			}
			if errors.Is(err, net.ErrClosed) {
				break
			}
			if err != nil {
				d.count.readErrors.Add(1)
				d.limit.Warn("cannot read from the network", "err", err)
				if !pause(ctx, 100*time.Millisecond) { // it must not become a busy loop
					return nil
				}
				continue
			}
			now := time.Now()
			l := d.link.Load()
			for i := range datagrams[:n] {
				scratch = d.accept(l, &datagrams[i], scratch[:0], now)
			}
		}
		stop()
		d.count.socketDrops.Add(group.Drops())
		for {
			next, err := d.open()
			if err == nil {
				d.setGroup(next)
				d.log.Info("joined the group again", "group", next.Local().Group, "in", next.Local().In)
				break
			}
			d.limit.Warn("cannot join the group", "err", err)
			if !pause(ctx, retryInterval) {
				return nil
			}
		}
	}
}

// accept takes one datagram in. It works in scratch, and returns it.
func (d *Daemon) accept(l *link, dg *mcast.Datagram, scratch []session.Session, now time.Time) []session.Session {
	d.count.rcvdDatagrams.Add(1)
	d.count.rcvdBytes.Add(uint64(len(dg.Payload)))
	if l == nil {
		d.count.unserved.Add(1)
		return scratch
	}
	scratch, r := session.Decode(scratch, dg.Payload, l.pool6)
	d.count.rcvdSessions.Add(uint64(r.Read))
	if l.misreads() {
		d.count.unfit.Add(uint64(r.Read))
		d.peers.heard(dg.From.Addr(), r, r.Read+r.BadTotal(), now)
		return scratch
	}

	var refused [session.Refusals]int
	policy := l.policy.Load()
	kept := scratch[:0]
	for i := range scratch {
		if why, ok := policy.Check(&scratch[i]); ok {
			kept = append(kept, scratch[i])
		} else {
			refused[why]++
		}
	}
	bad := r.Read - len(kept) + r.BadTotal()
	if bad > 0 {
		addReasons(d.count.rcvdBad[:], r.Bad[:])
		addReasons(d.count.refused[:], refused[:])
		d.limit.Warn("refused entries from the network", "from", dg.From, "entries", bad,
			"unreadable", reasonList[session.Defect](r.Bad[:]), "unacceptable", reasonList[session.Refusal](refused[:]))
	}
	d.peers.heard(dg.From.Addr(), r, bad, now)
	if d.debug {
		d.log.Debug("heard", "from", dg.From, "encoding", r.Encoding, "sessions", r.Read, "taken", len(kept))
	}
	if refused[session.RefusedPool4] > 0 {
		l.doubt.Store(true)
	}
	if len(kept) > 0 {
		d.out.theirs.note(kept, now)
		l.inbox.Put(kept, now)
	}
	return scratch
}

// inject gives the kernel what waits in the inbox, oldest update first.
func (d *Daemon) inject(ctx context.Context, l *link) error {
	var taken []session.Session
	for {
		select {
		case <-l.inbox.Ready():
		case <-ctx.Done():
			return ctx.Err()
		}
		taken = l.inbox.Take(taken[:0], time.Now())
		for chunk := range slices.Chunk(taken, perAdd) {
			if ctx.Err() != nil {
				d.count.dropped.Add(uint64(len(chunk)))
				continue
			}
			if err := l.Add(chunk, l.pool6); err != nil {
				d.count.addErrors.Add(1)
				d.limit.Warn("the module refused sessions", "sessions", len(chunk), "err", err)
				if isOver(err) {
					return err
				}
				continue
			}
			if d.debug {
				d.log.Debug("gave the kernel", "sessions", len(chunk))
			}
			d.count.addMessages.Add(1)
			d.count.injected.Add(uint64(len(chunk)))
		}
	}
}

// pause waits; false when ctx ends first.
func pause(ctx context.Context, t time.Duration) bool {
	select {
	case <-time.After(t):
		return true
	case <-ctx.Done():
		return false
	}
}
