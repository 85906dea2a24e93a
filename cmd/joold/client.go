package main

import (
	"context"
	"errors"
	"fmt"

	"joold/internal/config"
	"joold/internal/control"
)

// call asks the daemon that cl names.
func call(ctx context.Context, cl *config.Client, r control.Request, each func(control.Reply) error) error {
	path := cl.Socket
	if path == "" {
		var err error
		if path, err = control.Path(cl.Instance); err != nil {
			return err
		}
	}
	err := control.Call(ctx, path, r, each)
	if errors.Is(err, control.ErrNoDaemon) {
		socket := ""
		if cl.Socket != "" {
			socket = " --control.socket " + cl.Socket
		}
		err = fmt.Errorf("%w: start one with `joold -i %s%s ADDR`", err, cl.Instance, socket)
	}
	return err
}
