package daemon

import (
	"context"
	"fmt"
	"os"
	"time"

	"joold/internal/batch"
	"joold/internal/cluster"
	"joold/internal/control"
	"joold/internal/nlchan"
	"joold/internal/session"
	"joold/internal/wire"
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
	return fmt.Errorf("this daemon (%s) does not know the request %q", d.Version, r.Op)
}

// status is what the daemon says of itself.
func (d *Daemon) status(now time.Time) control.Status {
	c := &d.count
	table, verdicts := d.out.status()
	unheard := byReason[wire.Verdict](c.unheard[:]) // a part of the stamps, which are counted first: so these are read last
	s := control.Status{
		Version: d.Version, PID: os.Getpid(), Started: d.started, Uptime: now.Sub(d.started).Seconds(),
		Instance: control.Instance{Name: d.fixed.Instance, WaitingFor: d.condition.why(theInstance)},
		Network:  control.Network{Group: d.fixed.Group, In: d.fixed.In, Out: d.fixed.Out, WaitingFor: d.condition.why(theGroup)},
		Table:    table,
		Kernel: control.Kernel{
			Messages: c.kernelMessages.Load(), Sessions: c.kernelSessions.Load(), Bytes: c.kernelBytes.Load(),
			Unreadable: byReason[session.Defect](c.kernelBad[:]),
			Overruns:   c.overruns.Load(), QueueDrops: c.kernelDrops.Load(),
			Injected: c.injected.Load(), AddMessages: c.addMessages.Load(), AddErrors: c.addErrors.Load(),
			Dropped: c.dropped.Load(), Foreign: c.foreign.Load(), Malformed: c.malformed.Load(),
			Unfit: c.unfit.Load(), BIBRemoved: c.resolved.Load(), Conflicts: c.conflicts.Load(), Expired: c.expired.Load(),
			LastConflicts: d.conflicts.snapshot(d.peers.numbers(), now),
		},
		Net: control.Net{
			SentDatagrams: c.sentDatagrams.Load(), SentSessions: c.sentSessions.Load(), SentBytes: c.sentBytes.Load(),
			SendErrors:    c.sendErrors.snapshot(),
			RcvdDatagrams: c.rcvdDatagrams.Load(), RcvdSessions: c.rcvdSessions.Load(), RcvdBytes: c.rcvdBytes.Load(),
			Unreadable: byReason[session.Defect](c.rcvdBad[:]),
			Refused:    byReason[session.Refusal](c.refused[:]),
			Strays:     byReason[stray](c.strays[:]),
			Stamps:     byReason[wire.Verdict](c.stamps[:]),
			Unheard:    unheard,
			Numbered:   byReason[cluster.Verdict](c.unmet[:]),
			Verdicts:   verdicts,

			ApartDatagrams: c.apartDatagrams.Load(), ApartSessions: c.apartSessions.Load(), ApartBytes: c.apartBytes.Load(),
			ApartErrors: c.apartErrors.snapshot(),
			Unserved:    c.unserved.Load(), ReadErrors: c.readErrors.Load(), SocketDrops: c.socketDrops.Load(),
		},
		Peers:   d.peers.snapshot(now),
		Cluster: d.out.clusterStatus(now),
	}
	if d.Queue != nil {
		s.Log = control.Log(d.Queue.Counts())
	}
	if group := d.group(); group != nil {
		local := group.Local()
		s.Network = control.Network{
			WaitingFor: s.Network.WaitingFor,
			Group:      shownGroup(local.Group), In: local.In, Out: local.Out, Port: local.Port,
			MTU: local.MTU, MaxPayload: group.MaxPayload(),
			ReadBuffer: local.ReadBuffer, WriteBuffer: local.WriteBuffer,
		}
		if local.Source.IsValid() {
			s.Network.Source = local.Source.String()
		}
		for _, l := range local.Links {
			link := control.Link{In: l.In, Out: l.Out, Carrier: l.Carrier, Failed: l.Failed, MTU: l.MTU}
			if l.Source.IsValid() {
				link.Source = l.Source.String()
			}
			if l.Away != nil {
				link.WaitingFor = l.Away.Error()
			}
			s.Network.Links = append(s.Network.Links, link)
		}
		s.Net.SocketDrops += group.Drops()
	}
	for _, p := range d.fixed.Peers {
		s.Network.Unicast = append(s.Network.Unicast, p.String())
	}
	cfg := d.live.Load()
	s.Network.Cluster, s.Network.Keys, s.Network.Encrypts = d.fixed.Cluster, len(cfg.Keys.Hints()), cfg.Encrypt
	for _, p := range cfg.Unsigned {
		s.Network.Unsigned = append(s.Network.Unsigned, p.String())
	}
	l := d.link.Load()
	if l == nil {
		return s
	}
	m := l.Module()
	s.Instance.InService = true
	s.Instance.Module, s.Instance.Encoding = m.Version.String(), m.Encoding.String()
	s.Instance.Pool6 = l.pool6.String()
	s.Instance.SyncEnabled = l.sync.Load()
	s.Instance.AnyMask = l.policy.Load().Masquerades()
	s.Network.Wire = l.wire.String()
	in := l.waiting()
	s.Kernel.Waiting, s.Kernel.WaitingLimit = in.Waiting, 2*inboxSize+copiedSize
	s.Net.RefusedWaiting = l.refused.Counts().Waiting
	s.Kernel.Dropped += in.Dropped
	s.Kernel.Expired += in.Expired
	heard := l.Counters()
	s.Kernel.Foreign += heard.Foreign
	s.Kernel.Malformed += heard.Malformed
	return s
}

