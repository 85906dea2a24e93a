//go:build lab

package guest

import (
	"fmt"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"joold/internal/control"
)

func TestFaultADaemonThatIsStartedTooEarlyWaits(t *testing.T) {
	l := New(t, Config{NoInstance: true})

	t.Run("for the module, then for the instance", func(t *testing.T) {
		l.Part(t, Config{})
		l.script(local{}, "ip netns exec J jool instance flush; ip netns exec K jool instance flush; modprobe -r jool")
		t.Cleanup(func() { l.script(local{}, "modprobe jool") })
		var daemons []*Process
		for _, n := range []*Node{l.J, l.K} {
			daemons = append(daemons, n.Start(Ours.command(n, netip.MustParseAddr(SyncGroup6))...))
		}
		for _, p := range daemons {
			l.WaitsFor(p, "modprobe jool")
		}
		l.script(local{}, "modprobe jool")
		for _, p := range daemons {
			l.WaitsFor(p, "instance")
		}
		l.J.AddInstance()
		l.K.AddInstance()
		l.Trade(&Fresh{lab: l})
		l.Lives(daemons...)
	})

	t.Run("for the interface, then for its address", func(t *testing.T) {
		l.Part(t, Config{})
		k := l.K.StartDaemon(Ours, SyncGroup6)
		l.J.Unplug()
		t.Cleanup(l.J.Plug)
		j := l.J.Start(Ours.command(l.J, netip.MustParseAddr(SyncGroup6))...)
		l.WaitsFor(j, "eth2")
		l.J.PlugBare()
		l.WaitsFor(j, "address")
		l.J.Plug()
		l.Trade(&Fresh{lab: l})
		l.Lives(j, k)
	})

	t.Run("for the address that stands for the interface", func(t *testing.T) {
		l.Part(t, Config{})
		k := l.K.StartDaemon(Ours, SyncGroup4)
		command := Ours.command(l.J, netip.MustParseAddr(SyncGroup4))
		l.J.Unplug()
		t.Cleanup(l.J.Plug)
		l.J.PlugBare()
		j := l.J.Start(command...)
		l.WaitsFor(j, "10.64.64.4")
		l.J.Plug()
		l.Trade(&Fresh{lab: l})
		l.Lives(j, k)
	})
}

func TestFaultJoolGoesAndReturnsUnderTheDaemon(t *testing.T) {
	const onceAdded = 250 // sessions that the daemon gives the kernel at once, at the most
	l := New(t, Config{NoInstance: true})
	begin := func(t *testing.T, c Config) (*Fresh, []*Process) {
		l.Part(t, c)
		daemons := []*Process{l.J.StartDaemon(Ours, SyncGroup6), l.K.StartDaemon(Ours, SyncGroup6)}
		f := &Fresh{lab: l}
		f.Make(50, 500)
		l.WaitCopied(l.J, l.K, 50)
		time.Sleep(2 * time.Second) // an instance that goes at once is not looked for at once
		return f, daemons
	}
	// returned wants new flows to reach K soon after the return of what was gone, and then both nodes.
	returned := func(t *testing.T, f *Fresh, generous time.Duration, daemons []*Process) {
		took := f.UntilOneIsIn(l.K)
		t.Logf("in service %v after the instance's return", took.Round(10*time.Millisecond))
		if took > generous {
			t.Errorf("that is more than %v", generous)
		}
		l.Trade(f)
		l.Lives(daemons...)
	}
	const afterAbsence = 10 * time.Second // the promise is 2 s

	t.Run("the module, reloaded at once", func(t *testing.T) {
		f, daemons := begin(t, Config{})
		shown := l.J.Start("joold", "follow")
		l.Wait("joold follow shows a session", func() (string, bool) {
			f.Make(1, 500)
			return shown.Output(), strings.Contains(shown.Output(), ",")
		})
		l.script(local{}, "modprobe -r jool; modprobe jool")
		l.Wait("joold follow says that there is nothing more to follow", func() (string, bool) {
			ended, _ := shown.Ended()
			return shown.Output(), ended && strings.Contains(shown.Output(), "removed or reloaded")
		})
		l.J.AddInstance()
		l.K.AddInstance()
		returned(t, f, afterAbsence, daemons)
	})

	t.Run("the instance, after a while", func(t *testing.T) {
		f, daemons := begin(t, Config{})
		l.J.RemoveInstance()
		l.K.RemoveInstance()
		for _, p := range daemons {
			l.WaitsFor(p, "instance")
		}
		l.J.AddInstance()
		l.K.AddInstance()
		returned(t, f, afterAbsence, daemons)
	})

	t.Run("as an instance that the sessions from before do not fit", func(t *testing.T) {
		f, daemons := begin(t, Config{})
		l.J.GiveAddressesTo(l.K)
		wait := f.Begin(4000, 1000)
		time.Sleep(1500 * time.Millisecond)
		daemons[0].Signal(syscall.SIGSTOP) // so that sessions from before wait for it
		l.Pool6, l.Pool4 = "2001:db8:64::/64", []string{"udp 192.0.2.2 61001-65535"}
		l.J.RemoveInstance()
		l.J.AddInstance()
		daemons[0].Signal(syscall.SIGCONT)
		wait()
		time.Sleep(2 * time.Second) // for what K still sends
		// The daemon may have been stopped when it had just looked at the instance, with what it then gave it in its hands.
		inHand := l.Misfits(l.J)
		if inHand > onceAdded {
			t.Errorf("%d sessions that do not fit J's new instance were put there", inHand)
		}

		l.K.RemoveInstance()
		l.K.AddInstance()
		l.N6.Run("ip", "route", "replace", l.Pool6, "via", "2001:db8::1")
		l.K.GiveAddressesTo(l.J)
		returned(t, f, limit, daemons) // within a poll: no absence was noticed
		if wrong := l.Misfits(l.J) + l.Misfits(l.K); wrong > inHand {
			t.Errorf("%d sessions that fit neither new instance were put there", wrong)
		}
	})
}

