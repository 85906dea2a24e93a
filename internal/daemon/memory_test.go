package daemon

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"joold/internal/control"
	"joold/internal/mcast"
	"joold/internal/nlchan"
	"joold/internal/session"
)

// nth is the nth of as many sessions as one likes, each with a BIB entry of its
// own, which takes the most room.
func nth(n uint32) session.Session {
	s := udp(0, 300_000)
	binary.BigEndian.PutUint32(s.Src6[12:], n)
	binary.BigEndian.PutUint32(s.Dst4[:], n)
	s.Src4 = [4]byte{192, 0, 2, byte(n >> 16)}
	s.Src4Port = uint16(n)
	return s
}

// sink is a group that keeps nothing of what it is sent. While it is away it
// takes nothing.
type sink struct{ *modelGroup }

func (s sink) Write(b []byte) error { return nil }

// vast is an instance that announces sessions, and has them in its table, without
// holding them in memory. If its table is senseless, it is empty too.
type vast struct {
	*modelKernel
	began     time.Time
	announces chan announcement
	left      announcement // of what it announces
	said      chan struct{}
	table     atomic.Uint32 // how many it has
}

// announcement is of the sessions from from to until.
type announcement struct {
	from, until uint32
	life        uint32 // ms
}

func newVast() *vast {
	return &vast{
		modelKernel: newModelKernel(session.Enc4113), began: time.Now(),
		announces: make(chan announcement), said: make(chan struct{}),
	}
}

func (k *vast) Receive(buf []byte) (nlchan.Message, error) {
	if k.left.from == k.left.until {
		if k.left.until > 0 {
			k.said <- struct{}{}
		}
		select {
		case k.left = <-k.announces:
		case <-k.closed:
			return nlchan.Message{}, os.ErrDeadlineExceeded
		}
	}
	entries := buf[:0]
	for range min(36, k.left.until-k.left.from) {
		s := nth(k.left.from)
		s.Expiration = k.left.life
		entries = session.Enc4113.Append(entries, &s, wkp)
		k.left.from++
	}
	return nlchan.Message{Entries: entries}, nil
}

// announce announces sessions, and returns when the daemon is through with them.
func (k *vast) announce(from, until, life uint32) {
	if k.senseless == 0 {
		k.table.Store(max(k.table.Load(), until))
	}
	k.announces <- announcement{from, until, life}
	<-k.said
}

func (k *vast) Sessions(_ context.Context, proto session.Proto, _ session.Pool6, page func([]session.Session) error) error {
	if k.senseless > 0 {
		return &nlchan.Error{Op: "dump", Err: &nlchan.UnreadableError{Count: k.senseless}}
	}
	if proto != session.UDP {
		return nil
	}
	age := uint32(time.Since(k.began).Milliseconds())
	some := make([]session.Session, 25)
	for n, table := uint32(0), k.table.Load(); n < table; {
		some = some[:min(25, table-n)]
		for i := range some {
			some[i] = nth(n)
			some[i].Expiration -= age
			n++
		}
		if err := page(some); err != nil {
			return err
		}
	}
	return nil
}

func startVast(t *testing.T, k *vast) *bench {
	b := bench0(t, testConfig(), slog.LevelInfo)
	b.dial = func() (kernel, error) { return k, nil }
	open := b.open
	b.open = func(ctx context.Context) (network, error) {
		if _, err := open(ctx); err != nil {
			return nil, err
		}
		return sink{b.g}, nil
	}
	b.run()
	eventually(t, "the daemon is in service", b.serves)
	return b
}

// memory is what a process takes, in bytes.
type memory struct {
	heap     uint64 // that lives
	held     uint64 // by Go's runtime: in use, or not given back yet
	resident uint64
	peak     uint64 // of resident
}

func (m memory) String() string {
	const mib = 1 << 20
	return fmt.Sprintf("heap %.1f MiB, held %.1f MiB, resident %.1f MiB, at its peak %.1f MiB",
		float64(m.heap)/mib, float64(m.held)/mib, float64(m.resident)/mib, float64(m.peak)/mib)
}

func memoryNow(t *testing.T) memory {
	t.Helper()
	var was runtime.MemStats
	runtime.ReadMemStats(&was)
	m := memory{held: was.Sys - was.HeapReleased}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		for name, to := range map[string]*uint64{"VmRSS:": &m.resident, "VmHWM:": &m.peak} {
			if f := strings.Fields(line); f[0] == name {
				kb, err := strconv.ParseUint(f[1], 10, 64)
				if err != nil {
					t.Fatal(err)
				}
				*to = kb << 10
			}
		}
	}
	m.heap = heap()
	return m
}

// alone runs the test in a process of its own, with this in its environment, so
// that nothing but the daemon is measured. It is true there.
func alone(t *testing.T, env ...string) bool {
	const marker = "JOOLD_TEST_ALONE"
	if os.Getenv(marker) == t.Name() {
		return true
	}
	cmd := exec.Command(os.Args[0], "-test.run", "^"+t.Name()+"$", "-test.v", "-test.timeout", "5m")
	cmd.Env = append(append(os.Environ(), env...), marker+"="+t.Name())
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Errorf("alone: %v", err)
	}
	return false
}

