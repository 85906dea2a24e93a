package nlchan_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"joold/internal/nlchan"
	"joold/internal/nlchan/nlchantest"
	"joold/internal/session"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// limit ends a test in which something never happens.
const limit = 30 * time.Second

const pool6 = "64:ff9b::/96"

// modules are one of each kind: the header without magic, the three encodings,
// and 4.2's numbers.
var modules = []string{"4.1.4", "4.1.9", "4.1.11", "4.1.12", "4.1.13", "4.1.15", "4.1.255.5"}

func forEachModule(t *testing.T, f func(t *testing.T, version string)) {
	for _, version := range modules {
		t.Run(version, func(t *testing.T) { f(t, version) })
	}
}

// dial makes a kernel with the instance "edge" and connects to it.
func dial(tb testing.TB, version string, opts ...nlchan.Option) (*nlchantest.Kernel, *nlchantest.Instance, *nlchan.Conn) {
	tb.Helper()
	k := nlchantest.New(tb, version)
	i := k.AddInstance("edge", pool6)
	c, err := nlchan.Dial("edge", append(opts, nlchan.On(k))...)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { c.Close() })
	if err := c.SetReadDeadline(time.Now().Add(limit)); err != nil {
		tb.Fatal(err)
	}
	return k, i, c
}

func newPool6(tb testing.TB, s string) session.Pool6 {
	tb.Helper()
	p, err := session.NewPool6(netip.MustParsePrefix(s))
	if err != nil {
		tb.Fatal(err)
	}
	return p
}

// sessionsOf makes n sessions of a protocol, all different, in the order of a
// dump.
func sessionsOf(proto session.Proto, n int) []session.Session {
	ss := make([]session.Session, n)
	for i := range ss {
		s := session.Session{
			Src6:     netip.MustParseAddr("2001:db8::8").As16(),
			Src4:     [4]byte{192, 0, 2, byte(i / 10000)},
			Dst4:     [4]byte{203, 0, 113, 8},
			Src6Port: uint16(i), Src4Port: uint16(i % 10000), Dst4Port: 443,
			Proto: proto, Expiration: uint32(60_000 - i),
		}
		if proto == session.ICMP {
			s.Dst4Port = s.Src4Port
		}
		ss[i] = s
	}
	return ss
}

func receive(t *testing.T, c *nlchan.Conn, p session.Pool6) []session.Session {
	t.Helper()
	m, err := c.Receive(make([]byte, nlchan.MessageSize))
	if err != nil {
		t.Fatal(err)
	}
	ss, r := session.Decode(nil, m.Entries, p)
	if r.BadTotal() != 0 || r.End != len(m.Entries) {
		t.Fatalf("entries could not be read: %+v", r)
	}
	return ss
}

func TestVersionsAreReadWrittenAndOrdered(t *testing.T) {
	for text, want := range map[string]nlchan.Version{
		"4.1.15.0":  {Major: 4, Minor: 1, Revision: 15},
		"4.1.9":     {Major: 4, Minor: 1, Revision: 9},
		"4.1.255.5": {Major: 4, Minor: 1, Revision: 255, Dev: 5},
	} {
		v, err := nlchan.ParseVersion(text)
		if err != nil || v != want {
			t.Errorf("%s: got %+v, %v", text, v, err)
		}
		if got := v.String(); got != strings.TrimSuffix(text, ".0") {
			t.Errorf("%s is written %s", text, got)
		}
	}
	for _, text := range []string{"", "4", "4.1", "4.1.15.0.0", "4.1.256", "4.1.-1", "4.1.x", "4.1.15\n", "4..1", " 4.1.9"} {
		if v, err := nlchan.ParseVersion(text); err == nil {
			t.Errorf("%q was read as %s", text, v)
		}
	}
	if v := (nlchan.Version{Major: 4, Minor: 1, Revision: 9}); !v.Less(4, 1, 10) || v.Less(4, 1, 9) || v.Less(4, 0, 99) {
		t.Error("4.1.9 is not in its place")
	}
}

func TestEachModuleHasItsEncoding(t *testing.T) {
	for text, want := range map[string]session.Encoding{
		"4.1.4": session.Enc4111, "4.1.11": session.Enc4111, "4.1.12": session.Enc4112, "4.1.13": session.Enc4113,
		"4.1.15": session.Enc4113, "4.1.255.2": session.Enc4111, "4.1.255.3": session.Enc4111, "4.1.255.5": session.Enc4113,
		"4.2.0": session.Enc4113,
	} {
		if v, err := nlchan.ParseVersion(text); err != nil || v.Encoding() != want {
			t.Errorf("%s: got %s, %v, want %s", text, v.Encoding(), err, want)
		}
	}
}

