package mcast

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"joold/internal/nstest"
)

var (
	group4  = netip.MustParseAddrPort("239.64.64.64:6400")
	group6  = netip.MustParseAddrPort("[ff08::db8:64:64]:6400")
	link6   = netip.MustParseAddrPort("[ff02::db8:64:64]:6400")
	zoned6  = netip.MustParseAddrPort("[ff02::db8:64:64%eth2]:6400")
	byEth2  = Config{Group: group6, In: "eth2", Out: "eth2", TTL: 1}
	byEth24 = Config{Group: group4, In: "eth2", Out: "eth2", TTL: 1}
)

// pair makes the nodes J and K of the tutorial, joined by their eth2.
func pair(t testing.TB) (j, k *nstest.NS) {
	t.Helper()
	j, k = nstest.New(t), nstest.New(t)
	nstest.Veth(j, "eth2", k, "eth2")
	for i, n := range []*nstest.NS{j, k} {
		n.Address("eth2", fmt.Sprintf("192.0.2.%d/24", 4+i))
		n.Address("eth2", fmt.Sprintf("2001:db8:ff08::%d/96", 4+i))
	}
	return j, k
}

func open(t testing.TB, n *nstest.NS, cfg Config) *Conn {
	t.Helper()
	var c *Conn
	n.Do(func() {
		t.Helper()
		var err error
		if c, err = Open(cfg); err != nil {
			t.Fatalf("open %+v: %v", cfg, err)
		}
	})
	t.Cleanup(func() { c.Close() })
	return c
}

func openErr(t testing.TB, n *nstest.NS, cfg Config) (err error) {
	t.Helper()
	n.Do(func() {
		var c *Conn
		if c, err = Open(cfg); err == nil {
			c.Close()
		}
	})
	return err
}

// on is cfg with another group.
func on(cfg Config, group netip.AddrPort) Config {
	cfg.Group = group
	return cfg
}

type writer interface{ Write([]byte) error }

func send(t testing.TB, w writer, payloads ...string) {
	t.Helper()
	for _, p := range payloads {
		if err := w.Write([]byte(p)); err != nil {
			t.Fatalf("send %q: %v", p, err)
		}
	}
}

// limit keeps a test that hears nothing from waiting for ever.
const limit = 30 * time.Second

// next is the next datagram that c hears.
func next(t testing.TB, c *Conn) (string, netip.AddrPort) {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(limit)); err != nil {
		t.Fatal(err)
	}
	ds := NewDatagrams(1, MaxDatagram)
	if n, err := c.ReadBatch(ds); err != nil || n != 1 {
		t.Fatalf("read %d datagrams: %v", n, err)
	}
	return string(ds[0].Payload), ds[0].From
}

func expect(t testing.TB, c *Conn, payload string) {
	t.Helper()
	if got, from := next(t, c); got != payload {
		t.Fatalf("heard %q from %v, want %q", got, from, payload)
	}
}

func TestNodesHearEachOther(t *testing.T) {
	j, k := pair(t)
	for _, c := range []struct {
		name string
		j, k Config
		from string // J as K sees it; "fe80" for its link-local address on eth2
	}{
		{"IPv4 by name", byEth24, byEth24, "192.0.2.4:6400"},
		{"IPv4 by address",
			Config{Group: group4, In: "192.0.2.4", Out: "192.0.2.4", TTL: 1},
			Config{Group: group4, In: "192.0.2.5", Out: "192.0.2.5", TTL: 1}, "192.0.2.4:6400"},
		{"IPv4 by address and name",
			Config{Group: group4, In: "192.0.2.4", Out: "eth2", TTL: 1},
			Config{Group: group4, In: "eth2", Out: "192.0.2.5", TTL: 1}, "192.0.2.4:6400"},
		{"IPv4 by an IPv6 address",
			Config{Group: group4, In: "2001:db8:ff08::4", Out: "2001:db8:ff08::4", TTL: 1},
			byEth24, "192.0.2.4:6400"},
		{"IPv4 in IPv6's clothes",
			on(byEth24, netip.MustParseAddrPort("[::ffff:239.64.64.64]:6400")),
			byEth24, "192.0.2.4:6400"},
		{"IPv6 by name", byEth2, byEth2, "[2001:db8:ff08::4]:6400"},
		{"IPv6 by IPv4 and IPv6 address",
			Config{Group: group6, In: "192.0.2.4", Out: "192.0.2.4", TTL: 1},
			Config{Group: group6, In: "2001:db8:ff08::5", Out: "2001:db8:ff08::5", TTL: 1}, "[2001:db8:ff08::4]:6400"},
		{"IPv6 with a zone", Config{Group: zoned6, TTL: 1}, Config{Group: zoned6, TTL: 1}, "fe80"},
		{"IPv6 with a numbered zone", Config{Group: withZone(t, j, link6, "eth2"), TTL: 1}, Config{Group: zoned6, TTL: 1}, "fe80"},
		{"IPv6 link-local by the in interface alone",
			Config{Group: link6, In: "eth2", TTL: 1}, Config{Group: link6, Out: "eth2", TTL: 1}, "fe80"},
		{"IPv6 with a zone that agrees", on(byEth2, zoned6), on(byEth2, link6), "fe80"},
		{"IPv4 where the kernel chooses to send through", Config{Group: group4, In: "eth2", TTL: 1}, byEth24, "192.0.2.4:6400"},
		{"IPv4 where the kernel chooses all", Config{Group: group4, TTL: 1}, byEth24, "192.0.2.4:6400"},
		{"IPv6 where the kernel chooses all", Config{Group: group6, TTL: 1}, Config{Group: group6, TTL: 1}, "[2001:db8:ff08::4]:6400"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.j.Out == "" && c.j.Group.Addr().Is4() {
				j.IP("route replace 239.0.0.0/8 dev eth2")
			}
			cj, ck := open(t, j, c.j), open(t, k, c.k)
			send(t, cj, "from J")
			payload, from := next(t, ck)
			if payload != "from J" {
				t.Fatalf("K heard %q", payload)
			}
			if c.from == "fe80" {
				if !from.Addr().IsLinkLocalUnicast() || from.Addr().Zone() != "eth2" || from.Port() != 6400 {
					t.Errorf("K heard it from %v, want a link-local address on eth2, port 6400", from)
				}
			} else if from.String() != c.from {
				t.Errorf("K heard it from %v, want %s", from, c.from)
			}
			if source := cj.Local().Source; source != from.Addr() {
				t.Errorf("J takes its address for %v, K heard %v", source, from)
			}
			send(t, ck, "from K")
			expect(t, cj, "from K")
		})
	}
}

