package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"joold/internal/config"
)

// watch shows the status in place, until it is interrupted. The daemon may come
// and go meanwhile.
func watch(ctx context.Context, e *env, cl *config.Client, interval time.Duration) error {
	f, ok := e.stdout.(*os.File)
	screen := screen{w: e.stdout}
	if ok && isTerminal(f) {
		screen.size = func() (rows, columns int) { return windowSize(f) }
	}
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
	w    io.Writer
	size func() (rows, columns int) // of a terminal, as it is now; nil where w is none
	used bool
}

func (s *screen) show(text string) error {
	switch {
	case s.size != nil: // each line over the one before: nothing is ever blank in between
		const home, endOfLine, below = "\x1b[H", "\x1b[K\n", "\x1b[J"
		rows, columns := s.size()
		clear := ""
		if !s.used {
			clear = "\x1b[2J"
		}
		text = clear + home + strings.ReplaceAll(fit(text, rows, columns), "\n", endOfLine) + below
	case s.used:
		text = "\n" + text
	}
	s.used = true
	_, err := io.WriteString(s.w, text)
	return err
}

// fit is the top of text, as much as a terminal shows without scrolling, and how many
// lines it has no room for. A size of 0 is unknown.
func fit(text string, rows, columns int) string {
	if rows < 2 || columns < 2 {
		return text
	}
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	if room := rows - 1; len(lines) > room { // the cursor has the last one
		lines = append(lines[:room-1], fmt.Sprintf("(%d more lines)", len(lines)-room+1))
	}
	for i, line := range lines {
		// In the last column the end of a line would be erased with what follows it.
		if chars := []rune(line); len(chars) >= columns {
			lines[i] = string(chars[:columns-1])
		}
	}
	return strings.Join(lines, "\n") + "\n"
}

// windowSize is 0 by 0 where the terminal does not tell.
func windowSize(f *os.File) (rows, columns int) {
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0, 0
	}
	return int(size.Row), int(size.Col)
}