const million = 1_000_000

// much tells whether a million sessions take more memory than they may. The table
// promises 128 bytes each: 122 MiB. While a sweep lasts, what it has read is held
// besides, 40 bytes each in a slice that has grown: 76 MiB at the most. The daemon
// itself, and what waits to be sent, take some more. Garbage may double it all
// before it is collected.
func (m memory) much() bool {
	const bound = (122 + 76 + 10) << 20
	return m.heap > bound || m.held > 2*bound
}

func TestAMillionSessionsTakeABoundedAmountOfMemory(t *testing.T) {
	if !alone(t) {
		return
	}
	k := newVast()
	b := startVast(t, k)
	t.Logf("in service: %v", memoryNow(t))
	for range 2 { // the second time all is known
		began := time.Now()
		k.announce(0, million, 300_000)
		m := memoryNow(t)
		t.Logf("announced a million sessions in %v: %v", time.Since(began).Round(time.Millisecond), m)
		if m.much() {
			t.Errorf("they take too much: %v", m)
		}
	}
	eventually(t, "all are sent", func() bool { return b.count.sentSessions.Load() >= million })
	if s := b.status(time.Now()).Table; s.Sessions != million || s.Full != 0 {
		t.Errorf("the table: %+v", s)
	}
}

func TestASweepOfAMillionSessionsTakesABoundedAmountOfMemory(t *testing.T) {
	if !alone(t) {
		return
	}
	k := newVast()
	k.table.Store(million)
	b := startVast(t, k)
	for range 2 {
		began := time.Now()
		p, err := b.advertise(t.Context(), MaxRate, func(control.Progress) error { return nil })
		if err != nil || p.Sent != million {
			t.Fatalf("%+v, %v", p, err)
		}
		m := memoryNow(t)
		t.Logf("swept a million sessions in %v: %v", time.Since(began).Round(time.Millisecond), m)
		if m.much() {
			t.Errorf("it takes too much: %v", m)
		}
	}
}

func TestALimitOnMemoryIsHonoured(t *testing.T) {
	const limit, remembered, announced = 64 << 20, 64 << 20 / 2 / 128, 300_000
	if !alone(t, "GOMEMLIMIT=64MiB") {
		return
	}
	k := newVast()
	b := startVast(t, k)
	k.announce(0, announced, 300_000)
	eventually(t, "all are sent, what is not remembered too", func() bool { return b.count.sentSessions.Load() >= announced })
	m := memoryNow(t)
	t.Logf("announced %d sessions: %v", announced, m)
	if sweep := uint64(announced * 80); m.held > limit+sweep { // one may run
		t.Errorf("more than GOMEMLIMIT: %v", m)
	}
	s := b.status(time.Now()).Table
	if s.Limit != remembered || s.Sessions != remembered || s.Full < announced-remembered {
		t.Errorf("the table: %+v", s)
	}
	if p, err := b.advertise(t.Context(), MaxRate, func(control.Progress) error { return nil }); err != nil || p.Sent != announced {
		t.Errorf("an advertisement: %+v, %v", p, err)
	}
	t.Logf("advertised them: %v", memoryNow(t))
}

func TestWhileTheGroupIsAwayWhatWaitsIsBoundedAndRefreshesAreDroppedFirst(t *testing.T) {
	const known, news = 20_000, 200_000
	k := newVast()
	k.senseless = 1 // no sweep comes in between
	b := startVast(t, k)
	pending := b.live.Load().Pending
	k.announce(0, known, 100_000)
	eventually(t, "the first sessions are sent", func() bool { return b.count.sentSessions.Load() == known })
	b.g.becomes(mcast.Reopen, &mcast.Error{Op: "look at", Device: "eth2", Err: mcast.ErrNoInterface})
	b.checkPath()
	eventually(t, "the group is away", func() bool { return b.group() == nil })

	table := func() control.Table { return b.status(time.Now()).Table }
	k.announce(0, known, 300_000) // each is a refresh that is due
	if s := table(); s.Pending != known {
		t.Fatalf("of %d refreshes: %+v", known, s)
	}
	room := b.g.max / session.Enc4113.EntrySize() // what was tried in between is no mere refresh any more
	k.announce(known, uint32(pending), 300_000)
	k.announce(uint32(pending), uint32(pending)+known/2, 300_000)
	if s := table(); s.Pending != pending || s.DroppedRefreshes != known/2 || s.DroppedNews != 0 {
		t.Errorf("of half as many news again: %+v", s)
	}
	k.announce(uint32(pending)+known/2, known+news, 300_000)
	s := table()
	t.Logf("of %d refreshes and %d news: %+v", known, news, s)
	if s.Pending != pending || s.DroppedRefreshes < uint64(known-room) || s.DroppedRefreshes+s.DroppedNews != uint64(known+news-pending) {
		t.Errorf("of all: %+v", s)
	}
	if s.Sessions != known+news {
		t.Errorf("%d are remembered", s.Sessions)
	}
	b.g = newModelGroup()
	b.groups <- b.g
	eventually(t, "what waited is sent", func() bool { return b.count.sentSessions.Load() >= uint64(known+pending) })
}
