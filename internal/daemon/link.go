package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"joold/internal/batch"
	"joold/internal/nlchan"
	"joold/internal/session"
)

const (
	// How often the instance is asked for its settings, which is also how its
	// removal is noticed: while it is new; while something happens, or waits for a
	// change; and otherwise. Whoever speaks has it looked at before that.
	pollInterval = time.Second
	busyInterval = 5 * time.Second
	idleInterval = 10 * time.Second

	// stirDelay is how long after somebody spoke the instance is looked at: what was
	// said goes first.
	stirDelay = 50 * time.Millisecond

	// trustInterval is for how long a look at the instance lets it be fed. Nothing
	// tells that it was made anew, perhaps for another pool6.
	trustInterval = 100 * time.Millisecond

	// How often other things are looked at, at the least. See surveyInterval, too.
	pool4Interval = 5 * time.Second
	setUpInterval = 10 * time.Second // if the instance refused to be set up

	// settling is for how long an instance is new: pool4 may still be filled.
	settling = 10 * time.Second

	// silence is after what time a node that neither announces nor hears anything
	// may be the one whose table counts.
	silence = 2 * time.Second

	// stoppedFor is how late a poll comes if the daemon was stopped, or the
	// machine asleep.
	stoppedFor = 3 * time.Second

	// inboxSize bounds the sessions that wait for the kernel, and those that are
	// held: some 30 MiB each when full, several seconds' work for a kernel.
	// copiedSize bounds those of a copy, which comes as fast as the kernel takes it,
	// and refusedSize those that wait for pool4 to change.
	inboxSize   = 1 << 18
	copiedSize  = 1 << 14
	refusedSize = 1 << 15

	// channelBuffer is the room for what the kernel announces while the daemon
	// is held up, in bytes: some 1,000 full messages.
	channelBuffer = 4 << 20
)

// link is an instance for as long as it stays the same one.
type link struct {
	kernel
	watcher  watcher // tells when the module is removed
	pool6    session.Pool6
	wire     session.Encoding                  // what is sent for it
	inbox    *batch.Inbox                      // what is to be given to it
	held     *batch.Inbox                      // likewise, once no more of the kind comes
	copied   *batch.Inbox                      // likewise, of a copy
	adding   chan struct{}                     // holds a token while somebody gives it some; who waits has a turn next
	feeding  atomic.Int64                      // sessions that are no longer in a box and not yet given
	refused  *batch.Inbox                      // what was refused for its mask
	policy   atomic.Pointer[session.Policy]    // what is accepted for it
	sync     atomic.Bool                       // ss-enabled
	doubt    atomic.Bool                       // a mask was refused: pool4 may have changed
	flush    atomic.Int64                      // ss-flush-deadline in ns
	full     atomic.Int64                      // sessions in the longest message; 0 where shorter ones mean nothing
	capacity atomic.Int64                      // ss-capacity, in sessions
	heard    chan struct{}                     // holds a token when it has announced something
	stirred  chan struct{}                     // holds a token when the instance should be looked at now
	asked    chan struct{}                     // holds a token when its tables should be surveyed now
	bib      atomic.Pointer[[]nlchan.BIBEntry] // the static BIB, as it was last read
	spoke    atomic.Int64                      // when it last announced anything, in ns after began
	seen     atomic.Int64                      // when it was last known to be there still, in ns after began
	polled   atomic.Int64                      // when its settings were last read, likewise
	began    time.Time
	active   chan struct{} // closed once it is known, or likely, that the node translates
	once     sync.Once     // closes active

	contests, contestsLater chan conflict // to be resolved at once, and after contestAfter

	// What the policy was made of, and the last counts, with when they were read.
	// They belong to connect, and then to poll.
	globals, found   nlchan.Globals // found: before it was set up
	pool4            []nlchan.Pool4Entry
	static           []nlchan.BIBEntry
	stats            nlchan.Stats
	drops            uint64 // messages lost for want of buffer
	read             uint64 // kernelMessages when these were read
	unset            bool   // the instance refused to be set up
	pool4At, setUpAt time.Time
}

