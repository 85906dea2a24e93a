package wire

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// model is a Window by the book: the numbers that have come, all of them.
type model struct {
	begun      bool
	first, top uint64
	seen       map[uint64]bool
}

// bottom is the lowest number that is still in the window.
func (m *model) bottom() uint64 {
	if word := m.top / wordBits; word >= windowWords {
		return (word - windowWords + 1) * wordBits
	}
	return 0
}

func (m *model) note(number uint64) Arrival {
	switch {
	case !m.begun:
		*m = model{true, number, number, map[uint64]bool{}}
	case m.seen[number] && number >= m.bottom():
		return Duplicate
	case number < m.bottom():
		return TooOld
	case number > m.top && number-m.top > WindowSize:
		return Jump
	case number < m.top || number == m.top:
		m.seen[number] = true
		return Late
	}
	m.top = number
	m.seen[number] = true
	return InOrder
}

func (m *model) advance(number uint64) {
	if !m.begun {
		*m = model{true, number + 1, number, map[uint64]bool{}}
	}
	m.top = max(m.top, number)
}

func (m *model) reopen(number uint64) {
	for number = max(number, 1, m.bottom()); number < m.first; m.first-- {
		delete(m.seen, m.first-1)
	}
}

func (m *model) missing() (n uint64, gaps []Range) {
	if !m.begun {
		return 0, nil
	}
	for number := m.first; number <= m.top; number++ {
		if m.seen[number] {
			continue
		}
		n++
		if number < m.bottom() {
			continue
		}
		if last := len(gaps) - 1; last >= 0 && gaps[last].Last+1 == number {
			gaps[last].Last = number
		} else {
			gaps = append(gaps, Range{number, number})
		}
	}
	return n, gaps
}

func TestAWindowTellsWhatASetOfAllNumbersWould(t *testing.T) {
	for seed := range uint64(18) {
		r := rand.New(rand.NewPCG(seed, 5))
		start := []uint64{0, 1, 62, 64, WindowSize, 1<<31 - 40, 1<<32 - 3, 1 << 40, 1<<63 - 70}[seed%9]
		var w Window
		var m model
		next := start
		for step := range 2000 {
			number := next
			switch r.IntN(12) {
			case 0: // lost, one or some
				next += 1 + r.Uint64N(200)
				continue
			case 1, 2: // reordered, or again
				number = next - min(next, r.Uint64N(300))
			case 3:
				number = next - min(next, r.Uint64N(2*windowWords*wordBits))
			case 4:
				number = next + r.Uint64N(2*WindowSize)
			case 5:
				if r.IntN(20) == 0 {
					number = r.Uint64() // forged
				}
			case 6:
				w.Advance(next)
				m.advance(next)
				next++
				continue
			case 7:
				if r.IntN(20) == 0 {
					number := next - min(next, r.Uint64N(400))
					w.Reopen(number)
					m.reopen(number)
					continue
				}
				next++
			default:
				next++
			}
			if got, want := w.Note(number), m.note(number); got != want {
				t.Fatalf("seed %d, step %d: %d is %s, want %s (top %d)", seed, step, number, got, want, m.top)
			}
			next = max(next, m.top+1)
			if step%100 != 0 {
				continue
			}
			missing, gaps := m.missing()
			if w.Missing() != missing || w.Top() != m.top {
				t.Fatalf("seed %d, step %d: %d missing under %d, want %d under %d", seed, step, w.Missing(), w.Top(), missing, m.top)
			}
			if near := m.top - r.Uint64N(min(m.top, 2*WindowSize)+1); w.Has(near) != (m.seen[near] && near >= m.bottom()) {
				t.Fatalf("whether %d has come is %v", near, w.Has(near))
			}
			if got := w.AppendGaps(make([]Range, 0, WindowSize), math.MaxUint64); !slices.Equal(got, gaps) {
				t.Fatalf("seed %d, step %d: gaps %v, want %v", seed, step, got, gaps)
			}
		}
	}
}

func TestGapsAreListedUpToANumberAndForAsLongAsThereIsRoom(t *testing.T) {
	var w Window
	for _, number := range []uint64{100, 103, 104, 110, 300} {
		w.Note(number)
	}
	for last, want := range map[uint64][]Range{
		100:            nil,
		102:            {{101, 102}},
		107:            {{101, 102}, {105, 107}},
		math.MaxUint64: {{101, 102}, {105, 109}, {111, 299}},
	} {
		if got := w.AppendGaps(make([]Range, 0, 8), last); !slices.Equal(got, want) {
			t.Errorf("up to %d: %v, want %v", last, got, want)
		}
	}
	if got := w.AppendGaps(make([]Range, 0, 2), math.MaxUint64); !slices.Equal(got, []Range{{101, 102}, {105, 109}}) {
		t.Errorf("with room for two: %v", got)
	}
	kept := append(make([]Range, 0, 2), Range{99, 100})
	if got := w.AppendGaps(kept, 102); !slices.Equal(got, []Range{{99, 100}, {101, 102}}) {
		t.Errorf("behind others: %v", got)
	}
	var none Window
	if got := none.AppendGaps(make([]Range, 0, 1), 5); len(got) != 0 || none.Missing() != 0 || none.Begun() {
		t.Errorf("a window that has not begun misses %v", got)
	}
}

func TestAForgedFarAwayNumberMovesNothing(t *testing.T) {
	var w Window
	w.Note(1000)
	for _, far := range []uint64{1000 + WindowSize + 1, 1 << 32, math.MaxUint64} {
		if got := w.Note(far); got != Jump {
			t.Errorf("%d: %s", far, got)
		}
	}
	if got := w.Note(1001); got != InOrder || w.Missing() != 0 {
		t.Errorf("the next true number: %s, %d missing", got, w.Missing())
	}
}

