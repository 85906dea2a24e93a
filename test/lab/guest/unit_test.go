//go:build lab

package guest

import (
	"os"
	"strings"
	"syscall"
	"testing"
)

// There is no systemd in the guest, but the command line, the capabilities and the settings are the shipped ones.
func TestUnitServesAnUnprivilegedUserWithItsOneCapability(t *testing.T) {
	l := New(t, Config{})
	unit := readUnit(t)
	settings, err := os.ReadFile(contrib + "/joold.json")
	if err != nil {
		t.Fatal(err)
	}
	l.J.WriteFile("/etc/joold/default.json", string(settings), "644")
	l.J.Sh("cd /run; mkdir -m 755 " + unit["RuntimeDirectory"] + "; chown nobody " + unit["RuntimeDirectory"])

	p := l.J.Start(append([]string{"setpriv", "--reuid", "nobody", "--clear-groups", "--no-new-privs",
		"--inh-caps", "-all," + capability(unit["CapabilityBoundingSet"]),
		"--ambient-caps", "-all," + capability(unit["CapabilityBoundingSet"]),
		"--bounding-set", "-all," + capability(unit["CapabilityBoundingSet"])},
		strings.Fields(strings.ReplaceAll(unit["ExecStart"], "%i", "default"))...)...)
	l.Wait("it is in service", func() (string, bool) {
		if ended, err := p.Ended(); ended {
			t.Fatalf("it has ended: %v: %s", err, p.Output())
		}
		out, err := l.J.Try("joold", "status", "--json")
		return out, err == nil && l.J.Status("default").Instance.InService
	})
	l.K.StartDaemon(Ours, SyncGroup6)
	ping := l.Ping()
	l.WaitReplies(ping, 3)
	l.WaitMirrored(1)
	l.J.GiveAddressesTo(l.K) // so that it is J's turn to hear
	l.WaitReplies(ping, 3)
	l.Wait("J hears K", func() (string, bool) {
		s := l.J.Status("default")
		return p.Output(), len(s.Peers) == 1 && s.Kernel.Injected > 0
	})
	l.hears(l.J, l.K)
	p.Signal(syscall.SIGTERM)
	l.Wait("it ends", func() (string, bool) { ended, _ := p.Ended(); return p.Output(), ended })
	if _, err := p.Ended(); err != nil {
		t.Errorf("it ends with %v", err)
	}
}

// readUnit returns the settings of the shipped unit.
func readUnit(t *testing.T) map[string]string {
	text, err := os.ReadFile(contrib + "/systemd/joold@.service")
	if err != nil {
		t.Fatal(err)
	}
	unit := map[string]string{}
	for line := range strings.Lines(string(text)) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			unit[name] = value
		}
	}
	return unit
}

// capability is systemd's CAP_NET_ADMIN as setpriv wants it.
func capability(name string) string {
	return "+" + strings.ToLower(strings.TrimPrefix(name, "CAP_"))
}
