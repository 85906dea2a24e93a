// Package daemon owns the two ways of a session: from the kernel to the network
// and from the network to the kernel. It wires the other packages together and
// keeps them going while the module and the instance come and go. It does not
// parse flags.
package daemon

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"joold/internal/config"
	"joold/internal/control"
	"joold/internal/logging"
	"joold/internal/mcast"
	"joold/internal/nlchan"
	"joold/internal/session"
)

// kernel is what the daemon needs of an instance: *nlchan.Conn in earnest.
type kernel interface {
	Module() nlchan.Module
	Receive(buf []byte) (nlchan.Message, error)
	Ack() error
	Add(s []session.Session, p session.Pool6) error
	Sessions(ctx context.Context, proto session.Proto, p session.Pool6, page func([]session.Session) error) error
	Globals(ctx context.Context) (nlchan.Globals, error)
	Pool4(ctx context.Context) ([]nlchan.Pool4Entry, error)
	StaticBIB(ctx context.Context) ([]nlchan.BIBEntry, error)
	Counters() nlchan.Counters
	SetReadDeadline(t time.Time) error
	Close() error
}

// watcher is what the daemon needs of a *nlchan.Watcher.
type watcher interface {
	Run(ctx context.Context, f func(nlchan.Event)) error
	Close() error
}

// network is what the daemon needs of the group: *mcast.Conn in earnest.
type network interface {
	ReadBatch(d []mcast.Datagram) (int, error)
	SetWriteDeadline(t time.Time) error
	Write(b []byte) error
	MaxPayload() int
	Refresh() error
	SetReadDeadline(t time.Time) error
	Local() mcast.Local
	Drops() uint64
	Close() error
}

var (
	_ kernel  = (*nlchan.Conn)(nil)
	_ watcher = (*nlchan.Watcher)(nil)
	_ network = (*mcast.Conn)(nil)
)

// Daemon serves one instance.
type Daemon struct {
	cfg     *config.Config
	log     *slog.Logger
	debug   bool // whether log takes debug lines: asked once, not per message
	limit   *logging.Limiter
	version string
	started time.Time

	open       func() (network, error)
	dial       func() (kernel, error)
	newWatcher func() (watcher, error)
	current    atomic.Pointer[network]
	link       atomic.Pointer[link] // the instance, while it is there
	out        *outlet
	sweeps     chan struct{} // holds a token for each advertisement that runs or waits
	sweeping   chan struct{} // holds one while an advertisement runs

	flapInterval time.Duration // the pause when a link has ended at once

	waitingFor atomic.Value // string; why there is no link
	saidOff    atomic.Bool  // that the instance has session synchronization off
	pathLost   atomic.Bool  // the path to the group was away
	count      counters
	peers      peers
}

// Run serves until ctx ends. It fails at once when there is nothing to serve:
// no module, no instance, no such interface, no privilege. Once in service, it
// waits for whatever goes away to return.
func Run(ctx context.Context, cfg *config.Config, version string, log *slog.Logger) error {
	group, err := cfg.ResolveGroup(ctx)
	if err != nil {
		return err
	}
	d := newDaemon(cfg, version, log)
	d.open = func() (network, error) {
		return mcast.Open(mcast.Config{Group: group, In: cfg.In, Out: cfg.Out, TTL: cfg.TTL, NoReuse: !cfg.ReuseAddr})
	}
	d.dial = func() (kernel, error) { return nlchan.Dial(cfg.Instance, nlchan.PerMessage(perAdd)) }
	d.newWatcher = func() (watcher, error) { return nlchan.NewWatcher() }

	conn, err := d.open()
	if err != nil {
		return err
	}
	d.setGroup(conn)
	defer func() { d.group().Close() }()
	first, err := d.connect(ctx)
	if err != nil {
		return err
	}
	defer first.Close()

	var stats net.PacketConn
	if cfg.Stats {
		if stats, err = listenStats(ctx, cfg); err != nil {
			return err
		}
		defer stats.Close()
	}
	server, err := listenControl(cfg)
	if errors.Is(err, control.ErrInUse) {
		return err
	} else if err != nil {
		// Sessions matter more than questions about them.
		log.Warn("cannot be asked for status or advertisements", "err", err)
	}

	if server != nil {
		defer server.Close()
	}

	g, ctx := errgroup.WithContext(ctx)
	if stats != nil {
		g.Go(func() error { return d.serveStats(ctx, stats) })
	}
	if server != nil {
		g.Go(func() error { return server.Serve(ctx, d.handle) })
	}
	g.Go(func() error { return d.run(ctx, first) })
	return g.Wait()
}

func listenControl(cfg *config.Config) (*control.Server, error) {
	path := cfg.ControlSocket
	if path == "" {
		var err error
		if path, err = control.Path(cfg.Instance); err != nil {
			return nil, err
		}
	}
	return control.Listen(path)
}

func newDaemon(cfg *config.Config, version string, log *slog.Logger) *Daemon {
	d := &Daemon{
		cfg: cfg, log: log, debug: log.Enabled(context.Background(), slog.LevelDebug), limit: logging.NewLimiter(log), version: version, started: time.Now(),
		sweeps: make(chan struct{}, maxSweeps), sweeping: make(chan struct{}, 1),
		flapInterval: 2 * time.Second,
	}
	d.out = newOutlet(d)
	d.waitingFor.Store("joold has just started")
	return d
}

// group is the group as it is open now, or was before it was lost.
func (d *Daemon) group() network { return *d.current.Load() }

func (d *Daemon) setGroup(n network) { d.current.Store(&n) }

// run keeps both ways going until ctx ends.
func (d *Daemon) run(ctx context.Context, first *link) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return d.serve(ctx, first) })
	g.Go(func() error { return d.listen(ctx) })
	return g.Wait()
}
