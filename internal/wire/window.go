package wire

import "math"

const (
	windowWords = 128
	wordBits    = 64

	// WindowSize is how many numbers a Window holds at the least.
	WindowSize = (windowWords - 1) * wordBits
)

// Arrival is what a number is to a Window.
type Arrival uint8

// The arrivals.
const (
	InOrder   Arrival = iota // the highest so far
	Late                     // fills a gap
	Duplicate                // has come before
	TooOld                   // below the window: whether it has come before is not known
	Jump                     // above it
)

func (a Arrival) String() string {
	return [...]string{"in order", "late", "duplicate", "too old", "jump"}[a]
}

// Range is the numbers from First to Last.
type Range struct{ First, Last uint64 }

// Window tells for the numbers of one epoch which have come and which have not: the
// highest so far and those below, about WindowSize of them. A number far above is
// a Jump and moves nothing: it may be forged. Only Advance, which is for what the
// sender itself says of its numbers, goes anywhere. The zero Window knows nothing
// and begins with the first number that it is given. It holds no pointers.
//
// The bits stand in words that are used round and round, as in RFC 6479: whole
// words are forgotten when the highest number gets past them.
type Window struct {
	begun  bool
	first  uint64 // number that was expected; what came before it was not for us
	top    uint64 // highest number known to have been sent
	seen   [windowWords]uint64
	unique uint64 // numbers from first on that have come
}

// Begun tells whether the window has been given a number.
func (w *Window) Begun() bool { return w.begun }

// Top is the highest number that is known to have been sent.
func (w *Window) Top() uint64 { return w.top }

// Note says that a datagram has come. One that is Duplicate, TooOld or a Jump
// leaves the window as it is.
func (w *Window) Note(number uint64) Arrival {
	switch {
	case !w.begun:
		w.begin(number)
	case number > w.top:
		if number-w.top > WindowSize {
			return Jump
		}
		w.raise(number)
	case number/wordBits+windowWords <= w.top/wordBits:
		return TooOld
	default:
		if !w.mark(number) {
			return Duplicate
		}
		return Late
	}
	w.mark(number)
	return InOrder
}

// Advance says that all numbers up to number have been sent, on the sender's word:
// those that have not come are missing from now on. A window that has not begun
// misses none of them. What lies behind the window by then is lost without being
// listed.
func (w *Window) Advance(number uint64) {
	switch {
	case !w.begun:
		w.begin(number)
		if number < math.MaxUint64 {
			w.first++ // it was sent before anybody listened
		}
	case number > w.top:
		w.raise(number)
	}
}

// Expect begins anew, with first, which is not 0, and all that follow, of which
// none has come.
func (w *Window) Expect(first uint64) {
	*w = Window{begun: true, first: first, top: first - 1}
}

// Reopen expects the numbers from number on again, though the window began later, as
// far as it reaches back. None of them has come.
func (w *Window) Reopen(number uint64) {
	number = max(number, 1)
	if top := w.top / wordBits; top >= windowWords {
		number = max(number, (top-windowWords+1)*wordBits)
	}
	for ; number < w.first; w.first-- {
		before := w.first - 1
		w.seen[before/wordBits%windowWords] &^= 1 << (before % wordBits)
	}
}

func (w *Window) begin(number uint64) {
	*w = Window{begun: true, first: number, top: number}
}

// raise makes number the top.
func (w *Window) raise(number uint64) {
	from, to := w.top/wordBits, number/wordBits
	for n := range min(to-from, windowWords) {
		w.seen[(to-n)%windowWords] = 0
	}
	w.top = number
}

// mark notes that number, which is in the window, has come; false if it had.
func (w *Window) mark(number uint64) bool {
	word, bit := &w.seen[number/wordBits%windowWords], uint64(1)<<(number%wordBits)
	if *word&bit != 0 {
		return false
	}
	*word |= bit
	if number >= w.first {
		w.unique++
	}
	return true
}

// Has tells whether number has come, as far as that is still known.
func (w *Window) Has(number uint64) bool {
	return w.begun && number <= w.top && number/wordBits+windowWords > w.top/wordBits &&
		w.seen[number/wordBits%windowWords]>>(number%wordBits)&1 == 1
}

// Missing is how many numbers have been sent since the window began and have not
// come, or came too late. It falls when they do come.
func (w *Window) Missing() uint64 {
	if !w.begun {
		return 0
	}
	return w.top + 1 - w.first - w.unique
}

// AppendGaps appends to gaps the ranges of numbers in the window that are missing,
// up to last, the lowest first, for as long as gaps has room: it allocates nothing.
func (w *Window) AppendGaps(gaps []Range, last uint64) []Range {
	if !w.begun {
		return gaps
	}
	last = min(last, w.top)
	number := w.first
	if top := w.top / wordBits; top >= windowWords {
		number = max(number, (top-windowWords+1)*wordBits)
	}
	for begin := len(gaps); number <= last; number++ {
		word := w.seen[number/wordBits%windowWords]
		switch {
		case word == ^uint64(0):
			number |= wordBits - 1
		case word>>(number%wordBits)&1 == 1:
		case len(gaps) > begin && gaps[len(gaps)-1].Last == number-1:
			gaps[len(gaps)-1].Last = number
		case len(gaps) == cap(gaps):
			return gaps
		default:
			gaps = append(gaps, Range{number, number})
		}
		if number >= last { // which may be the highest that there is
			break
		}
	}
	return gaps
}
