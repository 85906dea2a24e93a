package nlchantest

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"joold/internal/nlchan"
	"joold/internal/session"
)

// pageSize is how many entries fit an answer, about.
const pageSize = 25

// Flags of Jool's header.
const (
	flagError = 1
	flagMore  = 8
)

// handle is generic netlink's side of a request, and nlctrl's.
func (k *Kernel) handle(s *socket, b []byte) {
	if len(b) < 20 || binary.NativeEndian.Uint32(b) != uint32(len(b)) {
		k.tb.Errorf("nlchantest: a request of %d bytes has a wrong length: % x", len(b), b)
		return
	}
	family, flags := binary.NativeEndian.Uint16(b[4:]), binary.NativeEndian.Uint16(b[6:])
	seq, cmd, body := binary.NativeEndian.Uint32(b[8:]), b[16], b[20:]
	if flags != unix.NLM_F_REQUEST {
		k.tb.Errorf("nlchantest: a request has flags %#x, want NLM_F_REQUEST alone", flags)
	}
	switch {
	case family == unix.GENL_ID_CTRL && cmd == unix.CTRL_CMD_GETFAMILY:
		attrs, _ := parse(body)
		name, terminated := bytes.CutSuffix(attrs[unix.CTRL_ATTR_FAMILY_NAME], []byte{0})
		description := k.describe(string(name))
		if !terminated || description == nil {
			s.deliver(netlinkError(seq, unix.ENOENT))
			return
		}
		s.deliver(generic(unix.GENL_ID_CTRL, seq, unix.CTRL_CMD_NEWFAMILY, description))
	case family != k.family || k.family == 0:
		s.deliver(netlinkError(seq, unix.ENOENT))
	default:
		k.handleJool(s, seq, cmd, body)
	}
}

func (k *Kernel) handleJool(s *socket, seq uint32, op uint8, body []byte) {
	header := 28
	if k.version.Less(4, 1, 5) {
		header = 24
	}
	if len(body) < header {
		s.deliver(netlinkError(seq, unix.EINVAL))
		return
	}
	attrs := body[header:]
	h := body[header-24 : header]
	name, _, _ := bytes.Cut(h[8:], []byte{0})
	reply := func(a Answer) {
		if a.Errno != 0 {
			a.Flags |= flagError
			a.Attrs = slices.Concat(attr16(1, uint16(a.Errno)), attr(2, append([]byte(a.Message), 0)))
		}
		s.deliver(k.joolMessage(seq, a.Flags, string(name), 0, a.Attrs))
	}
	refuse := func(errno syscall.Errno, format string, args ...any) {
		reply(Answer{Errno: errno, Message: fmt.Sprintf(format, args...)})
	}
	v := k.version
	sameVersion := h[0] == v.Major && h[1] == v.Minor
	if v.Less(4, 1, 9) {
		sameVersion = sameVersion && h[2] == v.Revision && h[3] == v.Dev
	}
	switch {
	case k.denied:
		refuse(unix.EPERM, "CAP_NET_ADMIN capability required. (Maybe try su or sudo?)\n")
		return
	case header == 28 && string(body[:4]) != "jool":
		refuse(unix.EINVAL, "Don't know what to do: The packet I just received does not follow Jool's protocol.")
		return
	case !sameVersion:
		refuse(unix.EINVAL, "Version mismatch. The userspace client's version is %d.%d.%d.%d", h[0], h[1], h[2], h[3])
		return
	case h[4] != 2 || h[5] != 0 || h[6] != 0 || h[7] != 0:
		k.tb.Errorf("nlchantest: a header has type, flags and reserved % x, want 2 0 0 0", h[4:8])
	}
	if k.intercept != nil {
		if a, ok := k.intercept(op, attrs); ok {
			reply(a)
			return
		}
	}
	i := k.instances[string(name)]
	if op == opHello {
		dead := uint8(0)
		if i == nil {
			dead = 1
		}
		reply(Answer{Attrs: attr8(1, dead)})
		return
	}
	if i == nil {
		refuse(unix.ESRCH, "This namespace lacks an instance named '%s'.\n", name)
		return
	}
	root, ok := parse(attrs)
	if !ok {
		s.deliver(netlinkError(seq, unix.EINVAL))
		return
	}
	if a, silent := i.handle(k.operation(op), root); !silent {
		reply(a)
	}
}

