package daemon

import (
	"context"
	"fmt"
	"os"
	"time"

	"joold/internal/control"
	"joold/internal/session"
)

// handle answers the control socket.
func (d *Daemon) handle(ctx context.Context, r control.Request, reply func(control.Reply) error) error {
	switch r.Op {
	case control.OpStatus:
		s := d.status(time.Now())
		return reply(control.Reply{Status: &s})
	case control.OpAdvertise:
		p, err := d.advertise(ctx, r.Rate, func(p control.Progress) error {
			return reply(control.Reply{Progress: &p})
		})
		if err != nil {
			return err
		}
		return reply(control.Reply{Done: &p})
	}
	return fmt.Errorf("this daemon (%s) does not know the request %q", d.version, r.Op)
}

// status is what the daemon says of itself.
func (d *Daemon) status(now time.Time) control.Status {
	c := &d.count
	group := d.group()
	local := group.Local()
	s := control.Status{
		Version: d.version, PID: os.Getpid(), Started: d.started, Uptime: now.Sub(d.started).Seconds(),
		Instance: control.Instance{Name: d.cfg.Instance},
		Network: control.Network{
			Group: local.Group.String(), In: local.In, Out: local.Out, Source: local.Source.String(),
			MTU: local.MTU, MaxPayload: group.MaxPayload(),
			ReadBuffer: local.ReadBuffer, WriteBuffer: local.WriteBuffer,
		},
		Kernel: control.Kernel{
			Messages: c.kernelMessages.Load(), Sessions: c.kernelSessions.Load(), Bytes: c.kernelBytes.Load(),
			Unreadable: byReason[session.Defect](c.kernelBad[:]),
			Overruns:   c.overruns.Load(),
			Injected:   c.injected.Load(), AddMessages: c.addMessages.Load(), AddErrors: c.addErrors.Load(),
			Dropped: c.dropped.Load(), Foreign: c.foreign.Load(), Malformed: c.malformed.Load(),
			Unfit: c.unfit.Load(), Expired: c.expired.Load(),
		},
		Net: control.Net{
			SentDatagrams: c.sentDatagrams.Load(), SentSessions: c.sentSessions.Load(), SentBytes: c.sentBytes.Load(),
			SendErrors:    c.sendErrors.snapshot(),
			RcvdDatagrams: c.rcvdDatagrams.Load(), RcvdSessions: c.rcvdSessions.Load(), RcvdBytes: c.rcvdBytes.Load(),
			Unreadable: byReason[session.Defect](c.rcvdBad[:]),
			Refused:    byReason[session.Refusal](c.refused[:]),
			Unserved:   c.unserved.Load(), ReadErrors: c.readErrors.Load(), SocketDrops: c.socketDrops.Load() + group.Drops(),
		},
		Peers: d.peers.snapshot(now),
	}
	l := d.link.Load()
	if l == nil {
		s.Instance.WaitingFor, _ = d.waitingFor.Load().(string)
		return s
	}
	m := l.Module()
	s.Instance.InService = true
	s.Instance.Module, s.Instance.Encoding = m.Version.String(), m.Encoding.String()
	s.Instance.Pool6 = l.pool6.String()
	s.Instance.SyncEnabled = l.sync.Load()
	s.Instance.AnyMask = l.policy.Load().Masquerades()
	s.Network.Wire = l.wire.String()
	in := l.inbox.Counts()
	s.Kernel.Waiting = in.Waiting
	s.Kernel.Dropped += in.Dropped
	s.Kernel.Expired += in.Expired
	heard := l.Counters()
	s.Kernel.Foreign += heard.Foreign
	s.Kernel.Malformed += heard.Malformed
	return s
}