func TestDialTellsWhatIsLoaded(t *testing.T) {
	forEachModule(t, func(t *testing.T, version string) {
		k, _, c := dial(t, version, nlchan.ReadBuffer(1<<20))
		v, _ := nlchan.ParseVersion(version)
		m := c.Module()
		if m.Version != v || m.Encoding != v.Encoding() || m.Family == 0 || m.Group == 0 || m.ReadBuffer != 2<<20 {
			t.Errorf("got %+v", m)
		}
		if n := k.Listeners(); n != 1 {
			t.Errorf("%d sockets hear the channel, want 1", n)
		}
		if err := c.Hello(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// siitOnly has Jool's family and common part, but not the NAT64 module.
type siitOnly struct{ *nlchantest.Kernel }

func (k siitOnly) Module(name string) (string, error) {
	if name == "jool" {
		return "", fs.ErrNotExist
	}
	return k.Kernel.Module(name)
}

func TestDialSaysWhatIsMissingAndWhatToDo(t *testing.T) {
	unloaded := nlchantest.New(t, "4.1.15")
	unloaded.Unload()
	denied := nlchantest.New(t, "4.1.15")
	denied.AddInstance("edge", pool6)
	denied.DenyAdmin(false)
	contained := nlchantest.New(t, "4.1.15")
	contained.AddInstance("edge", pool6)
	contained.DenyAdmin(true)
	empty := nlchantest.New(t, "4.1.15")
	siit := siitOnly{nlchantest.New(t, "4.1.15")}

	for _, test := range []struct {
		name string
		host nlchan.Host
		want error
		text string
	}{
		{"no module", unloaded, nlchan.ErrNoModule, "modprobe jool"},
		{"SIIT alone", siit, nlchan.ErrNoModule, "modprobe jool"},
		{"no instance", empty, nlchan.ErrNoInstance, "'edge' in this network namespace: create it with `jool instance add edge "},
		{"no privilege", denied, nlchan.ErrPermission, "run as root"},
		{"a user namespace", contained, nlchan.ErrPermission, "is in a user namespace, where Jool refuses everybody"},
	} {
		c, err := nlchan.Dial("edge", nlchan.On(test.host))
		if !errors.Is(err, test.want) {
			t.Errorf("%s: got %v", test.name, err)
			continue
		}
		if c != nil {
			t.Errorf("%s: there is a connection", test.name)
		}
		if text := err.Error(); !strings.Contains(text, test.text) || strings.Contains(text, "\n") {
			t.Errorf("%s: %q does not say %q in one line", test.name, text, test.text)
		}
		var e *nlchan.Error
		if !errors.As(err, &e) || e.Instance != "edge" || e.Op == "" {
			t.Errorf("%s: %#v does not tell what was tried on what", test.name, err)
		}
	}
	if _, err := nlchan.ModuleVersion(nlchan.On(unloaded)); !errors.Is(err, nlchan.ErrNoModule) {
		t.Errorf("the version without a module: %v", err)
	}
	if v, err := nlchan.ModuleVersion(nlchan.On(empty)); err != nil || v.String() != "4.1.15" {
		t.Errorf("the version: %s, %v", v, err)
	}
}

func TestDialRefusesNamesThatNoInstanceCanHave(t *testing.T) {
	k := nlchantest.New(t, "4.1.15")
	k.AddInstance("fifteen bytes !", pool6)
	for _, name := range []string{"", "sixteen bytes it", "new\nline", "caf\u00e9"} {
		if _, err := nlchan.Dial(name, nlchan.On(k)); err == nil || errors.Is(err, nlchan.ErrNoInstance) {
			t.Errorf("%q: got %v", name, err)
		}
	}
	c, err := nlchan.Dial("fifteen bytes !", nlchan.On(k))
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

func TestSessionsAnnouncedAreReceivedAndAcknowledged(t *testing.T) {
	forEachModule(t, func(t *testing.T, version string) {
		_, i, c := dial(t, version)
		want := sessionsOf(session.UDP, 36)
		i.Announce(want...)
		if got := receive(t, c, newPool6(t, pool6)); !slices.Equal(got, want) {
			t.Errorf("got %+v", got)
		}
		if i.ACKs() != 1 {
			t.Errorf("%d ACKs, want 1", i.ACKs())
		}
		if err := c.Ack(); err != nil || i.ACKs() != 2 {
			t.Errorf("after an ACK of its own: %v, %d ACKs, want 2", err, i.ACKs())
		}
	})
}

func TestOtherInstancesMessagesAreNeitherTakenNorAcknowledged(t *testing.T) {
	forEachModule(t, func(t *testing.T, version string) {
		k, edge, c := dial(t, version)
		var others []*nlchantest.Instance
		for _, name := range []string{"edge2", "edg", "Edge", "default"} {
			other := k.AddInstance(name, pool6)
			other.Announce(sessionsOf(session.TCP, 3)...)
			others = append(others, other)
		}
		edge.Announce(sessionsOf(session.TCP, 1)...)
		if got := receive(t, c, newPool6(t, pool6)); len(got) != 1 {
			t.Errorf("got %d sessions, want the one of this instance", len(got))
		}
		for n, other := range others {
			if other.ACKs() != 0 {
				t.Errorf("other instance %d was acknowledged", n)
			}
		}
		if got := c.Counters(); got != (nlchan.Counters{Foreign: 4, ACKs: 1}) {
			t.Errorf("counted %+v", got)
		}
	})
}

func TestMalformedMessagesAreCountedAndOnlyOursAcknowledged(t *testing.T) {
	k, i, c := dial(t, "4.1.15")
	i.AnnounceRaw(nil)                                         // no entries
	i.AnnounceRaw([]byte{8, 0, 1, 0, 0, 0, 0, 0})              // another attribute
	i.AnnounceRaw([]byte{200, 0, 7, 128, 0, 0, 0, 0})          // one that is cut off
	i.AnnounceRaw(make([]byte, 2*nlchan.MessageSize))          // larger than the buffer
	k.Inject([]byte("short"))                                  // no header at all
	k.Inject(append([]byte{60, 0, 0, 0}, make([]byte, 56)...)) // of another family
	i.Announce(sessionsOf(session.ICMP, 1)...)
	if got := receive(t, c, newPool6(t, pool6)); len(got) != 1 {
		t.Errorf("got %d sessions, want 1", len(got))
	}
	if got := c.Counters(); got != (nlchan.Counters{Malformed: 6, ACKs: 5}) {
		t.Errorf("counted %+v", got)
	}
	if i.ACKs() != 5 {
		t.Errorf("%d ACKs, want 5", i.ACKs())
	}
}

// replay is a kernel that says its last message again and again, at no cost.
type replay struct {
	*nlchantest.Kernel
	on bool
}

type replaySocket struct {
	nlchan.Socket
	host *replay
	last []byte
}

func (r *replay) Socket() (nlchan.Socket, error) {
	s, err := r.Kernel.Socket()
	return &replaySocket{Socket: s, host: r}, err
}

func (s *replaySocket) Send(b []byte) error {
	if s.host.on {
		return nil
	}
	return s.Socket.Send(b)
}

func (s *replaySocket) Receive(b []byte) (int, error) {
	if s.host.on {
		return copy(b, s.last), nil
	}
	n, err := s.Socket.Receive(b)
	s.last = slices.Clone(b[:n])
	return n, err
}

func TestHearingAndAddingAllocateNothing(t *testing.T) {
	forEachModule(t, func(t *testing.T, version string) {
		r := &replay{Kernel: nlchantest.New(t, version)}
		edge := r.AddInstance("edge", pool6)
		c, err := nlchan.Dial("edge", nlchan.On(r))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		sessions, p := sessionsOf(session.TCP, 500), newPool6(t, pool6)
		if err := c.Add(sessions, p); err != nil { // takes the buffer, once
			t.Fatal(err)
		}
		edge.Announce(sessions[:10]...)
		buf := make([]byte, nlchan.MessageSize)
		if _, err := c.Receive(buf); err != nil {
			t.Fatal(err)
		}
		r.on = true
		allocs := testing.AllocsPerRun(100, func() {
			if m, err := c.Receive(buf); err != nil || len(m.Entries) == 0 {
				t.Fatal(err)
			}
			if err := c.Add(sessions, p); err != nil {
				t.Fatal(err)
			}
		})
		if allocs != 0 {
			t.Errorf("%v allocations each time", allocs)
		}
	})
}

func TestAnOverrunIsReportedAndReceivingGoesOn(t *testing.T) {
	k, i, c := dial(t, "4.1.15")
	k.Overrun()
	i.Announce(sessionsOf(session.TCP, 2)...)
	if _, err := c.Receive(make([]byte, nlchan.MessageSize)); !errors.Is(err, nlchan.ErrOverrun) {
		t.Fatalf("got %v", err)
	}
	if got := receive(t, c, newPool6(t, pool6)); len(got) != 2 {
		t.Errorf("got %d sessions, want 2", len(got))
	}
	if got := c.Counters(); got.Drops != 1 {
		t.Errorf("counted %+v", got)
	}
}

// So a daemon that was stopped for a while has lost messages, and nothing else.
func TestAReceiverThatIsAwayTooLongLosesWhatDidNotFit(t *testing.T) {
	_, i, c := dial(t, "4.1.15", nlchan.ReadBuffer(16<<10))
	p := newPool6(t, pool6)
	all := sessionsOf(session.TCP, 100)
	for _, s := range all {
		i.Announce(s)
	}
	if _, err := c.Receive(make([]byte, nlchan.MessageSize)); !errors.Is(err, nlchan.ErrOverrun) {
		t.Fatalf("got %v", err)
	}
	drops := int(c.Counters().Drops)
	if drops == 0 || drops == len(all) {
		t.Fatalf("%d of %d messages were lost", drops, len(all))
	}
	i.Announce(all[99]) // lost, and nobody says so: what came before has not been received
	for n := range len(all) - drops {
		if got := receive(t, c, p); !slices.Equal(got, all[n:n+1]) {
			t.Errorf("message %d: got %+v", n, got)
		}
	}
	if got := int(c.Counters().Drops); got != drops+1 {
		t.Errorf("%d drops, want %d", got, drops+1)
	}
	i.Announce(all[99])
	if got := receive(t, c, p); !slices.Equal(got, all[99:]) {
		t.Errorf("afterwards: got %+v", got)
	}
	if n := len(all) - drops + 1; i.ACKs() != n {
		t.Errorf("%d ACKs, want %d", i.ACKs(), n)
	}
	c.Close()
	if got := int(c.Counters().Drops); got != drops+1 {
		t.Errorf("closed, it has %d drops, want %d", got, drops+1)
	}
}

func TestAnInstanceThatIsMadeAnewIsHeardOnTheSameConnection(t *testing.T) {
	k, old, c := dial(t, "4.1.15")
	k.RemoveInstance("edge")
	old.Announce(sessionsOf(session.TCP, 1)...)
	if err := c.Hello(t.Context()); !errors.Is(err, nlchan.ErrNoInstance) {
		t.Errorf("while it is away: %v", err)
	}
	again := k.AddInstance("edge", "2001:db8:64::/96")
	old.Announce(sessionsOf(session.TCP, 2)...)
	want := sessionsOf(session.UDP, 3)
	again.Announce(want...)
	if got := receive(t, c, newPool6(t, "2001:db8:64::/96")); !slices.Equal(got, want) {
		t.Errorf("got %+v", got)
	}
	if g, err := c.Globals(t.Context()); err != nil || g.Pool6 != newPool6(t, "2001:db8:64::/96") {
		t.Errorf("%+v, %v", g, err)
	}
}

func TestReceiveEndsAtItsDeadlineAndWhenClosed(t *testing.T) {
	_, i, c := dial(t, "4.1.15")
	c.SetReadDeadline(time.Unix(1, 0))
	if _, err := c.Receive(make([]byte, nlchan.MessageSize)); err != os.ErrDeadlineExceeded {
		t.Fatalf("got %v", err)
	}
	c.SetReadDeadline(time.Time{})
	i.Announce(sessionsOf(session.TCP, 1)...)
	receive(t, c, newPool6(t, pool6))

	ended := make(chan error)
	go func() {
		_, err := c.Receive(make([]byte, nlchan.MessageSize))
		ended <- err
	}()
	c.Close()
	if err := <-ended; !errors.Is(err, nlchan.ErrClosed) {
		t.Errorf("got %v", err)
	}
	if err := c.Add(sessionsOf(session.TCP, 1), newPool6(t, pool6)); !errors.Is(err, nlchan.ErrClosed) {
		t.Errorf("Add: got %v", err)
	}
}

func TestAnAcknowledgementFindsOutThatTheInstanceIsGone(t *testing.T) {
	forEachModule(t, func(t *testing.T, version string) {
		k, _, c := dial(t, version)
		k.RemoveInstance("edge")
		if err := c.Ack(); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Receive(make([]byte, nlchan.MessageSize)); !errors.Is(err, nlchan.ErrNoInstance) {
			t.Errorf("got %v", err)
		}
		if err := c.Hello(t.Context()); !errors.Is(err, nlchan.ErrNoInstance) {
			t.Errorf("Hello: got %v", err)
		}
	})
}

func TestAConnectionIsStaleOnceTheModuleWasReloaded(t *testing.T) {
	k, _, c := dial(t, "4.1.15")
	k.Unload()
	k.Load("4.1.15")
	i := k.AddInstance("edge", pool6)
	i.Announce(sessionsOf(session.TCP, 1)...) // not heard
	if err := c.Ack(); err != nil {
		t.Fatal(err)
	}
	_, err := c.Receive(make([]byte, nlchan.MessageSize))
	if !errors.Is(err, nlchan.ErrStale) {
		t.Errorf("Receive: got %v", err)
	}
	if err := c.Hello(t.Context()); !errors.Is(err, nlchan.ErrStale) {
		t.Errorf("Hello: got %v", err)
	}
	if err := c.Add(sessionsOf(session.TCP, 1), newPool6(t, pool6)); !errors.Is(err, nlchan.ErrStale) {
		t.Errorf("Add: got %v", err)
	}
	if _, err := nlchan.Dial("edge", nlchan.On(k)); err != nil {
		t.Errorf("a new connection: %v", err)
	}
}

func TestAddedSessionsAreInTheTable(t *testing.T) {
	forEachModule(t, func(t *testing.T, version string) {
		_, i, c := dial(t, version)
		var want []session.Session
		for _, proto := range session.Protos {
			want = append(want, sessionsOf(proto, 700)...)
		}
		if err := c.Add(want, newPool6(t, pool6)); err != nil {
			t.Fatal(err)
		}
		if got := i.Table(); !slices.Equal(got, want) {
			t.Errorf("%d sessions are there, and not those %d", len(got), len(want))
		}
	})
}

func TestAddsAreSplitByNumberAndBySize(t *testing.T) {
	for _, test := range []struct {
		version    string
		perMessage int
		want       []int
	}{
		{"4.1.15", 1000, []int{1000, 1000, 500}},
		{"4.1.15", 5000, []int{1638, 862}}, // (65535 - 4) / 40
		{"4.1.9", 1000, []int{468, 468, 468, 468, 468, 160}},
	} {
		_, i, c := dial(t, test.version, nlchan.PerMessage(test.perMessage))
		if err := c.Add(sessionsOf(session.UDP, 2500), newPool6(t, pool6)); err != nil {
			t.Fatal(err)
		}
		var got []int
		for _, add := range i.Adds() {
			got = append(got, len(add))
		}
		if !slices.Equal(got, test.want) {
			t.Errorf("%s, %d: got messages of %v, want %v", test.version, test.perMessage, got, test.want)
		}
	}
}

// The module would follow a null pointer.
func TestAddOfNothingSendsNothing(t *testing.T) {
	_, i, c := dial(t, "4.1.15")
	if err := c.Add(nil, newPool6(t, pool6)); err != nil || len(i.Adds()) != 0 {
		t.Errorf("%v, %d messages", err, len(i.Adds()))
	}
}

func TestAnAddThatIsRefusedDoesNotStopTheOthers(t *testing.T) {
	k, i, c := dial(t, "4.1.15", nlchan.PerMessage(10))
	refusals := 0
	k.Intercept(func(op uint8, _ []byte) (nlchantest.Answer, bool) {
		if op != 27 || refusals == 2 {
			return nlchantest.Answer{}, false
		}
		refusals++
		return nlchantest.Answer{Errno: unix.EINVAL, Message: fmt.Sprintf("We're out of sync (%d)\n", refusals)}, true
	})
	err := c.Add(sessionsOf(session.TCP, 40), newPool6(t, pool6))
	var refused *nlchan.KernelError
	if !errors.As(err, &refused) || refused.Errno != unix.EINVAL || refused.Message != "We're out of sync (1)" {
		t.Errorf("got %v, want the first refusal", err)
	}
	if got := len(i.Table()); got != 20 {
		t.Errorf("%d sessions are in the table, want the 20 after the two refusals", got)
	}
	if err := c.Add(sessionsOf(session.TCP, 40), newPool6(t, pool6)); err != nil {
		t.Errorf("an error was kept for the next Add: %v", err)
	}
}

func TestSyncBeingOffHasAName(t *testing.T) {
	_, i, c := dial(t, "4.1.15", nlchan.PerMessage(10))
	i.SetSync(false)
	for what, err := range map[string]error{
		"Add":       c.Add(sessionsOf(session.TCP, 40), newPool6(t, pool6)),
		"Advertise": c.Advertise(t.Context()),
	} {
		if !errors.Is(err, nlchan.ErrSyncDisabled) || !strings.Contains(err.Error(), "`jool -i edge global update ss-enabled true`") {
			t.Errorf("%s: got %v", what, err)
		}
	}
}

func TestADumpHoldsTheWholeTable(t *testing.T) {
	forEachModule(t, func(t *testing.T, version string) {
		_, i, c := dial(t, version)
		for _, proto := range session.Protos {
			want := sessionsOf(proto, 1003)
			i.Put(want...)
			var got []session.Session
			err := c.Sessions(t.Context(), proto, newPool6(t, pool6), func(page []session.Session) error {
				got = append(got, page...)
				return nil
			})
			if err != nil || !slices.Equal(got, want) {
				t.Errorf("%s: %v, %d sessions that are not those %d", proto, err, len(got), len(want))
			}
		}
	})
}

func TestADumpOfAnEmptyTableHasNoPage(t *testing.T) {
	_, _, c := dial(t, "4.1.15")
	err := c.Sessions(t.Context(), session.TCP, newPool6(t, pool6), func([]session.Session) error {
		return errors.New("a page")
	})
	if err != nil {
		t.Error(err)
	}
}

func TestADumpEndsWhenThePageFuncOrTheContextDoes(t *testing.T) {
	_, i, c := dial(t, "4.1.15")
	i.Put(sessionsOf(session.TCP, 100)...)
	enough := errors.New("enough")
	pages := 0
	err := c.Sessions(t.Context(), session.TCP, newPool6(t, pool6), func([]session.Session) error {
		pages++
		return enough
	})
	if err != enough || pages != 1 {
		t.Errorf("got %v after %d pages", err, pages)
	}
	ctx, cancel := context.WithCancel(t.Context())
	pages = 0
	err = c.Sessions(ctx, session.TCP, newPool6(t, pool6), func([]session.Session) error {
		pages++
		cancel()
		return nil
	})
	if !errors.Is(err, context.Canceled) || pages != 1 {
		t.Errorf("got %v after %d pages", err, pages)
	}
}

func TestADumpDoesNotGoRoundForEver(t *testing.T) {
	k, i, c := dial(t, "4.1.15")
	p := newPool6(t, pool6)
	dump := func() (n int, err error) {
		err = c.Sessions(t.Context(), session.TCP, p, func(page []session.Session) error {
			n += len(page)
			return nil
		})
		return n, err
	}
	answer := func(attrs func(n int) []byte) {
		n := 0
		k.Intercept(func(op uint8, _ []byte) (nlchantest.Answer, bool) {
			n++
			return nlchantest.Answer{Flags: 8, Attrs: attrs(n)}, op == 25
		})
	}
	answer(func(int) []byte { return nil })
	if n, err := dump(); n != 0 || err != nil {
		t.Errorf("an empty page that promises more: %d sessions, %v", n, err)
	}
	s := sessionsOf(session.TCP, 1)[0]
	answer(func(n int) []byte {
		s.Expiration = uint32(1000 - n) // as time passes
		return session.Enc4111.Append(nil, &s, p)
	})
	if _, err := dump(); err == nil {
		t.Error("the same page again and again is no error")
	}
	k.Intercept(nil)
	i.Put(sessionsOf(session.TCP, 30)...)
	if n, err := dump(); n != 30 || err != nil {
		t.Errorf("afterwards: %d sessions, %v", n, err)
	}
}

func TestSessionsOfAnotherPool6AreReportedAtTheEnd(t *testing.T) {
	_, i, c := dial(t, "4.1.15")
	i.Put(sessionsOf(session.TCP, 60)...)
	err := c.Sessions(t.Context(), session.TCP, newPool6(t, "2001:db8:64::/96"), func([]session.Session) error {
		return errors.New("a page")
	})
	if err == nil || !strings.Contains(err.Error(), "60 sessions") {
		t.Errorf("got %v", err)
	}
}

func TestGlobalsAreTheInstances(t *testing.T) {
	forEachModule(t, func(t *testing.T, version string) {
		k, _, c := dial(t, version)
		edge := k.AddInstance("edge", "2001:db8:122:344::/64")
		timeouts := session.Timeouts{TCPEst: 7_200_001, TCPTrans: 240_002, UDP: 300_003, ICMP: 60_004}
		edge.SetTimeouts(timeouts)
		edge.SetSync(false)
		got, err := c.Globals(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		want := nlchan.Globals{Pool6: newPool6(t, "2001:db8:122:344::/64"), Timeouts: timeouts}
		v := c.Module().Version
		for k, value := range map[nlchan.Knob]uint32{
			nlchan.SSEnabled: 0, nlchan.SSFlushASAP: 1, nlchan.SSFlushDeadline: 2000, nlchan.SSCapacity: 512,
			nlchan.SSMaxPayload: 1452, nlchan.SSMaxSessionsPerPacket: 10,
		} {
			if k == nlchan.SSMaxSessionsPerPacket && v.Less(4, 1, 11) {
				continue
			}
			want.Set(k, value)
		}
		if !v.Less(4, 1, 13) {
			want.Set(nlchan.SSFlushASAP, 0)
			want.Set(nlchan.SSMaxSessionsPerPacket, 36)
		}
		if got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
		edge.SetSync(true)
		if got, err := c.Globals(t.Context()); err != nil || !got.SyncEnabled {
			t.Errorf("after enabling: %+v, %v", got, err)
		}
	})
}

func TestGlobalsWithoutWhatMustBeThereAreAnError(t *testing.T) {
	k, _, c := dial(t, "4.1.15")
	k.Intercept(func(op uint8, _ []byte) (nlchantest.Answer, bool) { return nlchantest.Answer{}, op == 8 })
	if g, err := c.Globals(t.Context()); err == nil {
		t.Errorf("got %+v", g)
	}
}

func TestPool4IsThatOfAllProtocols(t *testing.T) {
	forEachModule(t, func(t *testing.T, version string) {
		_, i, c := dial(t, version)
		var want []nlchan.Pool4Entry
		for _, proto := range session.Protos {
			for n := range 60 {
				want = append(want, nlchan.Pool4Entry{
					Range: session.Range{
						Proto:   proto,
						Prefix:  netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(4 * n)}), 30),
						MinPort: 1024, MaxPort: uint16(60000 + n),
					},
					Mark: uint32(n),
				})
			}
		}
		i.AddPool4(want...)
		got, err := c.Pool4(t.Context())
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%v, got %v", err, got)
		}
	})
}

func TestPool4IsReadAgainWhenItChangedMeanwhile(t *testing.T) {
	k, i, c := dial(t, "4.1.15")
	want := nlchan.Pool4Entry{Range: session.Range{Prefix: netip.MustParsePrefix("192.0.2.1/32"), MaxPort: 9}}
	i.AddPool4(want)
	changes := 0
	k.Intercept(func(op uint8, _ []byte) (nlchantest.Answer, bool) {
		changes--
		return nlchantest.Answer{Errno: unix.EAGAIN, Message: "Pool4 changed"}, op == 18 && changes >= 0
	})
	changes = 2
	if got, err := c.Pool4(t.Context()); err != nil || !slices.Equal(got, []nlchan.Pool4Entry{want}) {
		t.Errorf("got %v, %v", got, err)
	}
	changes = 1 << 30
	if _, err := c.Pool4(t.Context()); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("a table that never rests: %v", err)
	}
}

func TestATableOfWhichPartCannotBeReadIsAnError(t *testing.T) {
	k, _, c := dial(t, "4.1.15")
	attr := func(length, typ uint16, body ...byte) []byte {
		b := binary.NativeEndian.AppendUint16(nil, length)
		return append(binary.NativeEndian.AppendUint16(b, typ), body...)
	}
	prefix := slices.Concat(attr(20, 5), attr(8, 1, 192, 0, 2, 1), attr(5, 2, 24, 0, 0, 0))
	entry := slices.Concat(attr(24, 1), prefix)
	for _, test := range []struct {
		name string
		rest []byte
		ok   bool
	}{
		{"a good entry", entry, true},
		{"an entry that is cut off", entry[:16], false},
		{"a port of three bytes", slices.Concat(attr(32, 1), prefix, attr(7, 6, 1, 2, 3, 0)), false},
		{"an entry without its prefix", slices.Concat(attr(12, 1), attr(6, 6, 1, 2, 0, 0)), false},
	} {
		k.Intercept(func(uint8, []byte) (nlchantest.Answer, bool) {
			return nlchantest.Answer{Attrs: slices.Concat(entry, test.rest)}, true
		})
		if pool, err := c.Pool4(t.Context()); (err == nil) != test.ok {
			t.Errorf("%s: got %v, %v", test.name, pool, err)
		}
	}
}

func TestStaticBIBLeavesDynamicEntriesOut(t *testing.T) {
	forEachModule(t, func(t *testing.T, version string) {
		_, i, c := dial(t, version)
		var want []nlchan.BIBEntry
		for _, proto := range session.Protos {
			for n := range 100 {
				e := nlchantest.StaticBIB{Static: n%10 == 3}
				e.Proto = proto
				e.Src6 = netip.MustParseAddrPort(fmt.Sprintf("[2001:db8::%x]:22", n))
				e.Src4 = netip.MustParseAddrPort(fmt.Sprintf("192.0.2.1:%d", n))
				i.AddBIB(e)
				if e.Static {
					want = append(want, e.BIBEntry)
				}
			}
		}
		read, pages := 0, 0
		got, err := c.StaticBIB(t.Context(), func(entries int) error { read += entries; pages++; return nil })
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%v, got %v", err, got)
		}
		if read != 300 || pages <= len(session.Protos) {
			t.Errorf("told of %d entries in %d pages", read, pages)
		}
		enough := errors.New("enough")
		pages = 0
		if _, err := c.StaticBIB(t.Context(), func(int) error { pages++; return enough }); !errors.Is(err, enough) || pages != 1 {
			t.Errorf("ended with %v after %d pages", err, pages)
		}
	})
}