// The operations that the model knows, as 4.1 numbers them.
const (
	opHello          = 2
	opStatsForeach   = 7
	opGlobalForeach  = 8
	opGlobalUpdate   = 9
	opPool4Foreach   = 18
	opBIBForeach     = 22
	opBIBRemove      = 24
	opSessionForeach = 25
	opAdd            = 27
	opAdvertise      = 28
	opAck            = 29
)

// operation undoes 4.2's renumbering.
func (k *Kernel) operation(op uint8) uint8 {
	switch {
	case !k.is42() || op < 26:
		return op
	case op < 30:
		return 255
	}
	return op - 4
}

func (i *Instance) handle(op uint8, root map[uint16][]byte) (answer Answer, silent bool) {
	offset, offset8, operand, proto := uint16(8), uint16(9), uint16(10), uint16(11)
	if i.k.is42() {
		offset, offset8, operand, proto = 9, 10, 11, 12
	}
	from := root[offset|unix.NLA_F_NESTED]
	if root[offset] != nil {
		return Answer{Errno: unix.EINVAL, Message: "NLA_F_NESTED is missing"}, false
	}
	table := session.Proto(255)
	if p := root[proto]; len(p) == 1 {
		table = session.Proto(p[0])
	}
	disabled := Answer{Errno: unix.EINVAL, Message: "Session sync is disabled on this instance.\n"}
	switch op {
	case opAck:
		if i.knobs[ssEnabled] != 0 {
			i.acks++
		}
		return Answer{}, true
	case opAdd:
		if i.knobs[ssEnabled] == 0 {
			return disabled, false
		}
		return i.add(root[7|unix.NLA_F_NESTED])
	case opAdvertise:
		if i.knobs[ssEnabled] == 0 {
			return disabled, false
		}
		return i.advertise(), false
	case opGlobalForeach:
		return page8(i.globals(), root[offset8]), false
	case opGlobalUpdate:
		return i.update(root[2|unix.NLA_F_NESTED]), false
	case opStatsForeach:
		return page8(i.stats(), root[offset8]), false
	case opSessionForeach:
		return i.pageSessions(table, from), false
	case opPool4Foreach:
		var entries [][]byte
		for _, e := range i.pool4 {
			if e.Proto == table {
				prefix := slices.Concat(attr(1, e.Prefix.Addr().AsSlice()), attr8(2, uint8(e.Prefix.Bits())))
				entries = append(entries, slices.Concat(attr32(1, e.Mark), attr32(2, 1024), attr8(3, 0), attr8(4, uint8(e.Proto)),
					attr(5|unix.NLA_F_NESTED, prefix), attr16(6, e.MinPort), attr16(7, e.MaxPort)))
			}
		}
		return pageEntries(entries, from), false
	case opBIBForeach:
		return i.pageBIB(table, from), false
	case opBIBRemove:
		return i.removeBIB(root[operand|unix.NLA_F_NESTED]), false
	}
	i.k.tb.Errorf("nlchantest: operation %d is not modelled", op)
	return Answer{Errno: unix.EINVAL, Message: "not modelled"}, false
}

// pageEntries is the page of a table that follows the entry from, which must be
// there in the very form in which it was given out.
func pageEntries(entries [][]byte, from []byte) Answer {
	if from != nil {
		at := slices.IndexFunc(entries, func(e []byte) bool { return bytes.Equal(e, from) })
		if at < 0 {
			return Answer{Errno: unix.EAGAIN, Message: "Oops. Pool4 changed while I was iterating so I lost track of where I was. Try again.\n"}
		}
		entries = entries[at+1:]
	}
	var a Answer
	if len(entries) > pageSize {
		entries, a.Flags = entries[:pageSize], flagMore
	}
	for _, e := range entries {
		a.Attrs = append(a.Attrs, attr(1|unix.NLA_F_NESTED, e)...)
	}
	return a
}

// plain is an attribute at the root of an answer.
type plain struct {
	id   uint8
	attr []byte
}

