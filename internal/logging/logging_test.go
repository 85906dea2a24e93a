package logging

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
)

func TestALineIsTimeLevelMessageAndAttributes(t *testing.T) {
	var buf bytes.Buffer
	log := slog.New(newHandler(&buf, slog.LevelInfo, false))
	log.Warn("datagram refused", "from", "[fe80::1%eth2]:6400", "err", errors.New("too short"))
	want := regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}(Z|[+-]\d\d:\d\d) WARN  datagram refused from=\[fe80::1%eth2\]:6400 err="too short"\n$`)
	if !want.MatchString(buf.String()) {
		t.Errorf("got %q", buf.String())
	}
}

func TestTheJournalGetsPrioritiesAndNoTimes(t *testing.T) {
	var buf bytes.Buffer
	log := slog.New(newHandler(&buf, slog.LevelDebug, true)).With("instance", "edge")
	log.Debug("a")
	log.Info("b", "n", 1)
	log.WithGroup("net").Warn("c", "in", "eth 2")
	log.Error("d", slog.Group("g", "level", 3, "msg", "x", "time", 7))
	want := "<7>a instance=edge\n" +
		"<6>b instance=edge n=1\n" +
		"<4>c instance=edge net.in=\"eth 2\"\n" +
		"<3>d instance=edge g.level=3 g.msg=x g.time=7\n"
	if buf.String() != want {
		t.Errorf("got\n%swant\n%s", buf.String(), want)
	}
}

func TestAttributesNamedLikeTheRecordsOwnPartsAreKept(t *testing.T) {
	var buf bytes.Buffer
	slog.New(newHandler(&buf, slog.LevelInfo, true)).Info("m", "level", slog.LevelWarn, "msg", "inner", "time", "noon", "list", []int{1})
	if want := "<6>m level=WARN msg=inner time=noon list=[1]\n"; buf.String() != want {
		t.Errorf("got %q, want %q", buf.String(), want)
	}
}

func TestARecordIsOneLineWhateverItSays(t *testing.T) {
	var buf bytes.Buffer
	log := slog.New(newHandler(&buf, slog.LevelInfo, true))
	log.Info("first\n<0>forged\x1b[2J", "key", "a\nb\r\x00")
	log.Info("bare")
	want := `<6>"first\n<0>forged\x1b[2J" key="a\nb\r\x00"` + "\n<6>bare\n"
	if buf.String() != want {
		t.Errorf("got %q, want %q", buf.String(), want)
	}
}

func TestWhatLiesUnderTheLevelIsNotLogged(t *testing.T) {
	var buf bytes.Buffer
	log := slog.New(newHandler(&buf, slog.LevelWarn, true)).With("a", 1)
	log.Info("no")
	log.Warn("yes")
	if want := "<4>yes a=1\n"; buf.String() != want {
		t.Errorf("got %q, want %q", buf.String(), want)
	}
}

func TestTheJournalIsRecognisedByItsInode(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "stream"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var stat syscall.Stat_t
	if err := syscall.Fstat(int(f.Fd()), &stat); err != nil {
		t.Fatal(err)
	}
	for stream, want := range map[string]bool{
		fmt.Sprintf("%d:%d", stat.Dev, stat.Ino):   true,
		fmt.Sprintf("%d:%d", stat.Dev, stat.Ino+1): false,
		fmt.Sprintf("%d:%d", stat.Dev+1, stat.Ino): false,
		"": false, ":": false, "x": false,
	} {
		if got := toJournal(f, stream); got != want {
			t.Errorf("JOURNAL_STREAM=%q: %t, want %t", stream, got, want)
		}
		t.Setenv("JOURNAL_STREAM", stream)
		if err := f.Truncate(0); err != nil {
			t.Fatal(err)
		}
		if _, err := f.Seek(0, 0); err != nil {
			t.Fatal(err)
		}
		log, q := New(f, slog.LevelInfo, false)
		log.Info("hello")
		if err := q.Close(); err != nil {
			t.Fatal(err)
		}
		line, err := os.ReadFile(f.Name())
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.HasPrefix(string(line), "<6>hello"); got != want {
			t.Errorf("JOURNAL_STREAM=%q: %q", stream, line)
		}
	}
}

func TestJSONIsGivenOnRequest(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	log, q := New(f, slog.LevelInfo, true)
	log.Info("hello", "n", 1)
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
	line, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(line), `"level":"INFO","msg":"hello","n":1}`) {
		t.Errorf("got %s", line)
	}
}

func TestLinesOfSeveralGoroutinesStayWhole(t *testing.T) {
	var buf bytes.Buffer
	log := slog.New(newHandler(&buf, slog.LevelInfo, true))
	var wg sync.WaitGroup
	for i := range 4 {
		log := log.With("i", i)
		wg.Go(func() {
			for range 100 {
				log.Info("line")
			}
		})
	}
	wg.Wait()
	lines := strings.Split(strings.TrimSuffix(buf.String(), "\n"), "\n")
	if len(lines) != 400 {
		t.Fatalf("%d lines, want 400", len(lines))
	}
	whole := regexp.MustCompile(`^<6>line i=[0-3]$`)
	for _, l := range lines {
		if !whole.MatchString(l) {
			t.Fatalf("torn line %q", l)
		}
	}
}
