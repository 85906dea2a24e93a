package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"joold/internal/config"
	"joold/internal/nlchan"
	"joold/internal/session"
)

// configOf is what a command line makes of the defaults.
func configOf(t *testing.T, args ...string) *config.Config {
	t.Helper()
	cfg, err := config.Parse(append([]string{"ff08::db8:64:64", "-i", "edge"}, args...))
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// fresh makes k an instance of that version which nobody configured.
func fresh(k *hookedKernel, revision uint8) *hookedKernel {
	k.module.Version = nlchan.Version{Major: 4, Minor: 1, Revision: revision}
	k.module.Encoding = k.module.Version.Encoding()
	k.globals.SyncEnabled = false
	for knob, value := range map[nlchan.Knob]uint32{
		nlchan.SSEnabled: 0, nlchan.SSFlushASAP: 1, nlchan.SSFlushDeadline: 2000, nlchan.SSCapacity: 512, nlchan.SSMaxPayload: 1452,
	} {
		k.globals.Set(knob, value)
	}
	if revision >= 11 {
		k.globals.Set(nlchan.SSMaxSessionsPerPacket, 36)
	}
	return k
}

func TestAnInstanceIsSetUpAsItsVersionNeedsItAndTheLogSaysFromWhatToWhat(t *testing.T) {
	const (
		enable   = "ss-enabled 0 1"
		asap     = "ss-flush-asap 1 0"
		deadline = "ss-flush-deadline 2000 20"
		capacity = "ss-capacity 512 16384"
		payload  = "ss-max-payload 1452 2048"
	)
	for _, c := range []struct {
		revision uint8
		args     []string
		want     []string
	}{
		{9, nil, []string{asap, deadline, capacity, payload}},
		{10, nil, []string{asap, deadline, capacity, payload}},
		{11, nil, []string{deadline, capacity}},
		{13, nil, []string{deadline, capacity}},
		{15, nil, []string{deadline, capacity}},
		{9, []string{"--mod.flush-deadline", "keep"}, []string{capacity, payload}},
		{9, []string{"--mod.capacity", "keep"}, []string{asap, deadline}},
		{9, []string{"--mod.flush-deadline", "keep", "--mod.capacity", "keep"}, nil},
		{15, []string{"--mod.flush-deadline", "keep"}, []string{capacity}},
		{15, []string{"--mod.capacity", "keep"}, []string{deadline}},
		{15, []string{"--mod.enable"}, []string{enable, deadline, capacity}},
		{15, []string{"--mod.capacity", "512"}, []string{deadline}},
		{15, []string{"--mod.capacity", "100"}, []string{deadline}}, // it is only raised
		{15, []string{"--mod.flush-deadline", "2s"}, []string{capacity}},
		{15, []string{"--mod.flush-deadline", "3s", "--mod.capacity", "600"}, []string{"ss-flush-deadline 2000 3000", "ss-capacity 512 600"}},
	} {
		t.Run(fmt.Sprint("4.1.", c.revision, c.args), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := fresh(newHookedKernel(0), c.revision)
				before := k.globals
				b := startHooked(t, k, func(cfg *config.Config) { *cfg = *configOf(t, c.args...) })
				time.Sleep(time.Hour)

				wanted := before.Settings
				for _, change := range c.want {
					var name string
					var from, to uint32
					fmt.Sscan(change, &name, &from, &to)
					for knob := range before.All() {
						if knob.String() == name {
							wanted.Set(knob, to)
						}
					}
					line := fmt.Sprintf("setting=%s from=%d to=%d\n", name, from, to)
					if change == asap || change == enable {
						line = fmt.Sprintf("setting=%s from=%t to=%t\n", name, from != 0, to != 0)
					}
					if strings.Count(b.logs.String(), line) != 1 {
						t.Errorf("the log does not say once %q", line)
					}
				}
				k.set(func() {
					if k.globals.Settings != wanted {
						t.Errorf("the settings are %v, want %v", k.globals.Settings, wanted)
					}
				})
				if n := strings.Count(b.logs.String(), "changed a setting"); n != len(c.want) {
					t.Errorf("%d lines of changes in the log", n)
				}
				if on := b.status(time.Now()).Instance.SyncEnabled; on != strings.Contains(fmt.Sprint(c.want), enable) {
					t.Errorf("status says that synchronization is on: %v", on)
				}
			})
		})
	}
}

