package daemon

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"joold/internal/batch"
	"joold/internal/config"
	"joold/internal/mcast"
	"joold/internal/nlchan"
	"joold/internal/session"
	"joold/internal/wire"
)

// gate is an instance that objects to anything that no kernel must ever see. It
// knows what Jool's source says, not what session.Policy does: it looks at the
// message as the module would read it.
type gate struct {
	*modelKernel
	object func(what string) // told of each objection

	mu    sync.Mutex
	read  settings // what the daemon has read so far
	told  settings // and what it had read when learned was last called: it is held to that
	heard []byte   // all that was said on the network by who may; nil if that is not looked at
}

type settings struct {
	globals nlchan.Globals
	pool4   []nlchan.Pool4Entry
	static  []nlchan.BIBEntry
}

// learned says that the daemon has drawn its conclusions from what it has read.
func (k *gate) learned() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.told = k.read
}

// newGate makes a gate that panics.
func newGate(e session.Encoding) *gate {
	return &gate{modelKernel: newModelKernel(e), object: func(what string) { panic(what) }}
}

var _ kernel = (*gate)(nil)

func (k *gate) Globals(ctx context.Context) (nlchan.Globals, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	var err error
	k.read.globals, err = k.modelKernel.Globals(ctx)
	return k.read.globals, err
}

func (k *gate) Pool4(ctx context.Context) ([]nlchan.Pool4Entry, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	var err error
	k.read.pool4, err = k.modelKernel.Pool4(ctx)
	return k.read.pool4, err
}

func (k *gate) StaticBIB(ctx context.Context, page func(int) error) ([]nlchan.BIBEntry, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	var err error
	k.read.static, err = k.modelKernel.StaticBIB(ctx, page)
	return k.read.static, err
}

func (k *gate) Add(s []session.Session, p session.Pool6) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(s) == 0 {
		k.object("a message without an entry: the module follows a null pointer")
	}
	var b []byte
	for i := range s {
		b = k.module.Encoding.Append(b, &s[i], p)
	}
	// Its header, Jool's, and the list's come before.
	if len(b)+20+28+4 > 65535 {
		k.object(fmt.Sprintf("a message of %d sessions in %d bytes", len(s), len(b)))
	}
	entries, ok := split(b)
	if !ok || len(entries) != len(s) {
		k.object(fmt.Sprintf("%d entries for %d sessions", len(entries), len(s)))
		return nil
	}
	for i, e := range entries {
		e, ok := readAsModule(k.module.Encoding, e.body)
		if !ok || e != s[i] {
			k.object(fmt.Sprintf("%+v is misread as %+v", s[i], e))
		}
		if why := k.objection(&e); why != "" {
			k.object(fmt.Sprintf("%s: %+v", why, e))
		}
	}
	return k.modelKernel.Add(s, p)
}

// RemoveBIB leaves the operator's entries alone, as nlchan does.
func (k *gate) RemoveBIB(ctx context.Context, p session.Proto, src6, src4 netip.AddrPort) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if slices.Contains(k.modelKernel.static, nlchan.BIBEntry{Proto: p, Src6: src6, Src4: src4}) {
		return nlchan.ErrStaticBIB
	}
	return k.modelKernel.RemoveBIB(ctx, p, src6, src4)
}

// kept is which states Jool keeps on a timer, bit by bit: on EST any other warns
// when it expires; SYN4 is for what the IPv4 side has opened alone.
var kept = map[[2]uint8]uint8{ // by protocol and timer
	{0, 0}: 1<<0 | 1<<3 | 1<<4,
	{0, 1}: 1<<1 | 1<<2 | 1<<3 | 1<<4 | 1<<5 | 1<<6,
	{0, 2}: 1 << 2,
	{1, 0}: 1 << 0,
	{2, 0}: 1 << 0,
}

