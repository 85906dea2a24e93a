package session

import (
	"encoding/binary"
	"fmt"
)

// Encoding is one of the three forms in which Jool's modules write a session,
// on the joold channel and hence on the network. It is named after the last
// version that speaks it, or the first; the zero value is none.
type Encoding uint8

// The encodings.
const (
	Enc4111 Encoding = 1 + iota // nested attributes; up to 4.1.11, and every table dump
	Enc4112                     // 48 packed bytes; 4.1.12 alone
	Enc4113                     // 36 packed bytes; since 4.1.13
)

// Encodings lists every encoding, oldest first.
var Encodings = [...]Encoding{Enc4111, Enc4112, Enc4113}

func (e Encoding) String() string {
	switch e {
	case Enc4111:
		return "4.1.11"
	case Enc4112:
		return "4.1.12"
	case Enc4113:
		return "4.1.13"
	}
	return "none"
}

// ParseEncoding reads what String writes.
func ParseEncoding(s string) (Encoding, error) {
	for _, e := range Encodings {
		if e.String() == s {
			return e, nil
		}
	}
	return 0, fmt.Errorf("unknown encoding %q: want 4.1.11, 4.1.12 or 4.1.13", s)
}

// Netlink's attribute header: length (itself included), then type.
const (
	attrHeader = 4
	attrEntry  = 1 // JNLAL_ENTRY

	flagNested = 0x8000 // NLA_F_NESTED
	typeMask   = 0x3fff // NLA_TYPE_MASK
)

// The nested encoding's attributes: JNLASE_* and JNLAT_*.
const (
	aseSrc6 = 1 + iota
	aseDst6
	aseSrc4
	aseDst4
	aseProto
	aseState
	aseTimer
	aseExpiration

	aseCount = aseExpiration

	atAddr = 1
	atPort = 2
)

const (
	size4111 = attrHeader + 2*sizeAddr6 + 2*sizeAddr4 + 4*sizeScalar
	size4112 = attrHeader + 48
	size4113 = attrHeader + 36

	sizeScalar = attrHeader + 4 // a u8, u16 or u32, padded
	sizeAddr6  = attrHeader + attrHeader + 16 + sizeScalar
	sizeAddr4  = attrHeader + attrHeader + 4 + sizeScalar
)

// EntrySize is the length in bytes of one entry, attribute header included.
func (e Encoding) EntrySize() int {
	switch e {
	case Enc4111:
		return size4111
	case Enc4112:
		return size4112
	case Enc4113:
		return size4113
	}
	return 0
}

// Append writes s as one entry, attribute header included, in this machine's
// byte order, as the local module would.
func (e Encoding) Append(b []byte, s *Session, p Pool6) []byte {
	switch e {
	case Enc4111:
		return appendNested(b, s, p)
	case Enc4112:
		b = appendHeader(b, size4112, attrEntry)
		b = append(b, s.Src6[:]...)
		dst6 := p.Embed(s.Dst4)
		b = append(b, dst6[:]...)
		b = append(b, s.Src4[:]...)
		b = binary.BigEndian.AppendUint32(b, s.Expiration)
		b = binary.BigEndian.AppendUint16(b, s.Src6Port)
		b = binary.BigEndian.AppendUint16(b, s.Dst6Port())
		b = binary.BigEndian.AppendUint16(b, s.Src4Port)
	case Enc4113:
		b = appendHeader(b, size4113, attrEntry)
		b = append(b, s.Src6[:]...)
		b = append(b, s.Src4[:]...)
		b = append(b, s.Dst4[:]...)
		b = binary.BigEndian.AppendUint32(b, s.Expiration)
		b = binary.BigEndian.AppendUint16(b, s.Src6Port)
		b = binary.BigEndian.AppendUint16(b, s.Src4Port)
		b = binary.BigEndian.AppendUint16(b, s.Dst4Port)
	default:
		panic(fmt.Sprintf("session: Append in encoding %d", e))
	}
	flags := uint16(s.Proto)<<5 | uint16(s.State)<<2 | uint16(s.Timer)
	return binary.BigEndian.AppendUint16(b, flags)
}

