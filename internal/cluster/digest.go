package cluster

import (
	"time"

	"joold/internal/session"
)

const (
	// differsFor is in how many hellos in a row a bucket must be another before that
	// is looked into: longer than what is under way explains.
	differsFor = 5

	// bucketsAtOnce are fetched together.
	bucketsAtOnce = 16

	// Sessions end a little earlier on one node than on another, so that in a busy
	// table buckets differ all the time, and nothing is missing. What was looked
	// into in vain is left alone for a while, then for twice as long.
	firstBackoff = time.Second
	maxBackoff   = time.Minute

	// doubtFor is how long, after somebody came or went, a node that translates
	// takes the others' word for what it might lack.
	doubtFor = time.Minute
)

// compare takes in a peer's digest.
func (n *Node) compare(p *peer) {
	differs := p.hello.Digest.Differs(n.host.Digest())
	for i := range p.differs {
		if differs.Has(i) {
			p.differs[i] = min(p.differs[i]+1, 254)
		} else {
			p.differs[i], p.equalAt[i] = 0, n.now
		}
	}
}

// investigate fetches what has differed for long: from a node that translates, if
// there is one, since its sessions are its own. Others may have some that it
// knows to have ended; so unless somebody came or went, a node that translates
// itself takes nothing from them.
func (n *Node) investigate() {
	if n.now.Before(n.quietTill) || n.state.is != Synced {
		return
	}
	var best *peer
	var chosen session.Buckets
	for _, p := range n.order {
		if !n.gives(p) || n.active && !p.hello.Active && !n.now.Before(n.doubtTill) {
			continue
		}
		if best != nil && (best.hello.Active || !p.hello.Active) {
			continue
		}
		if differs := n.suspicious(p); differs.Len() > 0 {
			best, chosen = p, differs
		}
	}
	if best != nil {
		n.ask(best, chosen)
	}
}

// suspicious chooses some of the buckets that have differed for long, other ones
// each time if there are many.
func (n *Node) suspicious(p *peer) (chosen session.Buckets) {
	first := n.rand.IntN(session.DigestBuckets)
	for i := range p.differs {
		if b := (first + i) % session.DigestBuckets; p.differs[b] >= differsFor && chosen.Len() < bucketsAtOnce {
			chosen.Add(b)
		}
	}
	return chosen
}

// investigated says how much was missing in what had differed.
func (n *Node) investigated(news int) {
	if news > 0 {
		n.backoff = 0
		return
	}
	n.backoff = min(max(2*n.backoff, firstBackoff), maxBackoff)
	n.quietTill = n.now.Add(n.backoff + n.jitter(firstBackoff))
}

// Doubt has differences looked into, although that was in vain before: what was refused
// then, as for a mask that was not in pool4, would be taken now.
func (n *Node) Doubt() {
	n.backoff, n.quietTill = 0, n.now.Add(n.jitter(firstBackoff))
	n.doubtTill = n.now.Add(doubtFor)
}
