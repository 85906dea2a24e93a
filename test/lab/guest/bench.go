package guest

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mdlayher/netlink"
)

// A Figure is what a workload cost with a daemon on both nodes, from its beginning until both have come to rest. J translates.
type Figure struct {
	Jool, Workload, Daemon string
	Packets                int     // that J was to translate
	Seconds                float64 // that sending them took; of an advertisement, until the last session that ever was in K was there
	Datagrams              int     // sent by J, over UDP
	Injected               int     // entries given to K's kernel
	AtPeer, Of             int     // sessions in K, and in J
	TicksJ, TicksK         int     // of 10 ms, that the daemons were on a processor, in their own code or in the kernel for it
	SystemJ, SystemK       int     // those of them in the kernel; it tells the two apart by sampling
	SleepsJ, SleepsK       int     // times that the daemons' threads went to sleep
	Messages               int     // of J's module to its daemon; -1 where it does not count them
	Dropped                int     // entries for which J's module had no room; -1 where it does not count them
	ResidentJ, ResidentK   int     // KiB, at most
	LagHalf, LagMost       int     // ms until a new session was in K, of the median and of the slowest; 0 where that was not looked at
}

// FigureMark begins a line of a test's output that is a Figure, as JSON.
const FigureMark = "FIGURE "

// usage is what has been used at some time.
type usage struct {
	sent, bytes, read int // datagrams and bytes sent by J; datagrams read by K's daemon
	injected, dropped int
	messages          int
	ticksJ, systemJ   int
	ticksK, systemK   int
	sleepsJ, sleepsK  int
}

// The module's statistics, from 4.1.13 to 4.1.15.
const (
	statSSSRcvd    = 77 // JSTAT_JOOLD_SSS_RCVD
	statSSSNoSpace = 78 // JSTAT_JOOLD_SSS_ENOSPC
	statPktSent    = 79 // JSTAT_JOOLD_PKT_SENT
)

// A Bench is two daemons at work.
type Bench struct {
	*Lab
	Workload, Daemon string
	j, k             *Process // k is nil until it is started
	ours             bool     // K's daemon can be asked
	lags             []time.Duration
}

// Bench starts daemons on J and K and waits until both serve.
func (l *Lab) Bench(workload, name string, j, k Daemon) *Bench {
	l.t.Helper()
	b := &Bench{Lab: l, Workload: workload, Daemon: name, ours: k.ours}
	b.j, b.k = l.J.StartDaemon(j, SyncGroup6), l.K.StartDaemon(k, SyncGroup6)
	for n, d := range map[*Node]Daemon{l.J: j, l.K: k} {
		if d.ours {
			n.WaitInService()
		}
	}
	b.rest() // what a daemon does once is no part of what is measured
	return b
}

// Measure does some work and says what it cost. The work returns how many packets it had translated and how long it took.
func (b *Bench) Measure(work func() (packets int, took time.Duration)) {
	b.t.Helper()
	b.lags = nil
	before := b.usage()
	packets, took := work()
	after := b.rest()
	f := Figure{
		Jool: b.J.Jool(), Workload: b.Workload, Daemon: b.Daemon, Packets: packets, Seconds: took.Seconds(),
		Datagrams: after.sent - before.sent, Injected: after.injected - before.injected, Dropped: after.dropped - before.dropped,
		Messages: after.messages - before.messages, AtPeer: b.K.Count(), Of: b.J.Count(),
		TicksJ: after.ticksJ - before.ticksJ, TicksK: after.ticksK - before.ticksK,
		SystemJ: after.systemJ - before.systemJ, SystemK: after.systemK - before.systemK,
		SleepsJ: after.sleepsJ - before.sleepsJ, SleepsK: after.sleepsK - before.sleepsK,
	}
	if !b.countsSync() {
		f.Dropped, f.Messages = -1, -1
		if !b.ours && f.Datagrams > 0 {
			// Whole entries are all that is in a C daemon's datagram. What was lost on the way to K's daemon is as full as the rest.
			entries := (after.bytes - before.bytes - datagramHeaders*f.Datagrams) / nestedEntry
			f.Injected = entries * (after.read - before.read) / f.Datagrams
		}
	}
	_, f.ResidentJ = b.j.Memory()
	_, f.ResidentK = b.k.Memory()
	if slices.Sort(b.lags); len(b.lags) > 0 {
		f.LagHalf, f.LagMost = int(p50(b.lags).Milliseconds()), int(b.lags[len(b.lags)-1].Milliseconds())
	}
	line, err := json.Marshal(f)
	if err != nil {
		b.t.Fatalf("%v", err)
	}
	b.t.Logf("%s%s", FigureMark, line)
}

const (
	datagramHeaders = 14 + 40 + 8 // Ethernet, IPv6, UDP: the interface counts them
	// nestedEntry is the size of an entry up to 4.1.11: its header, four addresses with ports, protocol, state and timer, expiration.
	nestedEntry = 4 + 2*(4+20+8) + 2*(4+8+8) + 3*8 + 8
)

// countsSync tells whether the module counts what it does for session synchronization.
func (l *Lab) countsSync() bool { return l.J.Jool() != "4.1.9" }

// rest waits until neither daemon does anything any more, not even what Jool's own timer has it do each 2 s.
func (b *Bench) rest() usage {
	b.t.Helper()
	const quiet = 3 * time.Second
	last, since := b.usage(), time.Now()
	for deadline := time.Now().Add(limit); time.Since(since) < quiet; time.Sleep(time.Second) {
		now := b.usage()
		// An idle daemon says hello each second, and uses a tick now and then.
		if now.sent > last.sent+8 || now.injected != last.injected || now.ticksJ > last.ticksJ+10 || now.ticksK > last.ticksK+10 {
			last, since = now, time.Now()
		}
		if time.Now().After(deadline) {
			b.t.Logf("the daemons do not come to rest within %v", limit)
			break
		}
	}
	return b.usage()
}

