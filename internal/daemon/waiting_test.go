package daemon

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"

	"joold/internal/config"
	"joold/internal/mcast"
	"joold/internal/nlchan"
	"joold/internal/session"
)

func TestTheDaemonWaitsForInstanceAndGroupInEitherOrderAndIsReadyOnce(t *testing.T) {
	const (
		noInstance = "no instance named 'edge'"
		noGroup    = "no interface has this name"
	)
	for _, instanceFirst := range []bool{true, false} {
		t.Run(map[bool]string{true: "instance first", false: "group first"}[instanceFirst], func(t *testing.T) {
			told := serviceManager(t)
			synctest.Test(t, func(t *testing.T) {
				b := newAway(t)
				b.run()
				appear := []func(){func() { b.instance.Store(newHookedKernel(session.Enc4113)) }, func() { b.there.Store(true) }}
				missing := []string{noInstance, noGroup}
				if !instanceFirst {
					slices.Reverse(appear)
					slices.Reverse(missing)
				}
				// checks what the daemon says of itself while it waits for some of missing.
				checks := func(waits ...string) {
					t.Helper()
					s := b.status(time.Now())
					if lines := strings.Count(b.logs.String(), "msg=waiting "); lines != len(missing) {
						t.Errorf("%d lines of waiting in the log, want one for each of %q", lines, missing)
					}
					for _, what := range missing {
						said := s.Instance.WaitingFor
						if what == noGroup {
							said = s.Network.WaitingFor
						}
						if want := slices.Contains(waits, what); strings.Contains(said, what) != want || (said != "") != want {
							t.Errorf("status waits for %q; waiting for %q: %v", said, what, want)
						}
					}
					if _, err := advertise(b.bench, 0); !errors.Is(err, errNotInService) || !strings.Contains(err.Error(), waits[0]) {
						t.Errorf("asked to advertise while %q is missing: %v", waits, err)
					}
					states := told()
					if slices.Contains(states, sd.SdNotifyReady) {
						t.Errorf("ready while it waits for %q", waits)
					}
					if !slices.ContainsFunc(states, func(s string) bool {
						return strings.HasPrefix(s, "STATUS=waiting: ") && strings.Contains(s, waits[0])
					}) {
						t.Errorf("the service manager was told %q, while joold waits for %q", states, waits)
					}
				}
				time.Sleep(time.Minute)
				checks(noInstance, noGroup) // told in this order, whatever comes first
				appear[0]()
				time.Sleep(time.Minute)
				checks(missing[1])
				appear[1]()
				time.Sleep(time.Minute)
				if states := told(); !slices.Equal(states, []string{sd.SdNotifyReady, "STATUS=in service"}) {
					t.Errorf("with both there the service manager was told %q", states)
				}
				if s := b.status(time.Now()); s.Instance.WaitingFor != "" || s.Network.WaitingFor != "" || !s.Instance.InService {
					t.Errorf("status %+v %+v", s.Instance, s.Network)
				}

				k := b.instance.Swap(nil)
				k.set(func() { k.gone = *b.why.Load() })
				time.Sleep(time.Minute)
				if states := told(); len(states) != 1 || !strings.Contains(states[0], noInstance) {
					t.Errorf("when the instance went away the service manager was told %q", states)
				}
				b.instance.Store(newHookedKernel(session.Enc4113))
				time.Sleep(time.Minute)
				if states := told(); !slices.Equal(states, []string{"STATUS=in service"}) {
					t.Errorf("with the instance back the service manager was told %q", states)
				}
			})
		})
	}
}

func TestAnotherReasonForWaitingIsSaidAndTheSameOneIsNotSaidAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newAway(t)
		b.there.Store(true)
		b.fails(nlchan.ErrNoModule)
		b.run()
		time.Sleep(time.Hour)
		b.fails(&nlchan.Error{Op: "find", Instance: "edge", Err: nlchan.ErrNoInstance})
		time.Sleep(time.Hour)
		var said []string
		for line := range strings.Lines(b.logs.String()) {
			if strings.Contains(line, "msg=waiting") {
				said = append(said, line)
			}
		}
		if len(said) != 2 || !strings.Contains(said[0], "modprobe jool") || !strings.Contains(said[1], "jool instance add edge") {
			t.Errorf("said %q", said)
		}
	})
}

