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

	mu     sync.RWMutex // over each link's conn and away
	closed bool
	gone   uint64 // drops of Conns that have been closed
}

// link is one of them.
type link struct {
	cfg    Config
	conn   *Conn                          // nil while it cannot be opened
	away   error                          // why nothing passes; nil while it does
	near   atomic.Pointer[[]netip.Prefix] // of its addresses, also of those that it had
	failed atomic.Uint64                  // datagrams that could not be sent

	mu     sync.Mutex
	guests [maxGuests]guest
}

// guest is an address that was heard on a link, but is none of its prefixes': a node
// has moved there, or is behind a router.
type guest struct {
	addr netip.Addr
	at   time.Time
}

const (
	// maxGuests bounds the guests of a link that are remembered: who makes up addresses
	// pushes out the one that was not heard for the longest.
	maxGuests = 64

	// guestFor is for how long after a guest was heard it is spoken to on a link. Nodes
	// say hello each second.
	guestFor = 10 * time.Second
)

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
	c := &Conn{group: netip.AddrPortFrom(one.cfg.Group.Addr().Unmap(), one.cfg.Group.Port()), inlets: l.inlets, shared: true, link: one}
	if one.away = c.open(one.cfg); one.away != nil {
		c.Close()
		return
	}
	one.conn = c
	one.look()
}

// look finds out which addresses are those of the link now.
func (one *link) look() {
	near := one.conn.prefixes()
	one.near.Store(&near)
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
func (l *Links) ReadBatch(ds []Datagram) (int, error) {
	n, err := l.inlets.read(ds)
	if n > 0 {
		l.inlets.last.link.sees(ds[:n])
	}
	return n, err
}

// sees notes who was heard on the link that is none of its own.
func (one *link) sees(ds []Datagram) {
	for i := range ds {
		if a := ds[i].From.Addr(); a.Zone() == "" && !one.isNear(a) {
			one.welcome(a, time.Now())
		}
	}
}

func (one *link) welcome(a netip.Addr, now time.Time) {
	one.mu.Lock()
	defer one.mu.Unlock()
	oldest := &one.guests[0]
	for i := range one.guests {
		g := &one.guests[i]
		if g.addr == a {
			g.at = now
			return
		}
		if g.at.Before(oldest.at) {
			oldest = g
		}
	}
	*oldest = guest{a, now}
}

func (one *link) isGuest(a netip.Addr, now time.Time) bool {
	one.mu.Lock()
	defer one.mu.Unlock()
	for i := range one.guests {
		if g := &one.guests[i]; g.addr == a {
			return now.Sub(g.at) < guestFor
		}
	}
	return false
}

// SetReadDeadline is as Conn's.
func (l *Links) SetReadDeadline(t time.Time) error { return l.inlets.setReadDeadline(t) }

// Write sends b on each link. It succeeds if one has taken it, unless b does not fit
// another's path: that is ErrTooBig. It waits only if none has taken it, and for the
// first that may.
func (l *Links) Write(b []byte) error {
	return l.each(func(*link) chosen { return meant }, func(c *Conn, wait bool) error { return c.send(b, wait) })
}

// WriteTo sends b to one node alone: on the link whose addresses are like that of the
// node and, if it was heard on others lately, on these; or if none that is open has such
// addresses, on each. It succeeds and waits as Write does.
func (l *Links) WriteTo(b []byte, to netip.AddrPort) error {
	addr, now := to.Addr().Unmap(), time.Now()
	known := false
	l.mu.RLock()
	for _, one := range l.links {
		known = known || one.conn != nil && one.has(addr)
	}
	l.mu.RUnlock()
	return l.each(func(one *link) chosen {
		switch {
		case one.has(addr), one.isGuest(addr, now):
			return meant
		case known:
			return unmeant
		}
		return tried
	}, func(c *Conn, wait bool) error { return c.sendTo(b, to, wait) })
}

// has tells whether an address is one of the link.
func (one *link) has(a netip.Addr) bool {
	if zone := a.Zone(); zone != "" {
		return one.conn != nil && (zone == one.conn.joined.name || zone == one.conn.out.name)
	}
	return one.isNear(a)
}

// isNear tells whether an address is in one of the link's prefixes.
func (one *link) isNear(a netip.Addr) bool {
	if near := one.near.Load(); near != nil {
		for _, p := range *near {
			if p.Contains(a) {
				return true
			}
		}
	}
	return false
}

// chosen is what a datagram has to do with a link.
type chosen uint8

const (
	unmeant chosen = iota // nothing
	tried                 // it may be the way; if not, that is no failure of the link
	meant                 // it is to be sent on it
)

// each sends on each link that is open, and that the datagram has to do with.
func (l *Links) each(choose func(*link) chosen, send func(c *Conn, wait bool) error) error {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if l.closed {
		return &Error{Op: "send to", Group: l.links[0].cfg.Group, Err: net.ErrClosed}
	}
	sent := false
	var shut, failed, tooBig error // the first of those that are not open, and of those that are
	var full *link                 // the first
	for _, one := range l.links {
		choice := choose(one)
		if choice == unmeant {
			continue
		}
		var err error
		if one.conn == nil {
			shut = cmp.Or(shut, one.away)
		} else if err = send(one.conn, false); err == nil {
			sent = true
			continue
		}
		switch {
		case err == nil:
		case errors.Is(err, ErrTooBig):
			tooBig = err
		case errors.Is(err, os.ErrDeadlineExceeded) && full == nil:
			full = one
			continue // which may have room yet
		case failed == nil:
			failed = err
		}
		if choice == meant {
			one.failed.Add(1)
		}
	}
	if full != nil && !sent && tooBig == nil {
		if failed = send(full.conn, true); failed == nil {
			return nil
		}
	}
	if full != nil && choose(full) == meant {
		full.failed.Add(1)
	}
	switch {
	case tooBig != nil:
		return tooBig
	case sent:
		return nil
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
				one.look()
			case Changed:
				one.away, changed = nil, true
				one.look()
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
