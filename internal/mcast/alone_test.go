package mcast

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"joold/internal/nstest"
)

// nextDatagram is the next that c hears, in whole.
func nextDatagram(t testing.TB, c *Conn) Datagram {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(limit)); err != nil {
		t.Fatal(err)
	}
	ds := NewDatagrams(1, MaxReceived)
	if n, err := c.ReadBatch(ds); err != nil || n != 1 {
		t.Fatalf("read %d datagrams: %v", n, err)
	}
	return ds[0]
}

// answer has c hear from peer by the group, and answers it alone.
func answer(t testing.TB, peer, c *Conn) {
	t.Helper()
	send(t, peer, "to all")
	heard := nextDatagram(t, c)
	if string(heard.Payload) != "to all" || heard.Alone {
		t.Fatalf("heard %q, alone %v, want it by the group", heard.Payload, heard.Alone)
	}
	if err := c.WriteTo([]byte("to you"), heard.From); err != nil {
		t.Fatalf("answer %v: %v", heard.From, err)
	}
	got := nextDatagram(t, peer)
	if string(got.Payload) != "to you" || !got.Alone {
		t.Fatalf("heard %q from %v, alone %v", got.Payload, got.From, got.Alone)
	}
	if l := c.Local(); got.From != netip.AddrPortFrom(l.Source, l.Port) {
		t.Errorf("heard from %v, who takes itself for %v port %d", got.From, l.Source, l.Port)
	}
	if err := peer.WriteTo([]byte("to you again"), got.From); err != nil {
		t.Fatalf("answer %v: %v", got.From, err)
	}
	if got := nextDatagram(t, c); string(got.Payload) != "to you again" || !got.Alone {
		t.Fatalf("heard %q from %v, alone %v", got.Payload, got.From, got.Alone)
	}
}

func TestWhoIsHeardCanBeAnsweredAlone(t *testing.T) {
	j, k := pair(t)
	j.IP("route replace 239.0.0.0/8 dev eth2")
	for _, cfg := range []Config{
		byEth24, byEth2, {Group: zoned6, TTL: 1}, {Group: group4, TTL: 1}, {Group: group6, TTL: 1},
		{Group: group4, In: "192.0.2.4", Out: "192.0.2.4", TTL: 1}, {Group: group6, Out: "eth2", TTL: 255},
		{Group: group4, In: "eth2", Out: "eth2", TTL: 1, NoReuse: true}, {Group: group6, In: "eth2", Out: "eth2", TTL: 1, NoReuse: true},
	} {
		t.Run(fmt.Sprintf("%v in %q out %q", cfg.Group, cfg.In, cfg.Out), func(t *testing.T) {
			cfgK := Config{Group: cfg.Group, In: "eth2", Out: "eth2", TTL: 1}
			cj, ck := open(t, j, cfg), open(t, k, cfgK)
			if cj.Local().Port != 6400 || ck.Local().Port != 6400 {
				t.Errorf("ports %d and %d, want the group's", cj.Local().Port, ck.Local().Port)
			}
			answer(t, cj, ck)
			answer(t, ck, cj)
		})
	}
}

// TestANodeWithTwoInterfacesIsAnsweredOnTheOneItHears has J hear on eth2 what K sends
// there, to the address that J has on eth3.
func TestANodeWithTwoInterfacesIsAnsweredOnTheOneItHears(t *testing.T) {
	j, k := pair(t)
	nstest.Veth(j, "eth3", k, "eth3")
	j.Address("eth3", "198.51.100.4/24")
	k.Address("eth3", "198.51.100.5/24")
	cj := open(t, j, Config{Group: group4, In: "eth2", Out: "eth3", TTL: 1})
	ck := open(t, k, Config{Group: group4, In: "eth3", Out: "eth2", TTL: 1})
	answer(t, cj, ck)
	if _, err := waiting(cj.alone.send); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("the socket to send with has heard something: %v", err)
	}
}

