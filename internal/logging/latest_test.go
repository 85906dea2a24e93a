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

// lockedBuffer is a buffer that several goroutines use.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

// take empties it.
func (b *lockedBuffer) take() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	defer b.buf.Reset()
	return b.buf.String()
}

func TestLinesAreToldAsTheyComeUntilThereAreTooMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var buf lockedBuffer
		c := NewLatest(slog.New(newHandler(&buf, slog.LevelInfo, true)))
		check := func(want string) {
			t.Helper()
			synctest.Wait()
			if got := buf.take(); got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		}
		for n := range latestBurst {
			c.Info("away", "n", n)
			check(fmt.Sprintf("<6>away n=%d\n", n))
		}
		c.Info("here", "n", "a")
		c.Warn("away", "n", "b")
		c.With("instance", "edge").WithGroup("g").Info("here", "n", "c")
		check("")
		time.Sleep(latestSpan - 1)
		check("")
		time.Sleep(time.Nanosecond)
		check("<6>here instance=edge g.n=c g.suppressed=2\n")
		c.Warn("away", "n", "d")
		time.Sleep(latestSpan)
		check("<4>away n=d\n") // none before it was kept back
		time.Sleep(latestSpan)
		check("")
		c.Info("here")
		check("<6>here\n")
		c.Info("away")
		c.Flush()
		check("<6>away\n")
		time.Sleep(time.Hour)
		check("")
		c.Flush()
		check("")
	})
}

func TestEndlessLinesAreBoundedAndTheLogEndsWithTheLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const seconds = 3600
		var buf lockedBuffer
		c := NewLatest(slog.New(newHandler(&buf, slog.LevelInfo, true)))
		for n := range seconds {
			c.Info("away", "n", n)
			c.Info("here", "n", n)
			time.Sleep(time.Second)
		}
		time.Sleep(latestSpan)
		synctest.Wait()
		lines := strings.Split(strings.TrimSuffix(buf.take(), "\n"), "\n")
		if most := latestBurst + int(seconds*time.Second/latestSpan) + 1; len(lines) > most {
			t.Errorf("%d lines, want at most %d", len(lines), most)
		}
		if last, want := lines[len(lines)-1], fmt.Sprintf("<6>here n=%d", seconds-1); !strings.HasPrefix(last, want) {
			t.Errorf("the last line is %q, want %q", last, want)
		}
	})
}

func TestALatestMayBeShared(t *testing.T) {
	var buf lockedBuffer
	c := NewLatest(slog.New(newHandler(&buf, slog.LevelInfo, true)))
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 1000 {
				c.Info("again")
			}
		})
	}
	wg.Wait()
	c.Flush()
	if n := strings.Count(buf.take(), "\n"); n != latestBurst+1 {
		t.Errorf("%d lines, want %d", n, latestBurst+1)
	}
}
