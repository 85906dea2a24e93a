package daemon

import (
	"bufio"
	"context"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"joold/internal/control"
	"joold/internal/mcast"
	"joold/internal/nlchan"
	"joold/internal/session"
)

// sweeper is a daemon in service whose kernel has announced session 1, of which
// the peers so know, and has walked through its table often enough to rest.
func sweeper(t *testing.T) (*bench, *hookedKernel) {
	t.Helper()
	k := newHookedKernel(session.Enc4113)
	b := startHooked(t, k, nil)
	k.announce(udp(1, 300_000))
	time.Sleep(time.Minute)
	return b, k
}

func TestAnythingMissedIsMadeGoodByASweepThatSendsOnlyWhatPeersLack(t *testing.T) {
	again := func(k *hookedKernel) { k.announce(udp(1, 180_000)) } // two minutes later: it is no news
	for cause, missed := range map[string]func(b *bench, k *hookedKernel){
		"an overrun": func(b *bench, k *hookedKernel) { k.overrun <- struct{}{} },
		"messages lost while the buffer is full": func(b *bench, k *hookedKernel) {
			k.hook(func() { k.messagesLost = 3 })
			again(k)
		},
		"a full queue in the module": func(b *bench, k *hookedKernel) {
			k.set(func() { k.stats.Dropped = 3 })
			again(k)
		},
		"datagrams that were refused": func(b *bench, k *hookedKernel) {
			b.g.mu.Lock()
			b.g.errs = slices.Repeat([]error{syscall.EPERM}, 12)
			b.g.mu.Unlock()
			k.announce(udp(7, 240_000)) // goes when more than a second has passed
		},
		"a group that was joined again": func(b *bench, k *hookedKernel) {
			b.g.becomes(mcast.Reopen, mcast.ErrNoInterface)
			b.pathEvents <- struct{}{}
			time.Sleep(time.Minute)
			next := newModelGroup()
			next.out, b.g = b.g.out, next // which is closed
			b.groups <- next
		},
		"a path that was away": func(b *bench, k *hookedKernel) {
			b.g.becomes(mcast.Away, mcast.ErrInterfaceDown)
			b.pathEvents <- struct{}{}
			time.Sleep(time.Minute)
			b.g.becomes(mcast.Unchanged, nil)
			b.pathEvents <- struct{}{}
		},
	} {
		t.Run(cause, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b, k := sweeper(t)
				dead := udp(3, 1_000) // has died a minute ago
				k.has(udp(2, 300_000), dead)
				time.Sleep(time.Minute)
				if n := sentOf(b, 2); n != 0 {
					t.Fatalf("sent %d times though nothing was missed", n)
				}
				sweeps := b.count.sweeps.Load()
				missed(b, k)
				time.Sleep(time.Minute)
				if b.count.sweeps.Load() == sweeps {
					t.Error("nothing was swept")
				}
				if n := sentOf(b, 2); n != 1 {
					t.Errorf("the session that was never announced was sent %d times", n)
				}
				if n := sentOf(b, 1); n != 1 {
					t.Errorf("the session that peers know was sent %d times", n)
				}
				if n := sentOf(b, 3); n != 0 {
					t.Errorf("the dead session was sent %d times", n)
				}

				sweeps = b.count.sweeps.Load()
				time.Sleep(time.Hour)
				if n := b.count.sweeps.Load() - sweeps; n != 0 {
					t.Errorf("%d sweeps in the hour after", n)
				}
			})
		})
	}
}

func TestAfterSomebodyElsesAdvertisementAllSessionsAreSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, k := sweeper(t)
		k.has(udp(2, 300_000))
		k.set(func() { k.stats.Advertisements = 1 })
		k.announce(udp(3, 240_000))
		time.Sleep(time.Minute)
		if one, two := sentOf(b, 1), sentOf(b, 2); one != 2 || two != 1 {
			t.Errorf("the session that peers knew was sent %d times, want again; the other %d times", one, two)
		}
	})
}

