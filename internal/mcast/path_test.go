package mcast

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"joold/internal/nstest"
)

// watched is a Watcher at work.
type watched struct{ calls chan struct{} }

func watch(t *testing.T, n *nstest.NS, cfg Config) *watched {
	t.Helper()
	return run(t, newWatcher(t, n, cfg))
}

func run(t *testing.T, w *Watcher) *watched {
	heard := &watched{make(chan struct{}, 1)}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() {
		ended <- w.Run(ctx, func() {
			select {
			case heard.calls <- struct{}{}:
			default:
			}
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("the watch ended with %v", err)
		}
	})
	return heard
}

func look(t testing.TB, n *nstest.NS, c *Conn) (change Change, err error) {
	t.Helper()
	n.Do(func() { change, err = c.Check() })
	return change, err
}

// await does what the daemon does: it looks when the watch says so, until it sees
// want. It returns the reason.
func (w *watched) await(t *testing.T, n *nstest.NS, c *Conn, want Change) error {
	t.Helper()
	timeout, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	for {
		change, err := look(t, n, c)
		if (err != nil) != (change == Away || change == Reopen) {
			t.Fatalf("%v: %v", change, err)
		}
		if change == want {
			return err
		}
		if change == Reopen {
			t.Fatalf("to be opened anew: %v, want %v", err, want)
		}
		select {
		case <-w.calls:
		case <-timeout.Done():
			t.Fatalf("at last %v (%v), and nothing more was heard; want %v", change, err, want)
		}
	}
}

// reopen does what Reopen asks for, as soon as it can be done.
func reopen(t *testing.T, n *nstest.NS, c *Conn, cfg Config) (next *Conn) {
	t.Helper()
	c.Close()
	var err error
	nstest.Wait(t, "the group to be opened", func() bool {
		n.Do(func() { next, err = Open(cfg) })
		if err != nil {
			t.Logf("not yet: %v", err)
		}
		return err == nil
	})
	t.Cleanup(func() { next.Close() })
	return next
}

// fault is something that happens to J's eth2, and what Check says of it.
type fault struct {
	name  string
	steps []step
}

type step struct {
	line string // for ip(8), but for those that run knows
	want Change
	is   error // the reason
}

// unseen is a step at which nobody looks, or nobody can, the Conn being closed.
const unseen Change = 255