func TestFaultTheSyncInterfaceGoesAndReturns(t *testing.T) {
	l := New(t, Config{NoInstance: true})
	down := func() { l.J.Run("ip", "link", "set", "eth2", "down") }
	up := func() { l.J.Run("ip", "link", "set", "eth2", "up") }
	bare := func() { l.J.Run("ip", "address", "flush", "dev", "eth2") }
	others := func() { l.J.Sh("ip address add 2001:db8:ff08::44/96 dev eth2; ip address add 10.64.64.44/24 dev eth2") }
	for _, group := range []string{SyncGroup6, SyncGroup4} {
		t.Run(group, func(t *testing.T) {
			l.Part(t, Config{})
			t.Cleanup(l.J.Plug)
			byName := Ours.With("--net.dev.in", "eth2", "--net.dev.out", "eth2")
			j, k := l.J.StartDaemon(byName, group), l.K.StartDaemon(Ours, group)
			f := &Fresh{lab: l}
			l.Trade(f)
			for _, fault := range []struct {
				name       string
				away, back func()
			}{
				{"down and up", down, up},
				{"deleted and made again", l.J.Unplug, l.J.Plug},
				{"without addresses for a while", bare, l.J.Plug},
				{"given other addresses", bare, others},
			} {
				t.Logf("the interface is %s", fault.name)
				fault.away()
				old := l.J.Sessions()
				f.Make(200, 500)
				time.Sleep(time.Second) // for the kernel to announce them
				fault.back()
				l.waitCopied(l.J, l.K, old, 200)
				l.Trade(f)
				l.Lives(j, k)
			}
		})
	}
}

func TestFaultAnOverrunOfTheNetlinkSocketIsMadeUpFor(t *testing.T) {
	l := New(t, Config{})
	const limit = "net.core.rmem_max"
	before := strings.TrimSpace(l.script(local{}, "sysctl -n "+limit))
	l.script(local{}, "sysctl -qw "+limit+"=2304") // the least that Linux takes
	t.Cleanup(func() { l.script(local{}, "sysctl -qw "+limit+"="+before) })
	// So that it is not in the kernel's queue that there is no room.
	l.J.Sh("jool global update ss-flush-deadline 20; jool global update ss-capacity 16384")
	j, k := l.J.StartDaemon(Ours.Small(), SyncGroup6), l.K.StartDaemon(Ours, SyncGroup6)
	f := &Fresh{lab: l}
	f.Make(50, 500)
	l.WaitCopied(l.J, l.K, 50)

	j.Signal(syscall.SIGSTOP) // until the kernel finds no room
	f.Make(2000, 500)
	j.Signal(syscall.SIGCONT)
	l.Wait("the daemon notices", func() (string, bool) {
		f.Make(1, 1)
		s := l.J.Status(l.Instance)
		return fmt.Sprintf("%+v", s.Kernel), s.Kernel.Overruns > 0
	})
	l.WaitCopied(l.J, l.K, 2050) // not the other way: J's socket for the group is as small
	l.Lives(j, k)
}