// objection is what a module has against a session; "" is nothing.
func (k *gate) objection(s *session.Session) string {
	proto, timer := uint8(s.Proto), uint8(s.Timer)
	if s.State > 6 || kept[[2]uint8{proto, timer}]>>s.State&1 == 0 {
		return "no such kind of session"
	}
	t := k.told.globals.Timeouts
	life := map[[2]uint8]uint32{{0, 0}: t.TCPEst, {0, 1}: t.TCPTrans, {0, 2}: 6000, {1, 0}: t.UDP, {2, 0}: t.ICMP}
	if most := life[[2]uint8{proto, timer}]; s.Expiration == 0 || s.Expiration > most {
		return fmt.Sprintf("a life of %d ms, where %d is all", s.Expiration, most)
	}
	if proto == 2 && s.Dst4Port != s.Src4Port {
		return "an ICMP session with two identifiers"
	}
	node := net.IP(s.Src6[:])
	_, pool6, _ := net.ParseCIDR(k.told.globals.Pool6.String())
	if node.IsUnspecified() || node.IsLoopback() || node.IsMulticast() || node.To4() != nil || pool6.Contains(node) {
		return "an IPv6 node that is none"
	}
	if k.heard != nil && (!bytes.Contains(k.heard, s.Src6[:]) || !bytes.Contains(k.heard, s.Src4[:])) {
		return "nobody has said that"
	}
	if len(k.told.pool4) == 0 {
		return ""
	}
	for _, e := range k.told.pool4 {
		_, prefix, _ := net.ParseCIDR(e.Prefix.String())
		if e.Proto == s.Proto && prefix.Contains(net.IP(s.Src4[:])) && e.MinPort <= s.Src4Port && s.Src4Port <= e.MaxPort {
			return ""
		}
	}
	for _, e := range k.told.static {
		if e.Proto == s.Proto && e.Src4 == netip.AddrPortFrom(netip.AddrFrom4(s.Src4), s.Src4Port) {
			return ""
		}
	}
	return "a mask that is not the instance's"
}

// attribute is a netlink attribute in this machine's byte order.
type attribute struct {
	typ  uint16
	body []byte
}

func split(b []byte) (as []attribute, ok bool) {
	for len(b) > 0 {
		if len(b) < 4 {
			return as, false
		}
		length := int(binary.NativeEndian.Uint16(b))
		if length < 4 || length > len(b) {
			return as, false
		}
		as = append(as, attribute{binary.NativeEndian.Uint16(b[2:]) & 0x3fff, b[4:length]})
		b = b[min((length+3)&^3, len(b)):]
	}
	return as, true
}

// readAsModule reads an entry as a module of this encoding does.
func readAsModule(e session.Encoding, b []byte) (s session.Session, ok bool) {
	be := binary.BigEndian
	var flags uint16
	switch e {
	case session.Enc4113:
		if len(b) != 36 {
			return s, false
		}
		s.Src6, s.Src4, s.Dst4 = [16]byte(b), [4]byte(b[16:]), [4]byte(b[20:])
		s.Expiration = be.Uint32(b[24:])
		s.Src6Port, s.Src4Port, s.Dst4Port = be.Uint16(b[28:]), be.Uint16(b[30:]), be.Uint16(b[32:])
		flags = be.Uint16(b[34:])
	case session.Enc4112:
		if len(b) != 48 {
			return s, false
		}
		s.Src6, s.Dst4, s.Src4 = [16]byte(b), [4]byte(b[28:]), [4]byte(b[32:]) // right for a /96 alone
		s.Expiration = be.Uint32(b[36:])
		s.Src6Port, s.Dst4Port, s.Src4Port = be.Uint16(b[40:]), be.Uint16(b[42:]), be.Uint16(b[44:])
		flags = be.Uint16(b[46:])
	case session.Enc4111:
		return readNested(b)
	}
	s.Proto, s.State, s.Timer = session.Proto(flags>>5), session.State(flags>>2&7), session.Timer(flags&3)
	if s.Proto == session.ICMP && e == session.Enc4112 {
		s.Dst4Port = s.Src4Port
	}
	return s, true
}

