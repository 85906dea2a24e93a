package daemon

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"joold/internal/batch"
	"joold/internal/mcast"
	"joold/internal/nlchan"
	"joold/internal/nlchan/nlchantest"
	"joold/internal/session"
	"joold/internal/wire"
)

// rig is a daemon whose two ways are complete but for the system calls: from the
// bytes of the kernel's messages to those of datagrams, and from those of
// datagrams to those of JOOLD_ADDs. The daemon's own loops run on it, and take in
// for as long as next returns true.
type rig struct {
	d        *Daemon
	l        *link
	encoding session.Encoding
	next     func() bool

	header   []byte   // what a message of the channel begins with
	messages [][]byte // that the kernel sends, again and again
	message  int      // sessions in each

	datagrams [][]byte // that a peer sends, likewise, without their stamps
	datagram  int      // sessions in each
	peer      *partner // that peer
	perRead   int      // datagrams that are there at once

	at   int           // the next of either
	sent atomic.Uint64 // datagrams to peers, some of them by the deadline
}

// newRig makes a rig with an instance whose module speaks e, in a cluster with keys
// if there are any.
func newRig(tb testing.TB, e session.Encoding, keys wire.Keys, encrypt bool) *rig {
	tb.Helper()
	module := map[session.Encoding]struct {
		version string
		message int // sessions that it announces at once
	}{
		session.Enc4111: {"4.1.11", 10},
		session.Enc4112: {"4.1.12", 10},
		session.Enc4113: {"4.1.15", 36},
	}[e]
	const payload = 1452
	r := &rig{encoding: e, message: module.message, datagram: (payload - wire.Overhead) / e.EntrySize(), perRead: 1,
		peer: newPartner(tb, keys, encrypt)}

	k := nlchantest.New(tb, module.version)
	edge := k.AddInstance("edge", wkp.String())
	edge.AddPool4(nlchan.Pool4Entry{Range: session.Range{
		Proto: session.TCP, Prefix: netip.MustParsePrefix("192.0.0.0/16"), MaxPort: 65535,
	}})
	cfg := testConfig()
	cfg.Refresh, cfg.Keys, cfg.Encrypt = time.Minute, keys, encrypt
	host := &rigHost{Kernel: k}
	r.d = newDaemon(cfg, Options{Version: "test", Log: slog.New(slog.DiscardHandler)})
	r.d.dial = func() (kernel, error) { return nlchan.Dial("edge", nlchan.On(host), nlchan.PerMessage(perAdd)) }
	r.d.newWatcher = func() (watcher, error) { return modelWatcher(nil), nil }
	var err error
	if r.l, err = r.d.connect(context.Background()); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { r.l.Close() })
	model := newModelGroup()
	group := network(&rigGroup{model, r})
	r.d.current.Store(&group)
	r.d.out.begin(r.l, false)
	r.d.link.Store(r.l)
	r.peer.meet(r.d, r.l, newIntake(r.d), model)

	edge.Announce(udp(1, 1))
	message := make([]byte, nlchan.MessageSize)
	n, err := host.sockets[0].Receive(message)
	if err != nil {
		tb.Fatal(err)
	}
	r.header = message[:n-e.EntrySize()]
	for _, s := range host.sockets[:2] { // the channel and the injections: what else is asked is asked of the model
		s.rig = r
	}
	return r
}

// hear runs the way out.
func (r *rig) hear(tb testing.TB) {
	if err := r.d.hear(context.Background(), r.l); err != os.ErrDeadlineExceeded {
		tb.Error(err)
	}
}

// take runs the way in.
func (r *rig) take(tb testing.TB) {
	ctx, cancel := context.WithCancel(context.Background())
	var injecting sync.WaitGroup
	injecting.Go(func() {
		if err := r.d.inject(ctx, r.l, r.l.inbox); err != context.Canceled {
			tb.Error(err)
		}
	})
	newIntake(r.d).read(ctx, r.d.group())
	cancel()
	injecting.Wait()
}

type rigHost struct {
	*nlchantest.Kernel
	sockets []*rigSocket // in the order in which nlchan.Dial opens them
}

func (h *rigHost) Socket() (nlchan.Socket, error) {
	s, err := h.Kernel.Socket()
	own := &rigSocket{Socket: s}
	h.sockets = append(h.sockets, own)
	return own, err
}

// rigSocket is the model's until it has a rig.
type rigSocket struct {
	nlchan.Socket
	rig *rig
}

func (s *rigSocket) Receive(b []byte) (int, error) {
	r := s.rig
	switch {
	case r == nil:
		return s.Socket.Receive(b)
	case !r.next():
		return 0, os.ErrDeadlineExceeded
	}
	return copy(b, r.pick(r.messages)), nil
}

func (s *rigSocket) Send(b []byte) error {
	if s.rig == nil {
		return s.Socket.Send(b)
	}
	return nil
}

func (s *rigSocket) Poll(b []byte) (int, error) {
	if s.rig == nil {
		return s.Socket.Poll(b)
	}
	return 0, nil
}