func TestAConnOutlivesWhatHappensToItsInterfaceOrIsOpenedAnew(t *testing.T) {
	byAddress4 := Config{Group: group4, In: "192.0.2.4", Out: "192.0.2.4", TTL: 1}
	byAddress6 := Config{Group: group6, In: "2001:db8:ff08::4", Out: "2001:db8:ff08::4", TTL: 1}
	zone := Config{Group: zoned6, TTL: 1}
	chosen4, chosen6 := Config{Group: group4, TTL: 1}, Config{Group: group6, TTL: 1}
	mixed4 := Config{Group: group4, Out: "eth2", TTL: 1}

	// An interface's own steps; @ stands for its index.
	down, up := "link set eth2 down", "link set eth2 up"
	gone := "link delete eth2"
	moved, back := "link set eth2 netns AWAY", "return link set eth2 netns HOME"
	address4 := "address add 192.0.2.4/24 dev eth2"
	address6 := "address add 2001:db8:ff08::4/96 dev eth2 nodad"
	no6, with6 := "sysctl net.ipv6.conf.eth2.disable_ipv6 1", "sysctl net.ipv6.conf.eth2.disable_ipv6 0"

	for _, c := range []struct {
		cfg    Config
		faults []fault
	}{
		{byEth24, []fault{
			{"down and up", []step{{down, Away, ErrInterfaceDown}, {up, Unchanged, nil}}},
			{"another address", []step{
				{"address flush dev eth2 scope global", Away, ErrNoAddress},
				{"address add 192.0.2.77/24 dev eth2", Changed, nil}}},
			{"its address lost and given again", []step{
				{"address delete 192.0.2.4/24 dev eth2", Away, ErrNoAddress}, {address4, Unchanged, nil}}},
			{"deleted and created", []step{{gone, Reopen, ErrNoInterface}, {"create", unseen, nil}, {address4, unseen, nil}}},
			{"deleted and created unseen", []step{{gone, unseen, nil}, {"create", unseen, nil}, {address4, Reopen, errReplaced}}},
			{"deleted and created unseen under its index", []step{
				{gone, unseen, nil}, {"create index @", unseen, nil}, {address4, Reopen, errNoMember}}},
			{"moved away and back", []step{{moved, Reopen, ErrNoInterface}, {back, unseen, nil}, {up, unseen, nil}, {address4, unseen, nil}}},
			{"moved away and back unseen", []step{{moved, unseen, nil}, {back, unseen, nil}, {up, unseen, nil}, {address4, Reopen, errNoMember}}},
			{"renamed", []step{{"link set eth2 name eth9", Unchanged, nil}}},
			{"renamed while down", []step{
				{down, Away, ErrInterfaceDown}, {"link set eth2 name eth9", Away, ErrInterfaceDown}, {"link set eth9 up", Unchanged, nil}}},
			{"another MTU", []step{{"link set eth2 mtu 1280", Changed, nil}, {"link set eth2 mtu 1500", Changed, nil}}},
			{"IPv6 off", []step{{no6, Unchanged, nil}}},
		}},
		{byAddress4, []fault{
			{"down and up", []step{{down, Away, ErrInterfaceDown}, {up, Unchanged, nil}}},
			{"its address lost and given again", []step{
				{"address delete 192.0.2.4/24 dev eth2", Away, ErrNoAddress},
				{"address add 192.0.2.77/24 dev eth2", Away, ErrNoAddress},
				{address4, Unchanged, nil}}},
			{"deleted and created", []step{{gone, Reopen, ErrNoInterface}, {"create", unseen, nil}, {address4, unseen, nil}}},
			{"deleted and created unseen", []step{{gone, unseen, nil}, {"create", unseen, nil}, {address4, Reopen, errReplaced}}},
		}},
		{byEth2, []fault{
			// The global address does not survive, the link-local one comes back.
			{"down and up", []step{{down, Away, ErrInterfaceDown}, {up, Changed, nil}, {address6, Changed, nil}}},
			{"another address", []step{
				{"address flush dev eth2 scope global", Changed, nil},
				{"address add 2001:db8:ff08::77/96 dev eth2 nodad", Changed, nil}}},
			{"deleted and created", []step{{gone, Reopen, ErrNoInterface}, {"create", unseen, nil}}},
			{"deleted and created unseen", []step{{gone, unseen, nil}, {"create", Reopen, errReplaced}}},
			{"deleted and created unseen under its index", []step{{gone, unseen, nil}, {"create index @", Reopen, errNoMember}}},
			{"moved away and back unseen", []step{{moved, unseen, nil}, {back, unseen, nil}, {up, Reopen, errNoMember}}},
			{"renamed", []step{{"link set eth2 name eth9", Unchanged, nil}}},
			{"too small for IPv6", []step{{"link set eth2 mtu 1000", Reopen, errNoMember}, {"link set eth2 mtu 1500", unseen, nil}}},
			{"too small for IPv6 unseen", []step{{"link set eth2 mtu 1000", unseen, nil}, {"link set eth2 mtu 1500", Reopen, errNoMember}}},
			{"IPv6 off and on", []step{{no6, Away, ErrNoAddress}, {with6, Changed, nil}}},
		}},
		{byAddress6, []fault{
			{"down and up", []step{{down, Away, ErrInterfaceDown}, {up, Changed, nil}, {address6, Changed, nil}}},
			{"its address lost and given again", []step{
				{"address delete 2001:db8:ff08::4/96 dev eth2", Changed, nil}, {address6, Changed, nil}}},
		}},
		{zone, []fault{
			{"down and up", []step{{down, Away, ErrInterfaceDown}, {up, Unchanged, nil}}},
			{"deleted and created", []step{{gone, Reopen, ErrNoInterface}, {"create", unseen, nil}}},
			{"IPv6 off and on", []step{{no6, Away, ErrNoAddress}, {with6, Unchanged, nil}}},
			{"another MTU", []step{{"link set eth2 mtu 9000", Changed, nil}}},
		}},
		{chosen4, []fault{
			{"down and up", []step{
				{down, Away, ErrNoRoute}, {up, Away, ErrNoRoute}, {"route add 239.0.0.0/8 dev eth2", Unchanged, nil}}},
			{"the route lost and found", []step{
				{"route delete 239.0.0.0/8", Away, ErrNoRoute}, {"route add 239.0.0.0/8 dev eth2", Unchanged, nil}}},
			{"the route's MTU", []step{{"route replace 239.0.0.0/8 dev eth2 mtu 1400", Changed, nil}}},
			{"the route elsewhere", []step{
				{"route replace 239.0.0.0/8 dev lo", Reopen, errRerouted}, {"route replace 239.0.0.0/8 dev eth2", unseen, nil}}},
			{"deleted and created", []step{
				{gone, Away, ErrNoRoute}, {"create", unseen, nil}, {address4, unseen, nil}, {"route add 239.0.0.0/8 dev eth2", Reopen, errRerouted}}},
		}},
		{mixed4, []fault{
			{"the route lost and found", []step{
				{"route delete 239.0.0.0/8", Away, ErrNoRoute}, {"route add 239.0.0.0/8 dev eth2", Unchanged, nil}}},
		}},
		{chosen6, []fault{
			{"down and up", []step{{down, Away, ErrNoRoute}, {up, Changed, nil}}},
			{"deleted and created", []step{{gone, Away, ErrNoRoute}, {"create", Reopen, errRerouted}}},
		}},
	} {
		for _, f := range c.faults {
			t.Run(fmt.Sprintf("%v in %q out %q/%s", c.cfg.Group, c.cfg.In, c.cfg.Out, f.name), func(t *testing.T) {
				t.Parallel()
				j, k := pair(t)
				if c.cfg.In == "" && c.cfg.Group.Addr().Is4() {
					j.IP("route add 239.0.0.0/8 dev eth2")
				}
				f.run(t, j, k, c.cfg)
			})
		}
	}
}

