package mcast

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// alone is what talks to one node alone and hears what is for this node alone: a
// socket that is bound to the address and the port that this node's datagrams come
// from, so that an answer to any of them arrives. Nobody shares it: of several
// sockets that are bound alike the kernel gives a datagram to one.
type alone struct {
	at   netip.AddrPort
	rx   *receiver
	tx   *sender
	hear *net.UDPConn
	send *net.UDPConn // hear, unless in and out are two devices
}

// port is where this node is reached alone.
func (c *Conn) port() uint16 {
	c.aloneMu.RLock()
	defer c.aloneMu.RUnlock()
	if c.alone == nil {
		return c.group.Port()
	}
	return c.alone.at.Port()
}

// openAlone takes the port of the group, which is what firewalls let pass; or, where
// another instance has that, one that is free.
func (c *Conn) openAlone() (*alone, error) {
	source := c.path.Load().source
	a, err := c.aloneAt(netip.AddrPortFrom(source, c.group.Port()))
	if errors.Is(err, unix.EADDRINUSE) {
		a, err = c.aloneAt(netip.AddrPortFrom(source, 0))
	}
	return a, err
}

// aloneAt opens it at an address and a port; port 0 is one that is free.
func (c *Conn) aloneAt(at netip.AddrPort) (_ *alone, err error) {
	in, out := c.joined, c.out
	if out.index == 0 {
		out = in
	}
	if at.Addr().IsLinkLocalUnicast() { // which no other device has
		in = out
	}
	a := new(alone)
	defer func() {
		if err != nil {
			a.close()
		}
	}()
	if a.hear, err = c.aloneSocket(at, in, c.readBuffer); err != nil {
		return nil, err
	}
	a.at = netip.AddrPortFrom(at.Addr(), a.hear.LocalAddr().(*net.UDPAddr).AddrPort().Port())
	if a.send = a.hear; in.index != out.index {
		if a.send, err = c.aloneSocket(a.at, out, 0); err != nil {
			return nil, err
		}
	}
	if a.rx, err = newReceiver(a.hear, in, true); err != nil {
		return nil, err
	}
	a.rx.link = c.link
	a.tx, err = newSender(a.send, unix.IP_PMTUDISC_PROBE)
	return a, err
}

// aloneSocket opens a socket that is bound to an address and dev, and hears what
// comes there unless readBuffer is 0. What it sends is
// never fragmented, and may be as long as dev allows, whatever an ICMP message
// says: anybody can forge those.
func (c *Conn) aloneSocket(at netip.AddrPort, dev device, readBuffer int) (*net.UDPConn, error) {
	hops := max(1, c.ttl) // IPv4 knows no 0 here
	options := []option{
		{"IP_MTU_DISCOVER", unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE},
		{"IP_RECVTTL", unix.IPPROTO_IP, unix.IP_RECVTTL, 1},
		{"IP_TTL", unix.IPPROTO_IP, unix.IP_TTL, hops},
	}
	if at.Addr().Is6() {
		options = []option{
			{"IPV6_MTU_DISCOVER", unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE},
			{"IPV6_RECVHOPLIMIT", unix.IPPROTO_IPV6, unix.IPV6_RECVHOPLIMIT, 1},
			{"IPV6_UNICAST_HOPS", unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, hops},
		}
	}
	file, err := udpSocket(at.Addr(), func(fd int) error {
		if err := hear(fd, readBuffer); err != nil {
			return err
		}
		grow(fd, unix.SO_SNDBUFFORCE, unix.SO_SNDBUF, c.writeBuffer)
		return bindTo(fd, options, at, dev)
	})
	if err != nil {
		return nil, err
	}
	return polled(file)
}

func (a *alone) close() error {
	var errs [2]error
	if a.hear != nil {
		errs[0] = a.hear.Close()
	}
	if a.send != nil && a.send != a.hear {
		errs[1] = a.send.Close()
	}
	return errors.Join(errs[:]...)
}

// closeAlone is part of Close.
func (c *Conn) closeAlone() error {
	c.aloneMu.Lock()
	defer c.aloneMu.Unlock()
	if c.alone == nil {
		return nil
	}
	_ = c.inlets.remove(c.alone.rx) // it fails if they are closed
	c.gone += c.alone.rx.drops()
	err := c.alone.close()
	c.alone = nil
	return err
}

// followSource makes what is sent to the address that datagrams come from now be
// heard. The port stays the same, since others know it.
func (c *Conn) followSource() (Change, error) {
	if c.beside {
		return Unchanged, nil
	}
	c.aloneMu.Lock()
	defer c.aloneMu.Unlock()
	if c.alone == nil {
		return Reopen, net.ErrClosed
	}
	source := c.path.Load().source
	if source == c.alone.at.Addr() {
		return Unchanged, nil
	}
	next, err := c.aloneAt(netip.AddrPortFrom(source, c.alone.at.Port()))
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return Reopen, fmt.Errorf("%w (%w)", errTaken, err)
	case err != nil:
		return Away, explain(err, c.in)
	}
	if err := c.inlets.add(next.rx); err != nil {
		next.close()
		return Reopen, err
	}
	_ = c.inlets.remove(c.alone.rx) // it fails if all is being closed
	c.gone += c.alone.rx.drops()
	c.alone.close()
	c.alone = next
	return Unchanged, nil
}

// errNoNode is why nothing is sent to an address.
var errNoNode = errors.New("a node has a unicast address, of the family that others are reached by, and a port")

func isNode(a netip.AddrPort) bool {
	return a.IsValid() && !a.Addr().IsMulticast() && !a.Addr().IsUnspecified() && a.Port() != 0
}

// WriteTo sends b to one node alone, the one that a datagram came From. It waits and
// fails as Write does. It allocates nothing.
func (c *Conn) WriteTo(b []byte, to netip.AddrPort) error { return c.sendTo(b, to, true) }

func (c *Conn) sendTo(b []byte, to netip.AddrPort, wait bool) error {
	err := c.writeTo(b, netip.AddrPortFrom(to.Addr().Unmap(), to.Port()), wait)
	if err == nil {
		return nil
	}
	return &Error{Op: "send to", Group: c.group, Node: to, Device: c.out.name, Err: err}
}

func (c *Conn) writeTo(b []byte, to netip.AddrPort, wait bool) error {
	addr := to.Addr()
	if !isNode(to) || addr.Is4() != c.group.Addr().Is4() {
		return errNoNode
	}
	scope := c.out.index
	if scope == 0 {
		scope = c.joined.index
	}
	if !addr.IsLinkLocalUnicast() {
		scope = 0
	}
	dest := endpointAt(to, scope)
	c.aloneMu.RLock()
	defer c.aloneMu.RUnlock()
	if c.alone == nil {
		return net.ErrClosed
	}
	err := c.alone.tx.write(b, &dest, wait)
	if errors.Is(err, unix.EMSGSIZE) {
		err = fmt.Errorf("%w: it has %d bytes (%w)", ErrTooBig, len(b), err)
	}
	return err
}
