package guest

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// in runs f in the node's network namespace; sockets made by f stay there. Only for nodes of this machine.
func (n *Node) in(f func() error) error {
	done := make(chan error, 1)
	go func() { done <- n.inThread(f) }()
	return <-done
}

// inThread leaves the thread locked, so that it ends with its goroutine, unless it could be brought back. It has to be where it can: the
// main thread does not end, and for the namespace's removal it would be a process that was left behind.
func (n *Node) inThread(f func() error) error {
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer home.Close()
	ns, err := os.Open("/run/netns/" + n.Name)
	if err != nil {
		return err
	}
	defer ns.Close()
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter the namespace of %s: %w", n.Name, err)
	}
	err = f()
	if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
		return errors.Join(err, fmt.Errorf("leave the namespace of %s: %w", n.Name, back))
	}
	runtime.UnlockOSThread()
	return err
}

// server4 is n4's address, and server6 what n6 calls it.
var server4 = netip.MustParseAddr("192.0.2.8")

func (l *Lab) server6() netip.Addr { return Embed(netip.MustParsePrefix(l.Pool6), server4) }

// A Ping is a running ping from n6 to n4.
type Ping struct {
	process *Process
	log     func(string)
	mu      sync.Mutex
	seen    map[int]time.Time // by sequence number
}

// Ping pings n4 from n6, five times a second.
func (l *Lab) Ping() *Ping {
	l.t.Helper()
	p := &Ping{seen: map[int]time.Time{}, log: l.Live}
	p.process = l.N6.start(p.line, "ping", "-n", "-i", "0.2", l.server6().String())
	return p
}

func (p *Ping) line(text string) {
	if p.log != nil {
		p.log(text)
	}
	_, after, ok := strings.Cut(text, "icmp_seq=")
	if !ok || !strings.Contains(text, "bytes from") {
		return
	}
	number, _, _ := strings.Cut(after, " ")
	seq, err := strconv.Atoi(number)
	if err != nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seen[seq] = time.Now()
}

// Replies is how many pings were answered.
func (p *Ping) Replies() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.seen)
}

// WaitReplies waits for some more answers.
func (l *Lab) WaitReplies(p *Ping, more int) {
	l.t.Helper()
	want := p.Replies() + more
	l.Wait(fmt.Sprintf("%d more answers to the ping", more), func() (string, bool) {
		return fmt.Sprintf("%d of %d", p.Replies(), want), p.Replies() >= want
	})
}

// A Conn is a TCP connection between n6 and n4 that carries numbered lines, 20 a second, both ways.
type Conn struct {
	ends [2]*end // n6's, n4's
	stop chan struct{}
	wg   sync.WaitGroup
}

type end struct {
	conn *net.TCPConn

	mu       sync.Mutex
	sent     int
	received int
	last     time.Time
	silence  time.Duration // the longest yet
	err      error         // the first
}

const lineEvery = 50 * time.Millisecond

// Connect opens the connection.
func (l *Lab) Connect() *Conn {
	l.t.Helper()
	const port = 2000
	var listener net.Listener
	err := l.N4.in(func() (err error) {
		listener, err = net.Listen("tcp4", net.JoinHostPort(server4.String(), strconv.Itoa(port)))
		return err
	})
	if err != nil {
		l.t.Fatalf("listen on n4: %v", err)
	}
	defer listener.Close()

	var c6 net.Conn
	err = l.N6.in(func() (err error) {
		c6, err = net.DialTimeout("tcp6", netip.AddrPortFrom(l.server6(), port).String(), limit)
		return err
	})
	if err != nil {
		l.t.Fatalf("connect n6 to n4: %v", err)
	}
	c4, err := listener.Accept()
	if err != nil {
		l.t.Fatalf("accept on n4: %v", err)
	}

	c := &Conn{stop: make(chan struct{})}
	for i, conn := range []net.Conn{c6, c4} {
		e := &end{conn: conn.(*net.TCPConn), last: time.Now()}
		c.ends[i] = e
		c.wg.Go(func() { e.send(c.stop) })
		c.wg.Go(e.receive)
	}
	l.t.Cleanup(func() { c.ends[0].conn.Close(); c.ends[1].conn.Close() })
	return c
}

func (e *end) fail(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.err == nil {
		e.err = err
	}
}

func (e *end) send(stop chan struct{}) {
	tick := time.NewTicker(lineEvery)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-stop:
			e.conn.CloseWrite()
			return
		case <-tick.C:
		}
		if _, err := fmt.Fprintln(e.conn, n); err != nil {
			e.fail(fmt.Errorf("send line %d: %w", n, err))
			return
		}
		e.mu.Lock()
		e.sent++
		e.mu.Unlock()
	}
}

