package guest

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
)

// limit is how long a state is waited for: many times what it needs, since timing decides nothing here.
const limit = 3 * time.Minute

// T is what the lab needs of a test; *testing.T is one.
type T interface {
	Helper()
	Logf(format string, args ...any)
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
	Cleanup(func())
	Failed() bool
}

// A Config says what differs from the tutorial's set-up; its zero value is the tutorial's.
type Config struct {
	Instance string   // Jool's instance name; "" is "default"
	Pool6    string   // "" is 64:ff9b::/96
	Pool4    []string // "tcp ADDRESS PORTS" and so on; nil is the tutorial's
	// NoInstance leaves the creation of instances to the scenario.
	NoInstance bool
	// MayTrace accepts stack traces that contain this in the kernel's log.
	MayTrace string
	// Live, if set, is called with each line of a ping, as it comes.
	Live func(string)
}

// complete fills in what is the tutorial's.
func (c Config) complete() Config {
	if c.Instance == "" {
		c.Instance = "default"
	}
	if c.Pool6 == "" {
		c.Pool6 = "64:ff9b::/96"
	}
	if c.Pool4 == nil {
		c.Pool4 = []string{"tcp 192.0.2.1 61001-65535", "udp 192.0.2.1 61001-65535", "icmp 192.0.2.1 0-65535"}
	}
	return c
}

// A Lab is the tutorial's network, from New until its test ends.
type Lab struct {
	t T
	Config
	J, K, N6, N4 *Node
	more         []*Node
}

// SyncGroup6 and SyncGroup4 are the groups the daemons use.
const (
	SyncGroup6 = "ff08::db8:64:64"
	SyncGroup4 = "239.64.64.64"
	syncPort   = "6464"
)

type iface struct{ name, segment string }

// A place is where a node is in the network.
type place struct {
	node      string
	ifaces    []iface
	addresses []string // interface address
	routes    []string
}

// The seed's addresses. The nodes' sync interfaces also have IPv4 ones, for IPv4 groups.
var plan = []place{
	{"J", []iface{{"eth0", "v6"}, {"eth1", "v4"}, {"eth2", "sync"}},
		[]string{"eth0 2001:db8::4/96", "eth1 192.0.2.4/24", "eth2 2001:db8:ff08::4/96", "eth2 10.64.64.4/24"}, nil},
	{"K", []iface{{"eth0", "v6"}, {"eth1", "v4"}, {"eth2", "sync"}},
		[]string{"eth0 2001:db8::5/96", "eth1 192.0.2.5/24", "eth2 2001:db8:ff08::5/96", "eth2 10.64.64.5/24"}, nil},
	{"n6", []iface{{"eth0", "v6"}}, []string{"eth0 2001:db8::8/96"}, []string{"POOL6 via 2001:db8::1"}},
	{"n4", []iface{{"eth0", "v4"}}, []string{"eth0 192.0.2.8/24"}, nil},
}

// VirtualAddresses are what clients and peers talk to; they belong to whichever node is active.
var VirtualAddresses = []string{"eth0 2001:db8::1/96", "eth1 192.0.2.1/24"}

// syslog is where a node's programs that write to it, as the C daemon does, are heard.
const syslog = "/run/syslog"

// segments are the bridges, with the VLAN that carries each over the wire.
var segments = []struct{ name, vlan string }{{"v6", "10"}, {"v4", "20"}, {"sync", "30"}}

// New builds the network on a clean slate: freshly loaded modules, nothing left of an earlier scenario. J owns the virtual addresses.
// At the test's end it ends the processes, shows their output if the test failed, and fails it if the kernel complained. The next New, or
// TestMain, takes the rest down.
func New(t T, c Config) *Lab {
	t.Helper()
	l := &Lab{t: t, Config: c.complete()}
	here := machine(local{})
	there := here
	if os.Getenv("LAB_WIRE") != "" {
		if err := addressWire(wireLocal); err != nil {
			t.Fatalf("%v", err)
		}
		there = remote{}
	}
	l.J, l.K = &Node{lab: l, Name: "J", machine: here}, &Node{lab: l, Name: "K", machine: there}
	l.N6, l.N4 = &Node{lab: l, Name: "n6", machine: here}, &Node{lab: l, Name: "n4", machine: here}

	for _, m := range l.machines() {
		l.script(m, cleanSlate)
	}
	t.Cleanup(l.end)
	l.build()
	if !c.NoInstance {
		l.J.AddInstance()
		l.K.AddInstance()
	}
	return l
}