func readNested(b []byte) (s session.Session, ok bool) {
	as, ok := split(b)
	if !ok || len(as) != 8 {
		return s, false
	}
	lengths := [...]int{16, 16, 4, 4}
	var addrs [4][]byte
	var ports [4]uint16
	for i, a := range as {
		if int(a.typ) != i+1 {
			return s, false
		}
		switch {
		case i < 4:
			parts, ok := split(a.body)
			if !ok || len(parts) != 2 || parts[0].typ != 1 || len(parts[0].body) != lengths[i] || parts[1].typ != 2 || len(parts[1].body) != 2 {
				return s, false
			}
			addrs[i], ports[i] = parts[0].body, binary.NativeEndian.Uint16(parts[1].body)
		case i < 7 && len(a.body) != 1, i == 7 && len(a.body) != 4:
			return s, false
		}
	}
	s = session.Session{
		Src6: [16]byte(addrs[0]), Src4: [4]byte(addrs[2]), Dst4: [4]byte(addrs[3]),
		Src6Port: ports[0], Src4Port: ports[2], Dst4Port: ports[3],
		Proto: session.Proto(as[4].body[0]), State: session.State(as[5].body[0]), Timer: session.Timer(as[6].body[0]),
		Expiration: binary.NativeEndian.Uint32(as[7].body),
	}
	return s, ports[1] == s.Dst6Port()
}

func TestTheGateObjectsToWhatNoKernelMustSee(t *testing.T) {
	for name, spoil := range map[string]func(*session.Session){
		"":                     func(*session.Session) {},
		"state":                func(s *session.Session) { s.State = session.Trans },
		"timer":                func(s *session.Session) { s.Timer = session.TimerTrans },
		"life":                 func(s *session.Session) { s.Expiration = 300_001 },
		"death":                func(s *session.Session) { s.Expiration = 0 },
		"multicast":            func(s *session.Session) { s.Src6[0] = 0xff },
		"pool6":                func(s *session.Session) { s.Src6 = wkp.Embed(s.Dst4) },
		"mask's address":       func(s *session.Session) { s.Src4[3]++ },
		"mask's port":          func(s *session.Session) { s.Src4Port = 61000 },
		"mask's protocol":      func(s *session.Session) { s.Proto = session.ICMP; s.Expiration = 1; s.Dst4Port = s.Src4Port },
		"what nobody has said": func(s *session.Session) { s.Src6[15]++ },
	} {
		for _, e := range session.Encodings {
			k := newGate(e)
			k.told.globals, k.told.pool4 = k.globals, k.pool4
			s := udp(1, 300_000)
			k.heard = encode(e, wkp, s)
			var objections []string
			k.object = func(what string) { objections = append(objections, what) }
			spoil(&s)
			k.Add([]session.Session{s}, wkp)
			if (len(objections) == 0) != (name == "") {
				t.Errorf("%s, %q: it objects to %q", e, name, objections)
			}
		}
	}
	k := newGate(session.Enc4112)
	k.told.globals = k.globals
	objected := false
	k.object = func(string) { objected = true }
	if k.Add([]session.Session{udp(1, 1)}, pool6("64:ff9b::/64")); !objected {
		t.Error("it does not object to what 4.1.12 misreads")
	}
	objected = false
	if k.Add(nil, wkp); !objected {
		t.Error("it does not object to a message without an entry")
	}
}

// story is one life of a daemon, as a script tells it: what comes from the
// network, and what else happens meanwhile.
type story struct {
	*Daemon
	t      *testing.T
	l      *link
	k      *gate
	in     *intake
	script []byte

	group  *modelGroup
	nodes  []*partner          // that may be heard: without a key, with either, and one that seals
	last   []byte              // that one of them stamped
	opener *wire.Opener        // with this node's keys
	used   map[wire.Stamp]bool // what has been heard by a key
}

// byte is the script's next; zero when it is told to its end.
func (y *story) byte() byte {
	if len(y.script) == 0 {
		return 0
	}
	b := y.script[0]
	y.script = y.script[1:]
	return b
}

func (y *story) bytes(n int) []byte {
	n = min(n, len(y.script))
	b := y.script[:n]
	y.script = y.script[n:]
	return b
}