func (e *end) receive() {
	lines := bufio.NewReader(e.conn)
	for n := 0; ; n++ {
		line, err := lines.ReadString('\n')
		if errors.Is(err, io.EOF) && line == "" {
			return
		}
		if err != nil {
			e.fail(fmt.Errorf("receive line %d: %w", n, err))
			return
		}
		if strings.TrimSpace(line) != strconv.Itoa(n) {
			e.fail(fmt.Errorf("received %q, not line %d", line, n))
			return
		}
		e.mu.Lock()
		now := time.Now()
		e.received, e.silence, e.last = n+1, max(e.silence, now.Sub(e.last)), now
		e.mu.Unlock()
	}
}

// Silence returns the longest time that either end has heard nothing since the last call, and an error if the connection is broken.
func (c *Conn) Silence() (silence time.Duration, err error) {
	for _, e := range c.ends {
		e.mu.Lock()
		silence = max(silence, e.silence, time.Since(e.last))
		e.silence = 0
		err = errors.Join(err, e.err)
		e.mu.Unlock()
	}
	return silence, err
}

// WaitLines waits until both ends have received some more lines.
func (l *Lab) WaitLines(c *Conn, more int) {
	l.t.Helper()
	var from [2]int
	for i, e := range c.ends {
		e.mu.Lock()
		from[i] = e.received
		e.mu.Unlock()
	}
	l.Wait(fmt.Sprintf("%d more lines both ways", more), func() (string, bool) {
		done, seen := true, ""
		for i, e := range c.ends {
			e.mu.Lock()
			seen += fmt.Sprintf("%d of %d; ", e.received-from[i], more)
			done = done && e.received-from[i] >= more
			if e.err != nil {
				l.t.Fatalf("the connection is broken: %v", e.err)
			}
			e.mu.Unlock()
		}
		return seen, done
	})
}

// Close ends the connection once all lines have arrived, and returns how many that were; an error names a line that did not.
func (c *Conn) Close() (lines int, err error) {
	close(c.stop)
	for _, e := range c.ends {
		e.conn.SetReadDeadline(time.Now().Add(limit))
	}
	c.wg.Wait()
	for i, e := range c.ends {
		err = errors.Join(err, e.err)
		if other := c.ends[1-i]; e.err == nil && e.received != other.sent {
			err = errors.Join(err, fmt.Errorf("%d lines sent, %d received", other.sent, e.received))
		}
		lines += e.received
	}
	return lines, err
}

// flows makes packets of numbered flows from n6 to n4.
type flows struct {
	fd int
	to unix.SockaddrInet6
}

// flows opens what sends them. Nobody answers: refusals would be translated too.
func (l *Lab) flows() *flows {
	l.t.Helper()
	l.N4.Sh("nft add table inet quiet; nft 'add chain inet quiet input { type filter hook input priority 0; }'; nft flush chain inet quiet input; nft add rule inet quiet input meta l4proto udp drop")
	s := &flows{to: unix.SockaddrInet6{Addr: l.server6().As16()}}
	err := l.N6.in(func() (err error) {
		if s.fd, err = unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP); err != nil {
			return err
		}
		const checksumAt = 6
		return unix.SetsockoptInt(s.fd, unix.IPPROTO_IPV6, unix.IPV6_CHECKSUM, checksumAt)
	})
	if err != nil {
		l.t.Fatalf("open a socket in n6: %v", err)
	}
	return s
}

func (s *flows) close() { unix.Close(s.fd) }

// Flow 0 has these ports. The next so many have further source ports, for which pool4 has room; then the destination port changes.
const (
	firstSource, firstDestination = 10000, 20000
	sources                       = 4000
)

// flowOf is the number of a session's flow.
func flowOf(s Session) int {
	return (int(s.Dst4.Port())-firstDestination)*sources + int(s.Src6.Port()) - firstSource
}

// send sends a UDP datagram in a flow.
func (s *flows) send(flow int) error {
	var datagram [8]byte
	binary.BigEndian.PutUint16(datagram[0:], uint16(firstSource+flow%sources))
	binary.BigEndian.PutUint16(datagram[2:], uint16(firstDestination+flow/sources))
	binary.BigEndian.PutUint16(datagram[4:], uint16(len(datagram)))
	for {
		err := unix.Sendto(s.fd, datagram[:], 0, &s.to)
		if err != unix.ENOBUFS { // the forwarder's queue is full
			return err
		}
		time.Sleep(time.Millisecond)
	}
}

// Flows sends one UDP datagram from n6 to n4 in each of n new flows, at a rate per second (0: as fast as it goes).
func (l *Lab) Flows(n, rate int) {
	l.t.Helper()
	from := l.flows()
	defer from.close()
	start := time.Now()
	for i := range n {
		if rate > 0 {
			time.Sleep(time.Until(start.Add(time.Duration(i) * time.Second / time.Duration(rate))))
		}
		if err := from.send(i); err != nil {
			l.t.Fatalf("send flow %d from n6: %v", i, err)
		}
	}
}
