package daemon

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/ipv6"

	"joold/internal/mcast"
	"joold/internal/nstest"
	"joold/internal/session"
	"joold/internal/wire"
)

// populace is n sessions with a mask each, all of them acceptable.
func populace(n int) []session.Session {
	ss := make([]session.Session, n)
	for i := range ss {
		ss[i] = udp(uint16(i), 300_000)
		binary.BigEndian.PutUint32(ss[i].Src6[8:], 1)
	}
	return ss
}

// hostile are datagrams of which no entry may reach a kernel, by what they are.
// good are sessions that do.
func hostile(random *rand.Rand, good []session.Session) map[string][]byte {
	noise := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(random.Uint32())
		}
		return b
	}
	full := func(e session.Encoding, spoil func(s *session.Session)) (b []byte) {
		for len(b)+e.EntrySize() <= 1452 {
			s := udp(uint16(random.Uint32()), 300_000)
			s.Dst4 = [4]byte(noise(4))
			spoil(&s)
			b = e.Append(b, &s, wkp)
		}
		return b
	}
	bad := func(s *session.Session) { s.State = session.Trans }
	whole := full(session.Enc4113, bad)
	tiny := make([]byte, 1452) // as many attributes as fit
	for i := 0; i < len(tiny); i += 4 {
		copy(tiny[i:], []byte{4, 0, 1, 0x80})
	}
	return map[string][]byte{
		"random":                   noise(1 + random.IntN(1452)),
		"empty":                    {},
		"truncated":                whole[:random.IntN(len(whole))],
		"oversized":                noise(12_000),
		"of empty attributes":      tiny,
		"ended before it begins":   slices.Concat([]byte{0, 0, 0, 0}, whole),
		"immortal":                 full(session.Enc4113, func(s *session.Session) { s.Expiration = 4_000_000_000 }),
		"dead":                     full(session.Enc4113, func(s *session.Session) { s.Expiration = 0 }),
		"of impossible states":     whole,
		"of masks outside":         full(session.Enc4113, func(s *session.Session) { s.Src4 = [4]byte(noise(4)); s.Src4[0] = 10 }),
		"of one mask outside":      encode(session.Enc4113, wkp, func() session.Session { s := good[0]; s.Src4Port = uint16(random.IntN(61001)); return s }()),
		"of multicast nodes":       full(session.Enc4113, func(s *session.Session) { s.Src6[0] = 0xff }),
		"of pool6's own":           full(session.Enc4113, func(s *session.Session) { s.Src6 = wkp.Embed(s.Dst4) }),
		"nested":                   full(session.Enc4111, bad),
		"of 4.1.12":                full(session.Enc4112, func(s *session.Session) { s.Expiration = 4_000_000_000 }),
		"nested, without a port":   encode(session.Enc4111, wkp, good[0])[:24],
		"4.1.12's, of other pool6": encode(session.Enc4112, pool6("2001:db8:64::/96"), good[:20]...),
	}
}

// BenchmarkHostileDatagram is what each kind costs the goroutine that listens.
func BenchmarkHostileDatagram(b *testing.B) {
	kinds := hostile(rand.New(rand.NewPCG(1, 2)), populace(20))
	for name, payload := range kinds {
		for _, senders := range []int{1, 10_000} {
			b.Run(fmt.Sprintf("%s/from %d", name, senders), func(b *testing.B) {
				d, l := idle(b, newModelKernel(session.Enc4113))
				in := newIntake(d)
				dg := mcast.Datagram{Payload: payload}
				i := 0
				for b.Loop() {
					from := netip.AddrFrom4([4]byte{10, 0, byte(i % senders >> 8), byte(i % senders)})
					dg.From = netip.AddrPortFrom(from, 6400)
					in.accept(l, &dg, time.Now())
					i++
				}
			})
		}
	}
}

// Once it has been logged: see Limiter.WarnWith.
func TestNothingIsAllocatedForWhatIsRefused(t *testing.T) {
	const life = 200_000
	good := udp(1, life)
	older := claim(udp(1, life/2))
	bad := udp(2, life)
	bad.State = session.Trans
	damaged := newPartner(t, wire.Keys{}, false).data(good)
	damaged[0] ^= 0x80
	for _, c := range []struct {
		name     string
		payload  []byte
		hopLimit int
		count    func(d *Daemon) uint64
	}{
		{"a stamp", damaged, 255, func(d *Daemon) uint64 { return d.count.unheard[wire.Damaged].Load() }},
		{"a datagram", encode(session.Enc4113, wkp, good), 1, func(d *Daemon) uint64 { return d.count.strays[strayHopLimit].Load() }},
		{"an entry", encode(session.Enc4113, wkp, bad), 255, func(d *Daemon) uint64 { return d.count.refused[session.RefusedTimer].Load() }},
		{"a conflict", encode(session.Enc4113, wkp, older), 255, func(d *Daemon) uint64 { return d.count.conflicts.Load() }},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, l := idle(t, newModelKernel(session.Enc4113))
			cfg := *d.live.Load()
			cfg.HopLimit = 255
			d.live.Store(&cfg)
			in := newIntake(d)
			in.accept(l, &mcast.Datagram{Payload: encode(session.Enc4113, wkp, good), From: sender, HopLimit: 255}, time.Now())
			dg := mcast.Datagram{Payload: c.payload, From: sender, HopLimit: c.hopLimit}
			const runs = 100
			allocs := testing.AllocsPerRun(runs, func() { in.accept(l, &dg, time.Now()) })
			if n := c.count(d); n != runs+1 {
				t.Errorf("%d were refused", n)
			}
			if allocs != 0 {
				t.Errorf("%v allocations each", allocs)
			}
		})
	}
}

