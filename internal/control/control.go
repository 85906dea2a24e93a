// Package control owns the daemon's unix socket: where it lies, and the
// requests and answers that cross it, one JSON object a line. It does not know
// what the daemon does with a request.
package control

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Dir is where control sockets lie.
const Dir = "/run/joold"

// The operations that a daemon understands.
const (
	OpStatus    = "status"
	OpAdvertise = "advertise"
)

// Request is what a client asks, once per connection.
type Request struct {
	Op   string `json:"op"`
	Rate int    `json:"rate,omitempty"` // advertise: sessions per second; 0 is the daemon's choice
}

// Reply is one line of an answer. Any number of progress lines comes before one
// that carries a result or an error.
type Reply struct {
	Progress *Progress `json:"progress,omitempty"`
	Status   *Status   `json:"status,omitempty"`
	Done     *Progress `json:"done,omitempty"` // advertise: the last word
	Error    string    `json:"error,omitempty"`
}

// Progress is how far an advertisement has come.
type Progress struct {
	Read       int     `json:"read"`                 // sessions read from the kernel's table
	Unreadable int     `json:"unreadable,omitempty"` // sessions in it that make no sense
	Total      int     `json:"total"`                // sessions to send; 0 while the table is being read
	Sent       int     `json:"sent"`                 // sessions sent or found to need no sending
	Datagrams  int     `json:"datagrams"`            // datagrams sent
	Failed     int     `json:"failed"`               // attempts to send one that failed; it was tried again
	Seconds    float64 `json:"seconds"`              // since the request was taken up
}

// Rate is how many sessions a second it has been, reading included.
func (p *Progress) Rate() float64 {
	if p.Seconds <= 0 {
		return 0
	}
	return float64(p.Sent) / p.Seconds
}

const (
	maxRequest  = 4096             // bytes of a request line
	maxOfUser   = 16               // connections at once; root may have any number
	maxClients  = 128              // of all users but root together
	requestTime = 2 * time.Second  // for a client to say what it wants
	replyTime   = 10 * time.Second // for a client to read a line
)

// ErrNoDaemon is returned when nobody serves the socket.
var ErrNoDaemon = errors.New("no joold daemon is running")

// ErrNoAnswer is of a daemon that hung up, as when it ends.
var ErrNoAnswer = errors.New("the daemon ended without an answer")

// ErrInUse is returned when another daemon serves the socket.
var ErrInUse = errors.New("another joold daemon is running")

// Path is the control socket of the daemon that serves the named instance in
// the caller's network namespace. Instances are named per namespace, so outside
// the initial one the namespace's inode is part of the socket's name.
func Path(instance string) (string, error) {
	// The kernel lets a name hold a slash, and here an @ has a meaning.
	name := strings.ReplaceAll(url.PathEscape(instance), "@", "%40")
	if initialNetns() {
		return filepath.Join(Dir, name+".sock"), nil
	}
	fi, err := os.Stat("/proc/thread-self/ns/net")
	if err != nil {
		return "", fmt.Errorf("cannot tell network namespaces apart: %w (is /proc mounted?)", err)
	}
	ino := fi.Sys().(*syscall.Stat_t).Ino
	return filepath.Join(Dir, name+"@"+strconv.FormatUint(ino, 10)+".sock"), nil
}

// initialNetns tells whether the caller is in the initial network namespace:
// the kernel shows the settings of the packet backlog nowhere else. Comparing
// with process 1 would need privileges that neither a sandboxed daemon nor its
// clients have.
func initialNetns() bool {
	_, err := os.Stat("/proc/sys/net/core/netdev_budget")
	return err == nil
}

// Server answers on a control socket.
type Server struct {
	listener *net.UnixListener
	lock     *os.File // held for as long as the socket is ours
}

// Listen takes the socket at path, whose directory it makes if need be, and
// which it replaces when a dead daemon has left it there. The file's group may
// use it. A file beside it, PATH.lock, is locked until Serve has ended: Listen
// fails with ErrInUse while another daemon holds it.
func Listen(path string) (*Server, error) {
	s, err := listen(path)
	if errors.Is(err, fs.ErrPermission) {
		err = fmt.Errorf("%w: make %s writable for joold (RuntimeDirectory= in a unit), or choose another --control.socket",
			err, filepath.Dir(path))
	}
	if err != nil {
		return nil, fmt.Errorf("control socket %s: %w", path, err)
	}
	return s, nil
}

