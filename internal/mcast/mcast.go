// Package mcast owns the sockets of a UDP multicast group, IPv4 or IPv6, on
// which the nodes tell each other of their sessions, and those by which one node
// is spoken to alone: it finds the interfaces, joins, sends and receives
// datagrams, and knows how large one may be. It must not know what a datagram
// holds.
//
// On the wire it is the C daemon (Jool 4.1.9 and 4.1.15): sockets bound to the
// group's own address and port, so that datagrams leave from that port with the
// source address that the kernel selects for the interface; loopback off.
// What it adds is heard by nobody: sockets are bound to their device and take
// their own group and what is for this node alone, and a datagram that does not
// fit is refused instead of fragmented.
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
)

// MaxDatagram is the C daemon's receive buffer in bytes. It cuts off what is
// longer, so nothing longer is ever sent.
const MaxDatagram = 2048

// MaxReceived is the room in bytes that a received datagram needs: what fits a
// jumbo frame. No node sends longer ones, though UDP can carry 64 KiB.
const MaxReceived = 9216

// MaxBuffer is the largest socket buffer in bytes that can be asked for: the
// kernel doubles it, in 32 bits.
const MaxBuffer = 1<<30 - 1

// DefaultBuffer is the size of a socket buffer in bytes where Config names none.
const DefaultBuffer = 4 << 20

// Config says which group to open and how.
type Config struct {
	// Group is the multicast address and UDP port. An IPv6 address may have a
	// zone, the name or index of an interface: it then stands for In and Out.
	// OpenPeers does without.
	Group netip.AddrPort

	// In and Out are the interfaces to listen on and to send through, each the
	// interface's name or one of its addresses of either family. The kernel
	// chooses where one is empty. An IPv4 group leaves with the address that Out
	// gives, if it is an IPv4 address.
	In, Out string

	// TTL is the TTL or hop limit of what is sent, 0 to 255. The C daemon's
	// default is 1: never past a router.
	TTL int

	// NoReuse keeps other sockets off the group's address and port
	// (SO_REUSEADDR off), and fails if there are any.
	NoReuse bool

	// ReadBuffer and WriteBuffer are the sizes of the socket buffers in bytes;
	// 0 is DefaultBuffer. Beyond net.core.rmem_max and wmem_max they take
	// CAP_NET_ADMIN; Local tells what was granted.
	ReadBuffer, WriteBuffer int
}

// Conn is an open group. ReadBatch is for one goroutine at a time; all other
// methods may be called concurrently.
type Conn struct {
	group   netip.AddrPort
	shared  bool  // its inlets are not its own
	link    *link // that it is; nil if there is but one
	beside  bool  // Peers speak to one node alone
	in, out device
	routes  *router // only where the kernel chooses
	joined  device  // in, or what the kernel has chosen
	inlets  *inlets
	read    *os.File // the socket that hears the group; only inlets waits for it
	write   *net.UDPConn
	rx      *receiver
	tx      *sender
	to      endpoint // the group

	aloneMu sync.RWMutex
	alone   *alone // nil after Close
	gone    uint64 // drops of those before it

	ttl                     int
	readBuffer, writeBuffer int // asked for, then granted

	probeMu sync.Mutex // one look at the path at a time
	probe   *net.UDPConn
	path    atomic.Pointer[path]
	lost    atomic.Bool // there was none at the last look
}

