package main

import (
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"joold/internal/control"
)

func TestACheckTellsByItsStatusHowANodeStands(t *testing.T) {
	with := func(change func(*control.Status)) *control.Status {
		s := sampleStatus()
		s.Instance.SyncEnabled = true
		s.Cluster = &control.Cluster{Node: "K", State: "synced", Why: "it has all that J has", Sessions: 7, Nodes: []control.Node{{Name: "J", Live: true}}}
		change(s)
		return s
	}
	alone := with(func(s *control.Status) {
		s.Cluster.State, s.Cluster.Why, s.Cluster.Nodes[0].Live = "gave up", "no other node answers", false
	})
	kept := with(func(s *control.Status) { s.Cluster.State, s.Cluster.Why = "gave up", "no other node gives a copy" })
	lags := with(func(s *control.Status) { s.Cluster.Lag = 2.5 })
	unlike := with(func(s *control.Status) { s.Cluster.Nodes[0].Unlike = []string{"timeouts: udp 1m0s"} })
	for _, c := range []struct {
		status *control.Status
		args   string
		want   int
		said   string
	}{
		{with(func(*control.Status) {}), "", exitOK, "synced: it has all that J has; 7 sessions"},
		{with(func(s *control.Status) { s.Cluster.Nodes[0].Live = false }), "", exitOK, "7 sessions; no other node of joold is heard now"},
		{with(func(s *control.Status) { s.Cluster.State, s.Cluster.Why = "syncing", "it has just started" }), "--allow-alone", exitSyncing, "syncing: it has just started"},
		{alone, "", exitAlone, "gave up: no other node answers"},
		{alone, "--allow-alone", exitOK, "gave up: no other node answers; 7 sessions"},
		{with(func(s *control.Status) { s.Instance.WaitingFor = "no instance" }), "--allow-alone", exitNoService, "not in service: no instance"},
		{with(func(s *control.Status) { s.Network.WaitingFor = "no interface" }), "", exitNoService, "not in service: no interface"},
		{with(func(s *control.Status) { s.Cluster = nil }), "", exitNoService, "not in service: the instance is away"},
		{kept, "--allow-alone", exitSyncing, "gave up: no other node gives a copy"},
		{with(func(s *control.Status) { s.Instance.SyncEnabled = false }), "", exitNoInstance, "session synchronization is off"},
		{lags, "", exitOK, "synced"},
		{lags, "--max-lag 3s", exitOK, "synced"},
		{lags, "--max-lag 2s", exitLag, "missing for 2.5s"},
		{unlike, "", exitOK, "configured differently: J: timeouts: udp 1m0s"},
		{unlike, "--strict", exitUnlike, "configured differently: J: timeouts: udp 1m0s"},
	} {
		path := daemonAt(t, func(_ context.Context, _ control.Request, reply func(control.Reply) error) error {
			return reply(control.Reply{Status: c.status})
		})
		status, stdout, stderr := joold(t, append([]string{"check", "--socket", path}, strings.Fields(c.args)...)...)
		if status != c.want || !strings.Contains(stdout, c.said) || strings.Count(stdout, "\n") != 1 || stderr != "" {
			t.Errorf("%q: status %d, want %d; said %q and %q, want %q", c.args, status, c.want, stdout, stderr, c.said)
		}
	}
}

func TestACheckOfADaemonThatIsNotThereOrStuckSaysSoInTime(t *testing.T) {
	status, stdout, _ := joold(t, "check", "--socket", filepath.Join(t.TempDir(), "none"))
	if status != exitNoDaemon || !strings.Contains(stdout, "no daemon") {
		t.Errorf("none: status %d, %q", status, stdout)
	}
	path := daemonAt(t, func(ctx context.Context, _ control.Request, _ func(control.Reply) error) error {
		<-ctx.Done()
		return ctx.Err()
	})
	began := time.Now()
	status, stdout, _ = joold(t, "check", "--socket", path, "--timeout", "50ms")
	if status != exitNoDaemon || !strings.Contains(stdout, "no answer") {
		t.Errorf("stuck: status %d, %q, after %v", status, stdout, time.Since(began))
	}
	if status, _, _ := joold(t, "check", "--timeout", "0s"); status != exitUsage {
		t.Errorf("no time: status %d", status)
	}
}
