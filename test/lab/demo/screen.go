package main

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"joold/test/lab/guest"
)

// A screen shows what the guest tells: on a terminal in colours, with what is going on in place; else as lines, with that once a second.
type screen struct {
	w            io.Writer
	live, colour bool
	width        int // of the terminal, in columns
	start        time.Time

	mu       sync.Mutex
	steps    int
	passing  int       // lines on the terminal that the next of their kind replace
	shown    time.Time // when there last were such
	stopWait func()    // nil unless something is waited for
}

// margin is where text begins, right of the times.
const margin = 9

// colours are what SGR calls them, by the kind of line.
var colours = map[byte]string{
	guest.DemoStep:    "1",
	guest.DemoGood:    "32",
	guest.DemoBad:     "31",
	guest.DemoCommand: "36",
}

// Write takes one line, as the guest's output comes.
func (s *screen) Write(line []byte) (int, error) {
	if text := strings.TrimSuffix(string(line), "\n"); text != "" {
		s.line(text[0], text[1:])
	}
	return len(line), nil
}

// line shows a line of one of package guest's kinds.
func (s *screen) line(kind byte, text string) {
	s.end()
	s.mu.Lock()
	defer s.mu.Unlock()
	if kind != guest.DemoNow {
		s.passing, s.shown = 0, time.Time{}
	}
	switch kind {
	case guest.DemoStep:
		s.steps++
		fmt.Fprintln(s.w)
		s.print(true, kind, fmt.Sprintf("%d. %s", s.steps, text))
	case guest.DemoGood, guest.DemoBad:
		s.print(true, kind, text)
	case guest.DemoCommand, guest.DemoText:
		s.print(false, kind, text)
	case guest.DemoNow:
		s.replace(strings.Split(text, "\t"))
	case guest.DemoWait:
		s.wait(text)
	default: // not of the demonstration's making: a failure
		fmt.Fprintf(s.w, "%c%s\n", kind, text)
	}
}

// end ends a wait, which leaves its last line.
func (s *screen) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopWait != nil {
		s.stopWait()
		s.stopWait, s.passing = nil, 0
	}
}

func (s *screen) print(timed bool, kind byte, text string) {
	if text == "" {
		fmt.Fprintln(s.w)
		return
	}
	left := ""
	if timed {
		left = fmt.Sprintf("%5.1f s", time.Since(s.start).Seconds())
	}
	left = fmt.Sprintf("%-*s", margin, left)
	if s.colour {
		left = "\x1b[2m" + left + "\x1b[m"
		if colour := colours[kind]; colour != "" {
			text = "\x1b[" + colour + "m" + text + "\x1b[m"
		}
	}
	fmt.Fprintln(s.w, left+text)
}

// replace shows what is going on in the place of what was. Each line has its kind.
func (s *screen) replace(lines []string) {
	if !s.live {
		if time.Since(s.shown) < time.Second {
			return
		}
	} else if s.passing > 0 {
		fmt.Fprintf(s.w, "\x1b[%dA\x1b[J", s.passing)
	}
	for _, text := range lines {
		s.print(false, text[0], text[1:min(len(text), max(1, s.width-margin))]) // a line that wraps would be two
	}
	s.passing, s.shown = len(lines), time.Now()
}

// wait shows how long something takes, until the next line.
func (s *screen) wait(text string) {
	s.replace([]string{string(guest.DemoText) + text + " ..."})
	if !s.live {
		return
	}
	began, stop := time.Now(), make(chan struct{})
	s.stopWait = func() { close(stop) }
	go func() {
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
			}
			s.mu.Lock()
			select {
			case <-stop: // while the lock was waited for
			default:
				s.replace([]string{fmt.Sprintf("%c%s ... %.1f s", guest.DemoText, text, time.Since(began).Seconds())})
			}
			s.mu.Unlock()
		}
	}()
}
