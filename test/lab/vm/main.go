package vm

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
)

// Main is the whole of a command that runs a script in one guest, with the version of Jool that its flag -jool names. It does not return.
func Main(ctx context.Context, g Guest, script string) {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	flag.StringVar(&g.Jool, "jool", Versions[len(Versions)-1], "Jool's version: "+strings.Join(Versions, ", "))
	flag.Parse()
	if !slices.Contains(Versions, g.Jool) || flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	if err := g.runScript(ctx, script); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func (g Guest) runScript(ctx context.Context, script string) (err error) {
	if g.Image, err = Build(ctx); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "joold-lab-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	programs, share := dir+"/programs", dir+"/share"
	for _, d := range []string{programs, share} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return err
		}
	}
	if err := Programs(ctx, programs); err != nil {
		return err
	}
	if err := Share(share, programs, script); err != nil {
		return err
	}
	g.Share = share
	return g.Run(ctx)
}
