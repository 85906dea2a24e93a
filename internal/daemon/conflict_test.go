package daemon

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"joold/internal/control"
	"joold/internal/nlchan"
	"joold/internal/session"
)

// claim is a session of another IPv6 node behind the mask of s.
func claim(s session.Session) session.Session {
	s.Src6[15]++
	return s
}

func TestAMaskThatWasGivenToAnotherNodeIsTakenFromTheOldOne(t *testing.T) {
	b := start(t, newModelKernel(session.Enc4113), nil)
	old := udp(1, 200_000) // updated 100 s ago
	b.g.in <- encode(session.Enc4113, wkp, old)
	eventually(t, "the kernel has the old session", func() bool { return len(b.k.taken()) == 1 })
	heir := claim(old)
	heir.Expiration = 300_000
	b.g.in <- encode(session.Enc4113, wkp, heir)
	eventually(t, "the kernel has the new session", func() bool { return len(b.k.taken()) == 2 })
	b.k.mu.Lock()
	defer b.k.mu.Unlock()
	want := []nlchan.BIBEntry{{Proto: session.UDP, Src6: old.Src6Addr(), Src4: old.Src4Addr()}}
	if !slices.Equal(b.k.removed, want) {
		t.Errorf("removed %v, want %v", b.k.removed, want)
	}
}

func TestASessionThatContradictsTwoBIBEntriesHasBothRemoved(t *testing.T) {
	b := start(t, newModelKernel(session.Enc4113), nil)
	node, mask := udp(1, 100_000), udp(2, 100_000)
	b.g.in <- encode(session.Enc4113, wkp, node, mask)
	eventually(t, "the kernel has both", func() bool { return len(b.k.taken()) == 2 })
	heir := node
	heir.Src4Port, heir.Expiration = mask.Src4Port, 300_000
	b.g.in <- encode(session.Enc4113, wkp, heir)
	eventually(t, "the kernel has the new session", func() bool { return len(b.k.taken()) == 3 })
	if n := b.status(time.Now()).Kernel.BIBRemoved; n != 2 {
		t.Errorf("%d BIB entries removed, want 2", n)
	}
}

func TestABIBEntryIsNotRemovedForOlderNews(t *testing.T) {
	b := start(t, newModelKernel(session.Enc4113), nil)
	b.g.in <- encode(session.Enc4113, wkp, udp(1, 200_000))
	eventually(t, "the kernel has the session", func() bool { return len(b.k.taken()) == 1 })
	b.g.in <- encode(session.Enc4113, wkp, claim(udp(1, 100_000)), udp(2, 300_000))
	eventually(t, "the kernel has what came with it", func() bool { return len(b.k.taken()) == 2 })
	if n := b.status(time.Now()).Kernel.Conflicts; n != 1 {
		t.Errorf("%d conflicts counted", n)
	}
	b.k.mu.Lock()
	defer b.k.mu.Unlock()
	if len(b.k.removed) != 0 {
		t.Errorf("removed %v", b.k.removed)
	}
	if !strings.Contains(b.logs.String(), "contradicts the BIB") {
		t.Error("the log does not name it")
	}
}

func TestABIBEntryInUseIsLookedAtAgainLater(t *testing.T) {
	k := newModelKernel(session.Enc4113)
	ours := udp(1, 300_000)
	k.table = []session.Session{ours}
	b := start(t, k, nil)
	b.k.announced <- encode(session.Enc4113, wkp, ours)
	eventually(t, "it is announced", func() bool { return b.count.kernelSessions.Load() == 1 })
	time.Sleep(5 * time.Millisecond) // the peer's is the newer
	b.g.in <- encode(session.Enc4113, wkp, claim(ours))
	eventually(t, "the peer's takes its place", func() bool { return len(b.k.taken()) == 1 })
	if n := b.status(time.Now()).Kernel.BIBRemoved; n != 1 {
		t.Errorf("%d BIB entries removed", n)
	}
}

func TestAStaticBIBEntryStays(t *testing.T) {
	b := start(t, newModelKernel(session.Enc4113), nil)
	old := udp(1, 200_000)
	b.g.in <- encode(session.Enc4113, wkp, old)
	eventually(t, "the kernel has the session", func() bool { return len(b.k.taken()) == 1 })
	b.k.set(func() { b.k.removeErr = &nlchan.Error{Op: "remove", Instance: "edge", Err: nlchan.ErrStaticBIB} })
	heir := claim(old)
	heir.Expiration = 300_000
	b.g.in <- encode(session.Enc4113, wkp, heir)
	eventually(t, "the conflict is counted", func() bool { return b.status(time.Now()).Kernel.Conflicts == 1 })
	if got := b.k.taken(); len(got) != 1 {
		t.Errorf("the kernel was given %v", got)
	}
}