func TestInstancesThatShareAPortAreAnsweredEachForItself(t *testing.T) {
	j, k := pair(t)
	for _, cfg := range []Config{byEth24, byEth2, {Group: zoned6, TTL: 1}} {
		t.Run(cfg.Group.String(), func(t *testing.T) {
			c := openC(t, j, cfg.Group, "eth2", "192.0.2.4", 1) // which was there before
			first, second := open(t, j, cfg), open(t, j, cfg)
			other := netip.MustParseAddr("239.64.64.65")
			if cfg.Group.Addr().Is6() {
				other = cfg.Group.Addr().Prev()
			}
			third := open(t, j, on(cfg, netip.AddrPortFrom(other, 6400))) // of another group
			if p := first.Local().Port; p != 6400 {
				t.Errorf("the first has port %d, want the group's", p)
			}
			for _, cj := range []*Conn{first, second, third} {
				ck := open(t, k, on(cfg, cj.group))
				answer(t, cj, ck)
				ck.Close()
			}
			ports := map[uint16]bool{first.Local().Port: true, second.Local().Port: true, third.Local().Port: true}
			if len(ports) != 3 {
				t.Errorf("three instances have the ports %v", ports)
			}
			// C nodes ask for no port: they hear the group from any.
			ck := openC(t, k, cfg.Group, "eth2", "192.0.2.5", 1)
			send(t, second, "to C")
			buf := make([]byte, MaxDatagram)
			ck.SetReadDeadline(time.Now().Add(limit))
			if n, from, err := ck.ReadFromUDPAddrPort(buf); err != nil || string(buf[:n]) != "to C" || from.Port() != second.Local().Port {
				t.Errorf("a C node heard %q from %v: %v", buf[:n], from, err)
			}
			// What is for one node alone is not C's, though it was there first.
			for {
				n, err := waiting(c)
				if errors.Is(err, unix.EAGAIN) {
					break
				} else if err != nil || n != len("to all") { // K's, to the group
					t.Fatalf("the C node beside heard %d bytes: %v", n, err)
				}
			}
		})
	}
}

func TestWhatIsForThisNodeAloneIsHeardOnItsInterfaceOnly(t *testing.T) {
	j, k := pair(t)
	nstest.Veth(j, "eth3", k, "eth3")
	j.Address("eth3", "198.51.100.4/24")
	k.Address("eth3", "198.51.100.5/24")
	k.Address("eth2", "192.0.2.55/24")
	k.Address("eth2", "2001:db8:ff08::55/96")
	j.IP("route add 2001:db8:ff08::/96 dev eth3 metric 1")
	for _, cfg := range []Config{byEth24, byEth2} {
		t.Run(cfg.Group.String(), func(t *testing.T) {
			cj, ck := open(t, j, cfg), open(t, k, cfg)
			here := ck.Local().Source
			stray(t, j, "eth3", netip.AddrPortFrom(here, 6400)) // another link
			if here.Is4() {                                     // lo sends none of IPv6's
				stray(t, k, "lo", netip.AddrPortFrom(here, 6400)) // this host
			}
			other := netip.MustParseAddr("192.0.2.55") // another of this node's addresses
			if here.Is6() {
				other = netip.MustParseAddr("2001:db8:ff08::55")
			}
			if other == here {
				other = netip.MustParseAddr("2001:db8:ff08::5")
			}
			stray(t, j, "eth2", netip.AddrPortFrom(other, 6400))
			stray(t, j, "eth2", netip.AddrPortFrom(here, 6401))
			answer(t, cj, ck)
			if n, err := waiting(ck.alone.hear); !errors.Is(err, unix.EAGAIN) {
				t.Errorf("heard %d bytes more: %v", n, err)
			}
		})
	}
}