func listen(path string) (_ *Server, err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	if fi, err := os.Lstat(path); err == nil && fi.Mode().Type() != fs.ModeSocket {
		return nil, errors.New("something lies there that is no socket: choose another --control.socket")
	}
	// Not for others to open: who can open it can lock it.
	lock, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			lock.Close()
		}
	}()
	err = syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return nil, fmt.Errorf("%w for this instance: stop it first", ErrInUse)
	} else if err != nil {
		return nil, os.NewSyscallError("flock", err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	old := syscall.Umask(0o117) // 0660 from the first moment
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	syscall.Umask(old)
	if err != nil {
		return nil, err
	}
	return &Server{l, lock}, nil
}

// Close removes the socket, and then makes way for another daemon.
func (s *Server) Close() error {
	return errors.Join(s.listener.Close(), s.lock.Close())
}

// Handler answers a request by any number of calls of reply. An error it
// returns becomes the last reply.
type Handler func(ctx context.Context, r Request, reply func(Reply) error) error

// Serve answers requests until ctx ends, and removes the socket. However many
// connections a user holds, root is answered, and so are others.
func (s *Server) Serve(ctx context.Context, h Handler) error {
	defer s.lock.Close()
	defer context.AfterFunc(ctx, func() { s.listener.Close() })()
	defer s.listener.Close()
	var wg sync.WaitGroup
	defer wg.Wait()
	clients := clients{of: make(map[uint32]int)}
	for {
		c, err := s.listener.AcceptUnix()
		if ctx.Err() != nil {
			if err == nil {
				c.Close()
			}
			return nil
		}
		if err != nil {
			// Out of descriptors, or a client that gave up: neither ends the service.
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		uid, err := userOf(c)
		if err == nil {
			err = clients.enter(uid)
		}
		if err != nil {
			refuse(c, err)
			continue
		}
		wg.Go(func() {
			defer clients.leave(uid)
			answer(ctx, c, h)
		})
	}
}

// userOf is the user that made a connection.
func userOf(c *net.UnixConn) (uint32, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *syscall.Ucred
	var failed error
	if err := raw.Control(func(fd uintptr) {
		cred, failed = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	}); err != nil {
		return 0, err
	}
	if failed != nil {
		return 0, os.NewSyscallError("getsockopt SO_PEERCRED", failed)
	}
	return cred.Uid, nil
}

// clients are the connections of all users but root.
type clients struct {
	mu  sync.Mutex
	all int
	of  map[uint32]int // by user
}

// enter makes room for a connection of the user, or says why there is none.
func (c *clients) enter(uid uint32) error {
	if uid == 0 {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.of[uid] >= maxOfUser || c.all >= maxClients {
		return fmt.Errorf("the daemon has %d connections, %d of them of user %d: end some first, or ask as root", c.all, c.of[uid], uid)
	}
	c.of[uid]++
	c.all++
	return nil
}

func (c *clients) leave(uid uint32) {
	if uid == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all--
	if c.of[uid]--; c.of[uid] == 0 {
		delete(c.of, uid)
	}
}

// refuse tells a client why it is not heard. It does not wait: a new
// connection's buffer has room.
func refuse(c net.Conn, why error) {
	defer c.Close()
	json.NewEncoder(c).Encode(Reply{Error: why.Error()})
}

// answer serves one client.
func answer(ctx context.Context, c net.Conn, h Handler) {
	defer c.Close()
	service := ctx
	defer context.AfterFunc(service, func() { c.SetDeadline(time.Unix(1, 0)) })()
	ctx, cancel := context.WithCancel(service)
	defer cancel()

	c.SetReadDeadline(time.Now().Add(requestTime))
	if service.Err() != nil { // whose end may have set the deadline before
		return
	}
	lines := bufio.NewReader(io.LimitReader(c, maxRequest))
	line, err := lines.ReadBytes('\n')
	if err != nil {
		return
	}
	enc := json.NewEncoder(c)
	reply := func(r Reply) error {
		c.SetWriteDeadline(time.Now().Add(replyTime))
		if service.Err() != nil {
			return service.Err()
		}
		return enc.Encode(r)
	}
	var r Request
	if err := json.Unmarshal(line, &r); err != nil {
		reply(Reply{Error: "request is not JSON"})
		return
	}
	// A client that hangs up ends what it asked for.
	c.SetReadDeadline(time.Time{})
	go func() {
		lines.ReadByte()
		cancel()
	}()
	if err := h(ctx, r, reply); err != nil {
		reply(Reply{Error: err.Error()})
	}
}

// Call asks the daemon at path, gives each reply but an error to each, and
// returns when the daemon has said its last. It fails with ErrNoDaemon when
// there is none.
func Call(ctx context.Context, path string, r Request, each func(Reply) error) error {
	c, err := dial(ctx, path)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w at %s", ErrNoDaemon, path)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("control socket %s: permission denied: be root, or of the socket's group: %w", path, err)
	case err != nil:
		return fmt.Errorf("control socket %s: %w", path, err)
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })()

	// A daemon that has hung up may have said why.
	if err := json.NewEncoder(c).Encode(r); err != nil && !errors.Is(err, syscall.EPIPE) {
		return fmt.Errorf("control socket %s: %w", path, err)
	}
	answered := false
	for dec := json.NewDecoder(c); ; {
		var reply Reply
		err := dec.Decode(&reply)
		// The latter is of a daemon that ended before it had read the request.
		ended := err == io.EOF || errors.Is(err, syscall.ECONNRESET)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case ended && answered:
			return nil
		case ended:
			return fmt.Errorf("control socket %s: %w", path, ErrNoAnswer)
		case err != nil:
			return fmt.Errorf("control socket %s: %w", path, err)
		case reply.Error != "":
			return errors.New(reply.Error)
		}
		answered = answered || reply.Status != nil || reply.Done != nil
		if err := each(reply); err != nil {
			return err
		}
	}
}

// dial waits where the socket's queue is full, as connect itself does only on a
// socket that blocks.
func dial(ctx context.Context, path string) (net.Conn, error) {
	var d net.Dialer
	for {
		c, err := d.DialContext(ctx, "unix", path)
		if !errors.Is(err, syscall.EAGAIN) {
			return c, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
}
