package cluster

import (
	"encoding/binary"
	"math"
	"strings"

	"joold/internal/session"
	"joold/internal/wire"
)

// kind is what the body of a datagram is about: its first byte.
type kind uint8

const (
	kindNone kind = iota
	kindHello
	kindPulse   // the last number
	kindBye     // the sender stops
	kindRequest // send those numbers again
	kindRepair  // here is what those numbers held
	kindGone    // what the numbers below held will not be sent again one by one
	kindFetch   // give me a copy
	kindDecline // no copy from here
	kindCopy    // part of a copy
	kindAck     // what of a copy has come
	kindAsk     // tell the lines of a part of your configuration
	kindDetail  // some of these lines
)

func kindOf(body []byte) kind {
	if len(body) == 0 {
		return kindNone
	}
	return kind(body[0])
}

const (
	helloFormat = 1

	maxName   = 63  // bytes, of a node's name
	maxText   = 31  // bytes, of its daemon's version
	maxEchoes = 32  // in one hello
	maxRanges = 64  // in one request or repair
	maxLine   = 255 // bytes
)

// challenge is what a node wants to hear repeated, as proof that who repeats it
// speaks now. It is random, and another whenever what was recorded must not count.
type challenge [8]byte

// hello is what a node says of itself, each second.
type hello struct {
	State     State
	Active    bool
	Encoding  uint8    // session.Encoding
	Module    [4]uint8 // version
	Challenge challenge
	Last      uint64        // number of what all must have
	Parts     [Parts]uint32 // hashes
	Timeouts  session.Timeouts
	Digest    session.Digest
	Name      string
	Version   string      // the daemon's
	Echoes    []challenge // those that it has heard
}

func (h *hello) append(b []byte) []byte {
	b = append(b, byte(kindHello), helloFormat, byte(h.State)&3|bit(h.Active)<<2, h.Encoding)
	b = append(b, h.Module[:]...)
	b = append(b, h.Challenge[:]...)
	b = binary.BigEndian.AppendUint64(b, h.Last)
	for _, p := range h.Parts {
		b = binary.BigEndian.AppendUint32(b, p)
	}
	for _, ms := range []uint32{h.Timeouts.TCPEst, h.Timeouts.TCPTrans, h.Timeouts.UDP, h.Timeouts.ICMP} {
		b = binary.BigEndian.AppendUint32(b, ms)
	}
	b = binary.BigEndian.AppendUint32(b, h.Digest.Sessions)
	for _, d := range h.Digest.Buckets {
		b = binary.BigEndian.AppendUint32(b, d)
	}
	b = append(b, byte(len(h.Name)))
	b = append(b, h.Name...)
	b = append(b, byte(len(h.Version)))
	b = append(b, h.Version...)
	b = append(b, byte(len(h.Echoes)))
	for i := range h.Echoes {
		b = append(b, h.Echoes[i][:]...)
	}
	return b
}

// parse reads what append has written. What follows is for later versions.
func (h *hello) parse(b []byte) bool {
	r := reader{b: b}
	if kind(r.byte()) != kindHello || r.byte() != helloFormat {
		return false
	}
	flags := r.byte()
	h.State, h.Active = State(flags&3), flags&4 != 0
	h.Encoding = r.byte()
	copy(h.Module[:], r.bytes(len(h.Module)))
	copy(h.Challenge[:], r.bytes(len(h.Challenge)))
	h.Last = r.uint64()
	for i := range h.Parts {
		h.Parts[i] = r.uint32()
	}
	h.Timeouts = session.Timeouts{TCPEst: r.uint32(), TCPTrans: r.uint32(), UDP: r.uint32(), ICMP: r.uint32()}
	h.Digest.Sessions = r.uint32()
	for i := range h.Digest.Buckets {
		h.Digest.Buckets[i] = r.uint32()
	}
	name := r.bytes(int(r.byte()))
	version := r.bytes(int(r.byte()))
	echoes := int(r.byte())
	if len(name) > maxName || len(version) > maxText || echoes > maxEchoes || h.State >= states || h.Last >= wire.Apart {
		return false
	}
	h.Name, h.Version = printable(name), printable(version)
	h.Echoes = h.Echoes[:0]
	for range echoes {
		var c challenge
		copy(c[:], r.bytes(len(c)))
		h.Echoes = append(h.Echoes, c)
	}
	return !r.short
}

