package logging

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestARepeatedMessageIsLoggedOnceAMinuteAndSaysHowManyWereNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var buf bytes.Buffer
		l := NewLimiter(slog.New(newHandler(&buf, slog.LevelInfo, true)))
		check := func(msg string, n int, want string) {
			t.Helper()
			buf.Reset()
			l.Warn(msg, "n", n)
			if buf.String() != want {
				t.Errorf("got %q, want %q", buf.String(), want)
			}
		}
		check("short", 1, "<4>short n=1\n")
		check("short", 2, "")
		check("short", 3, "")
		check("forged", 4, "<4>forged n=4\n")
		time.Sleep(time.Minute - 1)
		check("short", 5, "")
		time.Sleep(time.Nanosecond)
		check("short", 6, "<4>short n=6 suppressed=3\n")
		check("forged", 7, "<4>forged n=7\n")
		check("short", 8, "")
	})
}

func TestEverChangingMessagesAreBoundedInNumberAndRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const minutes = 10
		l := NewLimiter(slog.New(slog.DiscardHandler))
		logged, suppressed, total := 0, uint64(0), 0
		for range minutes * 60 {
			for range 100 {
				total++
				if s, ok := l.allow(fmt.Sprint(total)); ok {
					logged++
					suppressed += s
				}
			}
			time.Sleep(time.Second)
		}
		if len(l.muted) > limiterKeys {
			t.Errorf("%d messages remembered, want at most %d", len(l.muted), limiterKeys)
		}
		if most := (limiterKeys + 1) * minutes; logged > most {
			t.Errorf("%d lines in %d minutes, want at most %d", logged, minutes, most)
		}
		if got := uint64(logged) + suppressed + l.others.suppressed; got != uint64(total) {
			t.Errorf("%d messages accounted for, want %d", got, total)
		}
	})
}

func TestNoCountIsLostWhenAMessageIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLimiter(slog.New(slog.DiscardHandler))
		fill := func(prefix string) {
			for i := range limiterKeys {
				l.allow(fmt.Sprint(prefix, i))
			}
		}
		fill("old")
		fill("old") // each suppresses one
		time.Sleep(time.Minute)
		fill("new") // the first of them drops the old ones
		if s, ok := l.allow("one more"); !ok || s != limiterKeys {
			t.Errorf("%d, %t; want %d, true", s, ok, limiterKeys)
		}
	})
}

func TestALimiterMayBeShared(t *testing.T) {
	var buf bytes.Buffer
	l := NewLimiter(slog.New(newHandler(&buf, slog.LevelInfo, true)))
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 1000 {
				l.Warn("again")
			}
		})
	}
	wg.Wait()
	if n := strings.Count(buf.String(), "\n"); n != 1 {
		t.Errorf("%d lines, want 1", n)
	}
}

func TestTheAttributesOfALineThatIsNotLoggedAreNotMade(t *testing.T) {
	var buf bytes.Buffer
	l := NewLimiter(slog.New(newHandler(&buf, slog.LevelInfo, true)))
	made := 0
	warn := func() { l.WarnWith("refused", func() []any { made++; return []any{"n", made} }) }
	if allocs := testing.AllocsPerRun(100, warn); allocs != 0 {
		t.Errorf("%v allocations for a line that is not logged", allocs)
	}
	if want := "<4>refused n=1\n"; made != 1 || buf.String() != want {
		t.Errorf("made %d times, logged %q, want %q", made, buf.String(), want)
	}
}
