package mcast

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"joold/internal/nstest"
)

// TestWhatKeepsDatagramsFromLeavingPasses has each obstacle refuse a datagram,
// and be gone.
func TestWhatKeepsDatagramsFromLeavingPasses(t *testing.T) {
	byAddress := Config{Group: group4, In: "192.0.2.4", Out: "192.0.2.4", TTL: 1}
	chosen := Config{Group: group4, TTL: 1}
	const table = "nft 'table inet f { chain o { type filter hook output priority 0; udp dport 6400 %s; }; }'"
	drop, reject, permit := fmt.Sprintf(table, "drop"), fmt.Sprintf(table, "reject"), "nft delete table inet f"
	down, up := "ip link set eth2 down", "ip link set eth2 up"
	no4, with4 := "ip address flush dev eth2 scope global", "ip address add 192.0.2.4/24 dev eth2"
	no6, with6 := "ip -6 address flush dev eth2", "ip address add 2001:db8:ff08::4/96 dev eth2 nodad"
	off6, on6 := "echo 1 >/proc/sys/net/ipv6/conf/eth2/disable_ipv6", "echo 0 >/proc/sys/net/ipv6/conf/eth2/disable_ipv6"
	route := "ip route replace %s 239.0.0.0/8"
	back := fmt.Sprintf(route, "") + " dev eth2"
	full, room := "tc qdisc add dev eth2 root bfifo limit 1", "tc qdisc delete dev eth2 root"
	for _, c := range []struct {
		name      string
		cfg       Config
		make, end string // command lines
		is        error
	}{
		{"a firewall, IPv4", byEth24, drop, permit, unix.EPERM},
		{"a firewall, IPv6", byEth2, drop, permit, unix.EPERM},
		{"a firewall that rejects, IPv4", byEth24, reject, permit, unix.EPERM},
		{"a firewall that rejects, IPv6", byEth2, reject, permit, unix.EPERM},
		{"an interface that is down, IPv4", byEth24, down, up, ErrInterfaceDown},
		{"an interface that is down, IPv6", byEth2, down, up, ErrInterfaceDown},
		{"no address, IPv4", byEth24, no4, with4, ErrNoAddress},
		{"the address to send from gone", byAddress, no4, with4, ErrNoAddress},
		{"no address, IPv6", byEth2, no6, with6, ErrNoAddress},
		{"IPv6 turned off", byEth2, off6, on6, ErrNoAddress},
		{"no route", chosen, "ip route delete 239.0.0.0/8", back, ErrNoRoute},
		{"an unreachable route", chosen, fmt.Sprintf(route, "unreachable"), back, ErrNoRoute},
		{"a prohibiting route", chosen, fmt.Sprintf(route, "prohibit"), back, unix.EACCES},
		{"a black hole", chosen, fmt.Sprintf(route, "blackhole"), back, unix.EINVAL},
		{"a full queue, IPv4", byEth24, full, room, unix.ENOBUFS},
		{"a full queue, IPv6", byEth2, full, room, unix.ENOBUFS},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			j, k := pair(t)
			if c.cfg == chosen {
				j.IP("route add 239.0.0.0/8 dev eth2")
			}
			cj, ck := open(t, j, c.cfg), open(t, k, on(byEth2, c.cfg.Group))
			j.Command("sh", "-ec", c.make)
			if c.make == no4 { // or else it would leave from 0.0.0.0
				if change, err := look(t, j, cj); change != Away {
					t.Errorf("%v: %v, want Away", change, err)
				}
			}
			err := write(j, cj)
			var e *Error
			if !errors.As(err, &e) || !Temporary(err) {
				t.Errorf("%v: not a passing *Error", err)
			}
			if !errors.Is(err, c.is) {
				t.Errorf("%v, want %v", err, c.is)
			}
			j.Command("sh", "-ec", c.end)
			nstest.Wait(t, "a datagram to leave", func() bool {
				err := write(j, cj)
				if err != nil && !Temporary(err) {
					t.Fatalf("%v: not a passing error", err)
				}
				return err == nil
			})
			expect(t, ck, "x")
		})
	}
}

// write sends from within n, where an error's reason is looked for.
func write(n *nstest.NS, c *Conn) (err error) {
	n.Do(func() { err = c.Write([]byte("x")) })
	return err
}