// printable is what somebody has sent, for people's terminals: ASCII.
func printable[T []byte | string](b T) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, string(b))
}

// A request says whose numbers it is about.
func appendRequest(b []byte, to wire.Epoch, ranges []wire.Range) []byte {
	b = append(b, byte(kindRequest))
	b = append(b, to[:]...)
	return appendRanges(b, ranges)
}

func parseRequest(b []byte) (to wire.Epoch, ranges []wire.Range, ok bool) {
	r := reader{b: b[1:]}
	copy(to[:], r.bytes(len(to)))
	ranges = r.ranges()
	return to, ranges, !r.short
}

// repair is for what was lost: the sessions of the datagram that it is in make up
// for it, or if with is not 0, together with those of so many before.
type repair struct {
	asOf   uint64 // the last number by then
	with   uint8
	ranges []wire.Range
}

const repairSize = 1 + 8 + 1 + 1 // without ranges

func (r *repair) append(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(append(b, byte(kindRepair)), r.asOf)
	return appendRanges(append(b, r.with), r.ranges)
}

func parseRepair(b []byte) (p repair, ok bool) {
	r := reader{b: b[1:]}
	p.asOf, p.with, p.ranges = r.uint64(), r.byte(), r.ranges()
	return p, !r.short && p.asOf < wire.Apart
}

// rangeSize is what a range takes: its first number, and how many follow.
const rangeSize = 10

// appendRanges writes as much of each range as its length's two bytes can say.
func appendRanges(b []byte, ranges []wire.Range) []byte {
	b = append(b, byte(len(ranges)))
	for _, g := range ranges {
		b = binary.BigEndian.AppendUint64(b, g.First)
		b = binary.BigEndian.AppendUint16(b, uint16(min(g.Last-g.First, math.MaxUint16)))
	}
	return b
}

func (r *reader) ranges() []wire.Range {
	n := int(r.byte())
	if n > maxRanges || n*rangeSize > len(r.b) {
		r.short = true
		return nil
	}
	ranges := make([]wire.Range, n)
	for i := range ranges {
		first := r.uint64()
		more := uint64(r.uint16())
		if first+more < first || first+more >= wire.Apart {
			r.short = true
			return nil
		}
		ranges[i] = wire.Range{First: first, Last: first + more}
	}
	return ranges
}

func appendPulse(b []byte, last uint64) []byte {
	return binary.BigEndian.AppendUint64(append(b, byte(kindPulse)), last)
}

func parsePulse(b []byte) (last uint64, ok bool) {
	r := reader{b: b[1:]}
	last = r.uint64()
	return last, !r.short && last < wire.Apart
}

func appendGone(b []byte, below uint64) []byte {
	return binary.BigEndian.AppendUint64(append(b, byte(kindGone)), below)
}

func parseGone(b []byte) (below uint64, ok bool) {
	r := reader{b: b[1:]}
	below = r.uint64()
	return below, !r.short
}

// about names a copy: who is spoken to, and what the copy's taker calls it.
type about struct {
	to wire.Epoch
	id uint32
}

func (a *about) append(b []byte, k kind) []byte {
	b = append(b, byte(k))
	b = append(b, a.to[:]...)
	return binary.BigEndian.AppendUint32(b, a.id)
}

func (r *reader) about() (a about) {
	copy(a.to[:], r.bytes(len(a.to)))
	a.id = r.uint32()
	return a
}

func parseDecline(b []byte) (about, bool) {
	r := reader{b: b[1:]}
	a := r.about()
	return a, !r.short
}

// fetch asks for a copy of some buckets.
type fetch struct {
	about
	buckets session.Buckets
}

func (f *fetch) append(b []byte) []byte {
	b = f.about.append(b, kindFetch)
	for _, w := range f.buckets {
		b = binary.BigEndian.AppendUint64(b, w)
	}
	return b
}

func parseFetch(b []byte) (f fetch, ok bool) {
	r := reader{b: b[1:]}
	f.about = r.about()
	for i := range f.buckets {
		f.buckets[i] = r.uint64()
	}
	return f, !r.short
}

