// Package contrib tries what stands in contrib with the programs that read it:
// systemd, keepalived and nft. The lab runs the same files beside a real Jool.
package contrib

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"joold/internal/nstest"
)

const dir = "../../contrib"

// run returns what the program printed, and fails the test when it fails.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// inMounts runs a script that sees files of ours at the absolute paths it
// expects: each of binds is a directory of ours and the one that it covers.
func inMounts(t *testing.T, ns *nstest.NS, script string, binds ...[2]string) string {
	t.Helper()
	full := "set -e\nmount -t tmpfs none /run\n"
	for _, b := range binds {
		full += "mkdir -p " + b[1] + "\nmount --bind " + b[0] + " " + b[1] + "\n"
	}
	return ns.Command("unshare", "--mount", "sh", "-c", full+script)
}

func write(t *testing.T, path, content string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestSystemdTakesTheUnitAndFindsItLittleExposed(t *testing.T) {
	// It wants to see the program that the unit starts.
	runnable := func(name string) string {
		return strings.ReplaceAll(read(t, dir+"/systemd/"+name), "/usr/local/bin/joold", "/bin/true")
	}
	unit := runnable("joold@.service")
	dropIns := map[string]string{"alone": ""}
	for _, name := range []string{"netns", "group", "user", "memory"} {
		text := runnable(name + ".conf")
		active := regexp.MustCompile("(?m)^#([A-Z][A-Za-z]+=)").ReplaceAllString(text, "$1")
		if active == text {
			t.Errorf("%s.conf has nothing to remove the # of", name)
		}
		dropIns[name] = active
	}
	for name, dropIn := range dropIns {
		t.Run(name, func(t *testing.T) {
			d := t.TempDir()
			path := filepath.Join(d, "joold@default.service")
			write(t, path, unit, 0o644)
			if err := os.Mkdir(path+".d", 0o755); err != nil {
				t.Fatal(err)
			}
			write(t, path+".d/"+name+".conf", dropIn, 0o644)
			if out := run(t, "systemd-analyze", "verify", "--man=no", path); out != "" {
				t.Errorf("systemd complains: %s", out)
			}
			// Which reads no drop-ins of a file that it is given.
			write(t, path, unit+dropIn, 0o644)
			run(t, "systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=19", path)
		})
	}
}

// systemd tells a crash from a mistake by the exit status, and Go exits with 2
// for both unless it is told otherwise.
func TestUnderTheUnitACrashIsNoMistakeInTheSettings(t *testing.T) {
	unit := read(t, dir+"/systemd/joold@.service")
	prevented := regexp.MustCompile("(?m)^RestartPreventExitStatus=(.*)$").FindStringSubmatch(unit)
	if prevented == nil || !slices.Contains(strings.Fields(prevented[1]), "2") {
		t.Fatalf("the unit is started again after a mistake in its settings: %q", prevented)
	}
	var env []string
	for _, m := range regexp.MustCompile("(?m)^Environment=(.*)$").FindAllStringSubmatch(unit, -1) {
		env = append(env, m[1])
	}
	for _, how := range []string{"panic", "abort"} { // the watchdog's signal is SIGABRT
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(env, crash+"="+how)
		err := cmd.Run()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || !exit.Sys().(syscall.WaitStatus).Signaled() {
			t.Errorf("%s: it ends with %v, want a signal", how, err)
		}
	}
}

// crash in the environment makes this program a daemon that crashes so.
const crash = "JOOLD_TEST_CRASH"

func TestMain(m *testing.M) {
	switch os.Getenv(crash) {
	case "panic":
		panic("as asked for")
	case "abort":
		syscall.Kill(os.Getpid(), syscall.SIGABRT)
		select {}
	}
	os.Exit(m.Run())
}

func TestTheSystemComesUpAlsoWithoutAnInstanceToServe(t *testing.T) {
	unit := strings.Replace(read(t, dir+"/systemd/joold@.service"), "/usr/local/bin/joold", "/bin/true", 1)
	const own = "DefaultDependencies=no\n"
	for unit, waits := range map[string]bool{unit: false, strings.Replace(unit, own, "", 1): true} {
		d := t.TempDir()
		wants := d + "/multi-user.target.wants"
		write(t, d+"/joold@.service", unit, 0o644)
		if err := os.Mkdir(wants, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("../joold@.service", wants+"/joold@default.service"); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("systemd-analyze", "verify", "--man=no", "multi-user.target")
		cmd.Env = []string{"SYSTEMD_UNIT_PATH=" + d + ":", "SYSTEMD_LOG_LEVEL=debug"} // which shows units as it understands them
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		_, target, _ := strings.Cut(string(out), "-> Unit multi-user.target:")
		target, _, _ = strings.Cut(target, "-> Unit")
		if !strings.Contains(target, "Wants: joold@default.service") {
			t.Fatalf("multi-user.target does not want the service: %s", target)
		}
		if got := strings.Contains(target, "After: joold@default.service"); got != waits {
			t.Errorf("multi-user.target waits for the service: %v, want %v", got, waits)
		}
	}
}

func TestKeepalivedTakesBothNodesConfigurations(t *testing.T) {
	for _, node := range []string{"J", "K"} {
		t.Run(node, func(t *testing.T) {
			ns, net := nstest.New(t), nstest.New(t)
			nstest.Veth(ns, "eth0", net, "eth0")
			nstest.Veth(ns, "eth1", net, "eth1")
			etc := t.TempDir()
			// It looks for the scripts' programs, and Jool's is not here.
			conf := strings.NewReplacer("/usr/bin/jool ", "/usr/bin/true ", "/usr/local/bin/joold ", "/usr/bin/true ").Replace(read(t, dir+"/keepalived/"+node+".conf"))
			write(t, etc+"/keepalived.conf", conf, 0o644)
			write(t, etc+"/backup.sh", read(t, dir+"/keepalived/backup.sh"), 0o755)
			script := "keepalived -t -f /etc/keepalived/keepalived.conf"
			if out := inMounts(t, ns, script, [2]string{etc, "/etc/keepalived"}); out != "" {
				t.Errorf("keepalived complains: %s", out)
			}
		})
	}
}

func TestTheNodesConfigurationsDifferOnlyInTheirMarkedLines(t *testing.T) {
	j := strings.Split(read(t, dir+"/keepalived/J.conf"), "\n")
	k := strings.Split(read(t, dir+"/keepalived/K.conf"), "\n")
	if len(j) != len(k) {
		t.Fatalf("J.conf has %d lines, K.conf %d", len(j), len(k))
	}
	marked := 0
	for i := 2; i < len(j); i++ { // below what they are called
		jMarked, kMarked := strings.HasSuffix(j[i], "# J"), strings.HasSuffix(k[i], "# K")
		switch {
		case jMarked != kMarked:
			t.Errorf("line %d is marked in one file only:\n%s\n%s", i+1, j[i], k[i])
		case jMarked:
			marked++
		case j[i] != k[i]:
			t.Errorf("line %d differs without a mark:\n%s\n%s", i+1, j[i], k[i])
		}
	}
	if marked != 7 { // priority, source and peer, on either side, and a weight
		t.Errorf("%d lines are marked, want 7", marked)
	}
}

func TestOnlyTheNodeThatStopsServingAdvertises(t *testing.T) {
	etc, bin := t.TempDir(), t.TempDir()
	write(t, etc+"/backup.sh", read(t, dir+"/keepalived/backup.sh"), 0o755)
	write(t, bin+"/joold", "#!/bin/sh\necho joold \"$@\"\n", 0o755)
	for states, want := range map[string]string{
		"BACKUP":                      "", // keepalived starts
		"MASTER BACKUP":               "joold -i default advertise\n",
		"MASTER BACKUP BACKUP":        "joold -i default advertise\n",
		"MASTER BACKUP MASTER BACKUP": "joold -i default advertise\njoold -i default advertise\n",
		"MASTER FAULT BACKUP":         "", // the instance was gone, and is back
		"MASTER STOP BACKUP":          "", // keepalived was stopped while it served
	} {
		t.Run(states, func(t *testing.T) {
			script := "for s in " + states + "; do sh /etc/keepalived/backup.sh GROUP NAT64 $s 100; done"
			got := inMounts(t, nstest.New(t), script, [2]string{etc, "/etc/keepalived"}, [2]string{bin, "/usr/local/bin"})
			if got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		})
	}
}

func TestTheFirewallRuleKeepsAHostWithoutJoolSilent(t *testing.T) {
	n4, j, n6 := nstest.New(t), nstest.New(t), nstest.New(t)
	nstest.Veth(n4, "eth0", j, "eth1")
	nstest.Veth(n6, "eth0", j, "eth0")
	n4.IP("addr add 192.0.2.8/24 dev eth0")
	j.IP("addr add 192.0.2.1/24 dev eth1")
	n6.IP("addr add 2001:db8::8/96 dev eth0 nodad")
	j.IP("addr add 2001:db8::1/96 dev eth0 nodad")
	n6.IP("route add 64:ff9b::/96 via 2001:db8::1")
	j.Sysctl("net.ipv6.conf.all.forwarding", "1")

	probes := []struct {
		what          string
		from          *nstest.NS
		network, addr string
		without       error
	}{
		{"TCP to pool4", n4, "tcp", "192.0.2.1:61001", syscall.ECONNREFUSED},
		{"TCP to pool4's last port", n4, "tcp", "192.0.2.1:65535", syscall.ECONNREFUSED},
		{"UDP to pool4", n4, "udp", "192.0.2.1:62000", syscall.ECONNREFUSED},
		{"TCP to pool6", n6, "tcp", "[64:ff9b::192.0.2.8]:80", syscall.ENETUNREACH},
	}
	for _, p := range probes {
		if err := probe(p.from, p.network, p.addr); !errors.Is(err, p.without) {
			t.Errorf("without the rule, %s: got %v, want %v", p.what, err, p.without)
		}
	}
	for range 2 { // loading it again is fine
		j.Command("nft", "-f", dir+"/nftables/joold-pool4.nft")
	}
	for _, p := range probes {
		if err := probe(p.from, p.network, p.addr); !isTimeout(err) {
			t.Errorf("%s: got %v, want silence", p.what, err)
		}
	}
	if rules := j.Command("nft", "list", "table", "inet", "joold_pool4"); strings.Contains(rules, "packets 0 ") {
		t.Errorf("a rule dropped nothing:\n%s", rules)
	}
	if err := probe(n4, "tcp", "192.0.2.1:61000"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a port below pool4's: got %v, want %v", err, syscall.ECONNREFUSED)
	}
	n4.Command("ping", "-c", "1", "-W", "10", "192.0.2.1")
}

// probe sends something there and says how it was answered; silence ends in a
// timeout. A refusal comes at once, so how long the silence lasts matters little.
func probe(from *nstest.NS, network, addr string) (err error) {
	from.Do(func() {
		var c net.Conn
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		c, err = (&net.Dialer{}).DialContext(ctx, network, addr)
		if err != nil {
			return
		}
		defer c.Close()
		if _, err = c.Write([]byte("x")); err != nil {
			return
		}
		c.SetReadDeadline(time.Now().Add(2 * time.Second))
		_, err = c.Read(make([]byte, 1))
	})
	return err
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}
