package logging

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// queueSize bounds the lines that wait to be written, in bytes. As many may
	// be about to be written.
	queueSize = 256 << 10

	// pieceSize is how much a pipe takes at once without letting others' bytes in
	// between: PIPE_BUF, pipe(7).
	pieceSize = 4096

	// closeTime bounds the wait for the last lines to be written. With what else
	// is done at the end, it is to stay under a second.
	closeTime = 300 * time.Millisecond
)

// errUnread is why lines are lost that found no room.
var errUnread = errors.New("they are not read as fast as they come")

// Queue stands between a logger and a stream that may take no more, as a pipe
// whose reader hangs: whoever logs never waits for it, since locks may be held.
// Lines are written at once and in order by one goroutine. Those that find no
// room, or cannot be written, are counted, and the log itself says how many were
// lost as soon as it can. What is logged just before a crash may be missing. It may
// be used by several goroutines at once.
type Queue struct {
	w    io.Writer
	done chan struct{} // closed when the last line was written

	mu      sync.Mutex
	filled  sync.Cond
	waiting []byte // whole lines
	missed  uint64 // lines after them that found no room
	closed  bool
	counts  QueueCounts

	// The writing goroutine's own.
	writing []byte
	loss    *slog.Logger // formats into said
	said    bytes.Buffer
	lost    uint64 // lines, not told of yet
	why     error  // they were lost
	torn    bool   // the last line lacks its end
}

// QueueCounts are in lines.
type QueueCounts struct {
	Waiting int    // not written yet
	Dropped uint64 // lost since the start
}

// newQueue makes a queue of lines for w. One that tells of a loss looks as
// format has it.
func newQueue(w io.Writer, format func(io.Writer) *slog.Logger) *Queue {
	q := &Queue{w: w, done: make(chan struct{})}
	q.filled.L = &q.mu
	q.loss = format(&q.said)
	go q.run()
	return q
}

// Write leaves a line, or several, each with its end, to be written. It never
// fails.
func (q *Queue) Write(line []byte) (int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := lines(line)
	// Once one is missed, those after it are, until that is told.
	if q.closed || q.missed > 0 || len(q.waiting)+len(line) > queueSize {
		q.missed += n
		q.counts.Dropped += n
	} else {
		q.waiting = append(q.waiting, line...)
		q.counts.Waiting += int(n)
	}
	q.filled.Signal()
	return len(line), nil
}

// Close has the lines that wait written. It fails when that takes too long: then
// whatever else is written to the stream would wait as well. Lines that come
// later are lost.
func (q *Queue) Close() error {
	q.mu.Lock()
	q.closed = true
	q.filled.Signal()
	q.mu.Unlock()
	timer := time.NewTimer(closeTime)
	defer timer.Stop()
	select {
	case <-q.done:
		return nil
	case <-timer.C:
		return errUnread
	}
}

// Counts tells how many lines wait and how many were lost.
func (q *Queue) Counts() QueueCounts {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.counts
}

// run writes lines as they come until the queue is closed.
func (q *Queue) run() {
	defer close(q.done)
	for {
		missed, ok := q.take()
		if !ok {
			return
		}
		for left := q.writing; len(left) > 0; {
			n := piece(left)
			q.write(left[:n])
			left = left[n:]
		}
		if missed > 0 {
			q.lost, q.why = q.lost+missed, errUnread
			q.tell()
		}
	}
}

// take waits for lines, which are then in writing, and tells how many after them
// were missed; false when no more will come.
func (q *Queue) take() (missed uint64, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.waiting) == 0 && q.missed == 0 {
		if q.closed {
			return 0, false
		}
		q.filled.Wait()
	}
	q.waiting, q.writing = q.writing[:0], q.waiting
	missed, q.missed = q.missed, 0
	return missed, true
}

// piece is how much of b to write at once: whole lines.
func piece(b []byte) int {
	if len(b) <= pieceSize {
		return len(b)
	}
	if end := bytes.LastIndexByte(b[:pieceSize], '\n'); end >= 0 {
		return end + 1
	}
	if end := bytes.IndexByte(b, '\n'); end >= 0 {
		return end + 1
	}
	return len(b)
}

func lines(b []byte) uint64 { return uint64(bytes.Count(b, []byte{'\n'})) }

// write writes some lines. What is lost of them is not tried again: the next may
// do better, if only somebody makes room on a disk.
func (q *Queue) write(some []byte) {
	n, err := 0, q.tell()
	if err == nil {
		n, err = q.put(some)
	}
	lost := lines(some[n:])
	if err != nil {
		q.lost, q.why = q.lost+lost, err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.counts.Waiting -= int(lines(some))
	q.counts.Dropped += lost
}

// tell says how many lines were lost, if any were.
func (q *Queue) tell() error {
	if q.lost == 0 {
		return nil
	}
	q.said.Reset()
	if q.torn {
		q.said.WriteByte('\n')
	}
	q.loss.Warn("log lines were lost", "lines", q.lost, "err", q.why)
	_, err := q.put(q.said.Bytes())
	if err == nil {
		q.lost = 0
	}
	return err
}

// put writes b, which ends a line. Another process that has the stream may have
// made it non-blocking, which is waited out.
func (q *Queue) put(b []byte) (n int, err error) {
	for {
		some, err := q.w.Write(b[n:])
		if n += some; n > 0 {
			q.torn = b[n-1] != '\n'
		}
		if !errors.Is(err, syscall.EAGAIN) || !awaitRoom(q.w) {
			return n, err
		}
	}
}

// awaitRoom waits until w takes more; false where that cannot be done.
func awaitRoom(w io.Writer) bool {
	c, ok := w.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return false
	}
	var failure error
	err = raw.Control(func(fd uintptr) {
		_, failure = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, -1)
	})
	return err == nil && (failure == nil || failure == unix.EINTR)
}