// Open joins the group. Its errors are of type *Error; errors.Is tells
// ErrNotMulticast, ErrNoInterface, ErrInterfaceDown, ErrNoAddress, ErrNoRoute
// and ErrPortInUse apart. All but the first may pass with time.
func Open(cfg Config) (*Conn, error) {
	c := &Conn{group: netip.AddrPortFrom(cfg.Group.Addr().Unmap(), cfg.Group.Port())}
	if err := c.open(cfg); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

func (c *Conn) open(cfg Config) error {
	if err := c.check(cfg); err != nil {
		return c.fail("use", "", err)
	}
	if err := c.findDevices(cfg); err != nil {
		return err
	}
	c.ttl = cfg.TTL
	c.readBuffer = cmp.Or(cfg.ReadBuffer, DefaultBuffer)
	c.writeBuffer = cmp.Or(cfg.WriteBuffer, DefaultBuffer)

	// The path comes first: it finds out what is wrong with an interface
	// before a socket option has to fail because of it.
	if err := c.openProbe(); err != nil {
		return err
	}
	return c.openSockets(!cfg.NoReuse)
}

func (c *Conn) check(cfg Config) error {
	switch {
	case !c.group.Addr().IsMulticast():
		return ErrNotMulticast
	case c.group.Port() == 0:
		return errPort
	}
	return checkNumbers(cfg)
}

var errPort = errors.New("port 0: choose one from 1 to 65535")

func checkNumbers(cfg Config) error {
	switch {
	case cfg.TTL < 0 || cfg.TTL > 255:
		return fmt.Errorf("a TTL of %d: choose one from 0 to 255", cfg.TTL)
	case min(cfg.ReadBuffer, cfg.WriteBuffer) < 0 || max(cfg.ReadBuffer, cfg.WriteBuffer) > MaxBuffer:
		return fmt.Errorf("socket buffers of %d and %d bytes: choose sizes from 1 to %d",
			cfg.ReadBuffer, cfg.WriteBuffer, MaxBuffer)
	}
	return nil
}

// Close leaves the group and ends calls that wait with net.ErrClosed.
func (c *Conn) Close() error {
	var errs [6]error
	if c.rx != nil {
		c.rx.drops() // which the kernel is about to forget
	}
	if c.inlets != nil && c.rx != nil {
		_ = c.inlets.remove(c.rx) // it fails if they are closed
	}
	if c.inlets != nil && !c.shared {
		errs[0] = c.inlets.close()
	}
	errs[1] = c.closeAlone()
	if c.read != nil {
		// A socket that is joined on an index leaves it when it ends, and it may
		// end late, in a process that is just being forked: by then the next Conn
		// has joined, maybe on another interface of this index.
		_ = c.member(leave)
		errs[2] = c.read.Close()
	}
	if c.write != nil {
		errs[3] = c.write.Close()
	}
	if c.probe != nil {
		errs[4] = c.probe.Close()
	}
	if c.routes != nil {
		errs[5] = c.routes.conn.Close()
	}
	return errors.Join(errs[:]...)
}

// Local is what a Conn came to be.
type Local struct {
	Group       netip.AddrPort // not valid if there is none
	Peers       []netip.AddrPort
	In, Out     string     // the interfaces' names; "" where the kernel chooses
	Source      netip.Addr // where datagrams come from
	Port        uint16     // likewise, and where those to this node alone go: the group's, or another if that is taken
	MTU         int        // of the path to the group, in bytes
	ReadBuffer  int        // bytes granted, in the measure of Config
	WriteBuffer int

	Links []LinkState // where there are several; what precedes is then of the first that can be used
}

// Local describes the Conn as of the last look at the path.
func (c *Conn) Local() Local {
	p := c.path.Load()
	return Local{
		Group: c.group, In: c.in.name, Out: c.out.name,
		Source: p.source, Port: c.port(), MTU: p.mtu,
		ReadBuffer: c.readBuffer, WriteBuffer: c.writeBuffer,
	}
}

// Drops counts the datagrams that came while a receive buffer was full, since
// Open and until Close. The kernel counts in 32 bits: call it once in 4,000
// million drops.
func (c *Conn) Drops() uint64 {
	c.aloneMu.RLock()
	defer c.aloneMu.RUnlock()
	n := c.gone
	if c.rx != nil {
		n += c.rx.drops()
	}
	if c.alone != nil {
		n += c.alone.rx.drops()
	}
	return n
}
