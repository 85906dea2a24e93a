package guest

import (
	"fmt"
	"maps"
	"time"
)

// A Look is what was in a node's session table at some moment between two.
type Look struct {
	From, Till time.Time
	Sessions   map[ID]Session
}

// Look looks at the node's table. Only for nodes of this machine, where it takes less time than Sessions.
func (n *Node) Look() Look {
	n.lab.t.Helper()
	look := Look{Sessions: map[ID]Session{}}
	n.asking(func(j *jool) error {
		look.From = time.Now()
		for proto := range uint8(3) {
			err := j.each(proto, func(s *Session) error {
				look.Sessions[s.ID] = *s
				return nil
			})
			if err != nil {
				return err
			}
		}
		look.Till = time.Now()
		return nil
	})
	return look
}

// NotBefore is a moment before which the session, as it was seen, does not end.
func (k Look) NotBefore(id ID) time.Time { return k.From.Add(k.Sessions[id].Expires) }

// NotAfter is one after which it is over.
func (k Look) NotAfter(id ID) time.Time { return k.Till.Add(k.Sessions[id].Expires) }

// Deafen keeps what the other nodes' daemons send from the node's, until the test ends.
func (n *Node) Deafen() {
	n.lab.t.Helper()
	n.Sh(`nft add table inet deaf; nft 'add chain inet deaf input { type filter hook input priority 0; }'
		nft add rule inet deaf input udp dport ` + syncPort + ` drop`)
	n.lab.t.Cleanup(func() { n.Run("nft", "delete", "table", "inet", "deaf") })
}

// Repeat sends a datagram in a flow ten times a second until what it returns is called.
func (l *Lab) Repeat(from *flows, flow int) (stop func()) {
	l.t.Helper()
	end, done := make(chan struct{}), make(chan error, 1)
	go func() {
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			if err := from.send(flow); err != nil {
				done <- err
				return
			}
			select {
			case <-tick.C:
			case <-end:
				done <- nil
				return
			}
		}
	}()
	return func() {
		l.t.Helper()
		close(end)
		if err := <-done; err != nil {
			l.t.Fatalf("send from n6: %v", err)
		}
	}
}

// masks are the ports of the addresses that the node's flows have in IPv4.
func (n *Node) masks() map[int]uint16 {
	n.lab.t.Helper()
	masks := map[int]uint16{}
	for id, s := range n.Sessions() {
		if id.Proto == protoUDP {
			masks[flowOf(s)] = id.Src4.Port()
		}
	}
	return masks
}

// WaitMasks waits until the node has these flows and no others, each behind its port.
func (n *Node) WaitMasks(want map[int]uint16) {
	n.lab.t.Helper()
	n.lab.Wait(fmt.Sprintf("%s has flows with the masks %v", n.Name, want), func() (string, bool) {
		have := n.masks()
		return fmt.Sprint(have), maps.Equal(have, want)
	})
}