// Close ends what the link hears.
func (l *link) Close() error {
	if l.watcher != nil {
		l.watcher.Close()
	}
	return l.kernel.Close()
}

// misreads tells whether the module would misunderstand what it is given: 4.1.12
// takes the IPv4 address from the wrong place unless pool6 is a /96.
func (l *link) misreads() bool {
	return l.Module().Encoding == session.Enc4112 && l.pool6.Prefix().Bits() != 96
}

// loses tells whether the module leaves sessions unannounced by design.
func (l *link) loses() bool { return l.Module().Version.Less(4, 1, 11) }

// spoken says that the instance has announced something.
func (l *link) spoken() {
	signal(l.heard)
	l.note(&l.spoke)
	l.activate()
	l.stir()
}

// translates tells whether the instance has just announced anything.
func (l *link) translates() bool {
	return l.spoke.Load() != 0 && l.since(&l.spoke) < ownFor
}

// stir has the instance's settings read soon, unless that was just done.
func (l *link) stir() {
	if l.since(&l.polled) > pollInterval {
		signal(l.stirred)
	}
}

// since is how long ago a moment was.
func (l *link) since(moment *atomic.Int64) time.Duration {
	return time.Since(l.began) - time.Duration(moment.Load())
}

// note makes it now.
func (l *link) note(moment *atomic.Int64) { moment.Store(int64(time.Since(l.began))) }

// same looks at the instance and tells, by an error, if it is no longer the one
// that the link was made for.
func (l *link) same(ctx context.Context) (nlchan.Globals, error) {
	asked := time.Since(l.began) // the answer may be read long after it was given
	g, err := l.Globals(ctx)
	if err != nil {
		return g, err
	}
	if g.Pool6 != l.pool6 {
		return g, fmt.Errorf("%w: pool6 %s, was %s", errChanged, g.Pool6, l.pool6)
	}
	l.seen.Store(int64(asked))
	return g, nil
}

// waiting counts the sessions that wait for the kernel.
func (l *link) waiting() batch.InboxCounts {
	var sum batch.InboxCounts
	for _, box := range []*batch.Inbox{l.inbox, l.held, l.copied} {
		c := box.Counts()
		sum.Waiting += c.Waiting
		sum.Dropped += c.Dropped
		sum.Expired += c.Expired
	}
	sum.Waiting += int(l.feeding.Load()) // last: what leaves a box meanwhile is counted twice rather than not at all
	return sum
}

func (l *link) activate() { l.once.Do(func() { close(l.active) }) }

// last tells whether no message that is not full follows one with so many sessions
// within some time: such a message empties the module's queue, which is sent next
// when it is full or the flush deadline has passed.
func (l *link) last(sessions int, within time.Duration) bool {
	return int64(sessions) < l.full.Load() && time.Duration(l.flush.Load()) >= within
}

// crowded tells whether a message with so many sessions may be left waiting for
// others: it is full, and the module's queue is large.
func (l *link) crowded(sessions int) bool {
	full := l.full.Load()
	return full > 0 && int64(sessions) >= full && l.capacity.Load() >= restCapacity
}

// flushDeadline is the time between ACKs that drain the module's queue.
func (l *link) flushDeadline() time.Duration {
	return min(max(time.Duration(l.flush.Load()), 10*time.Millisecond), time.Second)
}

