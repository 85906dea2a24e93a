//go:build lab

package guest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"testing"
)

func TestCommandsBesideARunningDaemon(t *testing.T) {
	l := New(t, Config{})
	l.J.StartDaemon(Ours, SyncGroup6)
	l.K.StartDaemon(Ours, SyncGroup6)
	l.WaitReplies(l.Ping(), 3)
	l.WaitMirrored(1)
	var session Session
	for _, session = range l.J.Sessions() {
	}

	t.Run("joold follow shows the columns of the C command", func(t *testing.T) {
		ours := l.J.Start("joold", "follow")
		columns := fmt.Sprintf("ICMP,%s,%d,%s,%d,%s,%d,", session.Src6.Addr(), session.Src6.Port(),
			session.Src4.Addr(), session.Src4.Port(), session.Dst4.Addr(), session.Dst4.Port())
		line := regexp.MustCompile(`^` + regexp.QuoteMeta(columns) + `0:0[01]:\d\d(\.\d{3})?$`)
		l.Wait("three lines of joold follow", func() (string, bool) {
			return ours.Output(), strings.Count(ours.Output(), "\n") >= 3
		})
		for _, text := range wholeLines(ours) {
			if !line.MatchString(text) {
				t.Errorf("line %q is not as %v", text, line)
			}
		}
		if l.J.Jool() != "4.1.9" { // which has no such command
			theirs := l.J.Start("socat", "-u", "EXEC:jool -i default session follow,pty", "STDOUT") // to a terminal it writes at once
			l.Wait("a line that both commands show", func() (string, bool) {
				for _, text := range wholeLines(theirs) {
					if strings.Contains(ours.Output(), text+"\n") {
						return text, true
					}
				}
				return fmt.Sprintf("ours: %q theirs: %q", ours.Output(), theirs.Output()), false
			})
			theirs.Stop()
		}
		if err := ours.Stop(); err != nil {
			t.Errorf("it ends with %v", err)
		}
	})

	t.Run("joold follow --json shows one object a line", func(t *testing.T) {
		p := l.J.Start("joold", "follow", "--json")
		l.Wait("three lines of it", func() (string, bool) { return p.Output(), strings.Count(p.Output(), "\n") >= 3 })
		if err := p.Stop(); err != nil {
			t.Errorf("it ends with %v", err)
		}
		for _, text := range wholeLines(p) {
			var got struct {
				Proto   string `json:"proto"`
				Src6    string `json:"src6"`
				Dst6    string `json:"dst6"`
				Src4    string `json:"src4"`
				Dst4    string `json:"dst4"`
				Expires int    `json:"expires_in_ms"`
			}
			d := json.NewDecoder(bytes.NewReader([]byte(text)))
			d.DisallowUnknownFields()
			if err := d.Decode(&got); err != nil {
				t.Fatalf("%s: %v", text, err)
			}
			expires := got.Expires
			got.Expires = 0
			want := got
			want.Proto, want.Src6, want.Dst6, want.Src4, want.Dst4 = "ICMP",
				session.Src6.String(), session.Dst6.String(), session.Src4.String(), session.Dst4.String()
			if got != want || expires <= 0 || expires > 60_000 {
				t.Errorf("got %s, want %+v", text, want)
			}
		}
	})

	t.Run("joold status names the peer that it hears", func(t *testing.T) { l.hears(l.K, l.J) })
}

// hears wants a node's status, in both its forms, to say that it is in service and hears the other node.
func (l *Lab) hears(n, other *Node) {
	l.t.Helper()
	s, encoding := n.Status(l.Instance), encodingOf(other.Jool())
	if !s.Instance.InService || s.Instance.Module != n.Jool() || len(s.Peers) != 1 {
		l.t.Fatalf("%s: the status is %+v", n.Name, s)
	}
	peer := s.Peers[0]
	if !strings.Contains(other.Run("ip", "-o", "address", "show", "dev", "eth2"), " "+peer.Address+"/") || peer.Encoding != encoding || peer.Sessions == 0 {
		l.t.Errorf("%s hears %+v; %s sends in encoding %s", n.Name, peer, other.Name, encoding)
	}
	text := n.Run("joold", "status", "-i", l.Instance)
	for _, part := range []string{": in service, Jool " + n.Jool(), peer.Address + ", encoding " + encoding + ", heard "} {
		if !strings.Contains(text, part) {
			l.t.Errorf("%s: %q is not in the status:\n%s", n.Name, part, text)
		}
	}
}

// wholeLines are the lines that a program has written, without one that it may be about to finish.
func wholeLines(p *Process) (lines []string) {
	out := p.Output()
	for line := range strings.Lines(out[:strings.LastIndex(out, "\n")+1]) {
		if line = strings.TrimSpace(line); strings.Contains(line, ",") {
			lines = append(lines, line)
		}
	}
	return lines
}
