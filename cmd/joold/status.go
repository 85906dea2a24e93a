package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"joold/internal/config"
	"joold/internal/control"
)

func statusCommand() *command {
	return &command{
		name:  "status",
		short: "show what the running daemon does, and whom it hears",
		long: `Shows the instance, the kernel module, the multicast group, counters each way
and the peers that were heard. A C daemon that only listens cannot be seen.

Examples:
  joold status
  joold status --watch
  joold status -i edge --json`,
		setup: func(fs *pflag.FlagSet) func(context.Context, *env) error {
			client := config.DefineClient(fs)
			json := fs.Bool("json", false, "show JSON")
			again := fs.Duration("watch", 0, "show it again and again, this long apart; 0s for once")
			fs.Lookup("watch").NoOptDefVal = "2s"
			return func(ctx context.Context, e *env) error {
				switch {
				case *again < 0 || *again > 0 && *again < minWatch:
					return usagef("status: --watch=%v: want %v or more", *again, minWatch)
				case *again > 0 && *json:
					return usagef("status: --watch and --json do not go together")
				case *again > 0:
					return watch(ctx, e, client, *again)
				}
				return status(ctx, e, client, *json)
			}
		},
	}
}

// statusTime is how long a daemon may take to say how it is.
const statusTime = 15 * time.Second

// status shows what the daemon says of itself.
func status(ctx context.Context, e *env, cl *config.Client, asJSON bool) error {
	ctx, cancel := context.WithTimeout(ctx, statusTime)
	defer cancel()
	err := call(ctx, cl, control.Request{Op: control.OpStatus}, func(r control.Reply) error {
		if r.Status == nil {
			return errors.New("the daemon gave no status: is it of another version?")
		}
		if asJSON {
			enc := json.NewEncoder(e.stdout)
			enc.SetIndent("", "  ")
			return enc.Encode(r.Status)
		}
		return writeStatus(e.stdout, r.Status)
	})
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("the daemon has not answered within %v: it hangs, or is stopped: see its log, and restart it", statusTime)
	}
	return err
}

