package control

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"path/filepath"
	"testing"
)

func TestClientsThatVanishLeaveTheirPlacesToOthers(t *testing.T) {
	path := serve(t, func(ctx context.Context, r Request, reply func(Reply) error) error {
		if r.Op == OpStatus {
			return reply(Reply{Status: &Status{PID: 1}})
		}
		<-ctx.Done() // an advertisement that nobody waits for any more
		return ctx.Err()
	})
	for n := range 1000 {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, []string{"", `{"op":`, "\x00\xff\n", `{"op":"advertise"}` + "\n"}[n%4])
		c.Close()
	}
	err := Call(t.Context(), path, Request{Op: OpStatus}, func(Reply) error { return nil })
	if err != nil {
		t.Error(err)
	}
}

func TestClientsThatOnlyHaveNoMoreToSayAreAnswered(t *testing.T) {
	path := serve(t, func(ctx context.Context, _ Request, reply func(Reply) error) error {
		return reply(Reply{Status: &Status{PID: 1}})
	})
	const clients = 4000 // to meet every order of answer and end
	for range clients {
		c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, `{"op":"status"}`+"\n")
		c.CloseWrite()
		var r Reply
		if err := json.NewDecoder(c).Decode(&r); err != nil || r.Status == nil {
			t.Fatalf("got %+v, %v", r, err)
		}
		c.Close()
	}
}

func TestADaemonThatEndsWaitsForNoClientToRead(t *testing.T) {
	s, err := Listen(filepath.Join(t.TempDir(), "edge.sock"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	replied := make(chan error, 1)
	served := make(chan error, 1)
	go func() {
		served <- s.Serve(ctx, func(ctx context.Context, _ Request, reply func(Reply) error) error {
			cancel()
			<-ctx.Done()
			replied <- reply(Reply{Progress: &Progress{}})
			return nil
		})
	}()
	c, err := net.Dial("unix", s.listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, `{"op":"advertise"}`+"\n")
	if err := <-replied; !errors.Is(err, context.Canceled) {
		t.Errorf("a reply was written, which a client's full socket can hold up for %v: %v", replyTime, err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}