// pick goes round.
func (r *rig) pick(from [][]byte) []byte {
	if r.at >= len(from) {
		r.at = 0
	}
	r.at++
	return from[r.at-1]
}

type rigGroup struct {
	*modelGroup
	rig *rig
}

func (g *rigGroup) Write(b []byte) error {
	if dg, _ := wire.Parse(b); dg.Number >= wire.Apart {
		return g.modelGroup.Write(b)
	}
	g.rig.sent.Add(1)
	return nil
}

// ReadBatch yields no more before all news were injected that it gave.
func (g *rigGroup) ReadBatch(ds []mcast.Datagram) (int, error) {
	r := g.rig
	for r.d.count.injected.Load() < r.accepted() {
		runtime.Gosched()
	}
	if !r.next() {
		return 0, net.ErrClosed
	}
	for i := range r.perRead {
		ds[i].Payload = append(ds[i].Payload[:0], r.pick(r.datagrams)...)
		ds[i].Payload = r.peer.Stamp(ds[i].Payload, 0, nil)
		ds[i].From = sender
	}
	return r.perRead, nil
}

// accepted is how many sessions were judged fit to inject.
func (r *rig) accepted() (n uint64) {
	r.d.out.with(func(t *batch.Table) { n = t.Counts().Verdicts[batch.Inject] })
	return n
}

// many is n established sessions, of nodes with some each.
func many(n int) []session.Session {
	ss := make([]session.Session, n)
	for i := range ss {
		s := &ss[i]
		s.Src6 = [16]byte{0x20, 1, 0xd, 0xb8}
		binary.BigEndian.PutUint32(s.Src6[12:], uint32(i/50))
		s.Src6Port = uint16(1024 + i%50)
		s.Src4 = [4]byte{192, 0, byte(i >> 24), byte(i >> 16)}
		s.Src4Port = uint16(i)
		s.Dst4 = [4]byte{198, 51, byte(i >> 8), byte(i)}
		s.Dst4Port = 443
		s.Expiration = session.DefaultTimeouts.TCPEst
	}
	return ss
}

// whole is ss as so many a piece, each behind head; a rest is left out.
func (r *rig) whole(ss []session.Session, each int, head []byte) (all [][]byte) {
	for ; len(ss) >= each; ss = ss[each:] {
		b := append([]byte(nil), head...)
		for i := range ss[:each] {
			b = r.encoding.Append(b, &ss[i], wkp)
		}
		all = append(all, b)
	}
	return all
}

// announces makes messages of ss in their present state. A message's length, and
// that of its one attribute, stand in its header.
func (r *rig) announces(ss []session.Session) {
	messages := r.whole(ss, r.message, r.header)
	for _, m := range messages {
		binary.NativeEndian.PutUint32(m, uint32(len(m)))
		at := len(r.header) - 4
		binary.NativeEndian.PutUint16(m[at:], uint16(len(m)-at))
	}
	r.messages = append(r.messages, messages...)
}

// offers is the same for a peer's datagrams.
func (r *rig) offers(ss []session.Session) {
	r.datagrams = append(r.datagrams, r.whole(ss, r.datagram, nil)...)
}

// way is what is measured: what is said of n sessions that the table knows, in no
// order, and whether it is news, each having another state than when it was said
// last.
type way struct {
	encoding session.Encoding
	n        int
	news     bool
	perRead  int  // datagrams, on the way in
	signed   bool // with a key
	sealed   bool // besides
}

func (w way) keys(tb testing.TB) (k wire.Keys) {
	if w.signed {
		k = someKeys(tb, 1)
	}
	return k
}

func (w way) String() string {
	kind := "known"
	if w.news {
		kind = "news"
	}
	if w.perRead > 1 {
		kind = fmt.Sprintf("%s-by-%d", kind, w.perRead)
	}
	switch {
	case w.sealed:
		kind += "-sealed"
	case w.signed:
		kind += "-signed"
	}
	return fmt.Sprintf("%v/%d/%s", w.encoding, w.n, kind)
}

func ways() (all []way) {
	for _, e := range session.Encodings {
		for _, n := range []int{1000, 100_000, 1_000_000} {
			if e == session.Enc4113 || n == 1000 {
				all = append(all, way{encoding: e, n: n, perRead: 1}, way{encoding: e, n: n, news: true, perRead: 1})
			}
		}
	}
	return all
}

// protected are ways with a key. On the way in the peer's stamps are made besides, for
// a number counts but once.
func protected() []way {
	signed := way{encoding: session.Enc4113, n: 1000, news: true, perRead: 1, signed: true}
	sealed := signed
	sealed.sealed = true
	return []way{signed, sealed}
}

// rounds has said all that is said until it begins anew.
func (w way) rounds(ss []session.Session, say func([]session.Session)) {
	rand.Shuffle(len(ss), func(i, j int) { ss[i], ss[j] = ss[j], ss[i] })
	if !w.news {
		say(ss)
		return
	}
	for _, state := range []session.State{session.V4FinRcv, session.Established} {
		for i := range ss {
			ss[i].State = state
		}
		say(ss)
	}
}