func appendNested(b []byte, s *Session, p Pool6) []byte {
	b = appendHeader(b, size4111, attrEntry|flagNested)
	dst6 := p.Embed(s.Dst4)
	b = appendAddr(b, aseSrc6, sizeAddr6, s.Src6[:], s.Src6Port)
	b = appendAddr(b, aseDst6, sizeAddr6, dst6[:], s.Dst6Port())
	b = appendAddr(b, aseSrc4, sizeAddr4, s.Src4[:], s.Src4Port)
	b = appendAddr(b, aseDst4, sizeAddr4, s.Dst4[:], s.Dst4Port)
	b = appendUint8(b, aseProto, uint8(s.Proto))
	b = appendUint8(b, aseState, uint8(s.State))
	b = appendUint8(b, aseTimer, uint8(s.Timer))
	b = appendHeader(b, attrHeader+4, aseExpiration)
	return binary.NativeEndian.AppendUint32(b, s.Expiration)
}

func appendHeader(b []byte, length, typ uint16) []byte {
	b = binary.NativeEndian.AppendUint16(b, length)
	return binary.NativeEndian.AppendUint16(b, typ)
}

func appendAddr(b []byte, typ, size uint16, addr []byte, port uint16) []byte {
	b = appendHeader(b, size, typ|flagNested)
	b = appendHeader(b, uint16(attrHeader+len(addr)), atAddr)
	b = append(b, addr...)
	b = appendHeader(b, attrHeader+2, atPort)
	b = binary.NativeEndian.AppendUint16(b, port)
	return append(b, 0, 0)
}

func appendUint8(b []byte, typ uint16, v uint8) []byte {
	b = appendHeader(b, attrHeader+1, typ)
	return append(b, v, 0, 0, 0)
}

// Defect is a reason for which an entry could not be read.
type Defect uint8

// The defects.
const (
	BadHeader Defect = iota // no attribute of a known type and length
	BadNested               // a nested entry with a field missing, repeated or misshapen
	BadPool6                // the IPv6 destination is not pool6 and the IPv4 destination
	BadFields               // a protocol, state or timer that Jool does not know, or ports at odds
	Defects                 // count
)

var defectNames = [Defects]string{"header", "nested", "pool6", "fields"}

func (d Defect) String() string { return defectNames[d] }

// Report tells what Decode met.
type Report struct {
	Encoding Encoding     // of the last entry that was read; none if there was none
	Swapped  bool         // attribute headers in the byte order that is not this machine's
	Read     int          // entries appended
	Bad      [Defects]int // entries left out, by reason
	End      int          // offset of what Decode did not walk: a zero header, or the length
}

// BadTotal is how many entries were left out.
func (r *Report) BadTotal() (n int) {
	for _, b := range r.Bad {
		n += b
	}
	return n
}

// Decode appends to dst the sessions of b: the entries of one datagram, of one
// message of the joold channel, or of one page of a table dump, in whichever
// encoding each one is. It stops, as the kernel does, at a header that is all
// zero. Entries that cannot be read are left out and counted. The values are
// those of the sender; Check tells whether they are acceptable.
func Decode(dst []Session, b []byte, p Pool6) ([]Session, Report) {
	var r Report
	d := decoder{pool6: p, dstAt: p.positions()}
	rest := b
	for len(rest) >= attrHeader && binary.NativeEndian.Uint32(rest) != 0 {
		length, typ, ok := d.header(rest)
		if !ok {
			r.Bad[BadHeader]++
			rest = rest[len(rest):]
			break
		}
		body := rest[attrHeader:length]
		rest = rest[min(align4(length), len(rest)):]

		var s Session
		var defect Defect
		enc := encodingOf(length, typ)
		switch enc {
		case Enc4113:
			defect, ok = s.unpack4113(body)
		case Enc4112:
			defect, ok = d.unpack4112(&s, body)
		case Enc4111:
			defect, ok = d.unpackNested(&s, body)
		default:
			defect, ok = BadHeader, false
		}
		if !ok {
			r.Bad[defect]++
			continue
		}
		r.Encoding = enc
		r.Read++
		dst = append(dst, s)
	}
	if len(rest) > 0 && len(rest) < attrHeader {
		r.Bad[BadHeader]++
		rest = nil
	}
	r.End = len(b) - len(rest)
	r.Swapped = d.swapped
	return dst, r
}

