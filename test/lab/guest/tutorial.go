package guest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// contrib is where the guest finds what the project ships for operators.
const contrib = "/lab/contrib"

// A Death takes J out of service, and brings it back.
type Death struct {
	Name         string
	kill, revive func(*Node)
}

// Deaths are the tutorial's two ways for J to go.
var Deaths = []Death{
	{
		Name:   "Jool's instance is gone",
		kill:   (*Node).RemoveInstance,
		revive: (*Node).AddInstance,
	},
	{
		Name:   "the interfaces are down",
		kill:   func(n *Node) { n.Sh("for i in eth0 eth1 eth2; do ip link set $i down; done") },
		revive: func(n *Node) { n.Sh("for i in eth0 eth1 eth2; do ip link set $i up; done") },
	},
}

// Tutorial goes through Jool's session synchronization tutorial from its first line to its last, with the daemons j and k on J and K:
// a ping and a TCP connection from n6 to n4 outlive J's death and J's return, without losing a line. Idle sessions, if any, are in both
// nodes at J's death and must be in J after its return.
func (l *Lab) Tutorial(j, k Daemon, death Death, idle int) {
	l.t.Helper()
	l.t.Logf("J runs Jool %s and the daemon %q, K %s and %q", l.J.Jool(), j.Name, l.K.Jool(), k.Name)
	checked := j.ours && k.ours
	l.serve(l.J, j, checked)
	l.serve(l.K, k, checked)
	l.J.WaitOwner()
	l.t.Logf("J owns the virtual addresses")

	table := l.IdleTable(idle, tcpEstablished/4)
	for _, n := range []*Node{l.J, l.K} {
		n.Load(table)
		n.WaitSessions(table)
	}

	ping := l.Ping()
	l.WaitReplies(ping, 5)
	conn := l.Connect()
	l.WaitLines(conn, 20)
	mirrored := l.J.Sessions()
	for _, s := range table {
		delete(mirrored, s.ID)
	}
	l.Wait("K has the sessions of J", func() (string, bool) { return lacks(mirrored, l.K.Sessions()) })
	l.t.Logf("n6 pings n4 and holds a TCP connection; their %d sessions are in K as well", len(mirrored))

	l.silence(conn, "before")
	died := time.Now()
	death.kill(l.J)
	l.t.Logf("J dies: %s", death.Name)
	l.K.WaitOwner()
	l.t.Logf("K owns the virtual addresses, %v later", time.Since(died).Round(100*time.Millisecond))
	l.WaitReplies(ping, 10)
	l.WaitLines(conn, 40)
	if seen, ok := lacks(mirrored, l.K.Sessions()); !ok {
		l.t.Errorf("K does not go on with J's sessions: %s", seen)
	}
	l.silence(conn, "around J's death")

	returned := time.Now()
	death.revive(l.J)
	l.t.Logf("J returns")
	l.J.WaitOwner()
	l.t.Logf("J owns the virtual addresses again, %v later", time.Since(returned).Round(100*time.Millisecond))
	l.WaitReplies(ping, 10)
	l.WaitLines(conn, 40)
	l.silence(conn, "around J's return")
	if idle > 0 {
		l.J.WaitSessions(table)
		l.t.Logf("all %d idle sessions are in J", idle)
	}

	lines, err := conn.Close()
	if err != nil {
		l.t.Fatalf("the connection was harmed: %v", err)
	}
	l.t.Logf("the connection carried %d lines, and lost none", lines)
}

// serve starts on a node what the tutorial and contrib make of a NAT64 that can fail over. checked is whether keepalived asks the daemon
// if it has all sessions, which only ours can say.
func (l *Lab) serve(n *Node, d Daemon, checked bool) {
	l.t.Helper()
	n.StartDaemon(d, SyncGroup6)
	files := l.keepalivedFiles(n, checked)
	if !d.ours {
		files["backup.sh"] = "#!/bin/sh\n[ \"$3\" != BACKUP ] || exec " + strings.Join(d.advertise(n), " ") + "\n"
	}
	l.guard(n, files)
}

// guard starts keepalived on a node, with contrib's firewall rule.
func (l *Lab) guard(n *Node, files map[string]string) {
	l.t.Helper()
	n.Run("nft", "-f", contrib+"/nftables/joold-pool4.nft")
	n.StartKeepalived(files)
}

// keepalivedFiles is what contrib has for a node's /etc/keepalived, which then asks the daemon if it is to be checked.
func (l *Lab) keepalivedFiles(n *Node, checked bool) map[string]string {
	l.t.Helper()
	joold, err := exec.LookPath("joold")
	if err != nil {
		l.t.Fatalf("%v", err)
	}
	files := map[string]string{}
	for target, source := range map[string]string{"keepalived.conf": n.Name + ".conf", "backup.sh": "backup.sh"} {
		text, err := os.ReadFile(filepath.Join(contrib, "keepalived", source))
		if err != nil {
			l.t.Fatalf("%v", err)
		}
		files[target] = strings.Replace(string(text), "/usr/local/bin/joold", joold, 1)
	}
	if !checked {
		const asks = "\t\tcheck_joold\n"
		if !strings.Contains(files["keepalived.conf"], asks) {
			l.t.Fatalf("contrib's keepalived.conf for %s has no check_joold:\n%s", n.Name, files["keepalived.conf"])
		}
		files["keepalived.conf"] = strings.Replace(files["keepalived.conf"], asks, "", 1)
	}
	return files
}

// lacks says which sessions a table does not have, and whether it has them all.
func lacks(want, table map[ID]Session) (string, bool) {
	missing := ""
	for id, s := range want {
		if _, ok := table[id]; !ok {
			missing += fmt.Sprintf("%v; ", s)
		}
	}
	return "missing: " + missing, missing == "" && len(want) > 0
}

func (l *Lab) silence(c *Conn, when string) {
	l.t.Helper()
	silence, err := c.Silence()
	if err != nil {
		l.t.Fatalf("the connection broke %s: %v", when, err)
	}
	l.t.Logf("longest silence on the connection %s: %v", when, silence.Round(10*time.Millisecond))
}