// run lets f happen to J, and has both nodes hear each other when it is over.
func (f fault) run(t *testing.T, j, k *nstest.NS, cfg Config) {
	away := nstest.New(t)
	names := strings.NewReplacer("@", strings.TrimSuffix(index(t, j, "eth2"), ":"), "AWAY", away.Path(), "HOME", j.Path())
	cfgK := Config{Group: cfg.Group, In: "eth2", Out: "eth2", TTL: 1}
	cj, ck := open(t, j, cfg), open(t, k, cfgK)
	send(t, cj, "before")
	expect(t, ck, "before")

	heard, stale := watch(t, j, cfg), false
	for _, s := range f.steps {
		line := names.Replace(s.line)
		switch what, args, _ := strings.Cut(line, " "); what {
		case "sysctl":
			key, value, _ := strings.Cut(args, " ")
			j.Sysctl(key, value)
		case "return":
			away.IP(args)
		case "create":
			j.IP(fmt.Sprintf("link add name eth2 %s type veth peer name eth2 netns %s", args, k.Path()))
			j.IP("link set eth2 up")
			k.IP("link set eth2 up")
			k.Address("eth2", "192.0.2.5/24")
		default:
			j.IP(line)
		}
		if s.want == unseen {
			continue
		}
		if err := heard.await(t, j, cj, s.want); !errors.Is(err, s.is) {
			t.Errorf("after %q: %v because %v, want %v", s.line, s.want, err, s.is)
		}
		stale = s.want == Reopen
	}
	if stale {
		cj = reopen(t, j, cj, cfg)
	}
	if change, _ := look(t, k, ck); change == Reopen {
		ck = reopen(t, k, ck, cfgK)
	}
	send(t, cj, "after")
	expect(t, ck, "after")
	send(t, ck, "and back")
	expect(t, cj, "and back")
	look(t, k, ck) // whose address may be another, too
	// A link-local address alone reaches no other of IPv6.
	if cj.Local().Source.IsLinkLocalUnicast() == ck.Local().Source.IsLinkLocalUnicast() {
		answer(t, cj, ck)
	}
	if change, err := look(t, j, cj); change != Unchanged || err != nil {
		t.Errorf("in the end %v: %v", change, err)
	}
}

func index(t *testing.T, n *nstest.NS, name string) string {
	t.Helper()
	return strings.Fields(n.IP("-oneline link show dev " + name))[0]
}

func TestClosingLeavesTheGroupThoughAForkedProcessHoldsTheSocket(t *testing.T) {
	for _, cfg := range []Config{byEth24, byEth2} {
		t.Run(cfg.Group.String(), func(t *testing.T) {
			j, k := pair(t)
			at := strings.TrimSuffix(index(t, j, "eth2"), ":")
			old, held := open(t, j, cfg), -1
			if err := control(old.read, func(fd int) (err error) {
				held, err = unix.Dup(fd)
				return err
			}); err != nil {
				t.Fatal(err)
			}
			j.IP("link delete eth2")
			j.IP(fmt.Sprintf("link add name eth2 index %s type veth peer name eth2 netns %s", at, k.Path()))
			j.IP("link set eth2 up")
			k.IP("link set eth2 up")
			j.Address("eth2", "192.0.2.4/24")
			c := reopen(t, j, old, cfg)
			if err := unix.Close(held); err != nil {
				t.Fatal(err)
			}
			if change, err := look(t, j, c); change == Reopen {
				t.Errorf("the old socket took the new one's membership along: %v", err)
			}
		})
	}
}

