package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"joold/internal/control"
	"joold/internal/session"
)

// daemonAt serves h on a socket until the test ends, and returns its path.
func daemonAt(t *testing.T, h control.Handler) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "edge.sock")
	s, err := control.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Serve(ctx, h)
	}()
	t.Cleanup(func() { cancel(); <-done })
	return path
}

func TestAdvertiseTellsHowItWent(t *testing.T) {
	path := daemonAt(t, func(_ context.Context, r control.Request, reply func(control.Reply) error) error {
		if r.Op != control.OpAdvertise || r.Rate != 500 {
			t.Errorf("asked %+v", r)
		}
		if err := reply(control.Reply{Progress: &control.Progress{Read: 10}}); err != nil {
			return err
		}
		return reply(control.Reply{Done: &control.Progress{Total: 20_000, Sent: 20_000, Datagrams: 556, Seconds: 2.04}})
	})
	status, stdout, stderr := joold(t, "advertise", "--socket", path, "--rate", "500")
	if want := "advertised 20000 sessions in 556 datagrams, 2.0 s\n"; status != exitOK || stdout != want || stderr != "" {
		t.Errorf("status %d, %q, %q", status, stdout, stderr)
	}
}

func TestAdvertiseFailsWithTheDaemonsWords(t *testing.T) {
	path := daemonAt(t, func(context.Context, control.Request, func(control.Reply) error) error {
		return os.ErrDeadlineExceeded
	})
	status, stdout, stderr := joold(t, "advertise", "--socket", path)
	if status != exitFailed || stdout != "" || stderr != "joold: i/o timeout\n" {
		t.Errorf("status %d, %q, %q", status, stdout, stderr)
	}
}

func TestATerminalSeesRateAndTimeLeft(t *testing.T) {
	var b bytes.Buffer
	p := progress{w: &b, terminal: true}
	p.update(control.Progress{Read: 75})
	p.update(control.Progress{Read: 20_000, Total: 20_000, Sent: 5_000, Seconds: 2})
	p.end(control.Progress{Total: 20_000, Datagrams: 556, Seconds: 8})
	want := "\r\x1b[Kreading the kernel's table: 75 sessions" +
		"\r\x1b[K[######..................] 5000 of 20000 sessions, 2500/s, 6s left" +
		"\r\x1b[Kadvertised 20000 sessions in 556 datagrams, 8.0 s\n"
	if b.String() != want {
		t.Errorf("got %q", b.String())
	}
}

