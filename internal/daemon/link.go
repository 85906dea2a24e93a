package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"joold/internal/batch"
	"joold/internal/mcast"
	"joold/internal/nlchan"
	"joold/internal/session"
)

const (
	// pollInterval is how often the instance is asked for its settings, which
	// is also how its removal is noticed.
	pollInterval = time.Second

	// How many polls it is between looks at other things.
	pathPolls     = 5
	pool4Polls    = 5
	settlingPolls = 10 // at first pool4 is read at each
	staticPolls   = 600

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
	wire   session.Encoding               // what is sent for it
	inbox  *batch.Inbox                   // what is to be given to it
	policy atomic.Pointer[session.Policy] // what is accepted for it
	sync   atomic.Bool                    // ss-enabled
	doubt  atomic.Bool                    // a mask was refused: pool4 may have changed

	// What the policy was made of. They belong to connect, and then to poll.
	globals nlchan.Globals
	pool4   []nlchan.Pool4Entry
	static  []nlchan.BIBEntry
}

// misreads tells whether the module would misunderstand what it is given: 4.1.12
// takes the IPv4 address from the wrong place unless pool6 is a /96.
func (l *link) misreads() bool {
	return l.Module().Encoding == session.Enc4112 && l.pool6.Prefix().Bits() != 96
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
	if l.globals, err = k.Globals(ctx); err != nil {
		return nil, err
	}
	l.pool6 = l.globals.Pool6
	if l.pool4, err = k.Pool4(ctx); err != nil {
		return nil, err
	}
	if l.static, err = k.StaticBIB(ctx); err != nil {
		return nil, err
	}
	l.makePolicy()
	if l.globals.SyncEnabled { // else the module writes a line to the kernel's log
		// The last daemon may have died owing the kernel an ACK.
		return l, k.Ack()
	}
	return l, nil
}

// makePolicy makes the policy of what was read. Masks are pool4's, and the IPv4
// sides of static BIB entries; without pool4 the instance masquerades.
func (l *link) makePolicy() {
	var masks []session.Range
	for _, e := range l.pool4 {
		masks = append(masks, e.Range)
	}
	if len(masks) > 0 {
		for _, e := range l.static {
			port := e.Src4.Port()
			masks = append(masks, session.Range{
				Proto: e.Proto, Prefix: netip.PrefixFrom(e.Src4.Addr(), 32), MinPort: port, MaxPort: port,
			})
		}
	}
	l.policy.Store(session.NewPolicy(l.pool6, l.globals.Timeouts, masks))
	l.sync.Store(l.globals.SyncEnabled)
}

// errChanged ends a link whose instance is no longer the one it was made for.
var errChanged = errors.New("the instance was made anew, with other settings")

// serve hears the instance out, link after link, until ctx ends.
func (d *Daemon) serve(ctx context.Context, l *link) error {
	for {
		began := time.Now()
		d.out.use(l)
		d.link.Store(l)
		d.log.Info("in service", "instance", d.cfg.Instance, "module", l.Module().Version,
			"wire", l.wire, "pool6", l.pool6, "masquerades", l.policy.Load().Masquerades())
		if l.misreads() {
			d.log.Warn("this module misreads sessions unless pool6 is a /96: it is given none; update Jool",
				"module", l.Module().Version, "pool6", l.pool6)
		}

		if l.Module().Version.Candidate42() {
			d.log.Warn("this release candidate of Jool leaks kernel memory with each message to and from joold: update it",
				"module", l.Module().Version)
		}

		err := d.follow(ctx, l)
		d.waitingFor.Store(err.Error())
		d.link.Store(nil)
		d.out.flush(time.Now())
		d.settle(l)
		l.Close()
		if ctx.Err() != nil {
			return nil
		}
		d.log.Warn("out of service", "err", err)
		if time.Since(began) < time.Second && !pause(ctx, d.flapInterval) {
			return nil
		}
		if l = d.reconnect(ctx); l == nil {
			return nil
		}
	}
}

// settle adds to the daemon's counts what a link has counted.
func (d *Daemon) settle(l *link) {
	heard := l.Counters()
	d.count.foreign.Add(heard.Foreign)
	d.count.malformed.Add(heard.Malformed)
	in := l.inbox.Counts()
	d.count.dropped.Add(in.Dropped + uint64(in.Waiting))
	d.count.expired.Add(in.Expired)
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
		if n%pathPolls == 0 {
			d.followPath()
		}
		err := l.reread(ctx, n)
		if isOver(err) {
			return err
		}
		if err != nil {
			d.limit.Warn("cannot read the instance's settings", "instance", d.cfg.Instance, "err", err)
		}
	}
}

// isOver tells whether err means that the link's instance is no more.
func isOver(err error) bool {
	for _, end := range []error{
		errChanged, nlchan.ErrNoModule, nlchan.ErrNoInstance, nlchan.ErrStale, nlchan.ErrPermission, nlchan.ErrClosed, context.Canceled,
	} {
		if errors.Is(err, end) {
			return true
		}
	}
	return false
}

// reread reads what may have changed, at the nth poll, and makes a new policy if
// something has. pool4 is read more often while it may still be filled, and when
// a mask was refused; the static BIB seldom, since finding it takes a walk
// through the whole BIB.
func (l *link) reread(ctx context.Context, n int) error {
	g, err := l.Globals(ctx)
	if err != nil {
		return err
	}
	if g.Pool6 != l.pool6 {
		return fmt.Errorf("%w: pool6 %s, was %s", errChanged, g.Pool6, l.pool6)
	}
	pool4, static := l.pool4, l.static
	if l.doubt.Swap(false) || n <= settlingPolls || n%pool4Polls == 0 {
		if pool4, err = l.Pool4(ctx); err != nil {
			return err
		}
	}
	if n%staticPolls == 0 {
		if static, err = l.StaticBIB(ctx); err != nil {
			return err
		}
	}
	if g != l.globals || !slices.Equal(pool4, l.pool4) || !slices.Equal(static, l.static) {
		l.globals, l.pool4, l.static = g, pool4, static
		l.makePolicy()
	}
	return nil
}

// followPath looks at the path to the group again: its MTU may have changed. A
// group whose interface was deleted, or has lost IPv6 for a while, is deaf for
// ever without an error: it is closed, so that listen opens it anew.
func (d *Daemon) followPath() {
	group := d.group()
	err := group.Refresh()
	switch {
	case errors.Is(err, net.ErrClosed): // and is being opened anew
	case errors.Is(err, mcast.ErrNoInterface):
		d.log.Warn("the group's interface is gone", "err", err)
		d.pathLost.Store(false)
		group.Close()
	case err != nil:
		d.limit.Warn("cannot find the path to the group", "err", err)
		d.pathLost.Store(true)
	case d.pathLost.CompareAndSwap(true, false):
		group.Close()
	default:
		d.out.resize(group.MaxPayload())
	}
}

// sayIfDisabled tells, once per change, when the instance trades no sessions.
func (d *Daemon) sayIfDisabled(l *link) {
	on := l.sync.Load()
	if saidOff := d.saidOff.Swap(!on); saidOff == !on {
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
