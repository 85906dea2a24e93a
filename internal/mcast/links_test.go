package mcast

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"joold/internal/nstest"
)

// twoLinks makes the nodes J and K, joined by eth2 and eth3.
func twoLinks(t testing.TB) (j, k *nstest.NS) {
	t.Helper()
	j, k = pair(t)
	secondLink(j, k)
	return j, k
}

func secondLink(j, k *nstest.NS) {
	nstest.Veth(j, "eth3", k, "eth3")
	for i, n := range []*nstest.NS{j, k} {
		n.Address("eth3", fmt.Sprintf("198.51.100.%d/24", 4+i))
		n.Address("eth3", fmt.Sprintf("2001:db8:ff09::%d/96", 4+i))
	}
}

func bothLinks(group netip.AddrPort) (cfgs []Config) {
	for _, dev := range []string{"eth2", "eth3"} {
		cfgs = append(cfgs, Config{Group: group, In: dev, Out: dev, TTL: 1})
	}
	return cfgs
}

func openLinks(t testing.TB, n *nstest.NS, cfgs []Config) (l *Links) {
	t.Helper()
	n.Do(func() {
		t.Helper()
		var err error
		if l, err = OpenLinks(cfgs); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() { l.Close() })
	return l
}

func lookAt(t testing.TB, n *nstest.NS, l *Links, want Change) {
	t.Helper()
	n.Do(func() {
		t.Helper()
		if change, err := l.Check(); change != want {
			t.Fatalf("%v: %v, want %v", change, err, want)
		}
	})
}

// within is what f says inside n, where interfaces are looked at.
func within[T any](n *nstest.NS, f func() T) (v T) {
	n.Do(func() { v = f() })
	return v
}

func TestWhatIsSentOnTwoLinksIsHeardOnBoth(t *testing.T) {
	j, k := twoLinks(t)
	for _, group := range []netip.AddrPort{group4, group6, link6} {
		t.Run(group.String(), func(t *testing.T) {
			lj, lk := openLinks(t, j, bothLinks(group)), openLinks(t, k, bothLinks(group))
			send(t, lj, "twice")
			from := []netip.AddrPort{heard(t, lk, "twice", false), heard(t, lk, "twice", false)}
			if from[0].Addr() == from[1].Addr() {
				t.Errorf("heard from %v", from)
			}
			for _, f := range from { // each by the link that it came by
				if err := lk.WriteTo([]byte("to you"), f); err != nil {
					t.Fatal(err)
				}
				back := heard(t, lj, "to you", true)
				if err := lj.WriteTo([]byte("and to you"), back); err != nil {
					t.Fatal(err)
				}
				heard(t, lk, "and to you", true)
			}
			for _, l := range within(j, lj.Local).Links {
				if l.Away != nil || !l.Carrier || l.Failed != 0 || l.In != l.Local.In || !l.Source.IsValid() || l.Port != 6400 {
					t.Errorf("a link is described as %+v", l)
				}
			}
			if n, err := waiting(lk.links[0].conn.alone.hear); !errors.Is(err, unix.EAGAIN) {
				t.Errorf("%d bytes more: %v", n, err)
			}
		})
	}
}

func TestWhatHappensToOneLinkDisturbsNoOther(t *testing.T) {
	for _, group := range []netip.AddrPort{group4, group6, link6} {
		for _, fault := range []struct {
			name   string
			lines  []string
			is     error
			mended []string
		}{
			{"down", []string{"link set eth2 down"}, ErrInterfaceDown, []string{"link set eth2 up"}},
			{"deleted", []string{"link delete eth2"}, ErrNoInterface, nil},
		} {
			t.Run(fmt.Sprintf("%v/%s", group, fault.name), func(t *testing.T) {
				j, k := twoLinks(t)
				lj, lk := openLinks(t, j, bothLinks(group)), openLinks(t, k, bothLinks(group))
				for _, line := range fault.lines {
					j.IP(line)
				}
				send(t, lj, "unseen yet")
				heard(t, lk, "unseen yet", false)
				lookAt(t, j, lj, Changed)
				send(t, lj, "by the other")
				from := heard(t, lk, "by the other", false)
				if err := lk.WriteTo([]byte("to you"), from); err != nil {
					t.Fatal(err)
				}
				heard(t, lj, "to you", true)
				state := lj.Local()
				if !errors.Is(state.Links[0].Away, fault.is) || state.Links[0].Failed == 0 || state.Links[1].Away != nil || state.Links[1].Failed != 0 {
					t.Errorf("described as %+v", state.Links)
				}
				if state.Source != state.Links[1].Source || !within(j, lj.Carrier) {
					t.Errorf("described as %+v, or there is no carrier", state)
				}
				for _, line := range fault.mended {
					j.IP(line)
				}
				if fault.mended == nil {
					nstest.Veth(j, "eth2", k, "eth2")
				}
				j.Command("ip", "address", "replace", "192.0.2.4/24", "dev", "eth2")
				k.Command("ip", "address", "replace", "192.0.2.5/24", "dev", "eth2")
				nstest.Wait(t, "both links again", func() (both bool) {
					for l, n := range map[*Links]*nstest.NS{lj: j, lk: k} {
						n.Do(func() { l.Check() })
					}
					return lj.Local().Links[0].Away == nil && lk.Local().Links[0].Away == nil
				})
				send(t, lj, "by both")
				heard(t, lk, "by both", false)
				heard(t, lk, "by both", false)
			})
		}
	}
}

func TestALinkThatIsFullIsNotWaitedForWhileAnotherIsNot(t *testing.T) {
	j, k := twoLinks(t)
	// A wire of 8 bits a second keeps what is sent in the sender's buffer.
	j.Command("tc", "qdisc", "add", "dev", "eth2", "root", "tbf", "rate", "8bit", "burst", "1600", "limit", "10000000")
	cfgs := bothLinks(group6)
	cfgs[0].WriteBuffer = 16384
	lj, lk := openLinks(t, j, cfgs), openLinks(t, k, bothLinks(group6)[1:])
	const n = 1000
	began := time.Now()
	for i := range n {
		send(t, lj, fmt.Sprint("number ", i))
		heard(t, lk, fmt.Sprint("number ", i), false)
	}
	failed := lj.Local().Links[0].Failed
	if failed < n/2 {
		t.Fatalf("%d of %d found no room", failed, n)
	}
	if took := time.Since(began); took > time.Duration(failed)*patience/2 {
		t.Errorf("it took %v", took)
	}
	j.IP("link set eth3 down")
	if err := lj.Write([]byte("x")); !errors.Is(err, os.ErrDeadlineExceeded) || !Temporary(err) {
		t.Errorf("no other: %v", err)
	}
}

func TestWhileNoLinkCanBeUsedTheyAreAway(t *testing.T) {
	j, k := twoLinks(t)
	lj := openLinks(t, j, bothLinks(group4))
	lk := openLinks(t, k, bothLinks(group4))
	j.IP("link set eth2 down")
	j.IP("link set eth3 down")
	lookAt(t, j, lj, Away)
	if err := lj.Write([]byte("x")); !errors.Is(err, ErrInterfaceDown) || !Temporary(err) {
		t.Errorf("a datagram: %v", err)
	}
	if within(j, lj.Carrier) {
		t.Error("there is a carrier")
	}
	if _, err := tryLinks(j, bothLinks(group4)); !errors.Is(err, ErrInterfaceDown) {
		t.Errorf("opened while both are down: %v", err)
	}
	j.IP("link set eth3 up")
	lookAt(t, j, lj, Changed)
	nstest.Wait(t, "the other end is there", func() bool { return within(k, lk.links[1].conn.Carrier) })
	send(t, lj, "again")
	heard(t, lk, "again", false)
}

func tryLinks(n *nstest.NS, cfgs []Config) (l *Links, err error) {
	n.Do(func() { l, err = OpenLinks(cfgs) })
	return l, err
}

func TestALinkThatIsNotThereYetIsUsedWhenItIs(t *testing.T) {
	j, k := pair(t)
	lj, lk := openLinks(t, j, bothLinks(group6)), openLinks(t, k, bothLinks(group6))
	if s := lj.Local().Links[1]; !errors.Is(s.Away, ErrNoInterface) || s.Out != "eth3" {
		t.Errorf("described as %+v", s)
	}
	secondLink(j, k)
	lookAt(t, j, lj, Changed)
	lookAt(t, k, lk, Changed)
	send(t, lj, "twice")
	heard(t, lk, "twice", false)
	heard(t, lk, "twice", false)
	lookAt(t, j, lj, Unchanged)
}

func TestTheNarrowestLinkBoundsThePayload(t *testing.T) {
	j, _ := twoLinks(t)
	j.IP("link set eth3 mtu 1400")
	l := openLinks(t, j, bothLinks(group4))
	if got := l.MaxPayload(); got != 1372 {
		t.Errorf("%d bytes, want 1372", got)
	}
	if err := l.Write(make([]byte, 1400)); !errors.Is(err, ErrTooBig) {
		t.Errorf("1400 bytes: %v", err)
	}
}

func TestClosingLinksEndsARead(t *testing.T) {
	j, _ := twoLinks(t)
	l := openLinks(t, j, bothLinks(group6))
	read := make(chan error)
	go func() {
		_, err := l.ReadBatch(NewDatagrams(1, 1))
		read <- err
	}()
	if err := l.Close(); err != nil {
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
	if err := l.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("write after close: %v", err)
	}
	if change, err := l.Check(); change != Reopen || !errors.Is(err, net.ErrClosed) {
		t.Errorf("after close %v: %v", change, err)
	}
	l.Drops()
}

func TestNothingIsAllocatedPerDatagramAndLink(t *testing.T) {
	j, k := twoLinks(t)
	lj, lk := openLinks(t, j, bothLinks(group6)), openLinks(t, k, bothLinks(group6))
	if err := lk.SetReadDeadline(time.Now().Add(10 * limit)); err != nil {
		t.Fatal(err)
	}
	ds := NewDatagrams(16, MaxDatagram)
	to := netip.AddrPortFrom(lk.links[1].conn.Local().Source, 6400)
	if allocs := testing.AllocsPerRun(100, func() {
		if err := errors.Join(lj.Write(full), lj.WriteTo(full, to)); err != nil {
			t.Fatal(err)
		}
		for n := 0; n < 3; {
			got, err := lk.ReadBatch(ds)
			if err != nil {
				t.Fatal(err)
			}
			n += got
		}
	}); allocs != 0 {
		t.Errorf("%v allocations", allocs)
	}
}

func TestALinkHasNotFailedAtWhatWasNotForIt(t *testing.T) {
	j, k := twoLinks(t)
	lj, lk := openLinks(t, j, bothLinks(group4)), openLinks(t, k, bothLinks(group4))
	on2, on3 := netip.MustParseAddrPort("192.0.2.5:6400"), netip.MustParseAddrPort("198.51.100.5:6400")
	failed := func(want2, want3 uint64) {
		t.Helper()
		if got := lj.Local().Links; got[0].Failed != want2 || got[1].Failed != want3 {
			t.Errorf("%d and %d could not be sent, want %d and %d", got[0].Failed, got[1].Failed, want2, want3)
		}
	}
	j.IP("link delete eth2")
	lookAt(t, j, lj, Changed)
	if err := lj.WriteTo([]byte("to the other"), on3); err != nil {
		t.Fatal(err)
	}
	heard(t, lk, "to the other", true)
	failed(0, 0)
	lj.WriteTo([]byte("to this one"), on2)
	failed(1, 0)
	lj.WriteTo([]byte("to wherever that is"), netip.MustParseAddrPort("203.0.113.1:6400"))
	failed(1, 0)
	send(t, lj, "to all")
	heard(t, lk, "to all", false)
	failed(2, 0)
}

// A node that was waited for, with success, has got its datagram.
func TestALinkThatWasFullForAMomentHasNotFailed(t *testing.T) {
	j, _ := twoLinks(t)
	// It has room again after some 20 ms.
	j.Command("tc", "qdisc", "add", "dev", "eth2", "root", "tbf", "rate", "4mbit", "burst", "1600", "limit", "10000000")
	cfgs := bothLinks(group6)
	cfgs[0].WriteBuffer = 16384
	l := openLinks(t, j, cfgs)
	j.IP("link delete eth3")
	lookAt(t, j, l, Changed)
	refused := uint64(0)
	for range 200 {
		if l.Write(full) != nil {
			refused++
		}
	}
	if got := l.Local().Links[0].Failed; got != refused {
		t.Errorf("%d could not be sent, of which %d were told of", got, refused)
	}
}

func TestANodeThatMovesToAnotherLinkIsSpokenToThere(t *testing.T) {
	j, k := twoLinks(t)
	lj := openLinks(t, j, bothLinks(group4))
	lk := openLinks(t, k, bothLinks(group4))
	from := netip.MustParseAddrPort("192.0.2.5:6400")
	send(t, lk, "from both")
	heard(t, lj, "from both", false)
	heard(t, lj, "from both", false)
	k.IP("address del 192.0.2.5/24 dev eth2")
	k.IP("link set eth2 down")
	k.IP("address flush dev eth3 scope global")
	k.Address("eth3", "192.0.2.5/24")
	k.IP("route add 198.51.100.0/24 dev eth3")
	lookAt(t, k, lk, Changed)
	send(t, lk, "from there")
	if got := heard(t, lj, "from there", false); got != from {
		t.Fatalf("heard from %v", got)
	}
	if err := lj.WriteTo([]byte("to you"), from); err != nil {
		t.Fatal(err)
	}
	heard(t, lk, "to you", true)
	// When it has not been heard there any more, it is not there.
	for i := range lj.links[1].guests {
		lj.links[1].guests[i].at = time.Now().Add(-guestFor)
	}
	if one := lj.links[1]; one.isGuest(from.Addr(), time.Now()) {
		t.Error("a guest that is not heard any more is one for ever")
	}
}

// An address that somebody makes up has what is for a node sent twice, and keeps
// nothing from it.
func TestWhoForgesANodesAddressOnTheOtherLinkDoesNotCutItOff(t *testing.T) {
	j, k := twoLinks(t)
	lj, lk := openLinks(t, j, bothLinks(group4)), openLinks(t, k, bothLinks(group4))
	node := netip.MustParseAddr("192.0.2.5")
	lj.links[1].sees([]Datagram{{From: netip.AddrPortFrom(node, 6400)}})
	for i := range 2 * maxGuests {
		lj.links[1].sees([]Datagram{{From: netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, 113, byte(i)}), 6400)}})
	}
	if lj.links[1].isGuest(node, time.Now()) {
		t.Error("the first of more guests than have room is one still")
	}
	lj.links[1].sees([]Datagram{{From: netip.AddrPortFrom(node, 6400)}})
	if err := lj.WriteTo([]byte("to you"), netip.AddrPortFrom(node, 6400)); err != nil {
		t.Fatal(err)
	}
	heard(t, lk, "to you", true)
}

func TestAnAddressThatALinkGetsIsOneOfItsOwn(t *testing.T) {
	j, _ := twoLinks(t)
	l := openLinks(t, j, bothLinks(group4))
	j.Address("eth3", "203.0.113.4/24")
	lookAt(t, j, l, Unchanged)
	if a := netip.MustParseAddr("203.0.113.5"); !l.links[1].has(a) || l.links[0].has(a) {
		t.Error("it is not known")
	}
}
