package main

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"

	"joold/internal/config"
	"joold/internal/control"
	"joold/internal/mcast"
	"joold/internal/nlchan"
)

// The exit statuses, which are an interface: scripts tell them apart.
const (
	exitOK = iota
	exitFailed
	exitUsage
	exitNoModule
	exitNoInstance
	exitNoPrivilege
	exitNoInterface
	exitNoDaemon
	exitSyncing
	exitAlone
	exitNoService
	exitUnlike
	exitLag
	exits // count
)

// exitMeanings are what the manual and `joold help exit-status` say.
var exitMeanings = [exits]string{
	exitOK:          "it went well",
	exitFailed:      "it failed while running",
	exitUsage:       "a flag, an argument or the configuration is wrong",
	exitNoModule:    "Jool's kernel module is absent",
	exitNoInstance:  "the instance is absent, or its session synchronization is off",
	exitNoPrivilege: "a privilege is missing",
	exitNoInterface: "an interface or address is absent, or unusable",
	exitNoDaemon:    "the daemon is not running, or check got no answer",
	exitSyncing:     "check: the node is not in sync yet",
	exitAlone:       "check: no other node of joold is there to be in sync with",
	exitNoService:   "check: the daemon waits for the instance or the network",
	exitUnlike:      "check --strict: nodes are configured differently",
	exitLag:         "check --max-lag: lost datagrams have been missing for too long",
}

// exitCauses is which errors lead to which status. The first match counts.
var exitCauses = []struct {
	err    error
	status int
}{
	{control.ErrNoDaemon, exitNoDaemon},
	{config.ErrNotMulticast, exitUsage},
	{mcast.ErrNotMulticast, exitUsage},
	{nlchan.ErrNoModule, exitNoModule},
	{nlchan.ErrNoInstance, exitNoInstance},
	{nlchan.ErrSyncDisabled, exitNoInstance},
	{nlchan.ErrPermission, exitNoPrivilege},
	{fs.ErrPermission, exitNoPrivilege},
	{mcast.ErrNoInterface, exitNoInterface},
	{mcast.ErrInterfaceDown, exitNoInterface},
	{mcast.ErrNoAddress, exitNoInterface},
	{mcast.ErrNoRoute, exitNoInterface},
	{mcast.ErrPortInUse, exitNoInterface},
	{syscall.EADDRNOTAVAIL, exitNoInterface},
	{syscall.EADDRINUSE, exitNoInterface},
}

func exitStatus(err error) int {
	if errors.As(err, new(usageError)) {
		return exitUsage
	}
	if found := (*finding)(nil); errors.As(err, &found) {
		return found.status
	}
	for _, c := range exitCauses {
		if errors.Is(err, c.err) {
			return c.status
		}
	}
	return exitFailed
}

// usageError is a mistake in the command line or in a file that it names.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func usagef(format string, args ...any) error {
	return usageError{fmt.Errorf(format, args...)}
}