func sampleStatus() *control.Status {
	verified := 0.4
	return &control.Status{
		Version: "1.0", PID: 7, Uptime: 90,
		Instance: control.Instance{Name: "edge", InService: true, Module: "4.1.15", Encoding: "4.1.13", Pool6: "64:ff9b::/96", SyncEnabled: true},
		Network:  control.Network{Cluster: "blue", Keys: 2, Unsigned: []string{"192.0.2.7/32", "2001:db8::/64"}, Group: "[ff08::1]:6400", In: "eth2", Out: "eth2", Source: "fe80::4", MTU: 1500, Wire: "4.1.13", ReadBuffer: 8 << 20, WriteBuffer: 4 << 20},
		Table:    control.Table{Sessions: 38, Pending: 2, HeldBack: 900},
		Kernel: control.Kernel{Messages: 3, Sessions: 40, Bytes: 1600, Conflicts: 4, LastConflicts: []control.Conflict{
			{
				Proto: "TCP", Session: "[2001:db8::8]:37878", Mask: "192.0.2.1:62805", BIB: "[2001:db8::9]:4000", BIBMask: "192.0.2.1:62805",
				From: "fe80::5%eth2", Because: "the BIB entry is the newer", Times: 3, Ago: 1.23,
			},
			{
				Proto: "UDP", Session: "[2001:db8::8]:5000", Mask: "192.0.2.1:62806", BIB: "[2001:db8::8]:5000", BIBMask: "192.0.2.1:62807",
				Because: "too many wait", Times: 1, Ago: 60,
			},
		}},
		Net: control.Net{
			SentSessions: 40, SentDatagrams: 2, SentBytes: 1600,
			SendErrors: map[string]uint64{"EPERM": 2}, ApartDatagrams: 90, ApartSessions: 38, ApartBytes: 60_000, Refused: map[string]uint64{"pool4": 5, "timer": 0},
			Stamps: map[string]uint64{"proven": 4, "other cluster": 3, "unstamped": 9, "trailing": 2}, Unheard: map[string]uint64{"other cluster": 3, "unstamped": 1},
		},
		Cluster: &control.Cluster{
			Node: "K", State: "synced", Why: "it has all that J has", Since: 61, Sessions: 38, Verified: &verified, Nodes: []control.Node{
				{Name: "J", Address: "[fe80::5%eth2]:6400", Version: "1.1", Live: true, Fresh: true, State: "synced", Active: true, Module: "4.1.13", Sessions: 40, Missing: 1, Repaired: 7, Lag: 0.3, Unlike: []string{"timeouts: only here: udp 5m0s; only there: udp 1m0s"}},
				{Name: "M", Address: "192.0.2.9:6400", Version: "1.1", Fresh: true, State: "synced", Module: "4.1.15", Ago: 17},
			},
		},
		Peers: []control.Peer{
			{Address: "fe80::5%eth2", Encoding: "4.1.11", ByteOrder: "same", Ago: 1.23, Datagrams: 4, Sessions: 30, Refused: 5, Stamp: "proven", Stamped: true},
			{Address: "fe80::6%eth2", Encoding: "4.1.13", ByteOrder: "other", Ago: 4, Stamp: "unstamped"},
		},
	}
}

func TestStatusIsReadableAtAGlance(t *testing.T) {
	path := daemonAt(t, func(_ context.Context, _ control.Request, reply func(control.Reply) error) error {
		return reply(control.Reply{Status: sampleStatus()})
	})
	status, stdout, stderr := joold(t, "status", "--socket", path)
	want := `joold      1.0, pid 7, up 1m30s
instance   edge: in service, Jool 4.1.15 (encoding 4.1.13), pool6 64:ff9b::/96
group      [ff08::1]:6400, in eth2, out eth2
           cluster blue
           signs with the first of 2 keys
           warning: whoever sends from 192.0.2.7/32, 2001:db8::/64 need not sign: end that once all nodes do
           from fe80::4, MTU 1500, sending encoding 4.1.13
           socket buffers 8192 KiB in, 4096 KiB out
cluster    synced for 1m1s: it has all that J has; known to lack nothing 400ms ago
           NODE  ADDRESS       VERSION   MODULE  STATE           SESSIONS  LAG        LOST
           K     fe80::4       1.0       4.1.15  synced          38        this node
           J     fe80::5%eth2  1.1       4.1.13  synced, active  40        300ms      1, 7 repaired
           M     192.0.2.9     1.1       4.1.15  silent for 17s  0         0s         0
           -     fe80::6%eth2  C daemon  -       heard 4s ago    -         -          -
           warning: J is configured differently: timeouts: only here: udp 5m0s; only there: udp 1m0s
table      38 sessions remembered, 2 wait to be sent; 900 announcements held back
kernel     announced 40 sessions in 3 messages, 1600 bytes
           took in 0 sessions in 0 messages; 0 wait
network    sent 40 sessions in 2 datagrams, 1600 bytes
           heard 0 sessions in 0 datagrams, 0 bytes
           to other nodes of joold: 38 sessions in copies and repairs, 90 datagrams, 60000 bytes
errors     datagrams not heard (other cluster) 3, datagrams not heard (unstamped) 1, datagrams that end in garbage 2, sessions that contradict the BIB 4, send errors (EPERM) 2, refused entries (pool4) 5
conflicts  TCP: a peer has [2001:db8::8]:37878 behind 192.0.2.1:62805, this node [2001:db8::9]:4000 behind 192.0.2.1:62805: the BIB entry is the newer; 3 times, from fe80::5%eth2, last 1.2s ago
           UDP: a peer has [2001:db8::8]:5000 behind 192.0.2.1:62806, this node [2001:db8::8]:5000 behind 192.0.2.1:62807: too many wait; 1 times, from a peer no longer remembered, last 1m0s ago
peers      fe80::5%eth2, encoding 4.1.11, heard 1.2s ago: 30 sessions in 4 datagrams, 5 entries refused
           fe80::6%eth2, encoding 4.1.13, of the other byte order, heard 4s ago: 0 sessions in 0 datagrams, 0 entries refused
           a C daemon that only listens cannot be seen
`
	if status != exitOK || stdout != want || stderr != "" {
		t.Errorf("status %d, stderr %q, stdout:\n%s", status, stderr, stdout)
	}
}

