package wire

// maxRuns bounds the epochs whose numbers are remembered: some 600 KiB.
const maxRuns = 256

// Runs remembers which numbers the runs of senders have used, so that nothing
// recorded counts a second time. It is for stamps that are proven: a number far
// above the last is then the sender's own word. The zero Runs knows none. It is for
// one goroutine at a time.
type Runs struct {
	m     map[Epoch]*run
	clock uint64 // counts what was new
}

type run struct {
	windows [2]Window // of the numbers below Apart, and from there on
	heard   uint64    // clock's time
}

// Note says that a proven datagram has come: it is InOrder or Late if its number is
// new, else Duplicate or TooOld. Of too many epochs the one that has brought nothing
// new the longest is forgotten, and what it sends would be new again.
func (r *Runs) Note(epoch Epoch, number uint64) Arrival {
	q := r.m[epoch]
	if q == nil {
		if r.m == nil {
			r.m = make(map[Epoch]*run)
		}
		if len(r.m) >= maxRuns {
			r.forgetOldest()
		}
		q = new(run)
		r.m[epoch] = q
	}
	window := &q.windows[number/Apart]
	number %= Apart
	arrival := window.Note(number)
	if arrival == Jump {
		window.Advance(number - 1)
		arrival = window.Note(number)
	}
	if arrival == InOrder || arrival == Late {
		r.clock++
		q.heard = r.clock
	}
	return arrival
}

func (r *Runs) forgetOldest() {
	var oldest Epoch
	least := ^uint64(0)
	for epoch, q := range r.m {
		if q.heard < least {
			oldest, least = epoch, q.heard
		}
	}
	delete(r.m, oldest)
}