func (y *story) uint16() uint16 { return uint16(y.byte())<<8 | uint16(y.byte()) }
func (y *story) uint32() []byte { return []byte{y.byte(), y.byte(), y.byte(), y.byte()} }

// pick is mostly one of some, or else what other makes of the script.
func pick[T any](y *story, other func() T, some ...T) T {
	if n := int(y.byte()); n < 240 {
		return some[n%len(some)]
	}
	return other()
}

// session is one that is near what is acceptable, on either side.
func (y *story) session() session.Session {
	address := func(s string) [16]byte { return netip.MustParseAddr(s).As16() }
	// Each list is of what is good, first, and what is not.
	s := session.Session{
		Src6: pick(y, func() [16]byte { a := address("2001:db8::"); a[15] = y.byte(); return a },
			address("2001:db8::8"), address("2001:db8::9"), address("2001:db8::a"), address("2001:db8::b"),
			address("::"), address("::1"), address("ff02::1"), address("::ffff:192.0.2.1"), y.l.pool6.Embed([4]byte{192, 0, 2, 8})),
		Src6Port: pick(y, y.uint16, 1, 2),
		Src4:     pick(y, func() [4]byte { return [4]byte{192, 0, 2, y.byte()} }, [4]byte{192, 0, 2, 1}, [4]byte{198, 51, 100, 7}),
		Src4Port: pick(y, y.uint16, 61001, 61002, 65535, 53, 61000, 0),
		Dst4:     pick(y, func() [4]byte { return [4]byte(y.uint32()) }, [4]byte{203, 0, 113, 1}, [4]byte{203, 0, 113, 2}),
		Dst4Port: pick(y, y.uint16, 53, 443),
	}
	kind := pick(y, y.byte, 1<<6, 1<<6, 2<<6, 0, 0|3<<2, 0|1<<2|1, 0|2<<2|2, 0|6<<2|1, // protocol, state and timer
		0|1<<2, 0|1, 1<<6|1<<2, 2<<6|1, 3<<6, 0|7<<2|1, 0|3)
	s.Proto, s.State, s.Timer = session.Proto(kind>>6), session.State(kind>>2&7), session.Timer(kind&3)
	if s.Proto == session.ICMP && y.byte()%8 > 0 {
		s.Dst4Port = s.Src4Port
	}
	timeout, _ := y.k.told.globals.Timeouts.Of(s.Proto, s.Timer)
	life := func() uint32 { return binary.BigEndian.Uint32(y.uint32()) }
	s.Expiration = pick(y, life, timeout, timeout/2, timeout+1, 10*timeout, 10*timeout+1, 1, 0, 4_000_000_000)
	return s
}

// sessions is a datagram of some, of whatever encoding and byte order, perhaps
// with something changed or cut off.
func (y *story) sessions() []byte {
	e := session.Encodings[int(y.byte())%len(session.Encodings)]
	p := y.l.pool6
	if y.byte()%16 == 15 {
		p = wkp
	}
	var b []byte
	for range 1 + y.byte()%8 {
		s := y.session()
		from := len(b)
		b = e.Append(b, &s, p)
		if e == session.Enc4113 && y.byte()%8 == 7 {
			slices.Reverse(b[from : from+2])
			slices.Reverse(b[from+2 : from+4])
		}
	}
	switch y.byte() % 16 {
	case 14:
		b[int(y.uint16())%len(b)] ^= y.byte()
	case 15:
		b = b[:int(y.uint16())%len(b)]
	}
	return b
}

// stamped is a datagram as a C node or another sends it, the last one again, or
// one that was changed on its way.
func (y *story) stamped(entries []byte) []byte {
	kind := y.byte()
	if kind%8 < 4 {
		return entries
	}
	if kind%8 < 7 || y.last == nil {
		y.last = y.nodes[kind/8%4].Stamp(entries, 0, nil)
	}
	if kind >= 224 {
		y.last[int(y.uint16())%len(y.last)] ^= y.byte()
	}
	return slices.Clone(y.last)
}