// withZone gives group the index of n's interface as zone.
func withZone(t *testing.T, n *nstest.NS, group netip.AddrPort, iface string) (zoned netip.AddrPort) {
	n.Do(func() {
		i, err := net.InterfaceByName(iface)
		if err != nil {
			t.Fatal(err)
		}
		zoned = netip.AddrPortFrom(group.Addr().WithZone(fmt.Sprint(i.Index)), group.Port())
	})
	return zoned
}

func TestAnotherGroupOnTheSamePortIsNotHeard(t *testing.T) {
	j, k := pair(t)
	for _, c := range []struct {
		cfg   Config
		other netip.AddrPort
	}{
		{byEth24, netip.MustParseAddrPort("239.64.64.65:6400")},
		{byEth2, netip.MustParseAddrPort("[ff08::db8:64:65]:6400")},
	} {
		t.Run(c.cfg.Group.String(), func(t *testing.T) {
			ours, other := open(t, k, c.cfg), open(t, k, on(c.cfg, c.other))
			send(t, open(t, j, on(c.cfg, c.other)), "to the other")
			send(t, open(t, j, c.cfg), "to ours")
			expect(t, other, "to the other")
			expect(t, ours, "to ours")
		})
	}
}

func TestTheSameGroupOnAnotherInterfaceIsNotHeard(t *testing.T) {
	j, k := pair(t)
	nstest.Veth(j, "eth3", k, "eth3")
	j.Address("eth3", "198.51.100.4/24")
	k.Address("eth3", "198.51.100.5/24")
	for _, group := range []netip.AddrPort{group4, group6, link6} {
		t.Run(group.String(), func(t *testing.T) {
			eth2 := Config{Group: group, In: "eth2", Out: "eth2", TTL: 1}
			eth3 := Config{Group: group, In: "eth3", Out: "eth3", TTL: 1}
			cross := Config{Group: group, In: "eth2", Out: "eth3", TTL: 1}
			k2, k3, kx := open(t, k, eth2), open(t, k, eth3), open(t, k, cross)
			send(t, open(t, j, eth3), "through eth3")
			expect(t, k3, "through eth3")
			j2 := open(t, j, eth2)
			send(t, j2, "through eth2")
			expect(t, k2, "through eth2")
			expect(t, kx, "through eth2")
			if n, err := waiting(kx.write); !errors.Is(err, unix.EAGAIN) {
				t.Errorf("the socket to send with has heard %d bytes: %v", n, err)
			}
		})
	}
}

// TestNothingButTheGroupAndWhatIsForThisNodeIsHeard is why no datagram's destination or
// interface is asked for: the kernel has looked at both.
func TestNothingButTheGroupAndWhatIsForThisNodeIsHeard(t *testing.T) {
	j, k := pair(t)
	nstest.Veth(j, "eth3", k, "eth3")
	j.Address("eth3", "198.51.100.4/24")
	k.Address("eth3", "198.51.100.5/24")
	k.IP("route add 239.0.0.0/8 dev eth2")
	for _, c := range []struct {
		cfg    Config // of K
		strays []string
	}{
		{byEth24, []string{"192.0.2.255", "255.255.255.255", "224.0.0.1", "239.64.64.65"}},
		{Config{Group: group4, TTL: 1}, []string{"192.0.2.255", "255.255.255.255", "224.0.0.1", "239.64.64.65"}},
		{byEth2, []string{"ff02::1", "ff08::db8:64:65"}},
		{Config{Group: group6, TTL: 1}, []string{"ff02::1", "ff08::db8:64:65"}},
	} {
		t.Run(fmt.Sprintf("%v in %q", c.cfg.Group, c.cfg.In), func(t *testing.T) {
			ck := open(t, k, c.cfg)
			open(t, k, Config{Group: c.cfg.Group, In: "eth3", Out: "eth3", TTL: 1}) // for whom eth3 takes it in
			for _, to := range c.strays {
				stray(t, j, "eth2", netip.AddrPortFrom(netip.MustParseAddr(to), 6400))
			}
			stray(t, j, "eth3", c.cfg.Group) // another link
			stray(t, k, "eth3", c.cfg.Group) // and this host's own on it
			if c.cfg.Group.Addr().Is4() {    // lo takes none of IPv6
				stray(t, k, "lo", c.cfg.Group)
			}
			send(t, open(t, j, on(byEth2, c.cfg.Group)), "to the group")
			expect(t, ck, "to the group")
			for what, s := range map[string]syscall.Conn{"by the group": ck.read, "alone": ck.alone.hear} {
				if n, err := waiting(s); !errors.Is(err, unix.EAGAIN) {
					t.Errorf("heard %d bytes more %s: %v", n, what, err)
				}
			}
		})
	}
}