// TestDuplicateAddressDetectionIsWaitedFor is what a real interface does, and the
// namespaces of the other tests do not.
func TestDuplicateAddressDetectionIsWaitedFor(t *testing.T) {
	j, k := pair(t)
	cfg := Config{Group: zoned6, TTL: 1}
	cj, ck := open(t, j, cfg), open(t, k, cfg)
	heard := watch(t, j, cfg)
	j.Sysctl("net.ipv6.conf.eth2.accept_dad", "1")
	j.Sysctl("net.ipv6.conf.eth2.dad_transmits", "1000")
	j.IP("link set eth2 down")
	j.IP("link set eth2 up")
	if err := heard.await(t, j, cj, Away); !errors.Is(err, ErrNoAddress) {
		t.Errorf("away because %v, want %v", err, ErrNoAddress)
	}
	if err := write(j, cj); !errors.Is(err, ErrNoAddress) || !Temporary(err) {
		t.Errorf("from an address that is being checked: %v", err)
	}
	j.IP("link set eth2 down")
	j.Sysctl("net.ipv6.conf.eth2.dad_transmits", "1")
	j.IP("link set eth2 up")
	heard.await(t, j, cj, Unchanged)
	send(t, cj, "after")
	expect(t, ck, "after")
}

func FuzzAnyTextListsMembersOrNone(f *testing.F) {
	for _, n := range []string{"igmp", "igmp6"} {
		text, err := os.ReadFile("/proc/self/net/" + n)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		for _, group := range []netip.Addr{group4.Addr(), group6.Addr()} {
			members := members6
			if group.Is4() {
				members = members4
			}
			if members(text, -1, group) {
				t.Errorf("an interface that cannot be is a member of %v", group)
			}
		}
	})
}

func TestMembersAreToldByIndexAndGroup(t *testing.T) {
	const igmp = "Idx\tDevice    : Count Querier\tGroup    Users Timer\tReporter\n" +
		"1\tlo        :     1      V3\n\t\t\t\t010000E0     1 0:00000000\t\t0\n" +
		"12\teth2      :     2      V3\n\t\t\t\t404040EF     1 0:00000000\t\t1\n\t\t\t\t010000E0     1 0:00000000\t\t0\n"
	const igmp6 = "1    lo              ff020000000000000000000000000001     1 0000000C 0\n" +
		"12   eth2            ff080000000000000000000000db80064     1 00000004 0\n" +
		"12   eth2            ff080000000000000db8000000640064     1 00000004 0\n"
	for _, c := range []struct {
		index int
		group string
		want  bool
	}{
		{12, "239.64.64.64", binary.NativeEndian.Uint16([]byte{1, 0}) == 1}, // the text is a little-endian machine's
		{1, "239.64.64.64", false}, {2, "239.64.64.64", false}, {12, "239.64.64.65", false},
		{12, "ff08::db8:0:64:64", true}, {1, "ff08::db8:0:64:64", false}, {2, "ff08::db8:0:64:64", false}, {12, "ff08::db8:0:64:65", false},
	} {
		group := netip.MustParseAddr(c.group)
		members, text := members6, igmp6
		if group.Is4() {
			members, text = members4, igmp
		}
		if got := members([]byte(text), c.index, group); got != c.want {
			t.Errorf("interface %d in %s: %v", c.index, group, got)
		}
	}
}

func TestAPulledCableIsSeenThoughNothingFails(t *testing.T) {
	j, k := pair(t)
	cfg := Config{Group: zoned6, TTL: 1}
	cj, ck := open(t, j, cfg), open(t, k, cfg)
	carrier := func() (there bool) {
		j.Do(func() { there = cj.Carrier() })
		return there
	}
	heard := watch(t, j, cfg)
	if !carrier() {
		t.Error("there is none at first")
	}
	k.IP("link set eth2 down")
	nstest.Wait(t, "the carrier is gone", func() bool { return !carrier() })
	select {
	case <-heard.calls:
	case <-time.After(limit):
		t.Error("nobody was told")
	}
	heard.await(t, j, cj, Unchanged)
	if err := write(j, cj); err != nil {
		t.Errorf("a datagram into the void: %v", err)
	}
	k.IP("link set eth2 up")
	nstest.Wait(t, "the carrier is back", carrier)
	nstest.Wait(t, "the other end is there", func() bool {
		send(t, cj, "after")
		change, err := look(t, k, ck)
		return change == Unchanged && err == nil
	})
}
