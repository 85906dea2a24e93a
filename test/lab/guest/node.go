package guest

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"syscall"
	"time"
)

// A Node is a host of the network.
type Node struct {
	Name    string
	lab     *Lab
	machine machine

	mu        sync.Mutex
	processes []*Process
}

// inside is the command that runs args in the node.
func (n *Node) inside(args []string) []string {
	return append([]string{"nsenter", "-n/run/netns/" + n.Name, "-m/run/mnt-" + n.Name, "-u/run/uts-" + n.Name}, args...)
}

// Try runs a program in the node to its end; the error carries what it wrote to standard error.
func (n *Node) Try(args ...string) (string, error) { return n.try(nil, args...) }

func (n *Node) try(stdin io.Reader, args ...string) (string, error) {
	out, errs, err := output(n.machine, stdin, n.inside(args)...)
	if err != nil {
		err = fmt.Errorf("%s: %q: %w: %s", n.Name, args, err, strings.TrimSpace(errs+" "+out))
	}
	return out, err
}

// Run is Try for what must succeed.
func (n *Node) Run(args ...string) string {
	n.lab.t.Helper()
	out, err := n.Try(args...)
	if err != nil {
		n.lab.t.Fatalf("%v", err)
	}
	return out
}

// Sh runs a shell script in the node; it must succeed.
func (n *Node) Sh(script string) string {
	n.lab.t.Helper()
	return n.Run("sh", "-euc", script)
}

// WriteFile makes a file in the node, private to it under /run, /etc/keepalived and /etc/joold.
func (n *Node) WriteFile(name, content string, mode string) {
	n.lab.t.Helper()
	if _, err := n.try(strings.NewReader(content), "sh", "-euc", "cat >"+name+"; chmod "+mode+" "+name); err != nil {
		n.lab.t.Fatalf("%v", err)
	}
}

// A Process is a program that was started in a node.
type Process struct {
	node    *Node
	args    []string
	running running
	out     buffer
	done    chan struct{}
	err     error // set before done is closed
}

// Start runs a program in the node until Stop, Kill or the scenario's end. Its output is kept and shown when the scenario fails.
func (n *Node) Start(args ...string) *Process { return n.start(nil, args...) }

// start also calls line with each line that the program writes.
func (n *Node) start(line func(string), args ...string) *Process {
	n.lab.t.Helper()
	p := &Process{node: n, args: args, out: buffer{line: line}, done: make(chan struct{})}
	var err error
	p.running, err = n.machine.start(command{args: n.inside(args), stdout: &p.out, stderr: &p.out})
	if err != nil {
		n.lab.t.Fatalf("%s: start %q: %v", n.Name, args, err)
	}
	go func() {
		p.err = p.running.wait()
		close(p.done)
	}()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.processes = append(n.processes, p)
	return p
}

// Output is all that the process has written so far.
func (p *Process) Output() string { return p.out.String() }

// Ended says whether the process has ended, and how.
func (p *Process) Ended() (bool, error) {
	select {
	case <-p.done:
		return true, p.err
	default:
		return false, nil
	}
}

// Signal sends a signal to the process and its children.
func (p *Process) Signal(s syscall.Signal) {
	p.node.lab.t.Helper()
	if err := p.running.signal(s); err != nil {
		p.node.lab.t.Fatalf("%s: signal %v to %q: %v", p.node.Name, s, p.args, err)
	}
}

// Stop asks the process to end, returns how it ended, and kills it if it takes its time.
func (p *Process) Stop() error {
	p.running.signal(syscall.SIGTERM)
	select {
	case <-p.done:
		return p.err
	case <-time.After(20 * time.Second):
		p.Kill()
		return fmt.Errorf("%s: %q did not end within 20 s of SIGTERM", p.node.Name, p.args)
	}
}

// Kill ends the process without a chance to tidy up.
func (p *Process) Kill() {
	p.running.signal(syscall.SIGKILL)
	<-p.done
}

// stopFrom stops the processes but the first so many.
func (n *Node) stopFrom(first int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for i := len(n.processes) - 1; i >= first; i-- {
		if ended, _ := n.processes[i].Ended(); !ended {
			n.processes[i].Stop()
		}
	}
}

// show logs the ends of what the node's processes wrote.
func (n *Node) show() {
	log, _ := n.Try("cat", syslog)
	n.logTail("syslog", log)
	for _, p := range n.processes {
		n.logTail(fmt.Sprintf("%q", p.args), p.Output())
	}
}

func (n *Node) logTail(who, text string) {
	n.lab.t.Helper()
	const most = 60
	if lines := strings.Split(strings.TrimSpace(text), "\n"); lines[0] != "" {
		n.lab.t.Logf("%s: %s wrote:\n%s", n.Name, who, strings.Join(lines[max(0, len(lines)-most):], "\n"))
	}
}