func TestTheAddressThatIsHeardFollowsTheOneSentFrom(t *testing.T) {
	for _, c := range []struct {
		cfg   Config
		lines []string
	}{
		{byEth24, []string{"address flush dev eth2 scope global", "address add 192.0.2.77/24 dev eth2"}},
		{byEth2, []string{"address flush dev eth2 scope global", "address add 2001:db8:ff08::77/96 dev eth2 nodad"}},
		{Config{Group: zoned6, TTL: 1}, []string{
			"address add fe80::77/64 dev eth2 nodad", "address delete LINKLOCAL/64 dev eth2"}},
	} {
		t.Run(c.cfg.Group.String(), func(t *testing.T) {
			j, k := pair(t)
			cj, ck := open(t, j, c.cfg), open(t, k, c.cfg)
			before := cj.Local()
			answer(t, cj, ck)
			for _, line := range c.lines {
				j.IP(strings.ReplaceAll(line, "LINKLOCAL", before.Source.WithZone("").String()))
			}
			if change, err := look(t, j, cj); change != Changed || err != nil {
				t.Fatalf("with another address: %v: %v", change, err)
			}
			after := cj.Local()
			if after.Source == before.Source || after.Port != before.Port {
				t.Errorf("from %v port %d, before from %v port %d", after.Source, after.Port, before.Source, before.Port)
			}
			answer(t, cj, ck)
		})
	}
}

func TestWherePortAndAddressAreTakenTheConnIsOpenedAnew(t *testing.T) {
	j, k := pair(t)
	c, ck := open(t, j, byEth24), open(t, k, byEth24)
	j.Address("eth2", "192.0.2.77/24")
	j.Do(func() {
		conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(192, 0, 2, 77), Port: 6400})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
	})
	j.Sysctl("net.ipv4.conf.eth2.promote_secondaries", "1")
	j.IP("address delete 192.0.2.4/24 dev eth2")
	if change, err := look(t, j, c); change != Reopen || !errors.Is(err, errTaken) {
		t.Fatalf("%v: %v, want to be opened anew", change, err)
	}
	c = reopen(t, j, c, byEth24)
	if c.Local().Port == 6400 {
		t.Error("the port is taken, and was got")
	}
	answer(t, c, ck)
}

func TestTheHopLimitIsToldOfWhatIsForOneAlone(t *testing.T) {
	j, k := pair(t)
	for _, cfg := range []Config{byEth24, byEth2} {
		ck := open(t, k, cfg)
		for ttl, want := range map[int]int{0: 1, 1: 1, 7: 7, 255: 255} {
			cfg.TTL = ttl
			cj := open(t, j, cfg)
			if err := cj.WriteTo([]byte("x"), netip.AddrPortFrom(ck.Local().Source, 6400)); err != nil {
				t.Fatal(err)
			}
			if d := nextDatagram(t, ck); !d.Alone || d.HopLimit != want {
				t.Errorf("%v: sent with %d hops to go, heard with %d (alone %v), want %d", cfg.Group, ttl, d.HopLimit, d.Alone, want)
			}
			cj.Close()
		}
	}
}

func TestAFloodOfOneKindDoesNotKeepTheOtherFromBeingRead(t *testing.T) {
	j, k := pair(t)
	for _, toGroup := range []bool{true, false} {
		cj, ck := open(t, j, byEth2), open(t, k, byEth2)
		at := netip.AddrPortFrom(ck.Local().Source, 6400)
		alone := func(b []byte) error { return cj.WriteTo(b, at) }
		answer(t, cj, ck) // until the kernels know each other, they keep few
		flood, one := cj.Write, alone
		if !toGroup {
			flood, one = alone, cj.Write
		}
		for range 1000 {
			if err := flood([]byte("flood")); err != nil {
				t.Fatal(err)
			}
		}
		if err := one([]byte("one")); err != nil {
			t.Fatal(err)
		}
		ds := NewDatagrams(maxBatch, 100)
		for batch := 1; ; batch++ {
			ck.SetReadDeadline(time.Now().Add(limit))
			n, err := ck.ReadBatch(ds)
			if err != nil || n == 0 {
				t.Fatal(n, err)
			}
			if string(ds[0].Payload) == "one" {
				if ds[0].Alone != toGroup {
					t.Errorf("alone %v", ds[0].Alone)
				}
				break
			}
			if batch == 3 {
				t.Fatalf("after %d datagrams of the flood the one still waits", batch*maxBatch)
			}
		}
		cj.Close()
		ck.Close()
	}
}