// page8 is the page of a list that follows the entry with the id in from.
func page8(list []plain, from []byte) Answer {
	if len(from) == 1 {
		at := slices.IndexFunc(list, func(p plain) bool { return p.id == from[0] })
		list = list[at+1:]
	}
	var a Answer
	if len(list) > pageSize {
		list, a.Flags = list[:pageSize], flagMore
	}
	for _, p := range list {
		a.Attrs = append(a.Attrs, p.attr...)
	}
	return a
}

// The settings of session synchronization.
const (
	ssEnabled   = 27
	ssFlushASAP = 28
)

func (i *Instance) globals() []plain {
	prefix := slices.Concat(attr(1, i.pool6.Prefix().Addr().AsSlice()), attr8(2, uint8(i.pool6.Prefix().Bits())))
	list := []plain{
		{1, attr8(1, 1)}, {2, attr(2|unix.NLA_F_NESTED, prefix)}, {3, attr32(3, 1280)},
		{20, attr32(20, i.timeouts.TCPEst)}, {21, attr32(21, i.timeouts.TCPTrans)},
		{22, attr32(22, i.timeouts.UDP)}, {23, attr32(23, i.timeouts.ICMP)},
	}
	for _, id := range slices.Sorted(maps.Keys(i.knobs)) {
		a := attr32(id, i.knobs[id])
		if id == ssEnabled || id == ssFlushASAP {
			a = attr8(id, uint8(i.knobs[id]))
		}
		list = append(list, plain{uint8(id), a})
	}
	return list
}

func (i *Instance) update(attrs []byte) Answer {
	if attrs == nil {
		return Answer{Errno: unix.EINVAL, Message: "Request is missing a globals container.\n"}
	}
	values, ok := parse(attrs)
	if !ok || len(values) == 0 {
		i.k.tb.Errorf("nlchantest: a GLOBAL_UPDATE with % x", attrs)
	}
	next := maps.Clone(i.knobs)
	for id, v := range values {
		size := 4
		if id == ssEnabled || id == ssFlushASAP {
			size = 1
		}
		if _, ok := next[id]; !ok || len(v) != size {
			i.k.tb.Errorf("nlchantest: Jool %s has no setting %d of %d bytes", i.k.version, id, len(v))
			return Answer{Errno: unix.EINVAL, Message: "The 'Globals Container' attribute is malformed: "}
		}
		next[id] = uint32(v[0])
		if size == 4 {
			next[id] = binary.NativeEndian.Uint32(v)
		}
	}
	if !i.k.version.Less(4, 1, 9) && len(i.pool4) > 0 {
		for _, proto := range session.Protos {
			for _, e := range i.bindings(proto) {
				if !i.inPool4(e.BIBEntry) {
					return Answer{Errno: unix.EINVAL, Message: fmt.Sprintf(
						"%s BIB transport address '%s#%d' does not belong to pool4.\nPlease add it there first.\n", proto, e.Src4.Addr(), e.Src4.Port())}
				}
			}
		}
	}
	i.knobs = next
	return Answer{}
}

func (i *Instance) inPool4(e nlchan.BIBEntry) bool {
	return slices.ContainsFunc(i.pool4, func(p nlchan.Pool4Entry) bool {
		return p.Proto == e.Proto && p.Prefix.Contains(e.Src4.Addr()) && p.MinPort <= e.Src4.Port() && e.Src4.Port() <= p.MaxPort
	})
}

func (i *Instance) stats() []plain {
	known := map[uint8]uint64{
		3: i.translated,
		4: uint64(len(i.bindings(session.TCP)) + len(i.bindings(session.UDP)) + len(i.bindings(session.ICMP))),
		5: uint64(len(i.sessions)),
	}
	switch {
	case i.k.version.Less(4, 1, 12), i.k.is42() && i.k.version.Dev < 5:
	case i.k.is42():
		known[87], known[90] = i.dropped, i.ads
	case i.k.version.Less(4, 1, 13):
		known[79], known[82] = i.dropped, i.ads
	default:
		known[78], known[81] = i.dropped, i.ads
	}
	var list []plain
	for id := uint8(1); id <= 92; id++ {
		n, ok := known[id]
		if !ok {
			n = 1000 + uint64(id)
		}
		padding := attr(93, nil)
		list = append(list, plain{id, slices.Concat(padding, attr64(uint16(id), n))})
	}
	return list
}

