package main

import (
	"bytes"
	"context"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"joold/internal/control"
)

func TestAWatchedStatusIsShownInItsPlace(t *testing.T) {
	var b bytes.Buffer
	s := screen{w: &b, size: func() (int, int) { return 0, 0 }}
	s.show("one\ntwo\n")
	s.show("three\n")
	if want := "\x1b[2J\x1b[Hone\x1b[K\ntwo\x1b[K\n\x1b[J" + "\x1b[Hthree\x1b[K\n\x1b[J"; b.String() != want {
		t.Errorf("a terminal gets %q", b.String())
	}
	b.Reset()
	s = screen{w: &b}
	s.show("one\n")
	s.show("two\n")
	if b.String() != "one\n\ntwo\n" {
		t.Errorf("a file gets %q", b.String())
	}
}

func TestAWatchedStatusNeverScrollsTheTerminal(t *testing.T) {
	const text = "one\ntwo\nthree\nfour\n"
	for _, c := range []struct {
		rows, columns int
		want          string
	}{
		{5, 80, text},
		{4, 80, "one\ntwo\n(2 more lines)\n"},
		{2, 80, "(4 more lines)\n"},
		{5, 6, text},
		{5, 5, "one\ntwo\nthre\nfour\n"},
		{5, 4, "one\ntwo\nthr\nfou\n"},
		{1, 80, text},
		{0, 0, text},
	} {
		if got := fit(text, c.rows, c.columns); got != c.want {
			t.Errorf("%d rows of %d: %q, want %q", c.rows, c.columns, got, c.want)
		}
	}
	if got := fit("ñandú\n", 5, 5); got != "ñand\n" {
		t.Errorf("what is not ASCII: %q", got)
	}
	size := 4
	var b bytes.Buffer
	s := screen{w: &b, size: func() (int, int) { return size, 80 }}
	s.show(text)
	size = 5 // as it is at each look
	b.Reset()
	s.show(text)
	if !strings.Contains(b.String(), "four") {
		t.Errorf("a larger window shows %q", b.String())
	}
}

func TestStatusIsWatchedUntilItIsInterruptedAlsoWhileTheDaemonIsAway(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var asked atomic.Int64
	path := daemonAt(t, func(_ context.Context, _ control.Request, reply func(control.Reply) error) error {
		switch asked.Add(1) {
		case 2:
			return context.DeadlineExceeded // its answer is an error
		case 4:
			cancel()
		}
		return reply(control.Reply{Status: sampleStatus()})
	})
	var stdout, stderr bytes.Buffer
	status := run(ctx, &env{args: []string{"status", "--watch=100ms", "--socket", path}, stdout: &stdout, stderr: &stderr, hangup: nil})
	out := stdout.String()
	if status != exitOK || strings.Count(out, "joold      1.0, pid 7") < 2 || !strings.Contains(out, "\n\ncontext deadline exceeded\n\n") {
		t.Errorf("status %d, %q:\n%s", status, stderr.String(), out)
	}
}

func TestAWatchThatCannotBeIsRefused(t *testing.T) {
	none := filepath.Join(t.TempDir(), "none")
	for args, want := range map[string]int{
		"--watch=1ms": exitUsage, "--watch=-1s": exitUsage, "--watch --json": exitUsage, "--watch": exitNoDaemon,
	} {
		if status, _, stderr := joold(t, append([]string{"status", "--socket", none}, strings.Fields(args)...)...); status != want {
			t.Errorf("%s: status %d, %s", args, status, stderr)
		}
	}
}
