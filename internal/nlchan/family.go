package nlchan

import (
	"fmt"

	"github.com/mdlayher/netlink"
	"github.com/mdlayher/netlink/nlenc"
	"golang.org/x/sys/unix"
)

const (
	joolFamily = "Jool"
	joolGroup  = "joold"
)

// family is a generic netlink family as nlctrl describes it. genetlink's Family
// lacks the header's length and the largest attribute, by which dialects differ.
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
	b, err := marshal(unix.GENL_ID_CTRL, unix.CTRL_CMD_GETFAMILY, 1, nil,
		netlink.Attribute{Type: unix.CTRL_ATTR_FAMILY_NAME, Data: nlenc.Bytes(name)})
	if err != nil {
		return family{}, err
	}
	if err := s.Send(b); err != nil {
		return family{}, err
	}
	buf := make([]byte, answerSize)
	m, err := poll(s, buf, 1)
	if err != nil {
		return family{}, err
	}
	f, err := parseFamily(m.body)
	if err != nil {
		return family{}, fmt.Errorf("family %s: %w", name, err)
	}
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
func parseFamily(attrs []byte) (family, error) {
	f := family{groups: make(map[string]uint32)}
	err := decode(attrs, func(ad *netlink.AttributeDecoder) error {
		for ad.Next() {
			switch ad.Type() {
			case unix.CTRL_ATTR_FAMILY_ID:
				f.id = ad.Uint16()
			case unix.CTRL_ATTR_FAMILY_NAME:
				f.name = ad.String()
			case unix.CTRL_ATTR_HDRSIZE:
				f.header = int(ad.Uint32())
			case unix.CTRL_ATTR_MAXATTR:
				f.maxAttr = ad.Uint32()
			case unix.CTRL_ATTR_MCAST_GROUPS:
				ad.Nested(func(ad *netlink.AttributeDecoder) error {
					for ad.Next() {
						ad.Nested(f.addGroup)
					}
					return nil
				})
			}
		}
		return nil
	})
	return f, err
}

func (f *family) addGroup(ad *netlink.AttributeDecoder) error {
	var name string
	var id uint32
	for ad.Next() {
		switch ad.Type() {
		case unix.CTRL_ATTR_MCAST_GRP_NAME:
			name = ad.String()
		case unix.CTRL_ATTR_MCAST_GRP_ID:
			id = ad.Uint32()
		}
	}
	f.groups[name] = id
	return nil
}