// status is what the table says of itself, with the counts of those before it.
func (o *outlet) status() (control.Table, map[string]uint64) {
	o.mu.Lock()
	c := o.past
	if o.table != nil {
		c = o.counts()
	}
	o.mu.Unlock()
	cfg := o.d.live.Load()
	verdicts := make(map[string]uint64, len(c.Verdicts))
	for v, n := range c.Verdicts {
		verdicts[batch.Verdict(v).String()] = n
	}
	return control.Table{
		Sessions: c.Sessions, Limit: tableLimit(o.d.fixed), Full: c.Full,
		Pending: c.Pending, PendingLimit: cfg.Pending, Died: c.Died,
		HeldBack: c.Held + c.Unchanged, DroppedRefreshes: c.DroppedRefreshes, DroppedNews: c.DroppedNews,
		Displaced: c.Displaced, Vanished: c.Vanished, Sweeps: o.d.count.sweeps.Load(),
	}, verdicts
}

// counts are the table's, and those of the tables before it.
func (o *outlet) counts() batch.TableCounts {
	c, p := o.table.Counts(), &o.past
	for sum, n := range map[*uint64]uint64{
		&c.Unchanged: p.Unchanged, &c.Held: p.Held, &c.DroppedRefreshes: p.DroppedRefreshes, &c.DroppedNews: p.DroppedNews,
		&c.Died: p.Died, &c.Full: p.Full, &c.Displaced: p.Displaced, &c.Vanished: p.Vanished,
	} {
		*sum += n
	}
	for v, n := range p.Verdicts {
		c.Verdicts[v] += n
	}
	return c
}

// clusterStatus is what the member says of itself and the others; nil while there is no instance.
func (o *outlet) clusterStatus(now time.Time) *control.Cluster {
	o.mu.Lock()
	if o.table == nil {
		o.mu.Unlock()
		return nil
	}
	s, active, sessions, behind := o.member.Status(), o.link.translates(), int(o.table.Digest().Sessions), o.member.behind
	o.mu.Unlock()
	c := &s.Counts
	if s.State == cluster.Synced && behind && !active {
		s.State, s.Why = cluster.Syncing, "sessions of a copy wait for the kernel"
	}
	said := &control.Cluster{
		Node: o.d.name, State: s.State.String(), Why: s.Why, Since: now.Sub(s.Since).Seconds(), Active: active, Sessions: sessions,
		Copying: s.From, Giving: s.Copies, Requests: c.Requests, Repaired: c.Repaired, Sweeps: c.Sweeps,
		CopiesGiven: c.Given, CopiesTaken: c.Taken, CopiesBroken: c.Broken, Crowded: c.Crowded, Unread: c.Unread, Unproven: c.Unfresh,
		Stops: c.Stops, Nodes: make([]control.Node, 0, len(s.Peers)),
	}
	known := true
	for _, p := range s.Peers {
		n := control.Node{
			Name: p.Name, Version: p.Version, Address: p.Addr.String(), Live: p.Live, Fresh: p.Fresh, Left: p.Left, State: p.State.String(), Active: p.Active,
			Module:   nlchan.Version{Major: p.Module[0], Minor: p.Module[1], Revision: p.Module[2], Dev: p.Module[3]}.String(),
			Encoding: p.Encoding.String(), Sessions: int(p.Sessions), Ago: now.Sub(p.Heard).Seconds(), Verified: ago(p.Equal, now),
			Differs: p.Differs, Unlike: p.Unlike,
			Missing: p.Counts.Missing, Repaired: p.Counts.Repaired, Late: p.Counts.Late, Duplicate: p.Counts.Duplicate,
			TooOld: p.Counts.TooOld, Requests: p.Counts.Requests,
		}
		if !p.Behind.IsZero() {
			n.Lag = now.Sub(p.Behind).Seconds()
		}
		said.Nodes = append(said.Nodes, n)
		if !p.Live {
			continue
		}
		said.Lag = max(said.Lag, n.Lag)
		if known = known && n.Verified != nil; !known {
			said.Verified = nil
		} else if said.Verified == nil || *said.Verified < *n.Verified {
			said.Verified = n.Verified
		}
	}
	return said
}

// ago is how long ago a moment was, in seconds; nil if there was none.
func ago(t, now time.Time) *float64 {
	if t.IsZero() {
		return nil
	}
	seconds := now.Sub(t).Seconds()
	return &seconds
}