// stray sends a datagram from n through iface, heard by n's own sockets too.
func stray(t *testing.T, n *nstest.NS, iface string, to netip.AddrPort) {
	t.Helper()
	n.Do(func() {
		t.Helper()
		i, err := net.InterfaceByName(iface)
		if err != nil {
			t.Fatal(err)
		}
		conn, err := udpSocket(to.Addr(), func(fd int) error {
			if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BROADCAST, 1); err != nil {
				return err
			}
			return unix.BindToDevice(fd, iface)
		})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if err := control(conn, func(fd int) error {
			return unix.Sendto(fd, []byte("stray"), 0, sockaddr(to, device{index: i.Index}))
		}); err != nil {
			t.Fatalf("through %s to %v: %v", iface, to, err)
		}
	})
}

// waiting reads without waiting.
func waiting(conn syscall.Conn) (n int, err error) {
	err = control(conn, func(fd int) (err error) {
		n, _, err = unix.Recvfrom(fd, make([]byte, MaxDatagram), unix.MSG_DONTWAIT)
		return err
	})
	return n, err
}

func TestOneInterfaceToListenOnAndAnotherToSendThrough(t *testing.T) {
	j, k := pair(t)
	nstest.Veth(j, "eth3", k, "eth3")
	j.Address("eth3", "198.51.100.4/24")
	k.Address("eth3", "198.51.100.5/24")
	for _, group := range []netip.AddrPort{group4, group6, link6} {
		for _, noReuse := range []bool{false, true} {
			t.Run(fmt.Sprintf("%v/NoReuse=%v", group, noReuse), func(t *testing.T) {
				cj := open(t, j, Config{Group: group, In: "eth2", Out: "eth3", TTL: 1, NoReuse: noReuse})
				ck := open(t, k, Config{Group: group, In: "eth3", Out: "eth2", TTL: 1, NoReuse: noReuse})
				send(t, cj, "by eth3")
				if got, from := next(t, ck); got != "by eth3" || from.Port() != 6400 {
					t.Errorf("K heard %q from %v", got, from)
				}
				send(t, ck, "by eth2")
				expect(t, cj, "by eth2")
				if l := cj.Local(); l.In != "eth2" || l.Out != "eth3" || l.Group != group {
					t.Errorf("described as %+v", l)
				}
				if noReuse {
					if err := openErr(t, j, Config{Group: group, In: "eth2", Out: "eth2", TTL: 1}); !errors.Is(err, ErrPortInUse) {
						t.Errorf("the port was shared in the end: %v", err)
					}
				}
			})
		}
	}
}

func TestOwnDatagramsAreNotHeard(t *testing.T) {
	j, k := pair(t)
	for _, cfg := range []Config{byEth24, byEth2} {
		t.Run(cfg.Group.String(), func(t *testing.T) {
			cj, neighbour, ck := open(t, j, cfg), open(t, j, cfg), open(t, k, cfg)
			send(t, cj, "from J")
			expect(t, ck, "from J")
			send(t, ck, "from K")
			expect(t, cj, "from K")
			expect(t, neighbour, "from K")
		})
	}
}

func TestTheMTUBoundsThePayload(t *testing.T) {
	j, _ := pair(t)
	for _, c := range []struct {
		cfg       Config
		mtu, want int
	}{
		{byEth24, 1280, 1252},
		{byEth24, 1500, 1472},
		{byEth24, 2076, 2048},
		{byEth24, 2075, 2047},
		{byEth24, 9000, 2048},
		{byEth2, 1280, 1232},
		{byEth2, 1500, 1452},
		{byEth2, 9000, 2048},
	} {
		t.Run(fmt.Sprintf("%v/%d", c.cfg.Group, c.mtu), func(t *testing.T) {
			j.IP(fmt.Sprintf("link set eth2 mtu %d", c.mtu))
			cj := open(t, j, c.cfg)
			if got := cj.MaxPayload(); got != c.want {
				t.Errorf("payload of %d bytes, want %d", got, c.want)
			}
			if got := cj.Local().MTU; got != c.mtu {
				t.Errorf("MTU %d, want %d", got, c.mtu)
			}
		})
	}
}

func TestTheRoutesMTUBoundsThePayload(t *testing.T) {
	j, _ := pair(t)
	j.IP("route add 239.0.0.0/8 dev eth2 mtu 1400")
	for _, cfg := range []Config{byEth24, {Group: group4, TTL: 1}} {
		c := open(t, j, cfg)
		if got := c.MaxPayload(); got != 1372 {
			t.Errorf("payload of %d bytes, want 1372", got)
		}
		send(t, c, strings.Repeat("x", c.MaxPayload()))
		if err := c.Write(make([]byte, 1373)); !errors.Is(err, ErrTooBig) {
			t.Errorf("1373 bytes: %v", err)
		}
	}
}

func TestThePathIsThatOfTheInterfaceWhoseAddressIsGiven(t *testing.T) {
	j, k := pair(t)
	nstest.Veth(j, "eth3", k, "eth3")
	j.Address("eth3", "198.51.100.4/24")
	j.IP("link set eth3 mtu 1400")
	for _, group := range []netip.AddrPort{group4, group6, link6} {
		for out, mtu := range map[string]int{"192.0.2.4": 1500, "198.51.100.4": 1400} {
			if got := open(t, j, Config{Group: group, In: out, Out: out, TTL: 1}).Local().MTU; got != mtu {
				t.Errorf("%v by %s: MTU %d, want %d", group, out, got, mtu)
			}
		}
	}
}

