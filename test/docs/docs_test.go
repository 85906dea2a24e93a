// Package docs holds the documents against what they speak of.
package docs

import (
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"joold/internal/session"
)

const root = "../.."

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, path))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestTheProtocolsExamplesAreTheSessionThatTheySayTheyAre(t *testing.T) {
	pool6, err := session.NewPool6(netip.MustParsePrefix("64:ff9b::/96"))
	if err != nil {
		t.Fatal(err)
	}
	want := session.Session{
		Src6: netip.MustParseAddr("2001:db8::8").As16(), Src6Port: 37878,
		Src4: [4]byte{192, 0, 2, 1}, Src4Port: 62805,
		Dst4: [4]byte{192, 0, 2, 8}, Dst4Port: 1234,
		Proto: session.TCP, State: session.V4FinRcv, Timer: session.TimerEst, Expiration: 7_198_232,
	}
	examples := regexp.MustCompile("(?s)```hex\n(.*?)```").FindAllStringSubmatch(read(t, "docs/PROTOCOL.md"), -1)
	seen := make(map[session.Encoding]bool)
	for _, example := range examples {
		b, err := hex.DecodeString(strings.Join(strings.Fields(example[1]), ""))
		if err != nil {
			t.Fatalf("%v in\n%s", err, example[1])
		}
		got, r := session.Decode(nil, b, pool6)
		if len(got) != 1 || got[0] != want {
			t.Errorf("got %+v (%+v) from\n%s", got, r, example[1])
		}
		if bigEndian := binary.NativeEndian.Uint16([]byte{0, 1}) == 1; r.Swapped != bigEndian {
			t.Errorf("not as a little-endian machine writes it:\n%s", example[1])
		}
		seen[r.Encoding] = true
	}
	for _, e := range session.Encodings {
		if !seen[e] {
			t.Errorf("no example of encoding %s", e)
		}
	}
}

func TestLinksBetweenTheDocumentsLeadSomewhere(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#]+)`)
	links := 0
	for _, pattern := range []string{"*.md", "docs/*.md", "contrib/*/*.md", "test/*/*.md"} {
		paths, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range link.FindAllStringSubmatch(string(b), -1) {
				if strings.Contains(m[1], "://") {
					continue
				}
				links++
				if _, err := os.Stat(filepath.Join(filepath.Dir(path), m[1])); err != nil {
					t.Errorf("%s: %v", path, err)
				}
			}
		}
	}
	if links == 0 {
		t.Error("no links found")
	}
}

func TestTheMakeTargetsThatAreSpokenOfExist(t *testing.T) {
	makefile := read(t, "Makefile")
	spoken := regexp.MustCompile("(?m)(?:^    |`)(?:sudo )?make ([a-z-]+)")
	for _, path := range []string{"README.md", "docs/ARCHITECTURE.md", "docs/OPERATIONS.md", "docs/PROTOCOL.md"} {
		for _, m := range spoken.FindAllStringSubmatch(read(t, path), -1) {
			if !strings.Contains(makefile, "\n"+m[1]+":") {
				t.Errorf("%s: make %s: there is no such target", path, m[1])
			}
		}
	}
}