// bindings are the BIB of one protocol, in the order of a dump: what was put
// into it, and what the sessions belong to.
func (i *Instance) bindings(proto session.Proto) []StaticBIB {
	all := make(map[nlchan.BIBEntry]bool)
	for _, s := range i.sessions {
		if s.Proto == proto {
			all[binding(&s)] = false
		}
	}
	for _, e := range i.bib {
		if e.Proto == proto {
			all[e.BIBEntry] = e.Static
		}
	}
	var list []StaticBIB
	for e, static := range all {
		list = append(list, StaticBIB{e, static})
	}
	slices.SortFunc(list, func(a, b StaticBIB) int {
		return cmp.Or(a.Src4.Compare(b.Src4), a.Src6.Compare(b.Src6))
	})
	return list
}

// binding is the BIB entry of a session.
func binding(s *session.Session) nlchan.BIBEntry {
	return nlchan.BIBEntry{
		Proto: s.Proto,
		Src6:  netip.AddrPortFrom(netip.AddrFrom16(s.Src6), s.Src6Port),
		Src4:  netip.AddrPortFrom(netip.AddrFrom4(s.Src4), s.Src4Port),
	}
}

// pageBIB continues after the IPv4 side of from, be it there or not.
func (i *Instance) pageBIB(proto session.Proto, from []byte) Answer {
	var after netip.AddrPort
	if from != nil {
		e, ok := parseBIB(from)
		if !ok {
			return Answer{Errno: unix.EINVAL, Message: "The 'Iteration offset' attribute is malformed"}
		}
		proto, after = e.Proto, e.Src4
	}
	var entries [][]byte
	for _, e := range i.bindings(proto) {
		if e.Src4.Compare(after) <= 0 {
			continue
		}
		static := uint8(0)
		if e.Static {
			static = 1
		}
		src6 := slices.Concat(attr(1, e.Src6.Addr().AsSlice()), attr16(2, e.Src6.Port()))
		src4 := slices.Concat(attr(1, e.Src4.Addr().AsSlice()), attr16(2, e.Src4.Port()))
		entries = append(entries, slices.Concat(attr(1|unix.NLA_F_NESTED, src6), attr(2|unix.NLA_F_NESTED, src4),
			attr8(3, uint8(e.Proto)), attr8(4, static)))
	}
	return pageEntries(entries, nil)
}

// parseBIB wants both sides and the protocol.
func parseBIB(b []byte) (e nlchan.BIBEntry, ok bool) {
	attrs, ok := parse(b)
	if !ok || len(attrs[3]) != 1 {
		return e, false
	}
	e.Proto = session.Proto(attrs[3][0])
	for typ, side := range map[uint16]*netip.AddrPort{1: &e.Src6, 2: &e.Src4} {
		a, ok := parse(attrs[typ|unix.NLA_F_NESTED])
		addr, whole := netip.AddrFromSlice(a[1])
		if !ok || !whole || len(a[2]) != 2 {
			return e, false
		}
		*side = netip.AddrPortFrom(addr, binary.NativeEndian.Uint16(a[2]))
	}
	return e, e.Src6.Addr().Is6() && e.Src4.Addr().Is4() && e.Proto <= session.ICMP
}

// removeBIB removes also what is static, as the module does.
func (i *Instance) removeBIB(operand []byte) Answer {
	e, ok := parseBIB(operand)
	if !ok {
		i.k.tb.Errorf("nlchantest: a BIB_RM of % x", operand)
		return Answer{Errno: unix.EINVAL, Message: "The 'BIB entry' attribute is malformed"}
	}
	if !slices.ContainsFunc(i.bindings(e.Proto), func(b StaticBIB) bool { return b.BIBEntry == e }) {
		if i.k.is42() {
			return Answer{Errno: unix.ESRCH, Message: "Entry not found.\n"}
		}
		return Answer{Errno: unix.ESRCH, Message: "The entry wasn't in the database.\n"}
	}
	i.bib = slices.DeleteFunc(i.bib, func(b StaticBIB) bool { return b.BIBEntry == e })
	maps.DeleteFunc(i.sessions, func(_ session.Key, s session.Session) bool { return binding(&s) == e })
	return Answer{}
}

