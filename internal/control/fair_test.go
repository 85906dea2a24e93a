package control

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// limit is for what should take no time, on a machine that is busy.
const limit = 30 * time.Second

// group is a group whose members may use the sockets of these tests.
const group = 54321

// serveGroup is serve at a socket that members of group reach.
func serveGroup(t *testing.T, h Handler) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("other users' connections need root: run the tests as root")
	}
	path := serve(t, h)
	for dir := filepath.Dir(path); dir != filepath.Clean(os.TempDir()); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(path, -1, group); err != nil {
		t.Fatal(err)
	}
	return path
}

// as runs f as a user of the group, on a thread that ends with it.
func as(t *testing.T, user int, f func()) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good: the thread cannot become root again
		for call, id := range []uintptr{group, uintptr(user)} {
			trap := []uintptr{unix.SYS_SETRESGID, unix.SYS_SETRESUID}[call]
			if _, _, errno := unix.RawSyscall(trap, id, id, id); errno != 0 {
				done <- errno
				return
			}
		}
		f()
		done <- nil
	}()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// askStatus is a client's status request, which must be answered in time.
func askStatus(t *testing.T, path string) error {
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	return Call(ctx, path, Request{Op: OpStatus}, func(Reply) error { return nil })
}

func answerStatus(_ context.Context, _ Request, reply func(Reply) error) error {
	return reply(Reply{Status: &Status{PID: 1}})
}

// crowd has the user hold as many connections as he can, and say nothing on any,
// until the returned function is called. It returns once he has tried for long.
func crowd(t *testing.T, path string, user int) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	there := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		as(t, user, func() {
			var held [1000]int // sockets
			for round := 0; ctx.Err() == nil; round++ {
				for i, fd := range held {
					if fd > 0 {
						if _, err := unix.Read(fd, make([]byte, 1)); err == unix.EAGAIN {
							continue // it is open still
						}
						unix.Close(fd)
					}
					held[i], _ = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
					err := unix.Connect(held[i], &unix.SockaddrUnix{Name: path})
					if err != nil && err != unix.EAGAIN {
						t.Error(err)
					}
				}
				if round == 3 {
					close(there)
				}
			}
			for _, fd := range held {
				unix.Close(fd)
			}
		})
	})
	<-there
	return func() { cancel(); wg.Wait() }
}

func TestOneUsersConnectionsKeepNeitherRootNorOthersOut(t *testing.T) {
	path := serveGroup(t, answerStatus)
	defer crowd(t, path, 1001)()
	for range 20 {
		if err := askStatus(t, path); err != nil {
			t.Fatalf("root: %v", err)
		}
		as(t, 1002, func() {
			if err := askStatus(t, path); err != nil {
				t.Errorf("another member of the group: %v", err)
			}
		})
	}
}

func TestManyUsersConnectionsDoNotKeepRootOut(t *testing.T) {
	path := serveGroup(t, answerStatus)
	var held []net.Conn
	defer func() {
		for _, c := range held {
			c.Close()
		}
	}()
	for user := range 3 * maxClients / maxOfUser {
		as(t, 2000+user, func() {
			for range maxOfUser {
				c, err := net.Dial("unix", path)
				if err != nil {
					t.Error(err)
					return
				}
				held = append(held, c)
			}
		})
	}
	if err := askStatus(t, path); err != nil {
		t.Error(err)
	}
}

func TestUsersHaveOnlySoManyConnectionsTogetherAndThoseThatEndMakeRoom(t *testing.T) {
	c := clients{of: make(map[uint32]int)}
	for range 2 {
		entered := 0
		for user := range uint32(3 * maxClients / maxOfUser) {
			for range maxOfUser {
				if c.enter(1+user) == nil {
					entered++
				}
			}
		}
		if entered != maxClients {
			t.Errorf("%d connections, want %d", entered, maxClients)
		}
		if err := c.enter(0); err != nil {
			t.Errorf("root: %v", err)
		}
		c.leave(0)
		for user, n := range c.of {
			for range n {
				c.leave(user)
			}
		}
	}
	if c.all != 0 || len(c.of) != 0 {
		t.Errorf("%d connections are left, of %d users", c.all, len(c.of))
	}
}

func TestAUserWithTooManyConnectionsIsToldSoUntilOneEnds(t *testing.T) {
	busy := make(chan struct{}, maxOfUser)
	path := serveGroup(t, func(ctx context.Context, r Request, reply func(Reply) error) error {
		if r.Op == OpStatus {
			return answerStatus(ctx, r, reply)
		}
		busy <- struct{}{}
		<-ctx.Done()
		return ctx.Err()
	})
	as(t, 1001, func() {
		var held [maxOfUser]net.Conn
		for i := range held {
			c, err := net.Dial("unix", path)
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			c.Write([]byte(`{"op":"advertise"}` + "\n"))
			<-busy
			held[i] = c
		}
		for range 100 { // however request and refusal cross
			if err := askStatus(t, path); err == nil || !strings.Contains(err.Error(), "16 of them of user 1001") {
				t.Errorf("got %v", err)
				return
			}
		}
		held[0].Close()
		err := askStatus(t, path)
		for end := time.Now().Add(limit); err != nil && time.Now().Before(end); err = askStatus(t, path) {
			time.Sleep(time.Millisecond)
		}
		if err != nil {
			t.Errorf("with a connection less: %v", err)
		}
	})
}

func TestAClientWaitsWhereTheQueueIsFull(t *testing.T) {
	path := filepath.Join(t.TempDir(), "edge.sock")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(fd), path)
	defer file.Close()
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: path}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	first, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	if c, err := net.Dial("unix", path); !errors.Is(err, syscall.EAGAIN) {
		t.Fatalf("the queue is not full: %v, %v", c, err)
	}

	called := make(chan error, 1)
	go func() { called <- askStatus(t, path) }()
	select {
	case err := <-called:
		t.Fatalf("it did not wait: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	l, err := net.FileListener(file)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- (&Server{listener: l.(*net.UnixListener)}).Serve(ctx, answerStatus) }()
	if err := <-called; err != nil {
		t.Error(err)
	}
	cancel()
	<-served
}
