package daemon

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"

	"joold/internal/config"
	"joold/internal/mcast"
)

const (
	// retryInterval is how often what is away is looked for. The group's
	// interface is watched besides.
	retryInterval = 500 * time.Millisecond

	// pathInterval is how often the path to the group is looked at when no
	// interface has changed: routes, and what the watch may have missed.
	pathInterval = 30 * time.Second

	// settleTime is how long after a path is back datagrams may still be lost
	// without a word: the interface's queue takes nothing in before it has noticed
	// that there is a carrier.
	settleTime = time.Second

	// assumedPayload is the size of datagrams while there is no path to ask:
	// what IPv6 promises everywhere.
	assumedPayload = 1280 - 40 - 8
)

// errNoGroup is why a datagram is not even tried.
var errNoGroup = errors.New("the group is away")

// group is the group while it is open; nil while it is away.
func (d *Daemon) group() network {
	if n := d.current.Load(); n != nil {
		return *n
	}
	return nil
}

// join opens the group, as soon as it can be; nil when ctx ends first, or with
// an error that time does not heal.
func (d *Daemon) join(ctx context.Context) (network, error) {
	tick := time.NewTicker(retryInterval)
	defer tick.Stop()
	for {
		group, err := d.open(ctx)
		if err == nil {
			return group, nil
		}
		if ctx.Err() != nil {
			return nil, nil
		}
		if errors.Is(err, mcast.ErrNotMulticast) || errors.Is(err, config.ErrNotMulticast) {
			return nil, err
		}
		d.condition.waitsFor(theGroup, err.Error())
		select {
		case <-tick.C:
		case <-d.pathChanged:
		case <-ctx.Done():
			return nil, nil
		}
	}
}

// use makes group the one that is sent to.
func (d *Daemon) use(group network) {
	local := group.Local()
	if asked := d.fixed.ReadBuffer; local.ReadBuffer < asked {
		d.limit.Warn("the socket's receive buffer is smaller than asked for: give joold CAP_NET_ADMIN, or raise net.core.rmem_max",
			"asked", asked, "granted", local.ReadBuffer)
	}
	d.current.Store(&group)
	d.out.resize(group.MaxPayload())
	about := []any{"in", local.In, "out", local.Out, "from", local.Source, "port", local.Port, "mtu", local.MTU, "receive_buffer", local.ReadBuffer}
	if group := shownGroup(local.Group); len(local.Peers) > 0 {
		d.about[theGroup].Info("sends to peers", append(about, "group", group, "peers", len(local.Peers))...)
	} else {
		d.about[theGroup].Info("joined the group", append(about, "group", group)...)
	}
	d.links.say(d.Log, local.Links)
	d.condition.has(theGroup)
}

// shownGroup is a group as people read it; "" if there is none.
func shownGroup(group netip.AddrPort) string {
	if !group.IsValid() {
		return ""
	}
	return group.String()
}

// leave closes the group.
func (d *Daemon) leave(group network) {
	d.current.Store(nil)
	group.Close()
	d.count.socketDrops.Add(group.Drops())
}

// listen takes what the network brings, and joins the group again whenever it
// was closed. It never waits for the kernel.
func (d *Daemon) listen(ctx context.Context) error {
	in := newIntake(d)
	var lost time.Time
	for {
		group, err := d.join(ctx)
		if group == nil {
			return err
		}
		d.use(group)
		if !lost.IsZero() {
			d.regained(lost)
		}
		stop := context.AfterFunc(ctx, func() { group.SetReadDeadline(time.Unix(1, 0)) })
		in.read(ctx, group)
		stop()
		if ctx.Err() != nil {
			// Not left yet: what waits is sent when the link ends.
			return nil
		}
		lost = time.Now()
		d.leave(group)
	}
}

// regained has sent again, a little later, what may have been lost on the path to
// the group since it was lost.
func (d *Daemon) regained(lost time.Time) {
	time.AfterFunc(settleTime, func() {
		d.out.doubt(lost.Add(-settleTime), time.Now())
		d.repairs.owe("the path to the group was away")
	})
}

// followPath looks at the path to the group when an interface or an address has
// changed, and now and then.
func (d *Daemon) followPath(ctx context.Context) error {
	changed := make(chan struct{}, 1)
	go func() {
		for {
			err := d.watchPath(ctx, func() { signal(changed) })
			if ctx.Err() != nil {
				return
			}
			d.limit.Warn("cannot watch the interfaces: looking now and then instead", "err", err)
			if !pause(ctx, pathInterval) {
				return
			}
		}
	}()
	tick := time.NewTicker(pathInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-changed:
		case <-ctx.Done():
			return nil
		}
		d.checkPath()
		signal(d.pathChanged)
	}
}

// watchPath calls changed when an interface or an address has changed.
func watchPath(ctx context.Context, cfg mcast.Config, changed func()) error {
	w, err := mcast.NewWatcher(cfg)
	if err != nil {
		return err
	}
	defer w.Close()
	return w.Run(ctx, changed)
}

// checkPath looks at the path to the group.
func (d *Daemon) checkPath() {
	group := d.group()
	if group == nil {
		return
	}
	away := !d.pathLost.IsZero()
	change, err := group.Check()
	d.links.say(d.Log, group.Local().Links)
	switch {
	case errors.Is(err, net.ErrClosed): // and about to be joined again
	case change == mcast.Reopen:
		if away { // for the time from now on, listen does this
			d.out.doubt(d.pathLost.Add(-settleTime), time.Now())
			d.pathLost = time.Time{}
		}
		d.condition.waitsFor(theGroup, err.Error())
		group.Close()
	case change == mcast.Away:
		if !away {
			d.pathLost = time.Now()
		}
		d.condition.waitsFor(theGroup, err.Error())
	case err != nil:
		d.limit.Warn("cannot look at the path to the group", "err", err)
	case away:
		d.regained(d.pathLost)
		d.pathLost = time.Time{}
		d.condition.has(theGroup)
		d.about[theGroup].Info("the path to the group is back", "from", group.Local().Source, "mtu", group.Local().MTU)
		d.out.resize(group.MaxPayload())
	case change == mcast.Changed:
		d.out.resize(group.MaxPayload())
	}
	switch carrier := group.Carrier(); {
	case carrier && !d.carrierLost.IsZero():
		d.carrier.Info("the group's interface has its carrier back")
		d.regained(d.carrierLost)
		d.carrierLost = time.Time{}
	case !carrier && d.carrierLost.IsZero() && change != mcast.Reopen:
		d.carrier.Warn("the group's interface has no carrier: nobody is reached", "in", group.Local().In, "out", group.Local().Out)
		d.carrierLost = time.Now()
	}
}

// signal leaves a token in c, unless there is one.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
