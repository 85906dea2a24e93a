package main

import (
	"context"
	"fmt"

	"github.com/spf13/pflag"

	"joold/internal/wire"
)

func keygenCommand() *command {
	return &command{
		name:  "keygen",
		short: "make a key for --net.key-file",
		long: `Shows a new random key, a line for the file that --net.key-file names. All
nodes of a cluster have the same file; nobody else may read it.

Examples:
  (umask 077; joold keygen > /etc/joold/keys)
  joold keygen >> /etc/joold/keys    # a second one, which will be the next`,
		setup: func(*pflag.FlagSet) func(context.Context, *env) error {
			return func(_ context.Context, e *env) error {
				_, err := fmt.Fprintln(e.stdout, wire.NewKey())
				return err
			}
		},
	}
}
