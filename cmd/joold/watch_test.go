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
	s := screen{w: &b, terminal: true}
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
