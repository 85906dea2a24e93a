package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"joold/internal/batch"
	"joold/internal/nlchan"
	"joold/internal/session"
)

const (
	// pollInterval is how often the instance is asked for its settings, which
	// is also how its removal is noticed.
	pollInterval = time.Second

	// pool4 is read every so many polls, the static BIB every so many.
	pool4Polls  = 5
	staticPolls = 600

	// retryInterval is how often an instance that is away is looked for.
	retryInterval = 500 * time.Millisecond

	// inboxSize bounds the sessions that wait for the kernel: some 30 MiB when
	// full, several seconds' work for a kernel.
	inboxSize = 1 << 18
)

// link is an instance for as long as it stays the same one.
type link struct {
	kernel
	pool6  session.Pool6
	wire   session.Encoding // what is sent for it
	inbox  *batch.Inbox     // what is to be given to it
	pool4  []nlchan.Pool4Entry
	static []nlchan.BIBEntry
	policy atomic.Pointer[session.Policy] // what is accepted for it
	sync   atomic.Bool                    // ss-enabled
}

// connect finds the instance and learns what is to be known of it.
func (d *Daemon) connect(ctx context.Context) (_ *link, err error) {
	k, err := d.dial()
	if err != nil {
		return nil, err
	}
	l := &link{kernel: k, wire: d.cfg.Wire, inbox: batch.NewInbox(inboxSize)}
	defer func() {
		if err != nil {
			k.Close()
		}
	}()
	if l.wire == 0 {
		l.wire = k.Module().Encoding
	}
	g, err := k.Globals(ctx)
	if err != nil {
		return nil, err
	}
	l.pool6 = g.Pool6
	if err := l.readMasks(ctx, true); err != nil {
		return nil, err
	}
	l.apply(g)
	if g.SyncEnabled { // else the module writes a line to the kernel's log
		// The last daemon may have died owing the kernel an ACK.
		return l, k.Ack()
	}
	return l, nil
}

// readMasks learns what the instance may give its IPv6 nodes: pool4, and the
// IPv4 sides of the static BIB entries, which are only read on demand because
// finding them takes a walk through the whole BIB.
func (l *link) readMasks(ctx context.Context, static bool) error {
	pool4, err := l.Pool4(ctx)
	if err != nil {
		return err
	}
	l.pool4 = pool4
	if static {
		l.static, err = l.StaticBIB(ctx)
	}
	return err
}

// apply makes the policy of what was read.
func (l *link) apply(g nlchan.Globals) {
	var masks []session.Range
	for _, e := range l.pool4 {
		masks = append(masks, e.Range)
	}
	if len(masks) > 0 { // else it masquerades: any mask will do
		for _, e := range l.static {
			port := e.Src4.Port()
			masks = append(masks, session.Range{
				Proto: e.Proto, Prefix: netip.PrefixFrom(e.Src4.Addr(), 32), MinPort: port, MaxPort: port,
			})
		}
	}
	l.policy.Store(session.NewPolicy(g.Pool6, g.Timeouts, masks))
	l.sync.Store(g.SyncEnabled)
}

// errChanged ends a link whose instance is no longer the one it was made for.
var errChanged = errors.New("the instance was made anew, with other settings")

// serve hears the instance out, link after link, until ctx ends.
func (d *Daemon) serve(ctx context.Context, l *link) error {
	for {
		d.out.use(l)
		d.link.Store(l)
		d.log.Info("in service", "instance", d.cfg.Instance, "module", l.Module().Version,
			"wire", l.wire, "pool6", l.pool6, "masquerades", l.policy.Load().Masquerades())

		err := d.follow(ctx, l)
		d.link.Store(nil)
		d.out.flush(time.Now())
		_, dropped := l.inbox.Depth()
		d.count.dropped.Add(dropped)
		l.Close()
		if ctx.Err() != nil {
			return nil
		}
		d.log.Warn("out of service", "err", err)
		if l = d.reconnect(ctx); l == nil {
			return nil
		}
	}
}

// reconnect waits until there is an instance to serve; nil when ctx ends first.
func (d *Daemon) reconnect(ctx context.Context) *link {
	tick := time.NewTicker(retryInterval)
	defer tick.Stop()
	for {
		l, err := d.connect(ctx)
		if err == nil {
			return l
		}
		if why := err.Error(); d.waitingFor.Swap(why) != why {
			d.log.Info("waiting", "for", why)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// follow serves one link until the instance goes away or ctx ends.
func (d *Daemon) follow(ctx context.Context, l *link) error {
	w, err := d.newWatcher()
	if err != nil {
		return err
	}
	defer w.Close()
	g, ctx := errgroup.WithContext(ctx)
	defer context.AfterFunc(ctx, func() { l.SetReadDeadline(time.Unix(1, 0)) })()
	g.Go(func() error { return d.hear(ctx, l) })
	g.Go(func() error { return d.inject(ctx, l) })
	g.Go(func() error { return d.watch(ctx, w) })
	g.Go(func() error { return d.poll(ctx, l) })
	return g.Wait()
}

// poll follows the instance's settings, whose changes nothing announces, and
// ends when the instance is gone or is another.
func (d *Daemon) poll(ctx context.Context, l *link) error {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for n := 1; ; n++ {
		d.sayIfDisabled(l)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		g, err := l.Globals(ctx)
		if err != nil {
			return err
		}
		if g.Pool6 != l.pool6 {
			return fmt.Errorf("%w: pool6 %s, was %s", errChanged, g.Pool6, l.pool6)
		}
		if n%pool4Polls == 0 {
			d.followPath()
			if err := l.readMasks(ctx, n%staticPolls == 0); err != nil {
				return err
			}
		}
		l.apply(g)
	}
}

// followPath looks at the path to the group again, whose MTU may have changed.
func (d *Daemon) followPath() {
	if err := d.group.Refresh(); err != nil {
		d.limit.Warn("cannot find the path to the group", "err", err)
		return
	}
	d.out.resize(d.group.MaxPayload())
}

// sayIfDisabled tells, once per change, when the instance trades no sessions.
func (d *Daemon) sayIfDisabled(l *link) {
	on := l.sync.Load()
	if was := d.syncSaid.Swap(!on); was == on {
		return
	}
	if on {
		d.log.Info("session synchronization was turned on", "instance", d.cfg.Instance)
		return
	}
	d.log.Warn("session synchronization is off in the instance; turn it on with " +
		"`jool -i " + d.cfg.Instance + " global update ss-enabled true`")
}

// watch ends when the module is removed, which the channel does not tell: it
// goes deaf.
func (d *Daemon) watch(ctx context.Context, w watcher) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	err := w.Run(ctx, func(e nlchan.Event) {
		if e == nlchan.ModuleRemoved {
			cancel(nlchan.ErrStale)
		}
	})
	return cmp.Or(context.Cause(ctx), err)
}
