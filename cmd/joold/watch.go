package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"joold/internal/config"
)

// watch shows the status in place, until it is interrupted. The daemon may come
// and go meanwhile.
func watch(ctx context.Context, e *env, cl *config.Client, interval time.Duration) error {
	f, ok := e.stdout.(*os.File)
	screen := screen{w: e.stdout, terminal: ok && isTerminal(f)}
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for first := true; ; first = false {
		var b strings.Builder
		err := status(ctx, &env{stdout: &b}, cl, false)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil && first {
			return err
		} else if err != nil {
			b.Reset()
			fmt.Fprintf(&b, "%s\n", oneLine(err.Error()))
		}
		if err := screen.show(b.String()); err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// screen shows one text in the place of another. Where it is none, one follows the
// other after an empty line.
type screen struct {
	w        io.Writer
	terminal bool
	used     bool
}

func (s *screen) show(text string) error {
	switch {
	case s.terminal: // each line over the one before: nothing is ever blank in between
		const home, endOfLine, below = "\x1b[H", "\x1b[K\n", "\x1b[J"
		clear := ""
		if !s.used {
			clear = "\x1b[2J"
		}
		text = clear + home + strings.ReplaceAll(text, "\n", endOfLine) + below
	case s.used:
		text = "\n" + text
	}
	s.used = true
	_, err := io.WriteString(s.w, text)
	return err
}
