// Package logging owns how log lines look, how often one may repeat itself, and
// where they wait for whoever reads them. It knows log/slog and whom standard
// error is connected to, and nothing of what is logged.
package logging

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode"
)

// New makes a logger of what is of the given level or above: in JSON, or as text
// that the journal takes apart if w leads there and that people read if not. The
// lines get to w through the queue, which the caller closes.
func New(w io.Writer, level slog.Leveler, json bool) (*slog.Logger, *Queue) {
	journal := toJournal(w, os.Getenv("JOURNAL_STREAM"))
	format := func(w io.Writer, level slog.Leveler) *slog.Logger {
		if json {
			return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level}))
		}
		return slog.New(newHandler(w, level, journal))
	}
	// A loss is told whatever the level: of what is logged something is missing.
	q := newQueue(w, func(w io.Writer) *slog.Logger { return format(w, slog.LevelWarn) })
	return format(q, level), q
}

// toJournal tells whether w is the stream that systemd made for the journal and
// named by device and inode (systemd.exec(5), JOURNAL_STREAM).
func toJournal(w io.Writer, stream string) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	if err != nil {
		return false
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && stream == fmt.Sprintf("%d:%d", stat.Dev, stat.Ino)
}

// handler writes a record as one line: "time LEVEL message key=value ..." or, for
// the journal, which keeps times itself, "<priority>message key=value ...".
type handler struct {
	out   *output
	attrs slog.Handler // writes only the key=value part, into out.line
}

// output is what a handler and those made from it share.
type output struct {
	mu      sync.Mutex
	w       io.Writer
	line    bytes.Buffer
	journal bool
}

func newHandler(w io.Writer, level slog.Leveler, journal bool) *handler {
	out := &output{w: w, journal: journal}
	return &handler{out, slog.NewTextHandler(&out.line, &slog.HandlerOptions{Level: level, ReplaceAttr: dropBlank})}
}

// blank is the level of a record of which only the attributes are to be written.
const blank = slog.Level(math.MinInt)

// dropBlank leaves out the level and the message of a blank record. Its time
// is zero, which leaves it out already.
func dropBlank(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 && (a.Key == slog.LevelKey && a.Value.Any() == blank || a.Key == slog.MessageKey && a.Value.Any() == "") {
		return slog.Attr{}
	}
	return a
}

func (h *handler) Enabled(ctx context.Context, l slog.Level) bool { return h.attrs.Enabled(ctx, l) }

func (h *handler) WithAttrs(as []slog.Attr) slog.Handler {
	return &handler{h.out, h.attrs.WithAttrs(as)}
}

func (h *handler) WithGroup(name string) slog.Handler {
	return &handler{h.out, h.attrs.WithGroup(name)}
}

func (h *handler) Handle(ctx context.Context, r slog.Record) error {
	h.out.mu.Lock()
	defer h.out.mu.Unlock()
	line := &h.out.line
	line.Reset()
	if h.out.journal {
		fmt.Fprintf(line, "<%d>", priority(r.Level))
	} else {
		line.Write(r.Time.AppendFormat(line.AvailableBuffer(), "2006-01-02T15:04:05.000Z07:00 "))
		fmt.Fprintf(line, "%-5s ", r.Level)
	}
	line.WriteString(oneLine(r.Message))

	line.WriteByte(' ')
	attrs := slog.NewRecord(time.Time{}, blank, "", 0)
	r.Attrs(func(a slog.Attr) bool { attrs.AddAttrs(a); return true })
	if err := h.attrs.Handle(ctx, attrs); err != nil {
		return err
	}
	_, err := h.out.w.Write(append(bytes.TrimRight(line.Bytes(), " \n"), '\n'))
	return err
}

// priority is syslog's number of a level.
func priority(l slog.Level) int {
	switch {
	case l >= slog.LevelError:
		return 3
	case l >= slog.LevelWarn:
		return 4
	case l >= slog.LevelInfo:
		return 6
	}
	return 7
}

// oneLine keeps a message from making lines, or the screen, of its own.
func oneLine(s string) string {
	if strings.ContainsFunc(s, unicode.IsControl) {
		return strconv.Quote(s)
	}
	return s
}
