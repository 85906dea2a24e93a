package wire

import (
	"encoding/binary"
	"math"
	"testing"
)

func epochOf(n int) (e Epoch) {
	binary.BigEndian.PutUint64(e[:], uint64(n))
	return e
}

func TestANumberOfARunCountsOnce(t *testing.T) {
	var r Runs
	for i, c := range []struct {
		epoch  int
		number uint64
		want   Arrival
	}{
		{1, 5, InOrder}, {1, 5, Duplicate}, {1, 6, InOrder},
		{2, 5, InOrder}, {2, 5, Duplicate},
		{1, 3, Late}, {1, 3, Duplicate},
		{1, 1_000_000, InOrder}, {1, 1_000_000, Duplicate}, {1, 999_999, Late}, {1, 6, TooOld},
		{2, 6, InOrder},
		{2, Apart + 1, InOrder}, {2, Apart + 1, Duplicate}, {2, Apart + 100_000, InOrder}, {2, Apart + 1, TooOld}, {2, 7, InOrder}, {2, 6, Duplicate},
	} {
		if got := r.Note(epochOf(c.epoch), c.number); got != c.want {
			t.Errorf("step %d: number %d of run %d is %s, want %s", i, c.number, c.epoch, got, c.want)
		}
	}
}

func TestNumbersCountOnceAroundPowersOfTwo(t *testing.T) {
	for bits := 1; bits <= 64; bits++ {
		var r Runs
		top := uint64(math.MaxUint64)
		switch {
		case bits < 63:
			top = 1<<bits + 3
		case bits == 63:
			top = Apart - 1
		}
		first := top - min(top-1, 6)
		for number := first; ; number++ {
			if got := r.Note(epochOf(1), number); got != InOrder {
				t.Fatalf("2^%d: %d is %s", bits, number, got)
			}
			for again := first; again <= number; again++ {
				if got := r.Note(epochOf(1), again); got != Duplicate {
					t.Fatalf("2^%d: %d after %d is %s", bits, again, number, got)
				}
				if again == number {
					break
				}
			}
			if number == top {
				break
			}
		}
		var jumped Runs // there from the beginning at one leap
		jumped.Note(epochOf(1), 1)
		if got := jumped.Note(epochOf(1), top); got != InOrder && top > 1 {
			t.Errorf("2^%d: %d after 1 is %s", bits, top, got)
		}
		if got := jumped.Note(epochOf(1), top); got != Duplicate {
			t.Errorf("2^%d: %d again is %s", bits, top, got)
		}
	}
}

func TestRunsThatAreHeardAreRememberedWhenOthersComeAndGo(t *testing.T) {
	var r Runs
	friend := epochOf(0)
	for i := range 3 * maxRuns {
		n := uint64(i + 1)
		r.Note(friend, n)
		r.Note(epochOf(i+1), 1) // from a recording
		if got := r.Note(friend, n); got != Duplicate {
			t.Fatalf("number %d of the friend is %s after %d other runs", n, got, i+1)
		}
		if len(r.m) > maxRuns {
			t.Fatalf("%d runs are remembered", len(r.m))
		}
	}
}

func TestARunIsNotKeptByWhatIsReplayed(t *testing.T) {
	var r Runs
	friend, replayed := epochOf(0), epochOf(1)
	r.Note(replayed, 1)
	r.Note(friend, 1)
	for i := range maxRuns - 1 {
		r.Note(replayed, 1)
		r.Note(epochOf(2+i), 1)
	}
	if r.m[replayed] != nil || r.m[friend] == nil {
		t.Error("what was replayed pushed out a run that was heard later")
	}
}

func TestNothingIsAllocatedForANumber(t *testing.T) {
	var r Runs
	number := uint64(0)
	if n := testing.AllocsPerRun(1000, func() { number += 3; r.Note(epochOf(1), number) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
