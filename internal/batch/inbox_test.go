package batch

import (
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"joold/internal/session"
)

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func udp(port uint16, expiration uint32) session.Session {
	return session.Session{Src6: [16]byte{0x20, 1}, Src4: [4]byte{192, 0, 2, 1}, Dst4: [4]byte{192, 0, 2, 8},
		Src6Port: port, Src4Port: port, Dst4Port: 53, Proto: session.UDP, Expiration: expiration}
}

func TestTheInboxKeepsTheLastWordOnEachSession(t *testing.T) {
	i := NewInbox(10)
	opening, established := udp(1, 200_000), udp(1, 7_000_000)
	opening.Proto, opening.State, opening.Timer = session.TCP, session.V6Init, session.TimerTrans
	established.Proto = session.TCP
	i.Put([]session.Session{opening, udp(2, 1000)}, start)
	i.Put([]session.Session{established}, start)
	got := i.Take(nil, start)
	if want := []session.Session{established, udp(2, 1000)}; !slices.Equal(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got := i.Take(nil, start); len(got) != 0 {
		t.Errorf("taken twice: %+v", got)
	}
}

func TestTheInboxYieldsOldestFirstAndAged(t *testing.T) {
	i := NewInbox(10)
	i.Put([]session.Session{udp(1, 3000), udp(2, 1000), udp(3, 100)}, start)
	i.Put([]session.Session{udp(4, 2000)}, start.Add(200*time.Millisecond))
	got := i.Take(nil, start.Add(200*time.Millisecond))
	want := []session.Session{udp(2, 800), udp(4, 2000), udp(1, 2800)} // 3 has died waiting
	if !slices.Equal(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if c := i.Counts(); c.Expired != 1 {
		t.Errorf("counted %+v", c)
	}
}

func TestAFullInboxDropsTheNewAndUpdatesTheKnown(t *testing.T) {
	i := NewInbox(2)
	i.Put([]session.Session{udp(1, 1000), udp(2, 1000), udp(3, 1000), udp(1, 5000)}, start)
	if got, want := i.Counts(), (InboxCounts{Waiting: 2, Dropped: 1}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got, want := i.Take(nil, start), []session.Session{udp(2, 1000), udp(1, 5000)}; !slices.Equal(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestNothingIsLostBetweenPutAndTake(t *testing.T) {
	i := NewInbox(1 << 20)
	const n = 10_000
	var wg sync.WaitGroup
	wg.Go(func() {
		for p := range n {
			i.Put([]session.Session{udp(uint16(p), 1000)}, start)
		}
	})
	seen := make(map[uint16]bool)
	for len(seen) < n {
		<-i.Ready()
		for _, s := range i.Take(nil, start) {
			seen[s.Src6Port] = true
		}
	}
	wg.Wait()
}

func TestWaitingDoesNotAllocate(t *testing.T) {
	i := NewInbox(100)
	var ss, taken []session.Session
	for p := range uint16(36) {
		ss = append(ss, udp(p, 1000))
	}
	round := func() {
		i.Put(ss, start)
		taken = i.Take(taken[:0], start)
	}
	round()
	if n := testing.AllocsPerRun(100, round); n != 0 {
		t.Errorf("%v allocations a datagram", n)
	}
}

func BenchmarkInbox(b *testing.B) {
	for _, n := range []int{36, 1000, 40_000} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			i := NewInbox(n)
			ss := make([]session.Session, n)
			for p := range ss {
				ss[p] = udp(uint16(p), uint32(1000+p*7919%100_000))
			}
			var taken []session.Session
			b.ReportAllocs()
			since := processTime(b)
			for b.Loop() {
				i.Put(ss, start)
				taken = i.Take(taken[:0], start)
			}
			perSession(b, since, n)
		})
	}
}

func TestAnInboxSaysWhatItDropped(t *testing.T) {
	i := NewInbox(2)
	some := []session.Session{udp(1, 1000), udp(2, 1000), udp(3, 1000), udp(1, 900), udp(4, 1000)}
	dropped := i.Put(some, start)
	if len(dropped) != 2 || dropped[0] != udp(3, 1000) || dropped[1] != udp(4, 1000) || i.Counts().Dropped != 2 {
		t.Errorf("dropped %v", dropped)
	}
}