func TestABIBEntryThatIsGoneAlreadyIsNoObstacle(t *testing.T) {
	b := start(t, newModelKernel(session.Enc4113), nil)
	old := udp(1, 200_000)
	b.g.in <- encode(session.Enc4113, wkp, old)
	eventually(t, "the kernel has the session", func() bool { return len(b.k.taken()) == 1 })
	b.k.set(func() { b.k.removeErr = &nlchan.Error{Op: "remove", Instance: "edge", Err: nlchan.ErrNoBIB} })
	heir := claim(old)
	heir.Expiration = 300_000
	b.g.in <- encode(session.Enc4113, wkp, heir)
	eventually(t, "the kernel has the new session", func() bool { return len(b.k.taken()) == 2 })
}

func TestAMaskIsTakenFromANodeThatHadItBeforeTheDaemonCame(t *testing.T) {
	k := newModelKernel(session.Enc4113)
	old := udp(1, 200_000)
	k.table = []session.Session{old}
	b := start(t, k, nil)
	eventually(t, "the session is known", func() bool { return b.status(time.Now()).Table.Sessions == 1 })
	heir := claim(old)
	heir.Expiration = 300_000
	b.g.in <- encode(session.Enc4113, wkp, heir)
	eventually(t, "the kernel has the new session", func() bool { return len(b.k.taken()) == 1 })
	if n := b.status(time.Now()).Kernel.BIBRemoved; n != 1 {
		t.Errorf("%d BIB entries removed", n)
	}
}

func TestANodeThatTranslatesHasNoBIBEntryRemoved(t *testing.T) {
	k := newModelKernel(session.Enc4113)
	old := udp(1, 200_000)
	k.table = []session.Session{old}
	b := start(t, k, nil)
	eventually(t, "the session is known", func() bool { return b.status(time.Now()).Table.Sessions == 1 })
	stop := make(chan struct{})
	defer close(stop)
	go func() { // it translates for others
		for n := uint16(100); ; n++ {
			select {
			case b.k.announced <- encode(session.Enc4113, wkp, udp(n, 300_000)):
				time.Sleep(10 * time.Millisecond)
			case <-stop:
				return
			}
		}
	}()
	eventually(t, "it translates", func() bool { return b.count.kernelSessions.Load() > 1 })
	heir := claim(old)
	heir.Expiration = 300_000
	b.g.in <- encode(session.Enc4113, wkp, heir)
	eventually(t, "the conflict is counted", func() bool { return b.status(time.Now()).Kernel.Conflicts == 1 })
	b.k.mu.Lock()
	defer b.k.mu.Unlock()
	if len(b.k.removed) != 0 {
		t.Errorf("removed %v", b.k.removed)
	}
}

func TestAConflictIsNamedInStatus(t *testing.T) {
	b := start(t, newModelKernel(session.Enc4113), nil)
	ours := udp(1, 200_000)
	b.g.in <- encode(session.Enc4113, wkp, ours)
	eventually(t, "the kernel has the session", func() bool { return len(b.k.taken()) == 1 })
	theirs := claim(udp(1, 100_000))
	for range 2 {
		b.g.in <- encode(session.Enc4113, wkp, theirs)
	}
	eventually(t, "both are counted", func() bool { return b.status(time.Now()).Kernel.Conflicts == 2 })
	s := b.status(time.Now())
	if len(s.Kernel.LastConflicts) != 1 {
		t.Fatalf("named %+v, want one", s.Kernel.LastConflicts)
	}
	got := s.Kernel.LastConflicts[0]
	if got.LastHeard.Before(s.Started) || got.Ago < 0 {
		t.Errorf("heard at %v, %v s ago", got.LastHeard, got.Ago)
	}
	got.LastHeard, got.Ago = time.Time{}, 0
	want := control.Conflict{
		Proto: "UDP", Session: theirs.Src6Addr().String(), Mask: ours.Src4Addr().String(),
		BIB: ours.Src6Addr().String(), BIBMask: ours.Src4Addr().String(),
		From: sender.Addr().String(), Because: "the BIB entry is the newer", Times: 2,
	}
	if got != want {
		t.Errorf("named %+v, want %+v", got, want)
	}
}

func TestTheLastFewConflictsAreNamedAndARepeatedOneOnce(t *testing.T) {
	var cs conflicts
	at := func(n int) time.Time { return time.Unix(int64(n), 0) }
	about := func(n int) named {
		return named{proto: session.TCP, mask: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, 1}), uint16(n)), from: 2, heard: at(n), times: 1}
	}
	for n := range 2 * maxNamed {
		cs.add(about(n))
	}
	again := about(maxNamed + 2)
	again.from, again.heard = 3, at(100)
	cs.add(again)
	got := cs.snapshot(map[uint32]netip.Addr{2: netip.MustParseAddr("fe80::2")}, at(160))
	var ports []string
	for _, c := range got {
		ports = append(ports, strings.TrimPrefix(c.Mask, "192.0.2.1:"))
	}
	if want := []string{"10", "15", "14", "13", "12", "11", "9", "8"}; !slices.Equal(ports, want) {
		t.Errorf("named those about the ports %v, want %v", ports, want)
	}
	if first := got[0]; first.Times != 2 || first.From != "" || first.Ago != 60 {
		t.Errorf("the repeated one is %+v", first)
	}
	if got[1].Times != 1 || got[1].From != "fe80::2" {
		t.Errorf("another is %+v", got[1])
	}
}
