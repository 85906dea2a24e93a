package mcast

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// openSockets opens a socket to hear the group with, one to send to it, and what
// talks to one node alone. The C daemon has one for all; but a socket is bound to
// one device, one that asks for errors gets those that strangers forge, too, and
// one that is bound to the group hears nothing else.
func (c *Conn) openSockets(share bool) (err error) {
	if c.joined, err = c.whereToJoin(); err == nil && !c.shared {
		c.inlets, err = newInlets()
	}
	if err == nil {
		c.read, err = c.socket(c.joined, c.group.Port(), share)
	}
	if err == nil {
		_ = control(c.read, func(fd int) error {
			grow(fd, unix.SO_RCVBUFFORCE, unix.SO_RCVBUF, c.readBuffer)
			return nil
		})
		err = c.member(join)
	}
	if err == nil {
		c.rx, err = newReceiver(c.read, c.joined, false)
	}
	if err == nil {
		c.rx.link = c.link
		err = c.inlets.add(c.rx)
	}
	if err != nil {
		return c.fail("join", c.in.name, explain(err, c.in))
	}
	if !c.beside {
		if c.alone, err = c.openAlone(); err == nil {
			err = c.inlets.add(c.alone.rx)
		}
		if err != nil {
			return c.fail("be reached beside", c.in.name, explain(err, c.in))
		}
	}
	if c.write, err = c.secondSocket(share); err == nil {
		err = c.limitReach()
	}
	if err == nil {
		err = c.sendThrough(c.write)
	}
	if err == nil {
		c.tx, err = newSender(c.write, unix.IP_PMTUDISC_DO)
	}
	if err != nil {
		return c.fail("send to", c.out.name, explain(err, c.out))
	}
	c.to = endpointAt(c.group, c.out.index)
	c.readBuffer = granted(c.read, unix.SO_RCVBUF)
	c.writeBuffer = granted(c.write, unix.SO_SNDBUF)
	return nil
}

// secondSocket opens the socket to send with. It is joined to nothing and so hears
// nothing. What it sends comes from the port where this node is reached alone: most
// often that of the group. To be bound where the first one is, it must share the
// address with it; where others are to be kept off, only until then.
func (c *Conn) secondSocket(shared bool) (*net.UDPConn, error) {
	share := func(conn syscall.Conn, on int) error {
		return control(conn, func(fd int) error {
			return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, on)
		})
	}
	if err := share(c.read, 1); err != nil {
		return nil, err
	}
	file, err := c.socket(c.out, c.port(), true)
	if err != nil {
		return nil, err
	}
	conn, err := polled(file)
	if err != nil {
		return nil, err
	}
	if !shared {
		if err := errors.Join(share(c.read, 0), share(conn, 0)); err != nil {
			return conn, err
		}
	}
	// Only who asks for errors is told when the interface's queue was full. What
	// the kernel keeps of them lies in the receive buffer, unread, and is bounded by
	// that.
	o := option{"IPV6_RECVERR", unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1}
	if c.group.Addr().Is4() {
		o = option{"IP_RECVERR", unix.IPPROTO_IP, unix.IP_RECVERR, 1}
	}
	return conn, control(conn, func(fd int) error {
		grow(fd, unix.SO_SNDBUFFORCE, unix.SO_SNDBUF, c.writeBuffer)
		grow(fd, unix.SO_RCVBUF, unix.SO_RCVBUF, 0) // the least there is
		return o.set(fd)
	})
}

// option is a socket option that takes an integer.
type option struct {
	text               string
	level, name, value int
}

func (o option) set(fd int) error {
	if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
		return fmt.Errorf("set %s to %d: %w", o.text, o.value, err)
	}
	return nil
}

// socket opens a UDP socket that is bound to the group, a port and dev.
func (c *Conn) socket(dev device, port uint16, share bool) (*os.File, error) {
	return udpSocket(c.group.Addr(), func(fd int) error {
		return c.bind(fd, dev, port, share)
	})
}

