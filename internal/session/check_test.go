package session

import (
	"net/netip"
	"testing"
	"time"
)

func policy(t testing.TB) *Policy {
	return NewPolicy(pool6(t, "64:ff9b::/96"), DefaultTimeouts, []Range{
		{Proto: TCP, Prefix: netip.MustParsePrefix("192.0.2.1/32"), MinPort: 61001, MaxPort: 65535},
		{Proto: UDP, Prefix: netip.MustParsePrefix("192.0.2.0/30"), MinPort: 1, MaxPort: 65535},
		{Proto: ICMP, Prefix: netip.MustParsePrefix("192.0.2.1/32"), MinPort: 0, MaxPort: 65535},
	})
}

func TestWhatJoolAnnouncesIsAccepted(t *testing.T) {
	for _, s := range samples() {
		was := s
		if why, ok := policy(t).Check(&s); !ok || s != was {
			t.Errorf("%+v: refused for its %s, or changed to %+v", was, why, s)
		}
	}
}

func TestWhatTheKernelMustNotSeeIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Session)
		want   Refusal
	}{
		"initial state on the established timer": {func(s *Session) { s.State = V6Init }, RefusedTimer},
		"established on the transitory timer":    {func(s *Session) { s.State, s.Timer = Established, TimerTrans }, RefusedTimer},
		"UDP with a TCP state":                   {func(s *Session) { s.Proto = UDP }, RefusedTimer},
		"UDP on the transitory timer":            {func(s *Session) { s.Proto, s.State, s.Timer = UDP, Established, TimerTrans }, RefusedTimer},
		"SYN timer with another state":           {func(s *Session) { s.Timer = TimerSYN4 }, RefusedTimer},
		"unknown protocol":                       {func(s *Session) { s.Proto = 3 }, RefusedTimer},
		"unknown state":                          {func(s *Session) { s.State, s.Timer = 7, TimerTrans }, RefusedTimer},
		"1,193 hours of life":                    {func(s *Session) { s.Expiration = 4_000_000_000 }, RefusedExpiration},
		"mask outside pool4":                     {func(s *Session) { s.Src4 = [4]byte{192, 0, 2, 2} }, RefusedPool4},
		"mask below pool4":                       {func(s *Session) { s.Src4 = [4]byte{10, 0, 0, 1} }, RefusedPool4},
		"port under pool4's":                     {func(s *Session) { s.Src4Port = 61000 }, RefusedPool4},
		"unspecified node":                       {func(s *Session) { s.Src6 = [16]byte{} }, RefusedSource},
		"loopback node":                          {func(s *Session) { s.Src6 = [16]byte{15: 1} }, RefusedSource},
		"multicast node":                         {func(s *Session) { s.Src6[0] = 0xff }, RefusedSource},
		"node inside pool6":                      {func(s *Session) { s.Src6 = pool6(t, "64:ff9b::/96").Embed(s.Dst4) }, RefusedSource},
	} {
		s := samples()[0]
		c.change(&s)
		if why, ok := policy(t).Check(&s); ok || why != c.want {
			t.Errorf("%s: accepted %v, reason %q, want %q", name, ok, why, c.want)
		}
	}
}

func TestEveryAddressAndPortOfPool4IsAccepted(t *testing.T) {
	s := samples()[1]
	for last := range byte(4) {
		s.Src4 = [4]byte{192, 0, 2, last}
		for _, port := range []uint16{1, 61001, 65535} {
			s.Src4Port = port
			if why, ok := policy(t).Check(&s); !ok {
				t.Errorf("%s refused for its %s", s.Src4Addr(), why)
			}
		}
	}
}

