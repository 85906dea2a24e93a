package batch

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"joold/internal/session"
)

// populace is n sessions as a NAT64 has them: nodes with some sessions each, a
// mask for every source port of a node.
func populace(n int) []session.Session {
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
		s.Proto = session.UDP
		s.Expiration = 300_000
	}
	return ss
}

const message = 36 // sessions that the kernel announces at once

// fill makes a table that knows ss, and whose peers do.
func fill(tb testing.TB, c TableConfig, ss []session.Session, now time.Time) *Table {
	tb.Helper()
	t := NewTable(c)
	var buf []session.Session
	for i := 0; i < len(ss); i += message {
		t.Observe(ss[i:min(i+message, len(ss))], now)
		buf = t.Take(buf[:0], message, now)
	}
	if c := t.Counts(); c.Sessions != len(ss) || c.Pending != 0 {
		tb.Fatalf("a table of %d sessions has %+v", len(ss), c)
	}
	return t
}

// heapPer is how many bytes of heap f makes for each of n, kept alive by what it
// returns.
func heapPer(n int, f func() any) float64 {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&before)
	kept := f()
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&after)
	runtime.KeepAlive(kept)
	return float64(int64(after.HeapAlloc-before.HeapAlloc)) / float64(n)
}

func TestAMillionSessionsTakeUpTo128BytesEach(t *testing.T) {
	const n = 1_000_000
	ss := populace(n)
	for i := range ss { // every one its own BIB entry: the worst case
		ss[i].Src6Port = uint16(i)
	}
	got := heapPer(n, func() any {
		tab := fill(t, tableConfig, ss, start)
		tab.Unsent(ss[:tableConfig.Pending], true)
		return tab
	})
	t.Logf("%.1f bytes a session, the queue full", got)
	if got > 128 {
		t.Errorf("%.1f bytes a session", got)
	}
	runtime.KeepAlive(ss)
}

var sizes = []int{1000, 100_000, 1_000_000}

// BenchmarkObserve is of announcements that tell nothing new: hot ones of the
// same thousand sessions, cold ones of all, in no order.
func BenchmarkObserve(b *testing.B) {
	for _, n := range sizes {
		for _, hot := range []bool{true, false} {
			name := fmt.Sprintf("%d/cold", n)
			if hot {
				name = fmt.Sprintf("%d/hot", n)
			}
			b.Run(name, func(b *testing.B) {
				ss := populace(n)
				now := start
				var tab *Table
				per := heapPer(n, func() any { tab = fill(b, tableConfig, ss, now); return tab })
				rand.Shuffle(n, func(i, j int) { ss[i], ss[j] = ss[j], ss[i] })
				if hot {
					ss = ss[:1000]
				}
				at := 0
				b.ReportAllocs()
				for b.Loop() {
					if at+message > len(ss) {
						at = 0
					}
					tab.Observe(ss[at:at+message], now)
					at += message
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/message, "ns/session")
				b.ReportMetric(per, "B/session")
			})
		}
	}
}

// threadTime is how long this thread has run: what a call costs, whoever else
// wants the processor.
func threadTime(tb testing.TB) time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(ts.Nano())
}

// BenchmarkObserveNew is of sessions that are not in the table, which begins empty
// and grows to a million; they are taken as they come.
func BenchmarkObserveNew(b *testing.B) {
	ss := populace(1_000_000)
	var buf []session.Session
	var worst time.Duration
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	b.ReportAllocs()
	for b.Loop() {
		tab := NewTable(tableConfig)
		for i := 0; i+message <= len(ss); i += message {
			began := threadTime(b)
			tab.Observe(ss[i:i+message], start)
			worst = max(worst, threadTime(b)-began)
			buf = tab.Take(buf[:0], message, start)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(ss)), "ns/session")
	b.ReportMetric(float64(worst.Microseconds()), "worst-µs/message")
}

// BenchmarkTake is of refreshes, made due and taken a datagram at a time.
func BenchmarkTake(b *testing.B) {
	for _, n := range sizes {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			ss := populace(n)
			tab := fill(b, tableConfig, ss, start)
			var buf []session.Session
			now, at := start, 0
			b.ReportAllocs()
			for b.Loop() {
				if at+message > n {
					at = 0
				}
				if at == 0 {
					now = now.Add(10 * time.Second)
				}
				tab.Observe(ss[at:at+message], now)
				if buf = tab.Take(buf[:0], message, now); len(buf) != message {
					b.Fatalf("took %d", len(buf))
				}
				at += message
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/message, "ns/session")
		})
	}
}

// BenchmarkAccept is of a peer's refreshes of sessions that are known.
func BenchmarkAccept(b *testing.B) {
	for _, n := range sizes {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			ss := populace(n)
			tab := NewTable(tableConfig)
			for i := range ss {
				tab.Accept(1, &ss[i], start)
			}
			rand.Shuffle(n, func(i, j int) { ss[i], ss[j] = ss[j], ss[i] })
			now, at := start.Add(time.Second), 0
			b.ReportAllocs()
			for b.Loop() {
				if at == n {
					at = 0
				}
				if v, _ := tab.Accept(1, &ss[at], now); v != Known {
					b.Fatalf("%s", v)
				}
				at++
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N), "ns/session")
		})
	}
}

// BenchmarkExpire is of one call for a million sessions: of which none, and all,
// are dead.
func BenchmarkExpire(b *testing.B) {
	ss := populace(1_000_000)
	for _, dead := range []bool{false, true} {
		b.Run(fmt.Sprintf("dead=%v", dead), func(b *testing.B) {
			now := start
			var tab *Table
			for b.Loop() {
				if tab == nil || tab.Counts().Sessions < forgetAtMost {
					b.StopTimer()
					tab, now = fill(b, tableConfig, ss, start), start
					if dead {
						now = now.Add(time.Hour)
					}
					b.StartTimer()
				}
				now = now.Add(time.Millisecond * 2000)
				if !dead {
					now = start.Add(now.Sub(start) % (200 * time.Second))
				}
				tab.Expire(now)
			}
		})
	}
}
