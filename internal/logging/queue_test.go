package logging

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// await waits until a state is reached.
func await(t *testing.T, what string, reached func() bool) {
	t.Helper()
	for limit := time.Now().Add(30 * time.Second); !reached(); time.Sleep(time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatalf("not within 30 s: %s", what)
		}
	}
}

// pipe is a pipe whose writing end blocks the thread that writes, as standard
// error does.
func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	r, w = os.NewFile(uintptr(fds[0]), "reader"), os.NewFile(uintptr(fds[1]), "writer")
	t.Cleanup(func() { r.Close(); w.Close() })
	return r, w
}

// numbered logs lines with the numbers from, from+1, ... up to but for to.
func numbered(log *slog.Logger, from, to int) {
	for n := from; n < to; n++ {
		log.Warn("line", "n", n, "padding", strings.Repeat("x", 50))
	}
}

var (
	numberedLine = regexp.MustCompile(`^(<4>line n=|\{"time":"[^"]+","level":"WARN","msg":"line","n":)(\d+)[ ,]"?padding"?[=:]"?x{50}"?\}?\n$`)
	lossLine     = regexp.MustCompile(`^(<4>log lines were lost lines=|\{"time":"[^"]+","level":"WARN","msg":"log lines were lost","lines":)(\d+)[ ,].*\n$`)
)

// match is the number in a line of that kind; ok is false if it is of another.
func match(kind *regexp.Regexp, line string) (n int, ok bool) {
	m := kind.FindStringSubmatch(line)
	if m == nil {
		return 0, false
	}
	n, err := strconv.Atoi(m[2])
	return n, err == nil
}

// testLogger logs to w as New's does, where w leads to the journal or in JSON.
func testLogger(t *testing.T, w io.Writer, json bool) (*slog.Logger, *Queue) {
	t.Helper()
	if f, ok := w.(*os.File); ok {
		var stat unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &stat); err != nil {
			t.Fatal(err)
		}
		t.Setenv("JOURNAL_STREAM", fmt.Sprintf("%d:%d", stat.Dev, stat.Ino))
	}
	return New(w, slog.LevelInfo, json)
}

func TestNobodyWaitsForALogThatIsNotReadAndTheLossIsToldWhereItHappened(t *testing.T) {
	for _, json := range []bool{false, true} {
		t.Run(fmt.Sprintf("json=%t", json), func(t *testing.T) {
			const total = 20_000 // more than pipe and queue hold
			r, w := pipe(t)
			log, q := testLogger(t, w, json)
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			numbered(log, 0, total)
			runtime.GC()
			runtime.ReadMemStats(&after)
			if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 4*queueSize {
				t.Errorf("the heap has grown by %d bytes, want at most %d", grown, 4*queueSize)
			}
			c := q.Counts()
			if c.Waiting == 0 || c.Dropped == 0 {
				t.Fatalf("%+v", c)
			}

			in := bufio.NewReader(r)
			next := func() string {
				t.Helper()
				line, err := in.ReadString('\n')
				if err != nil {
					t.Fatal(err)
				}
				return line
			}
			told := 0 // more than once, if the pipe took some in meanwhile
			for n := 0; n < total; {
				line := next()
				if lost, ok := match(lossLine, line); ok {
					told += lost
					n += lost
				} else if got, ok := match(numberedLine, line); ok && got == n {
					n++
				} else {
					t.Fatalf("line %d is %q", n, line)
				}
			}
			if told != int(c.Dropped) {
				t.Fatalf("%d lines are lost, but it says %d", c.Dropped, told)
			}
			numbered(log, total, total+1)
			if got, ok := match(numberedLine, next()); !ok || got != total {
				t.Fatalf("the next line is %d", got)
			}
			if err := q.Close(); err != nil {
				t.Error(err)
			}
			if c := q.Counts(); c.Waiting != 0 {
				t.Errorf("%d lines wait for ever", c.Waiting)
			}
		})
	}
}