func TestStatusNamesWhatIsWaitedForAndWhatIsOff(t *testing.T) {
	s := sampleStatus()
	s.Instance = control.Instance{Name: "edge", WaitingFor: "no such instance"}
	s.Network = control.Network{Group: "ff08::1", WaitingFor: "no such interface"}
	s.Peers, s.Net.SendErrors, s.Net.Refused, s.Net.Stamps, s.Net.Unheard, s.Kernel.Conflicts = nil, nil, nil, nil, nil, 0
	var b strings.Builder
	writeStatus(&b, s)
	for _, want := range []string{"edge: out of service: no such instance\n", "away: no such interface\n", "errors     none\n", "peers      none heard\n"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in:\n%s", want, &b)
		}
	}
	b.Reset()
	s = sampleStatus()
	s.Instance.SyncEnabled, s.Instance.AnyMask = false, true
	s.Network.Keys, s.Network.Encrypts = 1, true
	writeStatus(&b, s)
	for _, want := range []string{"jool -i edge global update ss-enabled true", "pool4 is empty", "signs and encrypts with the key\n"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in:\n%s", want, &b)
		}
	}
}

func TestStatusInJSONIsTheDaemonsOwn(t *testing.T) {
	path := daemonAt(t, func(_ context.Context, _ control.Request, reply func(control.Reply) error) error {
		return reply(control.Reply{Status: sampleStatus()})
	})
	status, stdout, _ := joold(t, "status", "--socket", path, "--json")
	var got control.Status
	if err := json.Unmarshal([]byte(stdout), &got); status != exitOK || err != nil || got.Peers[1].Address != "fe80::6%eth2" {
		t.Errorf("status %d, %v, %s", status, err, stdout)
	}
}

func TestFollowShowsTheColumnsOfTheCCommand(t *testing.T) {
	p, err := session.NewPool6(netip.MustParsePrefix("64:ff9b::/96"))
	if err != nil {
		t.Fatal(err)
	}
	s := session.Session{
		Src6: netip.MustParseAddr("2001:db8::8").As16(), Src6Port: 37878,
		Src4: [4]byte{192, 0, 2, 1}, Src4Port: 62805, Dst4: [4]byte{192, 0, 2, 8}, Dst4Port: 1234,
		Proto: session.TCP, State: session.V4FinRcv, Expiration: 7_198_232,
	}
	// The lines are those of Jool's manual of `jool session follow`.
	if got, want := string(appendCSV(nil, &s, p)), "TCP,2001:db8::8,37878,192.0.2.1,62805,192.0.2.8,1234,1:59:58.232"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got, want := clock(240_000), "0:04:00"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	want := `{"proto":"TCP","state":"V4_FIN_RCV","src6":"[2001:db8::8]:37878","dst6":"[64:ff9b::c000:208]:1234",` +
		`"src4":"192.0.2.1:62805","dst4":"192.0.2.8:1234","expires_in_ms":7198232}`
	if got := string(appendJSON(nil, &s, p)); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	s.Proto, s.State, s.Dst4Port = session.ICMP, session.Established, s.Src4Port
	if got := string(appendJSON(nil, &s, p)); !strings.Contains(got, `"dst6":"[64:ff9b::c000:208]:37878"`) || strings.Contains(got, "state") {
		t.Errorf("ICMP: %s", got)
	}
}