// meet has those nodes known that say hello with a key that counts.
func (y *story) meet() {
	for range 4 {
		time.Sleep(time.Second)
		synctest.Wait()
		y.group.mu.Lock()
		heard := y.group.apart
		y.group.apart = nil
		y.group.mu.Unlock()
		for _, n := range y.nodes {
			for _, b := range n.says(heard) {
				y.in.accept(y.l, &mcast.Datagram{Payload: b, From: n.from, HopLimit: 255}, time.Now())
			}
		}
	}
}

// said is what a datagram says to a node with these keys; nil if it must not be
// listened to.
func (y *story) said(payload []byte) []byte {
	keys := y.live.Load().Keys
	y.opener.Rekey(keys)
	dg, verdict := y.opener.Open(payload, time.Now())
	if !keys.Signing() {
		return append([]byte{}, payload...)
	}
	id := wire.Stamp{Epoch: dg.Epoch, Number: dg.Number}
	if verdict != wire.Proven || y.used[id] {
		return nil
	}
	y.used[id] = true
	return append([]byte{}, dg.Entries...)
}

// receive takes a datagram in.
func (y *story) receive(payload []byte) {
	dg := mcast.Datagram{
		Payload: payload,
		From: pick(y, func() netip.AddrPort {
			return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, y.byte(), y.byte()}), 6400)
		}, sender, netip.MustParseAddrPort("[2001:db8:ff08::5]:6400"), netip.MustParseAddrPort("[::ffff:10.0.0.2]:6400")),
		HopLimit:  pick(y, func() int { return int(y.byte()) }, 1, 254, 255),
		Truncated: y.byte()%16 == 15,
	}
	cfg := y.live.Load()
	known := len(cfg.Sources) == 0
	for _, p := range cfg.Sources {
		_, prefix, _ := net.ParseCIDR(p.String())
		known = known || prefix.Contains(dg.From.Addr().WithZone("").AsSlice())
	}
	read := y.count.rcvdSessions.Load()
	var said []byte
	if known && !dg.Truncated && dg.HopLimit >= cfg.HopLimit {
		said = y.said(payload)
	}
	y.in.accept(y.l, &dg, time.Now())
	y.k.heard = append(y.k.heard, said...)
	if said == nil && y.count.rcvdSessions.Load() != read {
		y.t.Fatalf("a datagram from %s with a hop limit of %d, truncated: %t, is looked into: %x", dg.From, dg.HopLimit, dg.Truncated, payload)
	}
}

// whileReady is a context that ends when an inbox has nothing more to give.
type whileReady struct {
	context.Context
	ready <-chan struct{}
}

var ended = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

func (c whileReady) Done() <-chan struct{} {
	if len(c.ready) > 0 {
		return nil
	}
	return ended
}

// settle resolves the conflicts that wait for it.
func (y *story) settle(queue <-chan conflict, after time.Duration) {
	for len(queue) > 0 {
		c := <-queue
		time.Sleep(time.Until(c.heard.Add(after)))
		if err := y.resolve(context.Background(), y.l, c); isOver(err) {
			y.t.Fatalf("a conflict ended the link: %v", err)
		}
	}
}

// inject gives the kernel what waits for it.
func (y *story) inject() {
	y.settle(y.l.contests, 0)
	if y.byte()%2 == 1 {
		y.settle(y.l.contestsLater, contestAfter)
	}
	for _, box := range []*batch.Inbox{y.l.inbox, y.l.copied} {
		if err := y.Daemon.inject(whileReady{context.Background(), box.Ready()}, y.l, box); err != nil {
			y.t.Fatalf("the injection ended: %v", err)
		}
	}
	if _, err := y.empty(context.Background(), y.l, y.l.held, nil); err != nil {
		y.t.Fatalf("the injection of what was held ended: %v", err)
	}
	select {
	case <-y.l.stirred:
		y.look()
	default:
	}
}

// look looks at the instance's settings.
func (y *story) look() {
	if err := y.reread(context.Background(), y.l, time.Now(), false); err != nil {
		y.t.Fatalf("the instance's settings cannot be read: %v", err)
	}
	y.k.learned()
}