func TestWhatDoesNotFitIsRefusedAndThePathLookedAtAgain(t *testing.T) {
	j, k := pair(t)
	for _, c := range []struct {
		cfg           Config
		before, after int
	}{
		{byEth24, 1472, 1252},
		{byEth2, 1452, 1232},
	} {
		t.Run(c.cfg.Group.String(), func(t *testing.T) {
			j.IP("link set eth2 mtu 1500")
			cj, wire := open(t, j, c.cfg), sniff(t, k, c.cfg.Group)
			big := bytes.Repeat([]byte{1}, c.before)
			send(t, cj, string(big))
			j.IP("link set eth2 mtu 1280")
			small := big[:c.after]
			send(t, cj, string(small))
			err := cj.Write(big)
			if !errors.Is(err, ErrTooBig) || !errors.As(err, new(*Error)) {
				t.Fatalf("got %v, want ErrTooBig", err)
			}
			if got := cj.MaxPayload(); got != c.after {
				t.Errorf("payload of %d bytes afterwards, want %d", got, c.after)
			}
			send(t, cj, "the end")
			for _, want := range [][]byte{big, small, []byte("the end")} {
				if p := wire.next(t); !bytes.Equal(p.payload(), want) {
					t.Fatalf("on the wire: % x ..., want one packet with %d bytes of payload", p[:40], len(want))
				}
			}
			j.IP("link set eth2 mtu 9000")
			if err := cj.Refresh(); err != nil || cj.MaxPayload() != MaxDatagram {
				t.Errorf("payload of %d bytes after a refresh: %v", cj.MaxPayload(), err)
			}
		})
	}
}

func TestRefreshNoticesANewAddress(t *testing.T) {
	j, _ := pair(t)
	c := open(t, j, byEth24)
	j.IP("address flush dev eth2 scope global")
	j.Address("eth2", "192.0.2.77/24")
	if err := c.Refresh(); err != nil {
		t.Fatal(err)
	}
	if got := c.Local().Source.String(); got != "192.0.2.77" {
		t.Errorf("source %s, want 192.0.2.77", got)
	}
}

// cDaemon is a socket set up as the C daemon sets up its own, call by call.
type cDaemon struct {
	*net.UDPConn
	group *net.UDPAddr
}

func (d *cDaemon) Write(b []byte) error {
	_, err := d.WriteTo(b, d.group)
	return err
}

func openC(t testing.TB, n *nstest.NS, group netip.AddrPort, iface, addr string, ttl int) *cDaemon {
	t.Helper()
	d := &cDaemon{group: net.UDPAddrFromAddrPort(group)}
	n.Do(func() {
		i, err := net.InterfaceByName(iface)
		if err != nil {
			t.Fatal(err)
		}
		domain := unix.AF_INET
		if group.Addr().Is6() {
			domain = unix.AF_INET6
		}
		fd, err := unix.Socket(domain, unix.SOCK_DGRAM, 0)
		check := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		check(err)
		f := os.NewFile(uintptr(fd), "C daemon")
		defer f.Close()
		check(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
		check(unix.Bind(fd, sockaddr(group, device{index: i.Index})))
		if group.Addr().Is4() {
			local := netip.MustParseAddr(addr).As4()
			check(unix.SetsockoptIPMreq(fd, unix.IPPROTO_IP, unix.IP_ADD_MEMBERSHIP,
				&unix.IPMreq{Multiaddr: group.Addr().As4(), Interface: local}))
			check(unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_LOOP, 0))
			check(unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_TTL, ttl))
			check(unix.SetsockoptInet4Addr(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_IF, local))
		} else {
			check(unix.SetsockoptIPv6Mreq(fd, unix.IPPROTO_IPV6, unix.IPV6_ADD_MEMBERSHIP,
				&unix.IPv6Mreq{Multiaddr: group.Addr().As16(), Interface: uint32(i.Index)}))
			check(unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_LOOP, 0))
			check(unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, ttl))
			check(unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_IF, i.Index))
		}
		conn, err := net.FilePacketConn(f)
		check(err)
		d.UDPConn = conn.(*net.UDPConn)
	})
	t.Cleanup(func() { d.Close() })
	return d
}

// packet is an IP packet.
type packet []byte

func (p packet) payload() []byte {
	switch {
	case len(p) >= 28 && p[0]>>4 == 4 && p[9] == unix.IPPROTO_UDP && binary.BigEndian.Uint16(p[6:])&0x3fff == 0:
		return p[28:]
	case len(p) >= 48 && p[0]>>4 == 6 && p[6] == unix.IPPROTO_UDP:
		return p[48:]
	}
	return nil // a fragment, for one
}

type sniffer struct {
	*os.File
	group netip.Addr
}

// sniff taps n's eth2 for packets to group.
func sniff(t testing.TB, n *nstest.NS, group netip.AddrPort) *sniffer {
	t.Helper()
	s := &sniffer{group: group.Addr().WithZone("")}
	n.Do(func() {
		i, err := net.InterfaceByName("eth2")
		if err != nil {
			t.Fatal(err)
		}
		all := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_ALL))
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		s.File = os.NewFile(uintptr(fd), "sniffer")
		if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: i.Index}); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() { s.Close() })
	return s
}

func (s *sniffer) next(t testing.TB) packet {
	t.Helper()
	if err := s.SetReadDeadline(time.Now().Add(limit)); err != nil {
		t.Fatal(err)
	}
	for {
		buf := make([]byte, 65536)
		n, err := s.Read(buf)
		if err != nil {
			t.Fatalf("nothing on the wire: %v", err)
		}
		p := packet(buf[:n])
		to := p[16:20]
		if p[0]>>4 == 6 {
			to = p[24:40]
		}
		if addr, _ := netip.AddrFromSlice(to); addr != s.group || p.protocol() == unix.IPPROTO_IGMP || p.protocol() == unix.IPPROTO_ICMPV6 {
			continue
		}
		return p
	}
}

func (p packet) protocol() byte {
	if p[0]>>4 == 6 {
		if p[6] == unix.IPPROTO_HOPOPTS { // MLD
			return p[40]
		}
		return p[6]
	}
	return p[9]
}

