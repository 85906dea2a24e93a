package mcast

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// Links are several links that carry the same group: the same datagrams are sent on
// each, and what comes by any is heard. What happens to one disturbs no other; it is
// used again as soon as that can be. ReadBatch is for one goroutine at a time; all
// other methods may be called concurrently.
type Links struct {
	inlets *inlets
	links  []*link

	mu     sync.RWMutex // over each link's conn, away and near
	closed bool
	gone   uint64 // drops of Conns that have been closed
}

// link is one of them.
type link struct {
	cfg    Config
	conn   *Conn // nil while it cannot be opened
	away   error // why nothing passes; nil while it does
	near   []netip.Prefix
	failed atomic.Uint64 // datagrams that could not be sent
}

// LinkState is what has become of one of several links.
type LinkState struct {
	In, Out string // as in Config
	Away    error  // why nothing passes; nil while it does
	Carrier bool
	Failed  uint64 // datagrams that could not be sent on it
	Local          // the zero Local while it cannot be opened
}

// OpenLinks opens the group of cfgs on each one's interfaces. It fails as Open does,
// if none can be opened.
func OpenLinks(cfgs []Config) (*Links, error) {
	l := new(Links)
	var err error
	if l.inlets, err = newInlets(); err != nil {
		return nil, err
	}
	for _, cfg := range cfgs {
		one := &link{cfg: cfg}
		l.links = append(l.links, one)
		l.open(one)
	}
	if err := l.none(); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// open opens one link, if that can be.
func (l *Links) open(one *link) {
	c := &Conn{group: netip.AddrPortFrom(one.cfg.Group.Addr().Unmap(), one.cfg.Group.Port()), inlets: l.inlets, shared: true}
	if one.away = c.open(one.cfg); one.away != nil {
		c.Close()
		return
	}
	one.conn, one.near = c, c.prefixes()
}

// prefixes are those of the out device's addresses.
func (c *Conn) prefixes() (near []netip.Prefix) {
	index := c.out.index
	if index == 0 {
		index = c.joined.index
	}
	iface, err := net.InterfaceByIndex(index)
	if err != nil {
		return nil
	}
	addrs, err := iface.Addrs()
	if err != nil {
		return nil
	}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			near = append(near, p.Masked())
		}
	}
	return near
}

// none is why none of the links can be used, or nil if one can.
func (l *Links) none() (err error) {
	for _, one := range l.links {
		if one.away == nil {
			return nil
		}
		err = also(err, one.away)
	}
	return err
}

// also is both errors, on one line.
func also(a, b error) error {
	if a == nil || b == nil {
		return cmp.Or(a, b)
	}
	return fmt.Errorf("%w; %w", a, b)
}

// ReadBatch is as Conn's; each link's datagrams are kinds of their own.
func (l *Links) ReadBatch(ds []Datagram) (int, error) { return l.inlets.read(ds) }

// SetReadDeadline is as Conn's.
func (l *Links) SetReadDeadline(t time.Time) error { return l.inlets.setReadDeadline(t) }

// Write sends b on each link. It succeeds if one has taken it, unless b does not fit
// another's path: that is ErrTooBig. It waits only if none has taken it, and for the
// first that may.
func (l *Links) Write(b []byte) error {
	return l.each(func(_ *link, c *Conn, wait bool) error { return c.send(b, wait) })
}

// WriteTo sends b to one node alone, on the link whose addresses are like that of the
// node, or else on each. It succeeds and waits as Write does.
func (l *Links) WriteTo(b []byte, to netip.AddrPort) error {
	addr := to.Addr().Unmap()
	known := false
	l.mu.RLock()
	for _, one := range l.links {
		known = known || one.has(addr)
	}
	l.mu.RUnlock()
	return l.each(func(one *link, c *Conn, wait bool) error {
		if known && !one.has(addr) {
			return errOtherLink
		}
		return c.sendTo(b, to, wait)
	})
}

