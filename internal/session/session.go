// Package session owns what a NAT64 session is to Jool: its fields, the
// three encodings in which kernel modules speak of it, RFC 6052 addresses and
// the checks an entry from the network must pass. It is pure: bytes in, values
// out. It knows no socket, no file and no clock.
package session

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// Proto is the transport protocol of a session, in Jool's numbering
// (l4_protocol), which is not IANA's.
type Proto uint8

// The protocols that Jool keeps sessions for (RFC 6146, section 3.2).
const (
	TCP Proto = iota
	UDP
	ICMP
	protos // count
)

// Protos lists every protocol, in the order in which a table is swept.
var Protos = [...]Proto{TCP, UDP, ICMP}

func (p Proto) String() string {
	switch p {
	case TCP:
		return "TCP"
	case UDP:
		return "UDP"
	case ICMP:
		return "ICMP"
	}
	return fmt.Sprintf("proto %d", uint8(p))
}

// State is the state of a TCP session (RFC 6146, section 3.5.2). Jool leaves it
// at Established (0) for UDP and ICMP.
type State uint8

// The states, in Jool's numbering (tcp_state).
const (
	Established State = iota
	V6Init
	V4Init
	V4FinRcv
	V6FinRcv
	V4FinV6FinRcv
	Trans
	states // count
)

var stateNames = [states]string{
	"ESTABLISHED", "V6_INIT", "V4_INIT", "V4_FIN_RCV", "V6_FIN_RCV", "V4_FIN_V6_FIN_RCV", "TRANS",
}

func (s State) String() string {
	if s < states {
		return stateNames[s]
	}
	return fmt.Sprintf("state %d", uint8(s))
}

// Timer names the expiration list that a session stands in (session_timer_type).
type Timer uint8

// The timers. TimerSYN4 holds TCP sessions opened from the IPv4 side and not yet
// answered: RFC 6146's TCP_INCOMING_SYN, 6 s.
const (
	TimerEst Timer = iota
	TimerTrans
	TimerSYN4
	timers // count
)

func (t Timer) String() string {
	switch t {
	case TimerEst:
		return "EST"
	case TimerTrans:
		return "TRANS"
	case TimerSYN4:
		return "SYN4"
	}
	return fmt.Sprintf("timer %d", uint8(t))
}

// Session is one session as Jool announces it. The IPv6 destination is not
// stored: its address is pool6 and Dst4, its port Dst4Port (for ICMP, Src6Port).
// A Session holds no pointers and may be compared and copied freely.
type Session struct {
	Src6       [16]byte // the IPv6 node
	Src4       [4]byte  // its mask: the address from pool4 (the BIB entry's IPv4 side)
	Dst4       [4]byte  // the IPv4 node
	Src6Port   uint16   // port, or ICMPv6 identifier
	Src4Port   uint16   // port, or ICMPv4 identifier
	Dst4Port   uint16   // port; for ICMP equal to Src4Port
	Proto      Proto
	State      State
	Timer      Timer
	Expiration uint32 // ms of life left
}

// Dst6Port is the port that the IPv6 node talks to.
func (s *Session) Dst6Port() uint16 {
	if s.Proto == ICMP {
		return s.Src6Port
	}
	return s.Dst4Port
}

// Src6Addr is the IPv6 node's transport address.
func (s *Session) Src6Addr() netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom16(s.Src6), s.Src6Port)
}

// Src4Addr is the IPv6 node's mask.
func (s *Session) Src4Addr() netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4(s.Src4), s.Src4Port)
}

// Dst4Addr is the IPv4 node's transport address.
func (s *Session) Dst4Addr() netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4(s.Dst4), s.Dst4Port)
}

// Aged is s after it has waited: its expiration less d, not under zero.
func (s Session) Aged(d time.Duration) Session {
	if ms := d.Milliseconds(); ms >= int64(s.Expiration) {
		s.Expiration = 0
	} else if ms > 0 {
		s.Expiration -= uint32(ms)
	}
	return s
}

// SortOldestFirst orders sessions by protocol, timer and then the time of their
// last update, oldest first: the order in which Jool's sorted expiration lists
// take them in without a search.
func SortOldestFirst(s []Session) {
	if !InOrder(s) {
		slices.SortFunc(s, func(a, b Session) int { return cmp.Compare(a.rank(), b.rank()) })
	}
}

// InOrder tells whether sessions are in the order of SortOldestFirst.
func InOrder(s []Session) bool {
	for i := 1; i < len(s); i++ {
		if s[i].rank() < s[i-1].rank() {
			return false
		}
	}
	return true
}

func (s *Session) rank() uint64 {
	return uint64(s.Proto)<<40 | uint64(s.Timer)<<32 | uint64(s.Expiration)
}

// SYN4Timeout is the life of a session on TimerSYN4. Jool does not let it be
// configured.
const SYN4Timeout = 6000 // ms

// Timeouts are an instance's configured lifetimes, in milliseconds.
type Timeouts struct {
	TCPEst, TCPTrans, UDP, ICMP uint32
}

// DefaultTimeouts are those of an instance that nobody configured. For the first,
// RFC 6146 wants four minutes more (section 4, TCP_EST).
var DefaultTimeouts = Timeouts{TCPEst: 7_200_000, TCPTrans: 240_000, UDP: 300_000, ICMP: 60_000}

// Of is the full life in milliseconds of a session with this protocol and
// timer, and whether Jool ever puts such a session on that timer.
func (t *Timeouts) Of(p Proto, tm Timer) (ms uint32, ok bool) {
	switch {
	case p == TCP && tm == TimerEst:
		return t.TCPEst, true
	case p == TCP && tm == TimerTrans:
		return t.TCPTrans, true
	case p == TCP && tm == TimerSYN4:
		return SYN4Timeout, true
	case p == UDP && tm == TimerEst:
		return t.UDP, true
	case p == ICMP && tm == TimerEst:
		return t.ICMP, true
	}
	return 0, false
}

// Key is what tells one session from another: everything but its state and age.
type Key struct {
	Src6                         [16]byte
	Src4, Dst4                   [4]byte
	Src6Port, Src4Port, Dst4Port uint16
	Proto                        Proto
}

// Key is the identity of s.
func (s *Session) Key() Key {
	return Key{
		Src6: s.Src6, Src4: s.Src4, Dst4: s.Dst4,
		Src6Port: s.Src6Port, Src4Port: s.Src4Port, Dst4Port: s.Dst4Port,
		Proto: s.Proto,
	}
}

// Ref is a reference to a session in whatever remembers it, never 0. When the
// session is gone it may come to mean another.
type Ref uint32

// Placed is a reference, below 1<<24, with the place that its session has in the
// order of SortOldestFirst: of two the lesser is the one that comes first.
type Placed uint64

const (
	refBits   = 24
	placeBits = 36 // of 4 ms: nine years
)

// Place places a session of that protocol and timer which dies then, in
// milliseconds of a clock that is the same for all.
func Place(r Ref, p Proto, t Timer, dies int64) Placed {
	when := uint64(dies) >> 2 & (1<<placeBits - 1)
	return Placed((uint64(p&3)<<2|uint64(t&3))<<(placeBits+refBits) | when<<refBits | uint64(r)&(1<<refBits-1))
}

// Ref is the reference.
func (p Placed) Ref() Ref { return Ref(p & (1<<refBits - 1)) }