func (y *story) step() {
	now := time.Now()
	op := y.byte() % 16
	switch op {
	default:
		y.receive(y.stamped(y.sessions()))
	case 8:
		y.receive(y.bytes(int(y.byte()%64) * 4))
	case 9:
		y.inject()
	case 10: // what this kernel announces is its own
		var own []session.Session
		own, _ = session.Decode(own, y.sessions(), y.l.pool6)
		y.out.announce(own, false, now)
	case 11:
		time.Sleep(time.Duration(y.uint16()) * time.Millisecond)
	case 12:
		y.k.pool4 = nil // masquerades
		for range y.byte() % 4 {
			y.k.pool4 = append(y.k.pool4, nlchan.Pool4Entry{Range: session.Range{
				Proto:   session.Protos[y.byte()%3],
				Prefix:  netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, 2, y.byte() % 4}), 28+int(y.byte()%5)).Masked(),
				MinPort: 61001, MaxPort: pick(y, y.uint16, 65535, 61001),
			}})
		}
	case 13:
		y.k.static = nil
		for range y.byte() % 4 {
			y.k.static = append(y.k.static, nlchan.BIBEntry{
				Proto: session.Protos[y.byte()%3], Src6: netip.MustParseAddrPort("[2001:db8::8]:61001"),
				Src4: netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, 100, 7}), pick(y, y.uint16, 53, 61001)),
			})
		}
		if err := y.readStatic(context.Background(), y.l); err != nil { // as after SIGHUP
			y.t.Fatal(err)
		}
	case 14:
		y.k.globals.Timeouts = session.Timeouts{
			TCPEst: 7_200_000 << (y.byte() % 4), TCPTrans: 240_000 << (y.byte() % 4),
			UDP: 120_000 << (y.byte() % 4), ICMP: 60_000 << (y.byte() % 4),
		}
	case 15:
		switch y.byte() % 4 {
		case 0:
			if y.k.addErr = errors.New("no memory"); y.byte()%2 == 0 {
				y.k.addErr = nil
			}
		case 1:
			cfg := *y.live.Load()
			cfg.HopLimit = int(y.byte()%2) * 255
			cfg.Sources = [][]netip.Prefix{
				nil, {netip.MustParsePrefix("fe80::/10")},
				{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("2001:db8:ff08::/96")},
			}[y.byte()%3]
			y.live.Store(&cfg)
		case 2:
			y.look()
		default:
			cfg := *y.live.Load()
			cfg.Keys = []wire.Keys{{}, someKeys(y.t, 1), someKeys(y.t, 1, 2), someKeys(y.t, 2, 3)}[y.byte()%4]
			y.live.Store(&cfg)
			y.signer.Rekey(cfg.Keys, false)
			y.out.rekeyed()
			y.meet()
		}
	}
}

// tell plays a script from beginning to end. An objection is a panic.
func tell(t *testing.T, e session.Encoding, p session.Pool6, script []byte) (y *story) {
	k := newGate(e)
	k.globals.Pool6 = p
	k.pool4 = nil
	for _, proto := range session.Protos {
		k.pool4 = append(k.pool4, nlchan.Pool4Entry{Range: session.Range{
			Proto: proto, Prefix: netip.MustParsePrefix("192.0.2.1/32"), MinPort: 61001, MaxPort: 65535,
		}})
	}
	k.heard = []byte{}
	var objection string
	k.object = func(what string) { objection = what }
	y = &story{t: t, k: k, script: script, group: newModelGroup()}
	y.Daemon = newDaemon(&config.Config{
		Instance: "edge", BatchDeadline: 10 * time.Millisecond, Refresh: 2 * time.Second, Table: 50, Pending: 20,
	}, Options{Version: "test", Log: slog.New(slog.DiscardHandler)})
	y.dial = func() (kernel, error) { return k, nil }
	y.newWatcher = func() (watcher, error) { return modelWatcher(nil), nil }
	var err error
	if y.l, err = y.connect(context.Background()); err != nil {
		t.Fatal(err)
	}
	k.learned()
	y.out.begin(y.l, false)
	y.link.Store(y.l)
	y.in = &intake{d: y.Daemon, stamps: newStamps(y.Daemon)}
	y.opener, y.used = wire.NewOpener("", wire.Keys{}), make(map[wire.Stamp]bool)
	for n, keys := range []wire.Keys{{}, someKeys(t, 1), someKeys(t, 2), someKeys(t, 2)} {
		epoch := func(b []byte) { b[0] = byte(n) }
		y.nodes = append(y.nodes, asPartner(t, wire.NewSigner("", keys, n == 3, epoch), "", keys))
	}
	group := network(y.group)
	y.current.Store(&group)
	y.meet()
	for len(y.script) > 0 && objection == "" {
		y.step()
	}
	y.inject()
	if objection != "" {
		t.Fatalf("a kernel of %s with pool6 %s would see %s", e, p, objection)
	}
	if n := len(y.peers.m); n > maxPeers {
		t.Fatalf("%d peers", n)
	}
	y.out.timer.Stop()
	return y
}