func (b *Bench) usage() (u usage) {
	b.t.Helper()
	u.ticksJ, u.systemJ = b.j.ticks()
	u.sleepsJ = b.j.Sleeps()
	if b.k != nil {
		u.ticksK, u.systemK = b.k.ticks()
		u.sleepsK = b.k.Sleeps()
	}
	u.sent, u.read = b.J.udp6("Udp6OutDatagrams"), b.K.udp6("Udp6InDatagrams")
	u.bytes = b.number(strings.TrimSpace(b.J.Run("cat", "/sys/class/net/eth2/statistics/tx_bytes")))
	switch {
	case b.countsSync():
		b.K.asking(func(k *jool) (err error) { u.injected, err = k.stat(statSSSRcvd); return err })
		b.J.asking(func(j *jool) (err error) { u.dropped, err = j.stat(statSSSNoSpace); return err })
		b.J.asking(func(j *jool) (err error) { u.messages, err = j.stat(statPktSent); return err })
	case b.ours && b.k != nil:
		status, err := b.K.status()
		if err != nil {
			b.t.Fatalf("%v", err)
		}
		u.injected = int(status.Kernel.Injected)
	}
	return u
}

// lag makes a session in J and notes how long it takes to be in K.
func (b *Bench) lag(id uint16) {
	b.t.Helper()
	b.lags = append(b.lags, b.Lag(id))
}

// udp6 is one of the counters that the node's kernel keeps of UDP over IPv6. Nothing but its daemon uses that.
func (n *Node) udp6(name string) int {
	n.lab.t.Helper()
	for line := range strings.Lines(n.Run("cat", "/proc/net/snmp6")) {
		if f := strings.Fields(line); len(f) == 2 && f[0] == name {
			return n.lab.number(f[1])
		}
	}
	n.lab.t.Fatalf("%s: the kernel does not count %s", n.Name, name)
	return 0
}

func (l *Lab) number(text string) int {
	l.t.Helper()
	n, err := strconv.Atoi(text)
	if err != nil {
		l.t.Fatalf("%v", err)
	}
	return n
}

// ticks are those of 10 ms that a process has been on a processor, and those of them in the kernel. Only for nodes of this machine.
func (p *Process) ticks() (all, system int) {
	p.node.lab.t.Helper()
	text, err := os.ReadFile("/proc/" + p.pid() + "/stat")
	if err != nil {
		p.node.lab.t.Fatalf("%q: %v", p.args, err)
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	f := strings.Fields(rest)
	system = p.node.lab.number(f[12])
	return p.node.lab.number(f[11]) + system, system
}

// stat is one of the instance's statistics.
func (j *jool) stat(id uint16) (int, error) {
	ae := netlink.NewAttributeEncoder()
	ae.Uint8(attrOffsetU8, uint8(id-1))
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
		if ad.Type() == id {
			return int(ad.Uint64()), ad.Err()
		}
	}
	return 0, fmt.Errorf("Jool's statistics lack number %d: %w", id, ad.Err())
}

// Packets sends n packets from n6 to n4 in some flows in turn, at a rate per second (0: as fast as it goes), and returns how long it took.
func (l *Lab) Packets(n, flows, rate int) (took time.Duration) {
	l.t.Helper()
	_, took = l.packets(n, flows, rate, limit)
	return took
}

// Minute is Packets for a minute; it also returns how many the guest made of them.
func (l *Lab) Minute(flows, rate int) (n int, took time.Duration) {
	l.t.Helper()
	return l.packets(60*rate, flows, rate, time.Minute)
}

func (l *Lab) packets(most, flows, rate int, within time.Duration) (n int, took time.Duration) {
	l.t.Helper()
	from := l.flows()
	defer from.close()
	for start := time.Now(); n < most && took < within; n++ {
		if rate > 0 {
			time.Sleep(time.Until(start.Add(time.Duration(n) * time.Second / time.Duration(rate))))
		}
		if err := from.send(n % flows); err != nil {
			l.t.Fatalf("send packet %d from n6: %v", n, err)
		}
		took = time.Since(start)
	}
	return n, took
}

// Advertise has J's daemon advertise, and returns how long it took until the last session that ever was in K was there: until K has so many, or no
// more of them for a while, or the time is up.
func (b *Bench) Advertise(d Daemon, want int) (took time.Duration) {
	b.t.Helper()
	const patience, bound = 10 * time.Second, 2 * time.Minute // 500,000 sessions take ours 100 s, at its usual rate
	start := time.Now()
	advertisement := b.J.Start(d.advertise(b.J)...)
	b.K.asking(func(j *jool) error {
		most, last := 0, start
		for {
			have, err := j.count()
			now := time.Now()
			if have > most {
				most, last = have, now
			}
			if err != nil || have >= want || now.Sub(last) > patience || now.Sub(start) > bound {
				took = last.Sub(start)
				return err
			}
			time.Sleep(50 * time.Millisecond)
		}
	})
	b.Wait("the advertisement has ended", func() (string, bool) {
		ended, err := advertisement.Ended()
		if err != nil {
			b.t.Fatalf("advertise: %v: %s", err, advertisement.Output())
		}
		return advertisement.Output(), ended
	})
	return took
}
