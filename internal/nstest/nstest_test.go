package nstest

import (
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

func TestNamespacesSeeOnlyTheirOwnInterfaces(t *testing.T) {
	a, b := New(t), New(t)
	Veth(a, "eth2", b, "eth5")
	for _, c := range []struct {
		ns         *NS
		has, lacks string
	}{{a, "eth2", "eth5"}, {b, "eth5", "eth2"}} {
		c.ns.Do(func() {
			if _, err := net.InterfaceByName(c.has); err != nil {
				t.Errorf("%s: %v", c.has, err)
			}
			if _, err := net.InterfaceByName(c.lacks); err == nil {
				t.Errorf("%s is seen from the other side", c.lacks)
			}
		})
	}
	if _, err := net.InterfaceByName("eth5"); err == nil {
		t.Error("a test's interface is seen outside its namespace")
	}
}

func TestTheWireCarriesPacketsAtOnce(t *testing.T) {
	a, b := New(t), New(t)
	Veth(a, "eth2", b, "eth2")
	a.Address("eth2", "2001:db8::1/64")
	b.Address("eth2", "2001:db8::2/64")
	var listener net.PacketConn
	b.Do(func() {
		var err error
		if listener, err = net.ListenPacket("udp6", "[2001:db8::2]:6400"); err != nil {
			t.Fatal(err)
		}
	})
	defer listener.Close()
	a.Do(func() {
		conn, err := net.Dial("udp6", "[2001:db8::2]:6400")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := conn.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
	})
	buf := make([]byte, 16)
	n, from, err := listener.ReadFrom(buf)
	if err != nil || string(buf[:n]) != "hello" {
		t.Fatalf("got %q from %v: %v", buf[:n], from, err)
	}
}

func TestProgramsAndSysctlsAreInsideTheNamespace(t *testing.T) {
	n := New(t)
	before, err := os.ReadFile("/proc/sys/net/ipv4/ip_default_ttl")
	if err != nil {
		t.Fatal(err)
	}
	n.Sysctl("net.ipv4.ip_default_ttl", "33")
	if got := n.Command("cat", "/proc/sys/net/ipv4/ip_default_ttl"); strings.TrimSpace(got) != "33" {
		t.Errorf("inside: %q, want 33", got)
	}
	after, err := os.ReadFile("/proc/sys/net/ipv4/ip_default_ttl")
	if err != nil || string(after) != string(before) {
		t.Errorf("outside: %q, was %q (%v)", after, before, err)
	}
}

// failNow is a testing.TB whose end a test can watch.
type failNow struct {
	testing.TB
	failed bool
}

func (f *failNow) Helper()               {}
func (f *failNow) Fatalf(string, ...any) { f.FailNow() }
func (f *failNow) FailNow() {
	f.failed = true
	panic(f)
}

func TestAFailureInsideEndsTheTestOutside(t *testing.T) {
	n := New(t)
	probe := &failNow{TB: t}
	inner := &NS{t: probe, fd: n.fd}
	reached := false
	func() {
		defer func() { _ = recover() }()
		// Goexit is how t.FailNow leaves the goroutine that called it.
		inner.Do(func() { runtime.Goexit() })
		reached = true
	}()
	if !probe.failed || reached {
		t.Errorf("failed %v, went on %v", probe.failed, reached)
	}
}

func TestTheThreadComesBackFromTheNamespace(t *testing.T) {
	runtime.LockOSThread() // leaves the goroutines of Do the other threads
	defer runtime.UnlockOSThread()
	home, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	n := New(t)
	for range 10 {
		n.Do(func() {})
	}
	tasks, err := filepath.Glob("/proc/self/task/*/ns/net")
	if err != nil || len(tasks) == 0 {
		t.Fatalf("threads: %v (%v)", tasks, err)
	}
	for _, task := range tasks {
		if ns, err := os.Readlink(task); err == nil && ns != home {
			t.Errorf("%s is %s, want %s", task, ns, home)
		}
	}
}