func TestOurDatagramsAreThoseOfTheCDaemon(t *testing.T) {
	j, k := pair(t)
	payload := strings.Repeat("session ", 181)
	for _, group := range []netip.AddrPort{group4, group6, zoned6} {
		for _, ttl := range []int{1, 7, 255} {
			t.Run(fmt.Sprintf("%v/TTL %d", group, ttl), func(t *testing.T) {
				wire := sniff(t, k, group)
				c := openC(t, j, group, "eth2", "192.0.2.4", ttl)
				send(t, c, payload)
				want := wire.next(t)
				ours := open(t, j, Config{Group: group, In: "eth2", Out: "eth2", TTL: ttl})
				send(t, ours, payload)
				got := wire.next(t)
				if got.protocol() != unix.IPPROTO_UDP {
					t.Fatalf("protocol %d", got.protocol())
				}
				// IPv4's identification counts up, and the header's sum with it.
				for _, p := range []packet{got, want} {
					if p[0]>>4 == 4 {
						clear(p[4:6])
						clear(p[10:12])
					}
				}
				if !bytes.Equal(got, want) {
					t.Errorf("headers\nours % x\nC's  % x", got[:48], want[:48])
				}
				hops := got[7]
				if group.Addr().Is4() {
					hops = got[8]
				}
				if int(hops) != ttl {
					t.Errorf("%d hops on the wire, want %d", hops, ttl)
				}
			})
		}
	}
}

func TestTheIPv4AddressGivenIsTheSource(t *testing.T) {
	j, k := pair(t)
	j.Address("eth2", "192.0.2.44/24") // secondary: not the kernel's own choice
	cfg := Config{Group: group4, In: "192.0.2.44", Out: "192.0.2.44", TTL: 1}
	ck := open(t, k, byEth24)
	for name, w := range map[string]writer{
		"ours": open(t, j, cfg),
		"C":    openC(t, j, group4, "eth2", "192.0.2.44", 1),
	} {
		send(t, w, name)
		if _, from := next(t, ck); from.String() != "192.0.2.44:6400" {
			t.Errorf("%s: heard from %v, want 192.0.2.44:6400", name, from)
		}
	}
}

func TestACDaemonHearsUsAndIsHeard(t *testing.T) {
	j, k := pair(t)
	for _, group := range []netip.AddrPort{group4, group6, zoned6} {
		t.Run(group.String(), func(t *testing.T) {
			ours := open(t, j, Config{Group: group, In: "eth2", Out: "eth2", TTL: 1})
			c := openC(t, k, group, "eth2", "192.0.2.5", 1)
			send(t, c, "from C")
			expect(t, ours, "from C")
			send(t, ours, "from us")
			buf := make([]byte, MaxDatagram)
			if err := c.SetReadDeadline(time.Now().Add(limit)); err != nil {
				t.Fatal(err)
			}
			n, from, err := c.ReadFromUDPAddrPort(buf)
			if err != nil || string(buf[:n]) != "from us" || from.Port() != 6400 {
				t.Errorf("the C daemon heard %q from %v: %v", buf[:n], from, err)
			}
		})
	}
}

func TestTheCDaemonsSocketMayShareTheHost(t *testing.T) {
	j, k := pair(t)
	c := openC(t, j, group6, "eth2", "", 1)
	ours := open(t, j, byEth2)
	send(t, open(t, k, byEth2), "for both")
	expect(t, ours, "for both")
	buf := make([]byte, MaxDatagram)
	if err := c.SetReadDeadline(time.Now().Add(limit)); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Read(buf); err != nil || string(buf[:n]) != "for both" {
		t.Errorf("the C daemon heard %q: %v", buf[:n], err)
	}
}

func TestABatchKeepsDatagramsApart(t *testing.T) {
	j, k := pair(t)
	for _, cfg := range []Config{byEth24, byEth2} {
		t.Run(cfg.Group.String(), func(t *testing.T) {
			const n = 3*maxBatch + 5
			cj, ck := open(t, j, cfg), open(t, k, cfg)
			var bs [][]byte
			for i := range n {
				bs = append(bs, bytes.Repeat([]byte{byte(i)}, 1+i)) // each of another length
			}
			for _, b := range bs {
				send(t, cj, string(b))
			}
			if err := ck.SetReadDeadline(time.Now().Add(limit)); err != nil {
				t.Fatal(err)
			}
			ds := NewDatagrams(100, 100)
			for got := 0; got < n; {
				read, err := ck.ReadBatch(ds)
				if err != nil {
					t.Fatalf("after %d: %v", got, err)
				}
				if read > maxBatch {
					t.Fatalf("%d datagrams in one batch", read)
				}
				for _, d := range ds[:read] {
					want := bs[got][:min(len(bs[got]), 100)]
					if !bytes.Equal(d.Payload, want) || d.Truncated != (len(bs[got]) > 100) {
						t.Fatalf("datagram %d: % x, truncated %v", got, d.Payload, d.Truncated)
					}
					if d.From.Addr() != cj.Local().Source || d.From.Port() != 6400 {
						t.Fatalf("datagram %d from %v", got, d.From)
					}
					got++
				}
			}
		})
	}
}

func TestTheHopLimitIsThatOfArrival(t *testing.T) {
	j, k := pair(t)
	for _, cfg := range []Config{byEth24, byEth2} {
		ck := open(t, k, cfg)
		for _, ttl := range []int{1, 7, 255} {
			cfg.TTL = ttl
			cj := open(t, j, cfg)
			send(t, cj, "one", "two")
			ds := NewDatagrams(2, MaxReceived)
			for got := 0; got < 2; {
				if err := ck.SetReadDeadline(time.Now().Add(limit)); err != nil {
					t.Fatal(err)
				}
				n, err := ck.ReadBatch(ds)
				if err != nil {
					t.Fatal(err)
				}
				for _, d := range ds[:n] {
					if d.HopLimit != ttl {
						t.Errorf("%v: sent with %d hops to go, heard with %d", cfg.Group, ttl, d.HopLimit)
					}
				}
				got += n
			}
			cj.Close()
		}
	}
}

