package control

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// serve runs a server with h at a path of its own until the test ends.
func serve(t *testing.T, h Handler) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "run", "edge.sock")
	s, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, h) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the socket was left behind: %v", err)
		}
	})
	return path
}

func TestAClientHearsProgressAndTheLastWord(t *testing.T) {
	path := serve(t, func(_ context.Context, r Request, reply func(Reply) error) error {
		if r.Op != OpAdvertise || r.Rate != 7 {
			t.Errorf("got %+v", r)
		}
		for n := range 3 {
			if err := reply(Reply{Progress: &Progress{Sent: n}}); err != nil {
				return err
			}
		}
		return reply(Reply{Done: &Progress{Sent: 3}})
	})
	var sent []int
	err := Call(t.Context(), path, Request{Op: OpAdvertise, Rate: 7}, func(r Reply) error {
		if r.Done != nil {
			sent = append(sent, -r.Done.Sent)
		} else {
			sent = append(sent, r.Progress.Sent)
		}
		return nil
	})
	if err != nil || len(sent) != 4 || sent[3] != -3 {
		t.Errorf("heard %v, %v", sent, err)
	}
}

func TestAHandlersErrorReachesTheClient(t *testing.T) {
	path := serve(t, func(context.Context, Request, func(Reply) error) error { return errors.New("no such luck") })
	err := Call(t.Context(), path, Request{Op: OpStatus}, func(Reply) error { return nil })
	if err == nil || err.Error() != "no such luck" {
		t.Errorf("got %v", err)
	}
}

func TestAClientThatHangsUpEndsWhatItAskedFor(t *testing.T) {
	ended := make(chan struct{})
	path := serve(t, func(ctx context.Context, _ Request, _ func(Reply) error) error {
		<-ctx.Done()
		close(ended)
		return ctx.Err()
	})
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	if err := Call(ctx, path, Request{Op: OpAdvertise}, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	<-ended
}

func TestADaemonThatEndsWithoutAnAnswerIsAnError(t *testing.T) {
	path := serve(t, func(_ context.Context, _ Request, reply func(Reply) error) error {
		return reply(Reply{Progress: &Progress{Sent: 1}})
	})
	if err := Call(t.Context(), path, Request{Op: OpAdvertise}, func(Reply) error { return nil }); err == nil {
		t.Error("it is taken for success")
	}
}

func TestWithoutADaemonTheClientSaysSo(t *testing.T) {
	path := filepath.Join(t.TempDir(), "edge.sock")
	err := Call(t.Context(), path, Request{Op: OpStatus}, nil)
	if !errors.Is(err, ErrNoDaemon) {
		t.Errorf("no socket: got %v", err)
	}
	abandon(t, path)
	if err := Call(t.Context(), path, Request{Op: OpStatus}, nil); !errors.Is(err, ErrNoDaemon) {
		t.Errorf("dead socket: got %v", err)
	}
}

// abandon leaves a socket at path that nobody serves, as a killed daemon does.
func abandon(t *testing.T, path string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
}

func TestADeadDaemonsSocketIsTakenOverAndALivingOnesIsNot(t *testing.T) {
	path := filepath.Join(t.TempDir(), "edge.sock")
	abandon(t, path)
	s, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := Listen(path); !errors.Is(err, ErrInUse) {
		t.Errorf("got %v, want ErrInUse", err)
	}
}

func TestWhatIsNoSocketIsNotRemoved(t *testing.T) {
	file, dir := filepath.Join(t.TempDir(), "joold.json"), filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(file, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(file, link); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{file, dir, link} {
		if _, err := Listen(path); err == nil || !strings.Contains(err.Error(), "--control.socket") {
			t.Errorf("%s: got %v", path, err)
		}
		if _, err := os.Lstat(path); err != nil {
			t.Errorf("%s was removed: %v", path, err)
		}
	}
}

func TestOfDaemonsThatStartAtOnceOneGetsTheSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "edge.sock")
	abandon(t, path)
	const n = 20
	won := make(chan *Server, n)
	for range n {
		go func() {
			s, err := Listen(path)
			if err != nil && !errors.Is(err, ErrInUse) {
				t.Error(err)
			}
			won <- s
		}()
	}
	servers := 0
	for range n {
		if s := <-won; s != nil {
			servers++
			defer s.Close()
		}
	}
	if servers != 1 {
		t.Errorf("%d daemons have it", servers)
	}
}

func TestOnlyOwnerAndGroupMayUseTheSocket(t *testing.T) {
	path := serve(t, nil)
	fi, err := os.Stat(path)
	if err != nil || fi.Mode().Perm() != 0o660 {
		t.Errorf("mode %v, %v", fi.Mode(), err)
	}
}

func TestBadRequestsAreAnsweredOrCutOff(t *testing.T) {
	path := serve(t, func(context.Context, Request, func(Reply) error) error {
		t.Error("a bad request was handled")
		return nil
	})
	for _, line := range []string{"status\n", "[1]\n", "{\"op\":3}\n", strings.Repeat("x", maxRequest+1) + "\n", "{}"} {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, line)
		c.(*net.UnixConn).CloseWrite()
		b, err := io.ReadAll(c)
		if err != nil && !errors.Is(err, syscall.ECONNRESET) { // cut off with bytes unread
			t.Errorf("%.20q: %v", line, err)
		}
		var r Reply
		if len(b) > 0 && (json.Unmarshal(b, &r) != nil || r.Error == "") {
			t.Errorf("%.20q: answered %q", line, b)
		}
		c.Close()
	}
}

func TestManyClientsAreServedAtOnce(t *testing.T) {
	path := serve(t, func(_ context.Context, _ Request, reply func(Reply) error) error {
		return reply(Reply{Status: &Status{PID: 1}})
	})
	errs := make(chan error)
	const n = maxOfUser
	for range n {
		go func() {
			errs <- Call(t.Context(), path, Request{Op: OpStatus}, func(Reply) error { return nil })
		}()
	}
	for range n {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

func TestSocketNamesCannotLeaveTheirDirectory(t *testing.T) {
	for _, instance := range []string{"default", "../../etc/x", "a/b", "..", "-", "a@4026531840"} {
		path, err := Path(instance)
		if err != nil || filepath.Dir(path) != Dir || strings.Contains(path, "@") {
			t.Errorf("%q: %s, %v", instance, path, err)
		}
	}
}

func FuzzRequest(f *testing.F) {
	f.Add([]byte(`{"op":"status"}` + "\n"))
	f.Add([]byte(`{"op":"advertise","rate":-1}` + "\n"))
	f.Add([]byte("\x00\xff\n{"))
	f.Fuzz(func(t *testing.T, b []byte) {
		client, server := net.Pipe()
		done := make(chan struct{})
		go func() {
			answer(context.Background(), server, func(_ context.Context, r Request, reply func(Reply) error) error {
				return reply(Reply{Error: r.Op})
			})
			close(done)
		}()
		go func() {
			client.Write(append(b, '\n'))
		}()
		client.SetReadDeadline(time.Now().Add(time.Minute))
		io.ReadAll(client)
		client.Close()
		<-done
	})
}
