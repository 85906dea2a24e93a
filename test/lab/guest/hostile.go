package guest

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// nestedFlag marks an attribute that holds others (NLA_F_NESTED).
const nestedFlag = 0x8000

// attribute is a netlink attribute of any length and type, sensible or not, and padding.
func attribute(length int, typ uint16, body []byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(length))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = append(b, body...)
	return append(b, make([]byte, -len(b)&3)...)
}

// An encoding is a form in which sessions cross the network, by the last version of Jool that brought a new one, or had the first.
type encoding struct {
	name  string
	entry func(Session) []byte
}

var encodings = []encoding{
	{"4.1.11", func(s Session) []byte { return attribute(140, 1|nestedFlag, s.nested()) }},
	{"4.1.12", func(s Session) []byte { return attribute(52, 1, s.long()) }},
	{"4.1.13", func(s Session) []byte { return attribute(40, 1, s.compact()) }},
}

func (s Session) nested() []byte {
	ae := netlink.NewAttributeEncoder()
	s.encode(ae)
	b, err := ae.Encode()
	if err != nil {
		panic(err) // an attribute over 64 KiB
	}
	return b
}

// long is the channel's form in 4.1.12.
func (s Session) long() []byte {
	b := append([]byte{}, s.Src6.Addr().AsSlice()...)
	b = append(b, s.Dst6.Addr().AsSlice()...)
	b = append(b, s.Src4.Addr().AsSlice()...)
	b = binary.BigEndian.AppendUint32(b, uint32(s.Expires.Milliseconds()))
	for _, v := range []uint16{s.Src6.Port(), s.Dst6.Port(), s.Src4.Port(), s.flags()} {
		b = binary.BigEndian.AppendUint16(b, v)
	}
	return b
}

// Jool's numbers.
const (
	protoTCP, protoUDP, protoICMP = 0, 1, 2

	stateEstablished, stateV6Init, stateV4Init, stateV4Fin, stateV6Fin, stateTrans = 0, 1, 2, 3, 4, 6

	timerEst, timerTrans, timerSYN4 = 0, 1, 2
)

// A forger makes up sessions and datagrams.
type forger struct {
	lab  *Lab
	made uint16
}

// session is a new one that Jool could have made, with a minute to live.
func (f *forger) session(proto uint8) Session {
	f.made++
	client := netip.MustParseAddr("2001:db8::1:0").As16()
	binary.BigEndian.PutUint16(client[14:], f.made)
	s := Session{
		ID: ID{
			Proto: proto,
			Src6:  netip.AddrPortFrom(netip.AddrFrom16(client), 5000),
			Dst6:  netip.AddrPortFrom(f.lab.server6(), 443),
			Src4:  netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), 61001+f.made),
			Dst4:  netip.AddrPortFrom(server4, 443),
		},
		Expires: time.Minute,
	}
	if proto == protoICMP {
		s.Dst6 = netip.AddrPortFrom(s.Dst6.Addr(), s.Src6.Port())
		s.Dst4 = netip.AddrPortFrom(s.Dst4.Addr(), s.Src4.Port())
	}
	return s
}

// A forgery is a datagram that no Jool made, and the sessions in it that are sound all the same.
type forgery struct {
	what  string
	bytes []byte
	sound []Session
}

// forgeries makes one of each kind.
func (f *forger) forgeries() (all []forgery) {
	add := func(b []byte, sound []Session, what string, args ...any) {
		all = append(all, forgery{fmt.Sprintf(what, args...), b, sound})
	}
	for _, lie := range f.lies() {
		for _, e := range encodings {
			before, after := f.session(protoTCP), f.session(protoUDP)
			b := append(e.entry(before), e.entry(lie.session)...)
			add(append(b, e.entry(after)...), []Session{before, after}, "%s, in the encoding of %s", lie.what, e.name)
		}
	}
	for _, e := range encodings {
		whole := e.entry(f.session(protoTCP))
		for n := range whole {
			add(whole[:n], nil, "%d bytes of an entry of %s", n, e.name)
		}
		before := f.session(protoTCP)
		add(append(e.entry(before), whole[:len(whole)/2]...), []Session{before}, "an entry and a half of %s", e.name)
		add(append(make([]byte, 4), whole...), nil, "an entry of %s behind the end", e.name)
	}
	for n := range 100 {
		if n != 40 && n != 52 { // the second is 4.1.12's
			add(attribute(n, 1, append(f.session(protoTCP).compact(), make([]byte, 60)...)), nil, "an entry that says that it has %d bytes", n)
		}
	}
	for _, typ := range []uint16{0, 2, 7, 0x3fff} {
		add(attribute(40, typ, f.session(protoTCP).compact()), nil, "an attribute of type %#x", typ)
	}
	add(attribute(40, 1|nestedFlag, f.session(protoTCP).compact()), nil, "a flat entry that says it is nested")
	add(attribute(40, 1, f.session(protoTCP).nested()), nil, "a nested entry that says it is flat, and short")
	add(attribute(0xffff, 1, f.session(protoTCP).compact()), nil, "an entry beyond the datagram")
	all = append(all, f.misshapen()...)

	rnd := rand.New(rand.NewPCG(6146, 7915))
	noise := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(rnd.Uint32())
		}
		return b
	}
	for range 50 {
		b := noise(rnd.IntN(1400))
		add(b, nil, "%d bytes of noise", len(b))
		add(attribute(40, 1, noise(36)), nil, "noise under a header of 4.1.13")
		add(attribute(52, 1, noise(48)), nil, "noise under a header of 4.1.12")
		add(attribute(140, 1|nestedFlag, noise(136)), nil, "noise under a header of 4.1.11")
	}

	var large []byte
	for range 1500 {
		s := f.session(protoTCP)
		f.made-- // they may be the same
		s.Src4 = netip.AddrPortFrom(netip.MustParseAddr("203.0.113.1"), s.Src4.Port())
		large = append(large, encodings[2].entry(s)...)
	}
	add(large, nil, "a datagram of %d bytes", len(large))
	return all
}

