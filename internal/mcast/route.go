package mcast

import (
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// router asks the kernel where routes lead, in the network namespace that it was
// opened in.
type router struct{ conn *netlink.Conn }

func openRouter() (*router, error) {
	conn, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return nil, err
	}
	return &router{conn}, nil
}

// device is the index of the interface through which addr is reached.
func (r *router) device(addr netip.Addr) (int, error) {
	family := byte(unix.AF_INET6)
	if addr.Is4() {
		family = unix.AF_INET
	}
	header := [unix.SizeofRtMsg]byte{family, byte(addr.BitLen())} // struct rtmsg
	ae := netlink.NewAttributeEncoder()
	ae.Bytes(unix.RTA_DST, addr.AsSlice())
	attrs, err := ae.Encode()
	if err != nil {
		return 0, err
	}
	replies, err := r.conn.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.RTM_GETROUTE, Flags: netlink.Request},
		Data:   append(header[:], attrs...),
	})
	if err != nil {
		return 0, err
	}
	for _, m := range replies {
		if m.Header.Type != unix.RTM_NEWROUTE || len(m.Data) < unix.SizeofRtMsg {
			continue
		}
		ad, err := netlink.NewAttributeDecoder(m.Data[unix.SizeofRtMsg:])
		if err != nil {
			return 0, err
		}
		for ad.Next() {
			if ad.Type() == unix.RTA_OIF {
				return int(ad.Uint32()), ad.Err()
			}
		}
	}
	return 0, unix.ENETUNREACH
}
