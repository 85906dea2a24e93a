// Package nlchan is the way to one instance of Jool's NAT64 kernel module: the
// joold channel, on which the module announces sessions and takes in others',
// and the requests for tables, settings and counters. It owns Jool's Generic
// Netlink family, with its versions and numbers, and knows nothing of the
// network, of files, or of what sessions are announced for.
//
// The facts are Jool's, 4.1.4 to 4.1.15 and 4.2.0-rc3, from its sources.
package nlchan

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"joold/internal/session"
)

// Conn is a connection to one instance. It lives as long as the module stays
// loaded: afterwards it hears nothing, and each use fails with ErrStale.
//
// Receive and Add belong to one goroutine each; everything else, Ack too, may be
// called by any. An instance belongs to a network namespace, and the kernel looks at
// the calling thread's: all of them must be in the one that Dial was called in.
type Conn struct {
	dialect
	instance   string
	host       Host
	module     Module
	perMessage int

	channel Socket                 // hears the group, sends ACKs
	ack     []byte                 // a JOOLD_ACK
	late    func(entries int) bool // see Hold; may be nil
	counted counters

	adds   Socket
	add    []byte // a JOOLD_ADD without sessions
	addBuf []byte // the one that is being made of it
	addIn  []byte // what the kernel has to say to it

	mu        sync.Mutex // guards requests: one at a time
	requests  Socket
	requestID uint32
}

// Module is what Dial found out about the kernel's side.
type Module struct {
	Version    Version
	Encoding   session.Encoding // of sessions on the channel, each way
	Family     uint16           // the id of Jool's netlink family; changes with each load
	Group      uint32           // that of the joold multicast group; likewise
	ReadBuffer int              // bytes, as the kernel counts them: twice what was asked for
}

// Counters count since Dial what only the connection knows.
type Counters struct {
	Foreign   uint64 // messages of other instances: left alone
	Malformed uint64 // messages of this instance, or nobody's: acknowledged if ours, and dropped
	ACKs      uint64 // sent
	Drops     uint64 // messages for which the receive buffer had no room; see ErrOverrun
}

type counters struct {
	foreign, malformed, acks atomic.Uint64
}

// Counters are safe to ask for at any time, also when the connection is closed.
func (c *Conn) Counters() Counters {
	return Counters{
		Foreign:   c.counted.foreign.Load(),
		Malformed: c.counted.malformed.Load(),
		ACKs:      c.counted.acks.Load(),
		Drops:     c.channel.Drops(),
	}
}

// Dial connects to an instance and joins its channel. It fails with ErrNoModule,
// ErrNoInstance or ErrPermission. Whether the instance synchronizes is left to
// Globals.
func Dial(instance string, opts ...Option) (*Conn, error) {
	o := newOptions(opts)
	c := &Conn{
		instance:   instance,
		host:       o.host,
		perMessage: o.perMessage,
		addIn:      make([]byte, answerSize),
	}
	if err := c.dial(o); err != nil {
		c.Close()
		return nil, c.fail("connect to the session channel", err)
	}
	return c, nil
}

func (c *Conn) dial(o options) error {
	if err := validName(c.instance); err != nil {
		return err
	}
	for _, s := range []*Socket{&c.channel, &c.adds, &c.requests} {
		var err error
		if *s, err = o.host.Socket(); err != nil {
			return err
		}
	}
	f, err := resolve(c.requests, joolFamily)
	if errors.Is(err, unix.ENOENT) {
		return ErrNoModule
	}
	if err != nil {
		return err
	}
	v, err := moduleVersion(o.host)
	if err != nil {
		return err
	}
	group, ok := f.groups[joolGroup]
	if !ok || f.header < joolHeader {
		return fmt.Errorf("module %s has no session channel: joold needs Jool 4.1.4 or later", v)
	}
	c.dialect = newDialect(f, v)
	if c.ack, err = c.marshal(c.opAck, 0, c.instance); err != nil {
		return err
	}
	if c.add, err = c.marshal(c.opAdd, 0, c.instance, netlink.Attribute{Type: attrSessionEntries | netlink.Nested}); err != nil {
		return err
	}
	c.module = Module{Version: v, Encoding: v.Encoding(), Family: f.id, Group: group}

	if c.module.ReadBuffer, err = c.channel.SetReadBuffer(o.readBuffer); err != nil {
		return err
	}
	if err := c.channel.Join(group); err != nil {
		return err
	}
	// Last, since the answer proves that the family joined is still the one
	// that is loaded.
	return c.hello()
}

// validName wants what the module takes for a name. It would take the empty one
// as well, for "default" in some requests and for nothing in others.
func validName(name string) error {
	if len(name) == 0 || len(name) >= nameSize {
		return fmt.Errorf("an instance's name has 1 to %d bytes, not %d", nameSize-1, len(name))
	}
	for i := range len(name) {
		if name[i] < ' ' || name[i] > '~' {
			return errors.New("an instance's name is printable ASCII")
		}
	}
	return nil
}

// Module is what Dial found.
func (c *Conn) Module() Module { return c.module }

// SetReadDeadline makes a Receive that waits, or will wait, beyond t return
// os.ErrDeadlineExceeded; the zero time lifts it.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.channel.SetReadDeadline(t) }

// Close ends the connection; a Receive that waits returns ErrClosed.
func (c *Conn) Close() error {
	var errs []error
	for _, s := range []Socket{c.channel, c.adds, c.requests} {
		if s != nil {
			errs = append(errs, s.Close())
		}
	}
	return errors.Join(errs...)
}
