package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

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

func TestTheDaemonGoesOnWhenNobodyReadsItsLogAnyMore(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	socket := filepath.Join(t.TempDir(), "joold.sock")
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), asProgram+"=239.1.2.3 --net.dev.in nosuch0 --net.dev.out nosuch0 --control.socket "+socket)
	cmd.Stderr = w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	defer cmd.Process.Kill()

	// It has told its log what it waits for before it tells anybody else.
	waits := false
	for limit := time.Now().Add(30 * time.Second); !waits && time.Now().Before(limit); time.Sleep(10 * time.Millisecond) {
		select {
		case err := <-ended:
			t.Fatalf("it ended: %v", err)
		default:
		}
		control.Call(t.Context(), socket, control.Request{Op: control.OpStatus}, func(r control.Reply) error {
			waits = strings.Contains(r.Status.Network.WaitingFor, "nosuch0")
			return nil
		})
	}
	if !waits {
		t.Fatal("not within 30 s: status tells that it waits for nosuch0")
	}
	cmd.Process.Signal(syscall.SIGTERM)
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
