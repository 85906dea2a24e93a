package daemon

import (
	"errors"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"joold/internal/control"
	"joold/internal/nlchan"
	"joold/internal/session"
)

// long is a session that lives for as long as any.
func long(port uint16, life time.Duration) session.Session {
	s := udp(port, uint32(life.Milliseconds()))
	s.Proto, s.State, s.Timer = session.TCP, session.Established, session.TimerEst
	return s
}

func TestWhatHasLeftABackupsKernelIsInjectedAgainAfterTheNextSurvey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const life = 7_000 * time.Second
		k := newHookedKernel(session.Enc4113)
		k.pool4 = nil
		k.has(long(1, life), long(2, life))
		b := startHooked(t, k, nil)
		synctest.Wait()
		told := time.Now()
		tell := func() []uint16 {
			left := life - time.Since(told)
			b.g.in <- encode(session.Enc4113, wkp, long(1, left), long(2, left))
			time.Sleep(time.Second)
			return ports(k.taken())
		}
		if got := tell(); len(got) != 0 {
			t.Fatalf("the kernel was given %v, which it had", got)
		}
		k.set(func() { k.table = slices.DeleteFunc(k.table, func(s session.Session) bool { return s.Src6Port == 1 }) })
		time.Sleep(surveyInterval - time.Since(told) - time.Minute)
		if got := tell(); len(got) != 0 {
			t.Fatalf("the kernel was given %v before anybody looked", got)
		}
		time.Sleep(2 * time.Minute)
		if got := tell(); !slices.Equal(got, []uint16{1}) {
			t.Errorf("the kernel was given %v, lacking 1", got)
		}
		if n := b.status(time.Now()).Table.Vanished; n > 1 {
			t.Errorf("%d sessions vanished", n)
		}
	})
}

func TestAStaticBIBEntryThatCameLaterIsFoundByTheNextSurvey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newHookedKernel(session.Enc4113)
		b := startHooked(t, k, nil)
		k.set(func() {
			k.static = []nlchan.BIBEntry{{Proto: session.UDP, Src4: netip.MustParseAddrPort("203.0.113.1:53")}}
		})
		s := udp(1, 300_000)
		s.Src4, s.Src4Port = [4]byte{203, 0, 113, 1}, 53
		time.Sleep(surveyInterval - time.Minute)
		b.g.in <- encode(session.Enc4113, wkp, s)
		time.Sleep(2 * time.Minute)
		if got := ports(k.taken()); !slices.Equal(got, []uint16{1}) {
			t.Errorf("the kernel was given %v, want what its static BIB allows by now", got)
		}
	})
}

// The table takes ten seconds to survey.
func TestNobodyWaitsForASurvey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 10 * surveyRate
		k := newHookedKernel(session.Enc4113)
		for i := range uint32(n) {
			s := nth(i)
			s.Expiration = 10_000_000
			k.has(s)
		}
		dumps := &times{}
		k.onDump = func() error { dumps.note(); return nil }
		b := startHooked(t, k, nil)
		time.Sleep(surveyInterval - time.Second) // the start's sweep is over
		dumps.taken()
		eventually(t, "the survey is under way", func() bool { return len(dumps.taken()) == 1 })
		began := time.Now()

		_, before := b.g.sent(wkp)
		k.announce(udp(1, 300_000))
		eventually(t, "what is announced is sent", func() bool { _, n := b.g.sent(wkp); return n > before })
		if _, err := b.advertise(t.Context(), MaxRate, func(control.Progress) error { return nil }); err != nil {
			t.Fatal(err)
		}
		policy := b.link.Load().policy.Load()
		k.set(func() { k.pool4 = nil })
		time.Sleep(2 * pollInterval)
		k.announce(udp(2, 300_000)) // which has the instance looked at
		eventually(t, "the poll sees another pool4", func() bool { return b.link.Load().policy.Load() != policy })
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("all that took %v", took)
		}
	})
}

func TestASurveyIsSpreadOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newHookedKernel(session.Enc4113)
		for i := range uint32(2 * surveyRate) {
			k.has(nth(i))
		}
		b := startHooked(t, k, nil)
		began := time.Now()
		if err := b.learn(t.Context(), b.link.Load(), surveyRate); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took < 1900*time.Millisecond || took > 3*time.Second {
			t.Errorf("two seconds' worth of sessions took %v", took)
		}
	})
}

func TestAReloadHasTheTablesSurveyed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newHookedKernel(session.Enc4113)
		b, rewrite := reloads(t, k)
		time.Sleep(time.Minute)
		k.has(nth(1))
		rewrite(configOf(t), nil)
		time.Sleep(time.Minute)
		if n := b.status(time.Now()).Table.Sessions; n != 1 {
			t.Errorf("%d sessions are known, of one", n)
		}
	})
}

func TestATableThatCannotBeReadWholeMakesNothingVanish(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newHookedKernel(session.Enc4113)
		k.pool4 = nil
		k.has(long(1, 7_000*time.Second))
		b := startHooked(t, k, nil)
		synctest.Wait()
		k.set(func() { k.table = nil })
		k.hook(func() { k.onDump = func() error { return errors.New("try again") } })
		time.Sleep(surveyInterval + time.Minute)
		if c := b.status(time.Now()).Table; c.Sessions != 1 || c.Vanished != 0 {
			t.Errorf("counted %+v", c)
		}
		k.hook(func() { k.onDump = nil })
		time.Sleep(surveyInterval + time.Minute)
		if c := b.status(time.Now()).Table; c.Sessions != 0 || c.Vanished != 1 {
			t.Errorf("counted %+v", c)
		}
	})
}