func TestFaultADaemonThatWasAwayUnderLoadMakesUpForIt(t *testing.T) {
	l := New(t, Config{NoInstance: true})
	for _, fault := range []struct {
		name string
		// happens to J's daemon, and returns its successor.
		happens func(*testing.T, *Process) *Process
	}{
		{"stopped for 5 s", func(t *testing.T, p *Process) *Process {
			p.Signal(syscall.SIGSTOP)
			time.Sleep(5 * time.Second)
			p.Signal(syscall.SIGCONT)
			return p
		}},
		{"killed and started again", func(t *testing.T, p *Process) *Process {
			p.Kill()
			time.Sleep(time.Second)
			return l.J.StartDaemon(Ours, SyncGroup6)
		}},
		{"upgraded in place", func(t *testing.T, p *Process) *Process {
			l.J.Run("cp", "/usr/bin/joold", "/run/joold.new")
			if err := p.Stop(); err != nil {
				t.Errorf("it ends with %v", err)
			}
			next := Ours
			next.command = func(n *Node, group netip.Addr) []string {
				return append([]string{"/run/joold.new"}, Ours.command(n, group)[1:]...)
			}
			return l.J.StartDaemon(next, SyncGroup6)
		}},
	} {
		t.Run(fault.name, func(t *testing.T) {
			l.Part(t, Config{})
			j, k := l.J.StartDaemon(Ours, SyncGroup6), l.K.StartDaemon(Ours, SyncGroup6)
			f := &Fresh{lab: l}
			const flows = 20_000
			wait := f.Begin(flows, 2500)
			time.Sleep(time.Second)
			j = fault.happens(t, j)
			wait()
			l.WaitCopied(l.J, l.K, flows)
			l.Lives(j, k)
		})
	}
}

func TestFaultSendsThatAreRefusedAreMadeUpFor(t *testing.T) {
	l := New(t, Config{})
	j, k := l.J.StartDaemon(Ours, SyncGroup6), l.K.StartDaemon(Ours, SyncGroup6)
	f := &Fresh{lab: l}
	f.Make(50, 500)
	l.WaitCopied(l.J, l.K, 50)
	made := 50
	for _, refusal := range []struct{ name, begin, end, errno string }{
		{
			"a filter",
			"nft 'add table inet refuse; add chain inet refuse output { type filter hook output priority 0; }; add rule inet refuse output oifname eth2 udp dport " + syncPort + " drop'",
			"nft delete table inet refuse", "EPERM",
		},
		{"the interface, which is down", "ip link set eth2 down", "ip link set eth2 up", ""},
	} {
		errors := l.J.Status(l.Instance).Net.SendErrors[refusal.errno]
		l.J.Sh(refusal.begin)
		f.Make(2000, 1000)
		made += 2000
		before := j.Busy()
		time.Sleep(5 * time.Second)
		if busy := j.Busy() - before; busy > 2*time.Second {
			t.Errorf("refused by %s, without traffic, the daemon was busy for %v of 5 s", refusal.name, busy)
		}
		if now := l.J.Status(l.Instance).Net.SendErrors; refusal.errno != "" && now[refusal.errno] <= errors {
			t.Errorf("what %s refused was not counted: %v", refusal.name, now)
		}
		l.J.Sh(refusal.end)
		ended := time.Now()
		l.WaitCopied(l.J, l.K, made)
		t.Logf("what %s refused is in K %v after", refusal.name, time.Since(ended).Round(100*time.Millisecond))
	}
	l.Trade(f)
	l.Lives(j, k)
}

