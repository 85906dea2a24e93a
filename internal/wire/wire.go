// Package wire owns the datagram: where its entries end, the stamp behind them,
// the keys that sign and seal it, and the numbers by which its receiver tells what
// is new, late or lost. It is pure: bytes in, values out. It knows no socket, no
// file, no clock but the time it is given, and takes entries as they are.
//
// docs/PROTOCOL.md describes the stamp byte by byte.
package wire

import (
	"crypto/sha256"
	"encoding/binary"
)

// Version is that of the stamp.
const Version = 1

// Overhead is how many bytes a stamp adds to the entries, sealed or not, if there
// is no body. Behind 35 entries of 40 bytes it fills a 1,500-byte packet of IPv6.
const Overhead = terminatorSize + trailerSize

// A datagram is entries, terminator, body and trailer. All numbers are in network
// byte order.
const (
	terminatorSize = 4 // zero: at such a header Jool's module stops reading entries

	// The trailer, which ends the datagram.
	atMagic   = 0  // 2 bytes
	atVersion = 2  // 1
	atFlags   = 3  // 1
	atCluster = 4  // 3
	atHint    = 7  // 1
	atEpoch   = 8  // 12
	atNonce   = 20 // 12: salt 4, number 8
	atNumber  = 24 // 8
	atTag     = 32 // 16

	headSize    = atTag
	nonceSize   = 12
	tagSize     = 16
	trailerSize = headSize + tagSize

	lengthSize = 2 // of the body's length, which ends a body
)

var magic = [2]byte{'j', 'd'}

// MaxBody is how many bytes a body may have.
const MaxBody = 1<<16 - 1

// Flags are what a stamp says of its datagram.
type Flags uint8

// The flags that a sender chooses.
const (
	SecondHand Flags = 0x01 // the entries are not of the sender's own traffic
	Resend     Flags = 0x02 // they have been sent before, in datagrams that were lost

	hasBody Flags = 0x10
	sealed  Flags = 0x20

	chosen = SecondHand | Resend
	known  = chosen | hasBody | sealed
)

// Apart is where the numbers begin of what not all need to have: what nodes say of
// themselves, and what goes to one other alone. It is counted apart, and a Window
// is for the numbers below.
const Apart = 1 << 63

// Epoch names one run of a sender. It is random, and drawn anew at every start.
type Epoch [12]byte

// Cluster is the short form of a cluster's name. Two names may share one: the tag
// depends on the whole name.
type Cluster [3]byte

// ClusterOf is the short form of name.
func ClusterOf(name string) Cluster {
	sum := sha256.Sum256([]byte(name))
	return Cluster(sum[:])
}

// Stamp is what the trailer says, whoever wrote it.
type Stamp struct {
	Flags   Flags
	Cluster Cluster
	Epoch   Epoch
	Number  uint64 // counts the sender's datagrams since its start, from 1
	Hint    uint8  // at the key that signed; 0 if none did
}

// Sealed tells whether the entries and the body are encrypted.
func (s *Stamp) Sealed() bool { return s.Flags&sealed != 0 }

// Kind is what a datagram is by its form. Nothing of it is proven.
type Kind uint8

// The kinds.
const (
	Plain   Kind = iota // entries and nothing else: a C node's
	Stamped             // by a stamp of this Version
	Newer               // by a stamp of a version, or with a flag, that is not known here
	Torn                // something follows the entries which is no stamp
)

func (k Kind) String() string {
	return [...]string{"plain", "stamped", "newer", "torn"}[k]
}

// Datagram is a datagram taken apart. Its slices are parts of what was parsed.
type Datagram struct {
	Stamp
	Entries []byte // what a C node's module would read; none if sealed
	Body    []byte // what is for nodes of ours alone; encrypted, with the entries, if sealed
}

// Parse takes b apart. It allocates nothing, and whatever b is, looks at each byte
// once at most. Of a datagram that is not Stamped only the entries are known.
func Parse(b []byte) (Datagram, Kind) {
	if dg, ok := parseStamped(b); ok {
		return dg, Stamped
	}
	end := entriesEnd(b)
	dg := Datagram{Entries: b[:end:end]}
	switch trailer := len(b) - trailerSize; {
	case end == len(b):
		return dg, Plain
	case trailer >= end+terminatorSize && hasMagic(b[trailer:]) && isNewer(b[trailer:]):
		return dg, Newer
	}
	return dg, Torn
}

func hasMagic(trailer []byte) bool { return [2]byte(trailer) == magic }

// isNewer is about the trailer of a stamp.
func isNewer(trailer []byte) bool {
	return trailer[atVersion] != Version || Flags(trailer[atFlags])&^known != 0
}

// parseStamped wants the terminator where the trailer says that it is, so that a
// C node's datagram is not taken for a stamped one by chance.
func parseStamped(b []byte) (dg Datagram, ok bool) {
	at := len(b) - trailerSize
	if at < terminatorSize || !hasMagic(b[at:]) || isNewer(b[at:]) {
		return Datagram{}, false
	}
	trailer := b[at:]
	dg.Stamp = Stamp{
		Flags:   Flags(trailer[atFlags]),
		Cluster: Cluster(trailer[atCluster:]),
		Epoch:   Epoch(trailer[atEpoch:]),
		Number:  binary.BigEndian.Uint64(trailer[atNumber:]),
		Hint:    trailer[atHint],
	}
	end := 0
	if dg.Sealed() {
		dg.Body = b[terminatorSize:at:at]
	} else {
		front, body, ok := cutBody(b[:at], dg.Flags)
		if end = len(front) - terminatorSize; !ok || end < 0 {
			return Datagram{}, false
		}
		dg.Entries, dg.Body = b[:end:end], body
	}
	return dg, binary.NativeEndian.Uint32(b[end:]) == 0
}

// cutBody takes the body, if there is one, off the end of b.
func cutBody(b []byte, f Flags) (front, body []byte, ok bool) {
	if f&hasBody == 0 {
		return b, nil, true
	}
	end := len(b) - lengthSize
	if end < 0 {
		return nil, nil, false
	}
	start := end - int(binary.BigEndian.Uint16(b[end:]))
	if start < 0 {
		return nil, nil, false
	}
	return b[:start:start], b[start:end:end], true
}

// entriesEnd walks entries as Jool's module does and returns where it would stop:
// at a zero header, at one that makes no sense, or at the end. The byte order is
// that of the first entry, whose type is 1.
func entriesEnd(b []byte) (end int) {
	const header = 4
	if len(b) < header {
		return 0
	}
	low, high := 0, 1 // of a length's two bytes
	if b[2] != 1 {
		low, high = 1, 0
	}
	for len(b)-end >= header {
		length := int(b[end+low]) | int(b[end+high])<<8
		if length < header || length > len(b)-end {
			break
		}
		end = min(end+(length+3)&^3, len(b))
	}
	return end
}