// has tells whether an address is one of the link.
func (one *link) has(a netip.Addr) bool {
	if one.conn == nil {
		return false
	}
	if zone := a.Zone(); zone != "" {
		return zone == one.conn.joined.name || zone == one.conn.out.name
	}
	for _, p := range one.near {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// errOtherLink is why nothing is sent on a link, and no failure.
var errOtherLink = errors.New("the node is on another link")

// each sends on each link that is open.
func (l *Links) each(send func(one *link, c *Conn, wait bool) error) error {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if l.closed {
		return &Error{Op: "send to", Group: l.links[0].cfg.Group, Err: net.ErrClosed}
	}
	sent := false
	var shut, failed, tooBig error // the first of those that are not open, and of those that are
	var full *link
	for _, one := range l.links {
		if one.conn == nil {
			shut = cmp.Or(shut, one.away)
			one.failed.Add(1)
			continue
		}
		err := send(one, one.conn, false)
		switch {
		case err == nil:
			sent = true
			continue
		case errors.Is(err, errOtherLink):
			continue
		case errors.Is(err, ErrTooBig):
			tooBig = err
		case errors.Is(err, os.ErrDeadlineExceeded) && full == nil:
			full = one
			failed = err
		case failed == nil:
			failed = err
		}
		one.failed.Add(1)
	}
	switch {
	case tooBig != nil:
		return tooBig
	case sent:
		return nil
	case full != nil:
		return send(full, full.conn, true)
	}
	return cmp.Or(failed, shut)
}

// MaxPayload is the number of bytes that a datagram may hold on each link that can be
// used.
func (l *Links) MaxPayload() int {
	l.mu.RLock()
	defer l.mu.RUnlock()
	n := MaxDatagram
	for _, one := range l.links {
		if one.conn != nil {
			n = min(n, one.conn.MaxPayload())
		}
	}
	return n
}

// Check looks at each link as Conn's does, and opens those anew that must be. It is
// Away only if none can be used.
func (l *Links) Check() (Change, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return Reopen, &Error{Op: "join", Group: l.links[0].cfg.Group, Err: net.ErrClosed}
	}
	changed, unknown := false, error(nil)
	for _, one := range l.links {
		was := one.away
		if one.conn != nil {
			change, err := one.conn.Check()
			switch change {
			case Unchanged:
				one.away = nil
				unknown = also(unknown, err)
			case Changed:
				one.away, changed = nil, true
				one.near = one.conn.prefixes()
			case Away:
				one.away = err
			case Reopen:
				one.away, changed = err, true
				l.shut(one)
			}
		}
		if one.conn == nil {
			l.open(one)
		}
		changed = changed || (was == nil) != (one.away == nil)
	}
	switch err := l.none(); {
	case err != nil:
		return Away, err
	case changed:
		return Changed, nil
	}
	return Unchanged, unknown
}

// shut closes a link's Conn, if there is one.
func (l *Links) shut(one *link) (err error) {
	if one.conn != nil {
		err = one.conn.Close()
		l.gone += one.conn.Drops()
		one.conn = nil
	}
	return err
}

// Carrier tells whether any link has one.
func (l *Links) Carrier() bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	for _, one := range l.links {
		if one.conn != nil && one.conn.Carrier() {
			return true
		}
	}
	return false
}

// Local describes the first link that can be used, and has all in Links.
func (l *Links) Local() (first Local) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	first.Group = l.links[0].cfg.Group
	var states []LinkState
	for _, one := range l.links {
		s := LinkState{In: one.cfg.In, Out: one.cfg.Out, Away: one.away, Failed: one.failed.Load()}
		if one.conn != nil {
			s.Local, s.Carrier = one.conn.Local(), one.conn.Carrier()
			if one.away == nil && !first.Source.IsValid() {
				first = s.Local
			}
		}
		states = append(states, s)
	}
	first.Links = states
	return first
}

// Drops is as Conn's.
func (l *Links) Drops() uint64 {
	l.mu.RLock()
	defer l.mu.RUnlock()
	n := l.gone
	for _, one := range l.links {
		if one.conn != nil {
			n += one.conn.Drops()
		}
	}
	return n
}

// Close is as Conn's.
func (l *Links) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	var errs []error
	for _, one := range l.links {
		errs = append(errs, l.shut(one))
	}
	return errors.Join(append(errs, l.inlets.close())...)
}
