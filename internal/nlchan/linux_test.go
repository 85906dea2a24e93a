package nlchan

import (
	"errors"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// These run on the real socket, against nlctrl, which every kernel has.

func openSocket(t *testing.T) Socket {
	t.Helper()
	s, err := linux{}.Socket()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	if err := s.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return s
}

func askForCtrl(t *testing.T) []byte {
	t.Helper()
	b, err := marshal(unix.GENL_ID_CTRL, unix.CTRL_CMD_GETFAMILY, 1, nil,
		netlink.Attribute{Type: unix.CTRL_ATTR_FAMILY_NAME, Data: []byte("nlctrl\x00")})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestTheKernelsAnswerWaitsWhenSendReturns(t *testing.T) {
	s := openSocket(t)
	for range 100 {
		f, err := resolve(s, "nlctrl")
		if err != nil {
			t.Fatal(err)
		}
		if f.id != unix.GENL_ID_CTRL || f.groups["notify"] == 0 {
			t.Fatalf("got %+v", f)
		}
	}
	if n, err := s.Poll(make([]byte, answerSize)); n != 0 || err != nil {
		t.Errorf("another message: %d bytes, %v", n, err)
	}
}

func TestAFamilyThatIsNotThereIsENOENT(t *testing.T) {
	if _, err := resolve(openSocket(t), "joold-test"); !errors.Is(err, unix.ENOENT) {
		t.Errorf("got %v", err)
	}
}

func TestAMessageThatDoesNotFitTellsItsLength(t *testing.T) {
	s := openSocket(t)
	if err := s.Send(askForCtrl(t)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 24)
	n, err := s.Receive(buf)
	if err != nil || n <= len(buf) {
		t.Fatalf("%d bytes, %v", n, err)
	}
	if m, whole, ok := parseMessage(buf); !ok || whole || m.seq != 1 {
		t.Errorf("got %+v, whole %t, ok %t", m, whole, ok)
	}
}

func TestSendingAndReceivingAllocateNothing(t *testing.T) {
	s := openSocket(t)
	request, buf := askForCtrl(t), make([]byte, answerSize)
	allocs := testing.AllocsPerRun(1000, func() {
		if err := s.Send(request); err != nil {
			t.Fatal(err)
		}
		if n, err := s.Receive(buf); n == 0 || err != nil {
			t.Fatal(n, err)
		}
		if n, err := s.Poll(buf); n != 0 || err != nil {
			t.Fatal(n, err)
		}
	})
	if allocs != 0 {
		t.Errorf("%v allocations each time", allocs)
	}
}

func TestADeadlineAndCloseEndAReceiveThatWaits(t *testing.T) {
	s := openSocket(t)
	ended := make(chan error)
	receive := func() {
		_, err := s.Receive(make([]byte, answerSize))
		ended <- err
	}
	s.SetReadDeadline(time.Now().Add(time.Millisecond))
	go receive()
	if err := <-ended; err != os.ErrDeadlineExceeded {
		t.Errorf("at the deadline: %v", err)
	}
	s.SetReadDeadline(time.Time{})
	go receive()
	time.Sleep(time.Millisecond) // so that it mostly waits; either order is right
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := <-ended; err != ErrClosed {
		t.Errorf("closed: %v", err)
	}
	if err := s.Send(askForCtrl(t)); err != ErrClosed {
		t.Errorf("sending on a closed socket: %v", err)
	}
	if _, err := s.Poll(nil); err != ErrClosed {
		t.Errorf("polling a closed socket: %v", err)
	}
	if err := s.Join(1); err == nil {
		t.Error("joined with a closed socket")
	}
	if err := s.Close(); err != nil {
		t.Errorf("closed twice: %v", err)
	}
}

// The buffer is not beyond what an unprivileged process may have.
func TestTheReceiveBufferIsAsLargeAsAskedFor(t *testing.T) {
	if got, err := openSocket(t).SetReadBuffer(64 << 10); err != nil || got != 128<<10 {
		t.Errorf("got %d, %v; the kernel doubles what is asked for", got, err)
	}
}

// Messages for which there is no room are lost, and counted; the socket says so
// once, ahead of those that it holds.
func TestASocketThatOverflowsSaysENOBUFSAndCountsWhatItLost(t *testing.T) {
	s := openSocket(t)
	if _, err := s.SetReadBuffer(4 << 10); err != nil {
		t.Fatal(err)
	}
	const sent = 100
	request := askForCtrl(t)
	for range sent {
		if err := s.Send(request); err != nil && err != unix.ENOBUFS {
			t.Fatal(err)
		}
	}
	buf := make([]byte, answerSize)
	if n, err := s.Poll(buf); err != unix.ENOBUFS {
		t.Fatalf("%d bytes, %v", n, err)
	}
	drops := s.Drops()
	got := 0
	for ; ; got++ {
		n, err := s.Poll(buf)
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			break
		}
		if got == 0 { // the buffer has room, and yet this is lost, without an ENOBUFS
			if err := s.Send(request); err != nil && err != unix.ENOBUFS {
				t.Fatal(err)
			}
		}
	}
	// The error that there was no room for an answer finds none either.
	all := s.Drops()
	if got == 0 || int(drops) < sent-got || all <= drops {
		t.Errorf("%d of %d answers came; %d drops were counted, then %d", got, sent, drops, all)
	}
	if f, err := resolve(s, "nlctrl"); err != nil {
		t.Errorf("emptied, it answers %+v, %v", f, err)
	}
	if err := s.Close(); err != nil || s.Drops() != all {
		t.Errorf("closed, it has %d drops, want %d, %v", s.Drops(), all, err)
	}
}

// The race detector looks on.
func TestManyMaySendWhileOneReceives(t *testing.T) {
	s := openSocket(t)
	if _, err := s.SetReadBuffer(1 << 20); err != nil {
		t.Fatal(err)
	}
	const senders, each = 4, 50
	request := askForCtrl(t)
	errs := make(chan error)
	for range senders {
		go func() {
			var err error
			for range each {
				err = errors.Join(err, s.Send(request))
				s.Drops()
			}
			errs <- err
		}()
	}
	buf := make([]byte, answerSize)
	for range senders * each {
		if n, err := s.Receive(buf); err != nil || n == 0 {
			t.Fatal(n, err)
		}
	}
	for range senders {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

func TestTheProcessKnowsItsUserNamespace(t *testing.T) {
	ns, err := os.Stat("/proc/self/ns/user")
	if err != nil {
		t.Fatal(err)
	}
	const initial = 0xeffffffd
	inode := ns.Sys().(*syscall.Stat_t).Ino
	if got := (linux{}).InUserNamespace(); got != (inode != initial) {
		t.Errorf("got %t in the namespace %#x", got, inode)
	}
}
