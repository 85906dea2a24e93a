//go:build lab

package nlchan_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"joold/internal/nlchan"
	"joold/internal/session"
)

// These run in the lab's guest, on the real module, as root: this process's
// network namespace is the NAT64 node, with an IPv6 host on one side and an IPv4
// one on the other.

func sh(t *testing.T, script string) string {
	t.Helper()
	var errs bytes.Buffer
	cmd := exec.Command("sh", "-euc", script)
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s%s\nin: %s", err, out, errs.String(), script)
	}
	return strings.TrimSpace(string(out))
}

const network = `
ip netns add n6; ip netns add n4
ip link add to6 type veth peer name eth0 netns n6
ip link add to4 type veth peer name eth0 netns n4
sysctl -qw net.ipv4.conf.all.forwarding=1 net.ipv6.conf.all.forwarding=1 net.ipv6.conf.default.accept_dad=0
ip addr add 2001:db8::1/96 dev to6 nodad; ip addr add 192.0.2.1/24 dev to4
ip link set to6 up; ip link set to4 up
ip -n n6 link set lo up; ip -n n6 link set eth0 up; ip -n n4 link set eth0 up
ip -n n6 addr add 2001:db8::8/96 dev eth0 nodad; ip -n n4 addr add 192.0.2.8/24 dev eth0
ip -n n6 route add 64:ff9b::/96 via 2001:db8::1
`

// instance makes the instance "edge" and connects to it.
func instance(t *testing.T) *nlchan.Conn {
	t.Helper()
	sh(t, `
		modprobe jool
		jool instance add edge --netfilter --pool6 64:ff9b::/96
		jool -i edge pool4 add --tcp 192.0.2.1 61001-65535
		jool -i edge pool4 add --udp 192.0.2.1 61001-65535
		jool -i edge pool4 add --icmp 192.0.2.1 0-65535
		jool -i edge global update ss-enabled true`)
	t.Cleanup(func() { sh(t, "jool instance remove edge || true") })
	c, err := nlchan.Dial("edge")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetReadDeadline(time.Now().Add(time.Minute))
	return c
}

// mixedAges are sessions in pool4, of all three protocols and of all ages: each
// of 4,000 masks stands for one IPv6 transport address.
func mixedAges(n int) []session.Session {
	ss := make([]session.Session, n)
	for i := range ss {
		s := session.Session{
			Src6:     [16]byte{0x20, 1, 0xd, 0xb8, 14: byte(i % 4000 >> 8), 15: byte(i % 4000)},
			Src4:     [4]byte{192, 0, 2, 1},
			Dst4:     [4]byte{198, 51, 100, byte(i)},
			Src6Port: uint16(20000 + i%4000), Src4Port: uint16(61001 + i%4000), Dst4Port: uint16(1 + i/4000),
			Proto: session.Protos[i%3],
		}
		life := session.DefaultTimeouts
		if s.Proto == session.ICMP {
			s.Dst4Port = s.Src4Port
			s.Dst4[2] = byte(100 + i/4000)
		}
		full, _ := life.Of(s.Proto, s.Timer)
		s.Expiration = full/2 + rand.Uint32N(full/2)
		ss[i] = s
	}
	session.SortOldestFirst(ss)
	return ss
}