func TestCountersThatBeginAnewAreNotTakenForLosses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, k := sweeper(t)
		k.set(func() { k.stats.Dropped = 5 })
		k.announce(udp(1, 240_000))
		time.Sleep(time.Minute)
		k.set(func() { k.stats.Dropped = 0 }) // the instance was made anew, with the same pool6
		k.announce(udp(1, 180_000))
		time.Sleep(time.Minute)
		if n := b.status(time.Now()).Kernel.QueueDrops; n != 5 {
			t.Errorf("counted %d drops, want 5", n)
		}
	})
}

func TestAtItsStartANodeThatTranslatesSendsItsTableAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newHookedKernel(session.Enc4113)
		k.has(udp(1, 300_000), udp(2, 300_000))
		b := startHooked(t, k, nil)
		k.announce(udp(3, 300_000))
		time.Sleep(time.Second)
		for port := range uint16(3) {
			if n := sentOf(b, port+1); n != 1 {
				t.Errorf("session %d was sent %d times within a second", port+1, n)
			}
		}
	})
}

func TestAtItsStartANodeThatHearsNothingSendsItsTableAfterAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newHookedKernel(session.Enc4113)
		k.has(udp(1, 300_000))
		b := startHooked(t, k, nil)
		time.Sleep(silence)
		if n := sentOf(b, 1); n != 0 {
			t.Errorf("sent %d times before it can tell", n)
		}
		time.Sleep(2*pollInterval + restInterval)
		if n := sentOf(b, 1); n != 1 {
			t.Errorf("sent %d times", n)
		}
	})
}

func TestABackupSendsNothingOfItsTableUntilItTranslates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newHookedKernel(session.Enc4113)
		k.has(udp(1, 7_200_000))
		b := startHooked(t, k, nil)
		for n := range 600 {
			b.g.in <- encode(session.Enc4113, wkp, udp(uint16(100+n), 300_000))
			time.Sleep(time.Second)
		}
		k.overrun <- struct{}{} // be it only of another instance's messages
		time.Sleep(time.Hour)
		if _, datagrams := b.g.sent(wkp); datagrams != 0 || b.count.sweeps.Load() != 0 {
			t.Errorf("sent %d datagrams, swept %d times", datagrams, b.count.sweeps.Load())
		}
		k.announce(udp(50, 300_000))
		time.Sleep(time.Second)
		if n := sentOf(b, 1); n != 1 {
			t.Errorf("when it translates the session was sent %d times", n)
		}
	})
}

func TestWhatDiesWhileTheTableIsReadIsLeftOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newHookedKernel(session.Enc4113)
		b := bench0(t, testConfig(), 0)
		b.dial = func() (kernel, error) { return slowTable{k}, nil }
		b.run()
		time.Sleep(time.Minute)
		brief, long := udp(1, 1_000), udp(2, 300_000) // read before ICMP's, which takes two seconds
		age := uint32(time.Since(k.made).Milliseconds())
		brief.Expiration += age + 2_000
		long.Expiration += age
		k.has(brief, long)
		k.announced <- encode(session.Enc4113, wkp, udp(9, 300_000))
		k.overrun <- struct{}{}
		time.Sleep(time.Minute)
		if one, two := sentOf(b, 1), sentOf(b, 2); one != 0 || two != 1 {
			t.Errorf("the session that died was sent %d times, the other %d times", one, two)
		}
	})
}

// slowTable is a kernel that takes two seconds to yield each protocol's sessions.
type slowTable struct{ *hookedKernel }

func (k slowTable) Sessions(ctx context.Context, proto session.Proto, p session.Pool6, page func([]session.Session) error) error {
	time.Sleep(2 * time.Second)
	return k.hookedKernel.Sessions(ctx, proto, p, page)
}

