package contrib

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"joold/internal/control"
)

// as runs f with another user's and group's rights to files, without root's.
func as(uid, gid int, f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		unix.SetfsgidRetGid(gid)
		unix.SetfsuidRetUid(uid)
		f()
	}()
	<-done
}

// What the drop-in group.conf is for: Group= makes it the group of the daemon.
func TestTheControlSocketIsForTheDaemonsGroup(t *testing.T) {
	const operators, other = 60001, 60002
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(d, 0o755); err != nil { // as RuntimeDirectory= makes it
			t.Fatal(err)
		}
	}
	path := filepath.Join(dir, "default.sock")
	var server *control.Server
	var err error
	as(0, operators, func() { server, err = control.Listen(path) })
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() {
		served <- server.Serve(ctx, func(_ context.Context, _ control.Request, reply func(control.Reply) error) error {
			return reply(control.Reply{Status: &control.Status{}})
		})
	}()
	ask := func() error {
		return control.Call(t.Context(), path, control.Request{Op: control.OpStatus}, func(control.Reply) error { return nil })
	}

	as(other, operators, func() { err = ask() })
	if err != nil {
		t.Errorf("a member of the group: %v", err)
	}
	as(other, other, func() { err = ask() })
	if !errors.Is(err, fs.ErrPermission) {
		t.Errorf("somebody else: %v, want %v", err, fs.ErrPermission)
	}
	as(other, operators, func() { _, err = os.Open(path + ".lock") })
	if !errors.Is(err, fs.ErrPermission) {
		t.Errorf("a member of the group who would lock the daemon out: %v, want %v", err, fs.ErrPermission)
	}
	stop()
	if err := <-served; err != nil {
		t.Error(err)
	}
}
