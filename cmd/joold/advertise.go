package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"joold/internal/config"
	"joold/internal/control"
	"joold/internal/daemon"
	"joold/internal/nlchan"
)

func advertiseCommand() *command {
	return &command{
		name:  "advertise",
		short: "send every session of the kernel's table to the other nodes",
		long: `Asks the running daemon to send all that its kernel knows, oldest first and
paced, and returns when the last datagram is out. On a terminal it shows how far
it has come. Without a daemon, the kernel module is asked to do what it can.

Run it on a node that knows sessions, for the sake of one that has come back.

Examples:
  joold advertise
  joold advertise -i edge --quiet`,
		setup: func(fs *pflag.FlagSet) func(context.Context, *env) error {
			client := config.DefineClient(fs)
			rate := config.DefineNumber(fs, "rate", fmt.Sprintf("sessions to send a second (default %d)", daemon.DefaultRate), 1, daemon.MaxRate)
			quiet := fs.BoolP("quiet", "q", false, "show no progress, only the result")
			return func(ctx context.Context, e *env) error { return advertise(ctx, e, client, *rate, *quiet) }
		},
	}
}

// advertise has the daemon send its kernel's table or, where there is no daemon,
// has the kernel do it.
func advertise(ctx context.Context, e *env, cl *config.Client, rate int, quiet bool) error {
	show := newProgress(e.stdout, quiet)
	err := call(ctx, cl, control.Request{Op: control.OpAdvertise, Rate: rate}, func(r control.Reply) error {
		switch {
		case r.Progress != nil:
			show.update(*r.Progress)
		case r.Done != nil:
			show.end(*r.Done)
		}
		return nil
	})
	show.clear()
	if !errors.Is(err, control.ErrNoDaemon) || cl.Socket != "" {
		return err
	}
	version, kerr := kernelAdvertise(ctx, cl.Instance)
	if kerr != nil {
		return fmt.Errorf("%w; the kernel cannot help: %w", err, kerr)
	}
	fmt.Fprintf(e.stdout, "no joold daemon serves %s here: asked the kernel module (Jool %s) to advertise, which others hear if the C daemon runs here\n",
		cl.Instance, version)
	return nil
}

func kernelAdvertise(ctx context.Context, instance string) (nlchan.Version, error) {
	k, err := nlchan.Dial(instance)
	if err != nil {
		return nlchan.Version{}, err
	}
	defer k.Close()
	return k.Module().Version, k.Advertise(ctx)
}

// progress shows how far an advertisement is: in place on a terminal, and
// otherwise only how it ended.
type progress struct {
	w        io.Writer
	terminal bool
	drawn    bool
}

func newProgress(w io.Writer, quiet bool) *progress {
	f, ok := w.(*os.File)
	return &progress{w: w, terminal: ok && !quiet && isTerminal(f)}
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

func (p *progress) update(c control.Progress) {
	if !p.terminal {
		return
	}
	line := fmt.Sprintf("reading the kernel's table: %d sessions", c.Read)
	if c.Total > 0 {
		const width = 24
		done := width * min(c.Sent, c.Total) / c.Total
		line = fmt.Sprintf("[%s%s] %d of %d sessions", strings.Repeat("#", done), strings.Repeat(".", width-done), c.Sent, c.Total)
		if rate := c.Rate(); rate > 0 {
			left := time.Duration(float64(c.Total-c.Sent) / rate * float64(time.Second))
			line += fmt.Sprintf(", %.0f/s, %s left", rate, left.Round(time.Second))
		}
	}
	fmt.Fprintf(p.w, "\r\x1b[K%s", line)
	p.drawn = true
}

func (p *progress) clear() {
	if p.drawn {
		fmt.Fprint(p.w, "\r\x1b[K")
		p.drawn = false
	}
}

func (p *progress) end(c control.Progress) {
	p.clear()
	unreadable := ""
	if c.Unreadable > 0 {
		unreadable = fmt.Sprintf("; %d in the kernel's table make no sense", c.Unreadable)
	}
	fmt.Fprintf(p.w, "advertised %d sessions in %d datagrams, %.1f s%s\n", c.Total, c.Datagrams, c.Seconds, unreadable)
}
