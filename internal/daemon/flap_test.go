package daemon

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"joold/internal/config"
	"joold/internal/nlchan"
	"joold/internal/session"
)

func TestAnInstanceThatComesAndGoesForHoursLeavesAShortLogThatEndsWithTheTruth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const seconds = 3600
		b := startLevel(t, newModelKernel(session.Enc4113), func(cfg *config.Config) { *cfg = *configOf(t) }, 0)
		for range seconds {
			time.Sleep(time.Second)
			b.events <- nlchan.ModuleRemoved
			k := newModelKernel(session.Enc4113)
			k.globals.Set(nlchan.SSFlushDeadline, 2000) // to be set up: more to tell
			b.dials <- dialled{k: k}
		}
		time.Sleep(time.Minute)
		lines := strings.Split(strings.TrimSuffix(b.logs.String(), "\n"), "\n")
		if len(lines) > seconds/5 {
			t.Errorf("%d lines in an hour", len(lines))
		}
		for i := len(lines) - 1; ; i-- {
			if strings.Contains(lines[i], `"out of service"`) || strings.Contains(lines[i], "waiting") {
				t.Errorf("the log ends with %q", lines[i:])
			}
			if strings.Contains(lines[i], `"in service"`) || i == 0 {
				break
			}
		}
		if n := strings.Count(b.logs.String(), `"in service"`); n < 3 {
			t.Errorf("in service is told %d times", n)
		}
	})
}

func TestACarrierThatComesAndGoesLeavesALogThatEndsWithHowItIs(t *testing.T) {
	for _, there := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			b := startHooked(t, newHookedKernel(session.Enc4113), nil)
			for n := range 120 {
				b.g.plug(n%2 == 1)
				b.pathEvents <- struct{}{}
				time.Sleep(3 * time.Second)
			}
			b.g.plug(there)
			b.pathEvents <- struct{}{}
			time.Sleep(time.Minute)
			var last string
			for line := range strings.Lines(b.logs.String()) {
				if strings.Contains(line, "carrier") {
					last = line
				}
			}
			if strings.Contains(last, "carrier back") != there {
				t.Errorf("carrier %v, but the last line is %s", there, last)
			}
		})
	}
}
