package cluster

import "time"

const (
	// patience is how long a node waits for others before it does without them.
	patience = 5 * time.Second

	// stuck is how long a node waits for a copy while others are there.
	stuck = 30 * time.Second

	// gather is how long a node that wants a copy waits first: by then the others
	// have been met, and what they send from then on is not missed.
	gather = 300 * time.Millisecond
)

// state is whether this node has what there is to have, and what it lacks.
type state struct {
	is    State
	why   string
	since time.Time
	lived time.Time // when somebody else was last there

	wants  bool // a copy of all that others have
	wantAt time.Time
}

// become changes the state, and has others know.
func (n *Node) become(is State, why string) {
	if n.state.is != is {
		n.state.since = n.now
		n.hurry()
	}
	n.state.is, n.state.why = is, why
}

// want says that this node may lack anything. It is no longer synced then, unless
// it translates: what the others have is what it has told them.
func (n *Node) want(why string) {
	n.state.wants, n.state.wantAt = true, n.now
	if !n.active {
		n.become(Syncing, why)
	}
}

// decide gives up if nobody is there, and sees that somebody begins where nobody
// is synced: nodes that have given up go before those that have just come, those
// with traffic before others, those with more than twice as many sessions before
// those with fewer, and then whoever has the lowest epoch.
func (n *Node) decide() {
	var some, synced, outranked bool
	for _, p := range n.order {
		if n.live(p) {
			some = true
			synced = synced || p.hello.State == Synced
			outranked = outranked || n.outranks(p)
		}
	}
	if some {
		n.state.lived = n.now
	}
	if n.state.is == Synced || n.quest != nil {
		return
	}
	waited := n.now.Sub(n.state.since)
	switch {
	case n.state.is == Syncing && !some && min(waited, n.now.Sub(n.state.lived)) >= patience:
		n.become(GaveUp, "no other node answers")
	case n.state.is == Syncing && waited >= stuck:
		n.become(GaveUp, "no other node gives a copy")
	case some && !synced && !outranked && waited >= gather+helloInterval:
		n.state.wants = false
		n.become(Synced, "no other node has more")
	}
}

// outranks tells whether of two nodes that are not synced it is p that begins.
func (n *Node) outranks(p *peer) bool {
	h := &p.hello
	if h.State != n.state.is {
		return h.State == GaveUp
	}
	if h.Active != n.active {
		return h.Active
	}
	if mine, theirs := n.host.Digest().Sessions, h.Digest.Sessions; mine/2 > theirs || theirs/2 > mine {
		return theirs > mine
	}
	return before(p.epoch, n.cfg.Epoch)
}
