package mcast

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"joold/internal/nstest"
)

func newWatcher(t *testing.T, n *nstest.NS, cfg Config) (w *Watcher) {
	t.Helper()
	n.Do(func() {
		t.Helper()
		var err error
		if w, err = NewWatcher(cfg); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() { w.Close() })
	return w
}

func (w *watched) expect(t *testing.T, what string) {
	t.Helper()
	select {
	case <-w.calls:
	case <-time.After(limit):
		t.Fatalf("%s was not heard", what)
	}
}

func TestTheWatchHearsEachChange(t *testing.T) {
	j, k := pair(t)
	chosen := Config{Group: group4, TTL: 1}
	for _, c := range []struct {
		cfg  Config
		line string
	}{
		{byEth2, "link set eth2 mtu 1400"},
		{byEth2, "link set eth2 down"},
		{byEth2, "link set eth2 up"},
		{byEth2, "address delete 192.0.2.4/24 dev eth2"},
		{byEth2, "address add 192.0.2.4/24 dev eth2"},
		{byEth2, "address add 2001:db8:ff08::44/96 dev eth2 nodad"},
		{byEth2, "address delete 2001:db8:ff08::44/96 dev eth2"},
		{byEth2, "link set eth2 name eth9"},
		{byEth2, "link set eth9 name eth2"},
		{chosen, "route add 239.0.0.0/8 dev eth2"},
		{chosen, "-6 route add ff08::/16 dev eth2 table local"},
		{Config{Group: group4, In: "eth2", TTL: 1}, "route delete 239.0.0.0/8 dev eth2"},
		{byEth2, "link delete eth2"},
		{byEth2, "link add name eth2 type veth peer name eth2 netns " + k.Path()},
		{byEth2, "link set eth2 netns " + k.Path() + " name eth7"},
	} {
		heard := watch(t, j, c.cfg) // a new one hears no echo of what went before
		j.IP(c.line)
		heard.expect(t, c.line)
	}
}

func TestRoutesWakeNobodyWhoNamedTheInterfaces(t *testing.T) {
	j, _ := pair(t)
	for _, cfg := range []Config{byEth24, {Group: zoned6, TTL: 1}} {
		w := newWatcher(t, j, cfg)
		j.IP("route add 198.51.100.0/24 dev eth2")
		j.IP("route delete 198.51.100.0/24 dev eth2")
		var err error
		if cerr := w.raw.Control(func(fd uintptr) {
			_, _, err = unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_DONTWAIT)
		}); cerr != nil || !errors.Is(err, unix.EAGAIN) {
			t.Errorf("%v: something was heard of a route: %v, %v", cfg.Group, err, cerr)
		}
	}
}

func TestAFlockOfChangesIsAFewCallsAndTheLastIsSeen(t *testing.T) {
	j, _ := pair(t)
	w := newWatcher(t, j, byEth24)
	calls, seen := 0, make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	began := time.Now()
	ended := make(chan error)
	go func() {
		ended <- w.Run(ctx, func() {
			calls++
			if strings.Contains(j.IP("-oneline address show dev eth2"), "192.0.2.199/") {
				close(seen)
				cancel()
			}
		})
	}()
	for i := 100; i < 200; i++ {
		j.IP(fmt.Sprintf("address add 192.0.2.%d/24 dev eth2", i))
	}
	select {
	case <-seen:
	case <-time.After(limit):
		t.Fatal("the last change was not followed by a call")
	}
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("ended with %v", err)
	}
	if most := int(time.Since(began)/(100*time.Millisecond)) + 1; calls > most {
		t.Errorf("%d calls, want %d at most", calls, most)
	}
}

func TestAnOverrunIsAChange(t *testing.T) {
	j, _ := pair(t)
	w := newWatcher(t, j, byEth24)
	if err := w.conn.SetReadBuffer(1); err != nil { // the least there is
		t.Fatal(err)
	}
	mtu := 1400
	nstest.Wait(t, "an overrun", func() bool {
		mtu++
		j.IP(fmt.Sprintf("link set eth2 mtu %d", mtu))
		n, err := socketDrops(w.raw)
		return err == nil && n > 0
	})
	heard := run(t, w)
	heard.expect(t, "the overrun")
	nstest.Wait(t, "the buffer to be empty", func() bool {
		var err error
		if cerr := w.raw.Control(func(fd uintptr) {
			_, _, err = unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_DONTWAIT|unix.MSG_PEEK)
		}); cerr != nil {
			t.Fatal(cerr)
		}
		return errors.Is(err, unix.EAGAIN)
	})
	select { // a call about what was left in it
	case <-heard.calls:
	case <-time.After(2 * quiet):
	}
	j.IP("link set eth2 down")
	heard.expect(t, "what came after it")
}

func TestWhatIsNoMessageDoesNoHarm(t *testing.T) {
	j, _ := pair(t)
	w := newWatcher(t, j, byEth24)
	heard := run(t, w)
	var fd int
	j.Do(func() {
		var err error
		if fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE); err != nil {
			t.Fatal(err)
		}
	})
	defer unix.Close(fd)
	for _, text := range []string{"x", "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", strings.Repeat("\x00", 16), strings.Repeat("y", 60000)} {
		if err := unix.Sendto(fd, []byte(text), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Pid: w.conn.PID()}); err != nil {
			t.Fatal(err)
		}
		heard.expect(t, "a message without meaning")
	}
	j.IP("link set eth2 down")
	heard.expect(t, "the change after it")
}

func TestClosingEndsTheWatch(t *testing.T) {
	j, _ := pair(t)
	w := newWatcher(t, j, byEth24)
	ended := make(chan error)
	go func() { ended <- w.Run(t.Context(), func() {}) }()
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if err == nil {
			t.Error("ended without an error")
		}
	case <-time.After(limit):
		t.Fatal("the watch goes on")
	}
}
