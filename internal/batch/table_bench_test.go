package batch

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
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

// message is how many sessions the kernel announces at once, and how many fill a
// datagram.
const message = 36

var sizes = []int{1000, 100_000, 1_000_000}

var pool6 = func() session.Pool6 {
	p, err := session.NewPool6(netip.MustParsePrefix("64:ff9b::/96"))
	if err != nil {
		panic(err)
	}
	return p
}()

// messages are ss in the encoding of 4.1.13, a message each, and the last, which
// would be shorter, left out.
func messages(ss []session.Session) (all [][]byte) {
	for ; len(ss) >= message; ss = ss[message:] {
		b := make([]byte, 0, message*session.Enc4113.EntrySize())
		for i := range ss[:message] {
			b = session.Enc4113.Append(b, &ss[i], pool6)
		}
		all = append(all, b)
	}
	return all
}

func shuffle(ss []session.Session) []session.Session {
	rand.Shuffle(len(ss), func(i, j int) { ss[i], ss[j] = ss[j], ss[i] })
	return ss
}

// processTime is how long this process has run: what something costs, whoever
// else wants the processors.
func processTime(tb testing.TB) time.Duration { return clock(tb, unix.CLOCK_PROCESS_CPUTIME_ID) }

func clock(tb testing.TB, id int32) time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(id, &ts); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(ts.Nano())
}

// perSession reports what an operation on so many sessions has cost for each,
// since the process had run for that long.
func perSession(b *testing.B, since time.Duration, sessions int) { per(b, "session", since, sessions) }

func per(b *testing.B, what string, since time.Duration, n int) {
	b.ReportMetric(float64((processTime(b)-since).Nanoseconds())/float64(b.N)/float64(n), "ns/"+what)
}

// BenchmarkObserve is of messages that tell nothing new, read, looked up and
// judged: hot ones of the same thousand sessions, cold ones of all, in no order.
func BenchmarkObserve(b *testing.B) {
	for _, n := range sizes {
		for _, hot := range []bool{true, false} {
			name := fmt.Sprintf("%d/cold", n)
			if hot {
				name = fmt.Sprintf("%d/hot", n)
			}
			b.Run(name, func(b *testing.B) {
				ss := populace(n)
				var tab *Table
				per := heapPer(n, func() any { tab = fill(b, tableConfig, ss, start); return tab })
				shuffle(ss)
				if hot {
					ss = ss[:1000]
				}
				heard := messages(ss)
				var read []session.Session
				at := 0
				b.ReportAllocs()
				since := processTime(b)
				for b.Loop() {
					read, _ = session.Decode(read[:0], heard[at], pool6)
					tab.Observe(read, start)
					if at++; at == len(heard) {
						at = 0
					}
				}
				perSession(b, since, message)
				b.ReportMetric(per, "B/session")
			})
		}
	}
}

// BenchmarkMemory is what a look at one line of the processor's cache costs, the
// lines being as many as there are sessions in a table, and looked at in no order:
// one after the other, and as many at once as the processor can wait for. It is
// the floor under BenchmarkObserve, which takes two looks for a session: at its
// index and at its record.
func BenchmarkMemory(b *testing.B) {
	for _, n := range sizes {
		type line struct {
			next uint32
			_    [60]byte
		}
		lines := make([]line, n)
		order := rand.Perm(n)
		for i, at := range order {
			lines[at].next = uint32(order[(i+1)%n])
		}
		b.Run(fmt.Sprintf("%d/each", n), func(b *testing.B) {
			at, since := uint32(0), processTime(b)
			for b.Loop() {
				for range message {
					at = lines[at].next
				}
			}
			per(b, "look", since, message)
		})
		b.Run(fmt.Sprintf("%d/together", n), func(b *testing.B) {
			at, sum, since := 0, uint32(0), processTime(b)
			for b.Loop() {
				if at+message > n {
					at = 0
				}
				for _, i := range order[at : at+message] {
					sum += lines[i].next
				}
				at += message
			}
			per(b, "look", since, message)
			runtime.KeepAlive(sum)
		})
	}
}

// threadTime is how long this thread has run.
func threadTime(tb testing.TB) time.Duration { return clock(tb, unix.CLOCK_THREAD_CPUTIME_ID) }