func TestStatsGoByTheModulesNumbers(t *testing.T) {
	forEachModule(t, func(t *testing.T, version string) {
		_, i, c := dial(t, version)
		i.Put(sessionsOf(session.TCP, 7)...)
		i.AddBIB(nlchantest.StaticBIB{BIBEntry: bibEntry(session.UDP, 1), Static: true})
		i.CountTranslated(11)
		i.CountDropped(13)
		want := nlchan.Stats{BIBs: 8, Sessions: 7, Translated: 11}
		if !c.Module().Version.Less(4, 1, 12) {
			want.CountsSync, want.Dropped, want.Advertisements = true, 13, 1
			if err := c.Advertise(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := c.Stats(t.Context()); err != nil || got != want {
			t.Errorf("got %+v, %v, want %+v", got, err, want)
		}
	})
}

func TestUpdateChangesWhatItIsGivenAndNothingElse(t *testing.T) {
	forEachModule(t, func(t *testing.T, version string) {
		_, _, c := dial(t, version)
		ctx := t.Context()
		want, err := c.Globals(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Update(ctx, nlchan.Settings{}); err != nil {
			t.Errorf("nothing: %v", err)
		}
		for k := range want.All() {
			var change nlchan.Settings
			value := uint32(70_000 + int(k))
			if k == nlchan.SSEnabled || k == nlchan.SSFlushASAP {
				was, _ := want.Get(k)
				value = 1 - was
			}
			change.Set(k, value)
			want.Set(k, value)
			if err := c.Update(ctx, change); err != nil {
				t.Errorf("%s: %v", k, err)
			}
			want.SyncEnabled = false
			if got, err := c.Globals(ctx); err != nil || got != want {
				t.Errorf("%s: got %+v, %v, want %+v", k, got, err, want)
			}
		}
		var all nlchan.Settings
		all.Set(nlchan.SSEnabled, 1)
		all.Set(nlchan.SSFlushDeadline, 20)
		all.Set(nlchan.SSCapacity, 16384)
		if err := c.Update(ctx, all); err != nil {
			t.Error(err)
		}
		got, err := c.Globals(ctx)
		for k, value := range all.All() {
			if is, ok := got.Get(k); !ok || is != value {
				t.Errorf("%s is %d (%t), want %d, %v", k, is, ok, value, err)
			}
		}
		if !got.SyncEnabled {
			t.Error("synchronization is off")
		}
	})
}

func TestUpdateSaysWhyNot(t *testing.T) {
	_, i, c := dial(t, "4.1.9")
	ctx := t.Context()
	var s nlchan.Settings
	s.Set(nlchan.SSMaxSessionsPerPacket, 20)
	if err := c.Update(ctx, s); !errors.Is(err, nlchan.ErrNoKnob) || !strings.Contains(err.Error(), "4.1.9 has no ss-max-sessions-per-packet") {
		t.Errorf("a setting of later versions: %v", err)
	}
	s = nlchan.Settings{}
	s.Set(nlchan.SSEnabled, 2)
	if err := c.Update(ctx, s); err == nil || !strings.Contains(err.Error(), "ss-enabled is 0 or 1, not 2") {
		t.Errorf("neither on nor off: %v", err)
	}
	i.Put(sessionsOf(session.UDP, 1)...)
	i.AddPool4(nlchan.Pool4Entry{Range: session.Range{Proto: session.UDP, Prefix: netip.MustParsePrefix("198.51.100.1/32"), MaxPort: 65535}})
	s = nlchan.Settings{}
	s.Set(nlchan.SSCapacity, 16384)
	err := c.Update(ctx, s)
	if !errors.Is(err, nlchan.ErrOutsidePool4) || !strings.Contains(err.Error(), "192.0.2.0#0") || strings.Contains(err.Error(), "\n") {
		t.Errorf("with a mask outside of pool4: %v", err)
	}
	if g, err := c.Globals(ctx); err != nil || !g.SyncEnabled || g.Settings != defaults(t) {
		t.Errorf("a refused change left %+v, %v", g, err)
	}
}

// defaults are an instance's of 4.1.9.
func defaults(t *testing.T) nlchan.Settings {
	_, _, c := dial(t, "4.1.9")
	g, err := c.Globals(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return g.Settings
}

func bibEntry(proto session.Proto, n int) nlchan.BIBEntry {
	return nlchan.BIBEntry{
		Proto: proto,
		Src6:  netip.AddrPortFrom(netip.MustParseAddr("2001:db8::8"), uint16(n)),
		Src4:  netip.AddrPortFrom(netip.MustParseAddr("192.0.2.0"), uint16(n)),
	}
}

func TestABIBEntryIsRemovedWithItsSessionsAndNoOther(t *testing.T) {
	forEachModule(t, func(t *testing.T, version string) {
		_, i, c := dial(t, version)
		remove := func(e nlchan.BIBEntry) error { return c.RemoveBIB(t.Context(), e.Proto, e.Src6, e.Src4) }
		for _, proto := range session.Protos {
			ss := sessionsOf(proto, 40)
			second := ss[30]
			second.Dst4[3]++
			i.Put(append(ss, second)...)
		}
		for _, proto := range session.Protos {
			for _, n := range []int{30, 0} { // before port 0 there is another address
				if err := remove(bibEntry(proto, n)); err != nil {
					t.Errorf("%s: %v", proto, err)
				}
				if err := remove(bibEntry(proto, n)); !errors.Is(err, nlchan.ErrNoBIB) {
					t.Errorf("%s: a second time: %v", proto, err)
				}
			}
			other := bibEntry(proto, 5)
			other.Src6 = netip.MustParseAddrPort("[2001:db8::9]:5")
			if err := remove(other); !errors.Is(err, nlchan.ErrNoBIB) {
				t.Errorf("%s: one with another IPv6 side: %v", proto, err)
			}
		}
		left := i.Table()
		for _, s := range left {
			if s.Src4Port == 30 || s.Src4Port == 0 {
				t.Errorf("%+v is left", s)
			}
		}
		if len(left) != 3*38 {
			t.Errorf("%d sessions are left, want %d", len(left), 3*38)
		}
	})
}

func TestAStaticBIBEntryIsNotRemoved(t *testing.T) {
	forEachModule(t, func(t *testing.T, version string) {
		_, i, c := dial(t, version)
		e := bibEntry(session.TCP, 0)
		i.AddBIB(nlchantest.StaticBIB{BIBEntry: e, Static: true})
		i.Put(sessionsOf(session.TCP, 100)...)
		err := c.RemoveBIB(t.Context(), e.Proto, e.Src6, e.Src4)
		if !errors.Is(err, nlchan.ErrStaticBIB) || !strings.Contains(err.Error(), "`jool -i edge bib remove`") {
			t.Errorf("got %v", err)
		}
		if n := len(i.Table()); n != 100 {
			t.Errorf("%d sessions are left", n)
		}
	})
}

func TestRemoveBIBTakesNoOtherAddressesThanTheTablesKinds(t *testing.T) {
	_, _, c := dial(t, "4.1.15")
	six, four := netip.MustParseAddrPort("[2001:db8::8]:1"), netip.MustParseAddrPort("192.0.2.1:1")
	for _, test := range []struct {
		proto session.Proto
		a, b  netip.AddrPort
	}{
		{session.TCP, four, four}, {session.TCP, six, six}, {3, six, four}, {session.UDP, netip.AddrPort{}, four}, {session.UDP, six, netip.AddrPort{}},
		{session.ICMP, netip.MustParseAddrPort("[::ffff:192.0.2.1]:1"), four}, {session.UDP, six, netip.MustParseAddrPort("0.0.0.0:0")},
	} {
		if err := c.RemoveBIB(t.Context(), test.proto, test.a, test.b); err == nil || errors.Is(err, nlchan.ErrNoBIB) {
			t.Errorf("%+v: %v", test, err)
		}
	}
}

func TestAdvertisementsAreHeardWhereTheModuleMakesThem(t *testing.T) {
	forEachModule(t, func(t *testing.T, version string) {
		_, i, c := dial(t, version)
		want := sessionsOf(session.ICMP, 25)
		i.Put(want...)
		err := c.Advertise(t.Context())
		if c.Module().Version.Less(4, 1, 11) {
			if !errors.Is(err, nlchan.ErrCannotAdvertise) {
				t.Errorf("got %v", err)
			}
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		var got []session.Session
		for len(got) < len(want) {
			got = append(got, receive(t, c, newPool6(t, pool6))...)
		}
		if !slices.Equal(got, want) {
			t.Errorf("got %v", got)
		}
	})
}

func TestAnAdvertisementThatIsUnderWayHasAName(t *testing.T) {
	k, _, c := dial(t, "4.1.15")
	k.Intercept(func(op uint8, _ []byte) (nlchantest.Answer, bool) {
		return nlchantest.Answer{Errno: unix.EINVAL, Message: "joold advertisement already in progress.\n"}, op == 28
	})
	if err := c.Advertise(t.Context()); !errors.Is(err, nlchan.ErrAdvertising) {
		t.Errorf("got %v", err)
	}
}

func TestRequestsMayBeMadeByManyGoroutinesAtOnce(t *testing.T) {
	_, i, c := dial(t, "4.1.15")
	i.Put(sessionsOf(session.TCP, 200)...)
	p := newPool6(t, pool6)
	errs := make(chan error)
	requests := []func() error{
		func() error { return c.Hello(t.Context()) },
		func() error { _, err := c.Globals(t.Context()); return err },
		func() error { _, err := c.Stats(t.Context()); return err },
		func() error { return c.Ack() },
		func() error { return c.Add(sessionsOf(session.UDP, 50), p) },
		func() error {
			n := 0
			err := c.Sessions(t.Context(), session.TCP, p, func(page []session.Session) error { n += len(page); return nil })
			if err == nil && n != 200 {
				err = fmt.Errorf("%d sessions, want 200", n)
			}
			return err
		},
	}
	for _, request := range requests {
		go func() {
			for range 20 {
				if err := request(); err != nil {
					errs <- err
					return
				}
			}
			errs <- nil
		}()
	}
	for range requests {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

// The race detector looks on.
func TestAcksMayComeFromOthersWhileReceiveWaitsAndWorks(t *testing.T) {
	forEachModule(t, func(t *testing.T, version string) {
		_, i, c := dial(t, version)
		const messages, others, acks = 200, 3, 100
		ended := make(chan error)
		for range others {
			go func() {
				var err error
				for range acks {
					err = errors.Join(err, c.Ack())
					c.Counters()
				}
				ended <- err
			}()
		}
		go func() {
			for n := range messages {
				i.Announce(sessionsOf(session.UDP, 1+n%10)...)
			}
			ended <- nil
		}()
		p := newPool6(t, pool6)
		for n := range messages {
			if got := receive(t, c, p); len(got) != 1+n%10 {
				t.Errorf("message %d has %d sessions", n, len(got))
			}
		}
		for range others + 1 {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
		const want = messages + others*acks
		if got := c.Counters(); i.ACKs() != want || got != (nlchan.Counters{ACKs: want}) {
			t.Errorf("%d ACKs came, want %d; counted %+v", i.ACKs(), want, got)
		}
	})
}

func TestTheWatcherTellsOfTheModule(t *testing.T) {
	k := nlchantest.New(t, "4.1.15")
	w, err := nlchan.NewWatcher(nlchan.On(k))
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	k.Unload()
	k.Load("4.1.9")
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	var got []nlchan.Event
	err = w.Run(ctx, func(e nlchan.Event) {
		got = append(got, e)
		if len(got) == 2 {
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) || !slices.Equal(got, []nlchan.Event{nlchan.ModuleRemoved, nlchan.ModuleLoaded}) {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestTheWatcherEndsWhenClosed(t *testing.T) {
	w, err := nlchan.NewWatcher(nlchan.On(nlchantest.New(t, "4.1.15")))
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error)
	go func() { ended <- w.Run(t.Context(), func(nlchan.Event) {}) }()
	w.Close()
	if err := <-ended; !errors.Is(err, nlchan.ErrClosed) {
		t.Errorf("got %v", err)
	}
}

func TestAMessageIsAcknowledgedBeforeItIsReturnedUnlessItIsHeld(t *testing.T) {
	forEachModule(t, func(t *testing.T, version string) {
		k := nlchantest.New(t, version)
		edge := k.AddInstance("edge", pool6)
		c, err := nlchan.Dial("edge", nlchan.On(k))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		few, many := sessionsOf(session.TCP, 2), sessionsOf(session.UDP, 5)
		entry := c.Module().Encoding.EntrySize()
		c.Hold(func(entries int) bool { return entries/entry >= len(many) })
		for _, held := range []bool{false, true, false} {
			ss := few
			if held {
				ss = many
			}
			edge.Announce(ss...)
			before := c.Counters().ACKs
			m, err := c.Receive(make([]byte, nlchan.MessageSize))
			if err != nil {
				t.Fatal(err)
			}
			if acked := c.Counters().ACKs > before; m.Held != held || acked == held {
				t.Errorf("%d sessions: held %v, acknowledged %v", len(ss), m.Held, acked)
			}
			if m.Held {
				if err := c.Ack(); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
}
