package daemon

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"joold/internal/config"
	"joold/internal/control"
	"joold/internal/mcast"
	"joold/internal/nlchan"
	"joold/internal/session"
	"joold/internal/wire"
)

func pool6(s string) session.Pool6 {
	p, err := session.NewPool6(netip.MustParsePrefix(s))
	if err != nil {
		panic(err)
	}
	return p
}

var wkp = pool6("64:ff9b::/96")

// modelKernel is an instance of which the daemon sees what the real one shows.
type modelKernel struct {
	announced chan []byte // messages of the joold channel, as their entries
	late      func(entries int) bool
	overrun   chan struct{}
	closed    chan struct{}
	closeOnce sync.Once
	module    nlchan.Module
	addTime   time.Duration
	senseless int // sessions in each protocol's table that cannot be read

	mu        sync.Mutex
	globals   nlchan.Globals
	pool4     []nlchan.Pool4Entry
	static    []nlchan.BIBEntry
	stats     nlchan.Stats
	removed   []nlchan.BIBEntry
	removeErr error
	table     []session.Session
	added     [][]session.Session
	acks      int
	gone      error
	addErr    error
	dumping   func() // runs while the table is being read
	dumped    int    // protocols of which the table has been read
}

func newModelKernel(e session.Encoding) *modelKernel {
	return &modelKernel{
		announced: make(chan []byte, 100),
		overrun:   make(chan struct{}, 1),
		closed:    make(chan struct{}),
		module:    nlchan.Module{Version: nlchan.Version{Major: 4, Minor: 1, Revision: 15}, Encoding: e},
		globals:   nlchan.Globals{Pool6: wkp, Timeouts: session.DefaultTimeouts, SyncEnabled: true},
		pool4: []nlchan.Pool4Entry{{Range: session.Range{
			Proto: session.UDP, Prefix: netip.MustParsePrefix("192.0.2.1/32"), MinPort: 61001, MaxPort: 65535,
		}}},
	}
}

func (k *modelKernel) Module() nlchan.Module { return k.module }

func (k *modelKernel) Receive(buf []byte) (nlchan.Message, error) {
	select {
	case m := <-k.announced:
		return k.message(buf, m), nil
	case <-k.overrun:
		return nlchan.Message{}, nlchan.ErrOverrun
	case <-k.closed:
		return nlchan.Message{}, os.ErrDeadlineExceeded
	}
}

func (k *modelKernel) message(buf, entries []byte) nlchan.Message {
	m := nlchan.Message{Entries: buf[:copy(buf, entries)]}
	m.Held = k.late != nil && k.late(len(m.Entries))
	return m
}

func (k *modelKernel) Hold(late func(entries int) bool) { k.late = late }

func (k *modelKernel) SetReadDeadline(time.Time) error {
	k.closeOnce.Do(func() { close(k.closed) })
	return nil
}

func (k *modelKernel) Close() error { return k.SetReadDeadline(time.Time{}) }

func (k *modelKernel) Ack() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.acks++
	return k.gone
}

func (k *modelKernel) Add(s []session.Session, p session.Pool6) error {
	time.Sleep(k.addTime)
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.addErr != nil {
		return k.addErr
	}
	k.added = append(k.added, slices.Clone(s))
	return nil
}

func (k *modelKernel) Sessions(_ context.Context, proto session.Proto, _ session.Pool6, page func([]session.Session) error) error {
	k.mu.Lock()
	var some []session.Session
	for _, s := range k.table {
		if s.Proto == proto {
			some = append(some, s)
		}
	}
	dumping := k.dumping
	k.mu.Unlock()
	if dumping != nil {
		dumping()
	}
	for chunk := range slices.Chunk(some, 25) {
		if err := page(chunk); err != nil {
			return err
		}
	}
	k.set(func() { k.dumped++ })
	if k.senseless > 0 {
		return &nlchan.Error{Op: "dump", Err: &nlchan.UnreadableError{Count: k.senseless}}
	}
	return nil
}

func (k *modelKernel) Globals(context.Context) (nlchan.Globals, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.globals, k.gone
}

func (k *modelKernel) Pool4(context.Context) ([]nlchan.Pool4Entry, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.pool4, k.gone
}

func (k *modelKernel) StaticBIB(context.Context, func(int) error) ([]nlchan.BIBEntry, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.static, k.gone
}

func (k *modelKernel) Stats(context.Context) (nlchan.Stats, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.stats, k.gone
}

func (k *modelKernel) Update(_ context.Context, s nlchan.Settings) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for knob, value := range s.All() {
		k.globals.Set(knob, value)
		if knob == nlchan.SSEnabled {
			k.globals.SyncEnabled = value == 1
		}
	}
	return k.gone
}

func (k *modelKernel) RemoveBIB(_ context.Context, p session.Proto, src6, src4 netip.AddrPort) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.removed = append(k.removed, nlchan.BIBEntry{Proto: p, Src6: src6, Src4: src4})
	return cmp.Or(k.gone, k.removeErr)
}

// set changes the instance.
func (k *modelKernel) set(change func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	change()
}

func (k *modelKernel) Counters() nlchan.Counters { return nlchan.Counters{} }

// taken is all that was added so far.
func (k *modelKernel) taken() []session.Session {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Concat(k.added...)
}

