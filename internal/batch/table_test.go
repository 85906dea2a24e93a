package batch

import (
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

const everything = 1 << 30

func at(d time.Duration) time.Time { return start.Add(d) }

func tcp(port uint16, state session.State, timer session.Timer, expiration uint32) session.Session {
	s := udp(port, expiration)
	s.Proto, s.State, s.Timer = session.TCP, state, timer
	return s
}

func observe(t *Table, d time.Duration, s ...session.Session) { t.Observe(s, at(d)) }

func take(t *Table, d time.Duration) []session.Session { return t.Take(nil, everything, at(d)) }

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
