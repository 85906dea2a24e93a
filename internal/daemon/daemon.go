// Package daemon owns the two ways of a session: from the kernel to the network
// and from the network to the kernel. It wires the other packages together and
// keeps them going while the module, the instance and the interface come and go.
// It does not parse flags.
package daemon

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"net/netip"
	"os"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"joold/internal/alarm"
	"joold/internal/brief"
	"joold/internal/config"
	"joold/internal/control"
	"joold/internal/logging"
	"joold/internal/mcast"
	"joold/internal/nlchan"
	"joold/internal/session"
	"joold/internal/wire"
)

// kernel is what the daemon needs of an instance: *nlchan.Conn in earnest.
type kernel interface {
	Module() nlchan.Module
	Hold(late func(entries int) bool)
	Receive(buf []byte) (nlchan.Message, error)
	Ack() error
	Add(s []session.Session, p session.Pool6) error
	RemoveBIB(ctx context.Context, p session.Proto, src6, src4 netip.AddrPort) error
	Sessions(ctx context.Context, proto session.Proto, p session.Pool6, page func([]session.Session) error) error
	Globals(ctx context.Context) (nlchan.Globals, error)
	Update(ctx context.Context, s nlchan.Settings) error
	Stats(ctx context.Context) (nlchan.Stats, error)
	Pool4(ctx context.Context) ([]nlchan.Pool4Entry, error)
	StaticBIB(ctx context.Context, page func(entries int) error) ([]nlchan.BIBEntry, error)
	Counters() nlchan.Counters
	SetReadDeadline(t time.Time) error
	Close() error
}

// watcher is what the daemon needs of a *nlchan.Watcher.
type watcher interface {
	Run(ctx context.Context, f func(nlchan.Event)) error
	Close() error
}

// network is what the daemon needs of the group, or of peers: *mcast.Conn, *mcast.Links
// or *mcast.Peers in earnest.
type network interface {
	ReadBatch(d []mcast.Datagram) (int, error)
	Write(b []byte) error
	WriteTo(b []byte, to netip.AddrPort) error
	MaxPayload() int
	Check() (mcast.Change, error)
	Carrier() bool
	SetReadDeadline(t time.Time) error
	Local() mcast.Local
	Drops() uint64
	Close() error
}

var (
	_ kernel  = (*nlchan.Conn)(nil)
	_ watcher = (*nlchan.Watcher)(nil)
	_ network = (*mcast.Conn)(nil)
	_ network = (*mcast.Links)(nil)
	_ network = (*mcast.Peers)(nil)
)

// Options are what the process around a Daemon gives it.
type Options struct {
	Version string
	Log     *slog.Logger
	Queue   *logging.Queue // in which Log's lines wait; nil if there is none
	Level   *slog.LevelVar // Log's, for a configuration that changes it

	// Hangup asks for the configuration to be read again, which Load does.
	Hangup <-chan os.Signal
	Load   func() (*config.Config, error)
}

// Daemon serves one instance.
type Daemon struct {
	Options
	fixed   *config.Config                // as it was at the start
	live    atomic.Pointer[config.Config] // as it is now, where it may change while the daemon runs
	limit   *logging.Limiter
	about   [parts]logging.Latest // for whether they are there
	carrier logging.Latest        // for whether the group's interface has one
	links   links                 // for each of several links
	done    logging.Latest        // for what it has done, and what it found
	started time.Time
	name    string // this node's, for people

	notePath string // of the note for the next daemon; "" if there is none

	open       func(context.Context) (network, error)
	dial       func() (kernel, error)
	newWatcher func() (watcher, error)
	newAlarm   func(f func()) *alarm.Alarm
	watchPath  func(ctx context.Context, changed func()) error // calls changed when an interface or an address has

	current     atomic.Pointer[network] // the group, while it is there
	link        atomic.Pointer[link]    // the instance, while it is there
	pathLost    time.Time               // when the path to the open group was; zero while it is there; followPath's
	carrierLost time.Time               // when its interface's carrier was; likewise
	pathChanged chan struct{}           // holds a token when an interface or address has changed
	out         *outlet
	signer      *wire.Signer
	repairs     repairs
	sweeps      chan struct{} // holds a token for each advertisement that runs or waits
	advertising chan struct{} // holds one while an advertisement runs
	sweeping    chan struct{} // holds one while a sweep runs that is not slow

	flapInterval time.Duration // the pause when a link has ended at once

	condition condition
	work      work
	saidOff   atomic.Bool // that the instance has session synchronization off
	count     counters
	conflicts conflicts
	peers     peers
}

