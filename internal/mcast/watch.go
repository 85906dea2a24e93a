package mcast

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// quiet is how long a Watcher waits after a call before the next: changes come
// in flocks.
const quiet = 100 * time.Millisecond

// Watcher hears from the moment it is made when an interface or an address of
// this network namespace changes. It sleeps while none does.
type Watcher struct {
	conn *netlink.Conn
	raw  syscall.RawConn
}

// NewWatcher watches what Open(cfg) depends on: where cfg leaves the choice of
// an interface to the kernel, routes too. It needs no privilege.
func NewWatcher(cfg Config) (*Watcher, error) {
	groups := []uint32{unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR}
	if cfg.Group.Addr().Zone() == "" && (cfg.In == "" || cfg.Out == "") {
		groups = append(groups, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE)
	}
	var mask uint32
	for _, g := range groups {
		mask |= 1 << (g - 1)
	}
	conn, err := netlink.Dial(unix.NETLINK_ROUTE, &netlink.Config{Groups: mask})
	if err != nil {
		return nil, watchError(err)
	}
	w := &Watcher{conn: conn}
	if w.raw, err = conn.SyscallConn(); err != nil {
		conn.Close()
		return nil, watchError(err)
	}
	return w, nil
}

// Run calls f when something has changed, until ctx ends, and returns ctx's
// error then. Changes within a tenth of a second share a call; after the last
// there is always one. What changed is for f to find out: it need not concern
// the group.
func (w *Watcher) Run(ctx context.Context, f func()) error {
	defer context.AfterFunc(ctx, func() { w.conn.SetReadDeadline(time.Unix(1, 0)) })()
	for {
		err := w.wait()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return watchError(err)
		}
		f()
		select {
		case <-time.After(quiet):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// wait returns when there are messages, and throws them away unread: that they
// came is all there is to know, and so nothing that they hold can do harm. An
// overrun says the same.
func (w *Watcher) wait() error {
	var buf [1]byte
	var err error
	heard := false
	if werr := w.raw.Read(func(fd uintptr) bool {
		for {
			_, _, err = unix.Recvfrom(int(fd), buf[:], unix.MSG_DONTWAIT)
			switch {
			case err == nil, errors.Is(err, unix.ENOBUFS):
				heard = true
			case errors.Is(err, unix.EINTR):
			case errors.Is(err, unix.EAGAIN):
				err = nil
				return heard
			default:
				return true
			}
		}
	}); werr != nil {
		return werr
	}
	return err
}

// Close ends the watch, and a Run with an error.
func (w *Watcher) Close() error { return w.conn.Close() }

func watchError(err error) error {
	return fmt.Errorf("watch the interfaces: %w", err)
}
