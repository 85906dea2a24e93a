package session

import (
	"net/netip"
	"time"
)

// Refusal is a reason for which an entry that could be read must not reach the
// kernel.
type Refusal uint8

// The refusals.
const (
	RefusedTimer      Refusal = iota // protocol, state and timer do not go together
	RefusedSource                    // the IPv6 node's address is none, or lies in pool6
	RefusedPool4                     // the mask is not this instance's to give
	RefusedExpiration                // a life of more than ten times the timeout
	Refusals                         // count
)

var refusalNames = [Refusals]string{"timer", "source", "pool4", "expiration"}

func (r Refusal) String() string { return refusalNames[r] }

// absurd is how many timeouts long a life may claim to be before the entry is
// refused rather than clamped: peers may be configured with longer timeouts,
// but not with these.
const absurd = 10

// Range is one entry of pool4, or a static BIB entry's IPv4 side: addresses
// and ports, both ends included, that masks of one protocol are taken from.
type Range struct {
	Proto            Proto
	Prefix           netip.Prefix // IPv4
	MinPort, MaxPort uint16
}

// Policy says what an instance accepts from other nodes. It is immutable once
// made and may be shared.
type Policy struct {
	pool6    Pool6
	timeouts Timeouts
	masks    [protos]masks
	anyMask  bool
}

// NewPolicy makes the policy of an instance with this pool6, these timeouts and
// masks from these ranges. Without any range the instance masquerades (Jool's
// empty pool4), and every mask is accepted.
func NewPolicy(p Pool6, t Timeouts, ranges []Range) *Policy {
	pol := &Policy{pool6: p, timeouts: t, anyMask: len(ranges) == 0}
	var of [protos][]Range
	for _, r := range ranges {
		if r.Proto < protos {
			of[r.Proto] = append(of[r.Proto], r)
		}
	}
	for proto := range of {
		pol.masks[proto] = newMasks(of[proto])
	}
	return pol
}

// Masquerades tells whether the policy accepts every mask.
func (p *Policy) Masquerades() bool { return p.anyMask }

// Age is how long ago s was last updated, judged by this instance's own timeout.
func (p *Policy) Age(s *Session) time.Duration {
	timeout, _ := p.timeouts.Of(s.Proto, s.Timer)
	return time.Duration(int64(timeout)-int64(s.Expiration)) * time.Millisecond
}

// Adopt makes the life that s has left at an instance with other timeouts what it
// would have here: it was updated as long ago. A life of 0 is over.
func (p *Policy) Adopt(s *Session, there *Timeouts) {
	full, known := there.Of(s.Proto, s.Timer)
	timeout, ok := p.timeouts.Of(s.Proto, s.Timer)
	if !ok || !known || full == 0 || full == timeout { // which is for Check, or nothing to do
		return
	}
	age := full - min(s.Expiration, full)
	s.Expiration = timeout - min(age, timeout)
}

// Check tells whether s may be given to the kernel. A life longer than this
// instance's own timeout is cut to it.
func (p *Policy) Check(s *Session) (Refusal, bool) {
	timeout, ok := p.timeouts.Of(s.Proto, s.Timer)
	if !ok || !goTogether(s.Proto, s.State, s.Timer) {
		return RefusedTimer, false
	}
	if uint64(s.Expiration) > absurd*uint64(timeout) {
		return RefusedExpiration, false
	}
	s.Expiration = min(s.Expiration, timeout)
	if a := netip.AddrFrom16(s.Src6); a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a.Is4In6() ||
		p.pool6.Contains(s.Src6) {
		return RefusedSource, false
	}
	if !p.anyMask && !p.masks[s.Proto].contain(s.Src4, s.Src4Port) {
		return RefusedPool4, false
	}
	return 0, true
}

// goTogether tells whether Jool itself would put a session in this state on
// this timer. An established timer with any other state makes the kernel warn
// when it expires. A final state can stand on TimerTrans before its time
// (handle-rst-during-fin-rcv).
func goTogether(p Proto, s State, t Timer) bool {
	if p != TCP {
		return s == Established && t == TimerEst
	}
	switch t {
	case TimerEst:
		return s == Established || s == V4FinRcv || s == V6FinRcv
	case TimerTrans:
		return s != Established && s < states
	case TimerSYN4:
		return s == V4Init
	}
	return false
}
