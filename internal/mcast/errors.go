package mcast

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// What an *Error may be, for errors.Is. Each says what to do.
var (
	ErrNotMulticast  = errors.New("not a multicast address: IPv4 groups are in 224.0.0.0/4, IPv6 groups in ff00::/8")
	ErrNoInterface   = errors.New("no interface has this name or address: `ip address` lists them")
	ErrInterfaceDown = errors.New("the interface is down: `ip link set NAME up` starts it")
	ErrNoAddress     = errors.New("the interface has no usable address of the group's family: " +
		"add one; one of IPv6 that is new becomes usable after a second or two")
	ErrNoRoute   = errors.New("no route leads to the group: name its interface (--net.dev.in, --net.dev.out)")
	ErrPortInUse = errors.New("the port is taken: `ss -ulnp` tells by whom")
	ErrTooBig    = errors.New("the datagram does not fit the path's MTU")
)

// Error is why something failed. It unwraps to one of the sentinels above, to a
// unix.Errno, to net.ErrClosed after Close, or to os.ErrDeadlineExceeded.
type Error struct {
	Op     string         // what was tried with the group: "join", "send to", "receive from"
	Group  netip.AddrPort // the group; not valid if it is about peers
	Node   netip.AddrPort // the one node that was sent to, or with no address the port that peers send to; else not valid
	Device string         // the interface as the operator named it; "" if the kernel chose
	Err    error
}

func (e *Error) Error() string {
	why := e.Err.Error()
	on := ""
	if e.Device != "" {
		on = " on " + e.Device
		if _, err := netip.ParseAddr(e.Device); err != nil { // it may be named by its address
			why = strings.Replace(why, "link set NAME", "link set "+e.Device, 1)
		}
	}
	switch {
	case e.Node.IsValid() && e.Node.Addr().IsUnspecified() && !e.Group.IsValid():
		return fmt.Sprintf("%s UDP port %d%s: %s", e.Op, e.Node.Port(), on, why)
	case e.Node.IsValid():
		return fmt.Sprintf("%s node %v%s: %s", e.Op, e.Node, on, why)
	}
	return fmt.Sprintf("%s multicast group %v%s: %s", e.Op, e.Group, on, why)
}

func (e *Error) Unwrap() error { return e.Err }

// Timeout tells whether a deadline has passed.
func (e *Error) Timeout() bool { return errors.Is(e.Err, os.ErrDeadlineExceeded) }

func (c *Conn) fail(op, device string, err error) error {
	return &Error{Op: op, Group: c.group, Device: device, Err: err}
}

// What Check found, where Open would have no such error.
var (
	errReplaced = errors.New("the interface is another one than was joined on")
	errRerouted = errors.New("the route to the group leads through another interface than was joined on")
	errNoMember = errors.New("the interface has forgotten the group")
	errTaken    = errors.New("at the address that datagrams come from now, the port is taken")
)

// Temporary tells whether a failed Write may succeed later without anything
// being done to the Conn, or after what Check says has been done to it. It is
// false of what Write must not be given, such as ErrTooBig, and after Close. Such
// an error comes at once: who tries again should wait in between.
func Temporary(err error) bool {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return true // the send buffer was full
	}
	var errno unix.Errno
	if !errors.As(err, &errno) {
		return false
	}
	switch errno {
	case unix.ENOBUFS, unix.ENOMEM, unix.EAGAIN, // the kernel's queues are full
		unix.EPERM, unix.EACCES, // a firewall or a prohibiting route
		unix.ENETDOWN, unix.ENETUNREACH, unix.EHOSTUNREACH, unix.ECONNREFUSED,
		unix.EADDRNOTAVAIL,      // no usable address
		unix.ENODEV, unix.ENXIO, // no interface
		unix.EINVAL: // the address to send from has gone, or a route is a black hole
		return true
	}
	return false
}

// explain turns what the kernel answers about dev into what an operator can
// act upon.
func explain(err error, dev device) error {
	var reason error
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EADDRINUSE):
		reason = ErrPortInUse
	case errors.Is(err, unix.EADDRNOTAVAIL):
		reason = ErrNoAddress
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENETDOWN),
		errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTUNREACH):
		// The device is gone, or down, or IPv6 is disabled on it.
		if dev.index == 0 {
			reason = ErrNoRoute
		} else if reason = dev.isUp(); reason == nil {
			reason = ErrNoAddress
		}
	case errors.Is(err, unix.EINVAL) && dev.source.IsValid():
		// The address to send from has gone; the device may have, too.
		if reason = dev.isUp(); reason == nil {
			reason = ErrNoAddress
		}
	default:
		return err
	}
	return fmt.Errorf("%w (%w)", reason, err)
}
