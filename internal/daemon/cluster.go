package daemon

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"joold/internal/alarm"
	"joold/internal/cluster"
	"joold/internal/mcast"
	"joold/internal/session"
	"joold/internal/wire"
)

const (
	// lonelyRefresh and commonRefresh are the longest interval between refreshes where
	// the configuration names none: a C node hears announcements and nothing else; nodes
	// of ours find out what they lack.
	lonelyRefresh = 2 * time.Second
	commonRefresh = time.Minute

	// plainFor is for how long a C node that was heard is believed to listen.
	plainFor = time.Minute

	// minPayload is the least room in bytes that nodes count on for what they say to each
	// other: what is left of the smallest MTU of IPv6.
	minPayload = 1000

	// fewWait are so few sessions that wait for the kernel as always may, some perAdd.
	fewWait = 4 * perAdd

	// renewAgain is the least time between two new names for the same reason, since
	// without a key anybody can claim to be anybody.
	renewAgain = time.Minute
)

// member is this node's part in the cluster: a run of it that lasts as long as the
// link, under one epoch. The outlet's lock is its lock.
type member struct {
	*cluster.Node // nil while there is no instance
	config        cluster.Config
	timer         *alarm.Alarm  // calls tick
	wakes         time.Time     // when timer fires; zero when it is not set
	renewed       time.Time     // when it last got another name without a new link
	common        bool          // nodes of ours listen, and no others
	narrow        bool          // a datagram of its own did not fit
	behind        bool          // of a copy some sessions may still wait for the kernel
	asleep        time.Duration // how long the machine had slept by the last tick
	buf           []byte
	sessions      []session.Session
}

// enter begins a run, as another than any before. kept is whether the kernel's
// table is one that was in sync just now.
func (o *outlet) enter(kept bool, now time.Time) {
	m := &o.member
	clear(o.standing.known) // who is met will be met anew
	if m.Node != nil {      // the table stays, and with it what it knows of whose word it has
		m.config.Met = m.Met()
	}
	o.d.signer.Renew()
	m.config.Epoch, m.config.Keyed, m.config.Kept = o.d.signer.Epoch(), o.d.live.Load().Keys.Signing(), kept
	m.Node, m.asleep = cluster.New(m.config, host{o}, now), o.asleep()
	o.arm(now)
}

// leave says goodbye.
func (o *outlet) leave() {
	o.member.Bye()
	o.member.Node = nil
	o.member.timer.Stop()
	o.member.wakes = time.Time{}
}

// renew begins another run, unless that was just done.
func (o *outlet) renew(now time.Time) (done bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	m := &o.member
	if m.Node == nil || !m.renewed.IsZero() && now.Sub(m.renewed) < renewAgain {
		return false
	}
	m.renewed = now
	o.enter(m.Status().State == cluster.Synced, now)
	return true
}

// rekeyed begins another run if from now on all is signed, or nothing: what counts
// as proof of being here is not the same.
func (o *outlet) rekeyed() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if m := &o.member; m.Node != nil && m.config.Keyed != o.d.live.Load().Keys.Signing() {
		o.enter(m.Status().State == cluster.Synced, time.Now())
	}
}

// describe takes from l what other nodes are told of this one.
func (o *outlet) describe(l *link) {
	c, v := &o.member.config, l.Module().Version
	c.Name, c.Version, c.Random = o.d.name, o.d.Version, func(b []byte) { rand.Read(b) }
	c.Module, c.Encoding = [4]uint8{v.Major, v.Minor, v.Revision, v.Dev}, l.Module().Encoding
	c.Timeouts, c.Parts, c.Entry = l.globals.Timeouts, l.parts(), o.encoding.EntrySize()
}

// fit has the node's own datagrams fit the path.
func (o *outlet) fit(maxPayload int) {
	m := &o.member
	m.narrow = false
	payload := max(minPayload, maxPayload-wire.Overhead)
	if payload == m.config.Payload {
		return
	}
	m.config.Payload = payload
	if m.Node != nil {
		m.Configure(m.config)
	}
}

// parts are what should be alike on all nodes, as people can read it.
func (l *link) parts() (c cluster.Configuration) {
	c[cluster.Pool6] = []string{l.pool6.String()}
	t := l.globals.Timeouts
	for name, ms := range map[string]uint32{"tcp-est": t.TCPEst, "tcp-trans": t.TCPTrans, "udp": t.UDP, "icmp": t.ICMP} {
		c[cluster.Timeouts] = append(c[cluster.Timeouts], fmt.Sprintf("%s %v", name, time.Duration(ms)*time.Millisecond))
	}
	for _, e := range l.pool4 {
		c[cluster.Pool4] = append(c[cluster.Pool4], fmt.Sprintf("%v %v %d-%d mark %d", e.Proto, e.Prefix, e.MinPort, e.MaxPort, e.Mark))
	}
	for _, e := range l.static {
		c[cluster.StaticBIB] = append(c[cluster.StaticBIB], fmt.Sprintf("%v %v %v", e.Proto, e.Src6, e.Src4))
	}
	return c
}

