package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/spf13/pflag"

	"joold/internal/config"
	"joold/internal/nlchan"
	"joold/internal/session"
)

func followCommand() *command {
	return &command{
		name:  "follow",
		short: "show the sessions as the kernel announces them",
		long: `Shows each session that the instance announces, in the columns of Jool's own
` + "`jool session follow`" + `, until it is interrupted.

Examples:
  joold follow
  joold follow -i edge --json`,
		setup: func(fs *pflag.FlagSet) func(context.Context, *env) error {
			client := new(config.Client)
			config.DefineInstance(fs, &client.Instance)
			json := fs.Bool("json", false, "show JSON, one object a line")
			return func(ctx context.Context, e *env) error { return follow(ctx, e, client, *json) }
		},
	}
}

// follow shows what the instance announces until ctx ends.
func follow(ctx context.Context, e *env, cl *config.Client, asJSON bool) error {
	w, err := nlchan.NewWatcher() // first, so that no removal goes unseen
	if err != nil {
		return err
	}
	defer w.Close()
	k, err := nlchan.Dial(cl.Instance)
	if err != nil {
		return err
	}
	defer k.Close()
	g, err := k.Globals(ctx)
	if err != nil {
		return err
	}
	if !g.SyncEnabled {
		return &nlchan.Error{Op: "follow the sessions", Instance: cl.Instance, Err: nlchan.ErrSyncDisabled}
	}
	wake := func() { k.SetReadDeadline(time.Unix(1, 0)) }
	defer context.AfterFunc(ctx, wake)()
	var removed atomic.Bool // the module: then nothing more is heard
	go w.Run(ctx, func(what nlchan.Event) {
		if what == nlchan.ModuleRemoved {
			removed.Store(true)
			wake()
		}
	})

	show := appendCSV
	if asJSON {
		show = appendJSON
	}
	out := bufio.NewWriter(e.stdout)
	buf := make([]byte, nlchan.MessageSize)
	var sessions []session.Session
	var line []byte
	for {
		m, err := k.Receive(buf)
		switch {
		case ctx.Err() != nil:
			return nil // it was told to end
		case removed.Load():
			return &nlchan.Error{Op: "follow the sessions", Instance: cl.Instance, Err: nlchan.ErrStale}
		case errors.Is(err, nlchan.ErrOverrun):
			fmt.Fprintln(e.stderr, "joold: the kernel announces faster than this can be shown: some sessions are missing")
			continue
		case err != nil:
			return err
		}
		var r session.Report
		sessions, r = session.Decode(sessions[:0], m.Entries, g.Pool6)
		if n := r.BadTotal(); n > 0 {
			fmt.Fprintf(e.stderr, "joold: %d sessions could not be read\n", n)
		}
		for i := range sessions {
			line = append(show(line[:0], &sessions[i], g.Pool6), '\n')
			out.Write(line)
		}
		if err := out.Flush(); err != nil {
			return err
		}
	}
}

// appendCSV writes the columns of `jool session follow`.
func appendCSV(b []byte, s *session.Session, _ session.Pool6) []byte {
	src6, src4, dst4 := s.Src6Addr(), s.Src4Addr(), s.Dst4Addr()
	return fmt.Appendf(b, "%s,%s,%d,%s,%d,%s,%d,%s", s.Proto,
		src6.Addr(), src6.Port(), src4.Addr(), src4.Port(), dst4.Addr(), dst4.Port(), clock(s.Expiration))
}

// clock is a duration in milliseconds as the jool command shows it: h:mm:ss,
// and the milliseconds if there are any.
func clock(ms uint32) string {
	s := fmt.Sprintf("%d:%02d:%02d", ms/3_600_000, ms/60_000%60, ms/1000%60)
	if ms %= 1000; ms > 0 {
		s += fmt.Sprintf(".%03d", ms)
	}
	return s
}

// followed is one line of --json.
type followed struct {
	Proto      string         `json:"proto"`
	State      string         `json:"state,omitempty"` // of TCP alone
	Src6       netip.AddrPort `json:"src6"`
	Dst6       netip.AddrPort `json:"dst6"`
	Src4       netip.AddrPort `json:"src4"`
	Dst4       netip.AddrPort `json:"dst4"`
	Expiration uint32         `json:"expires_in_ms"`
}

func appendJSON(b []byte, s *session.Session, p session.Pool6) []byte {
	f := followed{
		Proto: s.Proto.String(),
		Src6:  s.Src6Addr(), Src4: s.Src4Addr(), Dst4: s.Dst4Addr(),
		Dst6:       netip.AddrPortFrom(netip.AddrFrom16(p.Embed(s.Dst4)), s.Dst6Port()),
		Expiration: s.Expiration,
	}
	if s.Proto == session.TCP {
		f.State = s.State.String()
	}
	line, err := json.Marshal(f)
	if err != nil {
		panic(err) // of strings and numbers
	}
	return append(b, line...)
}
