package nlchan

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"joold/internal/session"
)

// What errors.Is finds in this package's errors. NAME stands for the instance;
// Error puts it in.
var (
	ErrNoModule = errors.New("no NAT64 module of Jool is loaded: load it with `modprobe jool`")

	ErrNoInstance = errors.New("no instance named 'NAME' in this network namespace: " +
		"create it with `jool instance add NAME --netfilter --pool6 PREFIX`, or name another one")

	// ErrStale: the module was removed, or removed and loaded again, since Dial.
	// Nothing will come of this connection any more.
	ErrStale = errors.New("the module was removed or reloaded since: connect again")

	ErrPermission = errors.New("CAP_NET_ADMIN is missing")

	ErrSyncDisabled = errors.New("session synchronization is off in this instance: " +
		"turn it on with `jool -i NAME global update ss-enabled true`")

	// ErrOverrun: the receive buffer was full and messages were lost. The
	// connection is sound, and the next Receive goes on. It is said once, and
	// before what the buffer still holds; until that has all been received the
	// kernel goes on losing messages, which only Counters.Drops tells.
	ErrOverrun = errors.New("messages were lost because the receive buffer was full: " +
		"raise it, or give the daemon more CPU")

	ErrAdvertising = errors.New("an advertisement of this instance is still under way: wait until it has ended")

	// ErrCannotAdvertise: the module takes the order and sends nothing (Jool up
	// to 4.1.10).
	ErrCannotAdvertise = errors.New("this module cannot advertise (Jool can since 4.1.11): " +
		"run joold, and ask it with `joold advertise -i NAME`")

	// ErrNoKnob: this version of Jool has no such setting.
	ErrNoKnob = errors.New("this module lacks the setting")

	// ErrOutsidePool4: a BIB entry, be it dynamic, has a mask that is not in
	// pool4 (any more), and Jool since 4.1.9 changes no setting until it is gone.
	ErrOutsidePool4 = errors.New("Jool changes no setting while a mask in the BIB lies outside of pool4: " +
		"put it into pool4, or wait until the entry has expired")

	ErrNoBIB = errors.New("the BIB has no such entry")

	ErrStaticBIB = errors.New("the entry is static: only the operator removes it, with `jool -i NAME bib remove`")

	ErrClosed = errors.New("the connection was closed")
)

var (
	errNoCapability = fmt.Errorf("%w: run as root, or give the service "+
		"AmbientCapabilities=CAP_NET_ADMIN", ErrPermission)
	errUserNamespace = fmt.Errorf("this process is in a user namespace, where Jool refuses everybody, root too (%w "+
		"in the initial one): run it outside of the container, or without PrivateUsers=", ErrPermission)

	errNoAnswer   = errors.New("the kernel did not answer")
	errBadAnswer  = errors.New("the kernel's answer could not be read")
	errNoProgress = errors.New("the kernel gave the same page twice")
)

// Error tells what was tried on which instance, and why it failed.
type Error struct {
	Op       string // "dump the TCP sessions"
	Instance string // "" where no instance is concerned
	Err      error
}

func (e *Error) Error() string {
	why := e.Err.Error()
	if e.Instance == "" {
		return e.Op + ": " + why
	}
	return fmt.Sprintf("%s of Jool instance '%s': %s", e.Op, e.Instance, strings.ReplaceAll(why, "NAME", e.Instance))
}

func (e *Error) Unwrap() error { return e.Err }

// KernelError is an error that the kernel answered, and that has no name here.
type KernelError struct {
	Errno   syscall.Errno
	Message string // Jool's own words; empty when netlink itself refused
}

func (e *KernelError) Error() string {
	if e.Message == "" {
		return fmt.Sprintf("the kernel refused: %s", e.Errno)
	}
	return fmt.Sprintf("Jool refused: %s (%s)", e.Message, e.Errno)
}

func (e *KernelError) Unwrap() error { return e.Errno }

// UnreadableError tells that a table holds sessions that make no sense: the
// module checks neither states nor what lies under pool6.
type UnreadableError struct {
	Count int
	Pool6 session.Pool6 // with which they were read
}

func (e *UnreadableError) Error() string {
	return fmt.Sprintf("%d sessions could not be read with pool6 %s: the instance was made anew with another, "+
		"or somebody put them in", e.Count, e.Pool6)
}

// named gives the errors that have a name theirs. Jool answers EINVAL to nearly
// everything, so that its words must do; they are alike in all versions.
func (e *KernelError) named(h Host) error {
	says := func(words string) bool { return strings.Contains(e.Message, words) }
	switch {
	case e.Errno == unix.EPERM && h.InUserNamespace():
		return errUserNamespace
	case e.Errno == unix.EPERM:
		return errNoCapability
	case e.Errno == unix.ENOENT && e.Message == "": // generic netlink knows no such family
		return ErrStale
	case says("lacks an instance named"):
		return ErrNoInstance
	case says("NAT64 Jool has not been modprobed"):
		return ErrNoModule
	case says("Session sync is disabled"):
		return ErrSyncDisabled
	case says("advertisement already in progress"):
		return ErrAdvertising
	case says("does not belong to pool4"):
		return fmt.Errorf("%w (%w)", ErrOutsidePool4, e)
	case says("entry wasn't in the database"), says("Entry not found"): // 4.1, 4.2
		return ErrNoBIB
	}
	return e
}

// fail wraps what went wrong while doing op, unless the caller itself asked for
// it: a deadline comes back as it is.
func (c *Conn) fail(op string, err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	return &Error{Op: op, Instance: c.instance, Err: err}
}