// connect finds the instance, sets it up and learns what is to be known of it.
func (d *Daemon) connect(ctx context.Context) (_ *link, err error) {
	k, err := d.dial()
	if err != nil {
		return nil, err
	}
	l := &link{
		kernel: k, wire: d.fixed.Wire, inbox: batch.NewInbox(inboxSize), held: batch.NewInbox(inboxSize),
		copied: batch.NewInbox(copiedSize), adding: make(chan struct{}, 1), refused: batch.NewInbox(refusedSize),
		contests: make(chan conflict, maxContests), contestsLater: make(chan conflict, maxContests),
		heard: make(chan struct{}, 1), stirred: make(chan struct{}, 1), asked: make(chan struct{}, 1),
		active: make(chan struct{}), began: time.Now(),
	}
	defer func() {
		if err != nil {
			l.Close()
		}
	}()
	if l.watcher, err = d.newWatcher(); err != nil { // as when descriptors are short: not in service, then
		return nil, err
	}
	if l.wire == 0 {
		l.wire = k.Module().Encoding
	}
	if l.globals, err = k.Globals(ctx); err != nil {
		return nil, err
	}
	l.found = l.globals
	if err := d.setUp(ctx, l); err != nil {
		return nil, err
	}
	l.pool6 = l.globals.Pool6
	if l.pool4, err = k.Pool4(ctx); err != nil {
		return nil, err
	}
	if l.static, err = k.StaticBIB(ctx, func(int) error { return nil }); err != nil {
		return nil, err
	}
	static := l.static
	l.bib.Store(&static)
	if l.stats, err = k.Stats(ctx); err != nil {
		return nil, err
	}
	l.pool4At = l.began
	l.apply()
	if l.globals.SyncEnabled { // else the module writes a line to the kernel's log
		// The last daemon may have died owing the kernel an ACK.
		return l, k.Ack()
	}
	return l, nil
}

// apply makes the policy of what was read. Masks are pool4's, and the IPv4
// sides of static BIB entries; without pool4 the instance masquerades.
func (l *link) apply() {
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
	ms, _ := l.globals.Get(nlchan.SSFlushDeadline)
	l.flush.Store(int64(ms) * int64(time.Millisecond))
	capacity, _ := l.globals.Get(nlchan.SSCapacity)
	l.capacity.Store(int64(capacity))
	full, _ := l.globals.Get(nlchan.SSMaxSessionsPerPacket)
	if asap, _ := l.globals.Get(nlchan.SSFlushASAP); asap != 0 && l.Module().Version.Less(4, 1, 13) {
		full = 0 // a message may be of any size then, and the next follows the ACK
	}
	l.full.Store(int64(full))
}

// errChanged ends a link whose instance is no longer the one it was made for.
var errChanged = errors.New("the instance was made anew")

// serve finds the instance and hears it out, link after link, until ctx ends.
// Without the privilege it ends at once: waiting would not give it.
func (d *Daemon) serve(ctx context.Context) error {
	l, err := d.reconnect(ctx)
	if err != nil {
		return err
	}
	for kept := l != nil && d.wasKept(l); l != nil; kept = false {
		began := time.Now()
		d.out.begin(l, kept)
		d.link.Store(l)
		d.about[theInstance].Info("in service", "instance", d.fixed.Instance, "module", l.Module().Version,
			"wire", l.wire, "pool6", l.pool6, "masquerades", l.policy.Load().Masquerades())
		d.condition.has(theInstance)
		if l.misreads() {
			d.limit.Warn("this module misreads sessions unless pool6 is a /96: it is given none; update Jool",
				"module", l.Module().Version, "pool6", l.pool6)
		}
		if l.Module().Version.Candidate42() {
			d.limit.Warn("this release candidate of Jool leaks kernel memory with each message to and from joold: update it",
				"module", l.Module().Version)
		}
		d.repairs.owe("the daemon began to serve the instance")

		err := d.follow(ctx, l)
		if ctx.Err() != nil {
			d.leaveNote(l)
		} else { // the instance has gone
			d.dropNote()
		}
		d.link.Store(nil)
		d.out.end(time.Now())
		d.settle(l)
		l.Close()
		if ctx.Err() != nil {
			break
		}
		d.condition.waitsFor(theInstance, err.Error())
		d.about[theInstance].Warn("out of service", "err", err)
		if time.Since(began) < time.Second && !pause(ctx, d.flapInterval) {
			break
		}
		for l, err = d.reconnect(ctx); err != nil; l, err = d.reconnect(ctx) {
			// It had the privilege, which may come back.
			d.condition.waitsFor(theInstance, err.Error())
			if !pause(ctx, d.flapInterval) {
				break
			}
		}
	}
	if group := d.group(); group != nil {
		group.Close()
	}
	return nil
}