func table(t *testing.T, c *nlchan.Conn, p session.Pool6) []session.Session {
	t.Helper()
	var all []session.Session
	for _, proto := range session.Protos {
		err := c.Sessions(t.Context(), proto, p, func(page []session.Session) error {
			all = append(all, page...)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// compareTables wants the same sessions, and lives that shrank by up to a minute.
func compareTables(t *testing.T, got, want []session.Session) {
	t.Helper()
	lives := make(map[session.Key]session.Session)
	for _, s := range got {
		lives[s.Key()] = s
	}
	bad := 0
	for _, w := range want {
		g, ok := lives[w.Key()]
		// The module counts in jiffies, and rounds up.
		if !ok || g.State != w.State || g.Timer != w.Timer || g.Expiration > w.Expiration+20 || g.Expiration+60_000 < w.Expiration {
			bad++
			if bad < 5 {
				t.Errorf("want %+v, got %+v (%t)", w, g, ok)
			}
		}
	}
	if len(got) != len(want) || bad > 0 {
		t.Errorf("%d sessions, want %d; %d are missing or unlike", len(got), len(want), bad)
	}
}

func settings(values map[nlchan.Knob]uint32) (s nlchan.Settings) {
	for k, value := range values {
		s.Set(k, value)
	}
	return s
}

func bindingOf(s session.Session) nlchan.BIBEntry {
	return nlchan.BIBEntry{
		Proto: s.Proto,
		Src6:  netip.AddrPortFrom(netip.AddrFrom16(s.Src6), s.Src6Port),
		Src4:  netip.AddrPortFrom(netip.AddrFrom4(s.Src4), s.Src4Port),
	}
}

const inUserNamespace = "NLCHAN_IN_USER_NAMESPACE"

// dialInUserNamespace is what a test of TestKernel has its own program do.
func dialInUserNamespace(t *testing.T) {
	_, err := nlchan.Dial("edge")
	if !errors.Is(err, nlchan.ErrPermission) || !strings.Contains(err.Error(), "is in a user namespace") {
		t.Errorf("got %v", err)
	}
	t.Log(err)
}

func TestKernel(t *testing.T) {
	if os.Getenv(inUserNamespace) != "" {
		dialInUserNamespace(t)
		return
	}
	if _, err := os.Stat("/etc/jool-version"); err != nil {
		t.Fatal("this is not the lab's guest: ", err)
	}
	sh(t, network)
	p := newPool6(t, "64:ff9b::/96")
	ctx := t.Context()

	t.Run("is what it says", func(t *testing.T) {
		c := instance(t)
		m := c.Module()
		t.Logf("%+v", m)
		if v := sh(t, "cat /etc/jool-version"); m.Version.String() != v {
			t.Errorf("version %s, want %s", m.Version, v)
		}
		if m.ReadBuffer != 8<<20 {
			t.Errorf("receive buffer of %d", m.ReadBuffer)
		}
		if err := c.Hello(ctx); err != nil {
			t.Error(err)
		}
		g, err := c.Globals(ctx)
		t.Logf("%+v", g)
		if err != nil || g.Pool6 != p || g.Timeouts != session.DefaultTimeouts || !g.SyncEnabled {
			t.Error(err)
		}
		pool, err := c.Pool4(ctx)
		t.Logf("%+v", pool)
		if err != nil || len(pool) != 3 || pool[2].Proto != session.ICMP {
			t.Error(err)
		}
	})

	t.Run("takes sessions in and gives them back", func(t *testing.T) {
		c := instance(t)
		for _, n := range []int{1000, 20_000} {
			want := mixedAges(n)
			start := time.Now()
			if err := c.Add(want, p); err != nil {
				t.Fatal(err)
			}
			added := time.Now()
			got := table(t, c, p)
			t.Logf("%d sessions: added in %v, dumped in %v", n, added.Sub(start), time.Since(added))
			compareTables(t, got, want)
			s, err := c.Stats(ctx)
			if err != nil || s.Sessions != uint64(n) || s.BIBs == 0 || s.BIBs > s.Sessions {
				t.Errorf("%+v, %v", s, err)
			}
			before := time.Now()
			if err := c.Update(ctx, settings(map[nlchan.Knob]uint32{nlchan.SSCapacity: 16384})); err != nil {
				t.Error(err)
			}
			t.Logf("%+v; a setting was changed in %v", s, time.Since(before))
		}
	})

	t.Run("announces what it translates", func(t *testing.T) {
		c := instance(t)
		buf := make([]byte, nlchan.MessageSize)
		ping := exec.Command("ip", "netns", "exec", "n6", "ping", "-c", "200", "-i", "0.2", "64:ff9b::192.0.2.8")
		if err := ping.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() { ping.Process.Kill(); ping.Wait() }()
		want := netip.MustParseAddr("2001:db8::8").As16()
		for range 5 {
			m, err := c.Receive(buf)
			if err != nil {
				t.Fatal(err)
			}
			ss, r := session.Decode(nil, m.Entries, p)
			if r.BadTotal() > 0 || len(ss) == 0 || r.Encoding != c.Module().Encoding || m.Version != c.Module().Version {
				t.Fatalf("%+v from %s", r, m.Version)
			}
			if s := ss[0]; s.Src6 != want || s.Dst4 != [4]byte{192, 0, 2, 8} || s.Proto != session.ICMP {
				t.Errorf("got %+v", s)
			}
		}
		t.Logf("%+v", c.Counters())
	})

	t.Run("says when no ACK comes of it", func(t *testing.T) {
		c := instance(t)
		sh(t, "jool instance remove edge")
		if err := c.Ack(); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Receive(make([]byte, nlchan.MessageSize)); !errors.Is(err, nlchan.ErrNoInstance) {
			t.Errorf("got %v", err)
		}
		if err := c.Hello(ctx); !errors.Is(err, nlchan.ErrNoInstance) {
			t.Errorf("Hello: got %v", err)
		}
		if _, err := c.Globals(ctx); !errors.Is(err, nlchan.ErrNoInstance) {
			t.Errorf("Globals: got %v", err)
		}
		if _, err := nlchan.Dial("edge"); !errors.Is(err, nlchan.ErrNoInstance) {
			t.Errorf("Dial: got %v", err)
		} else {
			t.Log(err)
		}
	})

	t.Run("advertises its table", func(t *testing.T) {
		c := instance(t)
		want := mixedAges(5000)
		if err := c.Add(want, p); err != nil {
			t.Fatal(err)
		}
		before, err := c.Stats(ctx)
		if err != nil {
			t.Fatal(err)
		}
		err = c.Advertise(ctx)
		if errors.Is(err, nlchan.ErrCannotAdvertise) && c.Module().Version.Less(4, 1, 11) {
			t.Log(err)
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Advertise(ctx); !errors.Is(err, nlchan.ErrAdvertising) {
			t.Errorf("another one: %v", err)
		}
		buf := make([]byte, nlchan.MessageSize)
		var got []session.Session
		start := time.Now()
		for len(got) < len(want) {
			m, err := c.Receive(buf)
			if err != nil {
				t.Fatalf("after %d sessions: %v", len(got), err)
			}
			got, _ = session.Decode(got, m.Entries, p)
		}
		t.Logf("%d sessions in %v, %+v", len(got), time.Since(start), c.Counters())
		compareTables(t, got, want)
		after, err := c.Stats(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if after.Dropped != 0 {
			t.Errorf("%d announcements dropped", after.Dropped)
		}
		if counts := !c.Module().Version.Less(4, 1, 12); after.CountsSync != counts || counts && after.Advertisements != before.Advertisements+1 {
			t.Errorf("%+v, then %+v", before, after)
		}
	})

	t.Run("counts what it drops, since 4.1.12", func(t *testing.T) {
		c := instance(t)
		if err := c.Update(ctx, settings(map[nlchan.Knob]uint32{nlchan.SSCapacity: 1, nlchan.SSFlushDeadline: 100_000})); err != nil {
			t.Fatal(err)
		}
		sh(t, "ip netns exec n6 ping -c 5 -i 0.2 64:ff9b::192.0.2.8")
		s, err := c.Stats(ctx)
		t.Logf("%+v, %v", s, err)
		if counts := !c.Module().Version.Less(4, 1, 12); err != nil || s.CountsSync != counts || (s.Dropped > 0) != counts {
			t.Errorf("%+v, %v", s, err)
		}
	})

	t.Run("counts what it translates", func(t *testing.T) {
		c := instance(t)
		if s, err := c.Stats(ctx); err != nil || s.Translated != 0 {
			t.Errorf("a new instance: %+v, %v", s, err)
		}
		sh(t, "ip netns exec n6 ping -c 5 -i 0.2 64:ff9b::192.0.2.8")
		if s, err := c.Stats(ctx); err != nil || s.Translated != 10 {
			t.Errorf("after 5 pings and their answers: %+v, %v", s, err)
		}
		// An update makes a copy of the instance: counters and table are the same.
		if err := c.Update(ctx, settings(map[nlchan.Knob]uint32{nlchan.SSCapacity: 1000})); err != nil {
			t.Fatal(err)
		}
		if s, err := c.Stats(ctx); err != nil || s.Translated != 10 || s.Sessions != 1 {
			t.Errorf("after an update: %+v, %v", s, err)
		}
	})

	t.Run("has its settings changed", func(t *testing.T) {
		c := instance(t)
		want, err := c.Globals(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := want.Get(nlchan.SSMaxSessionsPerPacket); ok == c.Module().Version.Less(4, 1, 11) {
			t.Errorf("%s is there: %t", nlchan.SSMaxSessionsPerPacket, ok)
		}
		for k, was := range want.All() {
			value := was + 9
			if k == nlchan.SSEnabled || k == nlchan.SSFlushASAP {
				value = 1 - was
			}
			if err := c.Update(ctx, settings(map[nlchan.Knob]uint32{k: value})); err != nil {
				t.Errorf("%s: %v", k, err)
			}
			want.Set(k, value)
			want.SyncEnabled = false
			if got, err := c.Globals(ctx); err != nil || got != want {
				t.Errorf("%s: got %+v, %v, want %+v", k, got, err, want)
			}
			t.Logf("%s: %d, then %d", k, was, value)
		}
		if err := c.Add(mixedAges(1), p); !errors.Is(err, nlchan.ErrSyncDisabled) {
			t.Errorf("Add, turned off: %v", err)
		}
		all := settings(map[nlchan.Knob]uint32{nlchan.SSEnabled: 1, nlchan.SSFlushASAP: 0, nlchan.SSFlushDeadline: 20, nlchan.SSCapacity: 16384, nlchan.SSMaxPayload: 2048})
		if err := c.Update(ctx, all); err != nil {
			t.Fatal(err)
		}
		got, err := c.Globals(ctx)
		for k, value := range all.All() {
			if is, ok := got.Get(k); !ok || is != value {
				t.Errorf("%s is %d (%t), want %d, %v", k, is, ok, value, err)
			}
		}
		if err := c.Add(mixedAges(1), p); err != nil {
			t.Errorf("Add, turned on: %v", err)
		}
	})

	t.Run("changes no setting over a mask outside of pool4, since 4.1.9", func(t *testing.T) {
		c := instance(t)
		outside := mixedAges(1)
		outside[0].Src4 = [4]byte{198, 51, 100, 77}
		if err := c.Add(outside, p); err != nil {
			t.Fatal(err)
		}
		before, err := c.Globals(ctx)
		if err != nil {
			t.Fatal(err)
		}
		err = c.Update(ctx, settings(map[nlchan.Knob]uint32{nlchan.SSCapacity: 16384}))
		t.Log(err)
		if !errors.Is(err, nlchan.ErrOutsidePool4) {
			t.Errorf("got %v", err)
		}
		if after, err := c.Globals(ctx); err != nil || after != before {
			t.Errorf("got %+v, %v, want %+v", after, err, before)
		}
	})

	t.Run("lets go of a BIB entry with its sessions", func(t *testing.T) {
		c := instance(t)
		all := mixedAges(8000) // two of each mask
		if err := c.Add(all, p); err != nil {
			t.Fatal(err)
		}
		gone := make(map[nlchan.BIBEntry]bool)
		for _, s := range all[:30] {
			e := bindingOf(s)
			err := c.RemoveBIB(ctx, e.Proto, e.Src6, e.Src4)
			if gone[e] && !errors.Is(err, nlchan.ErrNoBIB) || !gone[e] && err != nil {
				t.Fatalf("%+v: %v", e, err)
			}
			gone[e] = true
			if err := c.RemoveBIB(ctx, e.Proto, e.Src6, e.Src4); !errors.Is(err, nlchan.ErrNoBIB) {
				t.Errorf("%+v, again: %v", e, err)
			}
		}
		want := slices.DeleteFunc(all, func(s session.Session) bool { return gone[bindingOf(s)] })
		compareTables(t, table(t, c, p), want)

		sh(t, "jool -i edge bib add --tcp 2001:db8:1::1#70 192.0.2.1#65500; jool -i edge bib add --icmp 2001:db8:1::1#0 192.0.2.1#0")
		six, four := netip.MustParseAddr("2001:db8:1::1"), netip.MustParseAddr("192.0.2.1")
		if err := c.RemoveBIB(ctx, session.TCP, netip.AddrPortFrom(six, 70), netip.AddrPortFrom(four, 65500)); !errors.Is(err, nlchan.ErrStaticBIB) {
			t.Errorf("a static entry: %v", err)
		}
		if err := c.RemoveBIB(ctx, session.ICMP, netip.AddrPortFrom(six, 0), netip.AddrPortFrom(four, 0)); !errors.Is(err, nlchan.ErrStaticBIB) {
			t.Errorf("a static entry with the lowest number: %v", err)
		}
		if bib, err := c.StaticBIB(ctx, func(int) error { return nil }); err != nil || len(bib) != 2 {
			t.Errorf("%+v, %v", bib, err)
		}
	})

	t.Run("tells pool4 and static BIB entries by the page", func(t *testing.T) {
		c := instance(t)
		var script strings.Builder
		for i := range 60 {
			fmt.Fprintf(&script, "jool -i edge pool4 add --tcp --mark %d 198.51.100.%d/32 %d-%d\n", i%2, i, 1000+i, 2000+i)
		}
		for i := range 20 {
			fmt.Fprintf(&script, "jool -i edge bib add --udp 2001:db8:1::%x#%d 192.0.2.1#%d\n", i+1, 7000+i, 64000+i)
		}
		sh(t, script.String())
		if err := c.Add(mixedAges(2000), p); err != nil { // dynamic entries among them
			t.Fatal(err)
		}
		pool, err := c.Pool4(ctx)
		if err != nil || len(pool) != 63 {
			t.Fatalf("%d entries of pool4, %v", len(pool), err)
		}
		want := nlchan.Pool4Entry{
			Range: session.Range{Prefix: netip.MustParsePrefix("198.51.100.59/32"), MinPort: 1059, MaxPort: 2059},
			Mark:  1,
		}
		if !slices.Contains(pool, want) {
			t.Errorf("%+v is not in %+v", want, pool)
		}
		bib, err := c.StaticBIB(ctx, func(int) error { return nil })
		if err != nil || len(bib) != 20 {
			t.Fatalf("%d static BIB entries, %v", len(bib), err)
		}
		wantBIB := nlchan.BIBEntry{Proto: session.UDP, Src6: netip.MustParseAddrPort("[2001:db8:1::14]:7019"), Src4: netip.MustParseAddrPort("192.0.2.1:64019")}
		if !slices.Contains(bib, wantBIB) {
			t.Errorf("%+v is not in %+v", wantBIB, bib)
		}
	})

	t.Run("has sessions under a pool6 of another length", func(t *testing.T) {
		sh(t, "modprobe jool; jool instance add other --netfilter --pool6 2001:db8:122:344::/64; jool -i other global update ss-enabled true")
		defer sh(t, "jool instance remove other")
		c, err := nlchan.Dial("other")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		p64 := newPool6(t, "2001:db8:122:344::/64")
		if g, err := c.Globals(ctx); err != nil || g.Pool6 != p64 {
			t.Errorf("%+v, %v", g, err)
		}
		want := mixedAges(500)
		if err := c.Add(want, p64); err != nil {
			t.Fatal(err)
		}
		compareTables(t, table(t, c, p64), want)
		if pool, err := c.Pool4(ctx); err != nil || len(pool) != 0 {
			t.Errorf("%v, %v", pool, err)
		}
	})

	t.Run("leaves other instances' messages alone", func(t *testing.T) {
		edge := instance(t)
		// A namespace has one instance of each framework, and Debian's 4.1.13 is
		// built without iptables: no instance shares its namespace there.
		const second = "jool instance add edg --iptables --pool6 2001:db8:64::/96"
		if edge.Module().Version == (nlchan.Version{Major: 4, Minor: 1, Revision: 13}) {
			for add, why := range map[string]string{
				second: "Netfilter is the only available instance framework",
				strings.Replace(second, "iptables", "netfilter", 1): "already has a Netfilter Jool instance",
			} {
				if out, err := exec.Command("sh", "-c", add).CombinedOutput(); err == nil || !strings.Contains(string(out), why) {
					t.Errorf("`%s`: %v: %s", add, err, out)
				}
			}
			return
		}
		sh(t, second)
		sh(t, "jool -i edg global update ss-enabled true")
		defer sh(t, "jool instance remove edg")
		other, err := nlchan.Dial("edg")
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		ping := exec.Command("ip", "netns", "exec", "n6", "ping", "-c", "200", "-i", "0.2", "64:ff9b::192.0.2.8")
		if err := ping.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() { ping.Process.Kill(); ping.Wait() }()
		for range 3 {
			if _, err := edge.Receive(make([]byte, nlchan.MessageSize)); err != nil {
				t.Fatal(err)
			}
		}
		other.SetReadDeadline(time.Now().Add(time.Second))
		if m, err := other.Receive(make([]byte, nlchan.MessageSize)); err != os.ErrDeadlineExceeded {
			t.Errorf("the other one heard %+v, %v", m, err)
		}
		if n := other.Counters(); n.Foreign < 3 || n.ACKs != 0 {
			t.Errorf("counted %+v", n)
		}
	})

	t.Run("loses what a full buffer has no room for", func(t *testing.T) {
		instance(t)
		c, err := nlchan.Dial("edge", nlchan.ReadBuffer(4<<10))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetReadDeadline(time.Now().Add(time.Minute))
		// A message for nearly each packet, acknowledged or not.
		if err := c.Update(ctx, settings(map[nlchan.Knob]uint32{nlchan.SSFlushDeadline: 0})); err != nil {
			t.Fatal(err)
		}
		pings := "ip netns exec n6 ping -c 50 -i 0.02 64:ff9b::192.0.2.8"
		sh(t, pings)
		buf := make([]byte, nlchan.MessageSize)
		if _, err := c.Receive(buf); !errors.Is(err, nlchan.ErrOverrun) {
			t.Fatalf("got %v", err)
		}
		before := c.Counters().Drops
		sh(t, pings) // all of it is lost: the buffer has not been emptied
		drops := c.Counters().Drops
		if before < 10 || drops < before+10 {
			t.Errorf("%d drops, then %d", before, drops)
		}
		c.SetReadDeadline(time.Now().Add(time.Second))
		held := 0
		for ; err == nil; held++ {
			_, err = c.Receive(buf)
		}
		if err != os.ErrDeadlineExceeded {
			t.Error(err)
		}
		t.Logf("%d messages were held, %d and %d lost", held-1, before, drops-before)
		c.SetReadDeadline(time.Now().Add(time.Minute))
		sh(t, "ip netns exec n6 ping -c 1 64:ff9b::192.0.2.8")
		if m, err := c.Receive(buf); err != nil || len(m.Entries) == 0 {
			t.Errorf("afterwards: %+v, %v", m, err)
		}
	})

	t.Run("says that synchronization is off", func(t *testing.T) {
		c := instance(t)
		sh(t, "jool -i edge global update ss-enabled false")
		if err := c.Add(mixedAges(10), p); !errors.Is(err, nlchan.ErrSyncDisabled) {
			t.Errorf("Add: %v", err)
		}
		if err := c.Advertise(ctx); !errors.Is(err, nlchan.ErrSyncDisabled) && !errors.Is(err, nlchan.ErrCannotAdvertise) {
			t.Errorf("Advertise: %v", err)
		}
		if err := c.Ack(); err != nil {
			t.Error(err)
		}
		c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		if _, err := c.Receive(make([]byte, nlchan.MessageSize)); err != os.ErrDeadlineExceeded {
			t.Errorf("an ACK was not silent: %v", err)
		}
	})

	t.Run("refuses who has no privilege", func(t *testing.T) {
		instance(t)
		done := make(chan error)
		go func() {
			runtime.LockOSThread() // and never unlock it: the thread ends with its privilege gone
			var none [2]unix.CapUserData
			if err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0]); err != nil {
				done <- err
				return
			}
			_, err := nlchan.Dial("edge")
			done <- err
		}()
		if err := <-done; !errors.Is(err, nlchan.ErrPermission) {
			t.Errorf("got %v", err)
		} else {
			t.Log(err)
		}
	})

	t.Run("refuses a user namespace's root", func(t *testing.T) {
		instance(t)
		child := exec.Command(os.Args[0], "-test.run=^TestKernel$", "-test.v")
		child.Env = append(os.Environ(), inUserNamespace+"=1")
		child.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER,
			UidMappings: []syscall.SysProcIDMap{{Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{Size: 1}},
		}
		if out, err := child.CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		} else {
			t.Logf("%s", out)
		}
	})

	t.Run("is that of the calling thread's namespace", func(t *testing.T) {
		instance(t)
		const others = "2001:db8:64::/96"
		sh(t, "ip netns exec n6 jool instance add edge --netfilter --pool6 "+others)
		defer sh(t, "ip netns exec n6 jool instance remove edge")
		dial := func() (nlchan.Globals, error) {
			ns, err := os.Open("/run/netns/n6")
			if err != nil {
				return nlchan.Globals{}, err
			}
			defer ns.Close()
			if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
				return nlchan.Globals{}, err
			}
			c, err := nlchan.Dial("edge")
			if err != nil {
				return nlchan.Globals{}, err
			}
			defer c.Close()
			return c.Globals(ctx)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			runtime.LockOSThread() // and never unlock it: the thread ends in that namespace
			if g, err := dial(); err != nil || g.Pool6 != newPool6(t, others) {
				t.Errorf("got %+v, %v", g, err)
			}
		}()
		<-done
	})

	t.Run("comes and goes", func(t *testing.T) {
		c := instance(t)
		w, err := nlchan.NewWatcher()
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		ctx, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		sh(t, "jool instance remove edge; rmmod jool jool_common")
		if _, err := nlchan.ModuleVersion(); !errors.Is(err, nlchan.ErrNoModule) {
			t.Errorf("ModuleVersion: %v", err)
		}
		if _, err := nlchan.Dial("edge"); !errors.Is(err, nlchan.ErrNoModule) {
			t.Errorf("Dial: %v", err)
		} else {
			t.Log(err)
		}
		sh(t, "modprobe jool")
		var events []nlchan.Event
		w.Run(ctx, func(e nlchan.Event) {
			if events = append(events, e); len(events) == 2 {
				cancel()
			}
		})
		if !slices.Equal(events, []nlchan.Event{nlchan.ModuleRemoved, nlchan.ModuleLoaded}) {
			t.Errorf("got %v", events)
		}
		if err := c.Ack(); err != nil {
			t.Error(err)
		}
		if _, err := c.Receive(make([]byte, nlchan.MessageSize)); !errors.Is(err, nlchan.ErrStale) {
			t.Errorf("Receive on the old connection: %v", err)
		}
		if err := c.Add(mixedAges(1), p); !errors.Is(err, nlchan.ErrStale) {
			t.Errorf("Add on the old connection: %v", err)
		}
		if again := instance(t); again.Module().Family == c.Module().Family {
			t.Errorf("the family's id did not change: %+v, %+v", c.Module(), again.Module())
		}
	})
}