func TestARangeOfOneIsThatOne(t *testing.T) {
	p := NewPolicy(pool6(t, "64:ff9b::/96"), DefaultTimeouts, []Range{
		{Proto: TCP, Prefix: netip.MustParsePrefix("203.0.113.1/32"), MinPort: 80, MaxPort: 80},
		{Proto: TCP, Prefix: netip.MustParsePrefix("203.0.113.9/32"), MinPort: 1, MaxPort: 9},
	})
	for _, c := range []struct {
		proto Proto
		last  byte
		port  uint16
		want  bool
	}{
		{TCP, 1, 80, true}, {TCP, 1, 81, false}, {TCP, 2, 80, false}, {UDP, 1, 80, false}, {TCP, 9, 9, true}, {TCP, 9, 10, false},
	} {
		s := samples()[1]
		if c.proto == TCP {
			s = samples()[0]
		}
		s.Src4, s.Src4Port = [4]byte{203, 0, 113, c.last}, c.port
		if why, ok := p.Check(&s); ok != c.want {
			t.Errorf("%s %s: accepted %v (%s), want %v", s.Proto, s.Src4Addr(), ok, why, c.want)
		}
	}
}

func TestAnEmptyPool4AcceptsEveryMask(t *testing.T) {
	p := NewPolicy(pool6(t, "64:ff9b::/96"), DefaultTimeouts, nil)
	s := samples()[0]
	s.Src4 = [4]byte{203, 0, 113, 9}
	if why, ok := p.Check(&s); !ok || !p.Masquerades() {
		t.Errorf("refused for its %s", why)
	}
}

func TestALongerLifeIsCutToTheTimeout(t *testing.T) {
	for i, want := range []uint32{7_200_000, 300_000, 60_000, 6_000} {
		s := samples()[i]
		s.Expiration = want*absurd - 1
		if why, ok := policy(t).Check(&s); !ok || s.Expiration != want {
			t.Errorf("%s %s: refused for %s, or %d ms left, want %d", s.Proto, s.Timer, why, s.Expiration, want)
		}
	}
}

func TestWaitingIsTakenOffTheExpiration(t *testing.T) {
	s := Session{Expiration: 100}
	for wait, want := range map[time.Duration]uint32{
		0: 100, 40 * time.Millisecond: 60, 100 * time.Millisecond: 0, time.Hour: 0, -time.Second: 100,
	} {
		if got := s.Aged(wait).Expiration; got != want {
			t.Errorf("after %v: %d ms left, want %d", wait, got, want)
		}
	}
}

func TestSortedSessionsAreOldestFirstInEachOfTheKernelsLists(t *testing.T) {
	ss := []Session{
		{Proto: UDP, Expiration: 1}, {Proto: TCP, Timer: TimerTrans, Expiration: 2},
		{Proto: TCP, Expiration: 9}, {Proto: ICMP, Expiration: 0}, {Proto: TCP, Expiration: 3},
	}
	SortOldestFirst(ss)
	for i, want := range []uint32{3, 9, 2, 1, 0} {
		if ss[i].Expiration != want {
			t.Fatalf("got %+v", ss)
		}
	}
}

func TestALifeIsAsOldAtAnInstanceWithOtherTimeouts(t *testing.T) {
	policy := NewPolicy(Pool6{}, Timeouts{TCPEst: 100_000, TCPTrans: 20_000, UDP: 30_000, ICMP: 4000}, nil)
	there := Timeouts{TCPEst: 200_000, TCPTrans: 20_000, UDP: 10_000, ICMP: 0}
	for _, c := range []struct {
		what       string
		proto      Proto
		timer      Timer
		left, want uint32
	}{
		{"longer there, just updated", TCP, TimerEst, 200_000, 100_000},
		{"longer there, updated long ago", TCP, TimerEst, 130_000, 30_000},
		{"longer there, over here", TCP, TimerEst, 90_000, 0},
		{"more than there can be", TCP, TimerEst, 900_000, 100_000},
		{"the same", TCP, TimerTrans, 7000, 7000},
		{"shorter there", UDP, TimerEst, 4000, 24_000},
		{"not said", ICMP, TimerEst, 3000, 3000},
		{"none", UDP, TimerTrans, 3000, 3000},
	} {
		s := Session{Proto: c.proto, Timer: c.timer, Expiration: c.left}
		if policy.Adopt(&s, &there); s.Expiration != c.want {
			t.Errorf("%s: %d ms left, want %d", c.what, s.Expiration, c.want)
		}
	}
}
