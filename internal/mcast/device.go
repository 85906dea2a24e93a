package mcast

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// device is an interface that the operator named. The zero device leaves the
// choice to the kernel.
type device struct {
	index int
	name  string
	given string // the name or address it was found by; "" if by its index
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
	if err == nil {
		err = zone.isUp()
	}
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
		if *d.dev, err = findDevice(d.given); err == nil {
			err = d.dev.isUp()
		}
		if err != nil {
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

// check tells whether a device still is what it was found to be. Where its name
// is nobody's now it was renamed, and is still the one; so it is where the address
// that named it has gone, since that may come back.
func (d device) check() (Change, error) {
	if d.index == 0 {
		return Unchanged, nil
	}
	if d.given != "" {
		if now, err := findDevice(d.given); err == nil && now.index != d.index {
			return Reopen, errReplaced
		}
	}
	switch err := d.isUp(); {
	case errors.Is(err, ErrNoInterface):
		return Reopen, err
	case err != nil:
		return Away, err
	}
	return Unchanged, nil
}

// isUp is ErrNoInterface, ErrInterfaceDown or nil. The zero device is up.
func (d device) isUp() error {
	if d.index == 0 {
		return nil
	}
	name, err := nameByIndex(d.index)
	if err != nil {
		return err
	}
	req, err := ask(unix.SIOCGIFFLAGS, name, 0)
	if err != nil {
		return err
	}
	if req.Uint16()&unix.IFF_UP == 0 {
		return ErrInterfaceDown
	}
	return nil
}

// hasCarrier tells whether a device can carry anything now: of the zero device
// nobody knows, and what is not there says no. It is no reason not to send.
func (d device) hasCarrier() bool {
	if d.index == 0 {
		return true
	}
	name, err := nameByIndex(d.index)
	if err != nil {
		return false
	}
	req, err := ask(unix.SIOCGIFFLAGS, name, 0)
	return err == nil && req.Uint16()&unix.IFF_RUNNING != 0
}

// findZone finds the interface that a zone names, by its name or its index.
func findZone(zone string) (device, error) {
	if index, err := strconv.Atoi(zone); err == nil {
		name, err := nameByIndex(index)
		return device{index: index, name: name}, err
	}
	if zone == "" {
		return device{}, nil
	}
	return findDevice(zone)
}

// findDevice finds the interface that s names or is an address of.
func findDevice(s string) (device, error) {
	if req, err := ask(unix.SIOCGIFINDEX, s, 0); err == nil {
		// s may be an alternative name.
		index := int(req.Uint32())
		name, err := nameByIndex(index)
		return device{index: index, name: name, given: s}, err
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
	d := device{index: found.Index, name: found.Name, given: s}
	if addr.Is4() {
		d.source = addr
	}
	return d, nil
}

func nameByIndex(index int) (string, error) {
	req, err := ask(unix.SIOCGIFNAME, "", index)
	if err != nil {
		return "", err
	}
	return req.Name(), nil
}

// ask asks the kernel about the interface of this name, or for SIOCGIFNAME of
// this index. It costs less than net.Interface, which reads them all, and
// understands alternative names, as the C daemon does.
func ask(request uint, name string, index int) (*unix.Ifreq, error) {
	req, err := unix.NewIfreq(name)
	if err != nil {
		return nil, ErrNoInterface // longer than a name can be
	}
	req.SetUint32(uint32(index))
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	if err := unix.IoctlIfreq(fd, request, req); err != nil {
		return nil, ErrNoInterface
	}
	return req, nil
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
