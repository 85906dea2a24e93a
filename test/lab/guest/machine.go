package guest

import (
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// A command is a program to run in a machine's own namespaces.
type command struct {
	args           []string
	stdin          io.Reader // nil for none
	stdout, stderr io.Writer // both written by one goroutine each, and not after wait has returned
}

// A machine runs commands: this one, or the one at the other end of the wire.
type machine interface {
	start(command) (running, error)
}

type running interface {
	signal(syscall.Signal) error // to the command and its children
	wait() error
}

var (
	_ machine = local{}
	_ machine = remote{}
)

type local struct{}

type localProcess struct{ cmd *exec.Cmd }

func (local) start(c command) (running, error) {
	cmd := exec.Command(c.args[0], c.args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = c.stdin, c.stdout, c.stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = 5 * time.Second // a child left in the background may hold the output open
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return localProcess{cmd}, nil
}

func (p localProcess) signal(s syscall.Signal) error { return syscall.Kill(-p.cmd.Process.Pid, s) }

func (p localProcess) wait() error {
	if err := p.cmd.Wait(); !errors.Is(err, exec.ErrWaitDelay) {
		return err
	}
	return nil
}

// The wire carries, besides the network's segments as VLANs, this untagged link between the two machines.
const (
	wireDevice = "trunk"
	wireLocal  = "10.106.108.1"
	wireRemote = "10.106.108.2"
	agentPort  = "7"
)

// toAgent and fromAgent are all that a connection to the agent carries: one connection per command.
type toAgent struct {
	Args   []string // first message only
	Stdin  []byte
	EOF    bool
	Signal syscall.Signal
}

type fromAgent struct {
	Out, Err []byte
	Done     bool
	Failure  string
}

// serveAgent runs commands for the machine at the other end of the wire, until the machine is switched off.
func serveAgent() error {
	if err := addressWire(wireRemote); err != nil {
		return err
	}
	l, err := net.Listen("tcp", net.JoinHostPort(wireRemote, agentPort))
	if err != nil {
		return err
	}
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		go serveCommand(conn)
	}
}

// addressWire brings this machine's end up, once. It was eth0, a name that the nodes' interfaces need while they are made.
func addressWire(address string) error {
	script := fmt.Sprintf(`[ -e /sys/class/net/%[1]s ] || ip link set eth0 name %[1]s
		ip link set %[1]s up
		ip address replace %[2]s/24 dev %[1]s`, wireDevice, address)
	if out, err := exec.Command("sh", "-euc", script).CombinedOutput(); err != nil {
		return fmt.Errorf("set up the wire between the machines: %w: %s", err, out)
	}
	return nil
}

// A gobWriter sends what is written as messages; several share one encoder.
type gobWriter struct {
	mu   *sync.Mutex
	enc  *gob.Encoder
	wrap func([]byte) any
}

func (w gobWriter) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(b), w.enc.Encode(w.wrap(b))
}

func serveCommand(conn net.Conn) {
	defer conn.Close()
	dec, enc, mu := gob.NewDecoder(conn), gob.NewEncoder(conn), new(sync.Mutex)
	var first toAgent
	if dec.Decode(&first) != nil {
		return
	}
	stdin, feed := io.Pipe()
	p, err := local{}.start(command{
		args:   first.Args,
		stdin:  stdin,
		stdout: gobWriter{mu, enc, func(b []byte) any { return fromAgent{Out: b} }},
		stderr: gobWriter{mu, enc, func(b []byte) any { return fromAgent{Err: b} }},
	})
	if err == nil {
		go func() {
			for {
				var m toAgent
				switch err := dec.Decode(&m); {
				case err != nil: // the other side has gone
					p.signal(syscall.SIGKILL)
					feed.Close()
					return
				case m.Signal != 0:
					p.signal(m.Signal)
				case m.EOF:
					feed.Close()
				default:
					feed.Write(m.Stdin)
				}
			}
		}()
		err = p.wait()
	}
	stdin.Close()
	done := fromAgent{Done: true}
	if err != nil {
		done.Failure = err.Error()
	}
	mu.Lock()
	defer mu.Unlock()
	enc.Encode(done)
}

// A remote is the machine at the other end of the wire, where serveAgent runs.
type remote struct{}

type remoteProcess struct {
	mu   sync.Mutex
	conn net.Conn
	enc  *gob.Encoder
	done chan error
}

func (remote) start(c command) (running, error) {
	conn, err := dialAgent()
	if err != nil {
		return nil, err
	}
	p := &remoteProcess{conn: conn, enc: gob.NewEncoder(conn), done: make(chan error, 1)}
	if err := p.enc.Encode(toAgent{Args: c.args}); err != nil {
		return nil, err
	}
	go func() {
		if c.stdin != nil {
			io.Copy(gobWriter{&p.mu, p.enc, func(b []byte) any { return toAgent{Stdin: b} }}, c.stdin)
		}
		p.send(toAgent{EOF: true})
	}()
	go func() { p.done <- p.receive(c) }()
	return p, nil
}

// dialAgent waits for the other machine to have booted.
func dialAgent() (net.Conn, error) {
	for deadline := time.Now().Add(limit); ; time.Sleep(200 * time.Millisecond) {
		conn, err := net.DialTimeout("tcp", net.JoinHostPort(wireRemote, agentPort), 5*time.Second)
		if err == nil || time.Now().After(deadline) {
			return conn, err
		}
	}
}

func (p *remoteProcess) send(m toAgent) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.enc.Encode(m)
}

func (p *remoteProcess) receive(c command) error {
	defer p.conn.Close()
	dec := gob.NewDecoder(p.conn)
	for {
		var m fromAgent
		if err := dec.Decode(&m); err != nil {
			return fmt.Errorf("connection to the other machine: %w", err)
		}
		if m.Done {
			if m.Failure != "" {
				return errors.New(m.Failure)
			}
			return nil
		}
		if c.stdout != nil {
			c.stdout.Write(m.Out)
		}
		if c.stderr != nil {
			c.stderr.Write(m.Err)
		}
	}
}

func (p *remoteProcess) signal(s syscall.Signal) error { return p.send(toAgent{Signal: s}) }
func (p *remoteProcess) wait() error                   { return <-p.done }

// output runs a command to its end.
func output(m machine, stdin io.Reader, args ...string) (stdout, stderr string, err error) {
	var o, e buffer
	p, err := m.start(command{args: args, stdin: stdin, stdout: &o, stderr: &e})
	if err != nil {
		return "", "", err
	}
	err = p.wait()
	return o.String(), e.String(), err
}

// A buffer collects what a process writes, while others read it.
type buffer struct {
	mu sync.Mutex
	b  []byte
	// line is called with each whole line.
	line func(string)
	next int
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.b = append(b.b, p...)
	for i := b.next; b.line != nil && i < len(b.b); i++ {
		if b.b[i] == '\n' {
			b.line(string(b.b[b.next:i]))
			b.next = i + 1
		}
	}
	return len(p), nil
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return string(b.b)
}
