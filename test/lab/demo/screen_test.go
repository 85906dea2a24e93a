package main

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"joold/test/lab/guest"
)

// tell feeds a screen what a guest would write.
func tell(s *screen, lines ...string) {
	for _, line := range lines {
		fmt.Fprintln(s, line)
	}
}

func now(text string) string {
	return fmt.Sprintf("%c%c%s\t%c%s, too", guest.DemoNow, guest.DemoText, text, guest.DemoBad, text)
}

func TestWithoutATerminalThereAreOnlyLinesAndNotTooMany(t *testing.T) {
	var out bytes.Buffer
	s := &screen{w: &out, start: time.Now(), width: 80}
	tell(s, "#Ping", now("one"), now("two"), now("three"), "+pinged", now("four"))
	if strings.ContainsAny(out.String(), "\x1b\r") {
		t.Errorf("there are control characters in %q", out.String())
	}
	want := "\n  0.0 s  1. Ping\n         one\n         one, too\n  0.0 s  pinged\n         four\n         four, too\n"
	if out.String() != want {
		t.Errorf("got\n%s, not\n%s", out.String(), want)
	}
}

func TestOnATerminalWhatGoesOnStaysInItsPlace(t *testing.T) {
	var out bytes.Buffer
	s := &screen{w: &out, live: true, start: time.Now(), width: 80}
	tell(s, now("one"), now("two"), "+pinged", now("three"))
	const up = "\x1b[2A\x1b[J"
	want := "         one\n         one, too\n" + up + "         two\n         two, too\n  0.0 s  pinged\n         three\n         three, too\n"
	if out.String() != want {
		t.Errorf("got\n%q, not\n%q", out.String(), want)
	}
}

func TestWhatIsReplacedIsNeverWiderThanTheTerminal(t *testing.T) {
	for _, width := range []int{1, 10, 40} {
		var out bytes.Buffer
		s := &screen{w: &out, live: true, start: time.Now(), width: width}
		tell(s, now(strings.Repeat("x", 100)))
		for line := range strings.Lines(out.String()) {
			if got := len(line) - 1; got > max(width, margin) {
				t.Errorf("%d columns on a terminal with %d", got, width)
			}
		}
	}
}

func TestColoursEndWithTheirLine(t *testing.T) {
	var out bytes.Buffer
	s := &screen{w: &out, live: true, colour: true, start: time.Now(), width: 80}
	tell(s, "#a", "+b", "!c", "$d", now("e"))
	for line := range strings.Lines(out.String()) {
		if line != "\n" && !strings.HasSuffix(line, "\x1b[m\n") && !strings.HasSuffix(line, " e\n") && !strings.HasSuffix(line, "\x1b[me\n") {
			t.Errorf("%q leaves its colour on", line)
		}
	}
	if !strings.Contains(out.String(), "\x1b[31mc\x1b[m") {
		t.Errorf("bad news is not red in %q", out.String())
	}
}

func TestAWaitEndsWithTheNextLine(t *testing.T) {
	var out bytes.Buffer
	s := &screen{w: &out, live: true, start: time.Now(), width: 80}
	tell(s, ".It boots")
	for shown := 0; shown < 2; time.Sleep(time.Millisecond) { // until the ticker has ticked
		s.mu.Lock()
		shown = strings.Count(out.String(), "It boots ...")
		s.mu.Unlock()
	}
	tell(s, "+booted", now("one"))
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, after, _ := strings.Cut(out.String(), "booted\n"); after != "         one\n         one, too\n" {
		t.Errorf("after the wait came %q", after)
	}
}

func TestWhatIsNotOfTheDemonstrationIsShownAsItIs(t *testing.T) {
	var out bytes.Buffer
	s := &screen{w: &out, start: time.Now(), width: 80}
	tell(s, "labguest demo: something was lost", "")
	if want := "labguest demo: something was lost\n"; out.String() != want {
		t.Errorf("got %q", out.String())
	}
}
