package daemon

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"joold/internal/config"
	"joold/internal/nlchan"
	"joold/internal/session"
)

func TestAnInstanceThatWasMadeAnewBetweenTwoLooksIsTakenForAnother(t *testing.T) {
	for name, remake := range map[string]func(*modelKernel){
		"settings": func(k *modelKernel) {
			k.globals.Set(nlchan.SSFlushDeadline, 2000)
			k.globals.Set(nlchan.SSCapacity, 512)
		},
		"counters": func(k *modelKernel) { k.stats.Translated = 0 },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := newModelKernel(session.Enc4113)
				k.globals.Set(nlchan.SSFlushDeadline, 2000)
				k.globals.Set(nlchan.SSCapacity, 512)
				k.stats.Translated = 9
				b := startLevel(t, k, func(cfg *config.Config) { *cfg = *configOf(t) }, 0)
				time.Sleep(time.Minute)
				b.g.in <- encode(session.Enc4113, wkp, udp(1, 300_000))
				time.Sleep(time.Minute)

				k.set(func() { remake(k) })
				k.announced <- encode(session.Enc4113, wkp, udp(2, 300_000))
				next := newModelKernel(session.Enc4113)
				select {
				case b.dials <- dialled{k: next}:
				case <-time.After(time.Minute):
					t.Fatal("it is served as if nothing had happened")
				}
				time.Sleep(time.Second)
				b.g.in <- encode(session.Enc4113, wkp, udp(1, 180_000))
				time.Sleep(time.Second)
				if got := next.taken(); len(got) != 1 {
					t.Errorf("what the instance before it had was given to it as %+v", got)
				}
			})
		})
	}
}

func TestAnAnswerThatWasReadLateDoesNotLetAnInstanceBeFedThatWasMadeAnewSince(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newHookedKernel(session.Enc4113)
		b := startHooked(t, k, nil)
		time.Sleep(time.Minute + 3*time.Second) // between two polls
		k.hook(func() { k.globalsLate = time.Second })
		b.g.in <- encode(session.Enc4113, wkp, udp(1, 300_000))
		time.Sleep(time.Second / 2)
		k.set(func() { k.globals.Pool6 = pool6("2001:db8:64::/64") })
		time.Sleep(time.Minute)
		if got := k.taken(); len(got) > 0 {
			t.Errorf("the new instance was given %+v", got)
		}
	})
}

func TestWhatAnInstanceThatWentAwayWasNotGivenIsCountedAsDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newModelKernel(session.Enc4113)
		k.addTime = time.Second
		b := start(t, k, nil)
		const most = 3 * perAdd
		some := distinct(1 + most)
		b.g.in <- encode(session.Enc4113, wkp, some[0]) // while it is added, the others come
		time.Sleep(time.Millisecond)
		for chunk := range slices.Chunk(some[1:], perAdd) {
			b.g.in <- encode(session.Enc4113, wkp, chunk...)
		}
		time.Sleep(k.addTime * 3 / 2)
		k.set(func() { k.addErr = nlchan.ErrNoInstance })
		next := newModelKernel(session.Enc4113)
		b.dials <- dialled{k: next}
		time.Sleep(time.Second)
		s := b.status(time.Now())
		if s.Kernel.Dropped != most || len(k.taken()) != 1 || len(next.taken()) > 0 {
			t.Errorf("%d of %d sessions were dropped; the instances were given %d and %d", s.Kernel.Dropped, most, len(k.taken()), len(next.taken()))
		}
	})
}

func TestASettingThatSomebodyChangesIsSetAgainAndTheInstanceServedOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newModelKernel(session.Enc4113)
		k.globals.Set(nlchan.SSFlushDeadline, 2000)
		k.globals.Set(nlchan.SSCapacity, 512)
		k.stats.Translated = 9
		b := startLevel(t, k, func(cfg *config.Config) { *cfg = *configOf(t) }, 0)
		time.Sleep(time.Minute)
		deadline := func() (ms uint32) {
			k.set(func() { ms, _ = k.globals.Get(nlchan.SSFlushDeadline) })
			return ms
		}
		wanted := deadline()
		epoch := b.signer.Epoch()

		k.set(func() { k.globals.Set(nlchan.SSFlushDeadline, 100) })
		b.g.in <- encode(session.Enc4113, wkp, udp(1, 300_000))
		time.Sleep(time.Minute)
		if is := deadline(); is != wanted || wanted == 2000 {
			t.Errorf("ss-flush-deadline is %d, was set to %d", is, wanted)
		}
		if b.signer.Epoch() != epoch || b.link.Load() == nil {
			t.Error("the instance was taken for another")
		}
	})
}