// asleep is how long this machine has slept since it was booted. Go's clock does not
// run meanwhile.
func asleep() time.Duration {
	var running, passed unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &running) != nil || unix.ClockGettime(unix.CLOCK_BOOTTIME, &passed) != nil {
		return 0
	}
	return time.Duration(passed.Nano() - running.Nano())
}

// arm has the node ticked when it wants to be.
func (o *outlet) arm(now time.Time) {
	m := &o.member
	at := m.Next()
	if m.wakes.IsZero() || at.Before(m.wakes) {
		m.wakes = at
		m.timer.Reset(max(0, at.Sub(now)))
	}
}

func (o *outlet) tick() {
	o.mu.Lock()
	defer o.mu.Unlock()
	m, now := &o.member, time.Now()
	if m.wakes = (time.Time{}); m.Node == nil {
		return
	}
	if asleep := o.asleep(); asleep-m.asleep > stoppedFor {
		m.Slept(asleep-m.asleep, now)
		m.asleep = asleep
	}
	m.Tick(now, o.link.translates())
	o.standing.look(m.Node, now)
	if now.Sub(o.expired) >= time.Second {
		o.expired = now
		o.table.Expire(now)
	}
	m.behind = m.behind && o.link.waiting().Waiting >= fewWait
	if m.narrow {
		o.resizeLocked(o.d.maxPayload())
	}
	if common := m.Accompanied() && !o.d.live.Load().CPeers && !o.d.peers.plain(now); common != m.common {
		m.common = common
		o.tableConfig.Refresh = o.refresh()
		o.table.Configure(o.tableConfig)
	}
	o.arm(now)
}

// refresh is the longest interval between two refreshes of a session.
func (o *outlet) refresh() time.Duration {
	switch cfg := o.d.live.Load(); {
	case cfg.Refresh > 0:
		return cfg.Refresh
	case o.member.common:
		return commonRefresh
	}
	return lonelyRefresh
}

// receive asks the node about a datagram that l got; false if it is over.
func (o *outlet) receive(l *link, dg *wire.Datagram, from netip.AddrPort, now time.Time) (r cluster.Reception, ok bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.link != l || l == nil {
		return r, false
	}
	defer o.arm(now)
	return o.member.Receive(dg, from, now), true
}

// learned says how many sessions of a copy's datagram were not known, how many entries
// were refused, and how many will wait for the kernel.
func (o *outlet) learned(l *link, news, refused, wait int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.link == l {
		o.member.Learned(news, refused)
		o.member.behind = o.member.behind || wait > 0
	}
}

// lacks says that l may lack whatever the others have.
func (o *outlet) lacks(l *link, why string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.link == l {
		o.member.Lacks(why)
		o.arm(time.Now())
	}
}

// doubtful says that what was refused before would be taken now.
func (o *outlet) doubtful(l *link) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.link == l {
		o.member.Doubt()
	}
}

// firstHand tells whether it is this node that knows best of a session: what its own
// kernel has said, or if it translates, has without any other node having told it.
func (o *outlet) firstHand(r session.Ref) bool {
	return o.table.FirstHand(r) || o.table.Untold(r) && o.link.translates()
}

// host is the outlet as its member needs it.
type host struct{ *outlet }

func (h host) Send(dg cluster.Datagram) {
	m, d := &h.member, h.d
	group := d.group()
	if group == nil {
		return
	}
	m.sessions, m.buf = h.table.AsOf(m.sessions[:0], dg.Sessions, time.Now()), m.buf[:0]
	for i := range m.sessions {
		m.buf = h.encoding.Append(m.buf, &m.sessions[i], h.pool6)
	}
	m.buf = d.signer.StampApart(m.buf, dg.Flags, dg.Body)
	var err error
	if dg.To.IsValid() {
		err = group.WriteTo(m.buf, dg.To)
	} else {
		err = group.Write(m.buf)
	}
	if err != nil {
		m.narrow = m.narrow || errors.Is(err, mcast.ErrTooBig)
		d.count.apartErrors.add(err)
		return
	}
	d.count.apartDatagrams.Add(1)
	d.count.apartSessions.Add(uint64(len(m.sessions)))
	d.count.apartBytes.Add(uint64(len(m.buf)))
}

func (h host) FirstHand(r session.Ref) bool { return h.firstHand(r) }

func (h host) Scan(found []session.Placed, at session.Ref, chosen *session.Buckets) ([]session.Placed, session.Ref) {
	return h.table.Scan(found, at, chosen)
}

func (h host) Digest() *session.Digest { return h.table.Digest() }

// Room has a copy wait for whatever else the kernel has to take in, and for
// synchronization to be turned on.
func (h host) Room() int {
	if !h.link.sync.Load() || h.link.misreads() {
		return 0
	}
	return max(0, copiedSize/2-h.link.waiting().Waiting)
}

func (h host) Sweep() { h.d.repairs.oweAll("a node lacks what is no longer known one by one") }
