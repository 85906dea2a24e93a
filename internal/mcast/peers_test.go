package mcast

import (
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

// ends is what both a *Conn and *Peers can do.
type ends interface {
	writer
	ReadBatch([]Datagram) (int, error)
	WriteTo([]byte, netip.AddrPort) error
	SetReadDeadline(time.Time) error
	MaxPayload() int
	Local() Local
}

func openPeers(t testing.TB, n *nstest.NS, cfg Config, peers ...string) *Peers {
	t.Helper()
	p, err := tryPeers(n, cfg, peers...)
	if err != nil {
		t.Fatalf("open %v: %v", peers, err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

func tryPeers(n *nstest.NS, cfg Config, peers ...string) (p *Peers, err error) {
	var addrs []netip.AddrPort
	for _, s := range peers {
		addrs = append(addrs, netip.MustParseAddrPort(s))
	}
	n.Do(func() { p, err = OpenPeers(cfg, 6400, addrs) })
	return p, err
}

// heard is the next datagram that e hears, which must be this one.
func heard(t testing.TB, e ends, payload string, alone bool) netip.AddrPort {
	t.Helper()
	if err := e.SetReadDeadline(time.Now().Add(limit)); err != nil {
		t.Fatal(err)
	}
	ds := NewDatagrams(1, MaxReceived)
	if n, err := e.ReadBatch(ds); err != nil || n != 1 {
		t.Fatalf("read %d datagrams: %v", n, err)
	}
	if string(ds[0].Payload) != payload || ds[0].Alone != alone {
		t.Fatalf("heard %q (alone %v) from %v, want %q", ds[0].Payload, ds[0].Alone, ds[0].From, payload)
	}
	return ds[0].From
}

// linkLocal is n's link-local address on eth2.
func linkLocal(t testing.TB, n *nstest.NS) string {
	t.Helper()
	f := strings.Fields(n.IP("-6 -oneline address show dev eth2 scope link"))
	return strings.TrimSuffix(f[3], "/64")
}

func TestPeersHearEachOther(t *testing.T) {
	j, k := pair(t)
	eth2 := Config{In: "eth2", Out: "eth2", TTL: 1}
	for _, c := range []struct {
		name string
		cfg  Config
		toK  string
		toJ  string
	}{
		{"IPv4", eth2, "192.0.2.5:6400", "192.0.2.4:6400"},
		{"IPv4 where the kernel chooses", Config{TTL: 1}, "192.0.2.5:6400", "192.0.2.4:6400"},
		{"IPv6", eth2, "[2001:db8:ff08::5]:6400", "[2001:db8:ff08::4]:6400"},
		{"IPv6 where the kernel chooses", Config{TTL: 1}, "[2001:db8:ff08::5]:6400", "[2001:db8:ff08::4]:6400"},
		{"link-local", eth2, "[" + linkLocal(t, k) + "]:6400", "[" + linkLocal(t, j) + "]:6400"},
		{"link-local with a zone", Config{TTL: 1}, "[" + linkLocal(t, k) + "%eth2]:6400", "[" + linkLocal(t, j) + "%eth2]:6400"},
	} {
		t.Run(c.name, func(t *testing.T) {
			pj, pk := openPeers(t, j, c.cfg, c.toK), openPeers(t, k, c.cfg, c.toJ)
			send(t, pj, "from J")
			from := heard(t, pk, "from J", true)
			if from.Addr().IsLinkLocalUnicast() { // the index was looked up in the test's own namespace
				from = netip.AddrPortFrom(from.Addr().WithZone("eth2"), from.Port())
			}
			if l := pj.Local(); from != netip.AddrPortFrom(l.Source, l.Port) || l.Port != 6400 {
				t.Errorf("heard from %v, who takes itself for %v port %d", from, l.Source, l.Port)
			}
			if err := pk.WriteTo([]byte("to you"), from); err != nil {
				t.Fatal(err)
			}
			heard(t, pj, "to you", true)
			send(t, pk, "from K")
			heard(t, pj, "from K", true)
		})
	}
}

func TestPeersMayBeBesideAGroup(t *testing.T) {
	j, k := pair(t)
	for _, c := range []struct {
		cfg  Config
		peer string // of either family
	}{
		{byEth24, "198.51.100.55:6400"}, {byEth2, "198.51.100.55:6400"}, {byEth24, "[2001:db8:55::55]:6400"}, {byEth2, "[2001:db8:55::55]:6400"},
	} {
		t.Run(fmt.Sprintf("%v and %s", c.cfg.Group, c.peer), func(t *testing.T) {
			l := nstest.New(t)
			nstest.Veth(j, "eth3", l, "eth2")
			l.Address("eth2", "198.51.100.55/24")
			l.Address("eth2", "2001:db8:55::55/96")
			j.Address("eth3", "198.51.100.4/24")
			j.Address("eth3", "2001:db8:55::4/96")
			cfgJ := Config{Group: c.cfg.Group, TTL: 1}
			if c.cfg.Group.Addr().Is4() {
				j.IP("route replace 239.0.0.0/8 dev eth2")
			}
			beside := openC(t, j, c.cfg.Group, "eth2", "192.0.2.4", 1) // does no harm
			pj := openPeers(t, j, cfgJ, c.peer)
			ck, pl := open(t, k, c.cfg), openPeers(t, l, Config{In: "eth2", Out: "eth2", TTL: 1}, "198.51.100.4:6400", "[2001:db8:55::4]:6400")
			send(t, pj, "from J")
			fromK := heard(t, ck, "from J", false)
			fromL := heard(t, pl, "from J", true)
			for e, from := range map[ends]netip.AddrPort{ck: fromK, pl: fromL} {
				if from.Port() != 6400 {
					t.Errorf("heard from %v", from)
				}
				if err := e.WriteTo([]byte("to you"), from); err != nil {
					t.Fatal(err)
				}
				back := heard(t, pj, "to you", true)
				if err := pj.WriteTo([]byte("and to you"), back); err != nil {
					t.Fatal(err)
				}
				heard(t, e, "and to you", true)
			}
			send(t, ck, "from K")
			heard(t, pj, "from K", false)
			if n, err := waiting(beside); err != nil || n != len("from K") {
				t.Errorf("the C daemon's socket on this host heard %d bytes: %v", n, err)
			}
			j.IP("link delete eth3")
		})
	}
}

func TestAPeerMayNameAnyAddressOfANode(t *testing.T) {
	j, k := pair(t)
	k.Address("eth2", "192.0.2.55/24")
	k.Address("eth2", "2001:db8:ff08::66/96")
	eth2 := Config{In: "eth2", Out: "eth2", TTL: 1}
	pk := openPeers(t, k, eth2, "192.0.2.4:6400", "[2001:db8:ff08::4]:6400")
	pj := openPeers(t, j, eth2, "192.0.2.55:6400", "192.0.2.5:6400", "[2001:db8:ff08::66]:6400", "[2001:db8:ff08::5]:6400")
	send(t, pj, "to each")
	for range 4 {
		heard(t, pk, "to each", true)
	}
}

func TestOnlyWhatIsForThisNodeIsHeardOfPeers(t *testing.T) {
	j, k := pair(t)
	nstest.Veth(j, "eth3", k, "eth3")
	j.Address("eth3", "198.51.100.4/24")
	k.Address("eth3", "198.51.100.5/24")
	eth2 := Config{In: "eth2", Out: "eth2", TTL: 1}
	pk := openPeers(t, k, eth2, "192.0.2.4:6400", "[2001:db8:ff08::4]:6400")
	for _, to := range []string{"192.0.2.5", "198.51.100.5"} {
		stray(t, j, "eth3", netip.AddrPortFrom(netip.MustParseAddr(to), 6400)) // another link
	}
	for _, to := range []string{"239.64.64.64", "224.0.0.1", "ff02::1", "ff08::db8:64:64"} {
		stray(t, j, "eth2", netip.AddrPortFrom(netip.MustParseAddr(to), 6400))
	}
	pj := openPeers(t, j, eth2, "192.0.2.5:6400")
	send(t, pj, "to K")
	heard(t, pk, "to K", true)
	for _, s := range pk.sockets {
		if n, err := waiting(s.hear); !errors.Is(err, unix.EAGAIN) {
			t.Errorf("heard %d bytes more: %v", n, err)
		}
	}
}

func TestAPeerThatIsNotReachedKeepsNoneFromBeingSentTo(t *testing.T) {
	j, k := pair(t)
	eth2 := Config{In: "eth2", Out: "eth2", TTL: 1}
	pk := openPeers(t, k, eth2, "192.0.2.4:6400")
	pj := openPeers(t, j, eth2, "[2001:db8:64::1]:6400", "192.0.2.99:6400", "192.0.2.5:6400")
	send(t, pj, "all the same")
	heard(t, pk, "all the same", true)

	if _, err := tryPeers(nstest.New(t), Config{TTL: 1}, "[2001:db8:64::1]:6400"); !errors.Is(err, errNoPeer) || !strings.Contains(err.Error(), "2001:db8:64::1") {
		t.Errorf("none is reached: %v", err)
	}
	for _, step := range []struct {
		line string
		want Change
		is   error
	}{
		{"link set eth2 down", Away, ErrInterfaceDown},
		{"link set eth2 up", Unchanged, nil},
		{"link set eth2 mtu 1400", Changed, nil},
		{"link delete eth2", Reopen, ErrNoInterface},
	} {
		j.IP(step.line)
		j.Do(func() {
			if change, err := pj.Check(); change != step.want || !errors.Is(err, step.is) {
				t.Errorf("after %q: %v: %v, want %v", step.line, change, err, step.want)
			}
		})
		if err := pj.Write([]byte("x")); (err == nil) != (step.is == nil) || err != nil && !Temporary(err) {
			t.Errorf("after %q a datagram: %v", step.line, err)
		}
	}
}

func TestTheNarrowestPathBoundsThePayload(t *testing.T) {
	j, _ := pair(t)
	j.IP("route add 192.0.2.77/32 dev eth2 mtu 1400")
	eth2 := Config{In: "eth2", Out: "eth2", TTL: 1}
	p := openPeers(t, j, eth2, "192.0.2.5:6400", "192.0.2.77:6400", "[2001:db8:ff08::5]:6400")
	if got := p.MaxPayload(); got != 1372 {
		t.Errorf("payload of %d bytes, want 1372", got)
	}
	j.IP("route replace 192.0.2.77/32 dev eth2 mtu 1300")
	if err := p.Write(make([]byte, 1372)); !errors.Is(err, ErrTooBig) {
		t.Errorf("1372 bytes: %v", err)
	}
	if got := p.MaxPayload(); got != 1272 {
		t.Errorf("payload of %d bytes then, want 1272", got)
	}
	p.Close()
	// A group is a path as well, and as narrow.
	both := openPeers(t, j, byEth2, "192.0.2.5:6400")
	if got := both.MaxPayload(); got != 1452 {
		t.Errorf("payload of %d bytes, want 1452", got)
	}
}

func TestThePortIsForOneInstanceWithPeers(t *testing.T) {
	j, _ := pair(t)
	eth2 := Config{In: "eth2", Out: "eth2", TTL: 1}
	p := openPeers(t, j, eth2, "192.0.2.5:6400")
	if _, err := tryPeers(j, eth2, "192.0.2.5:6400"); !errors.Is(err, ErrPortInUse) || !strings.Contains(err.Error(), "UDP port 6400 on eth2") {
		t.Errorf("a second one with peers: %v", err)
	}
	if err := openErr(t, j, byEth24); !errors.Is(err, ErrPortInUse) {
		t.Errorf("one with a group: %v", err)
	}
	p.Close()
	c := open(t, j, byEth24)
	if _, err := tryPeers(j, eth2, "192.0.2.5:6400"); !errors.Is(err, ErrPortInUse) {
		t.Errorf("after one with a group: %v", err)
	}
	c.Close()
	openPeers(t, j, byEth24, "192.0.2.5:6400")
}

func TestOpenPeersSaysWhatIsWrong(t *testing.T) {
	j, _ := pair(t)
	eth2 := Config{In: "eth2", Out: "eth2", TTL: 1}
	for _, c := range []struct {
		cfg  Config
		peer string
		is   error
		says string
	}{
		{eth2, "239.1.1.1:6400", errNoNode, "239.1.1.1"},
		{eth2, "192.0.2.5:0", errNoNode, "192.0.2.5:0"},
		{Config{In: "eth99", TTL: 1}, "192.0.2.5:6400", ErrNoInterface, "eth99"},
		{eth2, "[fe80::1%lo]:6400", nil, "lo: leave one of the two out"},
		{Config{TTL: 1}, "[fe80::1%eth99]:6400", ErrNoInterface, "eth99"},
		{Config{TTL: 256}, "192.0.2.5:6400", nil, "256"},
		{on(eth2, netip.MustParseAddrPort("239.1.1.1:6401")), "192.0.2.5:6400", nil, "6401"},
		{on(eth2, netip.MustParseAddrPort("192.0.2.5:6400")), "192.0.2.5:6400", ErrNotMulticast, "192.0.2.5"},
	} {
		_, err := tryPeers(j, c.cfg, c.peer)
		if err == nil || c.is != nil && !errors.Is(err, c.is) || !errors.As(err, new(*Error)) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%+v and %s: %v", c.cfg, c.peer, err)
		}
	}
	if _, err := tryPeers(j, eth2); err == nil {
		t.Error("no peers, and no error")
	}
}

func TestClosingPeersEndsARead(t *testing.T) {
	j, _ := pair(t)
	for _, cfg := range []Config{byEth2, {In: "eth2", Out: "eth2", TTL: 1}} {
		p := openPeers(t, j, cfg, "192.0.2.5:6400")
		read := make(chan error)
		go func() {
			_, err := p.ReadBatch(NewDatagrams(1, 1))
			read <- err
		}()
		if err := p.Close(); err != nil {
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
		for name, err := range map[string]error{"write": p.Write([]byte("x")), "refresh": p.Refresh(),
			"write to one": p.WriteTo([]byte("x"), netip.MustParseAddrPort("192.0.2.5:6400"))} {
			if !errors.Is(err, net.ErrClosed) {
				t.Errorf("%s after close: %v", name, err)
			}
		}
		p.Drops()
	}
}

func TestNothingIsAllocatedPerDatagramAndPeer(t *testing.T) {
	j, k := pair(t)
	cfg := byEth2
	pj, pk := openPeers(t, j, cfg, "192.0.2.5:6400"), openPeers(t, k, cfg, "192.0.2.4:6400")
	if err := pk.SetReadDeadline(time.Now().Add(10 * limit)); err != nil {
		t.Fatal(err)
	}
	ds := NewDatagrams(16, MaxDatagram)
	if allocs := testing.AllocsPerRun(100, func() {
		if err := pj.Write(full); err != nil {
			t.Fatal(err)
		}
		for n := 0; n < 2; { // by the group, and alone
			got, err := pk.ReadBatch(ds)
			if err != nil {
				t.Fatal(err)
			}
			n += got
		}
	}); allocs != 0 {
		t.Errorf("%v allocations", allocs)
	}
}

func TestAFullSendBufferIsWaitedForOnceForAllPeers(t *testing.T) {
	j, _ := pair(t)
	// A wire of 8 bits a second keeps what is sent in the sender's buffer.
	j.Command("tc", "qdisc", "add", "dev", "eth2", "root", "tbf", "rate", "8bit", "burst", "1600", "limit", "10000000")
	cfg := Config{In: "eth2", Out: "eth2", TTL: 1, WriteBuffer: 16384}
	var addrs []string
	for i := range MaxPeers {
		// Their neighbours' addresses are known, or they would be asked for first.
		j.IP(fmt.Sprintf("neighbour add 192.0.2.%d lladdr 02:00:00:00:00:01 dev eth2", 100+i))
		addrs = append(addrs, fmt.Sprintf("192.0.2.%d:6400", 100+i))
	}
	p := openPeers(t, j, cfg, addrs...)
	for n := 0; ; n++ {
		began := time.Now()
		err := p.Write(full)
		if took := time.Since(began); took > MaxPeers*patience/2 {
			t.Fatalf("waited %v", took)
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
		if err != nil || n == 1000 {
			t.Fatalf("after %d datagrams to each: %v", n, err)
		}
	}
}

// The C daemon's "reuseaddr": 0 is about others, not about this node's own sockets.
func TestPeersAreSpokenToBesideAGroupThatIsNotShared(t *testing.T) {
	n := nstest.New(t)
	nstest.Veth(n, "eth2", nstest.New(t), "eth2")
	n.Address("eth2", "192.0.2.4/24")
	cfg := Config{Group: netip.MustParseAddrPort("239.1.2.3:6400"), In: "eth2", Out: "eth2", TTL: 1, NoReuse: true}
	if p, err := tryPeers(n, cfg, "192.0.2.5:6400"); err != nil {
		t.Error(err)
	} else {
		p.Close()
	}
}

func TestPeersAreAwayWhileEitherInterfaceIsDown(t *testing.T) {
	for _, cfg := range []Config{
		{In: "eth3", Out: "eth2", TTL: 1},
		{Group: group4, In: "eth3", Out: "eth2", TTL: 1},
		{Group: group6, In: "eth3", Out: "eth2", TTL: 1},
	} {
		for _, dev := range []string{"eth3", "eth2"} {
			t.Run(fmt.Sprintf("%v, %s", cfg.Group, dev), func(t *testing.T) {
				j, _ := twoLinks(t)
				p := openPeers(t, j, cfg, "192.0.2.5:6400")
				check := func(line string, want Change, is error) {
					t.Helper()
					j.IP(line)
					j.Do(func() {
						t.Helper()
						if change, err := p.Check(); change != want || !errors.Is(err, is) || err != nil && !strings.Contains(err.Error(), dev) {
							t.Errorf("after %q: %v: %v, want %v", line, change, err, want)
						}
					})
				}
				check("link set "+dev+" down", Away, ErrInterfaceDown)
				j.IP("link set " + dev + " up")
				nstest.Wait(t, "it to be as before", func() bool {
					change, err := Away, error(nil)
					j.Do(func() { change, err = p.Check() })
					return change == Unchanged && err == nil
				})
			})
		}
	}
}
