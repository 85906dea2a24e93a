package guest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"joold/internal/control"
)

const (
	opStatsForeach = 7
	attrOffsetU8   = 9
	statSessions   = 5 // JSTAT_SESSIONS
)

// count is how many sessions the instance says that it has; a dump would take longer than what is to be timed.
func (j *jool) count() (int, error) {
	ae := netlink.NewAttributeEncoder()
	ae.Uint8(attrOffsetU8, statSessions-1)
	attrs, err := ae.Encode()
	if err != nil {
		return 0, err
	}
	reply, _, err := j.request(opStatsForeach, attrs, 0)
	if err != nil {
		return 0, err
	}
	ad, err := netlink.NewAttributeDecoder(reply)
	if err != nil {
		return 0, err
	}
	for ad.Next() {
		if ad.Type() == statSessions {
			return int(ad.Uint64()), ad.Err()
		}
	}
	return 0, fmt.Errorf("Jool's statistics lack the number of sessions: %w", ad.Err())
}

// asking runs f on a thread in the node's namespace, with its instance to ask. Only for nodes of this machine.
func (n *Node) asking(f func(*jool) error) {
	n.lab.t.Helper()
	err := n.in(func() error {
		j, err := dialJool(n.lab.Instance)
		if err != nil {
			return err
		}
		defer j.conn.Close()
		return f(j)
	})
	if err != nil {
		n.lab.t.Fatalf("%s: %v", n.Name, err)
	}
}

// Count is how many sessions the node has.
func (n *Node) Count() (count int) {
	n.lab.t.Helper()
	n.asking(func(j *jool) (err error) {
		count, err = j.count()
		return err
	})
	return count
}

