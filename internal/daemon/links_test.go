package daemon

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"joold/internal/mcast"
)

func TestTheLogSaysHowEachLinkStandsWhenThatChanges(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(slog.NewTextHandler(&out, nil))
	works := func(dev string) mcast.LinkState { return mcast.LinkState{In: dev, Out: dev, Carrier: true} }
	away, mute := works("eth3"), works("eth3")
	away.Away, mute.Carrier = errors.New("no such interface"), false
	var l links
	for _, step := range []struct {
		second mcast.LinkState
		says   string // "" for nothing
	}{
		{works("eth3"), ""},
		{away, `level=WARN msg="a link is away: the others carry on" in=eth3 out=eth3 err="no such interface"`},
		{away, ""},
		{mute, `level=WARN msg="a link has no carrier: the others carry on" in=eth3 out=eth3`},
		{works("eth3"), `level=INFO msg="a link is in use again" in=eth3`},
		{works("eth3"), ""},
	} {
		out.Reset()
		l.say(log, []mcast.LinkState{works("eth2"), step.second})
		if got := out.String(); (got == "") != (step.says == "") || !strings.Contains(got, step.says) || strings.Contains(got, "eth2") {
			t.Errorf("of %+v the log says %q, want %q", step.second, got, step.says)
		}
	}
}
