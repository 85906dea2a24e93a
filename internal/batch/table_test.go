package batch

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"joold/internal/session"
)

// tableConfig is what the daemon's defaults come to.
var tableConfig = TableConfig{
	Limit: 1_000_000, Pending: 65_536, Timeouts: session.DefaultTimeouts,
	Refresh: 2 * time.Second, OwnFor: 2 * time.Second,
}

const (
	everything = math.MaxInt
	second     = 1000 // ms
)

func at(d time.Duration) time.Time { return start.Add(d) }

func tcp(port uint16, state session.State, timer session.Timer, expiration uint32) session.Session {
	s := udp(port, expiration)
	s.Proto, s.State, s.Timer = session.TCP, state, timer
	return s
}

func observe(t *Table, d time.Duration, s ...session.Session) { t.Observe(s, at(d)) }

func take(t *Table, d time.Duration) []session.Session { return t.Take(nil, everything, at(d)) }

func accept(t *Table, d time.Duration, s session.Session) Verdict {
	v, _ := t.Accept(&Source{From: 1}, &s, at(d))
	return v
}

func ports(ss []session.Session) (ps []uint16) {
	for i := range ss {
		ps = append(ps, ss[i].Src6Port)
	}
	return ps
}

func wantPorts(t *testing.T, what string, got []session.Session, want ...uint16) {
	t.Helper()
	if !slices.Equal(ports(got), want) {
		t.Errorf("%s: %v, want %v", what, ports(got), want)
	}
}

