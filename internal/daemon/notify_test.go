package daemon

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"joold/internal/session"
)

func TestAServiceManagerThatDoesNotReadHoldsNothingUpAndHearsLaterThatTheDaemonServes(t *testing.T) {
	dir, err := os.MkdirTemp("", "joold") // t.TempDir's is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "notify")
	addr := &net.UnixAddr{Name: path, Net: "unixgram"}
	manager, err := net.ListenUnixgram("unixgram", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	stuffer, err := net.DialUnix("unixgram", nil, addr)
	if err != nil {
		t.Fatal(err)
	}
	defer stuffer.Close()
	for err == nil {
		stuffer.SetWriteDeadline(time.Now().Add(10 * time.Millisecond))
		_, err = stuffer.Write([]byte("stuff"))
	}
	t.Setenv("NOTIFY_SOCKET", path)

	b := start(t, newModelKernel(session.Enc4113), nil)
	b.k.announced <- encode(session.Enc4113, wkp, udp(1, 300_000))
	eventually(t, "what the kernel announces goes out", func() bool { sent, _ := b.g.sent(wkp); return len(sent) == 1 })
	if why := b.status(time.Now()).Instance.WaitingFor; why != "" {
		t.Errorf("status: waiting for %s", why)
	}

	manager.SetReadDeadline(time.Now().Add(30 * time.Second))
	for told := ""; !strings.HasPrefix(told, "READY=1\n"); {
		buf := make([]byte, 4096)
		n, err := manager.Read(buf)
		if err != nil {
			t.Fatal("not told that the daemon serves:", err)
		}
		told = string(buf[:n])
	}
}
