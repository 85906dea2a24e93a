package daemon

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"joold/internal/mcast"
	"joold/internal/session"
	"joold/internal/wire"
)

// FuzzBodies has a node that is trusted say anything to a daemon, among what makes
// sense, and looks at how the daemon bears it.
func FuzzBodies(f *testing.F) {
	random := rand.New(rand.NewPCG(1, 1))
	for n := range 24 {
		script := []byte{byte(n)}
		for range 60 {
			size := random.IntN(60)
			script = append(script, byte(random.UintN(14)), byte(random.Uint32()), byte(size))
			for range size {
				script = append(script, byte(random.Uint32()>>random.UintN(32)))
			}
		}
		f.Add(script)
	}
	f.Fuzz(func(t *testing.T, script []byte) {
		if len(script) > 8192 {
			return // a long life says no more than many short ones
		}
		synctest.Test(t, func(t *testing.T) { bear(t, script) })
	})
}

func bear(t *testing.T, script []byte) {
	next := func(n int) []byte {
		b := make([]byte, n)
		script = script[copy(b, script):]
		return b
	}
	k := newKeyed(t, nil)
	cfg := *k.d.live.Load()
	if next(1)[0]&1 == 0 {
		cfg.Keys = wire.Keys{}
		k.reload(cfg)
	}
	p := newPartner(t, cfg.Keys, false)
	p.meet(k.d, k.l, k.in, k.g)
	k.d.out.announce(distinct(200), true, time.Now())

	sent := func() (bytes int) {
		k.g.mu.Lock()
		defer k.g.mu.Unlock()
		for _, some := range [][][]byte{k.g.apart, k.g.out} {
			for _, b := range some {
				bytes += len(b)
			}
		}
		k.g.apart, k.g.out = nil, nil
		return bytes
	}
	sent()
	began := time.Now()
	for len(script) > 0 {
		op := next(3)
		kind, how := op[0], op[1]
		body := append([]byte{kind}, next(int(op[2]))...)
		if how&1 == 0 { // spoken to this node
			epoch := k.d.signer.Epoch()
			copy(body[1:], epoch[:])
		}
		if how&2 == 0 && len(body) > 24 { // of numbers that there may be
			at := 1 + int(how>>4)
			binary.BigEndian.PutUint64(body[at:], uint64(how))
		}
		var entries []byte
		if how&4 == 0 {
			entries = encode(session.Enc4113, wkp, k.next())
		}
		b := p.StampApart(entries, wire.Flags(how>>3&3), body)
		k.in.accept(k.l, &mcast.Datagram{Payload: b, From: sender}, time.Now())
		switch {
		case how&0x30 == 0:
			time.Sleep(time.Duration(how) * 10 * time.Millisecond)
		case how&0x38 == 0x38: // it goes on as any node would, too
			for _, b := range p.says(nil) {
				k.in.accept(k.l, &mcast.Datagram{Payload: b, From: sender}, time.Now())
			}
		}
	}
	time.Sleep(time.Second)
	if n, most := sent(), (1+int(time.Since(began).Seconds()))*8<<20; n > most {
		t.Errorf("it sent %d bytes in %v", n, time.Since(began))
	}
	if n := len(k.d.out.clusterStatus(time.Now()).Nodes); n != 1 {
		t.Errorf("it knows %d nodes", n)
	}
	k.d.out.end(time.Now())
}