// part is the head of a datagram of a copy. The entries follow their own rules.
type part struct {
	id    uint32
	index uint32 // counts the copy's datagrams, from 0
	asOf  uint64 // the number of the last datagram to all before this
	last  bool
}

const partSize = 1 + 4 + 4 + 8 + 1

func (p *part) append(b []byte) []byte {
	b = binary.BigEndian.AppendUint32(append(b, byte(kindCopy)), p.id)
	b = binary.BigEndian.AppendUint32(b, p.index)
	b = binary.BigEndian.AppendUint64(b, p.asOf)
	return append(b, bit(p.last))
}

func parsePart(b []byte) (p part, ok bool) {
	r := reader{b: b[1:]}
	p.id, p.index, p.asOf = r.uint32(), r.uint32(), r.uint64()
	p.last = r.byte()&1 != 0
	return p, !r.short
}

// ack says what of a copy has come: all before through, and of the next 64 those
// whose bit is set, the lowest first; and how many from through on there is room
// for.
type ack struct {
	about
	through uint32
	seen    uint64
	room    uint16
}

func (a *ack) append(b []byte) []byte {
	b = binary.BigEndian.AppendUint32(a.about.append(b, kindAck), a.through)
	b = binary.BigEndian.AppendUint64(b, a.seen)
	return binary.BigEndian.AppendUint16(b, a.room)
}

func parseAck(b []byte) (a ack, ok bool) {
	r := reader{b: b[1:]}
	a.about = r.about()
	a.through, a.seen, a.room = r.uint32(), r.uint64(), r.uint16()
	return a, !r.short
}

// ask wants the lines of a part, from a line on.
type ask struct {
	to   wire.Epoch
	part Part
	from uint16
}

func (a *ask) append(b []byte) []byte {
	b = append(b, byte(kindAsk))
	b = append(b, a.to[:]...)
	return binary.BigEndian.AppendUint16(append(b, byte(a.part)), a.from)
}

func parseAsk(b []byte) (a ask, ok bool) {
	r := reader{b: b[1:]}
	copy(a.to[:], r.bytes(len(a.to)))
	a.part, a.from = Part(r.byte()), r.uint16()
	return a, !r.short && a.part < Parts
}

// detail is some lines of a part: those from a line on that fit.
type detail struct {
	part  Part
	hash  uint32 // of all of them
	from  uint16
	total uint16
	lines []string
}

// append writes no more lines than fit size bytes, and at least one.
func (d *detail) append(b []byte, size int) []byte {
	begin := len(b)
	b = append(b, byte(kindDetail), byte(d.part))
	b = binary.BigEndian.AppendUint32(b, d.hash)
	b = binary.BigEndian.AppendUint16(b, d.from)
	b = binary.BigEndian.AppendUint16(b, d.total)
	for i, l := range d.lines {
		if i > 0 && len(b)-begin+1+len(l) > size {
			break
		}
		b = append(b, byte(len(l)))
		b = append(b, l...)
	}
	return b
}

func parseDetail(b []byte) (d detail, ok bool) {
	r := reader{b: b[1:]}
	d.part, d.hash, d.from, d.total = Part(r.byte()), r.uint32(), r.uint16(), r.uint16()
	for len(r.b) > 0 && !r.short {
		d.lines = append(d.lines, string(r.bytes(int(r.byte()))))
	}
	return d, !r.short && d.part < Parts && int(d.from)+len(d.lines) <= int(d.total)
}

func bit(b bool) byte {
	if b {
		return 1
	}
	return 0
}

// reader takes numbers off the front of b. Where there are too few bytes it
// yields zeros from then on.
type reader struct {
	b     []byte
	short bool
}

func (r *reader) bytes(n int) []byte {
	if r.short = r.short || n > len(r.b); r.short {
		return nil
	}
	taken := r.b[:n]
	r.b = r.b[n:]
	return taken
}

func (r *reader) byte() byte {
	if b := r.bytes(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) uint16() uint16 {
	if b := r.bytes(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (r *reader) uint32() uint32 {
	if b := r.bytes(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (r *reader) uint64() uint64 {
	if b := r.bytes(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}