// Run serves until ctx ends. What is not there yet, or goes away, it waits for:
// module, instance, interface, address. It fails at once when waiting will not
// help: no privilege, no group that could be one, another daemon in its place.
func Run(ctx context.Context, cfg *config.Config, o Options) error {
	d := newDaemon(cfg, o)
	d.open = d.openGroup
	d.dial = func() (kernel, error) {
		return nlchan.Dial(cfg.Instance, nlchan.PerMessage(perAdd), nlchan.ReadBuffer(channelBuffer))
	}
	d.newWatcher = func() (watcher, error) { return nlchan.NewWatcher() }
	d.wakeBy(alarm.New)
	defer d.out.close()
	d.watchPath = func(ctx context.Context, changed func()) error {
		group, err := cfg.ResolveGroup(ctx)
		if err != nil {
			return err
		}
		return watchPath(ctx, groupConfigs(cfg, group)[0], changed)
	}

	server, path, err := listenControl(cfg)
	if errors.Is(err, control.ErrInUse) {
		return err
	} else if err != nil {
		// Sessions matter more than questions about them.
		d.Log.Warn("cannot be asked for status or advertisements", "err", err)
	}
	g, ctx := errgroup.WithContext(ctx)
	if server != nil {
		d.notePath = strings.TrimSuffix(path, ".sock") + ".note"
		defer server.Close()
		g.Go(func() error { return server.Serve(ctx, d.handle) })
	}
	if cfg.Stats {
		g.Go(func() error { return d.serveStats(ctx) })
	}
	g.Go(func() error { return d.watchdog(ctx) })
	g.Go(func() error { return d.followReloads(ctx) })
	g.Go(func() error { return d.run(ctx) })
	g.Go(func() error {
		<-ctx.Done() // before the others have ended, which may take a while
		d.condition.ended()
		return nil
	})
	return g.Wait()
}

// openGroup opens the group of the configuration, or its peers, or both.
func (d *Daemon) openGroup(ctx context.Context) (network, error) {
	group, err := d.fixed.ResolveGroup(ctx)
	if err != nil {
		return nil, err
	}
	cfgs := groupConfigs(d.fixed, group)
	switch {
	case len(d.fixed.Peers) > 0:
		return mcast.OpenPeers(cfgs[0], d.fixed.Port, d.fixed.Peers)
	case len(cfgs) > 1:
		return mcast.OpenLinks(cfgs)
	}
	return mcast.Open(cfgs[0])
}

// groupConfigs are the group's, one a link.
func groupConfigs(cfg *config.Config, group netip.AddrPort) (cfgs []mcast.Config) {
	for _, l := range cfg.Links() {
		cfgs = append(cfgs, mcast.Config{
			Group: group, In: l.In, Out: l.Out, TTL: cfg.TTL, NoReuse: !cfg.ReuseAddr, ReadBuffer: cfg.ReadBuffer,
		})
	}
	return cfgs
}

func listenControl(cfg *config.Config) (s *control.Server, path string, err error) {
	if path = cfg.ControlSocket; path == "" {
		if path, err = control.Path(cfg.Instance); err != nil {
			return nil, "", err
		}
	}
	s, err = control.Listen(path)
	return s, path, err
}

func newDaemon(cfg *config.Config, o Options) *Daemon {
	d := &Daemon{
		Options: o, fixed: cfg, limit: logging.NewLimiter(o.Log), started: time.Now(),
		pathChanged: make(chan struct{}, 1),
		repairs:     newRepairs(),
		sweeps:      make(chan struct{}, maxSweeps), advertising: make(chan struct{}, 1), sweeping: make(chan struct{}, 1),
		flapInterval: retryInterval,
		signer:       wire.NewSigner(cfg.Cluster, cfg.Keys, cfg.Encrypt, brief.Random()), // a call for each datagram that is signed
	}
	if d.name, _ = os.Hostname(); d.name == "" {
		d.name = "unnamed"
	}
	d.live.Store(cfg)
	d.work.init(d.started)
	for p := range d.about {
		d.about[p] = logging.NewLatest(o.Log)
	}
	d.carrier, d.done = logging.NewLatest(o.Log), logging.NewLatest(o.Log)
	d.condition.init(d.about, d.limit)
	d.out = newOutlet(d)
	d.wakeBy(alarm.Go)
	return d
}

// wakeBy has the daemon woken by alarms of a kind. Nothing waits for one yet.
func (d *Daemon) wakeBy(kind func(f func()) *alarm.Alarm) {
	d.newAlarm = kind
	d.out.timer, d.out.member.timer = kind(d.out.ring), kind(d.out.tick)
}

// tableLimit is how many sessions are remembered: what the configuration says,
// or what takes half of the memory that GOMEMLIMIT grants, if that is less.
func tableLimit(cfg *config.Config) int {
	limit := debug.SetMemoryLimit(-1)
	if limit == math.MaxInt64 {
		return cfg.Table
	}
	const perSession = 128 // bytes: what batch.Table promises
	return int(max(1, min(int64(cfg.Table), limit/2/perSession)))
}

// run keeps both ways going until ctx ends.
func (d *Daemon) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return d.serve(ctx) })
	g.Go(func() error { return d.listen(ctx) })
	g.Go(func() error { return d.followPath(ctx) })
	defer func() {
		for _, log := range append(d.about[:], d.carrier, d.done) {
			log.Flush()
		}
		d.links.flush()
		d.out.standing.flush()
	}()
	return g.Wait()
}

// debugs tells whether debug lines are wanted.
func (d *Daemon) debugs(ctx context.Context) bool { return d.Log.Enabled(ctx, slog.LevelDebug) }
