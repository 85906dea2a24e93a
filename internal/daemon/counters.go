package daemon

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"joold/internal/cluster"
	"joold/internal/mcast"
	"joold/internal/session"
	"joold/internal/wire"
)

// counters count since the daemon's start, in 64 bits.
type counters struct {
	kernelMessages, kernelSessions, kernelBytes atomic.Uint64
	kernelBad                                   [session.Defects]atomic.Uint64
	overruns, foreign, malformed                atomic.Uint64 // the latter two of ended links
	injected, addMessages, addErrors            atomic.Uint64
	dropped, expired                            atomic.Uint64 // the inboxes of ended links, and what their ends cut short

	sentDatagrams, sentSessions, sentBytes atomic.Uint64
	sendErrors                             errorCounts

	apartDatagrams, apartSessions, apartBytes atomic.Uint64 // what the node has sent besides
	apartErrors                               errorCounts

	resolved, conflicts atomic.Uint64 // BIB entries removed, and sessions left out
	kernelDrops, sweeps atomic.Uint64

	rcvdDatagrams, rcvdSessions, rcvdBytes atomic.Uint64
	rcvdBad                                [session.Defects]atomic.Uint64
	refused                                [session.Refusals]atomic.Uint64
	strays                                 [strays]atomic.Uint64
	stamps, unheard                        [wire.Verdicts]atomic.Uint64    // the latter of what was refused
	unmet                                  [cluster.Verdicts]atomic.Uint64 // of what is well stamped: what the cluster found about it
	unserved, unfit                        atomic.Uint64
	readErrors, socketDrops                atomic.Uint64 // the latter of closed groups
}

// reason is why an entry was left out, a session.Defect or a session.Refusal, or
// something else that is counted by name.
type reason interface {
	~uint8
	fmt.Stringer
}

// addReasons adds to each reason's count.
func addReasons(to []atomic.Uint64, n []int) {
	for i := range n {
		if n[i] > 0 {
			to[i].Add(uint64(n[i]))
		}
	}
}

// byReason is what was counted, by the reason's name.
func byReason[R reason](counts []atomic.Uint64) map[string]uint64 {
	m := make(map[string]uint64, len(counts))
	for i := range counts {
		m[R(i).String()] = counts[i].Load()
	}
	return m
}

// reasonList names the reasons that occurred, as "pool4 3, timer 1".
func reasonList[R reason](counts []int) string {
	var parts []string
	for i, n := range counts {
		if n > 0 {
			parts = append(parts, fmt.Sprintf("%s %d", R(i), n))
		}
	}
	return strings.Join(parts, ", ")
}

// errorCounts counts failures by the name of their errno, of which there is a
// bounded number.
type errorCounts struct {
	mu sync.Mutex
	m  map[string]uint64
}

func (c *errorCounts) add(err error) {
	name := "other"
	var errno unix.Errno
	switch {
	case errors.As(err, &errno):
		name = unix.ErrnoName(errno)
	case errors.Is(err, mcast.ErrTooBig):
		name = "EMSGSIZE"
	case errors.Is(err, mcast.ErrNoInterface):
		name = "ENODEV"
	case errors.Is(err, os.ErrDeadlineExceeded):
		name = "timeout"
	case errors.Is(err, net.ErrClosed), errors.Is(err, errNoGroup):
		name = "no group"
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.m == nil {
		c.m = make(map[string]uint64)
	}
	c.m[name]++
}

func (c *errorCounts) snapshot() map[string]uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	m := make(map[string]uint64, len(c.m))
	for k, v := range c.m {
		m[k] = v
	}
	return m
}