func (l *Lab) nodes() []*Node { return append([]*Node{l.J, l.K, l.N6, l.N4}, l.more...) }

// machines are the one or two that the nodes live in.
func (l *Lab) machines() []machine {
	return slices.Compact([]machine{l.J.machine, l.K.machine})
}

// Part lends the lab to a subtest. That finds an instance of its own configuration with an empty table in J and in K, and the virtual addresses
// in J; failures are its own, and what it starts ends with it. It is for when a new lab each would take longer than the subtest itself.
func (l *Lab) Part(t T, c Config) {
	t.Helper()
	whole := l.t
	l.t, l.Config = t, c.complete()
	running := map[*Node]int{}
	for _, n := range l.nodes() {
		running[n] = len(n.processes)
	}
	t.Cleanup(func() {
		for _, n := range l.nodes() {
			n.stopFrom(running[n])
		}
		if t.Failed() {
			for _, n := range l.nodes() {
				n.show()
			}
		}
		for _, n := range l.nodes() {
			n.processes = n.processes[:running[n]]
		}
		l.t = whole
	})

	for _, n := range []*Node{l.J, l.K} {
		n.Run("jool", "instance", "flush")
		n.AddInstance()
	}
	if l.K.Owns() {
		l.K.GiveAddressesTo(l.J)
	}
	for _, r := range plan[2].routes { // n6's
		l.N6.Sh("ip route replace " + strings.Replace(r, "POOL6", l.Pool6, 1))
	}
}

// script runs a shell script in a machine's own namespaces.
func (l *Lab) script(m machine, script string) string {
	l.t.Helper()
	out, errs, err := output(m, nil, "sh", "-euc", script)
	if err != nil {
		l.t.Fatalf("%v: %s%s\nin this script:\n%s", err, out, errs, script)
	}
	return out
}

// cleanSlate removes what an earlier scenario left, also one that did not end well, and loads the modules anew.
const cleanSlate = `
	for ns in $(ip netns list | cut -d' ' -f1); do
		pids=$(ip netns pids $ns)
		[ -z "$pids" ] || kill -9 $pids
		ip netns exec $ns jool instance flush 2>/dev/null || true
		for file in /run/mnt-$ns /run/uts-$ns; do
			[ ! -e $file ] || { umount $file; rm $file; }
		done
		ip netns del $ns
	done
	i=0
	until modprobe -r jool; do i=$((i + 1)); [ $i -lt 100 ]; sleep 0.2; done
	modprobe jool
	sysctl -qw net.core.netdev_max_backlog=100000 # what all the cables of a guest share: a burst on one must lose nothing on another
	dmesg -c >/dev/null`

func (l *Lab) end() {
	l.t.Helper()
	for _, n := range l.nodes() {
		n.stopFrom(0)
	}
	for _, m := range l.machines() {
		for _, trace := range traces(l.script(m, "dmesg")) {
			if l.MayTrace == "" || !strings.Contains(trace, l.MayTrace) {
				l.t.Errorf("the kernel complained:\n%s", trace)
			}
		}
	}
	if l.t.Failed() {
		for _, n := range l.nodes() {
			n.show()
		}
	}
}

// ofJool is what Jool has written in a kernel's log. An emulated machine's clock has words of its own.
func ofJool(log string) string {
	var b strings.Builder
	for line := range strings.Lines(log) {
		if strings.Contains(line, "Jool") {
			b.WriteString(line)
		}
	}
	return b.String()
}

func traces(log string) []string {
	var traces []string
	lines := strings.Split(log, "\n")
	for i, line := range lines {
		for _, sign := range []string{"WARNING:", "BUG:", "Oops:", "general protection fault", "kernel BUG at"} {
			if strings.Contains(line, sign) {
				traces = append(traces, strings.Join(lines[i:min(i+25, len(lines))], "\n"))
				break
			}
		}
	}
	return traces
}