// modelGroup is a network of which the test is the other end.
type modelGroup struct {
	in      chan []byte
	ended   chan struct{} // by a deadline
	closed  chan struct{}
	once    sync.Once
	closing sync.Once

	mu        sync.Mutex
	change    mcast.Change // what Check finds
	unplugged bool
	path      error // and why
	out       [][]byte
	apart     [][]byte // what not all need to have: what nodes say to each other
	errs      []error  // of the writes to come
	narrow    int      // the payload that still fits; 0 for anything
	max       int      // what MaxPayload says
}

func newModelGroup() *modelGroup {
	return &modelGroup{in: make(chan []byte, 1000), ended: make(chan struct{}), closed: make(chan struct{}), max: 1452}
}

var sender = netip.MustParseAddrPort("[fe80::5%eth2]:6400")

func (g *modelGroup) ReadBatch(d []mcast.Datagram) (int, error) {
	select {
	case b := <-g.in:
		d[0].Payload, d[0].From = b, sender
		return 1, nil
	case <-g.ended:
		return 0, os.ErrDeadlineExceeded
	case <-g.closed:
		return 0, net.ErrClosed
	}
}

func (g *modelGroup) Close() error {
	g.closing.Do(func() { close(g.closed) })
	return nil
}

func (g *modelGroup) Write(b []byte) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if dg, _ := wire.Parse(b); dg.Number >= wire.Apart {
		g.apart = append(g.apart, bytes.Clone(b))
		return nil
	}
	if g.narrow > 0 && len(b) > g.narrow {
		g.max = g.narrow
		return mcast.ErrTooBig
	}
	if len(g.errs) > 0 {
		err := g.errs[0]
		g.errs = g.errs[1:]
		return err
	}
	g.out = append(g.out, bytes.Clone(b))
	return nil
}

func (g *modelGroup) WriteTo(b []byte, _ netip.AddrPort) error { return g.Write(b) }

func (g *modelGroup) MaxPayload() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.max
}

func (g *modelGroup) Check() (mcast.Change, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.change, g.path
}

func (g *modelGroup) Carrier() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return !g.unplugged
}

// plug gives the interface a carrier, or takes it away.
func (g *modelGroup) plug(in bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.unplugged = !in
}

// fail makes the writes to come fail.
func (g *modelGroup) fail(errs ...error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.errs = errs
}

// becomes changes what Check finds.
func (g *modelGroup) becomes(c mcast.Change, why error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.change, g.path = c, why
}

func (g *modelGroup) SetReadDeadline(time.Time) error {
	g.once.Do(func() { close(g.ended) })
	return nil
}

func (g *modelGroup) Local() mcast.Local { return mcast.Local{} }
func (g *modelGroup) Drops() uint64      { return 0 }

// sent decodes what was written so far.
func (g *modelGroup) sent(p session.Pool6) (all []session.Session, datagrams int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, b := range g.out {
		all, _ = session.Decode(all, b, p)
	}
	return all, len(g.out)
}

// bench is a daemon between a model kernel and a model group.
type bench struct {
	*Daemon
	k          *modelKernel
	g          *modelGroup
	dials      chan dialled // the links to come after the first
	t          *testing.T
	events     chan nlchan.Event
	pathEvents chan struct{}
	groups     chan *modelGroup // those to come
	reloads    chan os.Signal
	logs       *syncBuffer
	stop       func()
}

