package daemon

import (
	"context"
	"log/slog"
	"net/netip"
	"strings"
	"testing"

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