// until asks each few milliseconds, since more would slow down what it waits for, and returns how long it took since start.
func until(start time.Time, what string, is func() (bool, error)) (time.Duration, error) {
	for {
		ok, err := is()
		took := time.Since(start)
		if err != nil || ok {
			return took, err
		}
		if took > limit {
			return took, fmt.Errorf("not within %v: %s", limit, what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// WaitCount waits until the node has so many sessions, gives up when no more have come for a while, and returns how long it took.
func (n *Node) WaitCount(want int) (took time.Duration) {
	n.lab.t.Helper()
	const patience = 30 * time.Second
	start, have := time.Now(), 0
	n.asking(func(j *jool) (err error) {
		most, last := -1, start
		for {
			have, err = j.count()
			now := time.Now()
			took = now.Sub(start)
			if have > most {
				most, last = have, now
			}
			if err != nil || have >= want || now.Sub(last) > patience {
				return err
			}
			time.Sleep(20 * time.Millisecond)
		}
	})
	if have < want {
		for _, other := range []*Node{n.lab.J, n.lab.K} {
			status, _ := other.Try("joold", "status", "-i", n.lab.Instance, "--json")
			n.lab.t.Logf("%s: %s", other.Name, status)
		}
		n.lab.t.Fatalf("%s: %d of %d sessions, and no more for %v", n.Name, have, want, patience)
	}
	return took.Round(time.Millisecond)
}

// WaitInService waits until the node's daemon says that it serves the instance.
func (n *Node) WaitInService() {
	n.lab.t.Helper()
	n.lab.Wait(n.Name+"'s daemon is in service", func() (string, bool) {
		s, err := n.status()
		return fmt.Sprintf("waiting for %q; %v", s.Instance.WaitingFor, err), err == nil && s.Instance.InService
	})
}

// status is what the node's daemon says of itself, if it can be asked.
func (n *Node) status() (s control.Status, err error) {
	out, err := n.Try("joold", "status", "-i", n.lab.Instance, "--json")
	if err != nil {
		return s, err
	}
	return s, json.Unmarshal([]byte(out), &s)
}

// Status is what the node's daemon for an instance says of itself.
func (n *Node) Status(instance string) (s control.Status) {
	n.lab.t.Helper()
	if err := json.Unmarshal([]byte(n.Run("joold", "status", "-i", instance, "--json")), &s); err != nil {
		n.lab.t.Fatalf("%s: status of %s: %v", n.Name, instance, err)
	}
	return s
}

// Setting is a global setting of the node's instance, as Jool's tool shows it.
func (n *Node) Setting(name string) string {
	n.lab.t.Helper()
	for line := range strings.Lines(n.Run("jool", "-i", n.lab.Instance, "global", "display", "--csv")) {
		if key, value, _ := strings.Cut(strings.TrimSpace(line), ","); key == name {
			return value
		}
	}
	n.lab.t.Fatalf("%s: Jool has no setting %s", n.Name, name)
	return ""
}

// Births makes some flows at once, round after round, and returns how long each round's took to be all in K: the shortest first.
func (l *Lab) Births(rounds, flows int) []time.Duration {
	l.t.Helper()
	from := l.flows()
	defer from.close()
	took := make([]time.Duration, rounds)
	l.K.asking(func(k *jool) error {
		// The first flow is for the neighbours to be found.
		if err := from.send(0); err != nil {
			return err
		}
		for round := -1; round < rounds; round++ {
			start := time.Now()
			if round >= 0 {
				for i := range flows {
					if err := from.send(1 + round*flows + i); err != nil {
						return err
					}
				}
			}
			want := 1 + (round+1)*flows
			d, err := until(start, fmt.Sprintf("%d sessions in K", want), func() (bool, error) {
				have, err := k.count()
				return have >= want, err
			})
			if err != nil {
				return err
			}
			if round >= 0 {
				took[round] = d
			}
			time.Sleep(300 * time.Millisecond) // so that each round finds both daemons idle
		}
		return nil
	})
	slices.Sort(took)
	return took
}

// p50 is what half of some sorted times do not exceed.
func p50(sorted []time.Duration) time.Duration { return sorted[(len(sorted)+1)/2-1] }

// p90 is what nine in ten of some sorted times do not exceed.
func p90(sorted []time.Duration) time.Duration { return sorted[(len(sorted)*9+9)/10-1] }

// Stream sends UDP datagrams in some flows in turn, at a rate per second, until what it returns is called.
func (l *Lab) Stream(flows, rate int) (stop func()) {
	l.t.Helper()
	from, end, done := l.flows(), make(chan struct{}), make(chan error, 1)
	go func() {
		defer from.close()
		start := time.Now()
		for i := 0; ; i++ {
			select {
			case <-end:
				l.t.Logf("%d packets a second", int(float64(i)/time.Since(start).Seconds()))
				done <- nil
				return
			default:
			}
			time.Sleep(time.Until(start.Add(time.Duration(i) * time.Second / time.Duration(rate))))
			if err := from.send(i % flows); err != nil {
				done <- err
				return
			}
		}
	}()
	return func() {
		l.t.Helper()
		close(end)
		if err := <-done; err != nil {
			l.t.Fatalf("send from n6: %v", err)
		}
	}
}

// Lag has n6 send n4 an echo request in a new ICMP session, and returns how long that took to be in K.
func (l *Lab) Lag(id uint16) (took time.Duration) {
	l.t.Helper()
	var fd int
	err := l.N6.in(func() (err error) {
		fd, err = unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMPV6)
		return err
	})
	if err != nil {
		l.t.Fatalf("open a socket in n6: %v", err)
	}
	defer unix.Close(fd)
	l.K.asking(func(k *jool) (err error) {
		const echoRequest = 128
		start := time.Now()
		err = unix.Sendto(fd, []byte{echoRequest, 0, 0, 0, byte(id >> 8), byte(id), 0, 0}, 0, &unix.SockaddrInet6{Addr: l.server6().As16()})
		if err != nil {
			return err
		}
		took, err = until(start, fmt.Sprintf("the session of echo request %d in K", id), func() (found bool, err error) {
			err = k.each(protoICMP, func(s *Session) error {
				found = found || s.Src6.Port() == id
				return nil
			})
			return found, err
		})
		return err
	})
	return took
}

// pid is the process's, since nothing that it is started through forks. Only for nodes of this machine.
func (p *Process) pid() string { return strconv.Itoa(p.running.(localProcess).cmd.Process.Pid) }

// Wakings counts how often a process is woken within some time. Each waking has several of its threads switch, and more of them the slower the
// machine is; so those within a twentieth of a second are one.
func (p *Process) Wakings(within time.Duration) (n int) {
	p.node.lab.t.Helper()
	before := p.Sleeps()
	for end := time.Now().Add(within); time.Now().Before(end); {
		time.Sleep(50 * time.Millisecond)
		if now := p.Sleeps(); now != before {
			before = now
			n++
		}
	}
	return n
}

// Sleeps counts how often the threads of a process have gone to sleep, which is how often they were woken.
func (p *Process) Sleeps() (n int) {
	p.node.lab.t.Helper()
	files, err := filepath.Glob("/proc/" + p.pid() + "/task/*/status")
	if err != nil || files == nil {
		p.node.lab.t.Fatalf("%q has no threads: %v", p.args, err)
	}
	for _, file := range files {
		n += p.statusOf(file, "voluntary_ctxt_switches:")
	}
	return n
}

// Memory is how many KiB of a process are resident now, and at most were.
func (p *Process) Memory() (now, most int) {
	p.node.lab.t.Helper()
	file := "/proc/" + p.pid() + "/status"
	return p.statusOf(file, "VmRSS:"), p.statusOf(file, "VmHWM:")
}

func (p *Process) statusOf(file, key string) int {
	p.node.lab.t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		p.node.lab.t.Fatalf("%q: %v", p.args, err)
	}
	for line := range bytes.Lines(text) {
		if f := strings.Fields(string(line)); len(f) > 1 && f[0] == key {
			n, err := strconv.Atoi(f[1])
			if err != nil {
				p.node.lab.t.Fatalf("%s: %v", file, err)
			}
			return n
		}
	}
	p.node.lab.t.Fatalf("%s has no %s", file, key)
	return 0
}