func TestCloseGivesUpAStuckStream(t *testing.T) {
	r, w := pipe(t)
	log, q := testLogger(t, w, false)
	numbered(log, 0, 2_000)
	if err := q.Close(); !errors.Is(err, errUnread) {
		t.Errorf("got %v", err)
	}
	// What waited is not lost as long as the process lives.
	go io.Copy(io.Discard, r)
	<-q.done
	if c := q.Counts(); c != (QueueCounts{}) {
		t.Errorf("%+v", c)
	}
}

func TestLinesAppearWithoutBeingAskedForAndCloseWaitsForTheLast(t *testing.T) {
	r, w := pipe(t)
	log, q := testLogger(t, w, false)
	in := bufio.NewReader(r)
	for n := range 10 {
		numbered(log, n, n+1)
		line, err := in.ReadString('\n')
		if got, ok := match(numberedLine, line); err != nil || !ok || got != n {
			t.Fatalf("%q, %v", line, err)
		}
	}
	numbered(log, 10, 110) // fits the pipe
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	rest, err := io.ReadAll(in)
	if n := lines(rest); err != nil || n != 100 {
		t.Errorf("%d lines, %v", n, err)
	}
	numbered(log, 110, 111)
	if c := q.Counts(); c.Dropped != 1 {
		t.Errorf("a line that came too late is not counted: %+v", c)
	}
}

func TestAStreamThatAnotherProcessMadeNonBlockingLosesNothing(t *testing.T) {
	r, w := pipe(t)
	if err := unix.SetNonblock(int(w.Fd()), true); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(make([]byte, 1<<20)); !errors.Is(err, syscall.EAGAIN) {
		t.Fatalf("the full pipe says %v", err) // as such a standard error does
	}
	log, q := testLogger(t, w, false)
	numbered(log, 0, 1_000)
	in := bufio.NewReader(r)
	for n := range 1_000 {
		line, err := in.ReadString('\n')
		if n == 0 {
			line = strings.TrimLeft(line, "\x00")
		}
		if got, ok := match(numberedLine, line); err != nil || !ok || got != n {
			t.Fatalf("line %d is %q, %v", n, line, err)
		}
	}
	if err := q.Close(); err != nil || q.Counts().Dropped != 0 {
		t.Errorf("%v, %+v", err, q.Counts())
	}
}

// disk takes so many bytes, and fails when it is full.
type disk struct {
	mu   sync.Mutex
	room int
	buf  bytes.Buffer
}

func (d *disk) Write(b []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := min(len(b), d.room)
	d.room -= n
	d.buf.Write(b[:n])
	if n < len(b) {
		return n, syscall.ENOSPC
	}
	return n, nil
}

func TestALogThatCannotBeWrittenGoesOnWhenItCanAndSaysWhyItHasAGap(t *testing.T) {
	const whole = "<4>line n=0 padding=xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\n"
	for name, tt := range map[string]struct {
		room int
		want string
	}{
		"between two lines": {len(whole), whole},
		"within a line":     {len(whole) + 9, whole + "<4>line n\n"},
		"from the start":    {0, ""},
	} {
		t.Run(name, func(t *testing.T) {
			d := &disk{room: tt.room}
			q := newQueue(d, func(w io.Writer) *slog.Logger { return slog.New(newHandler(w, slog.LevelWarn, true)) })
			log := slog.New(newHandler(q, slog.LevelInfo, true))
			for n := range 5 {
				numbered(log, n, n+1)
				await(t, "the line was tried", func() bool { return q.Counts().Waiting == 0 })
			}
			lost := 5 - strings.Count(tt.want, whole)
			if c := q.Counts(); c.Dropped != uint64(lost) {
				t.Errorf("%d dropped, want %d", c.Dropped, lost)
			}
			d.mu.Lock()
			d.room = 1 << 20
			d.mu.Unlock()
			numbered(log, 0, 1)
			if err := q.Close(); err != nil {
				t.Fatal(err)
			}
			want := fmt.Sprintf("%s<4>log lines were lost lines=%d err=\"no space left on device\"\n%s", tt.want, lost, whole)
			if d.buf.String() != want {
				t.Errorf("got\n%swant\n%s", d.buf.String(), want)
			}
		})
	}
}

