package cluster

import (
	"bytes"
	"net/netip"
	"slices"
	"time"

	"joold/internal/session"
	"joold/internal/wire"
)

// Status is a Node as people wish to see it.
type Status struct {
	State  State
	Why    string
	Since  time.Time // in this state
	Copies int       // being given
	From   string    // of whom a copy is being taken; empty if none is
	Counts Counts
	Peers  []PeerStatus // in the order of their names
}

// PeerStatus is a Status of another node, by what it said last.
type PeerStatus struct {
	Name     string
	Version  string // its daemon's
	Addr     netip.AddrPort
	Epoch    wire.Epoch
	Live     bool // it takes part
	Fresh    bool // it has proven to speak now
	Left     bool // it said goodbye
	State    State
	Active   bool
	Module   [4]uint8
	Encoding session.Encoding
	Sessions uint32
	Heard    time.Time // anything
	Hello    time.Time
	Equal    time.Time // nothing that it has was missing here by then; zero if that is not known
	Behind   time.Time // since when some of its datagrams are missing; zero if none is
	Differs  int       // buckets that have differed for longer than what is under way explains
	Unlike   []string  // what of its configuration is not as here
	Counts   PeerCounts
}

// Status allocates as much as it tells.
func (n *Node) Status() Status {
	s := Status{
		State: n.state.is, Why: n.state.why, Since: n.state.since, Copies: len(n.gifts), Counts: n.counts,
	}
	if n.quest != nil {
		s.From = n.quest.from.hello.Name
	}
	for _, p := range n.order {
		q := PeerStatus{
			Name: p.hello.Name, Version: p.hello.Version, Addr: p.addr, Epoch: p.epoch, Live: n.live(p), Fresh: p.fresh, Left: p.gone,
			State: p.hello.State, Active: p.hello.Active, Module: p.hello.Module, Encoding: session.Encoding(p.hello.Encoding),
			Sessions: p.hello.Digest.Sessions, Heard: p.heardAt, Hello: p.helloAt, Equal: p.equalAt[0],
			Unlike: n.unlikeness(p), Counts: p.counts,
		}
		q.Counts.Missing = p.window.Missing()
		if p.holes {
			q.Behind = p.since
		}
		for i := range p.equalAt {
			if p.equalAt[i].Before(q.Equal) {
				q.Equal = p.equalAt[i]
			}
			if p.differs[i] >= differsFor {
				q.Differs++
			}
		}
		s.Peers = append(s.Peers, q)
	}
	slices.SortFunc(s.Peers, func(a, b PeerStatus) int {
		if c := bytes.Compare([]byte(a.Name), []byte(b.Name)); c != 0 {
			return c
		}
		return bytes.Compare(a.Epoch[:], b.Epoch[:])
	})
	return s
}
