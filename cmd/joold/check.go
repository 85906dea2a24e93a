package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"joold/internal/config"
	"joold/internal/control"
)

// checkTime is how long a daemon may take to answer a check: less than keepalived
// waits for a script that it runs each second, as it does by itself.
const checkTime = 900 * time.Millisecond

func checkCommand() *command {
	return &command{
		name:  "check",
		short: "tell by the exit status whether this node has all sessions",
		long: `Exits with 0 if the daemon is in service and in sync: it has all that the other
nodes of joold have. Else its exit status tells why not, as listed by
` + "`joold help exit-status`" + `. It prints one line that says the same.

Examples:
  joold check
  joold check -i edge --allow-alone --max-lag 10s`,
		setup: func(fs *pflag.FlagSet) func(context.Context, *env) error {
			client := config.DefineClient(fs)
			var want checks
			fs.BoolVar(&want.alone, "allow-alone", false, "be content if no other node of joold is there")
			fs.BoolVar(&want.strict, "strict", false, "fail if nodes are configured differently")
			fs.DurationVar(&want.lag, "max-lag", 0, "fail if lost datagrams have been missing for longer; 0s for never")
			fs.DurationVar(&want.timeout, "timeout", checkTime, "how long the daemon may take to answer")
			return func(ctx context.Context, e *env) error {
				if want.lag < 0 || want.timeout <= 0 {
					return usagef("check: --max-lag must not be negative, and --timeout not be 0")
				}
				return check(ctx, e, client, want)
			}
		},
	}
}

// checks are what a check wants of a daemon.
type checks struct {
	alone, strict bool
	lag, timeout  time.Duration
}

// finding is a daemon's state that is not the one wanted.
type finding struct {
	status int
	said   string
}

func (f *finding) Error() string { return f.said }

func found(status int, format string, args ...any) error {
	return &finding{status, fmt.Sprintf(format, args...)}
}

func check(ctx context.Context, e *env, cl *config.Client, want checks) error {
	ctx, cancel := context.WithTimeout(ctx, want.timeout)
	defer cancel()
	var s *control.Status
	err := call(ctx, cl, control.Request{Op: control.OpStatus}, func(r control.Reply) error {
		s = r.Status
		return nil
	})
	switch {
	case errors.Is(err, control.ErrNoDaemon):
		return found(exitNoDaemon, "no daemon: %v", err)
	case errors.Is(err, context.DeadlineExceeded):
		return found(exitNoDaemon, "no answer from the daemon within %v", want.timeout)
	case errors.Is(err, control.ErrNoAnswer):
		return found(exitNoDaemon, "%v", err)
	case err != nil:
		return found(exitStatus(err), "%v", err)
	case s == nil:
		return found(exitNoDaemon, "the daemon gave no status: is it of another version?")
	}
	said, err := want.judge(s)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(e.stdout, oneLine(said))
	return err
}

// judge is what there is to say of a daemon that is as wanted; else an error is.
func (want checks) judge(s *control.Status) (said string, err error) {
	c := s.Cluster
	if why := cmp.Or(s.Instance.WaitingFor, s.Network.WaitingFor); why != "" || c == nil {
		return "", found(exitNoService, "not in service: %s", cmp.Or(why, "the instance is away"))
	}
	if !s.Instance.SyncEnabled {
		return "", found(exitNoInstance, "session synchronization is off in the instance: `jool -i %s global update ss-enabled true`", s.Instance.Name)
	}
	var unlike []string
	accompanied := false
	for _, n := range c.Nodes {
		accompanied = accompanied || n.Live
		if n.Live && len(n.Unlike) > 0 {
			unlike = append(unlike, n.Name+": "+strings.Join(n.Unlike, "; "))
		}
	}
	warning := ""
	if len(unlike) > 0 {
		warning = "; configured differently: " + strings.Join(unlike, ", ")
	}
	lag := time.Duration(c.Lag * float64(time.Second))
	switch {
	case c.State == "syncing", c.State != "synced" && accompanied: // which gave up waiting for the others
		return "", found(exitSyncing, "%s: %s%s", c.State, c.Why, warning)
	case c.State != "synced" && !want.alone:
		return "", found(exitAlone, "%s: %s%s", c.State, c.Why, warning)
	case want.strict && warning != "":
		return "", found(exitUnlike, "%s%s", c.State, warning)
	case want.lag > 0 && lag > want.lag:
		return "", found(exitLag, "%s, but lost datagrams have been missing for %v%s", c.State, lag.Round(time.Millisecond), warning)
	}
	if c.State == "synced" && !accompanied { // it goes on: there is no better one
		warning = "; no other node of joold is heard now" + warning
	}
	return fmt.Sprintf("%s: %s; %d sessions%s", c.State, c.Why, c.Sessions, warning), nil
}