func TestWhatIsForOneAloneIsNeverFragmentedWhateverAnICMPMessageSays(t *testing.T) {
	j, k := pair(t)
	for _, c := range []struct {
		cfg  Config
		most int
	}{{byEth24, 1472}, {byEth2, 1452}} {
		t.Run(c.cfg.Group.String(), func(t *testing.T) {
			cj, ck := open(t, j, c.cfg), open(t, k, c.cfg)
			to := netip.AddrPortFrom(ck.Local().Source, 6400)
			b := make([]byte, c.most)
			if err := cj.WriteTo(b, to); err != nil {
				t.Fatal(err)
			}
			if d := nextDatagram(t, ck); len(d.Payload) != c.most {
				t.Fatalf("%d bytes", len(d.Payload))
			}
			if err := cj.WriteTo(make([]byte, c.most+1), to); !errors.Is(err, ErrTooBig) || !strings.Contains(err.Error(), to.String()) {
				t.Errorf("a byte more than fits: %v", err)
			}
			tooBig(t, k, 1280, netip.AddrPortFrom(cj.Local().Source, 6400), to)
			nstest.Wait(t, "the kernel to believe it", func() bool {
				return strings.Contains(j.IP("route get "+to.Addr().String()), "mtu 1280")
			})
			if err := cj.WriteTo(b, to); err != nil {
				t.Fatalf("after an ICMP message that was made up: %v", err)
			}
			if d := nextDatagram(t, ck); len(d.Payload) != c.most {
				t.Fatalf("%d bytes", len(d.Payload))
			}
		})
	}
}

// tooBig has k tell j's kernel that mtu bytes are the most that can be sent from one
// address to another.
func tooBig(t *testing.T, k *nstest.NS, mtu uint16, from, to netip.AddrPort) {
	t.Helper()
	udp := binary.BigEndian.AppendUint16(nil, from.Port())
	udp = binary.BigEndian.AppendUint16(udp, to.Port())
	udp = append(udp, 5, 200, 0, 0)
	source := from.Addr().WithZone("")
	domain, protocol := unix.AF_INET6, unix.IPPROTO_ICMPV6
	var m []byte
	if source.Is4() {
		domain, protocol = unix.AF_INET, unix.IPPROTO_ICMP
		m = []byte{3, 4, 0, 0, 0, 0, 0, 0} // unreachable, fragmentation needed
		m = append(m, 0x45, 0, 5, 220, 0, 1, 0x40, 0, 64, unix.IPPROTO_UDP, 0, 0)
	} else {
		m = []byte{2, 0, 0, 0, 0, 0, 0, 0} // packet too big; the kernel sums it up
		m = append(m, 0x60, 0, 0, 0, 5, 200, unix.IPPROTO_UDP, 64)
	}
	binary.BigEndian.PutUint16(m[6:], mtu)
	m = append(append(append(m, source.AsSlice()...), to.Addr().AsSlice()...), udp...)
	if source.Is4() {
		binary.BigEndian.PutUint16(m[8+10:], checksum(m[8:28]))
		binary.BigEndian.PutUint16(m[2:], checksum(m))
	}
	k.Do(func() {
		fd, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		if err := unix.Sendto(fd, m, 0, sockaddr(netip.AddrPortFrom(source, 0), device{})); err != nil {
			t.Fatal(err)
		}
	})
}

func TestWriteToSaysWhatIsWrong(t *testing.T) {
	j, _ := pair(t)
	c4, c6 := open(t, j, byEth24), open(t, j, byEth2)
	for _, c := range []struct {
		conn *Conn
		to   string
		is   error
	}{
		{c4, "[2001:db8:ff08::5]:6400", errNoNode},
		{c6, "192.0.2.5:6400", errNoNode},
		{c4, "239.64.64.64:6400", errNoNode},
		{c6, "[ff02::1%eth2]:6400", errNoNode},
		{c6, "[::]:6400", errNoNode},
		{c4, "192.0.2.5:0", errNoNode},
		{c4, "192.0.2.255:6400", unix.EACCES}, // no broadcasts
		{c6, "[2001:db8:64::1]:6400", unix.ENETUNREACH},
	} {
		err := c.conn.WriteTo([]byte("x"), netip.MustParseAddrPort(c.to))
		if !errors.Is(err, c.is) || !errors.As(err, new(*Error)) || !strings.Contains(err.Error(), "node "+c.to+" on eth2") {
			t.Errorf("to %s: %v, want %v", c.to, err, c.is)
		}
	}
	if err := c4.WriteTo(nil, netip.AddrPort{}); !errors.Is(err, errNoNode) {
		t.Errorf("to nobody: %v", err)
	}
	if err := c4.WriteTo([]byte("x"), netip.MustParseAddrPort("[::ffff:192.0.2.5]:6400")); err != nil {
		t.Errorf("to an IPv4 address in IPv6's clothes: %v", err)
	}
	c4.Close()
	if err := c4.WriteTo([]byte("x"), netip.MustParseAddrPort("192.0.2.5:6400")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after close: %v", err)
	}
}

