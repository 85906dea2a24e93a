package mcast

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/net/ipv4"
)

// full is a datagram that fills an IPv6 packet of 1,500 bytes.
var full = make([]byte, 1452)

// deadline keeps a benchmark or count that loses datagrams from waiting for ever.
func deadline(t testing.TB, conns ...*Conn) {
	t.Helper()
	for _, c := range conns {
		if err := c.SetReadDeadline(time.Now().Add(10 * limit)); err != nil {
			t.Fatal(err)
		}
	}
}

// fill sends n datagrams.
func fill(t testing.TB, c *Conn, n int) {
	for range n {
		if err := c.Write(full); err != nil {
			t.Fatal(err)
		}
	}
}

// drain reads n datagrams.
func drain(t testing.TB, c *Conn, ds []Datagram, n int) {
	for n > 0 {
		got, err := c.ReadBatch(ds)
		if err != nil {
			t.Fatalf("%d datagrams missing: %v", n, err)
		}
		n -= got
	}
}

func TestNothingIsAllocatedPerDatagram(t *testing.T) {
	j, k := pair(t)
	for _, cfg := range []Config{byEth24, byEth2, {Group: zoned6, TTL: 1}} {
		t.Run(cfg.Group.String(), func(t *testing.T) {
			cj, ck := open(t, j, cfg), open(t, k, cfg)
			deadline(t, ck)
			const n = 16
			ds := NewDatagrams(n, MaxDatagram)
			alone := netip.AddrPortFrom(ck.Local().Source, ck.Local().Port)
			if allocs := testing.AllocsPerRun(100, func() {
				fill(t, cj, n)
				drain(t, ck, ds, n)
				for range n {
					if err := cj.WriteTo(full, alone); err != nil {
						t.Fatal(err)
					}
				}
				drain(t, ck, ds, n)
			}); allocs != 0 {
				t.Errorf("%d datagrams sent and read: %v allocations", n, allocs)
			}
		})
	}
}

// room is how many full datagrams the receive buffers of the benchmarks hold
// with certainty.
const room = 1024

func BenchmarkSend(b *testing.B) {
	j, _ := pair(b) // nobody listens: a receiver's work is not the sender's
	for _, cfg := range []Config{byEth24, byEth2} {
		b.Run(family(cfg), func(b *testing.B) {
			cj := open(b, j, cfg)
			b.SetBytes(int64(len(full)))
			b.ReportAllocs()
			for b.Loop() {
				if err := cj.Write(full); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkReceive sets ReadBatch beside x/net's.
func BenchmarkReceive(b *testing.B) {
	j, k := pair(b)
	for _, cfg := range []Config{byEth24, byEth2} {
		for _, n := range []int{1, 8, maxBatch} {
			for _, by := range []struct {
				name   string
				reader func(b *testing.B, c *Conn, n int) (read func() (int, error))
			}{{"ours", ourReader}, {"xnet", xnetReader}} {
				b.Run(fmt.Sprintf("%v/batch=%d/%s", family(cfg), n, by.name), func(b *testing.B) {
					cj, ck := open(b, j, cfg), open(b, k, cfg)
					deadline(b, ck)
					read := by.reader(b, ck, n)
					b.SetBytes(int64(len(full)))
					b.ReportAllocs()
					for left := b.N; left > 0; left -= room {
						m := min(left, room)
						b.StopTimer()
						fill(b, cj, m)
						b.StartTimer()
						for m > 0 {
							got, err := read()
							if err != nil {
								b.Fatalf("%d datagrams missing: %v", m, err)
							}
							m -= got
						}
					}
					if drops := ck.Drops(); drops != 0 {
						b.Fatalf("%d drops", drops)
					}
				})
			}
		}
	}
}

func ourReader(_ *testing.B, c *Conn, n int) (read func() (int, error)) {
	ds := NewDatagrams(n, MaxDatagram)
	return func() (int, error) { return c.ReadBatch(ds) }
}

func xnetReader(b *testing.B, c *Conn, n int) (read func() (int, error)) {
	ms := make([]ipv4.Message, n) // the type is IPv6's too
	for i, d := range NewDatagrams(n, MaxDatagram) {
		ms[i].Buffers = [][]byte{d.Payload[:MaxDatagram]}
	}
	m, _ := c.multicaster(viaNet(b, c))
	conn := m.(interface {
		ReadBatch(ms []ipv4.Message, flags int) (int, error)
	})
	return func() (int, error) { return conn.ReadBatch(ms, 0) }
}

// viaNet is c's socket for the group as the standard library's.
func viaNet(t testing.TB, c *Conn) *net.UDPConn {
	t.Helper()
	conn, err := net.FilePacketConn(c.read)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetReadDeadline(time.Now().Add(10 * limit)); err != nil {
		t.Fatal(err)
	}
	return conn.(*net.UDPConn)
}

// BenchmarkReceiveByNet is what the standard library's socket costs, a datagram
// at a time, beside BenchmarkReceive.
func BenchmarkReceiveByNet(b *testing.B) {
	j, k := pair(b)
	cj, ck := open(b, j, byEth2), open(b, k, byEth2)
	deadline(b, ck)
	conn, buf := viaNet(b, ck), make([]byte, MaxDatagram)
	b.SetBytes(int64(len(full)))
	b.ReportAllocs()
	for left := b.N; left > 0; left -= room {
		m := min(left, room)
		b.StopTimer()
		fill(b, cj, m)
		b.StartTimer()
		for range m {
			if _, _, _, _, err := conn.ReadMsgUDPAddrPort(buf, nil); err != nil {
				b.Fatal(err)
			}
		}
	}
}

// BenchmarkSendByNet is the same for sending.
func BenchmarkSendByNet(b *testing.B) {
	j, _ := pair(b)
	cj := open(b, j, byEth2)
	b.SetBytes(int64(len(full)))
	b.ReportAllocs()
	var conn net.PacketConn = cj.write
	to := net.UDPAddrFromAddrPort(group6)
	for range b.N {
		if _, err := conn.WriteTo(full, to); err != nil {
			b.Fatal(err)
		}
	}
}

func family(cfg Config) string {
	if cfg.Group.Addr().Is4() {
		return "IPv4"
	}
	return "IPv6"
}
