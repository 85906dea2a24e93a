package daemon

import (
	"context"
	"time"

	"joold/internal/config"
	"joold/internal/nlchan"
)

// fullPayload makes a module up to 4.1.10 send as few messages as it can: it
// loses a session for each. It is the C daemon's buffer, in bytes.
const fullPayload = 2048

// wanted are the settings of the instance that the configuration wants changed.
func wanted(cfg *config.Config, v nlchan.Version, is nlchan.Globals) nlchan.Settings {
	var to nlchan.Settings
	set := func(k nlchan.Knob, value uint32) {
		if now, ok := is.Get(k); ok && now != value {
			to.Set(k, value)
		}
	}
	flushes := v.Less(4, 1, 11) // it has no queue, and flushes a buffer instead
	if cfg.FlushDeadline != 0 {
		set(nlchan.SSFlushDeadline, uint32(cfg.FlushDeadline.Milliseconds()))
		if flushes {
			set(nlchan.SSFlushASAP, 0)
		}
	}
	if now, _ := is.Get(nlchan.SSCapacity); int64(now) < int64(cfg.Capacity) {
		set(nlchan.SSCapacity, uint32(cfg.Capacity))
	}
	if cfg.Capacity != 0 && flushes {
		set(nlchan.SSMaxPayload, fullPayload)
	}
	if cfg.Enable {
		set(nlchan.SSEnabled, 1)
	}
	return to
}

// setUp changes the instance's settings to what the configuration wants, and
// says so. An instance that does not let itself be set up is served as it is.
func (d *Daemon) setUp(ctx context.Context, l *link) error {
	l.unset, l.setUpAt = false, time.Now()
	to := wanted(d.live.Load(), l.Module().Version, l.globals)
	if to == (nlchan.Settings{}) {
		return nil
	}
	if err := l.Update(ctx, to); isOver(err) {
		return err
	} else if err != nil {
		l.unset = true
		d.limit.Warn("cannot set the instance up", "instance", d.fixed.Instance, "err", err)
		return nil
	}
	for k, value := range to.All() {
		was, _ := l.globals.Get(k)
		d.done.Info("changed a setting of the instance", "instance", d.fixed.Instance, "setting", k, "from", shown(k, was), "to", shown(k, value))
	}
	is, err := l.Globals(ctx)
	if err == nil {
		l.globals = is
	}
	return err
}

// shown is a setting's value as `jool global` writes it.
func shown(k nlchan.Knob, value uint32) any {
	if k == nlchan.SSEnabled || k == nlchan.SSFlushASAP {
		return value != 0
	}
	return value
}

// followReloads reads the configuration again whenever that is asked for.
func (d *Daemon) followReloads(ctx context.Context) error {
	for {
		select {
		case <-d.Hangup:
			d.reload()
		case <-ctx.Done():
			return nil
		}
	}
}

// reload applies what has changed in the configuration and can be applied, and
// names what cannot.
func (d *Daemon) reload() {
	next, err := d.Load()
	if err != nil {
		d.Log.Error("the configuration is not taken over", "err", err)
		return
	}
	for _, w := range next.Warnings {
		d.Log.Warn(w)
	}
	live, _ := d.live.Load().Differ(next)
	_, fixed := d.fixed.Differ(next)
	if d.Level != nil {
		d.Level.Set(next.LogLevel)
	}
	d.live.Store(next)
	d.signer.Rekey(next.Keys, next.Encrypt)
	d.out.rekeyed()
	d.Log.Info("read the configuration again", "applied", live)
	if len(fixed) > 0 {
		d.Log.Warn("these settings take a new start of the daemon", "settings", fixed)
	}
}