func TestAModuleThatDoesNotAnnounceAllIsSweptWhileItAnnouncesAndOnceAfterwards(t *testing.T) {
	for _, revision := range []uint8{9, 10, 11, 15} {
		synctest.Test(t, func(t *testing.T) {
			k := newHookedKernel(0)
			k.module.Version = nlchan.Version{Major: 4, Minor: 1, Revision: revision}
			k.module.Encoding = k.module.Version.Encoding()
			var dumps times
			k.onDump = func() error { dumps.note(); return nil }
			b := startHooked(t, k, nil)
			k.announce(udp(1, 300_000))
			time.Sleep(time.Minute)
			dumps.taken()
			for n := range uint16(100) {
				k.has(udp(1000+n, 400_000)) // lost
				k.announce(udp(100+n, 300_000))
				time.Sleep(100 * time.Millisecond)
			}
			last := time.Now().Add(-100 * time.Millisecond)
			time.Sleep(5 * time.Second)
			during, after, lost := 0, 0, 0
			for _, at := range dumps.taken() {
				if at.After(last) {
					after++
				} else {
					during++
				}
			}
			for n := range uint16(100) {
				lost += 1 - min(1, sentOf(b, 1000+n))
			}
			if revision > 10 {
				if during+after != 0 || lost != 100 {
					t.Errorf("4.1.%d: swept %d times, which nothing called for", revision, during+after)
				}
				return
			}
			if during < 5 || during > 20 {
				t.Errorf("4.1.%d: swept %d times in ten seconds of messages", revision, during)
			}
			if lost != 0 {
				t.Errorf("4.1.%d: %d of 100 sessions are missing five seconds after the last message", revision, lost)
			}
			if after < 1 || after > 2 { // one may have been under way
				t.Errorf("4.1.%d: swept %d times after the last message", revision, after)
			}
			swept := b.count.sweeps.Load()
			time.Sleep(time.Hour)
			if n := b.count.sweeps.Load() - swept; n != 0 {
				t.Errorf("4.1.%d: swept %d times in a silent hour", revision, n)
			}
			if n := len(dumps.taken()); n > int(time.Hour/surveyInterval) {
				t.Errorf("4.1.%d: surveyed %d times in a silent hour", revision, n)
			}
			if n := strings.Count(b.logs.String(), routineSweep); n != 0 {
				t.Errorf("4.1.%d: %d lines on what is routine", revision, n)
			}
		})
	}
}

func TestASweepThatFailsIsTriedAgainEverMoreSeldomUntilItWorks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, k := sweeper(t)
		k.has(udp(2, 7_200_000))
		var dumps times
		k.hook(func() {
			k.onDump = func() error { dumps.note(); return syscall.EAGAIN }
		})
		k.overrun <- struct{}{}
		time.Sleep(10 * time.Minute)
		k.hook(func() { k.onDump = nil })
		tries := dumps.taken()
		var rests []time.Duration
		for i := 1; i < len(tries); i++ {
			rests = append(rests, tries[i].Sub(tries[i-1]).Round(time.Millisecond))
		}
		want := []time.Duration{1, 2, 4, 8, 16, 30, 30}
		for i := range want {
			want[i] *= time.Second
		}
		if len(rests) < len(want) || !slices.Equal(rests[:len(want)], want) || slices.Max(rests) > maxRest {
			t.Errorf("tried again after %v, want %v and so on", rests, want)
		}
		if n := strings.Count(b.logs.String(), "cut short"); n > 10 {
			t.Errorf("%d warnings in ten minutes", n)
		}
		time.Sleep(maxRest)
		if n := sentOf(b, 2); n != 1 {
			t.Errorf("when the table can be read the session was sent %d times", n)
		}

		// From then on it is as quick as before.
		time.Sleep(time.Minute)
		k.has(udp(3, 7_200_000))
		k.overrun <- struct{}{}
		time.Sleep(time.Second)
		if n := sentOf(b, 3); n != 1 {
			t.Errorf("the next sweep has sent %d sessions within a second", n)
		}
	})
}

func TestASweepWhoseDatagramsAreRefusedIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, k, g := startRefusing(t)
		k.announce(udp(1, 300_000))
		time.Sleep(time.Minute)
		k.has(udp(2, 7_200_000))
		g.refuse(syscall.ENOBUFS)
		g.writes.Store(0)
		k.overrun <- struct{}{}
		time.Sleep(10 * time.Minute)
		if n := g.writes.Load(); n < 10 || n > 1000 {
			t.Errorf("%d datagrams were tried in ten minutes", n)
		}
		g.refuse(nil)
		time.Sleep(time.Minute)
		if n := sentOf(b, 2); n != 1 {
			t.Errorf("the session was sent %d times", n)
		}
	})
}

func TestASweepThatIsOwedWhenTheInstanceGoesAwayIsMadeWhenItIsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, k := startThere(t)
		k.announce(udp(1, 300_000))
		time.Sleep(time.Minute)
		b.instance.Store(nil)
		k.set(func() { k.gone = *b.why.Load() })
		time.Sleep(time.Minute)
		next := newHookedKernel(session.Enc4113)
		next.has(udp(1, 300_000), udp(2, 300_000))
		b.instance.Store(next)
		time.Sleep(time.Minute)
		if one, two := sentOf(b.bench, 1), sentOf(b.bench, 2); one != 2 || two != 1 {
			t.Errorf("session 1 was sent %d times, session 2 %d times: another instance's table is sent whole", one, two)
		}
	})
}

// The daemon of this test runs in a process of its own, which is stopped for
// longer than a poll is ever late.
func TestADaemonThatWasStoppedSweeps(t *testing.T) {
	const (
		child   = "JOOLD_TEST_STOPPED"
		serves  = "the child serves\n"
		reasons = "was stopped for a while"
	)
	if os.Getenv(child) != "" {
		k := newHookedKernel(session.Enc4113)
		b := startHooked(t, k, nil)
		k.announce(udp(1, 300_000))
		eventually(t, "the start's sweep", func() bool { return b.count.sweeps.Load() > 0 })
		k.has(udp(2, 7_200_000))
		io.WriteString(os.Stderr, serves)
		eventually(t, "a sweep because the daemon was stopped", func() bool {
			return sentOf(b, 2) == 1 && strings.Contains(b.logs.String(), reasons)
		})
		return
	}
	t.Parallel()
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), child+"=1")
	stderr, err := cmd.StderrPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	if line, err := bufio.NewReader(stderr).ReadString('\n'); line != serves {
		t.Fatalf("the child said %q, %v", line, err)
	}
	cmd.Process.Signal(syscall.SIGSTOP)
	time.Sleep(pollInterval + stoppedFor + time.Second)
	cmd.Process.Signal(syscall.SIGCONT)
	if err := cmd.Wait(); err != nil {
		t.Errorf("the child ended with %v", err)
	}
}

func TestSweepsForOneReasonAreToldOfOnceAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, k := sweeper(t)
		sweeps, lines := b.count.sweeps.Load(), strings.Count(b.logs.String(), `msg="swept`)
		for range 120 {
			k.overrun <- struct{}{}
			time.Sleep(time.Second)
		}
		if n := b.count.sweeps.Load() - sweeps; n < 100 {
			t.Fatalf("only %d sweeps", n)
		}
		if n := strings.Count(b.logs.String(), `msg="swept`) - lines; n < 2 || n > 6 {
			t.Errorf("%d lines in two minutes", n)
		}
	})
}

func TestASlowAdvertisementDoesNotHoldUpARepair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, k := sweeper(t)
		k.set(func() { k.table = append(k.table, distinct(1000)...) })
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			b.advertise(ctx, 1, func(control.Progress) error { return nil }) // for a quarter of an hour
			close(ended)
		}()
		time.Sleep(time.Second)
		sweeps := b.count.sweeps.Load()
		b.repairs.owe("a test")
		time.Sleep(5 * time.Minute)
		if b.count.sweeps.Load() == sweeps {
			t.Error("nothing was swept")
		}
		cancel()
		<-ended
	})
}
