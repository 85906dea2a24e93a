package nlchantest

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

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
	opPool4Foreach   = 18
	opBIBForeach     = 22
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
	offset, offset8, proto := uint16(8), uint16(9), uint16(11)
	if i.k.is42() {
		offset, offset8, proto = 9, 10, 12
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
		if i.sync {
			i.acks++
		}
		return Answer{}, true
	case opAdd:
		if !i.sync {
			return disabled, false
		}
		return i.add(root[7|unix.NLA_F_NESTED])
	case opAdvertise:
		if !i.sync {
			return disabled, false
		}
		return i.advertise(), false
	case opGlobalForeach:
		return page8(i.globals(), root[offset8]), false
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
		var entries [][]byte
		for _, e := range i.bib {
			if e.Proto == table {
				static := uint8(0)
				if e.Static {
					static = 1
				}
				src6 := slices.Concat(attr(1, e.Src6.Addr().AsSlice()), attr16(2, e.Src6.Port()))
				src4 := slices.Concat(attr(1, e.Src4.Addr().AsSlice()), attr16(2, e.Src4.Port()))
				entries = append(entries, slices.Concat(attr(1|unix.NLA_F_NESTED, src6), attr(2|unix.NLA_F_NESTED, src4),
					attr8(3, uint8(e.Proto)), attr8(4, static)))
			}
		}
		return pageEntries(entries, from), false
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

func (i *Instance) globals() []plain {
	prefix := slices.Concat(attr(1, i.pool6.Prefix().Addr().AsSlice()), attr8(2, uint8(i.pool6.Prefix().Bits())))
	enabled := uint8(0)
	if i.sync {
		enabled = 1
	}
	list := []plain{
		{1, attr8(1, 1)}, {2, attr(2|unix.NLA_F_NESTED, prefix)}, {3, attr32(3, 1280)},
		{20, attr32(20, i.timeouts.TCPEst)}, {21, attr32(21, i.timeouts.TCPTrans)},
		{22, attr32(22, i.timeouts.UDP)}, {23, attr32(23, i.timeouts.ICMP)},
		{27, attr8(27, enabled)}, {28, attr8(28, 1)}, {29, attr32(29, 2000)}, {30, attr32(30, 512)}, {31, attr32(31, 1452)},
	}
	if !i.k.version.Less(4, 1, 11) {
		list = append(list, plain{32, attr32(32, 10)})
	}
	return list
}

func (i *Instance) stats() []plain {
	ads := uint8(0)
	switch {
	case i.k.version.Less(4, 1, 12):
	case i.k.is42():
		ads = 90
	case i.k.version.Less(4, 1, 13):
		ads = 82
	default:
		ads = 81
	}
	var list []plain
	for id := uint8(1); id <= 92; id++ {
		n := 1000 + uint64(id)
		switch id {
		case 5:
			n = uint64(len(i.sessions))
		case ads:
			n = uint64(i.ads)
		}
		padding := attr(93, nil)
		list = append(list, plain{id, slices.Concat(padding, attr64(uint16(id), n))})
	}
	return list
}

func (i *Instance) add(entries []byte) (answer Answer, silent bool) {
	if len(entries) == 0 {
		i.k.tb.Errorf("nlchantest: a JOOLD_ADD without sessions: the kernel would have followed a null pointer")
		return Answer{Errno: unix.EFAULT}, false
	}
	sessions, report := session.Decode(nil, entries, i.pool6)
	i.adds = append(i.adds, sessions)
	for _, s := range sessions {
		i.sessions[s.Key()] = s
	}
	if report.Encoding != i.k.version.Encoding() || report.Swapped || report.BadTotal() > 0 || report.End != len(entries) {
		return Answer{Errno: unix.EINVAL, Message: "Invalid request: Session size"}, false
	}
	return Answer{}, true
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