func TestTheSendersWordMovesTheWindowAsFarAsItSays(t *testing.T) {
	var w Window
	w.Note(10)
	w.Advance(12) // 11 and 12 were the last before a silence
	if w.Missing() != 2 || w.Note(12) != Late || w.Missing() != 1 {
		t.Errorf("%d missing", w.Missing())
	}
	w.Advance(1 << 40)
	if w.Missing() != 1<<40-11 || w.Note(13) != TooOld || w.Note(1<<40+1) != InOrder {
		t.Errorf("after a long way: %d missing", w.Missing())
	}
	w.Advance(5)
	if w.Top() != 1<<40+1 {
		t.Errorf("it went back to %d", w.Top())
	}
	var begins Window
	begins.Advance(7)
	if begins.Missing() != 0 || begins.Note(7) != Late || begins.Note(7) != Duplicate || begins.Note(8) != InOrder {
		t.Errorf("begun by the sender's word: %+v", begins.Missing())
	}
}

func TestWhatIsReopenedIsMissingAndCountedWhenItComes(t *testing.T) {
	var w Window
	w.Expect(1000)
	for number := uint64(1); number < 1000; number++ {
		w.Note(number) // left to somebody else
	}
	w.Note(1000)
	if n := w.Missing(); n != 0 {
		t.Fatalf("%d are missing", n)
	}
	w.Reopen(900)
	if got := w.AppendGaps(make([]Range, 0, 4), math.MaxUint64); w.Missing() != 100 || !slices.Equal(got, []Range{{900, 999}}) {
		t.Errorf("%d are missing, %v", w.Missing(), got)
	}
	if w.Note(950) != Late || w.Note(950) != Duplicate || w.Note(899) != Duplicate || w.Missing() != 99 {
		t.Errorf("%d are missing after one has come", w.Missing())
	}
	w.Reopen(0) // no number
	if n := w.Missing(); n != 99+899 {
		t.Errorf("%d are missing of all", n)
	}
}

func TestWhatIsExpectedIsMissingUntilItComes(t *testing.T) {
	for _, first := range []uint64{1, 2, 63, 64, 65, 100_000, 1 << 40} {
		var w Window
		w.Note(7)
		w.Expect(first)
		if w.Missing() != 0 || w.Top() != first-1 || len(w.AppendGaps(make([]Range, 0, 4), math.MaxUint64)) != 0 {
			t.Errorf("from %d on: %d are missing before any was sent", first, w.Missing())
		}
		w.Advance(first + 9)
		if w.Note(first+4) != Late || w.Missing() != 9 {
			t.Errorf("from %d on: %d are missing of ten, want 9", first, w.Missing())
		}
		want := []Range{{first, first + 3}, {first + 5, first + 9}}
		if got := w.AppendGaps(make([]Range, 0, 4), math.MaxUint64); !slices.Equal(got, want) {
			t.Errorf("from %d on: the gaps are %v, want %v", first, got, want)
		}
	}
}

func TestTheHighestNumbersThereAreAreNumbers(t *testing.T) {
	for _, begin := range []func(*Window){
		func(w *Window) { w.Note(math.MaxUint64 - 3) },
		func(w *Window) { w.Advance(math.MaxUint64 - 3) },
	} {
		var w Window
		begin(&w)
		if w.Note(math.MaxUint64) != InOrder || w.Missing() != 2 {
			t.Errorf("%d missing", w.Missing())
		}
		if got := w.AppendGaps(make([]Range, 0, 4), math.MaxUint64); !slices.Equal(got, []Range{{math.MaxUint64 - 2, math.MaxUint64 - 1}}) {
			t.Errorf("gaps: %v", got)
		}
		w.Advance(math.MaxUint64)
		if w.Note(math.MaxUint64) != Duplicate || w.Note(0) != TooOld {
			t.Error("it went round")
		}
	}
	var w Window
	w.Advance(math.MaxUint64)
	w.AppendGaps(make([]Range, 0, 4), math.MaxUint64)
	if w.Missing() > 1 {
		t.Errorf("%d missing", w.Missing())
	}
}

func FuzzAWindowNeverPanicsAndMissesNoMoreThanWasSent(f *testing.F) {
	f.Add(uint64(1), uint64(5), uint64(900), uint64(3))
	f.Add(uint64(math.MaxUint64), uint64(0), uint64(math.MaxUint64), uint64(1<<63))
	f.Fuzz(func(t *testing.T, a, b, c, d uint64) {
		var w Window
		gaps := make([]Range, 0, 64)
		for i, n := range []uint64{a, b, c, d, a + 1, b - 1, c + WindowSize, d} {
			if i%3 == 2 {
				w.Advance(n)
			}
			first := w.Note(n)
			if again := w.Note(n); first == InOrder && again != Duplicate {
				t.Fatalf("%d comes twice: %s, %s", n, first, again)
			}
			listed := w.AppendGaps(gaps, math.MaxUint64)
			for j, g := range listed {
				if g.First > g.Last || g.Last > w.Top() || j > 0 && g.First <= listed[j-1].Last {
					t.Fatalf("gap %d of %v under %d", j, listed, w.Top())
				}
			}
		}
	})
}

func BenchmarkWindowNote(b *testing.B) {
	var w Window
	for n := uint64(0); b.Loop(); n++ {
		w.Note(n)
	}
}

func BenchmarkWindowLongGaps(b *testing.B) {
	var w Window
	w.Note(1)
	for n := uint64(2); n < 1+WindowSize; n += 2 {
		w.Note(n)
	}
	gaps := make([]Range, 0, WindowSize)
	for b.Loop() {
		gaps = w.AppendGaps(gaps[:0], math.MaxUint64)
	}
}
