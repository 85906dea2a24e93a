//go:build lab

package guest

import (
	"fmt"
	"testing"
)

// The C daemons on both nodes: if these fail, it is the lab that is at fault.

func TestCBaselineAPingsSessionIsMirrored(t *testing.T) {
	for _, group := range []string{SyncGroup6, SyncGroup4} {
		t.Run(group, func(t *testing.T) {
			l := New(t, Config{})
			l.J.StartDaemon(C, group)
			l.K.StartDaemon(C, group)
			l.WaitReplies(l.Ping(), 5)
			l.Wait("the ping's session is in K as in J", func() (string, bool) {
				j, k := l.J.Sessions(), l.K.Sessions()
				for id := range j {
					if _, ok := k[id]; !ok {
						return fmt.Sprintf("J: %v K: %v", j, k), false
					}
				}
				return "", len(j) > 0
			})
		})
	}
}

func TestCBaselineNewFlowsAreMirrored(t *testing.T) {
	l := New(t, Config{})
	l.J.StartDaemon(CFiles, SyncGroup6)
	l.K.StartDaemon(CFiles, SyncGroup6)
	const flows = 5000 // more than there are ports: some share a source port
	l.Flows(flows, 1000)
	if j := l.J.Sessions(); len(j) != flows {
		t.Errorf("J has %d sessions of %d flows", len(j), flows)
	}
	// Up to 4.1.10 some are always lost, by design; on a busy machine, most.
	l.Wait("K has many of them", func() (string, bool) {
		k := len(l.K.Sessions())
		return fmt.Sprint(k), k > flows/10
	})
}

func TestCBaselineALoadedTableIsSeenWhole(t *testing.T) {
	l := New(t, Config{})
	table := l.IdleTable(20000, tcpEstablished/10)
	l.J.Load(table)
	got := l.J.Sessions()
	if missing := Missing(table, got); missing > 0 || len(got) != len(table) {
		t.Errorf("loaded %d sessions, J has %d, of which %d are missing", len(table), len(got), missing)
	}
	for _, want := range table {
		if s := got[want.ID]; s.State != want.State || s.Expires > want.Expires || s.Expires < want.Expires-limit {
			t.Fatalf("loaded %v, J has %v", want, s)
		}
	}
}
