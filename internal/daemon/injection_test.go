package daemon

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"joold/internal/batch"
	"joold/internal/mcast"
	"joold/internal/session"
)

// living are sessions of their own, with so many ms of life, of 300,000.
func living(lives ...uint32) []session.Session {
	ss := distinct(len(lives))
	for i := range ss {
		ss[i].Expiration = lives[i]
	}
	return ss
}

func TestOldSessionsInDisorderAreHeldAndNoOthers(t *testing.T) {
	for _, c := range []struct {
		what         string
		sessions     []session.Session
		prompt, held int
	}{
		{"oldest first", living(1000, 2000, 300_000), 3, 0},
		{"young, in any order", living(300_000, 299_000, 298_000), 3, 0},
		{"one alone", living(1000), 1, 0},
		{"old and young, in any order", living(5000, 1000, 300_000, 2000, 299_000), 2, 3},
	} {
		d, l := idle(t, newModelKernel(session.Enc4113))
		now := time.Now()
		newIntake(d).accept(l, &mcast.Datagram{Payload: encode(session.Enc4113, wkp, c.sessions...), From: sender}, now)
		if got := d.status(now).Kernel.Waiting; got != len(c.sessions) {
			t.Errorf("%s: status says that %d wait, want %d", c.what, got, len(c.sessions))
		}
		prompt, held := l.inbox.Counts().Waiting, l.held.Counts().Waiting
		if prompt != c.prompt || held != c.held {
			t.Errorf("%s: %d are given at once and %d held, want %d and %d", c.what, prompt, held, c.prompt, c.held)
		}
	}
}

func TestWhatWasHeldIsGivenOldestFirstOnceNoMoreComes(t *testing.T) {
	k := newModelKernel(session.Enc4113)
	b := start(t, k, nil)
	all := living(9000, 1000, 8000, 3000, 7000, 2000)
	b.g.in <- encode(session.Enc4113, wkp, all[:3]...)
	b.g.in <- encode(session.Enc4113, wkp, all[3:]...)
	eventually(t, "all are in the kernel", func() bool { return len(k.taken()) == len(all) })
	if got := k.taken(); !session.InOrder(got) {
		t.Errorf("injected %v", got)
	}
}

func TestNewerWordOvertakesWhatIsHeld(t *testing.T) {
	k := newModelKernel(session.Enc4113)
	d, l := idle(t, k)
	in, now := newIntake(d), time.Now()
	all := living(5000, 1000, 3000)
	heard := func(ss ...session.Session) {
		in.accept(l, &mcast.Datagram{Payload: encode(session.Enc4113, wkp, ss...), From: sender}, now)
	}
	heard(all...)
	newer := all[1]
	newer.Expiration = 300_000
	heard(newer)
	for _, box := range []*batch.Inbox{l.inbox, l.held} {
		if _, err := d.empty(context.Background(), l, box, nil); err != nil {
			t.Fatal(err)
		}
	}
	got := k.taken()
	if len(got) != 3 || got[0].Key() != newer.Key() || slices.ContainsFunc(got[1:], func(s session.Session) bool { return s.Key() == newer.Key() }) {
		t.Errorf("injected %v, want the newer word and the two others", got)
	}
}

func TestWhatWaitsForTheKernelWhileItIsFedAgesToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newModelKernel(session.Enc4113)
		k.pool4 = nil
		k.addTime = time.Second // a large table
		d, l := idle(t, k)
		ss := some(1, 20*perAdd) // 20 s
		for i := range ss {
			ss[i].Expiration = 10_000
		}
		kept, _, _ := d.accept(l, origin{}, slices.Clone(ss), time.Now())
		l.inbox.Put(kept, time.Now())
		begun := time.Now()
		if _, err := d.empty(context.Background(), l, l.inbox, nil); err != nil {
			t.Fatal(err)
		}
		given := k.taken()
		last := given[len(given)-1]
		t.Logf("given %d within %v; the last with %d ms of the 10 s that it had", len(given), time.Since(begun), last.Expiration)
		if len(given) > 11*perAdd {
			t.Errorf("%d sessions were given after their end", len(given)-11*perAdd)
		}
	})
}