func TestADeletedInterfaceIsAPassingError(t *testing.T) {
	j, _ := pair(t)
	conns := []*Conn{open(t, j, byEth24), open(t, j, byEth2), open(t, j, Config{Group: zoned6, TTL: 1}),
		open(t, j, Config{Group: group4, In: "192.0.2.4", Out: "192.0.2.4", TTL: 1})}
	j.IP("link delete eth2")
	for _, c := range conns {
		err := write(j, c)
		if !Temporary(err) || !errors.Is(err, ErrNoInterface) {
			t.Errorf("%v: want ErrNoInterface, passing", err)
		}
		if change, err := look(t, j, c); change != Reopen {
			t.Errorf("%v: %v, want Reopen", change, err)
		}
	}
}

func TestOnlyWhatMayPassIsTemporary(t *testing.T) {
	j, _ := pair(t)
	c := open(t, j, byEth2)
	tooBig := c.Write(make([]byte, 1453))
	c.Close()
	for _, err := range []error{nil, tooBig, c.Write(nil), net.ErrClosed, ErrNotMulticast,
		unix.EMSGSIZE, unix.EBADF, unix.EFAULT, unix.EAFNOSUPPORT, errors.New("other")} {
		if Temporary(err) {
			t.Errorf("%v passes", err)
		}
	}
	if !Temporary(c.fail("send to", "eth2", os.ErrDeadlineExceeded)) {
		t.Error("a full send buffer does not pass")
	}
}

// TestForgedICMPKeepsNothingFromLeavingOrArriving sends J's sockets errors about
// datagrams that claim to come from the group, which is what they are bound to.
func TestForgedICMPKeepsNothingFromLeavingOrArriving(t *testing.T) {
	j, k := pair(t)
	for _, cfg := range []Config{byEth24, byEth2} {
		t.Run(cfg.Group.String(), func(t *testing.T) {
			cj, ck := open(t, j, cfg), open(t, k, cfg)
			forge := forger(t, k, cfg.Group)
			forge()
			nstest.Wait(t, "the error to be pending", func() bool {
				errno := 0
				err := control(cj.write, func(fd int) (err error) {
					errno, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
					return err
				})
				return err == nil && errno != 0
			})
			for i := range 100 {
				forge()
				text := fmt.Sprint(i)
				send(t, cj, text)
				expect(t, ck, text)
				send(t, ck, text)
				expect(t, cj, text)
			}
		})
	}
}

// forger sends J the ICMP error that a port cannot be reached, about a datagram
// from the group's address and port.
func forger(t *testing.T, n *nstest.NS, group netip.AddrPort) (forge func()) {
	t.Helper()
	domain, proto, to := unix.AF_INET6, unix.IPPROTO_ICMPV6, netip.MustParseAddrPort("[2001:db8:ff08::4]:0")
	b := make([]byte, 8+40+8)
	b[0], b[1] = 1, 4 // ICMPv6: destination unreachable, port
	ip := b[8:]
	udp := ip[40:]
	if group.Addr().Is4() {
		domain, proto, to = unix.AF_INET, unix.IPPROTO_ICMP, netip.MustParseAddrPort("192.0.2.4:0")
		b = b[:8+20+8]
		b[0], b[1] = 3, 3 // ICMP: destination unreachable, port
		udp = ip[20:28]
		ip[0], ip[3], ip[8], ip[9] = 0x45, 28, 1, unix.IPPROTO_UDP
		copy(ip[12:], group.Addr().AsSlice())
		copy(ip[16:], to.Addr().AsSlice())
	} else {
		ip[0], ip[5], ip[6], ip[7] = 0x60, 8, unix.IPPROTO_UDP, 1
		copy(ip[8:], group.Addr().AsSlice())
		copy(ip[24:], to.Addr().AsSlice())
	}
	binary.BigEndian.PutUint16(udp, group.Port())
	binary.BigEndian.PutUint16(udp[2:], 9)
	binary.BigEndian.PutUint16(udp[4:], 8)
	if group.Addr().Is4() { // of ICMPv6 the kernel makes the sums
		binary.BigEndian.PutUint16(ip[10:], checksum(ip[:20]))
		binary.BigEndian.PutUint16(b[2:], checksum(b))
	}
	fd := -1
	n.Do(func() {
		t.Helper()
		var err error
		if fd, err = unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, proto); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() { unix.Close(fd) })
	return func() {
		t.Helper()
		var sa unix.Sockaddr = &unix.SockaddrInet6{Addr: to.Addr().As16()}
		if to.Addr().Is4() {
			sa = &unix.SockaddrInet4{Addr: to.Addr().As4()}
		}
		if err := unix.Sendto(fd, b, 0, sa); err != nil {
			t.Fatal(err)
		}
	}
}

// checksum is the internet's (RFC 1071).
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
