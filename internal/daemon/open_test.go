package daemon

import (
	"context"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"joold/internal/config"
	"joold/internal/nstest"
)

func TestPeersAreSentToInsteadOfAGroupOrBesideIt(t *testing.T) {
	j, k := nstest.New(t), nstest.New(t)
	nstest.Veth(j, "eth2", k, "eth2")
	j.Address("eth2", "192.0.2.4/24")
	for line, group := range map[string]string{
		"--net.peer 192.0.2.5 --net.dev.in eth2 --net.dev.out eth2 -p 7000":              "",
		"--net.peer 192.0.2.5 --net.dev.in eth2 --net.dev.out eth2 -p 7000 239.64.64.64": "239.64.64.64:7000",
	} {
		cfg, err := config.Parse(strings.Fields(line))
		if err != nil {
			t.Fatal(err)
		}
		d := newDaemon(cfg, Options{Log: slog.New(slog.DiscardHandler)})
		var open network
		j.Do(func() { open, err = d.openGroup(context.Background()) })
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		local := open.Local()
		if len(local.Peers) != 1 || local.Peers[0] != netip.MustParseAddrPort("192.0.2.5:7000") || shownGroup(local.Group) != group || local.Port != 7000 {
			t.Errorf("%s: %+v", line, local)
		}
		open.Close()
	}
}

func TestStatusShowsBothLinks(t *testing.T) {
	j, k := nstest.New(t), nstest.New(t)
	nstest.Veth(j, "eth2", k, "eth2")
	j.Address("eth2", "192.0.2.4/24")
	cfg, err := config.Parse(strings.Fields("239.64.64.64 --net.dev.in eth2,eth3 --net.dev.out eth2,eth3"))
	if err != nil {
		t.Fatal(err)
	}
	d := newDaemon(cfg, Options{Log: slog.New(slog.DiscardHandler)})
	j.Do(func() {
		open, err := d.openGroup(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		defer open.Close()
		d.current.Store(&open)
		if err := open.Write([]byte("x")); err != nil {
			t.Error(err)
		}
		n := d.status(time.Now()).Network
		if n.Group != "239.64.64.64:6400" || n.Source != "192.0.2.4" || len(n.Links) != 2 {
			t.Fatalf("%+v", n)
		}
		if l := n.Links[0]; l.In != "eth2" || l.Out != "eth2" || l.WaitingFor != "" || !l.Carrier || l.Source != "192.0.2.4" || l.Failed != 0 {
			t.Errorf("%+v", l)
		}
		if l := n.Links[1]; l.In != "eth3" || !strings.Contains(l.WaitingFor, "eth3") || l.Carrier || l.Source != "" || l.Failed != 1 {
			t.Errorf("%+v", l)
		}
	})
}