func writeStatus(w io.Writer, s *control.Status) error {
	var b strings.Builder
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%-10s %s\n", name, fmt.Sprintf(format, args...))
	}
	line("joold", "%s, pid %d, up %s", s.Version, s.PID, time.Duration(s.Uptime*float64(time.Second)).Round(time.Second))
	i := s.Instance
	if i.InService {
		line("instance", "%s: in service, Jool %s (encoding %s), pool6 %s", i.Name, i.Module, i.Encoding, i.Pool6)
		if !i.SyncEnabled {
			line("", "session synchronization is off: `jool -i %s global update ss-enabled true`", i.Name)
		}
		if i.AnyMask {
			line("", "pool4 is empty: peers' masks are not checked")
		}
	} else {
		line("instance", "%s: out of service: %s", i.Name, i.WaitingFor)
	}
	n := s.Network
	line("group", "%s, in %s, out %s", cmp.Or(n.Group, "none"), kernelsChoice(n.In), kernelsChoice(n.Out))
	if len(n.Unicast) > 0 {
		line("", "sends to each of %s", strings.Join(n.Unicast, ", "))
	}
	for _, l := range n.Links {
		state := "in use"
		switch {
		case l.WaitingFor != "":
			state = "away: " + l.WaitingFor
		case !l.Carrier:
			state = "no carrier"
		}
		line("", "link in %s, out %s, from %s: %s; %d datagrams could not be sent on it", l.In, l.Out, cmp.Or(l.Source, "no address"), state, l.Failed)
	}
	if n.Cluster != "" {
		line("", "cluster %s", n.Cluster)
	}
	if n.Keys > 0 {
		does, with := "signs", "the key"
		if n.Encrypts {
			does = "signs and encrypts"
		}
		if n.Keys > 1 {
			with = fmt.Sprintf("the first of %d keys", n.Keys)
		}
		line("", "%s with %s", does, with)
	}
	if len(n.Unsigned) > 0 {
		line("", "warning: whoever sends from %s need not sign: end that once all nodes do", strings.Join(n.Unsigned, ", "))
	}
	if n.WaitingFor != "" {
		line("", "away: %s", n.WaitingFor)
	}
	if n.MTU > 0 {
		line("", "from %s, MTU %d, sending encoding %s", n.Source, n.MTU, cmp.Or(n.Wire, "of the module, once it is there"))
		line("", "socket buffers %d KiB in, %d KiB out", n.ReadBuffer>>10, n.WriteBuffer>>10)
	}
	writeCluster(&b, s)
	t := s.Table
	line("table", "%d sessions remembered, %d wait to be sent; %d announcements held back", t.Sessions, t.Pending, t.HeldBack)
	k := s.Kernel
	line("kernel", "announced %d sessions in %d messages, %d bytes", k.Sessions, k.Messages, k.Bytes)
	line("", "took in %d sessions in %d messages; %d wait", k.Injected, k.AddMessages, k.Waiting)
	line("network", "sent %d sessions in %d datagrams, %d bytes", s.Net.SentSessions, s.Net.SentDatagrams, s.Net.SentBytes)
	line("", "heard %d sessions in %d datagrams, %d bytes", s.Net.RcvdSessions, s.Net.RcvdDatagrams, s.Net.RcvdBytes)

	if s.Net.ApartDatagrams > 0 {
		line("", "to other nodes of joold: %d sessions in copies and repairs, %d datagrams, %d bytes", s.Net.ApartSessions, s.Net.ApartDatagrams, s.Net.ApartBytes)
	}

	heard := func(stamp string) uint64 { // counted at different moments, perhaps
		all := s.Net.Stamps[stamp]
		return all - min(all, s.Net.Unheard[stamp])
	}
	line("errors", "%s", cmp.Or(joinCounts(
		count("kernel overruns", k.Overruns), count("announcements dropped by the module", k.QueueDrops),
		count("sessions that found no room in the table", t.Full), count("refreshes dropped", t.DroppedRefreshes),
		count("sessions left to a sweep", t.DroppedNews), counts("datagrams refused", s.Net.Strays),
		counts("datagrams not heard", s.Net.Unheard), counts("stamped datagrams left out", troubles(s.Net.Numbered)),
		count("datagrams of another version", heard("other version")), count("datagrams signed", heard("other key")),
		count("datagrams that end in garbage", heard("trailing")),
		count("malformed kernel messages", k.Malformed),
		counts("unreadable kernel entries", k.Unreadable), count("injections refused", k.AddErrors),
		count("sessions dropped before the kernel", k.Dropped), count("sessions that died before it", k.Expired),
		count("sessions that this module would misread", k.Unfit),
		count("sessions that contradict the BIB", k.Conflicts),
		counts("send errors", s.Net.SendErrors), counts("send errors to nodes", s.Net.ApartErrors), count("read errors", s.Net.ReadErrors), count("socket drops", s.Net.SocketDrops),
		counts("unreadable entries", s.Net.Unreadable), counts("refused entries", s.Net.Refused),
		count("datagrams while out of service", s.Net.Unserved), count("log lines lost", s.Log.Dropped)), "none"))
	for n, c := range k.LastConflicts {
		line(first("conflicts", n), "%s: a peer has %s behind %s, this node %s behind %s: %s; %d times, from %s, last %s ago", c.Proto,
			c.Session, c.Mask, c.BIB, c.BIBMask, c.Because, c.Times, cmp.Or(c.From, "a peer no longer remembered"), ago(c.Ago))
	}
	for n, p := range s.Peers {
		order := ""
		if p.ByteOrder == "other" {
			order = ", of the other byte order"
		}
		line(first("peers", n), "%s, encoding %s%s, heard %s ago: %d sessions in %d datagrams, %d entries refused", p.Address, p.Encoding, order,
			ago(p.Ago), p.Sessions, p.Datagrams, p.Refused)
	}
	if len(s.Peers) == 0 {
		line("peers", "none heard")
	}
	line("", "a C daemon that only listens cannot be seen")
	_, err := io.WriteString(w, b.String())
	return err
}

// first is the name before the first of several lines.
func first(name string, n int) string {
	if n > 0 {
		return ""
	}
	return name
}

// ago is a time in seconds.
func ago(seconds float64) time.Duration {
	return time.Duration(seconds * float64(time.Second)).Round(100 * time.Millisecond)
}

func kernelsChoice(iface string) string {
	if iface == "" {
		return "(kernel's choice)"
	}
	return iface
}

// count is "what N", or nothing for zero.
func count(what string, n uint64) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("%s %d", what, n)
}

// counts is a count for each kind that occurred.
func counts(what string, m map[string]uint64) string {
	var parts []string
	for kind, n := range m {
		parts = append(parts, count(what+" ("+kind+")", n))
	}
	slices.Sort(parts)
	return joinCounts(parts...)
}

func joinCounts(parts ...string) string {
	return strings.Join(slices.DeleteFunc(parts, func(s string) bool { return s == "" }), ", ")
}

// troubles are those verdicts on stamped datagrams that are no part of the usual.
func troubles(numbered map[string]uint64) map[string]uint64 {
	m := maps.Clone(numbered)
	maps.DeleteFunc(m, func(verdict string, _ uint64) bool {
		return verdict == "taken" || verdict == "duplicate" || verdict == "own"
	})
	return m
}