func TestWhatIsLongerThanAnyNodeSendsIsToldFromTheRest(t *testing.T) {
	j, k := pair(t)
	for _, n := range []*nstest.NS{j, k} {
		n.IP("link set eth2 mtu 20000")
	}
	for _, cfg := range []Config{byEth24, byEth2} {
		cj, ck := open(t, j, cfg), open(t, k, cfg)
		ds := NewDatagrams(1, MaxReceived)
		for _, c := range []struct {
			size int
			long bool
		}{{MaxReceived, false}, {MaxReceived + 1, true}, {19000, true}, {10, false}} {
			send(t, cj, strings.Repeat("x", c.size))
			if err := ck.SetReadDeadline(time.Now().Add(limit)); err != nil {
				t.Fatal(err)
			}
			if _, err := ck.ReadBatch(ds); err != nil {
				t.Fatal(err)
			}
			if d := ds[0]; d.Truncated != c.long || len(d.Payload) != min(c.size, MaxReceived) {
				t.Errorf("%v: of %d bytes %d were read, truncated %v", cfg.Group, c.size, len(d.Payload), d.Truncated)
			}
		}
	}
}

func TestEmptyBatchesAndDatagramsDoNoHarm(t *testing.T) {
	j, k := pair(t)
	cj, ck := open(t, j, byEth2), open(t, k, byEth2)
	if n, err := ck.ReadBatch(nil); n != 0 || err != nil {
		t.Errorf("read into nothing: %d, %v", n, err)
	}
	send(t, cj, "", "not empty")
	expect(t, ck, "")
	expect(t, ck, "not empty")
}

func TestDropsAreCounted(t *testing.T) {
	j, k := pair(t)
	for _, group := range []netip.AddrPort{group4, group6} {
		t.Run(group.String(), func(t *testing.T) {
			cj := open(t, j, Config{Group: group, In: "eth2", Out: "eth2", TTL: 1})
			ck := open(t, k, Config{Group: group, In: "eth2", Out: "eth2", TTL: 1, ReadBuffer: 16384})
			if n := ck.Drops(); n != 0 {
				t.Fatalf("%d drops before the first datagram", n)
			}
			const sent = 1000
			payload := strings.Repeat("x", 1000)
			for range sent {
				send(t, cj, payload)
			}
			// The buffer is full: what follows is heard once there is room again.
			received := uint64(0)
			ds := NewDatagrams(64, 1000)
			nstest.Wait(t, "every datagram to be received or counted", func() bool {
				if err := ck.SetReadDeadline(time.Now().Add(10 * time.Millisecond)); err != nil {
					t.Fatal(err)
				}
				n, err := ck.ReadBatch(ds)
				if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Fatal(err)
				}
				received += uint64(n)
				return received+ck.Drops() == sent
			})
			if got := rxqOverflow(t, cj, ck); uint64(got) != ck.Drops() {
				t.Errorf("SO_RXQ_OVFL says %d, want %d", got, ck.Drops())
			}
			if received == 0 || received == sent {
				t.Errorf("%d of %d received: nothing was dropped, or all", received, sent)
			}

			before := ck.Drops()
			for range sent {
				send(t, cj, payload)
			}
			nstest.Wait(t, "more drops", func() bool { n, err := socketDrops(ck.rx.conn); return err == nil && uint64(n) > before })
			ck.Close()
			if ck.Drops() == before {
				t.Error("what was dropped since the last look is forgotten with the socket")
			}
		})
	}
}

