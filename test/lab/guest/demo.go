package guest

import (
	"fmt"
	"strings"
	"sync"
	"time"
)

// Demo writes lines; the first byte of each says how it is to be shown.
const (
	DemoStep    = '#' // begins a step
	DemoGood    = '+' // a good thing has happened
	DemoBad     = '!' // a bad thing has happened
	DemoCommand = '$' // a command that was run
	DemoText    = ' '
	DemoNow     = '~' // what is going on, in place of what was; tabs separate its lines, each of which has its kind
	DemoWait    = '.' // something that takes its time, until the next line
)

// A demo is the tutorial for somebody who looks on. It makes the same claims as Lab.Tutorial, whose waits and words are for a test.
type demo struct {
	*Lab
	ping *Ping

	mu       sync.Mutex
	conn     *Conn  // nil until there is one
	answer   string // the last line of the ping's
	answered time.Time
	gap      time.Duration // the longest yet between two answers
}

// An outage is the longest silence of each kind around an event.
type outage struct{ ping, conn time.Duration }

// idleSessions is how many sessions without traffic the demonstration's nodes hold.
const idleSessions = 5000

// showDemo shows the tutorial's failover.
func showDemo([]string) error {
	tell(DemoStep, "Lay the cables, load Jool")
	tell(DemoWait, "J, K, n6, n4 as network namespaces; Jool in J and in K")
	p := &person{say: func(kind byte, text string) {
		for line := range strings.Lines(text) {
			tell(kind, "%s", strings.TrimRight(line, "\n"))
		}
	}}
	d := &demo{}
	d.Lab = New(p, Config{Live: d.hear})
	table := d.setUp()
	d.startTraffic()
	d.showSessions()
	death := d.killJ()
	back := d.reviveJ()
	inJ, inK := d.compare(table)
	if !d.summarize(death, back, inJ, inK) || p.failed {
		p.failed = true // so that the nodes' output is shown
		p.cleanup()
		return fmt.Errorf("something was lost; see above")
	}
	return nil // nothing is taken down: the guest ends here
}

func tell(kind byte, format string, args ...any) {
	fmt.Printf("%c%s\n", kind, fmt.Sprintf(format, args...))
}

// setUp brings the nodes into service. The idle sessions are loaded while keepalived makes up its mind.
func (d *demo) setUp() []Session {
	tell(DemoStep, "Start joold and keepalived on J and on K")
	tell(DemoWait, "They agree on who serves; each is given %d idle sessions", idleSessions)
	table := d.IdleTable(idleSessions, tcpEstablished/4)
	both(func() {
		d.serve(d.J, Ours, true)
		d.serve(d.K, Ours, true)
		d.J.WaitOwner()
	}, func() {
		d.J.Load(table)
		d.K.Load(table)
	})
	tell(DemoGood, "J serves: it owns 2001:db8::1 and 192.0.2.1")
	return table
}

func (d *demo) startTraffic() {
	tell(DemoStep, "n6 pings n4, and opens a TCP connection to it")
	tell(DemoText, "Over the connection, both ends send a numbered line every 50 ms.")
	d.answered = time.Now()
	d.ping = d.Ping()
	d.watch(func() {
		conn := d.Connect()
		d.mu.Lock()
		d.conn = conn
		d.mu.Unlock()
		d.flow(10, 40)
	})
}

// showSessions shows the sessions of the ping and the connection where they are made, and where they are then known.
func (d *demo) showSessions() {
	tell(DemoStep, "J translates; K, standing by, knows its sessions")
	commands := []string{
		"jool session display --numeric --icmp",
		"jool session display --numeric --tcp | grep -B1 -A1 192.0.2.8#",
	}
	nodes := []*Node{d.J, d.K}
	seen := make([]string, len(nodes)*len(commands))
	display := func(i int) func() {
		n, command := nodes[i/len(commands)], commands[i%len(commands)]
		return func() {
			d.Wait(n.Name+" has the session", func() (string, bool) {
				seen[i], _ = n.Try("sh", "-c", command)
				return seen[i], strings.Contains(seen[i], "192.0.2.8#")
			})
		}
	}
	d.watch(func() {
		both(func() { display(0)(); display(1)() }, func() { display(2)(); display(3)() })
	})
	for i, text := range seen {
		tell(DemoCommand, "%s# %s", nodes[i/len(commands)].Name, commands[i%len(commands)])
		for line := range strings.Lines(text) {
			if line = strings.TrimSpace(line); !strings.HasPrefix(line, "---") {
				tell(DemoText, "%s", strings.ReplaceAll(line, "\t", "  "))
			}
		}
	}
}

// killJ takes J's Jool away under the traffic, and returns once K has it.
func (d *demo) killJ() outage {
	tell(DemoStep, "J dies: its Jool, with all its sessions, is gone")
	d.outage()
	tell(DemoCommand, "J# jool instance remove %s", d.Instance)
	died := time.Now()
	d.J.RemoveInstance()
	tell(DemoBad, "J is dead")
	since := func() float64 { return time.Since(died).Seconds() }
	d.watch(func() { d.K.WaitOwner() })
	tell(DemoGood, "%.1f s later keepalived has noticed: K owns 2001:db8::1 and 192.0.2.1", since())
	d.watch(func() { d.WaitReplies(d.ping, 1) })
	d.watch(func() { d.WaitLines(d.conn, 1) })
	tell(DemoGood, "%.1f s later both flow again, through K, which goes on with J's sessions", since())
	d.watch(func() { d.flow(10, 40) })
	return d.outage()
}

