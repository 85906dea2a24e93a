package config

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func peerList(list ...string) (peers []netip.AddrPort) {
	for _, s := range list {
		peers = append(peers, netip.MustParseAddrPort(s))
	}
	return peers
}

func TestPeersAreTakenInsteadOfAGroupOrBesideIt(t *testing.T) {
	path := write(t, "joold.json", `{"net.peer": ["192.0.2.5", "[2001:db8::5]:7000"], "net.mcast.port": 7001}`)
	for line, want := range map[string]Config{
		"--net.peer 192.0.2.5":                                     {Port: 6400, Peers: peerList("192.0.2.5:6400")},
		"--net.peer ::ffff:192.0.2.5":                              {Port: 6400, Peers: peerList("192.0.2.5:6400")},
		"ff08::1 --net.peer 2001:db8::5":                           {Group: "ff08::1", Port: 6400, Peers: peerList("[2001:db8::5]:6400")},
		"--net.peer 2001:db8::5 --net.peer [fe80::5%eth2]:7 -p 99": {Port: 99, Peers: peerList("[2001:db8::5]:99", "[fe80::5%eth2]:7")},
		"--net.peer 192.0.2.5,192.0.2.6:6401":                      {Port: 6400, Peers: peerList("192.0.2.5:6400", "192.0.2.6:6401")},
		"--config " + path:                                         {Port: 7001, Peers: peerList("192.0.2.5:7001", "[2001:db8::5]:7000")},
		"--config " + path + " --net.peer ::1 -p 9":                {Port: 9, Peers: peerList("[::1]:9")},
		"--config " + path + " ff08::1 --net.peer none":            {Group: "ff08::1", Port: 7001},
		"--config " + path + " --net.peer none":                    {},
		"ff08::1 --net.peer none":                                  {Group: "ff08::1", Port: 6400},
	} {
		c, err := Parse(strings.Fields(line))
		if want.Port == 0 {
			if err == nil {
				t.Errorf("%q is taken", line)
			}
			continue
		}
		if err != nil {
			t.Errorf("%q: %v", line, err)
		} else if c.Group != want.Group || c.Port != want.Port || !slices.Equal(c.Peers, want.Peers) {
			t.Errorf("%q: group %q, port %d, peers %v", line, c.Group, c.Port, c.Peers)
		}
	}
}

func TestOddPeersAreRefused(t *testing.T) {
	const want = "want addresses of nodes, as in 2001:db8:ff08::5, 192.0.2.5:6464 or [fe80::5%eth2]:6464, or none"
	many := strings.Repeat("192.0.2.5,", maxPeers) + "192.0.2.5"
	for peers, says := range map[string]string{
		"":                         `--net.peer "": ` + want,
		"ff02::1":                  want,
		"[ff02::1]:6400":           want,
		"::":                       want,
		"0.0.0.0:6400":             want,
		"192.0.2.5:0":              want,
		"192.0.2.5:65536":          want,
		"192.0.2":                  want,
		"sync.example":             want,
		"192.0.2.5,":               `"": ` + want,
		"192.0.2.5,none":           `"none": ` + want,
		"192.0.2.5,192.0.2.5:6400": "--net.peer: 192.0.2.5:6400 is named twice",
		many:                       "65 are too many: want at most 64",
	} {
		if _, err := Parse([]string{"ff08::1", "--net.peer", peers}); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v, want %q", peers, err, says)
		}
	}
}
