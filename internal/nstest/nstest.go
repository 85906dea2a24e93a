// Package nstest gives tests network namespaces of their own: it makes them,
// joins them with veth pairs and runs code inside. It owns threads and
// namespaces, knows nothing of what is tested in them, and leaves nothing
// behind: a namespace has no name and ends with the test that made it.
//
// It needs root and iproute2. A test that cannot have them fails; it is not
// skipped, since what it would have proven is then unknown.
package nstest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// limit is how long a state may take to come about: long enough for a
// machine that is busy with other things.
const limit = 30 * time.Second

// NS is a network namespace. Its methods fail the test that New was given.
type NS struct {
	t  testing.TB
	fd int
}

// New makes a namespace with its loopback up and duplicate address detection
// off, so that no test waits seconds for an IPv6 address.
func New(t testing.TB) *NS {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("network namespaces need root: run the tests as root")
	}
	n := &NS{t: t, fd: -1}
	n.onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare the network namespace: %w", err)
		}
		var err error
		n.fd, err = openCurrent()
		return err
	}, func() {})
	t.Cleanup(func() { unix.Close(n.fd) })
	n.Sysctl("net.ipv6.conf.default.accept_dad", "0")
	n.IP("link set lo up")
	return n
}

// Do runs f inside the namespace and waits for it. A socket that f opens stays
// in the namespace wherever it is used afterwards; a goroutine or a thread
// that f starts is outside, a process is inside. f may call t.Fatal.
func (n *NS) Do(f func()) {
	n.t.Helper()
	n.onThread(func() error { return unix.Setns(n.fd, unix.CLONE_NEWNET) }, f)
}

// onThread runs enter and f on a thread that no other goroutine gets to see
// until it is back where it came from; if it cannot go back, the goroutine ends
// with the thread locked and the runtime ends the thread.
func (n *NS) onThread(enter func() error, f func()) {
	n.t.Helper()
	var err error
	returned := false
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		var home int
		if home, err = openCurrent(); err != nil {
			return
		}
		defer func() {
			if unix.Setns(home, unix.CLONE_NEWNET) == nil {
				runtime.UnlockOSThread()
			}
			unix.Close(home)
		}()
		if err = enter(); err == nil {
			f()
		}
		returned = true
	}()
	<-done
	if err != nil {
		n.t.Fatalf("enter a network namespace: %v", err)
	}
	if !returned { // f called t.FailNow, which ended its goroutine alone
		n.t.FailNow()
	}
}

// openCurrent opens the calling thread's namespace.
func openCurrent() (int, error) {
	return unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
}

// Command runs a program inside the namespace and returns what it printed.
func (n *NS) Command(name string, args ...string) string {
	n.t.Helper()
	var out []byte
	n.Do(func() {
		n.t.Helper()
		var err error
		if out, err = exec.Command(name, args...).CombinedOutput(); err != nil {
			n.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
		}
	})
	return string(out)
}

// IP runs ip(8) with the words of line: n.IP("link set eth2 mtu 1280").
func (n *NS) IP(line string) string {
	n.t.Helper()
	return n.Command("ip", strings.Fields(line)...)
}

// Address gives the interface an address, such as "2001:db8::4/96", that may be
// used at once: one of IPv6 is tentative for a moment even without duplicate
// address detection, unless it is added as not to be checked.
func (n *NS) Address(iface, prefix string) {
	n.t.Helper()
	line := "address add " + prefix + " dev " + iface
	if strings.Contains(prefix, ":") {
		line += " nodad"
	}
	n.IP(line)
}

// Sysctl sets a variable of the namespace, such as
// "net.ipv4.conf.all.forwarding". An interface's name in it must hold no dot.
func (n *NS) Sysctl(key, value string) {
	n.t.Helper()
	n.Do(func() {
		n.t.Helper()
		path := filepath.Join("/proc/sys", filepath.FromSlash(strings.ReplaceAll(key, ".", "/")))
		if err := os.WriteFile(path, []byte(value), 0); err != nil {
			n.t.Fatalf("set %s to %s: %v", key, value, err)
		}
	})
}

// Path names the namespace to programs of this test, as ip(8)'s netns argument
// for instance.
func (n *NS) Path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.fd) }

// Veth joins a and b by a virtual wire whose ends are the interfaces ifA and
// ifB, and returns when both are up and have their link-local addresses.
func Veth(a *NS, ifA string, b *NS, ifB string) {
	a.t.Helper()
	a.IP(fmt.Sprintf("link add name %s type veth peer name %s netns %s", ifA, ifB, b.Path()))
	a.IP("link set " + ifA + " up")
	b.IP("link set " + ifB + " up")
	a.waitLinkLocal(ifA)
	b.waitLinkLocal(ifB)
}

func (n *NS) waitLinkLocal(iface string) {
	n.t.Helper()
	Wait(n.t, "a link-local address on "+iface, func() bool {
		out := n.IP("-6 -oneline address show dev " + iface + " scope link -tentative")
		return strings.Contains(out, "fe80:")
	})
}

// Wait returns when ok does return true, and fails the test, naming what was
// waited for, when that takes absurdly long.
func Wait(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited %v for %s", limit, what)
		}
	}
}