func (l *Lab) build() {
	l.t.Helper()
	var s strings.Builder
	s.WriteString("ip netns add net\n")
	for _, seg := range segments {
		fmt.Fprintf(&s, "ip -n net link add %s type bridge mcast_snooping 0\nip -n net link set %[1]s up\n", seg.name)
	}
	l.script(local{}, s.String())

	for i, n := range l.nodes() {
		l.settle(n, plan[i])
	}
	for _, n := range []*Node{l.J, l.K} {
		n.Sh(`sysctl -qw net.ipv4.conf.all.forwarding=1 net.ipv6.conf.all.forwarding=1
			sysctl -qw net.ipv6.conf.all.keep_addr_on_down=1 # nobody configures an interface again that comes back`)
	}
	for _, a := range VirtualAddresses {
		dev, addr, _ := strings.Cut(a, " ")
		l.J.Run("ip", "address", "add", addr, "dev", dev)
	}
}

// settle makes a node's namespaces and what is in them.
func (l *Lab) settle(n *Node, p place) {
	l.t.Helper()
	var s strings.Builder
	// The namespaces are made once and entered by every command, so that a node's processes share one /run.
	fmt.Fprintf(&s, `ip netns add %[1]s
		touch /run/mnt-%[1]s /run/uts-%[1]s
		nsenter -n/run/netns/%[1]s unshare --mount=/run/mnt-%[1]s --uts=/run/uts-%[1]s --propagation private sh -euc '
			echo %[1]s >/proc/sys/kernel/hostname
			for dir in /run /etc/keepalived /etc/joold; do mount -t tmpfs node $dir; done
			mount -t sysfs sys /sys
			sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0
			ip link set lo up'
		`, n.Name)
	for _, f := range p.ifaces {
		if n.machine == (remote{}) {
			l.overWire(&s, n.Name, f)
		} else {
			s.WriteString(n.plug(f))
		}
	}
	for _, a := range p.addresses {
		dev, addr, _ := strings.Cut(a, " ")
		fmt.Fprintf(&s, "ip -n %s address add %s dev %s\n", n.Name, addr, dev)
	}
	for _, r := range p.routes {
		fmt.Fprintf(&s, "ip -n %s route add %s\n", n.Name, strings.Replace(r, "POOL6", l.Pool6, 1))
	}
	l.script(n.machine, s.String())
	n.Start("syslogd", "-n", "-S", "-O", syslog)
}

// plug is a script that gives a node of this machine an interface on a segment.
func (n *Node) plug(f iface) string {
	return fmt.Sprintf(`ip link add %[2]s netns %[1]s type veth peer name %[1]s-%[2]s netns net
		ip -n net link set %[1]s-%[2]s master %[3]s up
		ip -n %[1]s link set %[2]s up
		`, n.Name, f.name, f.segment)
}

// overWire gives a node of the other machine an interface on a segment of this one.
func (l *Lab) overWire(s *strings.Builder, node string, f iface) {
	for _, seg := range segments {
		if seg.name == f.segment {
			l.script(local{}, fmt.Sprintf("ip link add link %s name wire%s netns net type vlan id %[2]s; ip -n net link set wire%[2]s master %[3]s up",
				wireDevice, seg.vlan, seg.name))
			fmt.Fprintf(s, "ip link add link %s name %s netns %s type vlan id %s\nip -n %[3]s link set %[2]s up\n",
				wireDevice, f.name, node, seg.vlan)
		}
	}
}

// Wait waits for a state. The function returns what it sees, for the failure's text, and whether that is it.
func (l *Lab) Wait(what string, state func() (string, bool)) {
	l.t.Helper()
	var seen string
	for deadline := time.Now().Add(limit); time.Now().Before(deadline); time.Sleep(200 * time.Millisecond) {
		var ok bool
		if seen, ok = state(); ok {
			return
		}
	}
	l.t.Fatalf("not within %v: %s; last seen: %s", limit, what, seen)
}