func TestDropsOfWhatIsForThisNodeAloneAreCountedToo(t *testing.T) {
	j, k := pair(t)
	cfg := byEth2
	cfg.ReadBuffer = 16384
	cj, ck := open(t, j, byEth2), open(t, k, cfg)
	answer(t, cj, ck) // until the kernels know each other, they keep few
	to := netip.AddrPortFrom(ck.Local().Source, 6400)
	for range 1000 {
		if err := cj.WriteTo(full, to); err != nil {
			t.Fatal(err)
		}
	}
	received := uint64(0)
	ds := NewDatagrams(64, 1500)
	nstest.Wait(t, "every datagram to be received or counted", func() bool {
		ck.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
		n, err := ck.ReadBatch(ds)
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
		received += uint64(n)
		return received+ck.Drops() == 1000
	})
	drops := ck.Drops()
	if drops == 0 || received == 0 {
		t.Fatalf("%d drops, %d received", drops, received)
	}
	k.IP("address flush dev eth2 scope global")
	k.Address("eth2", "2001:db8:ff08::77/96")
	if change, err := look(t, k, ck); change != Changed || err != nil {
		t.Fatal(change, err)
	}
	if got := ck.Drops(); got != drops {
		t.Errorf("%d drops after another address, want %d", got, drops)
	}
	ck.Close()
	if got := ck.Drops(); got != drops {
		t.Errorf("%d drops after close, want %d", got, drops)
	}
}

