package main

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/spf13/pflag"

	"joold/internal/session"
)

// version is set by the linker (-X main.version=...).
var version string

func versionCommand() *command {
	return &command{
		name:  "version",
		short: "show joold's version",
		long: `The encodings are the forms in which kernel modules speak of a session, each
named after the last version, or for 4.1.13 the first, that speaks it. joold
understands them all, and sends the local module's unless --net.wire names one.`,
		setup: func(*pflag.FlagSet) func(context.Context, *env) error {
			return func(_ context.Context, e *env) error { return printVersion(e.stdout) }
		},
	}
}

func printVersion(w io.Writer) error {
	var encodings []string
	for _, enc := range session.Encodings {
		encodings = append(encodings, enc.String())
	}
	_, err := fmt.Fprintf(w, "joold %s\n%s %s/%s\nencodings %s\n",
		ownVersion(), runtime.Version(), runtime.GOOS, runtime.GOARCH, strings.Join(encodings, ", "))
	return err
}

// ownVersion is what the linker was told or, without that, what the module
// system knows.
func ownVersion() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(unknown)"
}