func TestANewSessionIsDueAtOnceAndOnce(t *testing.T) {
	tab := NewTable(tableConfig)
	observe(tab, 0, udp(1, 300_000), udp(2, 300_000))
	if since, ok := tab.Due(); !ok || !since.Equal(start) || tab.Pending() != 2 {
		t.Errorf("due since %v, %v; %d pending", since, ok, tab.Pending())
	}
	want := []session.Session{udp(1, 299_993), udp(2, 299_993)}
	if got := take(tab, 7*time.Millisecond); !slices.Equal(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if _, ok := tab.Due(); ok || len(take(tab, time.Second)) != 0 {
		t.Error("something is still due")
	}
}

// refreshes are the moments at which a session that is announced every 10 ms for
// so long is sent, each sent when it is due.
func refreshes(s session.Session, c TableConfig, d time.Duration) (sent []time.Duration) {
	tab := NewTable(c)
	for now := time.Duration(0); now <= d; now += 10 * time.Millisecond {
		observe(tab, now, s)
		if len(take(tab, now)) > 0 {
			sent = append(sent, now)
		}
	}
	return sent
}

func TestRefreshesOfASessionBecomeRarer(t *testing.T) {
	minute := tableConfig
	minute.Refresh = time.Minute
	for _, c := range []struct {
		what   string
		s      session.Session
		config TableConfig
		want   []time.Duration // in ms
	}{
		{"capped", udp(1, 300_000), tableConfig, []time.Duration{0, 1000, 3000, 5000, 7000}},
		{"uncapped", udp(1, 300_000), minute, []time.Duration{0, 1000, 3000, 7000, 15_000, 31_000, 58_000, 85_000}},
		{"TCP", tcp(1, session.Established, session.TimerEst, 7_200_000), minute, []time.Duration{0, 1000, 3000, 7000, 15_000, 31_000, 63_000, 123_000}},
		{"short-lived", tcp(1, session.V4Init, session.TimerSYN4, 6000), minute, []time.Duration{0, 540, 1080, 1620}},
	} {
		for i := range c.want {
			c.want[i] *= time.Millisecond
		}
		if got := refreshes(c.s, c.config, c.want[len(c.want)-1]); !slices.Equal(got, c.want) {
			t.Errorf("%s: sent at %v, want %v", c.what, got, c.want)
		}
	}
}

func TestAnotherStateOrTimerIsDueAtOnce(t *testing.T) {
	tab := NewTable(tableConfig)
	for i, s := range []session.Session{
		tcp(1, session.V6Init, session.TimerTrans, 240_000),
		tcp(1, session.Established, session.TimerEst, 7_200_000),
		tcp(1, session.V4FinRcv, session.TimerEst, 7_199_000), // with the old update time
		tcp(1, session.V4FinV6FinRcv, session.TimerTrans, 240_000),
		tcp(1, session.V4FinV6FinRcv, session.TimerEst, 240_000),
	} {
		now := time.Duration(i) * time.Millisecond
		observe(tab, now, s)
		if got := take(tab, now); !slices.Equal(got, []session.Session{s}) {
			t.Errorf("took %+v, want %+v", got, s)
		}
	}
}

func TestWhatDoesNotMoveTheDeathIsNotDue(t *testing.T) {
	tab := NewTable(tableConfig)
	observe(tab, 0, udp(1, 300_000))
	take(tab, 0)
	for now := time.Second; now < 300*time.Second; now += time.Second {
		observe(tab, now, udp(1, uint32(300_000-now.Milliseconds()))) // the old update time
	}
	observe(tab, 10*time.Second, udp(1, 100_000)) // an earlier death
	if n := tab.Pending(); n != 0 {
		t.Errorf("%d pending", n)
	}
	if c := tab.Counts(); c.Unchanged != 300 || c.Held != 0 {
		t.Errorf("counted %+v", c)
	}
}

func TestARefreshIsNotHeldWhenPeersBelieveInAnEarlyDeath(t *testing.T) {
	tab := NewTable(tableConfig)
	observe(tab, 0, tcp(1, session.Established, session.TimerEst, 60_000)) // it was idle for long
	take(tab, 0)
	observe(tab, 10*time.Millisecond, tcp(1, session.Established, session.TimerEst, 7_200_000))
	if tab.Pending() != 1 {
		t.Error("peers would lose the session in a minute")
	}
}

func TestATakeoverBeginsWithoutAStorm(t *testing.T) {
	const n = 10_000
	tab := NewTable(tableConfig)
	ss := populace(n)
	for i := range ss {
		if v := accept(tab, 0, ss[i]); v != Inject {
			t.Fatalf("a new session is %s", v)
		}
	}
	observe(tab, 500*time.Millisecond, ss...)
	if got := tab.Pending(); got != 0 {
		t.Errorf("%d of %d are due half a second after peers told them", got, n)
	}
	observe(tab, 1500*time.Millisecond, ss...)
	if got := tab.Pending(); got != n {
		t.Errorf("%d of %d are due when the interval has passed", got, n)
	}
}

func TestAPendingSessionIsUpdatedWhereItStands(t *testing.T) {
	tab := NewTable(tableConfig)
	opening, established := tcp(1, session.V6Init, session.TimerTrans, 240_000), tcp(1, session.Established, session.TimerEst, 7_200_000)
	observe(tab, 0, opening, udp(2, 300_000))
	observe(tab, 4*time.Millisecond, established)
	if since, _ := tab.Due(); !since.Equal(start) || tab.Pending() != 2 {
		t.Errorf("due since %v, %d pending", since, tab.Pending())
	}
	established.Expiration -= 1
	if got, want := take(tab, 5*time.Millisecond), []session.Session{established, udp(2, 299_995)}; !slices.Equal(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestNewsGoBeforeRefreshes(t *testing.T) {
	tab := NewTable(tableConfig)
	observe(tab, 0, udp(1, 300_000), tcp(2, session.Established, session.TimerEst, 7_200_000), udp(3, 300_000))
	take(tab, 0)
	observe(tab, 3*time.Second, udp(1, 300_000), tcp(2, session.Established, session.TimerEst, 7_200_000), udp(3, 300_000), udp(4, 300_000))
	// A refresh that becomes news goes behind those that waited as such.
	observe(tab, 3*time.Second, tcp(2, session.V6FinRcv, session.TimerEst, 7_200_000))
	wantPorts(t, "two at most", tab.Take(nil, 2, at(3*time.Second)), 4, 2)
	wantPorts(t, "the rest", take(tab, 3*time.Second), 1, 3)
}

func TestTheDeadAreNotSent(t *testing.T) {
	tab := NewTable(tableConfig)
	observe(tab, 0, udp(1, 50), udp(2, 100), udp(3, 0))
	wantPorts(t, "taken", take(tab, 50*time.Millisecond), 2)
	if c := tab.Counts(); c.Died != 1 || c.Sessions != 2 {
		t.Errorf("counted %+v", c)
	}
}

func TestOutOfRoomTheOldestRefreshesGoFirst(t *testing.T) {
	c := tableConfig
	c.Pending = 3
	tab := NewTable(c)
	for _, p := range []uint16{1, 2, 3} {
		observe(tab, 0, udp(p, 300_000))
	}
	take(tab, 0)
	now := 10 * time.Second
	observe(tab, now, udp(1, 300_000), udp(11, 300_000), udp(2, 300_000), udp(12, 300_000), udp(3, 300_000))
	// 1 had to make room for 12, then 2 for 3.
	if got := tab.Counts(); got.DroppedRefreshes != 2 || got.DroppedNews != 0 || got.Pending != 3 {
		t.Errorf("counted %+v", got)
	}
	observe(tab, now, udp(13, 300_000), udp(14, 300_000))
	if got := tab.Counts(); got.DroppedRefreshes != 3 || got.DroppedNews != 1 || got.Pending != 3 {
		t.Errorf("counted %+v", got)
	}
	wantPorts(t, "left", take(tab, now), 12, 13, 14)
	// What was dropped is due with its next announcement, changed or not.
	observe(tab, now+time.Millisecond, udp(1, 300_000), udp(11, 300_000))
	wantPorts(t, "healed", take(tab, now+time.Millisecond), 1, 11)
	s := udp(2, 290_000)
	if !tab.Lacks(&s, at(now)) {
		t.Error("what was dropped is not lacking")
	}
}

func TestAFullTableStillSends(t *testing.T) {
	c := tableConfig
	c.Limit = 2
	tab := NewTable(c)
	observe(tab, 0, udp(1, 300_000), udp(2, 300_000), udp(3, 300_000), udp(3, 299_000))
	if got := tab.Counts(); got.Sessions != 2 || got.Pending != 3 || got.Full != 1 {
		t.Errorf("counted %+v", got)
	}
	if got, want := take(tab, 0), []session.Session{udp(1, 300_000), udp(2, 300_000), udp(3, 299_000)}; !slices.Equal(got, want) {
		t.Errorf("took %+v", got)
	}
	observe(tab, 0, udp(1, 300_000), udp(3, 300_000))
	lost := take(tab, 0)
	wantPorts(t, "what is not remembered is new each time", lost, 3)
	tab.Unsent(lost, true)
	wantPorts(t, "retried", take(tab, 0), 3)
	if v := accept(tab, 0, udp(4, 300_000)); v != Inject || tab.Counts().Sessions != 2 {
		t.Errorf("%s, %+v", v, tab.Counts())
	}
	// The dead make room.
	observe(tab, 303*time.Second, udp(5, 300_000), udp(6, 300_000))
	if got := tab.Counts(); got.Sessions != 2 || got.Full != 4 {
		t.Errorf("counted %+v", got)
	}
	checkTable(t, tab)
}

func TestASmallerLimitThrowsNothingOut(t *testing.T) {
	tab := NewTable(tableConfig)
	observe(tab, 0, udp(1, 300_000), udp(2, 300_000), udp(3, 300_000))
	c := tableConfig
	c.Limit, c.Pending = 1, 2
	tab.Configure(c)
	observe(tab, 0, udp(4, 300_000))
	if got := tab.Counts(); got.Sessions != 3 || got.Pending != 2 || got.DroppedNews != 2 {
		t.Errorf("counted %+v", got)
	}
	wantPorts(t, "left", take(tab, 0), 3, 4)
}

func TestAFailedDatagramIsTakenBack(t *testing.T) {
	for _, retry := range []bool{true, false} {
		tab := NewTable(tableConfig)
		observe(tab, 0, udp(1, 300_000), udp(2, 300_000))
		failed := take(tab, 0)
		observe(tab, 0, udp(3, 300_000))
		tab.Unsent(failed, retry)
		s := udp(1, 300_000)
		if got := tab.Lacks(&s, at(0)); got == retry {
			t.Errorf("lacking while it waits %v: %v", retry, got)
		}
		if retry {
			wantPorts(t, "before all others", take(tab, 0), 1, 2, 3)
			continue
		}
		wantPorts(t, "without those", take(tab, 0), 3)
		observe(tab, 10*time.Millisecond, udp(2, 299_990))
		wantPorts(t, "with its next announcement", take(tab, 10*time.Millisecond), 2)
	}
}

func TestALostDatagramHealsWithTheNextRefresh(t *testing.T) {
	tab := NewTable(tableConfig)
	s := tcp(1, session.Established, session.TimerEst, 7_200_000)
	observe(tab, 0, s)
	take(tab, 0) // and lost
	observe(tab, 990*time.Millisecond, s)
	wantPorts(t, "too early", take(tab, 990*time.Millisecond))
	observe(tab, time.Second, s)
	if got := take(tab, time.Second); !slices.Equal(got, []session.Session{s}) {
		t.Errorf("got %+v", got)
	}
}

func TestVerdictsOnWhatPeersSend(t *testing.T) {
	est := func(left uint32) session.Session { return tcp(1, session.Established, session.TimerEst, left) }
	opening := tcp(1, session.V6Init, session.TimerTrans, 240_000)
	for _, c := range []struct {
		what      string
		announced *session.Session // by this kernel, at 0
		told      *session.Session // by peer 1, at 0
		after     time.Duration
		from      uint32
		s         session.Session
		want      Verdict
	}{
		{what: "unknown", s: est(7_200_000), want: Inject},
		{what: "dead", s: est(0), want: Stale},
		{what: "announced here just now", announced: p(est(7_200_000)), after: 1999 * time.Millisecond, s: est(7_200_000), want: Own},
		{what: "announced here just now, another state", announced: p(opening), after: time.Second, s: est(7_200_000), want: Own},
		{what: "announced here a while ago, moves little", announced: p(est(7_200_000)), after: 3 * time.Second, s: est(7_200_000), want: Known},
		{what: "announced here a while ago, moves a lot", announced: p(est(7_200_000)), after: 720 * time.Second, s: est(7_200_000), want: Inject},
		{what: "announced here a while ago, a little less than a lot", announced: p(est(7_200_000)), after: 717 * time.Second, s: est(7_200_000), want: Known},
		{what: "announced here since", announced: p(est(7_200_000)), after: 3 * time.Second, s: est(7_100_000), want: Stale},
		{what: "older state than announced here", announced: p(est(7_200_000)), after: 10 * time.Second, s: tcp(1, session.V6Init, session.TimerTrans, 225_000), want: Stale},
		{what: "newer state than announced here", announced: p(opening), after: 10 * time.Second, s: est(7_200_000), want: Inject},
		{what: "a first FIN, with the old update time", announced: p(est(7_200_000)), after: 10 * time.Second, s: tcp(1, session.V4FinRcv, session.TimerEst, 7_190_000), want: Inject},
		{what: "an old FIN", announced: p(est(7_200_000)), after: 10 * time.Second, s: tcp(1, session.V4FinRcv, session.TimerEst, 6_000_000), want: Stale},
		{what: "back from FIN with the old update time", announced: p(tcp(1, session.V4FinRcv, session.TimerEst, 7_200_000)), after: 10 * time.Second, s: est(7_180_000), want: Stale},
		{what: "told again", told: p(est(7_200_000)), from: 1, s: est(7_200_000), want: Known},
		{what: "told by another", told: p(est(7_200_000)), from: 2, s: est(7_199_000), want: Stale},
		{what: "a later word of the same peer", told: p(est(7_200_000)), from: 1, s: tcp(1, session.V6Init, session.TimerTrans, 100_000), want: Inject},
		{what: "an older word of another peer", told: p(tcp(1, session.V4FinV6FinRcv, session.TimerTrans, 240_000)), from: 2, s: est(7_000_000), want: Stale},
		{what: "a newer word of another peer", told: p(est(7_200_000)), after: time.Second, from: 2, s: tcp(1, session.V4FinV6FinRcv, session.TimerTrans, 240_000), want: Inject},
		{what: "after its death", told: p(tcp(1, session.V4Init, session.TimerSYN4, 6000)), after: 6 * time.Second, from: 1, s: tcp(1, session.V4Init, session.TimerSYN4, 3000), want: Inject},
	} {
		tab := NewTable(tableConfig)
		if c.announced != nil {
			observe(tab, 0, *c.announced)
		}
		if c.told != nil {
			accept(tab, 0, *c.told)
		}
		got, _ := tab.Accept(&Source{From: max(c.from, 1)}, &c.s, at(c.after))
		if got != c.want || tab.Counts().Verdicts[c.want] == 0 {
			t.Errorf("%s: %s, want %s", c.what, got, c.want)
		}
	}
}

func p(s session.Session) *session.Session { return &s }

func TestASecondInjectionWaitsUntilTheKernelIsFarBehind(t *testing.T) {
	tab := NewTable(tableConfig)
	accept(tab, 0, udp(1, 300_000))
	var injected []time.Duration
	for now := time.Second; now <= time.Minute; now += time.Second {
		if accept(tab, now, udp(1, 300_000)) == Inject {
			injected = append(injected, now)
		}
	}
	if want := []time.Duration{29 * time.Second, 58 * time.Second}; !slices.Equal(injected, want) {
		t.Errorf("injected at %v, want %v", injected, want)
	}
}

func TestABackupsAdvertisementTurnsNothingBack(t *testing.T) {
	tab := NewTable(tableConfig)
	var advertised []session.Session
	for port := range uint16(100) { // the active node's, idle for up to 100 s
		observe(tab, time.Duration(port)*time.Second, tcp(port, session.Established, session.TimerEst, 7_200_000))
		// Of some the backup missed a state, of others a refresh.
		if port%2 == 0 {
			advertised = append(advertised, tcp(port, session.V6Init, session.TimerTrans, 100_000))
		} else {
			advertised = append(advertised, tcp(port, session.Established, session.TimerEst, 7_000_000))
		}
	}
	now := 100 * time.Second
	take(tab, now)
	for range 2 {
		for _, s := range advertised {
			if v := accept(tab, now, s); v != Own && v != Stale {
				t.Errorf("port %d is %s", s.Src6Port, v)
			}
		}
	}
	// What shows that the backup missed a state is sent again.
	for port := range uint16(100) {
		s := tcp(port, session.Established, session.TimerEst, 7_100_000)
		if got, want := tab.Lacks(&s, at(now)), port%2 == 0; got != want {
			t.Errorf("port %d is lacking: %v", port, got)
		}
	}
}

func TestAWrongRefusalHealsWithTheNextAnnouncement(t *testing.T) {
	// This kernel announced the session after the peer's last packet, which a state
	// that keeps its update time then seems older than.
	tab := NewTable(tableConfig)
	observe(tab, 100*time.Second, tcp(1, session.V6Init, session.TimerTrans, 240_000))
	trans := tcp(1, session.Trans, session.TimerTrans, 200_000)
	if v := accept(tab, 103*time.Second, trans); v != Stale {
		t.Fatalf("the premise does not hold: %s", v)
	}
	if v := accept(tab, 104*time.Second, tcp(1, session.Established, session.TimerEst, 7_200_000)); v != Inject {
		t.Errorf("the next announcement is %s", v)
	}
}

func rivalOf(s session.Session, mask, node bool) session.Session {
	if !mask {
		s.Src4Port += 1000
	}
	if !node {
		s.Src6Port += 1000
	}
	s.Dst4Port = 99
	return s
}

func TestAContradictedBIBEntryIsAConflict(t *testing.T) {
	for _, c := range []struct{ mask, node bool }{{true, false}, {false, true}} {
		tab := NewTable(tableConfig)
		old := udp(1, 300_000)
		accept(tab, 0, old)
		rival := rivalOf(old, c.mask, c.node)
		want := BIB{Proto: session.UDP, Src6: old.Src6, Src4: old.Src4, Src6Port: 1, Src4Port: 1, Older: true}
		stale := rival
		stale.Expiration -= 1000 // as old as the old one
		if v, b := tab.Accept(&Source{From: 1}, &stale, at(time.Second)); v != Conflict || b.Older {
			t.Errorf("%s with %+v, which is no older", v, b)
		}
		for range 2 {
			if v, b := tab.Accept(&Source{From: 1}, &rival, at(time.Second)); v != Conflict || b != want {
				t.Errorf("%s with %+v, want %+v", v, b, want)
			}
		}
		observe(tab, 2*time.Second, old)
		want.Own = true
		if v, b := tab.Accept(&Source{From: 1}, &rival, at(3*time.Second)); v != Conflict || b != want {
			t.Errorf("%s with %+v, want %+v", v, b, want)
		}
		tab.RemoveBIB(want)
		if n := tab.Counts().Sessions; n != 0 {
			t.Errorf("%d sessions of a BIB entry that was removed", n)
		}
		if v := accept(tab, 3*time.Second, rival); v != Inject {
			t.Errorf("after the removal it is %s", v)
		}
		checkTable(t, tab)
	}
}

func TestABIBEntryGoesWithItsLastSession(t *testing.T) {
	tab := NewTable(tableConfig)
	a, b := udp(1, 1000), udp(1, 10_000)
	b.Dst4Port = 54
	observe(tab, 0, a, b)
	rival := rivalOf(a, true, false)
	for now, want := range map[time.Duration]Verdict{9 * time.Second: Conflict, 12 * time.Second: Conflict, 13 * time.Second: Inject} {
		tab := NewTable(tableConfig)
		observe(tab, 0, a, b)
		if v := accept(tab, now, rival); v != want {
			t.Errorf("after %v it is %s, want %s", now, v, want)
		}
		checkTable(t, tab)
	}
}

func TestTheKernelsWordDisplacesABIBEntry(t *testing.T) {
	tab := NewTable(tableConfig)
	old := udp(1, 300_000)
	other := old
	other.Dst4Port = 54
	accept(tab, 0, old)
	accept(tab, 0, other)
	observe(tab, time.Second, rivalOf(old, true, false))
	if c := tab.Counts(); c.Sessions != 1 || c.Displaced != 1 {
		t.Errorf("counted %+v", c)
	}
	if v := accept(tab, 4*time.Second, old); v != Conflict {
		t.Errorf("what was displaced is %s", v)
	}
	checkTable(t, tab)
}

func TestASessionDisplacedAndAnnouncedInOneMessageIsNew(t *testing.T) {
	tab := NewTable(tableConfig)
	zero := session.Session{State: session.V6Init, Timer: session.TimerTrans, Expiration: 240_000} // as a free record's
	other := zero
	other.Dst4Port = 1
	observe(tab, 0, other, zero)
	take(tab, 0)
	rival := rivalOf(zero, true, false)
	observe(tab, time.Second, rival, zero)
	if got := take(tab, time.Second); !slices.Equal(got, []session.Session{zero}) {
		t.Errorf("took %+v", got)
	}
	checkTable(t, tab)
}

func TestWhatTheKernelRefusedIsUnknown(t *testing.T) {
	tab := NewTable(tableConfig)
	a, b := udp(1, 300_000), udp(2, 300_000)
	accept(tab, 0, a)
	accept(tab, 0, b)
	observe(tab, 500*time.Millisecond, b)
	if tab.Pending() != 0 {
		t.Fatal("a refresh was not held back")
	}
	tab.Refused([]session.Session{a, b, udp(3, 1)})
	if v := accept(tab, 4*time.Second, a); v != Inject {
		t.Errorf("what was refused is %s", v)
	}
	if v := accept(tab, 4*time.Second, b); v != Known {
		t.Errorf("what the kernel announced since is %s", v)
	}
}

func TestASweepSendsWhatPeersLack(t *testing.T) {
	tab := NewTable(tableConfig)
	est := func(port uint16, left uint32) session.Session {
		return tcp(port, session.Established, session.TimerEst, left)
	}
	observe(tab, 0, est(1, 7_200_000), est(2, 7_200_000), tcp(3, session.V6Init, session.TimerTrans, 240_000))
	take(tab, 0)
	accept(tab, 0, est(4, 7_200_000))
	now := 100 * time.Second
	kernel := []session.Session{
		est(1, 7_100_000), // as peers know it
		est(2, 7_200_000), // it lives 100 s longer than they know
		est(3, 7_200_000), // it has another state
		est(4, 7_100_000), // a peer told it
		est(5, 7_000_000), // nobody knows it
		est(6, 0),
	}
	var lacking []session.Session
	for _, s := range kernel {
		if tab.Lacks(&s, at(now)) {
			lacking = append(lacking, s)
		}
	}
	wantPorts(t, "lacking", lacking, 2, 3, 5)
	got, through := tab.Sweep(nil, lacking, at(now), at(now), false, 2, at(now+time.Second))
	want := []session.Session{est(2, 7_199_000), est(3, 7_199_000)}
	if !slices.Equal(got, want) || through != 2 {
		t.Errorf("through %d, sent %+v, want %+v", through, got, want)
	}
	got, through = tab.Sweep(got[:0], lacking[through:], at(now), at(now), false, 2, at(now+time.Second))
	if want := []session.Session{est(5, 6_999_000)}; !slices.Equal(got, want) || through != 1 {
		t.Errorf("through %d, sent %+v, want %+v", through, got, want)
	}
	got, through = tab.Sweep(nil, lacking, at(now), at(now), false, 9, at(now+time.Second))
	if len(got) != 0 || through != 3 {
		t.Errorf("through %d, sent again %+v", through, got)
	}
	tab.Unsent(want, false)
	wantPorts(t, "unsent", first(tab.Sweep(nil, lacking, at(now), at(now), false, 9, at(now+time.Second))), 2, 3)
}

func TestWhatMayNotHaveArrivedIsSentByTheNextSweepOnce(t *testing.T) {
	tab := NewTable(tableConfig)
	for n := range uint16(4) { // a second apart
		observe(tab, time.Duration(n)*time.Second, udp(n, 300_000))
		take(tab, time.Duration(n)*time.Second)
	}
	tab.Doubt(at(2500*time.Millisecond), at(4*time.Second))
	tab.Doubt(at(time.Second), at(2*time.Second)) // the first is not settled: both, and what lies between
	sweep := func(now time.Duration) []session.Session {
		var kernel []session.Session
		for n := range uint16(4) {
			s := udp(n, 300_000-uint32((now-time.Duration(n)*time.Second).Milliseconds()))
			if tab.Lacks(&s, at(now)) {
				kernel = append(kernel, s)
			}
		}
		return first(tab.Sweep(nil, kernel, at(now), at(now), false, 9, at(now)))
	}
	wantPorts(t, "in doubt", sweep(5*time.Second), 1, 2, 3)
	tab.Settle(at(3 * time.Second)) // it began before the doubt ended
	observe(tab, 6*time.Second, udp(0, 300_000))
	take(tab, 6*time.Second)
	wantPorts(t, "sent since", sweep(7*time.Second))
	tab.Settle(at(7 * time.Second))
	tab.Doubt(at(6*time.Second), at(6*time.Second))
	wantPorts(t, "a doubt of its own", sweep(8*time.Second), 0)
}

func first(s []session.Session, _ int) []session.Session { return s }

func TestAFullSweepSendsAllThatWasNotSentSinceItBegan(t *testing.T) {
	tab := NewTable(tableConfig)
	observe(tab, 0, udp(1, 300_000), udp(2, 300_000), udp(3, 300_000), tcp(4, session.Established, session.TimerEst, 7_200_000))
	take(tab, 0)
	began := at(10 * time.Second)
	kernel := []session.Session{udp(1, 290_000), udp(2, 290_000), udp(3, 290_000), tcp(4, session.Established, session.TimerEst, 7_190_000), udp(5, 1000)}
	observe(tab, 11*time.Second, udp(2, 300_000), tcp(4, session.V4FinV6FinRcv, session.TimerTrans, 240_000)) // waits
	accept(tab, 11*time.Second, udp(3, 300_000))
	got, through := tab.Sweep(nil, kernel, began, began, true, everything, at(12*time.Second))
	want := []session.Session{udp(1, 288_000), udp(2, 299_000), tcp(4, session.V4FinV6FinRcv, session.TimerTrans, 239_000)}
	if !slices.Equal(got, want) || through != len(kernel) {
		t.Errorf("through %d, sent %+v, want %+v", through, got, want)
	}
	if tab.Pending() != 0 {
		t.Error("what was swept still waits")
	}
	observe(tab, 13*time.Second, udp(1, 300_000))
	take(tab, 13*time.Second)
	wantPorts(t, "again", first(tab.Sweep(nil, kernel, began, began, true, everything, at(14*time.Second))))
}

func TestASweepDoesNotBringBackABIBEntryThatIsGone(t *testing.T) {
	tab := NewTable(tableConfig)
	old := udp(1, 300_000)
	observe(tab, 2*time.Second, rivalOf(old, true, false)) // after the kernel's table was read
	got, _ := tab.Sweep(nil, []session.Session{old}, at(time.Second), at(time.Second), true, everything, at(3*time.Second))
	if len(got) != 0 || tab.Counts().Sessions != 1 {
		t.Errorf("sent %+v", got)
	}
	got, _ = tab.Sweep(nil, []session.Session{old}, at(4*time.Second), at(4*time.Second), true, everything, at(5*time.Second))
	wantPorts(t, "read since", got, 1)
	checkTable(t, tab)
}

func TestWhatTheKernelNoLongerHasIsForgotten(t *testing.T) {
	tab := NewTable(tableConfig)
	const n = 3000
	for i := range uint16(n) {
		accept(tab, 0, udp(i, 300_000)) // and silently dropped by the kernel, most of it
	}
	now := 5 * time.Second
	tab.EndSweep(tab.BeginSweep()) // by then all were injected
	tab.BeginSweep()
	for i := range uint16(n) {
		if s := udp(i, 295_000); i%3 == 0 && tab.Lacks(&s, at(now)) {
			t.Fatal("peers lack what they told")
		}
	}
	for i := range uint16(n) {
		switch i % 3 {
		case 1:
			observe(tab, now, udp(i, 300_000)) // just made again
		}
	}
	lapOf := func() {
		for range 40 {
			now += time.Second
			tab.Expire(at(now))
		}
	}
	sweep := tab.BeginSweep() // the first one failed
	lapOf()
	if c := tab.Counts(); c.Sessions != n {
		t.Errorf("an unfinished sweep left %+v", c)
	}
	tab.EndSweep(sweep)
	if v := accept(tab, now, udp(5, 300_000-uint32(now.Milliseconds()))); v != Inject {
		t.Errorf("what the kernel lacks is %s before it is forgotten", v)
	}
	lapOf()
	if c := tab.Counts(); c.Sessions != n/3*2+1 || c.Vanished != n/3-1 {
		t.Errorf("counted %+v", c)
	}
	if v := accept(tab, now, udp(2, 300_000)); v != Inject {
		t.Errorf("what the kernel lacks is %s", v)
	}
	checkTable(t, tab)
}

func TestWhatTheKernelHadBeforeIsLearnt(t *testing.T) {
	tab := NewTable(tableConfig)
	rival := udp(2, 290_000)
	rival.Src6[15]++
	accept(tab, 0, udp(1, 300_000))
	accept(tab, 0, rival) // and silently dropped by the kernel
	for _, s := range []session.Session{udp(1, 100_000), udp(2, 100_000), udp(3, 100_000), udp(4, 0)} {
		tab.Learn(&s, at(0))
	}
	if len(take(tab, 0)) != 0 {
		t.Error("it is taken for news")
	}
	if c := tab.Counts(); c.Sessions != 3 || c.Displaced != 1 {
		t.Errorf("counted %+v", c)
	}
	for _, c := range []struct {
		what string
		s    session.Session
		want Verdict
	}{
		{"what was known before", udp(1, 300_000), Known},
		{"what the kernel has", udp(2, 100_000), Known},
		{"what would live much longer", udp(3, 300_000), Inject},
		{"what contradicts it", rival, Conflict},
	} {
		if v := accept(tab, 0, c.s); v != c.want {
			t.Errorf("%s is %s, want %s", c.what, v, c.want)
		}
	}
	s := udp(5, 300_000)
	tab.Learn(&s, at(0))
	if !tab.Lacks(&s, at(0)) {
		t.Error("peers do not lack what nobody told them")
	}
	checkTable(t, tab)
}

func TestWhatWaitsToBeInjectedIsNotForgottenByASweep(t *testing.T) {
	tab := NewTable(tableConfig)
	accept(tab, 0, udp(1, 300_000))
	first := tab.BeginSweep()
	accept(tab, 0, udp(2, 300_000))
	tab.EndSweep(first)
	for _, port := range []uint16{1, 2} {
		if v := accept(tab, time.Second, udp(port, 299_000)); v != Known {
			t.Errorf("session %d is %s once a sweep has ended that could not come by it", port, v)
		}
	}
	tab.EndSweep(tab.BeginSweep())
	tab.EndSweep(tab.BeginSweep())
	for _, port := range []uint16{1, 2} {
		if v := accept(tab, 2*time.Second, udp(port, 298_000)); v != Inject {
			t.Errorf("session %d is %s when sweeps did not come by it", port, v)
		}
	}
}

func TestASweepThatOthersHaveOvertakenEndsNothing(t *testing.T) {
	tab := NewTable(tableConfig)
	s := udp(1, 300_000)
	slow := tab.BeginSweep()
	tab.Learn(&s, at(0))
	tab.EndSweep(tab.BeginSweep()) // shares what the slow one saw
	second := tab.BeginSweep()
	tab.EndSweep(slow) // the second has not come by the session yet
	if v := accept(tab, 3*time.Second, udp(1, 297_000)); v != Known {
		t.Errorf("a sweep that is under way makes a session %s", v)
	}
	tab.EndSweep(second)
	tab.EndSweep(slow)
	if v := accept(tab, 4*time.Second, udp(1, 296_000)); v != Inject {
		t.Errorf("what has vanished is %s once an older sweep has ended", v)
	}
}

func TestWhatHasVanishedIsNoObstacle(t *testing.T) {
	tab := NewTable(tableConfig)
	old := udp(1, 300_000)
	tab.Learn(&old, at(0))
	tab.EndSweep(tab.BeginSweep())
	heir := udp(1, 100_000) // older news than the entry that was removed
	heir.Src6[15]++
	if v := accept(tab, time.Second, heir); v != Inject {
		t.Errorf("what a vanished session contradicts is %s", v)
	}
	if c := tab.Counts(); c.Sessions != 1 || c.Vanished != 1 {
		t.Errorf("counted %+v", c)
	}
	checkTable(t, tab)
}

func TestTheKernelsWordIsTakenForWhatIsKnownForLongUnlessNewerWordMayWait(t *testing.T) {
	tab := NewTable(tableConfig)
	had := func(life uint32) session.Session { return tcp(1, session.Established, session.TimerEst, life) }
	told := func(life uint32) session.Session { return tcp(1, session.V4FinV6FinRcv, session.TimerTrans, life) }
	accept(tab, 0, told(240_000)) // and waits to be injected
	s := had(7_000_000)
	tab.Learn(&s, at(30*time.Second))
	if s := told(210_000); tab.Overtaken(&s, at(30*time.Second)) {
		t.Error("what waits to be injected is overtaken by what the kernel had before")
	}
	s = had(6_930_000)
	tab.Learn(&s, at(100*time.Second)) // it never was
	if v := accept(tab, 100*time.Second, had(6_930_000)); v != Known {
		t.Errorf("what the kernel has is %s", v)
	}
}

func TestASweepDoesNotTakeTheKernelsOldWordForWhatWaitsToBeInjected(t *testing.T) {
	tab := NewTable(tableConfig)
	closing := tcp(1, session.V4FinV6FinRcv, session.TimerTrans, 240_000)
	accept(tab, 0, closing)
	had := tcp(1, session.Established, session.TimerEst, 7_100_000)
	if tab.Lacks(&had, at(20*time.Second)) {
		t.Error("peers are to hear of what the kernel had before")
	}
	translated := tcp(1, session.Established, session.TimerEst, 7_199_000) // 19 s later than it was told
	if !tab.Lacks(&translated, at(20*time.Second)) {
		t.Error("peers are not to hear of what the kernel did since")
	}
}

// told is a peer's word, by its order and hand.
func told(order uint64, second bool, s session.Session) (*Source, *session.Session) {
	return &Source{From: 3, Order: order, SecondHand: second}, &s
}

func TestOfOneNodesWordsTheLastCountsHoweverTheyArrive(t *testing.T) {
	tab := NewTable(tableConfig)
	closed, open := tcp(1, session.V4FinV6FinRcv, session.TimerTrans, 240_000), tcp(1, session.Established, session.TimerEst, 7_200_000)
	for _, c := range []struct {
		what  string
		order uint64
		s     session.Session
		after time.Duration
		want  Verdict
	}{
		{"the first", 10, open, 0, Inject},
		{"a later one", 12, closed, 0, Inject},
		{"one between", 11, open, 0, Stale},
		{"the same again", 12, closed, 0, Stale},
		{"a later one still", 1<<23 + 10, open, time.Second, Inject},
		{"once more", 1<<24 - 2, closed, time.Second, Inject},
		{"when the bits that are kept went round", 1<<24 + 2, open, time.Second, Inject},
		{"one before that", 1<<24 - 1, closed, time.Second, Stale},
		{"one that is long after, half a round and more", 1<<25 - 1, closed, 2 * time.Minute, Inject},
	} {
		src, s := told(c.order, false, c.s)
		if got, _ := tab.Accept(src, s, at(c.after)); got != c.want {
			t.Errorf("%s: %s, want %s", c.what, got, c.want)
		}
	}
}

func TestWhatIsNotFirstHandCountsWhereNothingOrMuchOlderIsKnown(t *testing.T) {
	aged := func(s session.Session, ms uint32) session.Session { s.Expiration -= ms; return s }
	open, closed := tcp(1, session.Established, session.TimerEst, 7_200_000), tcp(1, session.V4FinV6FinRcv, session.TimerTrans, 240_000)
	for _, c := range []struct {
		what   string
		known  *session.Session
		hand   bool // is known at second hand
		s      session.Session
		second bool
		want   Verdict
	}{
		{"nothing known", nil, false, open, true, Inject},
		{"a little newer", p(aged(open, 2000)), false, closed, true, Stale},
		{"much newer", p(aged(open, 3000)), false, closed, true, Inject},
		{"the same", p(open), false, open, true, Known},
		{"older", p(closed), false, aged(open, 1000), true, Stale},
		{"first hand, a little older than second", p(closed), true, aged(open, 2000), false, Inject},
		{"first hand, much older than second", p(closed), true, aged(open, 3000), false, Stale},
		{"first hand, older than another's", p(closed), false, aged(open, 1), false, Stale},
		{"first hand, newer than another's", p(aged(closed, 1)), false, open, false, Inject},
	} {
		tab := NewTable(tableConfig)
		if c.known != nil {
			tab.Accept(&Source{From: 9, Order: 1, SecondHand: c.hand}, c.known, at(0))
		}
		src, s := told(5, c.second, c.s)
		if got, _ := tab.Accept(src, s, at(0)); got != c.want {
			t.Errorf("%s: %s, want %s", c.what, got, c.want)
		}
	}
}

func TestFirstHandIsWhatThisKernelSaidLast(t *testing.T) {
	tab := NewTable(tableConfig)
	s := tcp(1, session.Established, session.TimerEst, 7_200_000)
	ref := func() session.Ref {
		r, _ := tab.Scan(make([]session.Placed, 0, 1), 0, &session.AllBuckets)
		return r[0].Ref()
	}
	tab.Learn(&s, at(0))
	if tab.FirstHand(ref()) || !tab.Untold(ref()) {
		t.Error("what the kernel had before is first-hand")
	}
	observe(tab, 0, s)
	if !tab.FirstHand(ref()) {
		t.Error("what the kernel announced is not first-hand")
	}
	src, again := told(1, true, s)
	tab.Accept(src, again, at(10*time.Second))
	if !tab.FirstHand(ref()) {
		t.Error("somebody who only repeats it takes it over")
	}
	src, again = told(2, false, s)
	tab.Accept(src, again, at(20*time.Second))
	if tab.FirstHand(ref()) || tab.Untold(ref()) {
		t.Error("what another node's kernel said since is first-hand here")
	}
}

func TestAPageOfTheTableDoesNotOverruleWhatTheKernelHasJustAnnounced(t *testing.T) {
	tab := NewTable(tableConfig)
	ours := udp(1, 300_000)
	observe(tab, 0, ours)
	old := udp(1, 200_000)
	old.Src6[15]++
	tab.Learn(&old, at(time.Second)) // read before
	if v := accept(tab, time.Second, old); v != Conflict {
		t.Errorf("the entry that was there before is %s", v)
	}
	tab.Learn(&old, at(3*time.Second))
	if v := accept(tab, 3*time.Second, ours); v != Conflict {
		t.Errorf("what the kernel no longer has is %s", v)
	}
	checkTable(t, tab)
}

func TestSessionsLeaveByTheirOwnExpirationAndTheirRoomIsUsedAgain(t *testing.T) {
	tab := NewTable(tableConfig)
	const n = 20_000
	ss := populace(n)
	for round := range 5 {
		base := time.Duration(round) * time.Hour
		observe(tab, base, ss...)
		take(tab, base)
		for s := range 300 {
			tab.Expire(at(base + time.Duration(s)*time.Second))
		}
		if c := tab.Counts(); c.Sessions != n {
			t.Fatalf("%d sessions before their end", c.Sessions)
		}
		for s := 303; s < 335; s++ {
			tab.Expire(at(base + time.Duration(s)*time.Second))
		}
		if c := tab.Counts(); c.Sessions != 0 {
			t.Fatalf("%d sessions half a minute after their end", c.Sessions)
		}
	}
	if pages := len(tab.pages); pages > n/pageSlots+1 {
		t.Errorf("%d pages for %d sessions", pages, n)
	}
	checkTable(t, tab)
}

func TestAnExpirationTakesABoundedTime(t *testing.T) {
	ss := populace(100_000)
	tab := fill(t, tableConfig, ss, start)
	tab.Expire(at(time.Hour))
	if left := tab.Counts().Sessions; left != len(ss)-forgetAtMost {
		t.Errorf("one call left %d of %d sessions", left, len(ss))
	}
}

func TestATableLastsForYears(t *testing.T) {
	tab := NewTable(tableConfig)
	tab.Observe(nil, start)
	for _, years := range []int{1, 5, 20, 30} {
		now := start.AddDate(years, 0, 0)
		tab.Observe([]session.Session{udp(uint16(years), 300_000)}, now)
		if since, _ := tab.Due(); !since.Equal(now) {
			t.Errorf("after %d years: due since %v", years, since)
		}
		got := tab.Take(nil, everything, now.Add(time.Second))
		if !slices.Equal(got, []session.Session{udp(uint16(years), 299_000)}) {
			t.Errorf("after %d years: %+v", years, got)
		}
		tab.Observe(got, now.Add(1500*time.Millisecond))
		if tab.Pending() != 0 {
			t.Errorf("after %d years the refresh rule does not hold", years)
		}
	}
}

func TestTheLongestTimeoutIsALife(t *testing.T) {
	c := tableConfig
	c.Timeouts.UDP = math.MaxUint32 // 49 days
	tab := NewTable(c)
	observe(tab, 0, udp(1, math.MaxUint32))
	take(tab, 0)
	for now := time.Duration(0); now < 49*24*time.Hour; now += time.Hour {
		tab.Expire(at(now))
	}
	s := udp(1, math.MaxUint32)
	if tab.Counts().Sessions != 1 || accept(tab, 49*24*time.Hour, s) != Inject {
		t.Error("it did not live for 49 days")
	}
}

// Two nodes, nothing lost: whatever the traffic, what the backup's kernel has
// ends at most a tenth of a timeout, and a deadline, before what the active's has.
func TestAPeersKernelLosesATenthOfALifeAtMost(t *testing.T) {
	const deadline = 10 * time.Millisecond
	for _, refresh := range []time.Duration{time.Second, 2 * time.Second, time.Minute} {
		seed := rand.Uint64()
		t.Run(fmt.Sprintf("%v, seed %d", refresh, seed), func(t *testing.T) {
			c := tableConfig
			c.Refresh = refresh
			r := rand.New(rand.NewPCG(seed, 1))
			active, backup := NewTable(c), NewTable(c)
			type life struct {
				s    session.Session
				dies time.Duration
			}
			const n = 50
			here, there := make(map[uint16]life), make(map[uint16]life)
			kinds := []session.Session{
				udp(0, 300_000), tcp(0, session.Established, session.TimerEst, 7_200_000),
				tcp(0, session.V6Init, session.TimerTrans, 240_000), tcp(0, session.V4Init, session.TimerSYN4, 6000),
				tcp(0, session.V4FinRcv, session.TimerEst, 7_200_000),
			}
			now := time.Duration(0)
			for range 30_000 {
				now += time.Duration(r.IntN(10)) * time.Millisecond
				if r.IntN(300) == 0 {
					now += time.Duration(r.IntN(60)) * time.Second
				}
				if since, ok := active.Due(); ok && at(now).Sub(since) >= deadline {
					for _, s := range active.Take(nil, everything, at(now)) {
						if v, _ := backup.Accept(&Source{From: 1}, &s, at(now)); v == Inject {
							there[s.Src6Port] = life{s, now + time.Duration(s.Expiration)*time.Millisecond}
						} else if v != Known {
							t.Fatalf("live news is %s: %+v", v, s)
						}
					}
				}
				port := uint16(r.IntN(n))
				s := kinds[int(port)%2] // each its protocol
				if port%2 == 1 {
					s = kinds[1+r.IntN(4)*r.IntN(2)]
				}
				s.Src6Port, s.Src4Port = port, port
				dies := now + time.Duration(s.Expiration)*time.Millisecond
				if old, ok := here[port]; ok && old.s.Timer == s.Timer && old.dies > now && r.IntN(10) == 0 {
					dies = old.dies // the old update time
					s.Expiration = uint32((dies - now).Milliseconds())
				}
				here[port] = life{s, dies}
				observe(active, now, s)
				if active.Pending() > 0 {
					continue // still on its way
				}
				for port, mine := range here {
					timeout, _ := c.Timeouts.Of(mine.s.Proto, mine.s.Timer)
					most := time.Duration(timeout)*time.Millisecond/10 + deadline
					if mine.dies > now && (there[port].s.State != mine.s.State || mine.dies-there[port].dies > most) {
						t.Fatalf("at %v port %d, %s, dies at %v, at the peer %s at %v", now, port, mine.s.State, mine.dies, there[port].s.State, there[port].dies)
					}
				}
			}
			if active.Counts().Held == 0 || backup.Counts().Verdicts[Known] == 0 {
				t.Errorf("nothing was held back: %+v, %+v", active.Counts(), backup.Counts())
			}
		})
	}
}

func TestATableInSteadyStateDoesNotAllocate(t *testing.T) {
	const n = 3 * message
	ss := populace(n)
	tab := fill(t, tableConfig, ss, start)
	buf := make([]session.Session, 0, n)
	now := start
	cycle := func() {
		now = now.Add(700 * time.Millisecond) // some refreshes are due, some held
		tab.Observe(ss, now)
		buf = tab.Take(buf[:0], n, now)
		tab.Unsent(buf[:len(buf)/2], true)
		buf = tab.Take(buf[:0], n, now)
		tab.Foresee(ss)
		for i := range ss {
			tab.Accept(&Source{From: 1}, &ss[i], now.Add(5*time.Second))
			tab.Lacks(&ss[i], now)
		}
		buf, _ = tab.Sweep(buf[:0], ss, now, now, true, n, now)
		for i := range ss { // new sessions in the room of old ones
			tab.RemoveBIB(BIB{Proto: ss[i].Proto, Src6: ss[i].Src6, Src4: ss[i].Src4, Src6Port: ss[i].Src6Port, Src4Port: ss[i].Src4Port})
		}
		tab.Observe(ss, now)
		buf = tab.Take(buf[:0], n, now)
		tab.Expire(now)
	}
	cycle()
	if got := testing.AllocsPerRun(50, cycle); got != 0 {
		t.Errorf("%v allocations", got)
	}
}

func TestTheIndexIsAMap(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 2))
	hashes := make(map[uint32]uint64)
	rehash := func(slot uint32) uint64 { return hashes[slot] }
	x := newIndex()
	find := func(slot uint32) bool { _, _, ok := x.seek(hashes[slot], slot); return ok }
	var in []uint32
	for step := range 200_000 {
		if len(in) == 0 || r.IntN(100) < 60 && step < 100_000 {
			slot := uint32(step + 1)
			hashes[slot] = r.Uint64()
			if r.IntN(4) == 0 { // at home in the last places, or as another
				hashes[slot] = hashes[slot]&^math.MaxUint32 | math.MaxUint32 - uint64(r.IntN(1000))
			}
			if !x.put(hashes[slot], slot, rehash) {
				t.Fatalf("seed %d: no room for slot %d", seed, slot)
			}
			in = append(in, slot)
			continue
		}
		i := r.IntN(len(in))
		slot := in[i]
		in[i] = in[len(in)-1]
		in = in[:len(in)-1]
		if !find(slot) {
			t.Fatalf("seed %d: slot %d is lost", seed, slot)
		}
		x.remove(hashes[slot], slot, rehash)
		if find(slot) {
			t.Fatalf("seed %d: slot %d is still there", seed, slot)
		}
	}
	for _, slot := range in {
		if !find(slot) {
			t.Fatalf("seed %d: slot %d is lost", seed, slot)
		}
	}
	if len(x.segments) < 32 {
		t.Errorf("the index did not grow: %d segments", len(x.segments))
	}
}

func TestAnIndexThatCannotTellHashesApartRefuses(t *testing.T) {
	x := newIndex()
	rehash := func(uint32) uint64 { return 0 }
	for slot := uint32(1); slot <= segmentFull; slot++ {
		if !x.put(0, slot, rehash) {
			t.Fatalf("no room for slot %d", slot)
		}
	}
	if x.put(0, segmentFull+1, rehash) {
		t.Error("a full segment took one more")
	}
}

func TestAnIndexWithoutRoomCostsTheMemoryOfASessionAlone(t *testing.T) {
	for i := range 3 {
		tab := NewTable(tableConfig)
		*[]*index{&tab.sessions, &tab.nodes, &tab.masks}[i].segments[0] = segment{used: segmentFull, depth: maxDepth}
		observe(tab, 0, udp(1, 300_000))
		if v := accept(tab, 0, udp(2, 300_000)); v != Inject {
			t.Errorf("%s", v)
		}
		s := udp(3, 300_000)
		tab.Sweep(nil, []session.Session{s}, start, start, true, 1, start)
		tab.Unsent([]session.Session{s}, true)
		if c := tab.Counts(); c.Sessions != 0 || c.Pending != 0 || c.Full != 4 {
			t.Errorf("counted %+v", c)
		}
		for _, x := range []*index{&tab.sessions, &tab.nodes, &tab.masks} {
			if *x.segments[0] != (segment{}) && x.segments[0].depth != maxDepth {
				t.Error("something is left in an index")
			}
		}
	}
}

func TestABIBEntryOfTooManySessionsIsTakenForOwn(t *testing.T) {
	tab := NewTable(tableConfig)
	for i := range uint16(ringSearch + 1) {
		s := udp(1, 300_000)
		s.Dst4Port = i
		accept(tab, 0, s)
	}
	rival := rivalOf(udp(1, 300_000), true, false)
	if v, b := tab.Accept(&Source{From: 1}, &rival, at(time.Second)); v != Conflict || !b.Own {
		t.Errorf("%s with %+v", v, b)
	}
}

func TestWhatWaitsIsOvertakenByTheRemovalOfItsBIBEntry(t *testing.T) {
	tab := NewTable(tableConfig)
	o := udp(1, 100_000) // updated 200 s ago
	if v := accept(tab, 0, o); v != Inject {
		t.Fatal(v)
	}
	n := udp(2, 300_000)
	n.Src4, n.Src4Port = o.Src4, o.Src4Port // another node behind that mask
	v, bib := tab.Accept(&Source{From: 1}, &n, at(time.Second))
	if v != Conflict || !bib.Older || bib.Own {
		t.Fatal(v, bib)
	}
	tab.RemoveBIB(bib)
	if v := accept(tab, time.Second, n); v != Inject {
		t.Fatal(v)
	}
	if !tab.Overtaken(&o, at(time.Second)) {
		t.Error("what waits of the entry that was removed goes to the kernel all the same")
	}
}

func TestWhatWaitsIsOvertakenByWhatTheKernelAnnouncesOfItsMask(t *testing.T) {
	tab := NewTable(tableConfig)
	o := udp(1, 100_000)
	accept(tab, 0, o)
	n := udp(2, 300_000)
	n.Src4, n.Src4Port = o.Src4, o.Src4Port
	observe(tab, time.Second, n)
	if !tab.Overtaken(&o, at(time.Second)) {
		t.Error("what the kernel contradicts goes to it all the same")
	}
}
