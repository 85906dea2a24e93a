package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"joold/internal/control"
)

// journal is a file for a daemon's log.
func journal(t *testing.T) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// says waits for a line of the log that holds all of words.
func (p *process) says(t *testing.T, log string, words ...string) {
	t.Helper()
	var data []byte
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		data, _ = os.ReadFile(log)
	lines:
		for line := range bytes.Lines(data) {
			for _, w := range words {
				if !bytes.Contains(line, []byte(w)) {
					continue lines
				}
			}
			return
		}
		select {
		case err := <-p.ended:
			t.Fatalf("it ended: %v\n%.1000s", err, data)
		default:
		}
	}
	t.Fatalf("not within 30 s: a line with %q\n%.1000s", words, data)
}

// awaitOpen waits until somebody opens the file that inotify watches.
func awaitOpen(t *testing.T, inotify *os.File) {
	t.Helper()
	inotify.SetReadDeadline(time.Now().Add(30 * time.Second))
	if _, err := inotify.Read(make([]byte, 4096)); err != nil {
		t.Fatal(err)
	}
}

func TestASIGHUPIsHeededWhileTheConfigurationIsReadForTheFirstTime(t *testing.T) {
	file := filepath.Join(t.TempDir(), "joold.json")
	// It takes a while to be read.
	slow := `{"net.source": [` + strings.Repeat(`"2001:db8::/32", `, 60_000) + `"fe80::/10"]}`
	if err := os.WriteFile(file, []byte(slow), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file+".new", []byte(`{"net.hop-limit": 1}`), 0o600); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	inotify := os.NewFile(uintptr(fd), "inotify")
	defer inotify.Close()
	if _, err := unix.InotifyAddWatch(fd, file, unix.IN_OPEN); err != nil {
		t.Fatal(err)
	}
	log := journal(t)
	p := start(t, log, "--config", file)
	awaitOpen(t, inotify)
	if err := os.Rename(file+".new", file); err != nil {
		t.Fatal(err)
	}
	p.Process.Signal(syscall.SIGHUP)
	p.says(t, log.Name(), "read the configuration again", "net.source", "net.hop-limit")
	p.terminate(t)
}

func TestANamedPipeInThePlaceOfTheFileHoldsNothingUp(t *testing.T) {
	file := filepath.Join(t.TempDir(), "joold.json")
	if err := os.WriteFile(file, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	log := journal(t)
	p := start(t, log, "--config", file)
	p.await(t, "it waits for nosuch0", func(s *control.Status) bool { return strings.Contains(s.Network.WaitingFor, "nosuch0") })
	if err := errors.Join(os.Remove(file), syscall.Mkfifo(file, 0o600)); err != nil {
		t.Fatal(err)
	}
	p.Process.Signal(syscall.SIGHUP)
	p.says(t, log.Name(), "the configuration is not taken over", "not a regular file")
	p.terminate(t)
}

func TestACommandEndsWithItsTerminal(t *testing.T) {
	asked := make(chan struct{})
	path := daemonAt(t, func(ctx context.Context, _ control.Request, _ func(control.Reply) error) error {
		close(asked)
		<-ctx.Done()
		return ctx.Err()
	})
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = append(os.Environ(), asProgram+"=status --socket "+path)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	<-asked
	cmd.Process.Signal(syscall.SIGHUP)
	timer := time.AfterFunc(30*time.Second, func() { cmd.Process.Kill() })
	defer timer.Stop()
	cmd.Wait()
	if status := cmd.ProcessState.Sys().(syscall.WaitStatus); status.Signal() != syscall.SIGHUP {
		t.Errorf("it ended by %v", cmd.ProcessState)
	}
}
