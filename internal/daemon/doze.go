package daemon

import (
	"time"

	"joold/internal/alarm"
)

// doze is how a goroutine sleeps that does so all the time.
type doze struct {
	alarm *alarm.Alarm
	over  chan struct{} // gets a token when the alarm rings
}

func (d *Daemon) newDoze() *doze {
	over := make(chan struct{}, 1)
	ring := func() {
		select {
		case over <- struct{}{}:
		default:
		}
	}
	return &doze{d.newAlarm(ring), over}
}

func (z *doze) wait(t time.Duration) {
	z.alarm.Reset(t)
	<-z.over
}

func (z *doze) end() { z.alarm.Close() }