// rxqOverflow is the count of drops that comes with a datagram.
func rxqOverflow(t *testing.T, from, to *Conn) (drops uint32) {
	t.Helper()
	if err := control(to.read, func(fd int) error {
		return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RXQ_OVFL, 1)
	}); err != nil {
		t.Fatal(err)
	}
	conn := viaNet(t, to)
	send(t, from, "one more")
	oob := make([]byte, 128)
	_, n, _, _, err := conn.ReadMsgUDPAddrPort(make([]byte, 16), oob)
	if err != nil {
		t.Fatal(err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range messages {
		if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SO_RXQ_OVFL {
			return binary.NativeEndian.Uint32(m.Data)
		}
	}
	t.Fatal("no SO_RXQ_OVFL with the datagram")
	return 0
}

func TestBuffersAreGrantedBeyondTheSystemsLimit(t *testing.T) {
	j, _ := pair(t)
	const want = 16 << 20 // above any distribution's net.core.rmem_max
	l := open(t, j, Config{Group: group6, In: "eth2", Out: "eth2", TTL: 1, ReadBuffer: want, WriteBuffer: want}).Local()
	if l.ReadBuffer != want || l.WriteBuffer != want {
		t.Errorf("granted %d and %d, want %d", l.ReadBuffer, l.WriteBuffer, want)
	}
	// What is granted is told in the measure of what was asked, to the byte.
	l = open(t, j, Config{Group: group6, In: "eth2", Out: "eth2", TTL: 1, ReadBuffer: MaxBuffer, WriteBuffer: 100001}).Local()
	if l.ReadBuffer != MaxBuffer || l.WriteBuffer != 100001 {
		t.Errorf("granted %d and %d, want %d and 100001", l.ReadBuffer, l.WriteBuffer, MaxBuffer)
	}
	l = open(t, j, byEth2).Local()
	if l.ReadBuffer != DefaultBuffer || l.WriteBuffer != DefaultBuffer {
		t.Errorf("granted %d and %d by default, want %d", l.ReadBuffer, l.WriteBuffer, DefaultBuffer)
	}
}

func TestWithoutPrivilegesBuffersStayWithinTheSystemsLimit(t *testing.T) {
	j, k := pair(t)
	text, err := os.ReadFile("/proc/sys/net/core/rmem_max")
	if err != nil {
		t.Fatal(err)
	}
	limit, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	cfg := byEth2
	cfg.ReadBuffer = 2 * limit
	var c *Conn
	j.Do(func() {
		defer dropCapabilities(t)()
		if c, err = Open(cfg); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() { c.Close() })
	if got := c.Local().ReadBuffer; got != limit {
		t.Errorf("granted %d bytes, want %d", got, limit)
	}
	send(t, open(t, k, byEth2), "heard all the same")
	expect(t, c, "heard all the same")
}

// dropCapabilities takes the calling thread's effective capabilities until the
// function that it returns is called.
func dropCapabilities(t *testing.T) (restore func()) {
	t.Helper()
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var had [2]unix.CapUserData
	if err := unix.Capget(&hdr, &had[0]); err != nil {
		t.Fatal(err)
	}
	none := had
	none[0].Effective, none[1].Effective = 0, 0
	if err := unix.Capset(&hdr, &none[0]); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := unix.Capset(&hdr, &had[0]); err != nil {
			t.Fatal(err)
		}
	}
}

func TestOpenSaysWhatIsWrong(t *testing.T) {
	j, k := pair(t)
	n := nstest.New(t)
	nstest.Veth(n, "eth2", k, "eth7")
	n.IP("link add name down type veth peer name down-peer")
	n.IP("link set down-peer up")
	n.Sysctl("net.ipv6.conf.default.disable_ipv6", "1")
	n.IP("link add name no6 type veth peer name no6-peer")
	n.IP("link set no6-peer up")
	n.IP("link set no6 up")
	n.Sysctl("net.ipv6.conf.default.disable_ipv6", "0")
	n.IP("link add name small type veth peer name small-peer mtu 1000")
	n.IP("link set small-peer up")
	n.IP("link set small mtu 1000 up") // IPv6 asks for 1280
	n.Sysctl("net.ipv6.conf.default.accept_dad", "1")
	n.Sysctl("net.ipv6.conf.default.dad_transmits", "1000") // so it never ends
	n.IP("link add name fresh type veth peer name fresh-peer")
	n.IP("link set fresh-peer up")
	n.IP("link set fresh up")
	n.Address("eth2", "2001:db8::1/64")
	n.IP("link add name twin type veth peer name twin-peer")
	n.IP("link set twin-peer up")
	n.IP("link set twin up")
	n.Address("twin", "2001:db8::1/64")

	for _, c := range []struct {
		name string
		ns   *nstest.NS
		cfg  Config
		is   error
		says []string
	}{
		{"an interface that is not there", n, Config{Group: group6, In: "eth99", TTL: 1}, ErrNoInterface, []string{"join", "on eth99", "ip address"}},
		{"an out interface that is not there", n, Config{Group: group6, In: "eth2", Out: "eth99", TTL: 1}, ErrNoInterface, []string{"send to", "on eth99"}},
		{"an address that is not here", n, Config{Group: group4, In: "192.0.2.99", TTL: 1}, ErrNoInterface, []string{"192.0.2.99"}},
		{"a name longer than names are", n, Config{Group: group6, In: "an-interface-with-a-long-name", TTL: 1}, ErrNoInterface, nil},
		{"a zone that is not there", n, Config{Group: netip.MustParseAddrPort("[ff02::1%eth99]:6400"), TTL: 1}, ErrNoInterface, []string{"eth99"}},
		{"a zone that has no such index", n, Config{Group: netip.MustParseAddrPort("[ff02::1%4711]:6400"), TTL: 1}, ErrNoInterface, []string{"4711"}},
		{"a zone that disagrees", n, Config{Group: zoned6, In: "fresh", TTL: 1}, nil, []string{"fresh", "eth2"}},
		{"an address that is here twice", n, Config{Group: group6, In: "2001:db8::1", TTL: 1}, nil, []string{"eth2", "twin", "name"}},
		{"an interface that is down", n, Config{Group: group6, In: "down", Out: "down", TTL: 1}, ErrInterfaceDown, []string{"`ip link set down up`"}},
		{"an interface without IPv4 address", n, Config{Group: group4, In: "eth2", Out: "eth2", TTL: 1}, ErrNoAddress, []string{"eth2", "add one"}},
		{"an interface whose IPv6 address is tentative", n, Config{Group: group6, In: "fresh", Out: "fresh", TTL: 1}, ErrNoAddress, []string{"fresh", "a second or two"}},
		{"an out interface without IPv6", n, Config{Group: group6, In: "eth2", Out: "no6", TTL: 1}, ErrNoAddress, []string{"no6"}},
		{"an in interface too small for IPv6", n, Config{Group: group6, In: "small", Out: "eth2", TTL: 1}, ErrNoAddress, []string{"small"}},
		{"an out interface too small for IPv6", n, Config{Group: group6, In: "eth2", Out: "small", TTL: 1}, ErrNoAddress, []string{"small"}},
		{"no interface and no route", n, Config{Group: group4, TTL: 1}, ErrNoRoute, []string{"--net.dev.in"}},
		{"no interface for a link-local group", n, Config{Group: link6, TTL: 1}, ErrNoRoute, []string{"%eth2"}},
		{"a unicast address", j, on(byEth2, netip.MustParseAddrPort("[2001:db8::1]:6400")), ErrNotMulticast, []string{"ff00::/8"}},
		{"no address", j, on(byEth2, netip.AddrPort{}), ErrNotMulticast, nil},
		{"port 0", j, on(byEth2, netip.AddrPortFrom(group6.Addr(), 0)), nil, []string{"port 0", "65535"}},
		{"a TTL of 256", j, Config{Group: group6, TTL: 256}, nil, []string{"256", "255"}},
		{"a negative TTL", j, Config{Group: group6, TTL: -1}, nil, []string{"-1"}},
		{"a negative buffer", j, Config{Group: group6, TTL: 1, ReadBuffer: -1}, nil, []string{"-1"}},
		{"a buffer beyond the kernel's numbers", n, Config{Group: group6, TTL: 1, WriteBuffer: 1 << 30}, nil, []string{"1073741824", "1073741823"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := openErr(t, c.ns, c.cfg)
			var e *Error
			if !errors.As(err, &e) {
				t.Fatalf("%v (%T), want an *Error", err, err)
			}
			if c.is != nil && !errors.Is(err, c.is) {
				t.Errorf("%q, want %q", err, c.is)
			}
			for _, s := range append(c.says, c.cfg.Group.String()) {
				if !strings.Contains(err.Error(), s) {
					t.Errorf("%q does not say %q", err, s)
				}
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("more than one line: %q", err)
			}
			if c.is == nil {
				for _, s := range []error{ErrNoInterface, ErrInterfaceDown, ErrNoAddress, ErrNoRoute, ErrNotMulticast, ErrPortInUse} {
					if errors.Is(err, s) {
						t.Errorf("%q passes for %q", err, s)
					}
				}
			}
		})
	}
}

func TestAnAlternativeNameIsAName(t *testing.T) {
	j, _ := pair(t)
	j.IP("link property add dev eth2 altname sync")
	if l := open(t, j, Config{Group: group6, In: "sync", Out: "sync", TTL: 1}).Local(); l.In != "eth2" || l.Out != "eth2" {
		t.Errorf("in %q, out %q, want eth2", l.In, l.Out)
	}
}

func TestNoReuseKeepsOthersOff(t *testing.T) {
	j, _ := pair(t)
	alone := byEth2
	alone.NoReuse = true
	c := open(t, j, alone)
	if err := openErr(t, j, byEth2); !errors.Is(err, ErrPortInUse) || !strings.Contains(err.Error(), "ss -ulnp") {
		t.Errorf("a second socket: %v, want ErrPortInUse", err)
	}
	c.Close()
	open(t, j, byEth2)
	if err := openErr(t, j, alone); !errors.Is(err, ErrPortInUse) {
		t.Errorf("the port was shared already: %v, want ErrPortInUse", err)
	}
}

func TestDeadlineAndCloseEndARead(t *testing.T) {
	j, _ := pair(t)
	c := open(t, j, byEth2)
	ds := NewDatagrams(1, 1)
	if err := c.SetReadDeadline(time.Now().Add(-time.Second)); err != nil {
		t.Fatal(err)
	}
	_, err := c.ReadBatch(ds)
	var e *Error
	if !errors.Is(err, os.ErrDeadlineExceeded) || !errors.As(err, &e) || !e.Timeout() {
		t.Errorf("past its deadline: %v", err)
	}
	if err := c.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	read := make(chan error)
	go func() {
		_, err := c.ReadBatch(ds)
		read <- err
	}()
	if err := c.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	select {
	case err := <-read:
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("closed under a read: %v", err)
		}
	case <-time.After(limit):
		t.Fatal("the read goes on")
	}
	for name, err := range map[string]error{"write": c.Write([]byte("x")), "refresh": c.Refresh()} {
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s after close: %v", name, err)
		}
	}
	c.Drops() // and what was learnt stays
	if c.MaxPayload() != 1452 || c.Local().Group != group6 {
		t.Errorf("after close: %d, %+v", c.MaxPayload(), c.Local())
	}
}