func TestAnInstanceThatCannotBeSetUpIsServedAndSetUpWhenItCanBe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := fresh(newHookedKernel(0), 15)
		k.globals.SyncEnabled = true
		k.globals.Set(nlchan.SSEnabled, 1)
		attempts := 0
		k.onSet = func() error {
			attempts++
			return &nlchan.Error{Op: "change the settings", Instance: "edge", Err: nlchan.ErrOutsidePool4}
		}
		b := startHooked(t, k, func(cfg *config.Config) { *cfg = *configOf(t) })
		k.announce(udp(1, 300_000))
		b.g.in <- encode(session.Enc4113, wkp, udp(2, 300_000))
		time.Sleep(59 * time.Second)
		if all, _ := b.g.sent(wkp); len(all) != 1 || len(k.taken()) != 1 {
			t.Errorf("%d sessions were sent and %d given to the kernel, want one each", len(all), len(k.taken()))
		}
		if n := strings.Count(b.logs.String(), "cannot set the instance up"); n != 1 {
			t.Errorf("%d warnings in a minute", n)
		}
		k.hook(func() {
			if attempts < 4 || attempts > 7 {
				t.Errorf("%d attempts in a minute", attempts)
			}
			k.onSet = nil
		})
		time.Sleep(setUpInterval + idleInterval)
		k.set(func() {
			if c, _ := k.globals.Get(nlchan.SSCapacity); c != 16384 {
				t.Errorf("ss-capacity is still %d", c)
			}
		})
		k.hook(func() { k.onSet = func() error { attempts = -1; return nil } })
		time.Sleep(time.Hour)
		k.hook(func() {
			if attempts == -1 {
				t.Error("what is set up was set up again")
			}
		})
	})
}

func TestWithoutPrivilegeToSetTheInstanceUpTheDaemonEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := fresh(newHookedKernel(0), 15)
		k.onSet = func() error { return &nlchan.Error{Op: "change the settings", Err: nlchan.ErrPermission} }
		b := bench0(t, configOf(t), 0)
		b.dial = func() (kernel, error) { return k, nil }
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		if err := b.Daemon.run(ctx); !errors.Is(err, nlchan.ErrPermission) {
			t.Errorf("ended with %v", err)
		}
	})
}

// reloads is a daemon in service whose configuration file is what the test says.
func reloads(t *testing.T, k *hookedKernel) (b *bench, rewrite func(*config.Config, error)) {
	b = bench0(t, configOf(t), 0)
	b.k = k.modelKernel
	b.dial = func() (kernel, error) {
		select {
		case next := <-b.dials:
			return next.k, next.err
		default:
			return k, nil
		}
	}
	var next *config.Config
	var broken error
	b.Load = func() (*config.Config, error) { return next, broken }
	b.run()
	time.Sleep(time.Minute)
	return b, func(cfg *config.Config, err error) {
		next, broken = cfg, err
		b.reloads <- nil
		time.Sleep(time.Minute)
	}
}

func TestAReloadAppliesWhatCanBeAndNamesWhatCannot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := fresh(newHookedKernel(0), 15)
		b, rewrite := reloads(t, k)
		said := len(b.logs.String())
		rewrite(configOf(t, "--mod.flush-deadline", "50ms", "--mod.capacity", "20000", "--mod.enable", "--batch.refresh", "30s",
			"--batch.deadline", "1s", "--net.source", "192.0.2.0/24", "--net.hop-limit", "255", "--log.level", "debug",
			"--net.wire", "4.1.11", "--batch.table", "10", "--net.mcast.port", "7000"), nil)

		log := b.logs.String()[said:]
		applied, fixed := "", ""
		for line := range strings.Lines(log) {
			switch {
			case strings.Contains(line, "read the configuration again"):
				applied = line
			case strings.Contains(line, "take a new start"):
				fixed = line
			}
		}
		for _, name := range []string{"mod.flush-deadline", "mod.capacity", "mod.enable", "batch.refresh", "batch.deadline",
			"net.source", "net.hop-limit", "log.level"} {
			if !strings.Contains(applied, name) || strings.Contains(fixed, name) {
				t.Errorf("%s: applied %q, fixed %q", name, applied, fixed)
			}
		}
		for _, name := range []string{"net.wire", "batch.table", "net.mcast.port"} {
			if !strings.Contains(fixed, name) || strings.Contains(applied, name) {
				t.Errorf("%s: applied %q, fixed %q", name, applied, fixed)
			}
		}

		k.set(func() {
			deadline, _ := k.globals.Get(nlchan.SSFlushDeadline)
			capacity, _ := k.globals.Get(nlchan.SSCapacity)
			if deadline != 50 || capacity != 20000 || !k.globals.SyncEnabled {
				t.Errorf("ss-flush-deadline %d, ss-capacity %d, on %v", deadline, capacity, k.globals.SyncEnabled)
			}
		})
		if got := b.link.Load().flushDeadline(); got != 50*time.Millisecond {
			t.Errorf("late ACKs come %v apart", got)
		}
		if b.Level.Level() != slog.LevelDebug {
			t.Errorf("the log level is %v", b.Level.Level())
		}
		b.g.in <- encode(session.Enc4113, wkp, udp(1, 300_000))
		time.Sleep(time.Second)
		s := b.status(time.Now())
		if s.Net.Strays["hop limit"] != 1 || len(k.taken()) != 0 {
			t.Errorf("strays %v, %d given to the kernel", s.Net.Strays, len(k.taken()))
		}
		if s.Table.Limit != 1_000_000 || s.Network.Wire != session.Enc4113.String() {
			t.Errorf("what takes a new start was applied: table %d, wire %s", s.Table.Limit, s.Network.Wire)
		}
		k.announce(udp(2, 300_000))
		time.Sleep(999 * time.Millisecond)
		if all, _ := b.g.sent(wkp); len(all) != 0 {
			t.Error("a session did not wait for the new deadline")
		}
		time.Sleep(2 * time.Millisecond)
		if all, _ := b.g.sent(wkp); len(all) != 1 {
			t.Errorf("at the new deadline %d sessions were sent", len(all))
		}
		before := sentOf(b, 2)
		for range 600 {
			time.Sleep(100 * time.Millisecond)
			k.announce(udp(2, 300_000))
		}
		// 1, 2, 4, 8, 16 s and then 30 s: with the old cap it would be thirty.
		if n := sentOf(b, 2) - before; n < 4 || n > 6 {
			t.Errorf("a session that does not change was refreshed %d times in a minute", n)
		}

		next := newModelKernel(session.Enc4113)
		b.events <- nlchan.ModuleRemoved
		b.dials <- dialled{k: next}
		time.Sleep(time.Minute)
		if l := b.link.Load(); l == nil || l.kernel != kernel(next) || l.wire != session.Enc4113 {
			t.Error("the next instance is not served, or in the encoding that takes a new start")
		}
	})
}

