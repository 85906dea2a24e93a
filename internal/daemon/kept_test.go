package daemon

import (
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"joold/internal/session"
)

func TestARestartOfTheDaemonAloneLeavesItsNodeInSync(t *testing.T) {
	for _, c := range []struct {
		what   string
		change func(k *hookedKernel, path string)
		kept   bool
	}{
		{"nothing happens", func(*hookedKernel, string) {}, true},
		{"it goes on translating", func(k *hookedKernel, _ string) { k.stats.Translated += 1000 }, true},
		{"the instance is made anew", func(k *hookedKernel, _ string) { k.stats.Translated, k.stats.Sessions = 7, 3 }, false},
		{"its table is emptied", func(k *hookedKernel, _ string) { k.stats.Sessions = 2 }, false},
		{"it never translated", func(k *hookedKernel, path string) { replaceFile(path, []byte(`{"translated":0}`)) }, false},
		{"it takes long", func(*hookedKernel, string) { time.Sleep(keptFor) }, false},
		{"the note is garbage", func(_ *hookedKernel, path string) { replaceFile(path, []byte("garbage")) }, false},
		{"the note is a link", func(_ *hookedKernel, path string) {
			os.Rename(path, path+".real")
			os.Symlink(path+".real", path)
		}, false},
		{"the note is gone", func(_ *hookedKernel, path string) { os.Remove(path) }, false},
	} {
		t.Run(c.what, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "default.note")
			withNet(t, func(t *testing.T, e *ether) {
				noted := func(s *site) { s.notePath = path }
				e.startWith(t, nil, func(*hookedKernel) {}).state("gave up")
				j := e.startNoted(t, noted, func(k *hookedKernel) { k.stats.Translated, k.stats.Sessions = 500, 40 })
				j.state("synced")
				time.Sleep(20 * time.Second)
				j.stop()
				k := j.k
				k.set(func() { c.change(k, path) })
				next := newHookedKernel(k.module.Encoding)
				next.stats = k.stats
				again := e.startNoted(t, noted, func(k *hookedKernel) { k.stats = next.stats })
				for again.says() == nil {
					time.Sleep(time.Millisecond)
				}
				if s := again.says(); (s.State == "synced") != c.kept {
					t.Errorf("it is %s: %s", s.State, s.Why)
				}
				again.state("synced")
				if again.says().CopiesTaken == 0 {
					time.Sleep(5 * time.Second)
				}
				if again.says().CopiesTaken == 0 {
					t.Error("what was said meanwhile is not fetched")
				}
			})
		})
	}
}

func TestAnInstanceThatGoesAwayTakesItsNoteWithIt(t *testing.T) {
	path := filepath.Join(t.TempDir(), "default.note")
	synctest.Test(t, func(t *testing.T) {
		os.WriteFile(path, []byte("{}"), 0o600)
		k := newHookedKernel(session.Enc4113)
		b := bench0(t, testConfig(), 0)
		b.notePath = path
		b.dial = func() (kernel, error) { return k, nil }
		b.run()
		time.Sleep(2 * time.Second)
		if _, err := os.Stat(path); err == nil {
			t.Error("a node that is not in sync leaves a note")
		}
	})
}

func FuzzNote(f *testing.F) {
	f.Add([]byte(`{"written":"2026-01-02T03:04:05Z","translated":500,"sessions":40}`))
	f.Add([]byte(`{"written":null,"translated":-1}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		n, ok := parseNote(b)
		now := n.Written.Add(time.Second)
		if ok && n.fits(n.Translated, n.Sessions, now) != (n.Translated > 0) || n.fits(n.Translated, n.Sessions, now.Add(keptFor)) {
			t.Errorf("%q: %+v", b, n)
		}
	})
}