func TestALineLongerThanTheQueueIsLostAndNoOther(t *testing.T) {
	var buf bytes.Buffer
	q := newQueue(&buf, func(w io.Writer) *slog.Logger { return slog.New(newHandler(w, slog.LevelWarn, true)) })
	log := slog.New(newHandler(q, slog.LevelInfo, true))
	log.Info("before")
	log.Info(strings.Repeat("x", queueSize))
	await(t, "the loss is taken up", func() bool { q.mu.Lock(); defer q.mu.Unlock(); return q.missed == 0 })
	log.Info(strings.Repeat("y", 2*pieceSize))
	log.Info("after")
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
	want := "<6>before\n<4>log lines were lost lines=1 err=\"they are not read as fast as they come\"\n<6>" +
		strings.Repeat("y", 2*pieceSize) + "\n<6>after\n"
	if buf.String() != want {
		t.Errorf("got %q", buf.String())
	}
}

// pieces notes what is written at once.
type pieces struct {
	gate chan struct{}
	got  [][]byte
}

func (p *pieces) Write(b []byte) (int, error) {
	<-p.gate
	p.got = append(p.got, bytes.Clone(b))
	return len(b), nil
}

func TestABacklogIsWrittenInPiecesThatAPipeKeepsWhole(t *testing.T) {
	p := &pieces{gate: make(chan struct{})}
	q := newQueue(p, func(w io.Writer) *slog.Logger { return slog.New(newHandler(w, slog.LevelWarn, true)) })
	numbered(slog.New(newHandler(q, slog.LevelInfo, true)), 0, 1_000)
	close(p.gate)
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
	var all []byte
	for _, b := range p.got {
		if len(b) > pieceSize || !bytes.HasSuffix(b, []byte("\n")) {
			t.Errorf("%d bytes that end in %q", len(b), b[len(b)-1])
		}
		all = append(all, b...)
	}
	if n := lines(all); n != 1_000 || len(p.got) > 100 {
		t.Errorf("%d lines in %d pieces", n, len(p.got))
	}
}

func TestAQueueMayBeSharedAndLosesNoCount(t *testing.T) {
	const each = 5_000
	var buf bytes.Buffer
	q := newQueue(&buf, func(w io.Writer) *slog.Logger { return slog.New(newHandler(w, slog.LevelWarn, true)) })
	log := slog.New(newHandler(q, slog.LevelInfo, true))
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() { numbered(log, 0, each) })
	}
	wg.Wait()
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
	told, lost := 0, 0
	for line := range strings.Lines(buf.String()) {
		if _, ok := match(numberedLine, line); ok {
			told++
		} else if n, ok := match(lossLine, line); ok {
			lost += n
		} else {
			t.Fatalf("torn line %q", line)
		}
	}
	if told+lost != 4*each || uint64(lost) != q.Counts().Dropped {
		t.Errorf("%d lines, %d told to be lost, %d counted, want %d in all", told, lost, q.Counts().Dropped, 4*each)
	}
}

func TestALineCostsTheQueueNoAllocation(t *testing.T) {
	q := newQueue(io.Discard, func(io.Writer) *slog.Logger { return slog.New(slog.DiscardHandler) })
	line := bytes.Repeat([]byte("x"), 99)
	line = append(line, '\n')
	for range 2 * queueSize / len(line) { // as much as may wait
		q.Write(line)
	}
	if n := testing.AllocsPerRun(10_000, func() { q.Write(line) }); n != 0 {
		t.Errorf("%v allocations a line", n)
	}
	if err := q.Close(); err != nil {
		t.Error(err)
	}
}