func TestAFullSendBufferIsNotWaitedForForLong(t *testing.T) {
	j, _ := pair(t)
	// A wire of 8 bits a second keeps what is sent in the sender's buffer.
	j.Command("tc", "qdisc", "add", "dev", "eth2", "root", "tbf", "rate", "8bit", "burst", "1600", "limit", "10000000")
	cfg := byEth2
	cfg.WriteBuffer = 16384
	c := open(t, j, cfg)
	defer time.AfterFunc(limit, func() { c.Close() }).Stop()
	payload := make([]byte, 1000)
	for n := 0; ; n++ {
		err := c.Write(payload)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if n == 1000 {
			t.Fatal("a megabyte went into a buffer of 16 kB")
		}
	}
	j.Command("tc", "qdisc", "del", "dev", "eth2", "root") // and what is in it
	if err := c.Write(payload); err != nil {
		t.Errorf("with room again: %v", err)
	}
}

func TestSendingTellsThatTheInterfaceIsDownOrGone(t *testing.T) {
	j, _ := pair(t)
	conns := []*Conn{open(t, j, byEth24), open(t, j, byEth2)}
	for _, state := range []struct {
		line string
		want error
	}{
		{"link set eth2 down", ErrInterfaceDown},
		{"link delete eth2", ErrNoInterface},
	} {
		j.IP(state.line)
		for _, c := range conns {
			j.Do(func() {
				for what, err := range map[string]error{"write": c.Write([]byte("x")), "refresh": c.Refresh()} {
					if !errors.Is(err, state.want) {
						t.Errorf("%s: %v, %s: %v, want %v", state.line, c.Local().Group, what, err, state.want)
					}
				}
			})
		}
	}
}

func FuzzAnyTextNamesAnInterfaceOrNone(f *testing.F) {
	for _, s := range []string{"lo", "127.0.0.1", "::1", "::1%lo", "::1%1", "::ffff:127.0.0.1", "1", "", "a/b", "0123456789abcdef", "fe80::1%"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, find := range []func(string) (device, error){findDevice, findZone} {
			if d, err := find(s); err == nil && d.index <= 0 && s != "" {
				t.Errorf("%q is %+v", s, d)
			}
		}
	})
}
