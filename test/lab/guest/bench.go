package guest

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/mdlayher/netlink"

	"joold/internal/session"
)

// A Figure is what a workload cost with a daemon on both nodes, from its beginning until both have come to rest. J translates.
type Figure struct {
	Jool, Workload, Daemon string
	Packets                int     // translated by J in that time
	Seconds                float64 // that making them took, or the advertisement to be in K as far as it ever was
	Datagrams              int     // sent by J over the sync link
	Injected               int     // entries given to K's kernel
	AtPeer, Of             int     // sessions in K, and in J
	TicksJ, TicksK         int     // of 10 ms, that the daemons were on a processor, in their own code or in the kernel for it
	Dropped                int     // entries for which J's module had no room; -1 where it does not count them
	ResidentJ, ResidentK   int     // KiB, at most
}

// FigureMark begins a line of a test's output that is a Figure, as JSON.
const FigureMark = "FIGURE "

// usage is what has been used at some time.
type usage struct {
	packets, bytes, ticksJ, ticksK int
	rcvd, dropped                  int
}

// The module's statistics, from 4.1.13 to 4.1.15.
const (
	statSSSRcvd    = 77 // JSTAT_JOOLD_SSS_RCVD
	statSSSNoSpace = 78 // JSTAT_JOOLD_SSS_ENOSPC
)

// Measure does some work with daemons on J and K and says what it cost. The work returns how many packets it had translated and how long it took.
func (l *Lab) Measure(workload, daemon string, j, k *Process, work func() (packets int, took time.Duration)) {
	l.t.Helper()
	before := l.usage(j, k)
	packets, took := work()
	after := l.rest(j, k)
	f := Figure{
		Jool: l.J.Jool(), Workload: workload, Daemon: daemon, Packets: packets, Seconds: took.Seconds(),
		Datagrams: after.packets - before.packets, AtPeer: l.K.Count(), Of: l.J.Count(),
		TicksJ: after.ticksJ - before.ticksJ, TicksK: after.ticksK - before.ticksK,
		Injected: after.rcvd - before.rcvd, Dropped: after.dropped - before.dropped,
	}
	if !l.countsSync() {
		// Nothing but whole entries is in a datagram, beside its headers.
		const headers = 14 + 40 + 8
		f.Injected = (after.bytes - before.bytes - headers*f.Datagrams) / session.Enc4111.EntrySize()
		f.Dropped = -1
	}
	_, f.ResidentJ = j.Memory()
	_, f.ResidentK = k.Memory()
	line, err := json.Marshal(f)
	if err != nil {
		l.t.Fatalf("%v", err)
	}
	l.t.Logf("%s%s", FigureMark, line)
}

// countsSync tells whether the module counts what it does for session synchronization.
func (l *Lab) countsSync() bool { return l.J.Jool() != "4.1.9" }

// rest waits until neither daemon does anything any more, not even what Jool's own timer has it do each 2 s.
func (l *Lab) rest(j, k *Process) usage {
	l.t.Helper()
	const quiet = 5 * time.Second
	last, since := l.usage(j, k), time.Now()
	for deadline := time.Now().Add(limit); time.Since(since) < quiet; time.Sleep(time.Second) {
		now := l.usage(j, k)
		// An idle daemon uses a tick now and then.
		if now.packets > last.packets+2 || now.rcvd != last.rcvd || now.ticksJ > last.ticksJ+5 || now.ticksK > last.ticksK+5 {
			last, since = now, time.Now()
		}
		if time.Now().After(deadline) {
			l.t.Logf("the daemons do not come to rest within %v", limit)
			break
		}
	}
	return l.usage(j, k)
}

func (l *Lab) usage(j, k *Process) (u usage) {
	l.t.Helper()
	const tick = 10 * time.Millisecond
	u.ticksJ, u.ticksK = int(j.Busy()/tick), int(k.Busy()/tick)
	for name, value := range map[string]*int{"tx_packets": &u.packets, "tx_bytes": &u.bytes} {
		text := l.J.Run("cat", "/sys/class/net/eth2/statistics/"+name)
		n, err := strconv.Atoi(strings.TrimSpace(text))
		if err != nil {
			l.t.Fatalf("%s: %v", name, err)
		}
		*value = n
	}
	if l.countsSync() {
		l.K.asking(func(k *jool) (err error) { u.rcvd, err = k.stat(statSSSRcvd); return err })
		l.J.asking(func(j *jool) (err error) { u.dropped, err = j.stat(statSSSNoSpace); return err })
	}
	return u
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

// Packets sends n packets in some flows in turn, at a rate per second (0: as fast as it goes), and returns how long it took.
func (l *Lab) Packets(n, flows, rate int) (took time.Duration) {
	l.t.Helper()
	from := l.flows()
	defer from.close()
	start := time.Now()
	for i := range n {
		if rate > 0 {
			time.Sleep(time.Until(start.Add(time.Duration(i) * time.Second / time.Duration(rate))))
		}
		if err := from.send(i % flows); err != nil {
			l.t.Fatalf("send packet %d from n6: %v", i, err)
		}
	}
	return time.Since(start)
}

// Pair starts a daemon on both nodes and waits until both serve.
func (l *Lab) Pair(d Daemon) (j, k *Process) {
	l.t.Helper()
	j, k = l.J.StartDaemon(d, SyncGroup6), l.K.StartDaemon(d, SyncGroup6)
	if d.ours {
		l.J.WaitInService()
		l.K.WaitInService()
		time.Sleep(4 * time.Second) // for what a daemon does once
	}
	return j, k
}

// Growth waits until the node has so many sessions, or for a while no more of them, and returns how long it took to be there.
func (n *Node) Growth(want int, patience time.Duration) (took time.Duration) {
	n.lab.t.Helper()
	start := time.Now()
	n.asking(func(j *jool) error {
		most, last := -1, start
		for {
			have, err := j.count()
			now := time.Now()
			if have > most {
				most, last = have, now
			}
			if err != nil || have >= want || now.Sub(last) > patience {
				took = last.Sub(start)
				return err
			}
			time.Sleep(50 * time.Millisecond)
		}
	})
	return took
}