func TestTheDaemonServesWithinASecondOfWhatItWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newAway(t)
		b.run()
		time.Sleep(time.Hour)
		b.instance.Store(newHookedKernel(session.Enc4113))
		b.there.Store(true)
		time.Sleep(time.Second)
		if b.link.Load() == nil || b.group() == nil {
			t.Error("both are there, and the daemon does not serve")
		}
	})
}

func TestAnInterfaceThatAppearsIsUsedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newAway(t)
		b.run()
		time.Sleep(time.Hour + retryInterval/2)
		b.there.Store(true)
		b.pathEvents <- struct{}{}
		synctest.Wait()
		if b.group() == nil {
			t.Error("the group was not joined when its interface appeared")
		}
	})
}

func TestWithoutPrivilegeAtTheStartTheDaemonEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newAway(t)
		b.fails(&nlchan.Error{Op: "find", Instance: "edge", Err: nlchan.ErrPermission})
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		if err := b.Daemon.run(ctx); !errors.Is(err, nlchan.ErrPermission) {
			t.Errorf("ended with %v", err)
		}
	})
}

func TestAPrivilegeThatIsLostLaterIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, k := startThere(t)
		time.Sleep(time.Minute)
		lost := &nlchan.Error{Op: "read the settings", Instance: "edge", Err: nlchan.ErrPermission}
		b.fails(lost)
		b.instance.Store(nil)
		k.set(func() { k.gone = lost })
		time.Sleep(time.Hour)
		if why := b.status(time.Now()).Instance.WaitingFor; !strings.Contains(why, "CAP_NET_ADMIN") {
			t.Errorf("status waits for %q", why)
		}
		if n := strings.Count(b.logs.String(), "CAP_NET_ADMIN"); n > 4 {
			t.Errorf("said %d times in an hour", n)
		}
		b.instance.Store(newHookedKernel(session.Enc4113))
		time.Sleep(time.Minute)
		if b.link.Load() == nil {
			t.Error("the privilege is back, and the daemon does not serve")
		}
	})
}

func TestAGroupThatCannotBeOneEndsTheDaemon(t *testing.T) {
	for _, why := range []error{mcast.ErrNotMulticast, config.ErrNotMulticast} {
		synctest.Test(t, func(t *testing.T) {
			b := newAway(t)
			b.open = func(context.Context) (network, error) { return nil, &mcast.Error{Op: "join", Err: why} }
			ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
			defer cancel()
			if err := b.Daemon.run(ctx); !errors.Is(err, why) {
				t.Errorf("ended with %v, want %v", err, why)
			}
		})
	}
}

func TestTheServiceManagerIsToldOfTheEndAndLast(t *testing.T) {
	told := serviceManager(t)
	cfg := testConfig()
	// What there is on no machine.
	cfg.Instance, cfg.Group, cfg.Port, cfg.In, cfg.Out = "none-of-ours", "239.64.64.64", 6464, "none-of-ours", "none-of-ours"
	cfg.ControlSocket = filepath.Join(t.TempDir(), "s")
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() {
		ended <- Run(ctx, cfg, Options{Version: "test", Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	}()
	var states []string
	eventually(t, "the service manager is told what joold waits for", func() bool {
		states = append(states, told()...)
		return len(states) >= 2
	})
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	states = append(states, told()...)
	for i, s := range states {
		if last := i == len(states)-1; (s == sd.SdNotifyStopping) != last || !last && !strings.HasPrefix(s, "STATUS=waiting: ") {
			t.Errorf("the service manager was told %q", states)
		}
	}
}