func align4(n int) int { return (n + 3) &^ 3 }

// decoder holds what one datagram's entries have in common: pool6 and the byte
// order of the sender's attribute headers, which the first plausible one shows.
type decoder struct {
	pool6   Pool6
	dstAt   [4]int
	known   bool // the byte order is
	swapped bool
}

func (d *decoder) uint16(b []byte) uint16 {
	v := binary.NativeEndian.Uint16(b)
	if d.swapped {
		v = v<<8 | v>>8
	}
	return v
}

func (d *decoder) uint32(b []byte) uint32 {
	v := binary.NativeEndian.Uint32(b)
	if d.swapped {
		v = v<<24 | v>>24 | v<<8&0xff0000 | v>>8&0xff00
	}
	return v
}

// header reads the attribute header at the start of b. ok is false when nothing
// after it can be found, since its length makes no sense.
func (d *decoder) header(b []byte) (length int, typ uint16, ok bool) {
	length, typ, ok = d.attr(b)
	if d.known || ok && encodingOf(length, typ) != 0 {
		d.known = true
		return length, typ, ok
	}
	d.swapped = true
	l, t, swappedOK := d.attr(b)
	if swappedOK && encodingOf(l, t) != 0 {
		d.known = true
		return l, t, true
	}
	d.swapped = false
	return length, typ, ok
}

// attr reads an attribute header and checks its length against b.
func (d *decoder) attr(b []byte) (length int, typ uint16, ok bool) {
	length, typ = int(d.uint16(b)), d.uint16(b[2:])
	return length, typ, length >= attrHeader && length <= len(b)
}

// encodingOf tells an entry's encoding by its header. Kernels before 5.2 leave
// the nested flag out, so a nested entry is also told by its length.
func encodingOf(length int, typ uint16) Encoding {
	switch {
	case typ&typeMask != attrEntry:
		return 0
	case typ&flagNested != 0 || length == size4111:
		return Enc4111
	case length == size4112:
		return Enc4112
	case length == size4113:
		return Enc4113
	}
	return 0
}

func (s *Session) unpack4113(b []byte) (Defect, bool) {
	s.Src6 = [16]byte(b)
	s.Src4 = [4]byte(b[16:])
	s.Dst4 = [4]byte(b[20:])
	s.Expiration = binary.BigEndian.Uint32(b[24:])
	s.Src6Port = binary.BigEndian.Uint16(b[28:])
	s.Src4Port = binary.BigEndian.Uint16(b[30:])
	s.Dst4Port = binary.BigEndian.Uint16(b[32:])
	if defect, ok := s.unpackFlags(binary.BigEndian.Uint16(b[34:])); !ok {
		return defect, false
	}
	if s.Proto == ICMP && s.Dst4Port != s.Src4Port {
		return BadFields, false
	}
	return 0, true
}

