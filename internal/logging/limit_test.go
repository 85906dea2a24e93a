package logging

import (
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestARepeatedMessageIsLoggedOnceASpanAndSaysHowManyWereNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLimit[string](time.Minute, 8)
		check := func(key string, suppressed uint64, ok bool) {
			t.Helper()
			if s, o := l.Allow(key); s != suppressed || o != ok {
				t.Errorf("%s: %d, %t; want %d, %t", key, s, o, suppressed, ok)
			}
		}
		check("short", 0, true)
		check("short", 0, false)
		check("short", 0, false)
		check("forged", 0, true)
		time.Sleep(time.Minute - 1)
		check("short", 0, false)
		time.Sleep(1)
		check("short", 3, true)
		check("forged", 0, true)
		check("short", 0, false)
	})
}

func TestEverChangingKeysAreBoundedInNumberAndRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const keys, minutes = 8, 10
		l := NewLimit[int](time.Minute, keys)
		logged, suppressed, total := 0, uint64(0), 0
		for range minutes * 60 {
			for range 100 {
				total++
				if s, ok := l.Allow(total); ok {
					logged++
					suppressed += s
				}
			}
			time.Sleep(time.Second)
		}
		if len(l.keys) > keys {
			t.Errorf("%d keys remembered, want at most %d", len(l.keys), keys)
		}
		if most := (keys + 1) * minutes; logged > most {
			t.Errorf("%d lines in %d minutes, want at most %d", logged, minutes, most)
		}
		if got := uint64(logged) + suppressed + l.others.suppressed; got != uint64(total) {
			t.Errorf("%d messages accounted for, want %d", got, total)
		}
	})
}

func TestNoCountIsLostWhenAKeyIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLimit[string](time.Minute, 1)
		l.Allow("a")
		l.Allow("a")
		time.Sleep(time.Minute)
		l.Allow("b") // takes a's place
		if s, ok := l.Allow("c"); !ok || s != 1 {
			t.Errorf("%d, %t; want 1, true", s, ok)
		}
	})
}

func TestALimitMayBeShared(t *testing.T) {
	l := NewLimit[int](time.Hour, 2)
	var logged atomic.Int64
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 1000 {
				if _, ok := l.Allow(1); ok {
					logged.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if logged.Load() != 1 {
		t.Errorf("%d lines, want 1", logged.Load())
	}
}