func TestFaultAnInstanceWhoseSettingsChangeIsFollowed(t *testing.T) {
	l := New(t, Config{NoInstance: true})
	t.Run("pool4: what was refused arrives after all", func(t *testing.T) {
		l.Part(t, Config{})
		const some, rest = "udp 192.0.2.1 61001-63000", "udp 192.0.2.1 63001-65535"
		l.K.Sh("jool pool4 flush --quick; jool pool4 add --" + some)
		j, k := l.J.StartDaemon(Ours, SyncGroup6), l.K.StartDaemon(Ours, SyncGroup6)
		f := &Fresh{lab: l}
		const flows = 3500 // so many that, wherever J begins, both parts have some
		f.Make(flows, 1000)
		l.Wait("K refuses some", func() (string, bool) {
			refused := l.K.Status(l.Instance).Net.Refused
			have := l.K.Count()
			return fmt.Sprint(have, refused), refused["pool4"] > 0 && have > 0 && have < flows
		})
		l.K.Sh("jool pool4 add --" + rest)
		l.WaitCopied(l.J, l.K, flows)
		l.Lives(j, k)
	})

	t.Run("a timeout: longer lives are cut down to it", func(t *testing.T) {
		l.Part(t, Config{})
		j, k := l.J.StartDaemon(Ours, SyncGroup6), l.K.StartDaemon(Ours, SyncGroup6)
		f := &Fresh{lab: l}
		f.Make(50, 500)
		l.WaitCopied(l.J, l.K, 50)
		const less = 2 * time.Minute
		old := l.K.Sessions()
		for _, s := range old {
			if s.Expires <= less {
				t.Fatalf("K's sessions live too short for this: %v", s)
			}
		}
		l.K.Run("jool", "global", "update", "udp-timeout", "0:02:00")
		l.Wait("a new session in K lives no longer than the new timeout", func() (string, bool) {
			f.Make(1, 1)
			l.WaitCopied(l.J, l.K, 51)
			new := 0
			for id, s := range l.K.Sessions() {
				if _, ok := old[id]; !ok && s.Expires <= less {
					new++
				}
			}
			return "none does", new > 0
		})
		l.Lives(j, k)
	})
}

func TestFaultSignals(t *testing.T) {
	l := New(t, Config{NoInstance: true})
	t.Run("SIGTERM: what waits to be sent is sent", func(t *testing.T) {
		l.Part(t, Config{})
		j := l.J.StartDaemon(Ours.With("--batch.deadline", "1s"), SyncGroup6)
		l.K.StartDaemon(Ours, SyncGroup6)
		f := &Fresh{lab: l}
		made := 0
		l.Wait("all is announced, and some of it waits", func() (string, bool) {
			f.Make(5, 100)
			made += 5
			var s control.Status
			l.Wait("all is announced", func() (string, bool) {
				s = l.J.Status(l.Instance)
				return fmt.Sprintf("%+v", s.Kernel), s.Kernel.Sessions >= uint64(made)
			})
			return fmt.Sprintf("%+v", s.Net), s.Net.SentSessions < uint64(made)
		})
		start := time.Now()
		if err := j.Stop(); err != nil {
			t.Errorf("it ends with %v", err)
		}
		took := time.Since(start)
		t.Logf("ended within %v", took.Round(time.Millisecond))
		if generous := 5 * time.Second; took > generous { // the promise is 1 s
			t.Errorf("that is more than %v", generous)
		}
		l.WaitCopied(l.J, l.K, made)
	})

	t.Run("SIGHUP: what can be changed is, what cannot is named", func(t *testing.T) {
		l.Part(t, Config{})
		const file = "/etc/joold/default.json"
		write := func(instance, level, deadline string) {
			l.J.WriteFile(file, fmt.Sprintf(`{"instance": %q, "net.mcast.addr": %q, "net.mcast.port": %s, "net.dev.in": "eth2", "net.dev.out": "eth2",
				"log.level": %q, "mod.flush-deadline": %q}`, instance, SyncGroup6, syncPort, level, deadline), "644")
		}
		write("default", "info", "50ms")
		j := l.J.Start("joold", "--config", file)
		k := l.K.StartDaemon(Ours, SyncGroup6)
		flushes := func(ms string) {
			t.Helper()
			l.Wait("ss-flush-deadline is "+ms, func() (string, bool) {
				now := l.J.Run("jool", "global", "display", "--csv")
				return now + j.Output(), strings.Contains(now, "ss-flush-deadline,"+ms+"\n")
			})
		}
		says := func(parts ...string) {
			t.Helper()
			l.Wait(fmt.Sprintf("the log has a line with %q", parts), func() (string, bool) {
				for line := range strings.Lines(j.Output()) {
					if containsAll(line, parts) {
						return line, true
					}
				}
				return j.Output(), false
			})
		}
		flushes("50")
		write("edge", "debug", "70ms")
		j.Signal(syscall.SIGHUP)
		flushes("70")
		says("WARN", "new start", "instance")
		f := &Fresh{lab: l}
		f.Make(50, 500)
		says("DEBUG")

		l.J.WriteFile(file, "{", "644")
		j.Signal(syscall.SIGHUP)
		says("ERROR", file)
		l.Trade(f)
		l.Lives(j, k)
	})
}

func containsAll(s string, parts []string) bool {
	for _, p := range parts {
		if !strings.Contains(s, p) {
			return false
		}
	}
	return true
}
