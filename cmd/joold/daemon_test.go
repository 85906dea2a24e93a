package main

import (
	"context"
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

// asProgram is the variable that holds the arguments when the test's own
// executable is to be joold.
const asProgram = "JOOLD_TEST_ARGS"

func TestMain(m *testing.M) {
	if args, ok := os.LookupEnv(asProgram); ok {
		os.Args = append(os.Args[:1], strings.Split(args, " ")...)
		main()
	}
	os.Exit(m.Run())
}

// process is a daemon of its own that waits for an interface.
type process struct {
	*exec.Cmd
	socket string
	ended  chan error
}

// start starts a daemon whose log goes to stderr, which is closed here.
func start(t *testing.T, stderr *os.File, args ...string) *process {
	t.Helper()
	p := &process{exec.Command("/proc/self/exe"), filepath.Join(t.TempDir(), "joold.sock"), make(chan error, 1)}
	p.Env = append(os.Environ(), asProgram+"=239.1.2.3 --net.dev.in nosuch0 --net.dev.out nosuch0 --control.socket "+
		strings.Join(append([]string{p.socket}, args...), " "))
	p.Stderr = stderr
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	stderr.Close()
	go func() { p.ended <- p.Wait() }()
	t.Cleanup(func() { p.Process.Kill() })
	return p
}

// await asks the daemon for its status until that is as wanted.
func (p *process) await(t *testing.T, what string, wanted func(*control.Status) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for reached := false; !reached; time.Sleep(10 * time.Millisecond) {
		select {
		case err := <-p.ended:
			t.Fatalf("it ended: %v", err)
		case <-ctx.Done():
			t.Fatalf("not within 30 s: status tells that %s", what)
		default:
		}
		control.Call(ctx, p.socket, control.Request{Op: control.OpStatus}, func(r control.Reply) error {
			reached = wanted(r.Status)
			return nil
		})
	}
}

// terminate ends the daemon, which must go well.
func (p *process) terminate(t *testing.T) {
	t.Helper()
	p.Process.Signal(syscall.SIGTERM)
	select {
	case err := <-p.ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(30 * time.Second):
		t.Error("it has not ended in 30 s")
	}
}

func TestTheDaemonGoesOnWhenNobodyReadsItsLogAnyMore(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	p := start(t, w)
	p.await(t, "it waits for nosuch0 and could not write all of its log", func(s *control.Status) bool {
		return strings.Contains(s.Network.WaitingFor, "nosuch0") && s.Log.Dropped > 0
	})
	p.terminate(t)
}

func TestTheDaemonGoesOnAndEndsWhileItsLogIsStuck(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	size, err := unix.FcntlInt(w.Fd(), unix.F_GETPIPE_SZ, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(make([]byte, size)); err != nil { // no room is left
		t.Fatal(err)
	}
	p := start(t, w)
	p.await(t, "it waits for nosuch0, as do its log lines for a reader", func(s *control.Status) bool {
		return strings.Contains(s.Network.WaitingFor, "nosuch0") && s.Log.Waiting > 0
	})
	p.terminate(t)
}

func TestTheDaemonsLogIsWrittenBeforeItsLastWord(t *testing.T) {
	path := daemonAt(t, nil) // so that another cannot start
	file := filepath.Join(t.TempDir(), "net.json")
	if err := os.WriteFile(file, []byte(`{"multicast address": "239.1.2.3", "multicast port": "6400", "color": "red"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	status, _, stderr := joold(t, "--control.socket", path, file)
	warning, last, _ := strings.Cut(stderr, "\n")
	if status != exitFailed || !strings.Contains(warning, `keys that are not read: "color"`) || !strings.HasPrefix(last, "joold: control socket") {
		t.Errorf("status %d, %q", status, stderr)
	}
}