// reviveJ gives J its Jool back, empty, and returns once J has the traffic.
func (d *demo) reviveJ() outage {
	tell(DemoStep, "J returns, with no session; K's joold gives it all of them")
	tell(DemoCommand, "J# jool instance add default --netfilter --pool6 %s ...", d.Pool6)
	returned := time.Now()
	d.watch(func() {
		d.J.AddInstance()
		d.J.WaitOwner()
	})
	tell(DemoGood, "%.1f s later J, which keepalived prefers, owns the addresses again", time.Since(returned).Seconds())
	d.watch(func() { d.flow(10, 40) })
	return d.outage()
}

// holdings are how many sessions a node has, and how many of those that were idle from the beginning.
type holdings struct{ all, idle int }

// compare waits until J has all that K's daemon advertises to it, and returns what both have then.
func (d *demo) compare(table []Session) (inJ, inK holdings) {
	read := func(n *Node, h *holdings) func() {
		return func() {
			d.Wait(n.Name+" has all idle sessions", func() (string, bool) {
				sessions := n.Sessions()
				*h = holdings{len(sessions), len(table) - Missing(table, sessions)}
				return fmt.Sprintf("%d of %d", h.idle, len(table)), h.idle == len(table)
			})
		}
	}
	d.watch(func() { both(read(d.J, &inJ), read(d.K, &inK)) })
	tell(DemoGood, "J has all %d idle sessions again", inJ.idle)
	return inJ, inK
}

// summarize ends the traffic and says whether nothing was lost.
func (d *demo) summarize(death, back outage, inJ, inK holdings) bool {
	tell(DemoStep, "Stop, and count")
	_, err := d.conn.Close()

	row := func(what string, cells ...any) {
		text := fmt.Sprintf("%-30s", what)
		for _, c := range cells {
			text += fmt.Sprintf("%12v", c)
		}
		tell(DemoText, "%s", text)
	}
	seconds := func(t time.Duration) string { return fmt.Sprintf("%.1f s", t.Seconds()) }
	tell(DemoText, "")
	row("longest silence around", "J's death", "J's return")
	row("  ping", seconds(death.ping), seconds(back.ping))
	row("  TCP connection", seconds(death.conn), seconds(back.conn))
	tell(DemoText, "")
	row("lines over TCP", "sent", "received", "lost")
	lost := 0
	for i, way := range []string{"  n6 to n4", "  n4 to n6"} {
		from, to := d.conn.ends[i], d.conn.ends[1-i]
		row(way, from.sent, to.received, from.sent-to.received)
		lost += from.sent - to.received
	}
	tell(DemoText, "")
	row("sessions at the end", "J", "K")
	row("  all", inJ.all, inK.all)
	row("  idle since before the death", inJ.idle, inK.idle)
	tell(DemoText, "")
	if err != nil {
		tell(DemoBad, "The connection was harmed: %v", err)
		return false
	}
	tell(DemoGood, "The connection outlived its translator twice, and lost %d lines", lost)
	return lost == 0
}

// flow waits for some more of the ping's answers and of the connection's lines.
func (d *demo) flow(answers, lines int) {
	both(func() { d.WaitReplies(d.ping, answers) }, func() { d.WaitLines(d.conn, lines) })
}

// outage begins a new one, and returns the last.
func (d *demo) outage() outage {
	conn, err := d.conn.Silence()
	if err != nil {
		d.t.Fatalf("the connection broke: %v", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	o := outage{max(d.gap, time.Since(d.answered)), conn}
	d.gap = 0
	return o
}

// hear takes the ping's lines.
func (d *demo) hear(line string) {
	if !strings.Contains(line, "bytes from") {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	d.answer, d.gap, d.answered = line, max(d.gap, now.Sub(d.answered)), now
}

// watch shows the traffic while f runs.
func (d *demo) watch(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		d.showTraffic()
		select {
		case <-done:
			return
		case <-tick.C:
		}
	}
}

// showTraffic shows the ping's last line and the connection's, or how long there has been none.
func (d *demo) showTraffic() {
	const silent = time.Second / 2
	d.mu.Lock()
	ping := string(DemoText) + d.answer
	if quiet := time.Since(d.answered); quiet > silent || d.answer == "" {
		ping = fmt.Sprintf("%cPing: no answer for %.1f s", DemoBad, quiet.Seconds())
	}
	c := d.conn
	d.mu.Unlock()
	if c == nil {
		tell(DemoNow, "%s\t%cTCP: being connected", ping, DemoText)
		return
	}

	var received [2]int
	var quiet time.Duration
	for i, e := range c.ends {
		e.mu.Lock()
		received[i], quiet = e.received, max(quiet, time.Since(e.last))
		e.mu.Unlock()
	}
	conn := fmt.Sprintf("%cTCP: %d lines from n6 have come, %d from n4", DemoText, received[1], received[0])
	if quiet > silent {
		conn = fmt.Sprintf("%cTCP: no line for %.1f s", DemoBad, quiet.Seconds())
	}
	tell(DemoNow, "%s\t%s", ping, conn)
}

// both runs two functions at once.
func both(f, g func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	g()
	<-done
}
