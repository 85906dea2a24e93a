package guest

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"joold/internal/control"
)

// Impair has netem lose, delay or repeat what comes to the node over its sync interface. What it returns ends that and tells how many packets
// were lost. Only for nodes of this machine.
func (n *Node) Impair(netem string) (mend func() (lost int)) {
	n.lab.t.Helper()
	port := n.Name + "-" + syncPlug.name // the bridge's
	n.lab.script(n.machine, "tc -n net qdisc add dev "+port+" root netem limit 100000 "+netem)
	mended := false
	mend = func() (lost int) {
		n.lab.t.Helper()
		if mended {
			return 0
		}
		mended = true
		shown := n.lab.script(n.machine, "tc -n net -s qdisc show dev "+port+"; tc -n net qdisc del dev "+port+" root")
		dropped := regexp.MustCompile(`dropped (\d+)`).FindStringSubmatch(shown)
		if dropped == nil {
			n.lab.t.Fatalf("tc does not say how many packets were lost: %s", shown)
		}
		lost, _ = strconv.Atoi(dropped[1])
		return lost
	}
	n.lab.t.Cleanup(func() { mend() })
	return mend
}

// Carrier takes the cable out of an interface of the node, or puts it in. Only for nodes of this machine.
func (n *Node) Carrier(dev, state string) {
	n.lab.t.Helper()
	n.lab.script(n.machine, fmt.Sprintf("ip -n net link set %s-%s %s", n.Name, dev, state))
}

// SecondLink gives J and K an interface eth3 each on a segment of their own. Only where they share this machine.
func (l *Lab) SecondLink() {
	l.t.Helper()
	script := "ip -n net link add sync2 type bridge mcast_snooping 0; ip -n net link set sync2 up\n"
	for i, n := range []*Node{l.J, l.K} {
		script += n.plug(iface{"eth3", "sync2"}) + fmt.Sprintf("\nip -n %s address add 2001:db8:ff09::%d/96 dev eth3\n", n.Name, 4+i)
	}
	l.script(local{}, script)
}

// third is a node on the sync segment alone.
var third = place{"M", []iface{syncPlug}, []string{"eth2 2001:db8:ff08::6/96", "eth2 10.64.64.6/24"}, nil}

// Third adds a node with an instance that translates nothing. Only where J and K share this machine.
func (l *Lab) Third() *Node {
	l.t.Helper()
	n := &Node{lab: l, Name: third.node, machine: local{}}
	l.more = append(l.more, n)
	l.settle(n, third)
	n.AddInstance()
	return n
}

// Key gives both nodes the same new key, and returns the flags for a daemon that encrypts with it.
func (l *Lab) Key() (flags []string) {
	l.t.Helper()
	const file = "/etc/joold/keys"
	key := l.J.Run("joold", "keygen")
	for _, n := range []*Node{l.J, l.K} {
		n.WriteFile(file, key, "600")
	}
	return []string{"--net.key-file", file, "--net.encrypt"}
}

// knows is what the node's daemon says of its cluster, and of another's daemon, if that takes part.
func (n *Node) knows(other *Node) (c control.Cluster, of control.Node, ok bool) {
	n.lab.t.Helper()
	s := n.Status(n.lab.Instance)
	if s.Cluster == nil {
		return c, of, false
	}
	for _, of := range s.Cluster.Nodes {
		if of.Live && of.Name == other.Name {
			return *s.Cluster, of, true
		}
	}
	return *s.Cluster, of, false
}

// WaitVerified waits until the node's daemon is synced and says that nothing was missing of what another's had, at a time after this call.
func (n *Node) WaitVerified(other *Node) {
	n.lab.t.Helper()
	since := time.Now()
	n.lab.Wait(fmt.Sprintf("%s knows to have all that %s has", n.Name, other.Name), func() (string, bool) {
		asked := time.Now()
		c, of, ok := n.knows(other)
		seen := fmt.Sprintf("%+v", c)
		return seen, ok && c.State == "synced" && of.Missing == 0 && of.Verified != nil && asked.Add(-seconds(*of.Verified)).After(since)
	})
}

// WaitReady waits until the node's daemon knows so many sessions and can give them to others: it is synced or alone.
func (n *Node) WaitReady(sessions int) {
	n.lab.t.Helper()
	n.lab.Wait(fmt.Sprintf("%s's daemon knows %d sessions, and is synced or alone", n.Name, sessions), func() (string, bool) {
		s := n.Status(n.lab.Instance)
		return fmt.Sprintf("%+v %+v", s.Table, s.Cluster),
			s.Table.Sessions >= sessions && s.Table.Sweeps > 0 && s.Table.Pending == 0 && s.Cluster != nil && s.Cluster.State != "syncing"
	})
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// StartCluster starts the daemon on both nodes and waits until each knows to have all that the other has.
func (l *Lab) StartCluster(d Daemon) (j, k *Process) {
	l.t.Helper()
	j, k = l.J.StartDaemon(d, SyncGroup6), l.K.StartDaemon(d, SyncGroup6)
	l.J.WaitVerified(l.K)
	l.K.WaitVerified(l.J)
	return j, k
}

// complaints are what a daemon and the node's syslog have said since, but for a C daemon's line about each datagram.
func (p *Process) complaints(since string) string {
	p.node.lab.t.Helper()
	return regexp.MustCompile(`(?m)^.*Received \d+ bytes from the network\.\n`).ReplaceAllString(strings.TrimPrefix(p.said(), since), "")
}

// said is all that a daemon and the node's syslog have said so far.
func (p *Process) said() string {
	p.node.lab.t.Helper()
	return p.Output() + p.node.Run("cat", syslog)
}

// takeover is a node's table when it last came to serve.
const takeover = "/run/takeover"

// noting is contrib's /etc/keepalived for a node, which notes its table when it comes to serve. Unless checked, it does not ask joold.
func (l *Lab) noting(n *Node, checked bool) map[string]string {
	l.t.Helper()
	files := l.keepalivedFiles(n, checked)
	files["contrib.sh"] = files["backup.sh"]
	files["backup.sh"] = fmt.Sprintf(`#!/bin/sh
[ "$3" != MASTER ] || { %s dump %s >%s.new && mv %[3]s.new %[3]s; }
exec /etc/keepalived/contrib.sh "$@"
`, Tool, l.Instance, takeover)
	return files
}

// AtTakeover waits until the node comes to serve, and returns the table that it had then.
func (n *Node) AtTakeover() map[ID]Session {
	n.lab.t.Helper()
	n.lab.Wait(n.Name+" serves", func() (string, bool) {
		_, err := n.Try("test", "-e", takeover)
		return fmt.Sprint(err), err == nil
	})
	return n.parse(n.Run("cat", takeover))
}

// stays wants a node to have the virtual addresses for as long as keepalived would need to move them.
func (l *Lab) stays(n *Node, although string) {
	l.t.Helper()
	const ample = 10 * time.Second // a script's interval, its falls, the silence after which others take over
	for end := time.Now().Add(ample); time.Now().Before(end); time.Sleep(500 * time.Millisecond) {
		if !n.Owns() {
			l.t.Fatalf("%s does not have the virtual addresses any more, although %s", n.Name, although)
		}
	}
}
