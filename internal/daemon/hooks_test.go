package daemon

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"

	"joold/internal/config"
	"joold/internal/mcast"
	"joold/internal/nlchan"
	"joold/internal/session"
	"joold/internal/wire"
)

// hookedKernel is a model kernel whose sessions age, and of which a test can make
// each answer late or an error. Each hook runs before its answer is given.
type hookedKernel struct {
	*modelKernel
	made time.Time // the table's expirations count from then

	hooks                                  sync.Mutex
	onAck, onAdd, onGlobals, onDump, onSet func() error
	globalsLate                            time.Duration // how long after they were given the settings are read
	messagesLost                           uint64
	receiveErr                             chan error
}

func newHookedKernel(e session.Encoding) *hookedKernel {
	return &hookedKernel{modelKernel: newModelKernel(e), made: time.Now(), receiveErr: make(chan error)}
}

// times are when something happened.
type times struct {
	mu sync.Mutex
	at []time.Time
}

func (t *times) note() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.at = append(t.at, time.Now())
}

// taken is what was noted since it was asked for last.
func (t *times) taken() (at []time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	at, t.at = t.at, nil
	return at
}

// hook changes the hooks.
func (k *hookedKernel) hook(change func()) {
	k.hooks.Lock()
	defer k.hooks.Unlock()
	change()
}

func (k *hookedKernel) call(hook *func() error) error {
	k.hooks.Lock()
	f := *hook
	k.hooks.Unlock()
	if f == nil {
		return nil
	}
	return f()
}

func (k *hookedKernel) Receive(buf []byte) (nlchan.Message, error) {
	select {
	case m := <-k.announced:
		return k.message(buf, m), nil
	case <-k.overrun:
		return nlchan.Message{}, nlchan.ErrOverrun
	case err := <-k.receiveErr:
		return nlchan.Message{}, err
	case <-k.closed:
		return nlchan.Message{}, os.ErrDeadlineExceeded
	}
}

func (k *hookedKernel) Ack() error {
	if err := k.call(&k.onAck); err != nil {
		return err
	}
	return k.modelKernel.Ack()
}

func (k *hookedKernel) Add(s []session.Session, p session.Pool6) error {
	if err := k.call(&k.onAdd); err != nil {
		return err
	}
	return k.modelKernel.Add(s, p)
}

func (k *hookedKernel) Globals(ctx context.Context) (nlchan.Globals, error) {
	if err := k.call(&k.onGlobals); err != nil {
		return nlchan.Globals{}, err
	}
	g, err := k.modelKernel.Globals(ctx)
	k.hooks.Lock()
	late := k.globalsLate
	k.hooks.Unlock()
	time.Sleep(late)
	return g, err
}

func (k *hookedKernel) Update(ctx context.Context, s nlchan.Settings) error {
	if err := k.call(&k.onSet); err != nil {
		return err
	}
	return k.modelKernel.Update(ctx, s)
}

func (k *hookedKernel) Counters() nlchan.Counters {
	k.hooks.Lock()
	defer k.hooks.Unlock()
	return nlchan.Counters{Drops: k.messagesLost}
}

// Sessions yields what of the table still lives. Each walk through the table
// begins with TCP, which is when onDump runs.
func (k *hookedKernel) Sessions(_ context.Context, proto session.Proto, _ session.Pool6, page func([]session.Session) error) error {
	if proto == session.Protos[0] {
		if err := k.call(&k.onDump); err != nil {
			return err
		}
	}
	age := time.Since(k.made).Milliseconds()
	var living []session.Session
	k.mu.Lock()
	for _, s := range k.table {
		if s.Proto == proto && int64(s.Expiration) > age {
			s.Expiration -= uint32(age)
			living = append(living, s)
		}
	}
	k.mu.Unlock()
	for chunk := range slices.Chunk(living, 25) {
		if err := page(chunk); err != nil {
			return err
		}
	}
	return nil
}

// has puts sessions into the table, of which the kernel says nothing.
func (k *hookedKernel) has(ss ...session.Session) {
	k.set(func() { k.table = append(k.table, ss...) })
}