// settle adds to the daemon's counts what a link has counted.
func (d *Daemon) settle(l *link) {
	heard := l.Counters()
	d.count.foreign.Add(heard.Foreign)
	d.count.malformed.Add(heard.Malformed)
	in := l.waiting()
	d.count.dropped.Add(in.Dropped + uint64(in.Waiting))
	d.count.expired.Add(in.Expired)
}

// reconnect waits until there is an instance to serve; nil when ctx ends first.
func (d *Daemon) reconnect(ctx context.Context) (*link, error) {
	tick := time.NewTicker(retryInterval)
	defer tick.Stop()
	for {
		l, err := d.connect(ctx)
		switch {
		case err == nil:
			return l, nil
		case ctx.Err() != nil:
			return nil, nil
		case errors.Is(err, nlchan.ErrPermission):
			return nil, err
		}
		d.condition.waitsFor(theInstance, err.Error())
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, nil
		}
	}
}

// follow serves one link until the instance goes away or ctx ends.
func (d *Daemon) follow(ctx context.Context, l *link) error {
	g, ctx := errgroup.WithContext(ctx)
	defer context.AfterFunc(ctx, func() { l.SetReadDeadline(time.Unix(1, 0)) })()
	g.Go(func() error { return d.hear(ctx, l) })
	g.Go(func() error { return d.drain(ctx, l) })
	g.Go(func() error { return d.inject(ctx, l, l.inbox) })
	g.Go(func() error { return d.inject(ctx, l, l.copied) })
	g.Go(func() error { return d.gather(ctx, l) })
	g.Go(func() error { return d.contend(ctx, l, l.contests, 0) })
	g.Go(func() error { return d.contend(ctx, l, l.contestsLater, contestAfter) })
	g.Go(func() error { return d.repair(ctx, l) })
	g.Go(func() error { return d.survey(ctx, l) })
	g.Go(func() error { return d.watch(ctx, l.watcher) })
	g.Go(func() error { return d.poll(ctx, l) })
	return g.Wait()
}