// bind binds a socket to the group, a port and dev. The options are those that must
// be set first and that x/net lacks.
func (c *Conn) bind(fd int, dev device, port uint16, share bool) error {
	options := []option{
		{"IP_MULTICAST_ALL", unix.IPPROTO_IP, unix.IP_MULTICAST_ALL, 0},
		{"IP_MTU_DISCOVER", unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO},
		{"IP_RECVTTL", unix.IPPROTO_IP, unix.IP_RECVTTL, 1},
	}
	if c.group.Addr().Is6() {
		options = []option{
			{"IPV6_MULTICAST_ALL (Linux 4.20 and later)", unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_ALL, 0},
			{"IPV6_MTU_DISCOVER", unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO},
			{"IPV6_RECVHOPLIMIT", unix.IPPROTO_IPV6, unix.IPV6_RECVHOPLIMIT, 1},
		}
	}
	if share {
		options = append(options, option{"SO_REUSEADDR", unix.SOL_SOCKET, unix.SO_REUSEADDR, 1})
	}
	return bindTo(fd, options, netip.AddrPortFrom(c.group.Addr(), port), dev)
}

// bindTo sets options and binds a socket to an address and to dev.
func bindTo(fd int, options []option, at netip.AddrPort, dev device) error {
	for _, o := range options {
		if err := o.set(fd); err != nil {
			return err
		}
	}
	if dev.index != 0 {
		if err := unix.BindToDevice(fd, dev.name); err != nil {
			return fmt.Errorf("bind to the device (before Linux 5.7 it takes CAP_NET_RAW): %w", err)
		}
	}
	return os.NewSyscallError("bind", unix.Bind(fd, sockaddr(at, dev)))
}

// multicaster is what ipv4.PacketConn and ipv6.PacketConn have in common.
type multicaster interface {
	SetMulticastInterface(*net.Interface) error
	SetMulticastLoopback(on bool) error
}

func (c *Conn) multicaster(conn *net.UDPConn) (m multicaster, setTTL func(int) error) {
	if c.group.Addr().Is4() {
		p := ipv4.NewPacketConn(conn)
		return p, p.SetMulticastTTL
	}
	p := ipv6.NewPacketConn(conn)
	return p, p.SetMulticastHopLimit
}

// whereToJoin is the in device, or the one that the kernel chooses. That is asked
// for first: a socket does not tell where it has joined, and one of IPv6 that is
// bound to no device hears the group on each where anybody has.
func (c *Conn) whereToJoin() (device, error) {
	if c.in.index != 0 {
		return c.in, nil
	}
	index, err := c.routes.device(c.group.Addr())
	if err != nil {
		return device{}, err
	}
	name, err := nameByIndex(index)
	return device{index: index, name: name}, err
}

// What can be done about the membership, as IPv4 and IPv6 call it.
var (
	join  = [2]int{unix.IP_ADD_MEMBERSHIP, unix.IPV6_ADD_MEMBERSHIP}
	leave = [2]int{unix.IP_DROP_MEMBERSHIP, unix.IPV6_DROP_MEMBERSHIP}
)

// member makes the socket hear the group, or no longer.
func (c *Conn) member(what [2]int) error {
	err := control(c.read, func(fd int) error {
		if c.group.Addr().Is4() {
			return unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, what[0],
				&unix.IPMreqn{Multiaddr: c.group.Addr().As4(), Ifindex: int32(c.joined.index)})
		}
		return unix.SetsockoptIPv6Mreq(fd, unix.IPPROTO_IPV6, what[1],
			&unix.IPv6Mreq{Multiaddr: c.group.Addr().As16(), Interface: uint32(c.joined.index)})
	})
	if c.group.Addr().Is6() && err == unix.EINVAL {
		err = unix.EADDRNOTAVAIL // the device has no IPv6, its MTU being under 1280
	}
	return c.named("ADD_MEMBERSHIP", err)
}

