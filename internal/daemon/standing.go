package daemon

import (
	"slices"
	"time"

	"joold/internal/cluster"
	"joold/internal/logging"
	"joold/internal/wire"
)

// standing says to the log how this node stands among the others, as that changes.
// It belongs to the outlet.
type standing struct {
	state, nodes logging.Latest
	last         cluster.State // that was told
	told         bool
	at           time.Time // when it was last looked at
	known        map[wire.Epoch]*acquaintance
}

// acquaintance is what the log was told of another node's run.
type acquaintance struct {
	name   string
	live   bool
	unlike []string
}

func (s *standing) init(d *Daemon) {
	s.state, s.nodes = logging.NewLatest(d.Log), logging.NewLatest(d.Log)
	s.known = make(map[wire.Epoch]*acquaintance)
}

// look tells what has changed, once a second at most.
func (s *standing) look(n *cluster.Node, now time.Time) {
	if now.Sub(s.at) < time.Second {
		return
	}
	s.at = now
	status := n.Status()
	if !s.told || status.State != s.last {
		s.say(&status)
	}
	met, live := make(map[wire.Epoch]bool, len(status.Peers)), make(map[string]bool)
	for i := range status.Peers {
		if p := &status.Peers[i]; p.Fresh {
			met[p.Epoch] = true
			live[p.Name] = live[p.Name] || p.Live
			s.meet(p)
		}
	}
	for e, a := range s.known {
		if !met[e] {
			if a.live && !live[a.name] { // else it was started anew
				s.nodes.Warn("another node is silent: it is down, or not reached, or a switch snoops IGMP or MLD and nobody queries", "node", a.name)
			}
			delete(s.known, e)
		}
	}
}

func (s *standing) say(n *cluster.Status) {
	switch {
	case n.State == cluster.Synced:
		s.state.Info("in sync with the other nodes", "because", n.Why)
	case n.State == cluster.GaveUp && slices.ContainsFunc(n.Peers, func(p cluster.PeerStatus) bool { return p.Live }):
		s.state.Warn("no other node gives this one its sessions", "because", n.Why)
	case n.State == cluster.GaveUp:
		s.state.Info("there is no other node of joold to be in sync with", "because", n.Why)
	case s.told && s.last == cluster.Synced:
		s.state.Info("not in sync with the other nodes", "because", n.Why)
	}
	s.last, s.told = n.State, true
}

// meet tells of another node's run.
func (s *standing) meet(p *cluster.PeerStatus) {
	a := s.known[p.Epoch]
	if a == nil {
		a = new(acquaintance)
		s.known[p.Epoch] = a
	}
	if a.name = p.Name; a.live != p.Live {
		a.live = p.Live
		switch {
		case p.Live:
			s.nodes.Info("another node is there", "node", p.Name, "address", p.Addr.Addr(), "sessions", p.Sessions, "state", p.State)
		case p.Left:
			s.nodes.Info("another node has left", "node", p.Name)
		default:
			s.nodes.Warn("another node is silent: it is down, or not reached, or a switch snoops IGMP or MLD and nobody queries", "node", p.Name)
		}
	}
	if !slices.Equal(a.unlike, p.Unlike) {
		if a.unlike = p.Unlike; len(a.unlike) > 0 {
			s.nodes.Warn("another node is configured differently", "node", p.Name, "differences", p.Unlike)
		} else {
			s.nodes.Info("another node is configured as this one again", "node", p.Name)
		}
	}
}

func (s *standing) flush() {
	s.state.Flush()
	s.nodes.Flush()
}