// announce puts a session into the table, or brings it up to date, and says so.
func (k *hookedKernel) announce(s session.Session) {
	k.set(func() {
		s.Expiration += uint32(time.Since(k.made).Milliseconds())
		k.table = append(slices.DeleteFunc(k.table, func(old session.Session) bool { return old.Src6Port == s.Src6Port }), s)
		s.Expiration -= uint32(time.Since(k.made).Milliseconds())
	})
	k.announced <- encode(k.module.Encoding, wkp, s)
}

// refusingGroup is a model group whose writes fail while the test wants it.
type refusingGroup struct {
	*modelGroup
	err    atomic.Pointer[error]
	writes atomic.Int64
}

func (g *refusingGroup) refuse(err error) { g.err.Store(&err) }

func (g *refusingGroup) Write(b []byte) error {
	if dg, _ := wire.Parse(b); dg.Number < wire.Apart {
		g.writes.Add(1)
	}
	if err := g.err.Load(); err != nil && *err != nil {
		return *err
	}
	return g.modelGroup.Write(b)
}

// startRefusing runs a daemon for a hooked kernel and a group that may refuse.
func startRefusing(t *testing.T) (*bench, *hookedKernel, *refusingGroup) {
	k, b := newHookedKernel(session.Enc4113), bench0(t, testConfig(), 0)
	g := &refusingGroup{modelGroup: b.g}
	b.open = func(context.Context) (network, error) { return g, nil }
	b.dial = func() (kernel, error) { return k, nil }
	b.run()
	return b, k, g
}

// startHooked runs a daemon for k until the test ends. It is for a test in a
// synctest bubble, and returns when the daemon has come to rest.
func startHooked(t *testing.T, k *hookedKernel, change func(*config.Config)) *bench {
	t.Helper()
	cfg := testConfig()
	if change != nil {
		change(cfg)
	}
	b := bench0(t, cfg, 0)
	b.k = k.modelKernel
	b.dial = func() (kernel, error) { return k, nil }
	b.run()
	eventually(t, "the daemon is in service", b.serves)
	return b
}

// away is a bench whose daemon finds neither instance nor group until it is
// given them. It does not run yet.
type away struct {
	*bench
	instance atomic.Pointer[hookedKernel]
	why      atomic.Pointer[error] // why there is none
	there    atomic.Bool           // the group
}

func newAway(t *testing.T) *away {
	a := &away{bench: bench0(t, testConfig(), 0)}
	a.fails(&nlchan.Error{Op: "find", Instance: "edge", Err: nlchan.ErrNoInstance})
	a.dial = func() (kernel, error) {
		if k := a.instance.Load(); k != nil {
			return k, nil
		}
		return nil, *a.why.Load()
	}
	a.open = func(context.Context) (network, error) {
		if a.there.Load() {
			return a.g, nil
		}
		return nil, &mcast.Error{Op: "join", Device: "eth2", Err: mcast.ErrNoInterface}
	}
	return a
}

// startThere runs a daemon whose instance and group are there, and may go away.
func startThere(t *testing.T) (*away, *hookedKernel) {
	a, k := newAway(t), newHookedKernel(session.Enc4113)
	a.instance.Store(k)
	a.there.Store(true)
	a.run()
	return a, k
}

func (a *away) fails(err error) { a.why.Store(&err) }

// serviceManager listens where systemd would, and returns what yields all that it
// was told since it was asked last.
func serviceManager(t *testing.T) (told func() []string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "joold") // t.TempDir's is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	t.Setenv("NOTIFY_SOCKET", path)

	// The kernel holds ten datagrams at the most, so that they are read at once.
	const asked = "asked"
	answer := make(chan []string)
	go func() {
		var all []string
		buf := make([]byte, 4096)
		for {
			n, err := conn.Read(buf)
			if err != nil {
				return
			}
			if s := string(buf[:n]); s != asked {
				all = append(all, strings.Split(s, "\n")...)
				continue
			}
			answer <- all
			all = nil
		}
	}()
	return func() []string {
		if _, err := sd.SdNotify(false, asked); err != nil {
			t.Fatal(err)
		}
		return <-answer
	}
}
