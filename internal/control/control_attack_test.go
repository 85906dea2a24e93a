package control

import (
	"context"
	"io"
	"net"
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
