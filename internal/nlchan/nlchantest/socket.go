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
	overrun  bool
	closed   bool
	deadline time.Time
	timer    *time.Timer
}

// Socket is nlchan.Host's.
func (k *Kernel) Socket() (nlchan.Socket, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := &socket{k: k, changed: sync.NewCond(&k.mu), groups: make(map[uint32]bool)}
	k.sockets[s] = true
	return s, nil
}

func (s *socket) deliver(msg []byte) {
	s.queue = append(s.queue, msg)
	s.changed.Broadcast()
}

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
	copy(b, msg)
	return len(msg), nil
}

func (s *socket) Join(group uint32) error {
	s.k.mu.Lock()
	defer s.k.mu.Unlock()
	s.groups[group] = true
	return nil
}

func (s *socket) SetReadBuffer(bytes int) (int, error) { return 2 * bytes, nil }

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