func (d *decoder) unpack4112(s *Session, b []byte) (Defect, bool) {
	s.Src6 = [16]byte(b)
	dst6 := [16]byte(b[16:])
	s.Src4 = [4]byte(b[32:])
	s.Expiration = binary.BigEndian.Uint32(b[36:])
	s.Src6Port = binary.BigEndian.Uint16(b[40:])
	dst6Port := binary.BigEndian.Uint16(b[42:])
	s.Src4Port = binary.BigEndian.Uint16(b[44:])
	if defect, ok := s.unpackFlags(binary.BigEndian.Uint16(b[46:])); !ok {
		return defect, false
	}
	s.Dst4Port = dst6Port
	if s.Proto == ICMP {
		s.Dst4Port = s.Src4Port
	}
	if dst6Port != s.Dst6Port() {
		return BadFields, false
	}
	for i, o := range d.dstAt {
		s.Dst4[i] = dst6[o]
	}
	if d.pool6.Embed(s.Dst4) != dst6 {
		return BadPool6, false
	}
	return 0, true
}

func (s *Session) unpackFlags(f uint16) (Defect, bool) {
	return s.setKind(uint8(f>>5), uint8(f>>2&7), uint8(f&3), f>>7 == 0)
}

// setKind stores what kind of session this is, if Jool has such a kind.
func (s *Session) setKind(proto, state, timer uint8, sane bool) (Defect, bool) {
	s.Proto, s.State, s.Timer = Proto(proto), State(state), Timer(timer)
	if !sane || s.Proto >= protos || s.State >= states || s.Timer >= timers {
		return BadFields, false
	}
	return 0, true
}

func (d *decoder) unpackNested(s *Session, b []byte) (Defect, bool) {
	var dst6 [16]byte
	var dst6Port uint16
	var proto, state, timer uint8
	var seen uint16
	for len(b) >= attrHeader {
		length, typ, ok := d.attr(b)
		if !ok {
			return BadNested, false
		}
		body := b[attrHeader:length]
		b = b[min(align4(length), len(b)):]
		typ &= typeMask
		if typ == 0 || typ > aseCount {
			continue // a later module's, perhaps
		}
		switch typ {
		case aseSrc6:
			ok = d.addr(body, s.Src6[:], &s.Src6Port)
		case aseDst6:
			ok = d.addr(body, dst6[:], &dst6Port)
		case aseSrc4:
			ok = d.addr(body, s.Src4[:], &s.Src4Port)
		case aseDst4:
			ok = d.addr(body, s.Dst4[:], &s.Dst4Port)
		case aseProto:
			proto, ok = scalar8(body)
		case aseState:
			state, ok = scalar8(body)
		case aseTimer:
			timer, ok = scalar8(body)
		case aseExpiration:
			if ok = len(body) == 4; ok {
				s.Expiration = d.uint32(body)
			}
		}
		if !ok || seen&(1<<typ) != 0 {
			return BadNested, false
		}
		seen |= 1 << typ
	}
	if seen != 1<<(aseCount+1)-2 {
		return BadNested, false
	}
	if defect, ok := s.setKind(proto, state, timer, true); !ok {
		return defect, false
	}
	dst4Port := s.Dst4Port
	if s.Proto == ICMP {
		dst4Port = s.Src4Port
	}
	if s.Dst4Port != dst4Port || dst6Port != s.Dst6Port() {
		return BadFields, false
	}
	if d.pool6.Embed(s.Dst4) != dst6 {
		return BadPool6, false
	}
	return 0, true
}

// addr reads a nested transport address: both its parts must be there, once and
// whole. Jool up to 4.1.9 follows a null pointer where one is not.
func (d *decoder) addr(b, addr []byte, port *uint16) bool {
	var seen uint8
	for len(b) >= attrHeader {
		length, typ, ok := d.attr(b)
		if !ok {
			return false
		}
		body := b[attrHeader:length]
		b = b[min(align4(length), len(b)):]
		switch typ & typeMask {
		case atAddr:
			if len(body) != len(addr) || seen&1 != 0 {
				return false
			}
			copy(addr, body)
			seen |= 1
		case atPort:
			if len(body) != 2 || seen&2 != 0 {
				return false
			}
			*port = d.uint16(body)
			seen |= 2
		}
	}
	return seen == 3
}

func scalar8(b []byte) (uint8, bool) {
	if len(b) != 1 {
		return 0, false
	}
	return b[0], true
}