// A lie is a session that can be read in every encoding that has room for it, and must not reach a kernel.
type lie struct {
	what    string
	session Session
}

func (f *forger) lies() (all []lie) {
	add := func(s Session, what string, args ...any) {
		all = append(all, lie{fmt.Sprintf(what, args...), s})
	}
	for _, life := range []struct {
		proto, state, timer uint8
		ms                  int64
	}{
		{protoTCP, stateEstablished, timerEst, 4_000_000_000}, {protoTCP, stateEstablished, timerEst, 1<<32 - 1},
		{protoTCP, stateEstablished, timerEst, 72_000_001}, {protoTCP, stateV6Init, timerTrans, 2_400_001},
		{protoTCP, stateV4Init, timerSYN4, 60_001}, {protoUDP, stateEstablished, timerEst, 3_000_001}, {protoICMP, stateEstablished, timerEst, 600_001},
	} {
		s := f.session(life.proto)
		s.State, s.Timer, s.Expires = life.state, life.timer, time.Duration(life.ms)*time.Millisecond
		add(s, "a life of %d ms in timer %d of protocol %d", life.ms, life.timer, life.proto)
	}
	for _, mask := range []string{
		"192.0.2.1:61000", "192.0.2.1:80", "192.0.2.2:61001", "192.0.2.8:61001", "203.0.113.1:61001",
		"0.0.0.0:61001", "127.0.0.1:61001", "224.0.0.1:61001", "255.255.255.255:61001",
	} {
		for _, proto := range []uint8{protoTCP, protoUDP} {
			s := f.session(proto)
			s.Src4 = netip.MustParseAddrPort(mask)
			add(s, "the mask %s in protocol %d", mask, proto)
		}
	}
	s := f.session(protoICMP)
	s.Src4 = netip.AddrPortFrom(netip.MustParseAddr("192.0.2.2"), s.Src4.Port())
	add(s, "the mask %s in protocol %d", s.Src4, protoICMP)
	for _, node := range []string{"::", "::1", "ff02::1", "ff08::db8:64:64", "::ffff:192.0.2.8", "64:ff9b::1", "64:ff9b::192.0.2.8"} {
		s := f.session(protoTCP)
		s.Src6 = netip.AddrPortFrom(netip.MustParseAddr(node), s.Src6.Port())
		add(s, "the IPv6 node %s", node)
	}
	for _, proto := range []uint8{protoTCP, protoUDP, protoICMP, 3, 7} {
		for state := range uint8(8) {
			for timer := range uint8(4) {
				if !goTogether(proto, state, timer) {
					s := f.session(proto)
					s.State, s.Timer = state, timer
					add(s, "protocol %d in state %d with timer %d", proto, state, timer)
				}
			}
		}
	}
	return all
}

// goTogether tells which kinds of session there are (RFC 6146, section 3.5, in Jool's numbers).
func goTogether(proto, state, timer uint8) bool {
	switch {
	case proto == protoUDP || proto == protoICMP:
		return state == stateEstablished && timer == timerEst
	case proto != protoTCP:
		return false
	case timer == timerEst:
		return state == stateEstablished || state == stateV4Fin || state == stateV6Fin
	case timer == timerTrans:
		return state != stateEstablished && state <= stateTrans
	default:
		return timer == timerSYN4 && state == stateV4Init
	}
}

