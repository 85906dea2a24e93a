package nlchantest

import (
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"joold/internal/nlchan"
)

// socket is the model's end of a netlink socket. The kernel's lock guards it.
type socket struct {
	k        *Kernel
	changed  *sync.Cond
	groups   map[uint32]bool
	queue    [][]byte
	room     int  // bytes of the receive buffer that are free
	overrun  bool // ENOBUFS is due
	full     bool // nothing more is taken until the queue is empty
	drops    uint64
	closed   bool
	deadline time.Time
	timer    *time.Timer
}

// Socket is nlchan.Host's.
func (k *Kernel) Socket() (nlchan.Socket, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := &socket{k: k, changed: sync.NewCond(&k.mu), groups: make(map[uint32]bool), room: 208 << 10}
	k.sockets[s] = true
	return s, nil
}

// deliver queues a message, or loses it as netlink does: the first time that
// there is no room ENOBUFS is said, ahead of what waits; then all is lost until
// the queue is empty.
func (s *socket) deliver(msg []byte) {
	if s.full || s.room < 0 {
		s.lose()
		return
	}
	s.queue = append(s.queue, msg)
	s.room -= overhead + len(msg)
	s.changed.Broadcast()
}

func (s *socket) lose() {
	s.drops++
	if !s.full {
		s.overrun, s.full = true, len(s.queue) > 0
		s.changed.Broadcast()
	}
}

// overhead is what a message takes of the buffer besides its bytes, about.
const overhead = 512

func (s *socket) Send(b []byte) error {
	s.k.mu.Lock()
	defer s.k.mu.Unlock()
	if s.closed {
		return nlchan.ErrClosed
	}
	s.k.handle(s, b)
	return nil
}

func (s *socket) Receive(b []byte) (int, error) {
	s.k.mu.Lock()
	defer s.k.mu.Unlock()
	for {
		if n, err := s.take(b); n > 0 || err != nil {
			return n, err
		}
		if !s.deadline.IsZero() && !time.Now().Before(s.deadline) {
			return 0, os.ErrDeadlineExceeded
		}
		s.changed.Wait()
	}
}

func (s *socket) Poll(b []byte) (int, error) {
	s.k.mu.Lock()
	defer s.k.mu.Unlock()
	return s.take(b)
}

func (s *socket) take(b []byte) (int, error) {
	switch {
	case s.closed:
		return 0, nlchan.ErrClosed
	case s.overrun:
		s.overrun = false
		return 0, unix.ENOBUFS
	case len(s.queue) == 0:
		return 0, nil
	}
	msg := s.queue[0]
	s.queue = s.queue[1:]
	s.room += overhead + len(msg)
	s.full = s.full && len(s.queue) > 0
	copy(b, msg)
	return len(msg), nil
}

func (s *socket) Join(group uint32) error {
	s.k.mu.Lock()
	defer s.k.mu.Unlock()
	s.groups[group] = true
	return nil
}

func (s *socket) SetReadBuffer(bytes int) (int, error) {
	s.k.mu.Lock()
	defer s.k.mu.Unlock()
	s.room = 2 * bytes
	for _, msg := range s.queue {
		s.room -= overhead + len(msg)
	}
	return 2 * bytes, nil
}

func (s *socket) Drops() uint64 {
	s.k.mu.Lock()
	defer s.k.mu.Unlock()
	return s.drops
}

func (s *socket) SetReadDeadline(t time.Time) error {
	s.k.mu.Lock()
	defer s.k.mu.Unlock()
	if s.timer != nil {
		s.timer.Stop()
		s.timer = nil
	}
	s.deadline = t
	if !t.IsZero() {
		s.timer = time.AfterFunc(time.Until(t), func() {
			s.k.mu.Lock()
			defer s.k.mu.Unlock()
			s.changed.Broadcast()
		})
	}
	s.changed.Broadcast()
	return nil
}

func (s *socket) Close() error {
	s.k.mu.Lock()
	defer s.k.mu.Unlock()
	s.closed = true
	delete(s.k.sockets, s)
	if s.timer != nil {
		s.timer.Stop()
	}
	s.changed.Broadcast()
	return nil
}