// Nobody reads these: who sends to them would fill their buffers for good.
func TestASocketThatOnlySendsKeepsNothing(t *testing.T) {
	j, k := pair(t)
	nstest.Veth(j, "eth3", k, "eth3")
	j.Address("eth3", "198.51.100.4/24")
	k.Address("eth3", "198.51.100.5/24")
	keepsNothing := func(what string, conn *net.UDPConn, at netip.AddrPort) {
		t.Helper()
		raw, err := conn.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		stranger, to := netip.MustParseAddrPort("198.51.100.5:6400"), net.UDPAddrFromAddrPort(at)
		k.Do(func() {
			from, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(stranger), to)
			if err != nil {
				t.Fatal(err)
			}
			defer from.Close()
			if _, err := from.Write([]byte("to nobody")); err != nil {
				t.Fatal(err)
			}
		})
		nstest.Wait(t, what+" to be sent something", func() bool {
			if n, err := waiting(conn); err == nil {
				t.Fatalf("%s: keeps %d bytes", what, n)
			}
			drops, err := socketDrops(raw)
			return err == nil && drops > 0
		})
	}
	at := netip.MustParseAddrPort("198.51.100.4:6400")
	c := open(t, j, Config{Group: group4, In: "eth2", Out: "eth3", TTL: 1})
	keepsNothing("what talks to one node", c.alone.send, at)
	c.Close()
	p := openPeers(t, j, Config{In: "eth2", Out: "eth3", TTL: 1}, "198.51.100.5:6400")
	keepsNothing("what sends to peers", p.sockets[0].send, at)
	probe := p.sockets[0].probe // connected to the peer
	if err := control(probe, func(fd int) error {
		sa, err := unix.Getsockname(fd)
		if err == nil {
			at = netip.AddrPortFrom(at.Addr(), uint16(sa.(*unix.SockaddrInet4).Port))
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	keepsNothing("what finds the path to them", probe, at)
}

// Hellos fit 1,280 bytes, and IPv6's paths have no less. Of IPv4's anybody can claim
// that they have 552.
func TestNoICMPMessageKeepsShortDatagramsFromLeaving(t *testing.T) {
	j, k := pair(t)
	j.IP("route add 239.0.0.0/8 dev eth2") // else it is not remembered of a group
	eth2 := Config{In: "eth2", Out: "eth2", TTL: 1}
	j4, j6 := netip.MustParseAddrPort("192.0.2.4:6400"), netip.MustParseAddrPort("[2001:db8:ff08::4]:6400")
	k4, k6 := netip.MustParseAddrPort("192.0.2.5:6400"), netip.MustParseAddrPort("[2001:db8:ff08::5]:6400")
	for _, c := range []struct {
		cfg      Config
		from, to netip.AddrPort
		mtu      uint16
		least    int
	}{
		{byEth24, j4, group4, 552, 1252},
		{eth2, j4, k4, 1280, 1252},
		{eth2, j4, k4, 552, 1252}, // after that
		{eth2, j6, k6, 1280, 1232},
	} {
		t.Run(fmt.Sprintf("to %v, MTU %d", c.to, c.mtu), func(t *testing.T) {
			var cj, ck ends
			if c.cfg.Group.IsValid() {
				cj, ck = open(t, j, c.cfg), open(t, k, c.cfg)
			} else {
				cj, ck = openPeers(t, j, c.cfg, c.to.String()), openPeers(t, k, c.cfg, c.from.String())
			}
			wire, alone := sniff(t, k, c.to), !c.cfg.Group.IsValid()
			arrives := func(payload string) netip.AddrPort {
				t.Helper()
				if p := wire.next(t); string(p.payload()) != payload {
					t.Errorf("on the wire: % x ..., want one packet with %d bytes of payload", p[:40], len(payload))
				}
				return heard(t, ck, payload, alone)
			}
			send(t, cj, "before")
			arrives("before")
			whole := 1500 - headers(c.to.Addr())
			tooBig(t, k, c.mtu, c.from, c.to)
			nstest.Wait(t, "the kernel to believe it", func() bool {
				return strings.Contains(j.IP("route get "+c.to.Addr().String()), fmt.Sprintf("mtu %d", c.mtu))
			})
			for range 2 { // also the one after
				short := strings.Repeat("x", c.least)
				send(t, cj, short)
				arrives(short)
				if alone {
					if err := cj.WriteTo([]byte(short), c.to); err != nil {
						t.Error(err)
					}
					arrives(short)
				}
				if err := cj.Write(make([]byte, whole)); !errors.Is(err, ErrTooBig) {
					t.Errorf("%d bytes: %v", whole, err)
				}
				fits := strings.Repeat("y", cj.MaxPayload())
				if send(t, cj, fits); len(fits) != int(c.mtu)-headers(c.to.Addr()) {
					t.Errorf("it says that %d bytes fit", len(fits))
				}
				arrives(fits)
			}
		})
	}
}

// IPv6 needs an interface to have 1,280 bytes. One of IPv4 that has less sends what is
// short in pieces, rather than not at all.
func TestShortDatagramsLeaveByANarrowInterface(t *testing.T) {
	j, k := pair(t)
	for _, n := range []*nstest.NS{j, k} {
		n.IP("link set eth2 mtu 1000")
	}
	cj, ck := open(t, j, byEth24), open(t, k, byEth24)
	short := strings.Repeat("x", 1252)
	send(t, cj, short)
	heard(t, ck, short, false)
	if err := cj.WriteTo([]byte(short), netip.MustParseAddrPort("192.0.2.5:6400")); err != nil {
		t.Fatal(err)
	}
	heard(t, ck, short, true)
	if got := cj.MaxPayload(); got != 972 {
		t.Errorf("payload of %d bytes, want 972", got)
	}
	if err := cj.Write([]byte(short + "x")); !errors.Is(err, ErrTooBig) {
		t.Errorf("a byte more: %v", err)
	}
}
