package mcast

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"strconv"
)

// isMember tells whether the device with this index takes in the group's
// packets. It forgets its groups when it is deleted, moved to another namespace,
// or becomes too small for the family, and says nothing to the sockets that
// joined. Only IPv6's can be asked for by netlink in every kernel, so that it is
// read from /proc.
func isMember(index int, group netip.Addr) (bool, error) {
	name, members := "igmp6", members6
	if group.Is4() {
		name, members = "igmp", members4
	}
	// Not /proc/net, which is the main thread's.
	text, err := os.ReadFile("/proc/thread-self/net/" + name)
	if err != nil {
		return false, fmt.Errorf("read which groups the interface is a member of: %w", err)
	}
	return members(text, index, group), nil
}

// members4 reads /proc/net/igmp: a line for each device begins with its index;
// one for each of its groups follows, indented, with the address as the kernel
// holds it, in hexadecimal.
func members4(text []byte, index int, group netip.Addr) bool {
	addr := group.As4()
	want := fmt.Sprintf("%08X", binary.NativeEndian.Uint32(addr[:]))
	at := false
	for line := range bytes.Lines(text) {
		f := bytes.Fields(line)
		switch {
		case len(f) == 0:
		case line[0] != '\t':
			at = string(f[0]) == strconv.Itoa(index)
		case at && string(f[0]) == want:
			return true
		}
	}
	return false
}

// members6 reads /proc/net/igmp6: a line for each group of each device, with the
// device's index, its name and the address in hexadecimal.
func members6(text []byte, index int, group netip.Addr) bool {
	addr := group.As16()
	want := hex.EncodeToString(addr[:])
	for line := range bytes.Lines(text) {
		f := bytes.Fields(line)
		if len(f) > 2 && string(f[0]) == strconv.Itoa(index) && string(f[2]) == want {
			return true
		}
	}
	return false
}