// attacker sends datagrams that it has prepared, each from an address and with a
// hop limit of its own.
type attacker struct {
	conn    *ipv6.PacketConn
	batches [][]ipv6.Message
	sent    uint64
}

const perBatch = 64

// newAttacker prepares some of every hostile kind, as from --net.source; and
// sound forgeries from outside, or from too far away.
func newAttacker(t *testing.T, n *nstest.NS, good []session.Session) *attacker {
	n.Sysctl("net.ipv6.ip_nonlocal_bind", "1")
	a := new(attacker)
	n.Do(func() {
		c, err := net.ListenPacket("udp6", "[::]:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		a.conn = ipv6.NewPacketConn(c)
		eth2, err := net.InterfaceByName("eth2")
		if err != nil {
			t.Fatal(err)
		}
		if err := a.conn.SetMulticastInterface(eth2); err != nil {
			t.Fatal(err)
		}
	})
	random := rand.New(rand.NewPCG(1, 2))
	to := &net.UDPAddr{IP: net.ParseIP("ff08::db8:64:64"), Port: 6400}
	var all []ipv6.Message
	add := func(payload []byte, prefix string, hopLimit int) {
		from := net.ParseIP(prefix)
		binary.BigEndian.PutUint32(from[12:], random.Uint32())
		cm := ipv6.ControlMessage{Src: from, HopLimit: hopLimit}
		all = append(all, ipv6.Message{Buffers: [][]byte{payload}, OOB: cm.Marshal(), Addr: to})
	}
	const inside, outside = "2001:db8:ff08::", "2001:db8:bad::"
	for len(all) < 128*perBatch {
		sound := func() (b []byte) {
			for range 30 {
				s := udp(uint16(random.Uint32()), 300_000)
				s.Dst4 = [4]byte{203, 0, 113, byte(random.Uint32())}
				b = session.Enc4113.Append(b, &s, wkp)
			}
			return b
		}
		for kind, payload := range hostile(random, good) {
			if kind == "oversized" && random.IntN(8) > 0 {
				continue // each is as much work as nine others, for who sends it
			}
			add(payload, inside, 255)
		}
		add(sound(), outside, 255)
		add(sound(), inside, 64)
	}
	random.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	a.batches = slices.Collect(slices.Chunk(all[:128*perBatch], perBatch))
	return a
}

// longest is what an attack lasts at the most.
const longest = 2 * time.Minute

// attack sends so many a second, or as many as it can, until ctx ends.
func (a *attacker) attack(ctx context.Context, rate int) (took time.Duration, err error) {
	began := time.Now()
	for i := 0; ctx.Err() == nil; i++ {
		took = time.Since(began)
		if took > longest {
			break
		}
		if ahead := time.Duration(a.sent)*time.Second/time.Duration(rate) - took; ahead > time.Millisecond {
			time.Sleep(ahead)
		}
		batch := a.batches[i%len(a.batches)]
		for len(batch) > 0 {
			n, err := a.conn.WriteBatch(batch, 0)
			if err != nil {
				return took, fmt.Errorf("after %d datagrams: %w", a.sent, err)
			}
			a.sent += uint64(n)
			batch = batch[n:]
		}
	}
	return time.Since(began), nil
}

// heap is what lives in memory, in bytes.
func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// A flood may push a datagram out of the socket's buffer: UDP promises no more.
// But a kernel announces a session with each of its packets, and its daemon sends
// that again. Promised is that a peer that repeats itself is heard.
func TestAFloodOfHostileDatagramsLeavesRealTrafficSynchronised(t *testing.T) {
	const (
		rate      = 50_000 // a second
		atLeast   = 3 * time.Second
		sessions  = 2000
		memory    = 16 << 20 // what was refused for its mask waits for pool4 to change
		logLines  = 10
		perSecond = 4000 // sessions of the good peer
	)
	j, k := nstest.New(t), nstest.New(t)
	nstest.Veth(j, "eth2", k, "eth2")
	j.Address("eth2", "2001:db8:ff08::4/96")
	k.Address("eth2", "2001:db8:ff08::5/96")

	cfg := testConfig()
	cfg.Group, cfg.Port, cfg.In, cfg.Out, cfg.TTL, cfg.ReuseAddr = "ff08::db8:64:64", 6400, "eth2", "eth2", 255, true
	cfg.ReadBuffer = 8 << 20
	cfg.Sources, cfg.HopLimit = []netip.Prefix{netip.MustParsePrefix("2001:db8:ff08::/96")}, 255
	b := bench0(t, cfg, slog.LevelInfo)
	b.Log = slog.New(slog.NewTextHandler(io.MultiWriter(b.logs, t.Output()), nil))
	gate := newGate(session.Enc4113)
	b.dial = func() (kernel, error) { return gate, nil }
	b.open = func(ctx context.Context) (group network, err error) {
		k.Do(func() { group, err = b.openGroup(ctx) })
		return group, err
	}
	b.run()
	eventually(t, "the daemon is in service", b.serves)
	gate.learned()

	var peer network
	j.Do(func() {
		var err error
		if peer, err = b.openGroup(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
	defer peer.Close()
	good := populace(sessions)
	lacking := make(map[session.Key]bool, sessions)
	for i := range good {
		lacking[good[i].Key()] = true
	}
	attacker := newAttacker(t, j, good)
	before, linesBefore := heap(), strings.Count(b.logs.String(), "\n")

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var took time.Duration
	attacked := make(chan error, 1)
	go func() {
		var err error
		took, err = attacker.attack(ctx, rate)
		attacked <- err
	}()
	eventually(t, "the flood has begun", func() bool { return b.count.rcvdDatagrams.Load() > 10_000 })

	began := time.Now()
	rounds := 0
	for ; len(lacking) > 0 && time.Since(began) < longest/2; rounds++ {
		for datagram := range slices.Chunk(good, 36) {
			if err := peer.Write(encode(session.Enc4113, wkp, datagram...)); err != nil {
				t.Fatalf("the peer cannot send: %v", err)
			}
			time.Sleep(time.Duration(len(datagram)) * time.Second / perSecond)
		}
		for _, s := range gate.taken() {
			delete(lacking, s.Key())
		}
	}
	synchronised := time.Since(began)
	for time.Since(began) < atLeast {
		time.Sleep(10 * time.Millisecond)
	}
	during := heap()
	cancel()
	if err := <-attacked; err != nil {
		t.Fatalf("the attacker cannot send: %v", err)
	}
	if len(lacking) > 0 {
		t.Errorf("%d of %d sessions are lacking after they were announced %d times", len(lacking), sessions, rounds)
	}
	known := make(map[session.Key]bool, sessions)
	for i := range good {
		known[good[i].Key()] = true
	}
	for _, s := range gate.taken() {
		if !known[s.Key()] {
			t.Fatalf("the kernel was given a forged session: %+v", s)
		}
	}
	group := b.group()
	eventually(t, "what waits in the socket is heard", func() bool {
		was := b.count.rcvdDatagrams.Load()
		time.Sleep(50 * time.Millisecond)
		return b.count.rcvdDatagrams.Load() == was
	})
	after := heap()
	t.Logf("%d hostile datagrams in %v, %.0f a second: %d heard, %d dropped at the socket", attacker.sent, took.Round(time.Millisecond),
		float64(attacker.sent)/took.Seconds(), b.count.rcvdDatagrams.Load(), group.Drops())
	t.Logf("%d sessions announced at %d a second, %d times, were there after %v", sessions, perSecond, rounds, synchronised.Round(time.Millisecond))
	t.Logf("heap before %d KiB, in the flood %d KiB, after it %d KiB", before>>10, during>>10, after>>10)
	for when, n := range map[string]uint64{"in the flood": during, "after it": after} {
		if n > before+memory {
			t.Errorf("%d KiB more heap %s", (n-before)>>10, when)
		}
	}
	if lines := strings.Count(b.logs.String(), "\n") - linesBefore; lines >= logLines {
		t.Errorf("%d lines in the log", lines)
	}
	s := b.status(time.Now())
	if len(s.Peers) > maxPeers {
		t.Errorf("%d peers", len(s.Peers))
	}
	for what, n := range map[string]uint64{
		"sender": s.Net.Strays["sender"], "hop limit": s.Net.Strays["hop limit"], "size": s.Net.Strays["size"],
		"timer": s.Net.Refused["timer"], "source": s.Net.Refused["source"], "pool4": s.Net.Refused["pool4"], "expiration": s.Net.Refused["expiration"],
		"header": s.Net.Unreadable["header"], "nested": s.Net.Unreadable["nested"], "pool6": s.Net.Unreadable["pool6"],
	} {
		if n == 0 {
			t.Errorf("nothing was refused for its %s", what)
		}
	}
}