// sentOf is how often the session of that port was sent.
func sentOf(b *bench, port uint16) (n int) {
	all, _ := b.g.sent(wkp)
	for _, p := range ports(all) {
		if p == port {
			n++
		}
	}
	return n
}

func TestAReloadThatNarrowsTheSourcesLetsTheOthersInNoLonger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newHookedKernel(session.Enc4113)
		b, rewrite := reloads(t, k)
		rewrite(configOf(t, "--net.source", "2001:db8::/32"), nil)
		b.g.in <- encode(session.Enc4113, wkp, udp(1, 300_000)) // from fe80::5%eth2
		time.Sleep(time.Second)
		rewrite(configOf(t, "--net.source", "2001:db8::/32", "--net.source", sender.Addr().WithZone("").String()+"/128"), nil)
		b.g.in <- encode(session.Enc4113, wkp, udp(2, 300_000))
		time.Sleep(time.Second)
		if got := ports(k.taken()); len(got) != 1 || got[0] != 2 {
			t.Errorf("sessions %v were let in", got)
		}
	})
}

func TestAReloadOfABrokenFileLeavesAllAsItWas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := fresh(newHookedKernel(0), 15)
		b, rewrite := reloads(t, k)
		cfg, level := b.live.Load(), b.Level.Level()
		settings := func() (s nlchan.Settings) {
			k.set(func() { s = k.globals.Settings })
			return s
		}
		before := settings()
		rewrite(configOf(t, "--mod.capacity", "20000", "--log.level", "error"), errors.New("joold.json: unknown key \"instanze\""))
		if b.live.Load() != cfg || settings() != before || b.Level.Level() != level {
			t.Error("something was applied")
		}
		if !strings.Contains(b.logs.String(), "not taken over") || !strings.Contains(b.logs.String(), "instanze") {
			t.Error("the log does not say that, and why, it was not taken over")
		}
	})
}

func TestSettingsThatCannotBeReadBackDoNotMakeThePolicyAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := fresh(newHookedKernel(0), 15)
		b, rewrite := reloads(t, k)
		k.hook(func() {
			k.onSet = func() error { // called while hooks are not locked
				k.hook(func() { k.onGlobals = func() error { return errors.New("no answer") } })
				return nil
			}
		})
		rewrite(configOf(t, "--mod.capacity", "20000"), nil)
		s := udp(1, 300_000)
		if why, ok := b.link.Load().policy.Load().Check(&s); !ok || s.Expiration != 300_000 {
			t.Errorf("a sound session is refused for its %s, or has %d ms left", why, s.Expiration)
		}
	})
}

func TestAChangedPool4IsFollowedThoughNothingIsHeard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newHookedKernel(session.Enc4113)
		b := startHooked(t, k, nil)
		s := udp(1, 300_000)
		s.Src4 = netip.MustParseAddr("203.0.113.1").As4()
		b.g.in <- encode(session.Enc4113, wkp, s)
		time.Sleep(time.Minute)
		k.set(func() { k.pool4 = append(k.pool4[:1:1], rangeOf("203.0.113.0/24")) })
		time.Sleep(pool4Interval + time.Second)
		if why, ok := b.link.Load().policy.Load().Check(&s); !ok {
			t.Errorf("still refused for its %s", why)
		}
		if got := k.taken(); len(got) != 1 || got[0].Expiration > 240_000 {
			t.Errorf("what was refused was given to the kernel as %+v", got)
		}
	})
}
