package nlchan

import (
	"encoding/binary"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	joolFamily = "Jool"
	joolGroup  = "joold"
)

// family is a generic netlink family as nlctrl describes it.
type family struct {
	name    string
	id      uint16
	header  int // length of the family's own header
	maxAttr uint32
	groups  map[string]uint32
}

// resolve asks nlctrl for a family. A family that does not exist is a
// KernelError with ENOENT.
func resolve(s Socket, name string) (family, error) {
	b := beginMessage(nil, unix.GENL_ID_CTRL, unix.CTRL_CMD_GETFAMILY, 1)
	b = appendAttr(b, unix.CTRL_ATTR_FAMILY_NAME, append([]byte(name), 0)...)
	if err := s.Send(endMessage(b)); err != nil {
		return family{}, err
	}
	buf := make([]byte, answerSize)
	m, err := poll(s, buf, 1)
	if err != nil {
		return family{}, err
	}
	f := parseFamily(m.body)
	if m.family != unix.GENL_ID_CTRL || f.name != name || f.id == 0 {
		return family{}, fmt.Errorf("family %s: %w", name, errBadAnswer)
	}
	return f, nil
}

// poll takes the answer with this sequence number, which waits already.
func poll(s Socket, buf []byte, seq uint32) (message, error) {
	for {
		n, err := s.Poll(buf)
		if err != nil {
			return message{}, err
		}
		if n == 0 {
			return message{}, errNoAnswer
		}
		m, whole, ok := parseMessage(buf[:min(n, len(buf))])
		switch {
		case !ok || !whole:
			return message{}, errBadAnswer
		case m.seq != seq: // of a request whose answer was given up
			continue
		case m.family == unix.NLMSG_ERROR:
			return message{}, &KernelError{Errno: m.errno}
		}
		return m, nil
	}
}

// parseFamily reads what nlctrl says of a family; what is not there stays zero.
func parseFamily(attrs []byte) family {
	f := family{groups: make(map[string]uint32)}
	for typ, body := range attributes(attrs) {
		switch typ {
		case unix.CTRL_ATTR_FAMILY_ID:
			f.id = uint16(integer(body))
		case unix.CTRL_ATTR_FAMILY_NAME:
			f.name = text(body)
		case unix.CTRL_ATTR_HDRSIZE:
			f.header = int(integer(body))
		case unix.CTRL_ATTR_MAXATTR:
			f.maxAttr = integer(body)
		case unix.CTRL_ATTR_MCAST_GROUPS:
			for _, entry := range attributes(body) {
				var name string
				var id uint32
				for typ, body := range attributes(entry) {
					switch typ {
					case unix.CTRL_ATTR_MCAST_GRP_NAME:
						name = text(body)
					case unix.CTRL_ATTR_MCAST_GRP_ID:
						id = integer(body)
					}
				}
				f.groups[name] = id
			}
		}
	}
	return f
}

func text(b []byte) string { return strings.TrimRight(string(b), "\x00") }

// integer reads a number of one, two or four bytes; anything else is zero.
func integer(b []byte) uint32 {
	switch len(b) {
	case 1:
		return uint32(b[0])
	case 2:
		return uint32(binary.NativeEndian.Uint16(b))
	case 4:
		return binary.NativeEndian.Uint32(b)
	}
	return 0
}
