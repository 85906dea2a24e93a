package mcast

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"

	"golang.org/x/sys/unix"
)

// device is an interface that the operator named. The zero device leaves the
// choice to the kernel.
type device struct {
	index int
	name  string
	// source is the IPv4 address that named the interface, if one did.
	// Datagrams leave with it, as the C daemon's do.
	source netip.Addr
}

// iface is how net and x/net name the device: nil leaves the choice to the kernel.
func (d device) iface() *net.Interface {
	if d.index == 0 {
		return nil
	}
	return &net.Interface{Index: d.index, Name: d.name}
}

// findDevices settles in and out. The zone of the group stands for both where
// they are absent. Failing that, a link-local group, which is on one link, is
// sent to where it is heard.
func (c *Conn) findDevices(cfg Config) error {
	zone, err := findZone(c.group.Addr().Zone())
	if err != nil {
		return c.fail("join", c.group.Addr().Zone(), err)
	}
	for _, d := range []struct {
		op, given string
		dev       *device
	}{
		{"join", cfg.In, &c.in},
		{"send to", cfg.Out, &c.out},
	} {
		if d.given == "" {
			*d.dev = zone
			continue
		}
		if *d.dev, err = findDevice(d.given); err != nil {
			return c.fail(d.op, d.given, err)
		}
		if zone.index != 0 && zone.index != d.dev.index {
			return c.fail(d.op, d.given, fmt.Errorf("the group's zone is the interface %s: leave one of the two out", zone.name))
		}
	}
	if isLinkLocal(c.group.Addr()) {
		switch {
		case c.in.index == 0 && c.out.index == 0:
			return c.fail("join", "", fmt.Errorf("%w, or give the group a zone, as in %v%%eth2", ErrNoRoute, c.group.Addr()))
		case c.in.index == 0:
			c.in = c.out
		case c.out.index == 0:
			c.out = c.in
		}
	}
	return nil
}

// isLinkLocal tells whether the kernel asks for a scope id with addr.
func isLinkLocal(addr netip.Addr) bool {
	return addr.Is6() && (addr.IsLinkLocalMulticast() || addr.IsInterfaceLocalMulticast())
}

// findZone finds the interface that a zone names, by its name or its index.
func findZone(zone string) (device, error) {
	if index, err := strconv.Atoi(zone); err == nil {
		return deviceByIndex(index)
	}
	if zone == "" {
		return device{}, nil
	}
	return findDevice(zone)
}

// findDevice finds the interface that s names or is an address of.
func findDevice(s string) (device, error) {
	if index, ok := indexByName(s); ok {
		return deviceByIndex(index)
	}
	addr, err := netip.ParseAddr(s)
	if err != nil {
		return device{}, ErrNoInterface
	}
	ifaces, err := net.Interfaces()
	if err != nil {
		return device{}, fmt.Errorf("list the interfaces: %w", err)
	}
	var found *net.Interface
	for i := range ifaces {
		if !holds(&ifaces[i], addr) {
			continue
		}
		if found != nil {
			return device{}, fmt.Errorf("%s and %s both have this address: give the interface's name", found.Name, ifaces[i].Name)
		}
		found = &ifaces[i]
	}
	if found == nil {
		return device{}, ErrNoInterface
	}
	dev, err := newDevice(found)
	if addr.Is4() {
		dev.source = addr
	}
	return dev, err
}

// indexByName asks the kernel, as the C daemon does, since the interface may go
// by an alternative name too.
func indexByName(name string) (int, bool) {
	req, err := unix.NewIfreq(name)
	if err != nil {
		return 0, false // longer than a name can be
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, false
	}
	defer unix.Close(fd)
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, req); err != nil {
		return 0, false
	}
	return int(req.Uint32()), true
}

func deviceByIndex(index int) (device, error) {
	iface, err := net.InterfaceByIndex(index)
	if err != nil {
		return device{}, ErrNoInterface
	}
	return newDevice(iface)
}

func newDevice(iface *net.Interface) (device, error) {
	if iface.Flags&net.FlagUp == 0 {
		return device{}, ErrInterfaceDown
	}
	return device{index: iface.Index, name: iface.Name}, nil
}

// holds tells whether addr is one of the interface's addresses. The zone, if
// there is one, must name the interface too.
func holds(iface *net.Interface, addr netip.Addr) bool {
	if zone := addr.Zone(); zone != "" && zone != iface.Name && zone != strconv.Itoa(iface.Index) {
		return false
	}
	addrs, err := iface.Addrs()
	if err != nil {
		return false // it has just gone
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok {
			if ip, ok := netip.AddrFromSlice(n.IP); ok && ip.Unmap() == addr.Unmap().WithZone("") {
				return true
			}
		}
	}
	return false
}
