package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"syscall"
	"time"

	"joold/internal/config"
)

// listenStats opens the statistics socket of the C daemon's kind. As there, "::"
// serves IPv4 as well, and 0.0.0.0 does not serve IPv6.
func listenStats(ctx context.Context, cfg *config.Config) (net.PacketConn, error) {
	network := "udp"
	if a, err := netip.ParseAddr(cfg.StatsAddr); err == nil && a.Is4() {
		network = "udp4"
	}
	var lc net.ListenConfig
	conn, err := lc.ListenPacket(ctx, network, net.JoinHostPort(cfg.StatsAddr, strconv.Itoa(int(cfg.StatsPort))))
	if err != nil {
		return nil, fmt.Errorf("statistics socket: %w: choose another --stats.address or --stats.port", err)
	}
	return conn, nil
}

// serveStats opens the statistics socket, as soon as its address is there, and
// answers whatever datagram comes with the C daemon's six lines.
func (d *Daemon) serveStats(ctx context.Context) error {
	for first := true; ; first = false {
		conn, err := listenStats(ctx, d.fixed)
		if err == nil {
			return d.answerStats(ctx, conn)
		}
		if first && errors.Is(err, syscall.EADDRINUSE) { // a mistake at the start; later, sessions matter more
			return err
		}
		d.limit.Warn("cannot serve statistics yet", "err", err)
		if !pause(ctx, time.Second) {
			return nil
		}
	}
}

func (d *Daemon) answerStats(ctx context.Context, conn net.PacketConn) error {
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	query := make([]byte, 1)
	for {
		_, from, err := conn.ReadFrom(query)
		if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			if !pause(ctx, 100*time.Millisecond) {
				return nil
			}
			continue
		}
		if _, err := conn.WriteTo(d.statsLines(), from); err != nil {
			d.limit.Warn("cannot answer a query for statistics", "from", from, "err", err)
		}
	}
}

// statsLines are the C daemon's statistics: what the kernel sent, whatever its
// manual says, and what crossed the network.
func (d *Daemon) statsLines() []byte {
	c := &d.count
	return fmt.Appendf(nil, "KERNEL_SENT_PKTS,%d\nKERNEL_SENT_BYTES,%d\n"+
		"NET_RCVD_PKTS,%d\nNET_RCVD_BYTES,%d\nNET_SENT_PKTS,%d\nNET_SENT_BYTES,%d\n",
		c.kernelMessages.Load(), c.kernelBytes.Load(),
		c.rcvdDatagrams.Load(), c.rcvdBytes.Load(), c.sentDatagrams.Load(), c.sentBytes.Load())
}
