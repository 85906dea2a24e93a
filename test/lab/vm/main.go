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

// Main is the whole of a command whose flag -jool names the version of Jool that its guest has. It does not return.
func Main(command func(ctx context.Context, jool string) error) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	jool := flag.String("jool", Versions[len(Versions)-1], "Jool's version: "+strings.Join(Versions, ", "))
	flag.Parse()
	if !slices.Contains(Versions, *jool) || flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	err := command(ctx, *jool)
	if ctx.Err() != nil {
		fmt.Fprintln(os.Stderr, "interrupted")
		os.Exit(1)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// A Stage is what RunScript does next.
type Stage int

// The stages, in their order. While it is Building, build.sh writes to standard error, if there is anything to build.
const (
	Building Stage = iota
	Compiling
	Booting
)

// RunScript makes all that a guest needs, boots it and runs a script in it. Image and Share are its own to set.
func (g Guest) RunScript(ctx context.Context, script string, next func(Stage)) (err error) {
	next(Building)
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
	next(Compiling)
	if err := Programs(ctx, programs); err != nil {
		return err
	}
	if err := Share(share, programs, script); err != nil {
		return err
	}
	g.Share = share
	next(Booting)
	return g.Run(ctx)
}