// outRig is a rig whose kernel announces what way says.
func outRig(tb testing.TB, w way) *rig {
	r, ss := newRig(tb, w.encoding, w.keys(tb), w.sealed), many(w.n)
	// Peers have learned of each often enough that for seconds no refresh is due.
	now := time.Now()
	r.d.out.with(func(t *batch.Table) {
		for ago := 400 * time.Second; ago >= 0; ago -= 100 * time.Second {
			for some := range slices.Chunk(ss, 1000) {
				t.Observe(some, now.Add(-ago))
				t.Take(nil, len(some), now.Add(-ago))
			}
		}
	})
	w.rounds(ss, r.announces)
	return r
}

// inRig is a rig whose peer sends what way says.
func inRig(tb testing.TB, w way) *rig {
	r, ss := newRig(tb, w.encoding, w.keys(tb), w.sealed), many(w.n)
	r.perRead = w.perRead
	now := time.Now()
	peer := r.d.peers.heard(sender.Addr(), session.Report{}, 0, wire.Intact, now)
	from := origin{batch.Source{From: stampedSource(1)}, peer} // the first that it met
	r.d.accept(r.l, from, slices.Clone(ss), now)
	r.d.count.injected.Add(r.accepted()) // as if they had been
	w.rounds(ss, r.offers)
	return r
}

// processTime is how long this process has run: what something costs, whoever
// else wants the processors.
func processTime(tb testing.TB) time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &ts); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(ts.Nano())
}

// perSession reports what an operation on so many sessions has cost for each,
// since the process had run for that long.
func perSession(b *testing.B, since time.Duration, sessions int) {
	b.ReportMetric(float64((processTime(b)-since).Nanoseconds())/float64(b.N*sessions), "ns/session")
}

// BenchmarkOut is of the way out, from the bytes that the kernel sends to those
// of datagrams.
func BenchmarkOut(b *testing.B) {
	for _, w := range append(ways(), protected()...) {
		b.Run(w.String(), func(b *testing.B) {
			r := outRig(b, w)
			r.next = b.Loop
			b.ReportAllocs()
			since := processTime(b)
			r.hear(b)
			perSession(b, since, r.message)
			b.ReportMetric(float64(r.sent.Load())/float64(b.N), "datagrams/op")
		})
	}
}

// BenchmarkIn is of the way in, from the bytes of datagrams to those of
// injections, on one processor: what it costs, and not how much of it two
// processors do at once.
func BenchmarkIn(b *testing.B) {
	for _, w := range append(append(ways(), protected()...), way{encoding: session.Enc4113, n: 100_000, news: true, perRead: readBatch}) {
		b.Run(w.String(), func(b *testing.B) {
			defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
			r := inRig(b, w)
			r.next = b.Loop
			before := r.d.count.addMessages.Load()
			b.ReportAllocs()
			since := processTime(b)
			r.take(b)
			perSession(b, since, r.perRead*r.datagram)
			b.ReportMetric(float64(r.d.count.addMessages.Load()-before)/float64(b.N), "adds/op")
		})
	}
}

// steps makes the rig take in one thing each time it is called; end ends what
// runs on it.
func (r *rig) steps(run func()) (step, end func()) {
	more, waits := make(chan bool), make(chan struct{})
	r.next = func() bool {
		waits <- struct{}{}
		return <-more
	}
	var running sync.WaitGroup
	running.Go(run)
	<-waits
	return func() { more <- true; <-waits }, func() { more <- false; running.Wait() }
}

func TestNothingIsAllocatedForAMessageOrADatagram(t *testing.T) {
	const n = 1000
	for _, w := range append(ways(), protected()...) {
		if w.n > n {
			continue
		}
		t.Run(w.String(), func(t *testing.T) {
			out := outRig(t, w)
			step, end := out.steps(func() { out.hear(t) })
			for range 2 * n {
				step()
			}
			if allocs := testing.AllocsPerRun(2*n, step); allocs != 0 {
				t.Errorf("%v allocations for each of the kernel's messages", allocs)
			}
			end()
			if w.news != (out.sent.Load() > 0) {
				t.Errorf("sent %d datagrams", out.sent.Load())
			}

			in := inRig(t, w)
			before := in.d.count.injected.Load()
			step, end = in.steps(func() { in.take(t) })
			one := func() {
				in.l.note(&in.l.seen) // else it is asked for its settings, each 50 ms
				step()
			}
			for range 2 * n {
				one()
			}
			if allocs := testing.AllocsPerRun(2*n, one); allocs != 0 {
				t.Errorf("%v allocations for each datagram", allocs)
			}
			end()
			if w.news != (in.d.count.injected.Load() > before) {
				t.Errorf("injected %d", in.d.count.injected.Load()-before)
			}
		})
	}
}