// limitReach keeps what is sent off this host's own sockets and, beyond ttl hops,
// off others.
func (c *Conn) limitReach() error {
	m, setTTL := c.multicaster(c.write)
	if err := m.SetMulticastLoopback(false); err != nil {
		return fmt.Errorf("turn multicast loopback off: %w", err)
	}
	if err := setTTL(c.ttl); err != nil {
		return fmt.Errorf("set the TTL to %d: %w", c.ttl, err)
	}
	return nil
}

// sendThrough makes what conn sends leave through the out device.
func (c *Conn) sendThrough(conn *net.UDPConn) error {
	var err error
	switch {
	case c.out.index == 0:
		return nil
	case c.out.source.IsValid() && c.group.Addr().Is4():
		// x/net sets the device, but not the address to send from.
		err = control(conn, func(fd int) error {
			return unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_IF,
				&unix.IPMreqn{Ifindex: int32(c.out.index), Address: c.out.source.As4()})
		})
	default:
		m, _ := c.multicaster(conn)
		err = m.SetMulticastInterface(c.out.iface())
	}
	return c.named("MULTICAST_IF", err)
}

// named tells which option could not be set: for x/net, each is setsockopt.
func (c *Conn) named(option string, err error) error {
	var errno unix.Errno
	if !errors.As(err, &errno) {
		return err
	}
	family := "IP_"
	if c.group.Addr().Is6() {
		family = "IPV6_"
	}
	return os.NewSyscallError("set "+family+option, errno)
}

// grow asks for a buffer of size bytes, beyond the system's limit if allowed.
// A smaller one is no reason not to work: Local tells.
func grow(fd, force, plain, size int) {
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, force, size) != nil {
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, plain, size)
	}
}

// hear gives a socket a receive buffer of size bytes; with 0 it hears nothing.
func hear(fd, size int) error {
	if size == 0 {
		return deafen(fd)
	}
	grow(fd, unix.SO_RCVBUFFORCE, unix.SO_RCVBUF, size)
	return nil
}

// deafen has a socket keep nothing that is sent to it, which nobody would ever read:
// a filter that lets nothing pass. It is for one that is not bound yet, or not
// connected, so that nothing comes before. A shutdown would not do: the kernel wants
// the socket connected, and goes on filling its buffer.
func deafen(fd int) error {
	nothing := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K} // so many bytes of each datagram: 0
	err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &nothing})
	return os.NewSyscallError("set SO_ATTACH_FILTER", err)
}

// granted is the size of a buffer in the measure in which it is asked for: the
// kernel doubles that for its own overhead.
func granted(conn syscall.Conn, name int) (size int) {
	control(conn, func(fd int) (err error) {
		size, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, name)
		return err
	})
	return size / 2
}

func sockaddr(a netip.AddrPort, dev device) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16(), ZoneId: uint32(dev.index)}
}

// udpSocket opens a socket of addr's family and has bind bind it; a nil bind leaves
// it unbound. A net.ListenConfig would not do: given a group, it binds to the
// wildcard address, where unicast is heard too.
func udpSocket(addr netip.Addr, bind func(fd int) error) (*os.File, error) {
	domain := unix.AF_INET6
	if addr.Is4() {
		domain = unix.AF_INET
	}
	fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	f := os.NewFile(uintptr(fd), "UDP socket")
	if bind != nil {
		if err := bind(fd); err != nil {
			f.Close()
			return nil, err
		}
	}
	return f, nil
}

// polled hands a socket to the runtime's poller, and takes it over.
func polled(f *os.File) (*net.UDPConn, error) {
	defer f.Close()
	conn, err := net.FilePacketConn(f) // a duplicate of it
	if err != nil {
		return nil, err
	}
	return conn.(*net.UDPConn), nil
}

// control runs f on the socket's descriptor; it fails with net.ErrClosed after
// Close if the socket is polled.
func control(conn syscall.Conn, f func(fd int) error) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var ferr error
	if err := raw.Control(func(fd uintptr) { ferr = f(int(fd)) }); err != nil {
		return err
	}
	return ferr
}