// BenchmarkObserveNew is of sessions that are not in the table, which begins empty
// and grows to a million; they are taken as they come.
func BenchmarkObserveNew(b *testing.B) {
	ss := populace(1_000_000)
	var buf []session.Session
	var worst time.Duration
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	b.ReportAllocs()
	since := processTime(b)
	for b.Loop() {
		tab := NewTable(tableConfig)
		for i := 0; i+message <= len(ss); i += message {
			began := threadTime(b)
			tab.Observe(ss[i:i+message], start)
			worst = max(worst, threadTime(b)-began)
			buf = tab.Take(buf[:0], message, start)
		}
	}
	perSession(b, since, len(ss))
	b.ReportMetric(float64(worst.Microseconds()), "worst-µs/message")
}

// BenchmarkPack is of refreshes that are due, made into datagrams.
func BenchmarkPack(b *testing.B) {
	for _, n := range sizes {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			ss := populace(n)
			tab := fill(b, tableConfig, ss, start)
			shuffle(ss)
			var taken []session.Session
			var datagram []byte
			now, at := start, 0
			b.ReportAllocs()
			since := processTime(b)
			for b.Loop() {
				if tab.Pending() < message {
					b.StopTimer()
					stopped := processTime(b)
					if at == 0 {
						now = now.Add(10 * time.Second)
					}
					some := ss[at:min(at+tableConfig.Pending/2, n)]
					tab.Observe(some, now)
					if at += len(some); at == n {
						at = 0
					}
					since += processTime(b) - stopped
					b.StartTimer()
				}
				taken = tab.Take(taken[:0], message, now)
				datagram = datagram[:0]
				for i := range taken {
					datagram = session.Enc4113.Append(datagram, &taken[i], pool6)
				}
				if len(taken) != message {
					b.Fatalf("took %d", len(taken))
				}
			}
			perSession(b, since, message)
		})
	}
}

// BenchmarkUnpack is of a peer's datagrams, read, checked, judged and, those that
// are news, gathered and taken for the kernel a datagram at a time. Known ones
// tell nothing new; those with news have each session in another state than
// before.
func BenchmarkUnpack(b *testing.B) {
	policy := session.NewPolicy(pool6, session.DefaultTimeouts, []session.Range{
		{Proto: session.TCP, Prefix: netip.MustParsePrefix("192.0.0.0/16"), MaxPort: 65535},
	})
	for _, n := range sizes {
		for _, news := range []bool{false, true} {
			name := fmt.Sprintf("%d/known", n)
			if news {
				name = fmt.Sprintf("%d/news", n)
			}
			b.Run(name, func(b *testing.B) {
				ss := populace(n)
				tab, inbox := NewTable(tableConfig), NewInbox(message)
				for i := range ss {
					ss[i].Proto, ss[i].Expiration = session.TCP, session.DefaultTimeouts.TCPEst
					tab.Accept(&Source{From: 1}, &ss[i], start)
				}
				datagrams := messages(shuffle(ss))
				if news {
					established := datagrams
					for i := range ss {
						ss[i].State = session.V4FinRcv
					}
					datagrams = append(messages(ss), established...)
				}
				var read, kept, taken []session.Session
				at := 0
				b.ReportAllocs()
				since := processTime(b)
				for b.Loop() {
					read, _ = session.Decode(read[:0], datagrams[at], pool6)
					tab.Foresee(read)
					kept = kept[:0]
					for i := range read {
						if _, ok := policy.Check(&read[i]); !ok {
							b.Fatal("refused")
						}
						if v, _ := tab.Accept(&Source{From: 1}, &read[i], start); v == Inject {
							kept = append(kept, read[i])
						}
					}
					if len(kept) > 0 {
						inbox.Put(kept, start)
						taken = inbox.Take(taken[:0], start)
					}
					if news != (len(taken) == message) {
						b.Fatalf("%d are news", len(taken))
					}
					if at++; at == len(datagrams) {
						at = 0
					}
				}
				perSession(b, since, message)
			})
		}
	}
}

// BenchmarkLearn is a survey's part of the table: all of its sessions as the kernel
// gives them, 25 at a time, found and seen. An operation is one survey.
func BenchmarkLearn(b *testing.B) {
	const page = 25
	for _, n := range sizes {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			ss := populace(n)
			tab := fill(b, tableConfig, shuffle(slices.Clone(ss)), start)
			b.ReportAllocs()
			since := processTime(b)
			for b.Loop() {
				number := tab.BeginSweep()
				for from := range slices.Chunk(ss, page) {
					tab.Foresee(from)
					for i := range from {
						tab.Learn(&from[i], start)
					}
				}
				tab.EndSweep(number)
			}
			perSession(b, since, n)
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
