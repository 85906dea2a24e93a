// Command joold keeps the sessions of Jool's NAT64 instances alike on several
// nodes. It parses, wires up and runs; what it does lies in internal.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"unicode"

	"github.com/spf13/pflag"

	"joold/internal/config"
)

// env is what a command has of the process that it runs in.
type env struct {
	args           []string // what the flags left of the command line
	stdin          io.Reader
	stdout, stderr io.Writer
	hangup         chan os.Signal // SIGHUP
}

// command is a subcommand, or the daemon, whose name is empty.
type command struct {
	name  string
	args  string          // its arguments, for the line that says how it is used
	short string          // what it does, in one line
	long  string          // what else is to be known, with examples
	words func() []string // what its first argument may be, where that can be listed
	// setup adds the command's flags to fs and returns what runs once they are parsed.
	setup func(fs *pflag.FlagSet) func(context.Context, *env) error
}

// commands in the order in which help lists them.
func commands() []*command {
	return []*command{
		daemonCommand(), advertiseCommand(), followCommand(), statusCommand(), checkCommand(),
		keygenCommand(), versionCommand(), helpCommand(), completionCommand(),
	}
}

// flags are the command's, and what to run once they are parsed.
func (c *command) flags() (*pflag.FlagSet, func(context.Context, *env) error) {
	fs := pflag.NewFlagSet(c.name, pflag.ContinueOnError)
	fs.SortFlags = false
	run := c.setup(fs)
	fs.BoolP("help", "h", false, "show this help")
	return fs, run
}

func main() {
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP) // before all else: uncaught, it ends the process
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	os.Exit(run(ctx, &env{os.Args[1:], os.Stdin, os.Stdout, os.Stderr, hangup}))
}

// run does what the command line says and returns the exit status.
func run(ctx context.Context, e *env) int {
	err := dispatch(ctx, e)
	if err == nil {
		return exitOK
	}
	if errors.Is(err, context.Canceled) && ctx.Err() != nil {
		err = errors.New("interrupted")
	}
	if found := (*finding)(nil); errors.As(err, &found) { // which is an answer
		fmt.Fprintln(e.stdout, oneLine(found.Error()))
	} else {
		fmt.Fprintf(e.stderr, "joold: %s\n", oneLine(err.Error()))
	}
	return exitStatus(err)
}

func dispatch(ctx context.Context, e *env) error {
	cmd, args := split(e.args)
	if cmd.name != "" {
		signal.Stop(e.hangup) // a command ends with its terminal
	}
	fs, run := cmd.flags()
	if err := config.ParseFlags(fs, args); err != nil {
		return usageError{err}
	}
	if help, _ := fs.GetBool("help"); help {
		return printHelp(e, cmd.name)
	}
	e.args = fs.Args()
	if cmd.args == "" && len(e.args) > 0 {
		return usagef("%s: unexpected argument %q", cmd.name, e.args[0])
	}
	return run(ctx, e)
}

// split finds the command, the first argument that is neither a flag nor a
// flag's value, and returns it with the other arguments. Without one, it is the
// daemon's command line.
func split(args []string) (*command, []string) {
	takesValue := make(map[string]bool)
	for _, c := range commands() {
		fs, _ := c.flags()
		fs.VisitAll(func(f *pflag.Flag) {
			takesValue["--"+f.Name] = f.NoOptDefVal == ""
			takesValue["-"+f.Shorthand] = f.NoOptDefVal == ""
		})
	}
	for i := 0; i < len(args); i++ {
		switch a := args[i]; {
		case a == "--":
			return daemonCommand(), args
		case strings.HasPrefix(a, "-"):
			if takesValue[a] {
				i++
			}
		default:
			if c := commandNamed(a); c != nil {
				return c, slices.Concat(args[:i], args[i+1:])
			}
			return daemonCommand(), args
		}
	}
	return daemonCommand(), args
}

// commandNamed is the subcommand of that name, or nil.
func commandNamed(name string) *command {
	for _, c := range commands() {
		if c.name == name && name != "" {
			return c
		}
	}
	return nil
}

func commandNames() (names []string) {
	for _, c := range commands() {
		if c.name != "" {
			names = append(names, c.name)
		}
	}
	return names
}

// mistyped tells whether the daemon's first argument was meant to be a command:
// it is no address, and no path of a file that exists or could.
func mistyped(arg string) bool {
	if _, err := netip.ParseAddr(arg); err == nil || strings.ContainsAny(arg, "./:") {
		return false
	}
	_, err := os.Stat(arg)
	return errors.Is(err, os.ErrNotExist)
}

// oneLine keeps an error from making lines, or the screen, of its own.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, s)
}