// misshapen are nested entries with something wrong inside, which the kernel up to 4.1.9 may not survive, and those whose parts disagree.
func (f *forger) misshapen() (all []forgery) {
	add := func(b []byte, what string, args ...any) {
		all = append(all, forgery{what: fmt.Sprintf(what, args...), bytes: attribute(4+len(b), 1|nestedFlag, b)})
	}
	for n := 0; n < 136; n += 4 {
		add(f.session(protoTCP).nested()[:n], "a nested entry that ends after %d bytes", n)
	}
	// The attributes of an entry, and how they begin.
	parts := func() [][]byte {
		var parts [][]byte
		for b := f.session(protoTCP).nested(); len(b) > 0; {
			n := (int(binary.NativeEndian.Uint16(b)) + 3) &^ 3
			parts, b = append(parts, b[:n]), b[n:]
		}
		return parts
	}
	join := func(parts [][]byte) (b []byte) {
		for _, p := range parts {
			b = append(b, p...)
		}
		return b
	}
	for i := range parts() {
		p := parts()
		typ := binary.NativeEndian.Uint16(p[i][2:])
		p[i] = nil
		add(join(p), "a nested entry without its attribute %d", i+1)
		p[i] = attribute(4, typ, nil)
		add(join(p), "a nested entry whose attribute %d is empty", i+1)
		p[i] = attribute(0, typ, nil)
		add(join(p), "a nested entry whose attribute %d has no length", i+1)
		p = parts()
		add(join(append(p, p[i])), "a nested entry with two attributes %d", i+1)
		p[i] = attribute(len(p[i])+4, typ, append(p[i][4:], 0, 0, 0, 0))
		binary.NativeEndian.PutUint16(p[i], 200)
		add(join(p), "a nested entry whose attribute %d is longer than it", i+1)
	}
	for i, size := range []int{16, 16, 4, 4} { // the addresses
		typ := uint16(i+1) | nestedFlag
		for _, inner := range []struct {
			what string
			b    []byte
		}{
			{"without a port", attribute(4+size, 1, make([]byte, size))},
			{"without an address", attribute(6, 2, []byte{1, 2})},
			{"with an address of another length", append(attribute(4+size-1, 1, make([]byte, size-1)), attribute(6, 2, []byte{1, 2})...)},
			{"with a port of four bytes", append(attribute(4+size, 1, make([]byte, size)), attribute(8, 2, make([]byte, 4))...)},
		} {
			p := parts()
			p[i] = attribute(4+len(inner.b), typ, inner.b)
			add(join(p), "a nested entry whose attribute %d is %s", i+1, inner.what)
		}
	}

	odd := func(proto uint8, what string, in []encoding, change func(*Session)) {
		s := f.session(proto)
		change(&s)
		for _, e := range in {
			all = append(all, forgery{what: "an entry of " + e.name + " " + what, bytes: e.entry(s)})
		}
	}
	// Each in the encodings that say it twice.
	odd(protoTCP, "under another pool6", encodings[:2], func(s *Session) { s.Dst6 = netip.MustParseAddrPort("[2001:db8:64::192.0.2.8]:443") })
	odd(protoTCP, "with another IPv6 port", encodings[:1], func(s *Session) { s.Dst6 = netip.AddrPortFrom(s.Dst6.Addr(), 80) })
	odd(protoICMP, "with another IPv6 identifier", encodings[:2], func(s *Session) { s.Dst6 = netip.AddrPortFrom(s.Dst6.Addr(), 1) })
	odd(protoICMP, "with another IPv4 identifier", []encoding{encodings[0], encodings[2]}, func(s *Session) { s.Dst4 = netip.AddrPortFrom(s.Dst4.Addr(), 1) })
	return all
}

// A sender sends to the group out of some interface of a node of this machine.
type sender struct {
	node *Node
	fd   int
}

// sender takes the address, if any, that is to be the source, and the hop limit.
func (n *Node) sender(dev, source string, hops int) *sender {
	n.lab.t.Helper()
	s := &sender{node: n}
	err := n.in(func() (err error) {
		i, err := net.InterfaceByName(dev)
		if err != nil {
			return err
		}
		if s.fd, err = unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		for _, o := range [][2]int{{unix.IPV6_MULTICAST_IF, i.Index}, {unix.IPV6_MULTICAST_HOPS, hops}, {unix.IPV6_UNICAST_HOPS, hops}} {
			if err := unix.SetsockoptInt(s.fd, unix.IPPROTO_IPV6, o[0], o[1]); err != nil {
				return err
			}
		}
		return unix.Bind(s.fd, &unix.SockaddrInet6{Addr: netip.MustParseAddr(source).As16()})
	})
	if err != nil {
		n.lab.t.Fatalf("%s: open a socket at %s: %v", n.Name, source, err)
	}
	n.lab.t.Cleanup(func() { unix.Close(s.fd) })
	return s
}

func (s *sender) send(to string, b []byte) {
	s.node.lab.t.Helper()
	port, err := net.LookupPort("udp", syncPort)
	if err == nil {
		err = unix.Sendto(s.fd, b, 0, &unix.SockaddrInet6{Addr: netip.MustParseAddr(to).As16(), Port: port})
	}
	if err != nil {
		s.node.lab.t.Fatalf("%s: send %d bytes to %s: %v", s.node.Name, len(b), to, err)
	}
}
