package daemon

import (
	"crypto/rand"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"joold/internal/cluster"
	"joold/internal/mcast"
	"joold/internal/session"
	"joold/internal/wire"
)

// partner is another node, as far as others must have met it before its datagrams
// count. It has no sessions of its own.
type partner struct {
	*wire.Signer
	tb     testing.TB
	opener *wire.Opener
	node   *cluster.Node
	now    time.Time
	from   netip.AddrPort
	out    [][]byte

	recording bool
	recorded  [][]byte // all that it said while recording
	digest    session.Digest
}

func newPartner(tb testing.TB, keys wire.Keys, sealing bool) *partner {
	return asPartner(tb, wire.NewSigner("", keys, sealing, nil), "", keys)
}

func asPartner(tb testing.TB, s *wire.Signer, name string, keys wire.Keys) *partner {
	p := &partner{Signer: s, tb: tb, opener: wire.NewOpener(name, keys), now: time.Now(), from: sender}
	p.node = cluster.New(cluster.Config{
		Name: fmt.Sprintf("%x", s.Epoch()), Epoch: s.Epoch(), Keyed: keys.Signing(), Encoding: session.Enc4113, Timeouts: session.DefaultTimeouts,
		Payload: 1400, Entry: 40, Random: func(b []byte) { rand.Read(b) },
	}, p, p.now)
	return p
}

func (p *partner) Send(dg cluster.Datagram) {
	b := p.StampApart(nil, dg.Flags, dg.Body)
	if p.out = append(p.out, b); p.recording {
		p.recorded = append(p.recorded, b)
	}
}
func (p *partner) FirstHand(session.Ref) bool { return true }
func (p *partner) Scan(found []session.Placed, _ session.Ref, _ *session.Buckets) ([]session.Placed, session.Ref) {
	return found, 0
}
func (p *partner) Digest() *session.Digest { return &p.digest }
func (p *partner) Room() int               { return 0 }
func (p *partner) Sweep()                  {}

// data is a datagram of sessions as p sends it.
func (p *partner) data(ss ...session.Session) []byte {
	b := p.Stamp(encode(session.Enc4113, wkp, ss...), 0, nil)
	p.node.Numbered(p.Last(), nil, p.now)
	return b
}

// says is what it has to say by now, having heard some.
func (p *partner) says(heard [][]byte) (said [][]byte) {
	p.now = p.now.Add(300 * time.Millisecond)
	for _, b := range heard {
		if dg, v := p.opener.Open(b, p.now); v == wire.Intact || v == wire.Proven {
			p.node.Receive(&dg, sender, p.now)
		}
	}
	p.node.Tick(p.now, false)
	said, p.out = p.out, nil
	return said
}

// meet has a daemon and p know each other. The daemon's group is a model.
func (p *partner) meet(d *Daemon, l *link, in *intake, g *modelGroup) {
	p.tb.Helper()
	for limit := time.Now().Add(30 * time.Second); !p.known(d); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(limit) {
			p.tb.Fatalf("the daemon does not get to know a node: %+v", d.out.clusterStatus(time.Now()))
		}
		g.mu.Lock()
		heard := g.apart
		g.apart = nil
		g.mu.Unlock()
		for _, b := range p.says(heard) {
			in.accept(l, &mcast.Datagram{Payload: b, From: p.from}, time.Now())
		}
	}
}

func (p *partner) known(d *Daemon) bool {
	d.out.mu.Lock()
	defer d.out.mu.Unlock()
	for _, n := range d.out.member.Status().Peers {
		if n.Epoch == p.Epoch() {
			return n.Fresh && !n.Hello.IsZero()
		}
	}
	return false
}