type dialled struct {
	k   *modelKernel
	err error
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// start runs a daemon until the test ends.
func start(t *testing.T, k *modelKernel, change func(*config.Config)) *bench {
	t.Helper()
	return startLevel(t, k, change, slog.LevelInfo)
}

func startLevel(t *testing.T, k *modelKernel, change func(*config.Config), level slog.Level) *bench {
	t.Helper()
	cfg := testConfig()
	if change != nil {
		change(cfg)
	}
	b := bench0(t, cfg, level)
	b.k = k
	first := make(chan *modelKernel, 1)
	first <- k
	b.dial = func() (kernel, error) {
		select {
		case k := <-first:
			return k, nil
		case d := <-b.dials:
			return d.k, d.err
		}
	}
	stuck := k.dumping != nil
	b.run()
	eventually(t, "the daemon is in service", b.serves)
	eventually(t, "the kernel's table is known", func() (known bool) {
		k.set(func() { known = k.dumped >= len(session.Protos) })
		return known || stuck
	})
	return b
}

// serves tells whether the daemon has all that it needs, and has said so.
func (b *bench) serves() bool {
	return b.condition.why(theInstance) == "" && b.condition.why(theGroup) == "" && b.link.Load() != nil && b.group() != nil
}

func testConfig() *config.Config {
	return &config.Config{
		Instance: "edge", BatchDeadline: 10 * time.Millisecond, Refresh: 2 * time.Second, Table: 1_000_000, Pending: 65536,
	}
}

// bench0 is a bench whose daemon does not run yet.
func bench0(t *testing.T, cfg *config.Config, level slog.Level) *bench {
	b := &bench{
		t: t, g: newModelGroup(), dials: make(chan dialled), groups: make(chan *modelGroup, 1), logs: new(syncBuffer),
		events: make(chan nlchan.Event), pathEvents: make(chan struct{}), reloads: make(chan os.Signal),
	}
	levels := new(slog.LevelVar)
	levels.Set(level)
	log := slog.New(slog.NewTextHandler(io.MultiWriter(b.logs, t.Output()), &slog.HandlerOptions{Level: levels}))
	b.Daemon = newDaemon(cfg, Options{Version: "test", Log: log, Level: levels, Hangup: b.reloads})
	b.flapInterval = 50 * time.Millisecond
	b.groups <- b.g
	b.open = func(context.Context) (network, error) {
		select {
		case g, ok := <-b.groups:
			if ok {
				return g, nil
			}
			return nil, net.ErrClosed
		default:
			return nil, &mcast.Error{Op: "join", Device: "eth2", Err: mcast.ErrNoInterface}
		}
	}
	b.newWatcher = func() (watcher, error) { return modelWatcher(b.events), nil }
	b.watchPath = func(ctx context.Context, changed func()) error {
		for {
			select {
			case <-b.pathEvents:
				changed()
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	return b
}

// run runs the daemon until the test ends.
func (b *bench) run() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		g, ctx := errgroup.WithContext(ctx)
		g.Go(func() error { return b.Daemon.run(ctx) })
		g.Go(func() error { return b.followReloads(ctx) })
		done <- g.Wait()
	}()
	b.stop = sync.OnceFunc(func() {
		close(b.dials)
		cancel()
		if err := <-done; err != nil {
			b.t.Errorf("the daemon ended with %v", err)
		}
	})
	b.t.Cleanup(b.stop)
}

// modelWatcher yields what the test puts in.
type modelWatcher chan nlchan.Event

func (w modelWatcher) Run(ctx context.Context, f func(nlchan.Event)) error {
	for {
		select {
		case e := <-w:
			f(e)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (w modelWatcher) Close() error { return nil }

// eventually waits for a state, generously.
func eventually(t *testing.T, state string, ok func() bool) {
	t.Helper()
	for limit := time.Now().Add(30 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatalf("not within 30 s: %s", state)
		}
	}
}

func udp(port uint16, expiration uint32) session.Session {
	return session.Session{
		Src6: netip.MustParseAddr("2001:db8::8").As16(), Src4: [4]byte{192, 0, 2, 1}, Dst4: [4]byte{192, 0, 2, 8},
		Src6Port: port, Src4Port: 61001 + port%4000, Dst4Port: 53, Proto: session.UDP, Expiration: expiration,
	}
}

func encode(e session.Encoding, p session.Pool6, ss ...session.Session) (b []byte) {
	for i := range ss {
		b = e.Append(b, &ss[i], p)
	}
	return b
}

func ports(ss []session.Session) (p []uint16) {
	for _, s := range ss {
		p = append(p, s.Src6Port)
	}
	return p
}

func TestWhatTheKernelAnnouncesIsSentInEveryWireEncoding(t *testing.T) {
	for _, kernelSpeaks := range session.Encodings {
		for _, wire := range append(session.Encodings[:], 0) {
			t.Run(kernelSpeaks.String()+" to "+wire.String(), func(t *testing.T) {
				b := start(t, newModelKernel(kernelSpeaks), func(c *config.Config) { c.Wire = wire })
				b.k.announced <- encode(kernelSpeaks, wkp, udp(1, 300_000), udp(2, 250_000))
				eventually(t, "both sessions are sent", func() bool { all, _ := b.g.sent(wkp); return len(all) == 2 })
				all, datagrams := b.g.sent(wkp)
				if !slices.Equal(ports(all), []uint16{1, 2}) || datagrams != 1 {
					t.Errorf("sent %+v in %d datagrams", all, datagrams)
				}
				_, r := session.Decode(nil, b.g.out[0], wkp)
				if want := max(wire, 0); want == 0 && r.Encoding != kernelSpeaks || want != 0 && r.Encoding != want {
					t.Errorf("sent in %s", r.Encoding)
				}
			})
		}
	}
}

func TestWhatTheNetworkBringsIsInjectedWhateverItsEncoding(t *testing.T) {
	for _, e := range session.Encodings {
		b := start(t, newModelKernel(session.Enc4113), nil)
		b.g.in <- encode(e, wkp, udp(2, 250_000), udp(1, 200_000))
		eventually(t, "both sessions are added", func() bool { return len(b.k.taken()) == 2 })
		if got := ports(b.k.taken()); !slices.Equal(got, []uint16{1, 2}) {
			t.Errorf("%s: added %v, want oldest first", e, got)
		}
		s := b.status(time.Now())
		if len(s.Peers) != 1 || s.Peers[0].Encoding != e.String() || s.Peers[0].Address != "fe80::5%eth2" {
			t.Errorf("%s: peers %+v", e, s.Peers)
		}
	}
}

func TestDebugLinesTellOfEachMessageAndOtherwiseThereAreNone(t *testing.T) {
	for _, level := range []slog.Level{slog.LevelDebug, slog.LevelInfo} {
		b := startLevel(t, newModelKernel(session.Enc4113), nil, level)
		b.k.announced <- encode(session.Enc4113, wkp, udp(1, 300_000))
		b.g.in <- encode(session.Enc4113, wkp, udp(2, 300_000))
		eventually(t, "both have passed", func() bool { return b.count.sentDatagrams.Load() == 1 && b.count.injected.Load() == 1 })
		want := 0
		if level == slog.LevelDebug {
			want = 4 // announced, sent, heard, injected
		}
		eventually(t, "the lines are there", func() bool { return strings.Count(b.logs.String(), "level=DEBUG") == want })
	}
}

func TestAFullDatagramLeavesAtOnceAndTheRestAtTheDeadline(t *testing.T) {
	b := start(t, newModelKernel(session.Enc4113), func(c *config.Config) { c.BatchDeadline = time.Second })
	var ss []session.Session
	for p := range uint16(40) {
		ss = append(ss, udp(p, 300_000))
	}
	b.k.announced <- encode(session.Enc4113, wkp, ss...)
	eventually(t, "a full datagram is out", func() bool { _, n := b.g.sent(wkp); return n >= 1 })
	if n := len(b.g.out[0]); n != 35*40+wire.Overhead {
		t.Errorf("the first datagram has %d bytes, want 35 entries and their stamp", n)
	}
	eventually(t, "all is out", func() bool { all, _ := b.g.sent(wkp); return len(all) == 40 })
	all, _ := b.g.sent(wkp)
	if all[39].Expiration > 299_000 {
		t.Errorf("the last session has %d ms left: its waiting was not taken off", all[39].Expiration)
	}
}

func TestADatagramThatNoLongerFitsGoesInPieces(t *testing.T) {
	b := start(t, newModelKernel(session.Enc4113), nil)
	b.g.mu.Lock()
	b.g.narrow = 500
	b.g.mu.Unlock()
	var ss []session.Session
	for p := range uint16(35) {
		ss = append(ss, udp(p, 300_000))
	}
	b.k.announced <- encode(session.Enc4113, wkp, ss...)
	eventually(t, "all is out", func() bool { all, _ := b.g.sent(wkp); return len(all) == 35 })
	if _, n := b.g.sent(wkp); n != 4 {
		t.Errorf("%d datagrams, want 4 of at most 11 entries", n)
	}
}

func TestAWiderPathIsMadeUseOf(t *testing.T) {
	b := start(t, newModelKernel(session.Enc4113), func(c *config.Config) { c.BatchDeadline = time.Second })
	b.out.resize(500) // it was narrow
	b.g.becomes(mcast.Changed, nil)
	var ss []session.Session
	for p := range uint16(35) {
		ss = append(ss, udp(p, 300_000))
	}
	b.checkPath()
	b.k.announced <- encode(session.Enc4113, wkp, ss...)
	eventually(t, "all is out", func() bool { all, _ := b.g.sent(wkp); return len(all) == 35 })
	if _, n := b.g.sent(wkp); n != 1 {
		t.Errorf("%d datagrams, want 1", n)
	}
}

func TestBadEntriesNeverReachTheKernelAndAreCounted(t *testing.T) {
	b := start(t, newModelKernel(session.Enc4113), nil)
	immortal, strange, tcp := udp(2, 4_000_000_000), udp(3, 1000), udp(4, 1000)
	strange.Src4 = [4]byte{203, 0, 113, 1}
	tcp.Proto, tcp.State = session.TCP, session.Trans
	b.g.in <- encode(session.Enc4113, wkp, immortal, strange, tcp, udp(1, 1000))
	b.g.in <- encode(session.Enc4112, pool6("2001:db8:64::/96"), udp(5, 1000))
	b.g.in <- []byte{1, 2, 3}
	b.g.in <- encode(session.Enc4113, wkp, udp(6, 2000))
	eventually(t, "the good ones are added", func() bool { return len(b.k.taken()) == 2 })
	if got := ports(b.k.taken()); !slices.Equal(got, []uint16{1, 6}) {
		t.Errorf("added %v", got)
	}
	n := b.status(time.Now()).Net
	if n.Refused["expiration"] != 1 || n.Refused["pool4"] != 1 || n.Refused["timer"] != 1 ||
		n.Unreadable["pool6"] != 1 || n.Unreadable["header"] != 1 || n.RcvdSessions != 5 {
		t.Errorf("counted %+v", n)
	}
}

func TestAStaticBIBEntrysMaskIsAccepted(t *testing.T) {
	k := newModelKernel(session.Enc4113)
	k.static = []nlchan.BIBEntry{{Proto: session.UDP, Src4: netip.MustParseAddrPort("203.0.113.1:53")}}
	b := start(t, k, nil)
	s := udp(1, 1000)
	s.Src4, s.Src4Port = [4]byte{203, 0, 113, 1}, 53
	b.g.in <- encode(session.Enc4113, wkp, s)
	eventually(t, "it is added", func() bool { return len(b.k.taken()) == 1 })
}

func TestAnOverrunIsCountedAndSurvived(t *testing.T) {
	b := start(t, newModelKernel(session.Enc4113), nil)
	b.k.overrun <- struct{}{}
	b.k.announced <- encode(session.Enc4113, wkp, udp(1, 1000))
	eventually(t, "the next message is sent", func() bool { all, _ := b.g.sent(wkp); return len(all) == 1 })
	if n := b.status(time.Now()).Kernel.Overruns; n != 1 {
		t.Errorf("counted %d overruns", n)
	}
}

func TestSendErrorsAreCountedByKindAndSurvived(t *testing.T) {
	b := start(t, newModelKernel(session.Enc4113), nil)
	b.g.mu.Lock()
	b.g.errs = []error{syscall.EPERM}
	b.g.mu.Unlock()
	b.k.announced <- encode(session.Enc4113, wkp, udp(1, 1000))
	eventually(t, "the error is counted", func() bool { return b.status(time.Now()).Net.SendErrors["EPERM"] == 1 })
	b.k.announced <- encode(session.Enc4113, wkp, udp(2, 1000))
	eventually(t, "both are sent", func() bool { all, _ := b.g.sent(wkp); return len(all) == 2 })
}

func TestTheDaemonWaitsForAnInstanceThatWentAwayAndServesItAgain(t *testing.T) {
	b := start(t, newModelKernel(session.Enc4113), nil)
	gone := &nlchan.Error{Op: "find", Instance: "edge", Err: nlchan.ErrNoInstance}
	b.k.set(func() { b.k.gone = gone })
	b.dials <- dialled{err: gone}
	eventually(t, "status says what it waits for", func() bool {
		s := b.status(time.Now())
		return !s.Instance.InService && strings.Contains(s.Instance.WaitingFor, "edge")
	})
	b.g.in <- encode(session.Enc4113, wkp, udp(1, 1000))
	eventually(t, "what comes meanwhile is counted", func() bool { return b.count.unserved.Load() == 1 })

	next := newModelKernel(session.Enc4111)
	next.globals.Pool6 = pool6("2001:db8:64::/64")
	b.dials <- dialled{k: next}
	eventually(t, "it is in service again", func() bool { return b.link.Load() != nil })
	b.g.in <- encode(session.Enc4113, wkp, udp(2, 1000))
	eventually(t, "the new instance is fed", func() bool { return len(next.taken()) == 1 })
	next.announced <- encode(session.Enc4111, next.globals.Pool6, udp(3, 1000))
	eventually(t, "the new instance is heard", func() bool { all, _ := b.g.sent(next.globals.Pool6); return len(all) == 1 })
	if _, r := session.Decode(nil, b.g.out[0], next.globals.Pool6); r.Encoding != session.Enc4111 {
		t.Errorf("sent in %s, want the new module's encoding", r.Encoding)
	}
}

func TestARemovedModuleEndsTheServiceAtOnce(t *testing.T) {
	b := start(t, newModelKernel(session.Enc4113), nil)
	b.events <- nlchan.EventsLost
	b.events <- nlchan.ModuleRemoved
	next := newModelKernel(session.Enc4111)
	b.dials <- dialled{k: next}
	eventually(t, "the new module is served", func() bool { l := b.link.Load(); return l != nil && l.kernel == kernel(next) })
}

func TestAnotherPool6MakesItAnotherInstance(t *testing.T) {
	b := start(t, newModelKernel(session.Enc4113), nil)
	b.k.mu.Lock()
	b.k.globals.Pool6 = pool6("2001:db8:64::/96")
	b.k.mu.Unlock()
	next := newModelKernel(session.Enc4113)
	next.globals.Pool6 = pool6("2001:db8:64::/96")
	b.dials <- dialled{k: next}
	eventually(t, "it is served again", func() bool { l := b.link.Load(); return l != nil && l.kernel == kernel(next) })
}

func TestADisabledInstanceIsToldOfOnceWithTheCommandThatEnablesIt(t *testing.T) {
	k := newModelKernel(session.Enc4113)
	k.globals.SyncEnabled = false
	b := start(t, k, nil)
	const command = "jool -i edge global update ss-enabled true"
	eventually(t, "the log has the command", func() bool { return strings.Contains(b.logs.String(), command) })
	b.k.mu.Lock()
	b.k.globals.SyncEnabled = true
	b.k.mu.Unlock()
	eventually(t, "the log says that it was turned on", func() bool { return strings.Contains(b.logs.String(), "turned on") })
	on := time.Now()
	eventually(t, "some polls have passed", func() bool { return time.Since(on) > 3*pollInterval })
	if n := strings.Count(b.logs.String(), "synchronization"); n != 2 {
		t.Errorf("said %d times, want once that it is off and once that it is on", n)
	}
}

func TestTheKernelIsFreedFromADeadDaemonsDebt(t *testing.T) {
	b := start(t, newModelKernel(session.Enc4113), nil)
	b.k.mu.Lock()
	defer b.k.mu.Unlock()
	if b.k.acks != 1 {
		t.Errorf("%d ACKs at start, want 1", b.k.acks)
	}
}

func TestStoppingSendsWhatWaits(t *testing.T) {
	b := start(t, newModelKernel(session.Enc4113), func(c *config.Config) { c.BatchDeadline = time.Hour })
	b.k.announced <- encode(session.Enc4113, wkp, udp(1, 300_000))
	eventually(t, "it is heard", func() bool { return b.count.kernelSessions.Load() == 1 })
	b.stop()
	if all, _ := b.g.sent(wkp); len(all) != 1 {
		t.Errorf("%d sessions sent", len(all))
	}
}

func advertise(b *bench, rate int) (control.Progress, error) {
	return b.advertise(context.Background(), rate, func(control.Progress) error { return nil })
}

func TestAnAdvertisementSendsTheTableOldestFirst(t *testing.T) {
	k := newModelKernel(session.Enc4113)
	for p := range uint16(1000) {
		s := udp(p, 1+uint32(p)*7919%300_000+60_000)
		if s.Proto = session.Protos[p%3]; s.Proto == session.ICMP {
			s.Dst4Port = s.Src4Port
		}
		k.table = append(k.table, s)
	}
	b := start(t, k, nil)
	p, err := advertise(b, 1_000_000)
	if err != nil || p.Total != 1000 || p.Sent != 1000 || p.Datagrams != 29 {
		t.Errorf("%+v, %v", p, err)
	}
	all, _ := b.g.sent(wkp)
	if len(all) != 1000 {
		t.Fatalf("%d sessions sent", len(all))
	}
	for i := 1; i < len(all); i++ {
		a, b := all[i-1], all[i]
		// What is sent later has waited longer: allow for it.
		if a.Proto > b.Proto || a.Proto == b.Proto && a.Expiration > b.Expiration+5_000 {
			t.Fatalf("session %d (%s, %d ms) comes before (%s, %d ms)", i-1, a.Proto, a.Expiration, b.Proto, b.Expiration)
		}
	}
}

func TestAnAdvertisementDoesNotTurnBackWhatWasAnnouncedMeanwhile(t *testing.T) {
	k := newModelKernel(session.Enc4113)
	k.table = []session.Session{udp(1, 100_000), udp(2, 100_000)}
	b := start(t, k, nil)
	k.set(func() {
		k.dumping = sync.OnceFunc(func() {
			k.announced <- encode(session.Enc4113, wkp, udp(1, 300_000))
			eventually(t, "the announcement is out", func() bool { all, _ := b.g.sent(wkp); return len(all) == 1 })
		})
	})
	if _, err := advertise(b, 0); err != nil {
		t.Fatal(err)
	}
	all, _ := b.g.sent(wkp)
	if !slices.Equal(ports(all), []uint16{1, 2}) || all[0].Expiration < 200_000 {
		t.Errorf("sent %+v", all)
	}
}

func TestAPacedAdvertisementDoesNotTurnBackWhatIsHeardWhileItWaits(t *testing.T) {
	k := newModelKernel(session.Enc4113)
	for p := range uint16(70) {
		k.table = append(k.table, udp(p, 100_000+uint32(p)))
	}
	b := start(t, k, nil)
	done := make(chan error)
	go func() {
		_, err := advertise(b, 35)
		done <- err
	}()
	eventually(t, "the first datagram is out", func() bool { all, _ := b.g.sent(wkp); return len(all) == 35 })
	time.Sleep(2 * time.Millisecond) // the table counts in milliseconds
	k.announced <- encode(session.Enc4113, wkp, udp(50, 300_000))
	b.g.in <- encode(session.Enc4113, wkp, udp(60, 300_000))
	eventually(t, "the peer's is taken", func() bool { return len(k.taken()) == 1 })
	eventually(t, "ours is announced", func() bool { all, _ := b.g.sent(wkp); return len(all) > 35 })
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	all, _ := b.g.sent(wkp)
	for i, s := range all {
		if s.Src6Port == 60 || s.Src6Port == 50 && s.Expiration < 200_000 {
			t.Errorf("session %d, port %d with %d ms left, was sent from the table", i, s.Src6Port, s.Expiration)
		}
	}
	if len(all) != 69 {
		t.Errorf("%d sessions sent, want 70 from the table and one announced", len(all))
	}
}

func TestAnAdvertisementIsPaced(t *testing.T) {
	k := newModelKernel(session.Enc4113)
	for p := range uint16(360) {
		k.table = append(k.table, udp(p, 300_000))
	}
	b := start(t, k, nil)
	p, err := advertise(b, 720)
	if err != nil || p.Seconds < 0.4 { // ten datagrams: nine gaps of 50 ms
		t.Errorf("%+v, %v", p, err)
	}
}

func TestAnAdvertisementTriesAgainWhatCouldNotBeSent(t *testing.T) {
	k := newModelKernel(session.Enc4113)
	k.table = []session.Session{udp(1, 100_000)}
	b := start(t, k, nil)
	b.g.fail(syscall.ENETUNREACH)
	if p, err := advertise(b, 0); err != nil || p.Failed != 1 || p.Datagrams != 1 {
		t.Errorf("%+v, %v", p, err)
	}
	if all, _ := b.g.sent(wkp); len(all) != 1 {
		t.Errorf("%d sessions sent", len(all))
	}
}

func TestAnAdvertisementGivesUpWhenNothingCanBeSent(t *testing.T) {
	k := newModelKernel(session.Enc4113)
	k.table = []session.Session{udp(1, 100_000)}
	b := start(t, k, nil)
	b.g.fail(slices.Repeat([]error{syscall.ENETUNREACH}, 1000)...)
	if _, err := advertise(b, 0); !errors.Is(err, syscall.ENETUNREACH) {
		t.Errorf("got %v", err)
	}
}

func TestOlderNewsFromAPeerNeitherReachesTheKernelNorSilencesAnAdvertisement(t *testing.T) {
	k := newModelKernel(session.Enc4113)
	k.table = []session.Session{udp(1, 300_000), udp(2, 100_000)}
	b := start(t, k, nil)
	if _, err := advertise(b, 0); err != nil {
		t.Fatal(err)
	}
	k.set(func() {
		k.dumping = sync.OnceFunc(func() {
			time.Sleep(2 * time.Millisecond)
			b.g.in <- encode(session.Enc4113, wkp, udp(1, 1000), udp(2, 200_000))
			eventually(t, "the newer one is taken", func() bool { return len(k.taken()) == 1 })
		})
	})
	if _, err := advertise(b, 0); err != nil {
		t.Fatal(err)
	}
	if all, _ := b.g.sent(wkp); !slices.Equal(ports(all), []uint16{2, 1, 1}) {
		t.Errorf("sent %+v, want both and then the first again", all)
	}
	if got := k.taken(); !slices.Equal(ports(got), []uint16{2}) {
		t.Errorf("the kernel was given %+v", got)
	}
}

func TestAThirdAdvertisementIsNotQueued(t *testing.T) {
	k := newModelKernel(session.Enc4113)
	release := make(chan struct{})
	k.dumping = func() { <-release }
	b := start(t, k, nil)
	done := make(chan error)
	for range maxSweeps {
		go func() {
			_, err := advertise(b, 0)
			done <- err
		}()
	}
	eventually(t, "one runs and one waits", func() bool { return len(b.sweeps) == maxSweeps })
	if _, err := advertise(b, 0); err == nil {
		t.Error("a third was taken in")
	}
	close(release)
	for range maxSweeps {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func TestAGroupThatWasAwayIsUsedAgain(t *testing.T) {
	b := start(t, newModelKernel(session.Enc4113), nil)
	b.g.becomes(mcast.Away, &mcast.Error{Op: "find", Err: mcast.ErrNoAddress})
	b.pathEvents <- struct{}{}
	eventually(t, "status says what it waits for", func() bool { return b.status(time.Now()).Network.WaitingFor != "" })
	b.g.becomes(mcast.Unchanged, nil)
	b.pathEvents <- struct{}{}
	eventually(t, "status says that it is back", func() bool { return b.status(time.Now()).Network.WaitingFor == "" })
	if b.group() != network(b.g) {
		t.Error("it is another group")
	}
}

func TestSenselessSessionsDoNotKeepTheOthersFromBeingAdvertised(t *testing.T) {
	k := newModelKernel(session.Enc4113)
	k.table, k.senseless = []session.Session{udp(1, 100_000)}, 2
	b := start(t, k, nil)
	p, err := advertise(b, 0)
	if all, _ := b.g.sent(wkp); err != nil || len(all) != 1 || p.Unreadable != 6 {
		t.Errorf("%+v, %v, sent %+v", p, err, all)
	}
}

func TestAnAdvertisementNeedsAnInstance(t *testing.T) {
	b := start(t, newModelKernel(session.Enc4113), nil)
	b.link.Store(nil)
	if _, err := advertise(b, 0); !errors.Is(err, errNotInService) {
		t.Errorf("got %v", err)
	}
	b.stop()
}

func TestStatisticsAreTheCDaemonsLines(t *testing.T) {
	b := start(t, newModelKernel(session.Enc4113), nil)
	b.k.announced <- encode(session.Enc4113, wkp, udp(1, 300_000))
	b.g.in <- encode(session.Enc4112, wkp, udp(2, 300_000))
	b.count.sentBytes.Add(1 << 40)
	eventually(t, "both have passed", func() bool { return b.count.sentDatagrams.Load() == 1 && b.count.injected.Load() == 1 })
	want := "KERNEL_SENT_PKTS,1\nKERNEL_SENT_BYTES,40\nNET_RCVD_PKTS,1\nNET_RCVD_BYTES,52\nNET_SENT_PKTS,1\nNET_SENT_BYTES,1099511627868\n"
	if got := string(b.statsLines()); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestAFullInboxDoesNotHoldUpTheEnd(t *testing.T) {
	k := newModelKernel(session.Enc4113)
	k.addTime = 50 * time.Millisecond
	b := start(t, k, nil)
	var ss []session.Session
	for p := range 60_000 {
		s := udp(uint16(p), 300_000)
		s.Dst4[3] = byte(p >> 16)
		ss = append(ss, s)
	}
	b.link.Load().inbox.Put(ss, time.Now())
	eventually(t, "some are taken", func() bool { return len(k.taken()) > 0 })
	b.stop() // all of them would take 12 s
	taken, dropped := uint64(len(k.taken())), b.count.dropped.Load()
	if taken > 50_000 || taken+dropped != 60_000 {
		t.Errorf("%d taken, %d counted as dropped", taken, dropped)
	}
}

func TestALostGroupIsOpenedAnew(t *testing.T) {
	b := start(t, newModelKernel(session.Enc4113), nil)
	b.g.becomes(mcast.Reopen, &mcast.Error{Op: "find", Err: mcast.ErrNoInterface})
	b.pathEvents <- struct{}{}
	next := newModelGroup()
	b.groups <- next
	eventually(t, "the new group is in use", func() bool { return b.group() == network(next) })
	next.in <- encode(session.Enc4113, wkp, udp(1, 1000))
	b.k.announced <- encode(session.Enc4113, wkp, udp(2, 1000))
	eventually(t, "it is heard and sent to", func() bool {
		all, _ := next.sent(wkp)
		return len(b.k.taken()) == 1 && len(all) == 1
	})
}

func TestA4112ModuleIsNotGivenWhatItMisreads(t *testing.T) {
	k := newModelKernel(session.Enc4112)
	k.globals.Pool6 = pool6("2001:db8:64::/64")
	b := start(t, k, nil)
	b.g.in <- encode(session.Enc4113, k.globals.Pool6, udp(1, 1000))
	eventually(t, "it is counted", func() bool { return b.status(time.Now()).Kernel.Unfit == 1 })
	eventually(t, "the log says why", func() bool { return strings.Contains(b.logs.String(), "misreads") })
	eventually(t, "the peer is known", func() bool {
		peers := b.status(time.Now()).Peers
		return len(peers) == 1 && peers[0].Refused == 1
	})
	if got := k.taken(); len(got) != 0 {
		t.Errorf("added %v", got)
	}
}

func TestALeakingReleaseCandidateIsWarnedOf(t *testing.T) {
	for _, v := range []nlchan.Version{{Major: 4, Minor: 1, Revision: 255, Dev: 5}, {Major: 4, Minor: 1, Revision: 15}} {
		k := newModelKernel(session.Enc4113)
		k.module.Version = v
		b := start(t, k, nil)
		k.announced <- encode(session.Enc4113, wkp, udp(1, 1000))
		eventually(t, "it serves", func() bool { return b.count.kernelMessages.Load() == 1 })
		if got, want := strings.Contains(b.logs.String(), "leaks kernel memory"), v.Candidate42(); got != want {
			t.Errorf("%s: warned %v", v, got)
		}
	}
}

func TestARefusedMaskHasPool4ReadAgain(t *testing.T) {
	b := start(t, newModelKernel(session.Enc4113), nil)
	l := b.link.Load()
	s := udp(1, 1000)
	s.Src4 = [4]byte{203, 0, 113, 1}
	b.g.in <- encode(session.Enc4113, wkp, s)
	eventually(t, "it is refused", func() bool { return b.count.refused[session.RefusedPool4].Load() == 1 })
	b.k.mu.Lock()
	b.k.pool4 = append(slices.Clone(b.k.pool4), nlchan.Pool4Entry{Range: session.Range{
		Proto: session.UDP, Prefix: netip.MustParsePrefix("203.0.113.0/24"), MaxPort: 65535,
	}})
	b.k.mu.Unlock()
	eventually(t, "it is accepted", func() bool { _, ok := l.policy.Load().Check(&s); return ok })
}

func TestAnAnswerThatCannotBeReadDoesNotEndTheService(t *testing.T) {
	b := start(t, newModelKernel(session.Enc4113), nil)
	l := b.link.Load()
	b.k.mu.Lock()
	b.k.gone = syscall.EAGAIN
	b.k.mu.Unlock()
	eventually(t, "the log says so", func() bool { return strings.Contains(b.logs.String(), "cannot read the instance's settings") })
	if b.link.Load() != l {
		t.Error("the link was given up")
	}
}

func TestALinkThatEndsAtOnceIsNotTriedAgainAtOnce(t *testing.T) {
	b := start(t, newModelKernel(session.Enc4113), nil)
	b.events <- nlchan.ModuleRemoved
	next := newModelKernel(session.Enc4113)
	before := time.Now()
	b.dials <- dialled{k: next}
	if waited := time.Since(before); waited < b.flapInterval/2 {
		t.Errorf("dialled again after %v", waited)
	}
}

func TestStatisticsForIPv4AloneAreNotServedOverIPv6(t *testing.T) {
	conn, err := listenStats(t.Context(), &config.Config{StatsAddr: "0.0.0.0"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if a := conn.LocalAddr().(*net.UDPAddr); a.IP.To4() == nil {
		t.Errorf("listens on %s", a)
	}
}

func TestTheStatisticsSocketAnswersAnyDatagramOnBothFamilies(t *testing.T) {
	b := start(t, newModelKernel(session.Enc4113), nil)
	conn, err := listenStats(t.Context(), &config.Config{StatsAddr: "::"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- b.answerStats(ctx, conn) }()
	_, port, _ := net.SplitHostPort(conn.LocalAddr().String())
	for _, host := range []string{"127.0.0.1", "::1"} {
		c, err := net.Dial("udp", net.JoinHostPort(host, port))
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(30 * time.Second))
		c.Write(nil)
		answer := make([]byte, 1000)
		n, err := c.Read(answer)
		if err != nil || string(answer[:n]) != string(b.statsLines()) {
			t.Errorf("%s: %q, %v", host, answer[:n], err)
		}
		c.Close()
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	conn.Close()
}

func TestStrangersCannotFillThePeerTable(t *testing.T) {
	var p peers
	now := time.Now()
	for i := range 10 * maxPeers {
		a := netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
		p.heard(a, session.Report{}, 0, wire.Unstamped, now.Add(time.Duration(i)*time.Second))
	}
	list := p.snapshot(now)
	if len(list) != maxPeers || list[len(list)-1].Address != "10.0.2.127" {
		t.Errorf("%d peers, the last %s", len(list), list[len(list)-1].Address)
	}
}

// idle is a daemon in service whose goroutines do not run.
func idle(t testing.TB, k *modelKernel) (*Daemon, *link) {
	d := newDaemon(testConfig(), Options{Version: "test", Log: slog.New(slog.DiscardHandler)})
	d.dial = func() (kernel, error) { return k, nil }
	d.newWatcher = func() (watcher, error) { return modelWatcher(nil), nil }
	l, err := d.connect(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	d.out.begin(l, false)
	d.link.Store(l)
	return d, l
}
