package daemon

import (
	"testing"
	"testing/synctest"
	"time"

	"joold/internal/nlchan"
	"joold/internal/session"
)

func TestSessionsThatAModuleAnnouncesEachByItselfShareDatagrams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newHookedKernel(session.Enc4112)
		k.module.Version.Revision = 12
		k.globals.Set(nlchan.SSFlushASAP, 1) // as it comes
		k.globals.Set(nlchan.SSFlushDeadline, 20)
		k.globals.Set(nlchan.SSMaxSessionsPerPacket, 10)
		b := startHooked(t, k, nil)
		const most = 90
		for n := range uint16(most) {
			k.announced <- encode(session.Enc4112, wkp, udp(n, 300_000))
			time.Sleep(100 * time.Microsecond)
		}
		time.Sleep(time.Second)
		if all, n := b.g.sent(wkp); len(all) != most || n > most/10 {
			t.Errorf("%d of %d sessions were sent, in %d datagrams", len(all), most, n)
		}
	})
}
