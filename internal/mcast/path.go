package mcast

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// path is how datagrams get to the group.
type path struct {
	source netip.Addr
	mtu    int
}

// Change is what has become of a Conn since the last look at its path, and so
// what its owner has to do.
type Change uint8

const (
	// Unchanged: nothing to do.
	Unchanged Change = iota
	// Changed: MaxPayload or Local().Source tell something new.
	Changed
	// Away: nothing passes one way or both, since an interface is down or has
	// no usable address. When that is over the same Conn works again.
	Away
	// Reopen: the Conn hears nothing, or not what Open would hear now, and that
	// will not pass. Close it and Open another; that fails until it can be.
	Reopen
)

func (c Change) String() string {
	return [...]string{"unchanged", "changed", "away", "to be opened anew"}[c]
}

// Check looks at the interfaces, the membership and the path, for what no socket
// is told of. It costs a dozen system calls and must be called in the network
// namespace of Open. With Away and Reopen comes an *Error that says why; with
// Unchanged one may come too: then it could not be found out.
func (c *Conn) Check() (Change, error) {
	for _, d := range []struct {
		op  string
		dev device
	}{{"join", c.in}, {"send to", c.out}} {
		if change, err := d.dev.check(); err != nil {
			return change, c.fail(d.op, d.dev.name, err)
		}
	}
	if change, err := c.checkMembership(); err != nil {
		return change, c.fail("join", c.in.name, err)
	}
	before := *c.path.Load()
	switch err := c.Refresh(); {
	case errors.Is(err, net.ErrClosed):
		return Reopen, err
	case err != nil:
		return Away, err
	}
	if change, err := c.followSource(); err != nil {
		return change, c.fail("be reached beside", c.in.name, err)
	}
	if *c.path.Load() != before {
		return Changed, nil
	}
	return Unchanged, nil
}

// Carrier tells whether the interfaces have one. Without, as when a cable is
// pulled or the switch starts, datagrams are sent into the void, with success.
func (c *Conn) Carrier() bool { return c.in.hasCarrier() && c.out.hasCarrier() }

// checkMembership tells whether the group is still heard where it would be
// joined now.
func (c *Conn) checkMembership() (Change, error) {
	if c.in.index == 0 {
		now, err := c.routes.device(c.group.Addr())
		switch {
		case err != nil:
			return Away, explain(err, device{}) // the route may come back
		case now != c.joined.index:
			return Reopen, errRerouted
		}
	}
	member, err := isMember(c.joined.index, c.group.Addr())
	if err == nil && !member {
		return Reopen, errNoMember
	}
	return Unchanged, err
}

// openProbe opens a socket that sends nothing. Connected to the group, it is
// what the kernel tells the path's MTU and source address by; it stays open
// since it belongs to the network namespace that Open was called in.
func (c *Conn) openProbe() (err error) {
	if c.in.index == 0 || c.out.index == 0 {
		if c.routes, err = openRouter(); err != nil {
			return c.fail("find the path to", "", err)
		}
	}
	var file *os.File
	if file, err = udpSocket(c.group.Addr(), deafen); err == nil {
		c.probe, err = polled(file)
	}
	if err == nil {
		err = c.sendThrough(c.probe)
	}
	if err != nil {
		return c.fail("find the path to", c.out.name, explain(err, c.out))
	}
	return c.Refresh()
}

// MaxPayload is the number of bytes that a datagram may hold: what the path's
// MTU leaves beside the headers, and at most MaxDatagram.
func (c *Conn) MaxPayload() int {
	return min(c.path.Load().mtu-headers(c.group.Addr()), MaxDatagram)
}

// headers is how many bytes precede the payload of a datagram of addr's family.
func headers(addr netip.Addr) int {
	const udp, ipv4, ipv6 = 8, 20, 40
	if addr.Is4() {
		return ipv4 + udp
	}
	return ipv6 + udp
}

// Refresh looks at the path again. Write does so by itself when a datagram turns
// out too large; that larger ones have come to fit is noticed only here. If there
// is no path, MaxPayload and Local stay what they were, and Write looks again before
// it sends.
func (c *Conn) Refresh() error {
	c.probeMu.Lock()
	defer c.probeMu.Unlock()
	var p path
	err := control(c.probe, func(fd int) (err error) {
		p, err = c.findPath(fd)
		return err
	})
	c.lost.Store(err != nil)
	if err != nil {
		return c.fail("find the path to", c.out.name, explain(err, c.out))
	}
	c.path.Store(&p)
	return nil
}

func (c *Conn) findPath(fd int) (path, error) {
	if c.out.index == 0 && c.group.Addr().Is4() {
		// Left alone, connect looks the route up again by the source address it
		// has found, which leads to the interface, past the route and its MTU.
		index, err := c.routes.device(c.group.Addr())
		if err == nil {
			err = unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_IF, &unix.IPMreqn{Ifindex: int32(index)})
		}
		if err != nil {
			return path{}, os.NewSyscallError("find the route", err)
		}
	}
	return findPath(fd, sockaddr(c.group, c.out), c.out.name)
}

// findPath connects a socket and asks it. A link-local source gets zone.
func findPath(fd int, to unix.Sockaddr, zone string) (path, error) {
	// A connected socket keeps its source address: it must forget it first.
	unspec := unix.RawSockaddr{Family: unix.AF_UNSPEC}
	if _, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd),
		uintptr(unsafe.Pointer(&unspec)), unsafe.Sizeof(unspec)); errno != 0 {
		return path{}, os.NewSyscallError("disconnect", errno)
	}
	if err := unix.Connect(fd, to); err != nil {
		return path{}, os.NewSyscallError("connect", err)
	}
	level, name := unix.IPPROTO_IPV6, unix.IPV6_MTU
	if _, is4 := to.(*unix.SockaddrInet4); is4 {
		level, name = unix.IPPROTO_IP, unix.IP_MTU
	}
	mtu, err := unix.GetsockoptInt(fd, level, name)
	if err != nil {
		return path{}, os.NewSyscallError("getsockopt", err)
	}
	local, err := unix.Getsockname(fd)
	if err != nil {
		return path{}, os.NewSyscallError("getsockname", err)
	}
	p := path{mtu: mtu}
	switch local := local.(type) {
	case *unix.SockaddrInet4:
		p.source = netip.AddrFrom4(local.Addr)
	case *unix.SockaddrInet6:
		p.source = netip.AddrFrom16(local.Addr)
		if p.source.IsLinkLocalUnicast() {
			p.source = p.source.WithZone(zone)
		}
	}
	if p.source.IsUnspecified() { // IPv4 would send from 0.0.0.0
		return path{}, unix.EADDRNOTAVAIL
	}
	return p, nil
}
