package guest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Fresh makes flows from n6 to n4 that its lab has not seen yet.
type Fresh struct {
	lab  *Lab
	next int
}

// Make sends a datagram in each of n more flows, at a rate per second.
func (f *Fresh) Make(n, rate int) {
	f.lab.t.Helper()
	f.Begin(n, rate)()
}

// Begin is Make in the background. What it returns waits for the last flow.
func (f *Fresh) Begin(n, rate int) (wait func()) {
	f.lab.t.Helper()
	from, first := f.lab.flows(), f.next
	f.next += n
	done := make(chan error, 1)
	go func() {
		defer from.close()
		start := time.Now()
		for i := range n {
			time.Sleep(time.Until(start.Add(time.Duration(i) * time.Second / time.Duration(rate))))
			if err := from.send(first + i); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	return func() {
		f.lab.t.Helper()
		if err := <-done; err != nil {
			f.lab.t.Fatalf("send %d flows from n6: %v", n, err)
		}
	}
}

// UntilOneIsIn makes flow after flow and returns how long it takes until a node, whose table is small, has one of them.
func (f *Fresh) UntilOneIsIn(n *Node) (took time.Duration) {
	f.lab.t.Helper()
	from, first := f.lab.flows(), f.next
	defer from.close()
	n.asking(func(j *jool) (err error) {
		took, err = until(time.Now(), "a new flow is in "+n.Name, func() (bool, error) {
			time.Sleep(20 * time.Millisecond)
			f.next++
			if err := from.send(f.next - 1); err != nil {
				return false, err
			}
			var table bytes.Buffer
			if err := j.dump(&table); err != nil {
				return false, err
			}
			for line := range strings.Lines(table.String()) {
				if s, err := parseSession(line); err != nil || flowOf(s) >= first {
					return err == nil, err
				}
			}
			return false, nil
		})
		return err
	})
	return took
}

// WaitCopied waits until all that is in one node's table, which is at least so much, is in the other's.
func (l *Lab) WaitCopied(from, to *Node, least int) {
	l.t.Helper()
	l.waitCopied(from, to, nil, least)
}

// waitCopied leaves out what is old.
func (l *Lab) waitCopied(from, to *Node, old map[ID]Session, least int) {
	l.t.Helper()
	l.Wait(fmt.Sprintf("%s has the sessions of %s", to.Name, from.Name), func() (string, bool) {
		if have := to.Count(); have < least { // a look at the tables takes longer
			return fmt.Sprintf("%d of %d", have, least), false
		}
		have, copied := from.Sessions(), to.Sessions()
		count, missing := 0, 0
		for id := range have {
			if _, ok := old[id]; ok {
				continue
			}
			count++
			if _, ok := copied[id]; !ok {
				missing++
			}
		}
		return fmt.Sprintf("%d missing of %d", missing, count), missing == 0 && count >= least
	})
}

// Trade wants new flows through either node to reach the other. In the end J owns the virtual addresses.
func (l *Lab) Trade(f *Fresh) {
	l.t.Helper()
	const flows = 50
	for _, way := range [][2]*Node{{l.J, l.K}, {l.K, l.J}} {
		if !way[0].Owns() {
			way[1].GiveAddressesTo(way[0])
		}
		old := way[0].Sessions()
		f.Make(flows, 500)
		l.waitCopied(way[0], way[1], old, flows)
	}
	l.K.GiveAddressesTo(l.J)
}

// WaitsFor waits until a daemon says that it waits for something, both in its log and when it is asked for its status.
func (l *Lab) WaitsFor(p *Process, what string) {
	l.t.Helper()
	l.Wait(fmt.Sprintf("the daemon on %s waits for %q", p.node.Name, what), func() (string, bool) {
		if ended, err := p.Ended(); ended {
			l.t.Fatalf("it has ended instead: %v: %s", err, p.Output())
		}
		status, err := p.node.Try("joold", "status", "-i", l.Instance, "--json")
		if err != nil {
			return err.Error(), false
		}
		logged := false
		for line := range strings.Lines(p.Output()) {
			logged = logged || strings.Contains(line, "waiting") && strings.Contains(line, what)
		}
		return status + p.Output(), logged && strings.Contains(waitingFor(status), what)
	})
}

// waitingFor joins what a status, in JSON, says to be waited for.
func waitingFor(status string) (what string) {
	var groups map[string]json.RawMessage
	if json.Unmarshal([]byte(status), &groups) != nil {
		return ""
	}
	for _, group := range groups {
		var says struct {
			WaitingFor string `json:"waiting_for"`
		}
		if json.Unmarshal(group, &says) == nil {
			what += says.WaitingFor + "\n"
		}
	}
	return what
}

// Lives wants daemons to be running still.
func (l *Lab) Lives(daemons ...*Process) {
	l.t.Helper()
	for _, p := range daemons {
		if ended, err := p.Ended(); ended {
			l.t.Errorf("the daemon on %s has ended: %v", p.node.Name, err)
		}
	}
}

// Busy is the processor time that a process has used. Only for nodes of this machine.
func (p *Process) Busy() time.Duration {
	p.node.lab.t.Helper()
	text, err := os.ReadFile("/proc/" + p.pid() + "/stat")
	if err != nil {
		p.node.lab.t.Fatalf("%q: %v", p.args, err)
	}
	const user, system, perSecond = 11, 12, 100 // after the name, in clock ticks
	_, rest, _ := strings.Cut(string(text), ") ")
	fields, ticks := strings.Fields(rest), 0
	for _, i := range []int{user, system} {
		n, err := strconv.Atoi(fields[i])
		if err != nil {
			p.node.lab.t.Fatalf("%q: %v", p.args, err)
		}
		ticks += n
	}
	return time.Duration(ticks) * time.Second / perSecond
}

// syncPlug is a node's interface on the sync segment.
var syncPlug = iface{"eth2", "sync"}

// Unplug deletes the node's sync interface. Only for nodes of this machine.
func (n *Node) Unplug() {
	n.lab.t.Helper()
	n.Run("ip", "link", "del", syncPlug.name)
}

// Plug makes the node's sync interface what the plan says, whatever has become of it. Only for nodes of this machine.
func (n *Node) Plug() {
	n.lab.t.Helper()
	if _, err := n.Try("ip", "link", "show", syncPlug.name); err != nil {
		n.PlugBare()
	}
	n.Run("ip", "address", "flush", "dev", syncPlug.name)
	for _, a := range n.syncAddresses() {
		n.Run("ip", "address", "add", a, "dev", syncPlug.name)
	}
	n.Run("ip", "link", "set", syncPlug.name, "addrgenmode", "eui64", "up")
}

// PlugBare makes the node's sync interface, without an address. Only for nodes of this machine.
func (n *Node) PlugBare() {
	n.lab.t.Helper()
	n.lab.script(n.machine, n.plug(syncPlug))
	n.Sh("ip link set " + syncPlug.name + " addrgenmode none; ip address flush dev " + syncPlug.name)
}

// syncAddresses are those of the node's sync interface in the plan.
func (n *Node) syncAddresses() (prefixes []string) {
	for _, p := range plan {
		for _, a := range p.addresses {
			if dev, prefix, _ := strings.Cut(a, " "); p.node == n.Name && dev == syncPlug.name {
				prefixes = append(prefixes, prefix)
			}
		}
	}
	return prefixes
}

// Misfits counts the node's sessions that no instance of the lab's configuration would have made.
func (l *Lab) Misfits(n *Node) (count int) {
	l.t.Helper()
	pool6, pool4 := netip.MustParsePrefix(l.Pool6), strings.Join(l.Pool4, "\n")
	for id := range n.Sessions() {
		if !pool6.Contains(id.Dst6.Addr()) || !strings.Contains(pool4, " "+id.Src4.Addr().String()+" ") {
			count++
		}
	}
	return count
}

// Small is a daemon whose sockets get the smallest receive buffers that there are.
func (d Daemon) Small() Daemon {
	command := d.command
	d.command = func(n *Node, group netip.Addr) []string { return append([]string{Tool, "small"}, command(n, group)...) }
	return d
}

// runSmall runs a program that the kernel's limit on receive buffers binds, although it has CAP_NET_ADMIN: the means to go beyond is refused.
func runSmall(args []string) error {
	program, err := exec.LookPath(args[0])
	if err != nil {
		return err
	}
	const number, arch, level, option = 0, 4, 24, 32 // offsets in seccomp_data; the latter two are the call's second and third argument
	deny := unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: arch},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.AUDIT_ARCH_X86_64, Jf: 7},
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: number},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_SETSOCKOPT, Jf: 5},
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: level},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SOL_SOCKET, Jf: 3},
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: option},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SO_RCVBUFFORCE, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: deny},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	runtime.LockOSThread() // the filter is the thread's that goes on as the program
	if err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&prog)), 0, 0); err != nil {
		return fmt.Errorf("refuse SO_RCVBUFFORCE: %w", err)
	}
	return syscall.Exec(program, args, os.Environ())
}
