package guest

import (
	"fmt"
	"net/netip"
	"strings"
)

// A Daemon is a way to start a session synchronization daemon, and to make it advertise.
type Daemon struct {
	Name      string
	ours      bool
	command   func(*Node, netip.Addr) []string
	advertise func(*Node) []string
}

// C is Jool's own daemon as its version wants it started: "jool session proxy", or "joold" and its two files before that existed.
var C = Daemon{
	Name: "C",
	command: func(n *Node, group netip.Addr) []string {
		if n.Jool() == "4.1.9" {
			return append([]string{"c-joold"}, n.writeFiles(group)...)
		}
		dev := n.syncInterface(group)
		return []string{"jool", "-i", n.lab.Instance, "session", "proxy",
			"--net.mcast.port", syncPort, "--net.dev.in", dev, "--net.dev.out", dev, group.String()}
	},
	advertise: func(n *Node) []string {
		if n.Jool() == "4.1.9" {
			return []string{"jool", "-i", n.lab.Instance, "joold", "advertise"}
		}
		return []string{"jool", "-i", n.lab.Instance, "session", "advertise"}
	},
}

// CFiles is Jool's own daemon, started with its two files.
var CFiles = Daemon{
	Name: "C with files",
	command: func(n *Node, group netip.Addr) []string {
		return append([]string{"c-joold"}, n.writeFiles(group)...)
	},
	advertise: C.advertise,
}

// Ours is the daemon of this project.
var Ours = Daemon{
	Name: "ours",
	ours: true,
	command: func(n *Node, group netip.Addr) []string {
		dev := n.syncInterface(group)
		return []string{"joold", "-i", n.lab.Instance, "--net.mcast.addr", group.String(),
			"--net.mcast.port", syncPort, "--net.dev.in", dev, "--net.dev.out", dev}
	},
	advertise: func(n *Node) []string { return []string{"joold", "advertise", "-i", n.lab.Instance} },
}

// OursFiles is the daemon of this project, started with the C daemon's files.
var OursFiles = Daemon{
	Name: "ours with files",
	ours: true,
	command: func(n *Node, group netip.Addr) []string {
		return append([]string{"joold"}, n.writeFiles(group)...)
	},
	advertise: Ours.advertise,
}

// With is the daemon with more flags.
func (d Daemon) With(flags ...string) Daemon {
	command := d.command
	d.command = func(n *Node, group netip.Addr) []string { return append(command(n, group), flags...) }
	return d
}

// syncInterface names eth2 as the C daemon wants it: by name for an IPv6 group, by address for an IPv4 one.
func (n *Node) syncInterface(group netip.Addr) string {
	if group.Is6() {
		return "eth2"
	}
	return strings.TrimSpace(n.Sh("ip -4 -o address show dev eth2 | awk '{ sub(\"/.*\", \"\", $4); print $4 }'"))
}

func (n *Node) writeFiles(group netip.Addr) (names []string) {
	dev := n.syncInterface(group)
	net, mod := "/etc/joold/netsocket.json", "/etc/joold/modsocket.json"
	n.WriteFile(net, fmt.Sprintf(`{
	"multicast address": %q,
	"multicast port": %q,
	"in interface": %q,
	"out interface": %[3]q,
	"reuseaddr": 1,
	"ttl": 1
}
`, group, syncPort, dev), "644")
	n.WriteFile(mod, fmt.Sprintf("{ \"instance\": %q }\n", n.lab.Instance), "644")
	return []string{net, mod}
}

// StartDaemon starts a daemon in the node and waits until it has joined the group.
func (n *Node) StartDaemon(d Daemon, group string) *Process {
	n.lab.t.Helper()
	addr := netip.MustParseAddr(group)
	p := n.Start(d.command(n, addr)...)
	n.lab.Wait(fmt.Sprintf("the daemon (%s) on %s joins %s", d.Name, n.Name, group), func() (string, bool) {
		if ended, err := p.Ended(); ended {
			n.lab.t.Fatalf("the daemon (%s) on %s has ended: %v: %s", d.Name, n.Name, err, p.Output())
		}
		groups := n.Run("ip", "maddress", "show", "dev", "eth2")
		return groups, strings.Contains(groups, addr.String())
	})
	return p
}

// Advertise asks the node's daemon to give all its sessions to the others, and returns what that said.
func (n *Node) Advertise(d Daemon) string {
	n.lab.t.Helper()
	return n.Run(d.advertise(n)...)
}

// StartKeepalived runs keepalived with the configuration files in a directory, which become the node's /etc/keepalived.
func (n *Node) StartKeepalived(files map[string]string) *Process {
	n.lab.t.Helper()
	for name, content := range files {
		mode := "644"
		if strings.HasPrefix(content, "#!") {
			mode = "755"
		}
		n.WriteFile("/etc/keepalived/"+name, content, mode)
	}
	return n.Start("keepalived", "--dont-fork", "--vrrp", "--log-console", "--log-detail")
}

// Owns says whether the node has all the virtual addresses.
func (n *Node) Owns() bool {
	n.lab.t.Helper()
	addresses := n.Run("ip", "-o", "address", "show")
	for _, a := range VirtualAddresses {
		dev, addr, _ := strings.Cut(a, " ")
		owned := false
		for line := range strings.Lines(addresses) {
			f := strings.Fields(line)
			owned = owned || f[1] == dev && f[3] == addr
		}
		if !owned {
			return false
		}
	}
	return true
}

// WaitOwner waits until the node has all the virtual addresses.
func (n *Node) WaitOwner() {
	n.lab.t.Helper()
	n.lab.Wait(n.Name+" owns the virtual addresses", func() (string, bool) { return n.Run("ip", "-o", "address", "show"), n.Owns() })
}

// GiveAddressesTo moves the virtual addresses from one node to another, as keepalived would.
func (n *Node) GiveAddressesTo(to *Node) {
	n.lab.t.Helper()
	for _, a := range VirtualAddresses {
		dev, address, _ := strings.Cut(a, " ")
		n.Run("ip", "address", "del", address, "dev", dev)
		to.Run("ip", "address", "add", address, "dev", dev)
	}
	// The neighbours are told by keepalived otherwise.
	n.lab.N6.Run("ip", "-6", "neighbour", "flush", "all")
	n.lab.N4.Run("ip", "neighbour", "flush", "all")
}
