package nlchan

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"iter"
	"syscall"

	"github.com/mdlayher/genetlink"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// A message is an nlmsghdr, a genlmsghdr, Jool's header and attributes. Kernel
// and daemon are one machine: integers are native, but for the version.
const (
	nlHeader   = unix.NLMSG_HDRLEN
	genlHeader = unix.GENL_HDRLEN
	attrHeader = 4
	nameSize   = 16 // INAME_MAX_SIZE
	joolHeader = 8 + nameSize
	joolMagic  = "jool" // stands before joolHeader since 4.1.5

	genlVersion = 2
	xlatorNAT64 = 2 // XT_NAT64

	flagError = 1 << 0 // JOOLNLHDR_FLAGS_ERROR
	flagMore  = 1 << 3 // JOOLNLHDR_FLAGS_M

	attrTypeMask = 0x3fff // NLA_TYPE_MASK

	// MessageSize is the room that any message of the channel fits in: Jool
	// makes them of 1,500 bytes, and of 2,048 at most up to 4.1.10, plus what
	// the allocator rounds up.
	MessageSize = 8 << 10

	// answerSize is the same for answers, which fill a page of up to 8 KiB.
	answerSize = 16 << 10
)

// marshal makes a request of a family's own header and attributes.
func marshal(family uint16, cmd uint8, seq uint32, header []byte, attrs ...netlink.Attribute) ([]byte, error) {
	body, err := netlink.MarshalAttributes(attrs)
	if err != nil {
		return nil, err
	}
	request, err := genetlink.Message{
		Header: genetlink.Header{Command: cmd, Version: genlVersion},
		Data:   append(header, body...),
	}.MarshalBinary()
	if err != nil {
		return nil, err
	}
	return netlink.Message{
		Header: netlink.Header{
			Length:   uint32(nlHeader + len(request)),
			Type:     netlink.HeaderType(family),
			Flags:    netlink.Request,
			Sequence: seq,
		},
		Data: request,
	}.MarshalBinary()
}

// message is a message from the kernel, taken apart as far as its family does
// not matter.
type message struct {
	family uint16
	seq    uint32
	errno  syscall.Errno // of an NLMSG_ERROR
	cmd    uint8
	body   []byte // what follows the generic netlink header
}

// parseMessage reads the first message in b; whole is false when b ends before
// the message does, but what is there can be used (netlink.Message wants all).
func parseMessage(b []byte) (m message, whole, ok bool) {
	if len(b) < nlHeader+genlHeader {
		return m, false, false
	}
	length := int(binary.NativeEndian.Uint32(b))
	if length < nlHeader+genlHeader {
		return m, false, false
	}
	m.family = binary.NativeEndian.Uint16(b[4:])
	m.seq = binary.NativeEndian.Uint32(b[8:])
	whole = length <= len(b)
	b = b[nlHeader:min(length, len(b))]
	if m.family == unix.NLMSG_ERROR {
		m.errno = syscall.Errno(-int32(binary.NativeEndian.Uint32(b)))
		return m, whole, true
	}
	m.cmd = b[0]
	m.body = b[genlHeader:]
	return m, whole, true
}

// joolMessage is the body of a message of Jool's family.
type joolMessage struct {
	version Version
	flags   uint8
	name    []byte // of the instance
	attrs   []byte
}

func (d *dialect) parseJool(body []byte) (m joolMessage, ok bool) {
	if len(body) < d.header {
		return m, false
	}
	m.attrs = body[d.header:]
	if d.magic() {
		if string(body[:len(joolMagic)]) != joolMagic {
			return m, false
		}
		body = body[len(joolMagic):]
	}
	m.version = Version{body[0], body[1], body[2], body[3]}
	m.flags = body[5]
	m.name = body[8:joolHeader]
	// The module copies the name into memory that it has not cleared.
	if end := bytes.IndexByte(m.name, 0); end >= 0 {
		m.name = m.name[:end]
	}
	return m, true
}

// kernelError reads an answer that has flagError set.
func (m *joolMessage) kernelError() *KernelError {
	e := &KernelError{Errno: unix.EINVAL}
	for typ, body := range attributes(m.attrs) {
		switch {
		case typ == attrErrorCode && len(body) >= 2:
			e.Errno = syscall.Errno(binary.NativeEndian.Uint16(body))
		case typ == attrErrorMessage:
			e.Message = string(bytes.Join(bytes.Fields(bytes.TrimRight(body, "\x00")), []byte(" "))) // it may be of several lines
		}
	}
	return e
}

// marshal makes a request to Jool.
func (d *dialect) marshal(op uint8, seq uint32, instance string, attrs ...netlink.Attribute) ([]byte, error) {
	var header []byte
	if d.magic() {
		header = append(header, joolMagic...)
	}
	header = append(header, d.version.Major, d.version.Minor, d.version.Revision, d.version.Dev)
	header = append(header, xlatorNAT64, 0, 0, 0)
	var name [nameSize]byte
	copy(name[:nameSize-1], instance)
	return marshal(d.family, op, seq, append(header, name[:]...), attrs...)
}

// attributes walks over netlink attributes without a copy, and stops as the kernel
// does where one makes no sense: on the way of the sessions, and where what is
// readable counts. Types come without flags.
func attributes(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= attrHeader {
			length := int(binary.NativeEndian.Uint16(b))
			if length < attrHeader || length > len(b) {
				return
			}
			if !yield(binary.NativeEndian.Uint16(b[2:])&attrTypeMask, b[attrHeader:length]) {
				return
			}
			b = b[min((length+3)&^3, len(b)):]
		}
	}
}

// decode has f read the attributes of an answer of which all must make sense:
// half a table is not to be taken for the whole.
func decode(b []byte, f func(*netlink.AttributeDecoder) error) error {
	ad, err := netlink.NewAttributeDecoder(b)
	if err == nil {
		err = f(ad)
	}
	if err == nil {
		err = ad.Err()
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errBadAnswer, err)
	}
	return nil
}