// poll follows the instance's settings, whose changes nothing announces, and
// ends when the instance is gone or is another.
func (d *Daemon) poll(ctx context.Context, l *link) error {
	defer d.work.polling.end()
	timer := time.NewTimer(pollInterval)
	defer timer.Stop()
	cfg := d.live.Load()
	fromNetwork := d.count.rcvdSessions.Load()
	before := uint64(0)
	for {
		d.sayIfDisabled(l)
		interval := idleInterval
		traffic := d.count.kernelMessages.Load() + d.count.rcvdDatagrams.Load()
		switch {
		case time.Since(l.began) < settling:
			interval = pollInterval
		case traffic != before || l.refused.Counts().Waiting > 0, l.unset:
			interval = busyInterval
		}
		before = traffic
		timer.Reset(interval)
		d.work.polling.end()
		due := time.Now().Round(0).Add(interval) // by the wall's clock: the other sleeps with the machine
		select {
		case <-timer.C:
		case <-l.stirred:
			interval = busyInterval
			l.note(&l.polled) // who speaks meanwhile is seen by this look
			if !pause(ctx, stirDelay) {
				return ctx.Err()
			}
		case <-ctx.Done():
			return ctx.Err()
		}
		d.work.polling.begin()
		l.note(&l.polled)
		now := time.Now()
		if now.Sub(due) > stoppedFor {
			d.repairs.owe("the daemon was stopped for a while")
		}
		if now.Sub(l.began) > silence && d.count.rcvdSessions.Load() == fromNetwork {
			l.activate()
		}
		err := d.reread(ctx, l, now, interval == idleInterval)
		if next := d.live.Load(); err == nil && (next != cfg || l.unset && now.Sub(l.setUpAt) > setUpInterval) {
			if next != cfg {
				cfg = next
				signal(l.asked)
			}
			err = d.setUp(ctx, l)
			l.apply()
			d.out.configure(l)
		}
		if isOver(err) {
			return err
		}
		if err != nil {
			d.limit.Warn("cannot read the instance's settings", "instance", d.fixed.Instance, "err", err)
		}
		d.leaveNote(l)
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

// reread reads what may have changed, and makes a new policy if something has.
// pool4 is read more often while it may still be filled, and when a mask was
// refused, and not while the daemon idles: nobody needs it. The static BIB is read
// by survey.
func (d *Daemon) reread(ctx context.Context, l *link, now time.Time, idles bool) error {
	g, err := l.same(ctx)
	if err != nil {
		return err
	}
	// It may have been made anew between two looks, with the same pool6, and lacks what it
	// lacked when it was found. If it lacks less, somebody has changed a setting.
	cfg, v, none := d.live.Load(), l.Module().Version, nlchan.Settings{}
	if lacks := wanted(cfg, v, g); lacks != none && wanted(cfg, v, l.globals) == none {
		if lacks == wanted(cfg, v, l.found) {
			return fmt.Errorf("%w: its settings are not those that it was given", errChanged)
		}
		l.globals = g
		if err := d.setUp(ctx, l); err != nil {
			return err
		}
		g = l.globals
		l.apply()
		d.out.configure(l)
	}
	pool4, static := l.pool4, *l.bib.Load()
	if l.doubt.Swap(false) || now.Sub(l.began) < settling || !idles && now.Sub(l.pool4At) > pool4Interval-pollInterval/2 {
		if pool4, err = l.Pool4(ctx); err != nil {
			return err
		}
		l.pool4At = now
	}
	if g != l.globals || !slices.Equal(pool4, l.pool4) || !slices.Equal(static, l.static) {
		l.globals, l.pool4, l.static = g, pool4, static
		l.apply()
		d.out.configure(l)
		d.readmit(l, now)
	}
	return d.readStats(ctx, l)
}

// readStats reads the module's counters, if it has announced anything since they
// were read last, for what it did not announce.
func (d *Daemon) readStats(ctx context.Context, l *link) error {
	messages := d.count.kernelMessages.Load()
	if messages == l.read {
		return nil
	}
	// An overrun is told of once, before what the buffer still holds: until that
	// is read, more is lost without a word, and a sweep may have begun already.
	if drops := l.Counters().Drops; drops != l.drops {
		l.drops = drops
		d.repairs.owe(missedSweep)
	}
	stats, err := l.Stats(ctx)
	if err != nil {
		return err
	}
	if stats.Translated < l.stats.Translated {
		return fmt.Errorf("%w: its counters began anew", errChanged)
	}
	if stats.Dropped > l.stats.Dropped { // less: the instance was made anew
		lost := stats.Dropped - l.stats.Dropped
		d.count.kernelDrops.Add(lost)
		capacity, _ := l.globals.Get(nlchan.SSCapacity)
		d.limit.Warn("the module's queue was full: its table will be swept", "instance", d.fixed.Instance,
			"dropped", lost, "ss_capacity", capacity)
		d.repairs.owe("the module did not announce all sessions")
	}
	if stats.Advertisements != l.stats.Advertisements {
		d.repairs.oweAll("somebody advertised with Jool's own tools")
	}
	l.stats, l.read = stats, messages
	return nil
}

// sayIfDisabled tells, once per change, when the instance trades no sessions.
func (d *Daemon) sayIfDisabled(l *link) {
	on := l.sync.Load()
	if saidOff := d.saidOff.Swap(!on); saidOff == !on {
		return
	}
	if on {
		d.Log.Info("session synchronization was turned on", "instance", d.fixed.Instance)
		d.out.lacks(l, "session synchronization was off until now")
		d.repairs.owe("session synchronization was off until now") // and nothing was announced
		return
	}
	d.Log.Warn("session synchronization is off in the instance; turn it on with " +
		"`jool -i " + d.fixed.Instance + " global update ss-enabled true`, or give joold --mod.enable")
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