// pool6s are one of each length.
var pool6s = [...]session.Pool6{
	wkp, pool6("3fff:db8::/32"), pool6("3fff:db8:100::/40"), pool6("3fff:db8:122::/48"), pool6("3fff:db8:122:300::/56"), pool6("3fff:db8:122:344::/64"),
}

func FuzzInbound(f *testing.F) {
	script := func(parts ...[]byte) []byte { return slices.Concat(parts...) }
	raw := func(b []byte) []byte { // for a step that receives it
		b = append(b, make([]byte, (4-len(b)%4)%4)...)
		return script([]byte{8, byte(len(b) / 4)}, b, []byte{0, 0, 0})
	}
	for _, e := range session.Encodings {
		for n, p := range pool6s {
			f.Add(uint8(e), uint8(n), script(raw(encode(e, p, udp(1, 300_000), udp(2, 4_000_000_000), udp(3, 1000))), []byte{9}))
		}
	}
	other := udp(7, 300_000)
	other.Src4 = [4]byte{192, 0, 2, 2}
	say := func(s session.Session) []byte { return raw(encode(session.Enc4113, wkp, s)) }
	inject, look := []byte{9}, []byte{15, 2}
	for _, s := range [][]byte{
		script(say(other), []byte{12, 1, 1, 2, 4}, look, inject),                 // refused until pool4 has it
		script(say(udp(1, 300_000)), []byte{12, 1, 1, 2, 4}, look, inject),       // good until pool4 has it no more
		script([]byte{14, 0, 0, 1, 0}, look, say(udp(1, 900_000)), inject),       // longer than the timeout
		script(say(udp(1, 300_000)), []byte{14, 0, 0, 0, 0}, look, inject),       // which becomes shorter
		script(say(udp(1, 1)), []byte{11, 0, 9}, inject),                         // dead when its turn comes
		script([]byte{15, 1, 1, 0}, say(udp(1, 1000)), inject),                   // from too far away
		script([]byte{15, 1, 0, 2}, say(udp(1, 1000)), inject),                   // from outside
		script(say(udp(1, 1000)), inject, say(other), []byte{11, 20, 0}, inject), // then another's mask
	} {
		f.Add(uint8(2), uint8(0), s)
	}
	echo := udp(1, 60_000)
	echo.Proto = session.ICMP
	f.Add(uint8(2), uint8(0), script(say(echo), inject)) // with two identifiers
	random := rand.NewChaCha8([32]byte{1})
	for n := range 30 {
		b := make([]byte, 100+50*n)
		random.Read(b)
		f.Add(uint8(n), uint8(n/3), script([]byte{15, 3, byte(n % 4)}, b)) // with keys, or none
	}
	f.Fuzz(func(t *testing.T, e, p uint8, script []byte) {
		if len(script) > 4096 {
			return // a long life says no more than many short ones
		}
		synctest.Test(t, func(t *testing.T) {
			tell(t, session.Encodings[int(e)%len(session.Encodings)], pool6s[int(p)%len(pool6s)], script)
		})
	})
}
