package main

import (
	"context"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"syscall"

	"github.com/spf13/pflag"

	"joold/internal/config"
	"joold/internal/daemon"
	"joold/internal/logging"
)

func daemonCommand() *command {
	return &command{
		args: "[ADDR | NET.json [MOD.json [STATS_PORT]]]",
		long: `joold keeps the sessions of Jool's NAT64 instances alike on several nodes.

Usage:
  joold [FLAGS] ADDR           serve an instance: give what it announces to the
                               multicast group ADDR, and what is heard to it
  joold [FLAGS] --config FILE  the same, with settings from FILE
  joold [FLAGS] NET.json [MOD.json [STATS_PORT]]
                               the same, with the C daemon's files
  joold COMMAND [FLAGS]        ask a running daemon

Example:
  joold -i default --net.mcast.addr ff08::db8:64:64 --net.mcast.port 6464 \
        --net.dev.in eth2 --net.dev.out eth2`,
		setup: func(fs *pflag.FlagSet) func(context.Context, *env) error {
			flags := config.Define(fs)
			version := fs.Bool("version", false, "show joold's version")
			return func(ctx context.Context, e *env) error {
				if *version {
					return printVersion(e.stdout)
				}
				if len(e.args) > 0 && mistyped(e.args[0]) {
					return usagef("no command, address or file is called %q; the nearest command is %q",
						e.args[0], config.Nearest(e.args[0], commandNames()))
				}
				cfg, err := flags.Config(e.args)
				if err != nil {
					return usageError{err}
				}
				args := slices.Clone(e.args)
				return serve(ctx, e, cfg, func() (*config.Config, error) { return flags.Config(args) })
			}
		},
	}
}

// serve runs the daemon until ctx ends. SIGHUP has load called again.
func serve(ctx context.Context, e *env, cfg *config.Config, load func() (*config.Config, error)) error {
	if os.Getenv("GOMAXPROCS") == "" {
		// Its goroutines take turns: nearly all of their time is the kernel's, which
		// lets in one at a time. On several processors they would wake each other's threads.
		runtime.GOMAXPROCS(1)
	}
	level := new(slog.LevelVar)
	level.Set(cfg.LogLevel)
	signal.Ignore(syscall.SIGPIPE) // whoever reads the log may die: the daemon goes on
	log, queue := logging.New(e.stderr, level, cfg.LogJSON)
	defer func() {
		if queue.Close() != nil { // then the last word would wait for ever
			e.stderr = io.Discard
		}
	}()
	for _, w := range cfg.Warnings {
		log.Warn(w)
	}
	return daemon.Run(ctx, cfg, daemon.Options{Version: ownVersion(), Log: log, Queue: queue, Level: level, Hangup: e.hangup, Load: load})
}