func (i *Instance) add(entries []byte) (answer Answer, silent bool) {
	if len(entries) == 0 {
		i.k.tb.Errorf("nlchantest: a JOOLD_ADD without sessions: the kernel would have followed a null pointer")
		return Answer{Errno: unix.EFAULT}, false
	}
	sessions, report := session.Decode(nil, entries, i.pool6)
	i.adds = append(i.adds, sessions)
	i.insert(sessions)
	if report.Encoding != i.k.version.Encoding() || report.Swapped || report.BadTotal() > 0 || report.End != len(entries) {
		return Answer{Errno: unix.EINVAL, Message: "Invalid request: Session size"}, false
	}
	return Answer{}, true
}

// insert puts sessions into the table as the module does where they collide: it
// keeps an IPv4 side for who has it, and an IPv6 side under the IPv4 one that it
// has.
func (i *Instance) insert(sessions []session.Session) {
	type side struct {
		proto session.Proto
		addr  netip.AddrPort
	}
	by6, by4 := make(map[side]nlchan.BIBEntry), make(map[side]nlchan.BIBEntry)
	bind := func(e nlchan.BIBEntry) {
		by6[side{e.Proto, e.Src6}], by4[side{e.Proto, e.Src4}] = e, e
	}
	for _, proto := range session.Protos {
		for _, e := range i.bindings(proto) {
			bind(e.BIBEntry)
		}
	}
	for _, s := range sessions {
		e := binding(&s)
		if has, ok := by6[side{e.Proto, e.Src6}]; ok && has != e {
			s.Src4, s.Src4Port = has.Src4.Addr().As4(), has.Src4.Port()
			if s.Proto == session.ICMP {
				s.Dst4Port = s.Src4Port
			}
		} else if has, ok := by4[side{e.Proto, e.Src4}]; ok && has != e {
			continue
		}
		bind(binding(&s))
		i.sessions[s.Key()] = s
	}
}

func (i *Instance) advertise() Answer {
	if i.k.version.Less(4, 1, 11) {
		i.k.tb.Errorf("nlchantest: ADVERTISE was sent to Jool %s", i.k.version)
	}
	for _, proto := range session.Protos {
		for chunk := range slices.Chunk(i.table(proto), 10) {
			i.announce(chunk)
		}
	}
	i.ads++
	return Answer{}
}

func compare(a, b *session.Session) int {
	return cmp.Or(
		bytes.Compare(a.Src4[:], b.Src4[:]), cmp.Compare(a.Src4Port, b.Src4Port),
		bytes.Compare(a.Dst4[:], b.Dst4[:]), cmp.Compare(a.Dst4Port, b.Dst4Port),
	)
}

// table is one protocol's sessions in the order of a dump.
func (i *Instance) table(proto session.Proto) []session.Session {
	var table []session.Session
	for _, s := range i.sessions {
		if s.Proto == proto {
			table = append(table, s)
		}
	}
	slices.SortFunc(table, func(a, b session.Session) int { return compare(&a, &b) })
	return table
}

// pageSessions continues after the addresses in from, be they there or not.
func (i *Instance) pageSessions(proto session.Proto, from []byte) Answer {
	if proto > session.ICMP {
		return Answer{Errno: unix.EINVAL, Message: "The request is missing a transport protocol.\n"}
	}
	table := i.table(proto)
	if from != nil {
		offset, report := session.Decode(nil, attr(1|unix.NLA_F_NESTED, from), i.pool6)
		if report.BadTotal() > 0 || len(offset) != 1 {
			return Answer{Errno: unix.EINVAL, Message: "The 'session entry' attribute is malformed"}
		}
		at, found := slices.BinarySearchFunc(table, offset[0], func(a, b session.Session) int { return compare(&a, &b) })
		if found {
			at++
		}
		table = table[at:]
	}
	var a Answer
	if len(table) > pageSize {
		table, a.Flags = table[:pageSize], flagMore
	}
	for n := range table {
		a.Attrs = session.Enc4111.Append(a.Attrs, &table[n], i.pool6)
	}
	return a
}