func TestTheControlSocketIsNamedAfterTheInstance(t *testing.T) {
	status, _, stderr := joold(t, "status", "-i", "nobody-serves")
	if status != exitNoDaemon || !strings.Contains(stderr, "nobody-serves") || !strings.Contains(stderr, control.Dir) {
		t.Errorf("status %d, %q", status, stderr)
	}
}

func TestStatusNamesTheNodesThatAreSentTo(t *testing.T) {
	s := sampleStatus()
	s.Network.Group, s.Network.Unicast = "", []string{"192.0.2.5:6400", "[2001:db8::5]:6400"}
	var b strings.Builder
	writeStatus(&b, s)
	const want = "group      none, in eth2, out eth2\n           sends to each of 192.0.2.5:6400, [2001:db8::5]:6400\n"
	if !strings.Contains(b.String(), want) {
		t.Errorf("got\n%s\nwant in it\n%s", b.String(), want)
	}
}

func TestStatusNamesEachOfSeveralLinks(t *testing.T) {
	s := sampleStatus()
	s.Network.Links = []control.Link{
		{In: "eth2", Out: "eth2", Carrier: true, Source: "192.0.2.4"},
		{In: "eth3", Out: "eth3", WaitingFor: "the interface is down", Failed: 7},
		{In: "eth4", Out: "eth4", Source: "fe80::4"},
	}
	var b strings.Builder
	writeStatus(&b, s)
	for _, want := range []string{
		"           link in eth2, out eth2, from 192.0.2.4: in use; 0 datagrams could not be sent on it\n",
		"           link in eth3, out eth3, from no address: away: the interface is down; 7 datagrams could not be sent on it\n",
		"           link in eth4, out eth4, from fe80::4: no carrier; 0 datagrams could not be sent on it\n",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("got\n%s\nwant in it\n%s", b.String(), want)
		}
	}
}

func TestStatusTellsAKeyThatIsMissingHereFromACDaemon(t *testing.T) {
	for stamp, want := range map[string]struct{ runs, advice string }{
		"unstamped":     {"C daemon", ""},
		"unsigned":      {"joold, no key", ""},
		"other key":     {"joold, other key", "warning: fe80::7 signs with a key that this node has not: give this node that key too, with --net.key-file\n"},
		"other version": {"joold, other stamp", "warning: fe80::7 has a joold that this one does not understand: update the older\n"},
		"trailing":      {"unknown", ""},
	} {
		s := sampleStatus()
		s.Cluster.Nodes, s.Peers = nil, []control.Peer{{Address: "fe80::7", Stamp: stamp}}
		var b strings.Builder
		writeCluster(&b, s)
		if !strings.Contains(b.String(), "fe80::7  "+want.runs+"  ") || !strings.HasSuffix(b.String(), want.advice) ||
			strings.Contains(b.String(), "warning") != (want.advice != "") {
			t.Errorf("%s:\n%s", stamp, &b)
		}
	}
}

func TestWhatIsCountedWhileStatusLooksDoesNotMakeHugeNumbers(t *testing.T) {
	s := sampleStatus()
	s.Net.Stamps, s.Net.Unheard = map[string]uint64{"other key": 6, "trailing": 3}, map[string]uint64{"other key": 7, "trailing": 1}
	var b strings.Builder
	writeStatus(&b, s)
	if strings.Contains(b.String(), "datagrams signed") || !strings.Contains(b.String(), "datagrams that end in garbage 2,") {
		t.Errorf("got:\n%s", &b)
	}
}
