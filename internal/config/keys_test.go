package config

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"joold/internal/wire"
)

func someKeys(t *testing.T) wire.Keys {
	t.Helper()
	k, err := wire.ParseKeys([]byte(wire.NewKey()))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestKeysAreReadWithTheSettingsAndReadAgainWithThem(t *testing.T) {
	first, second := wire.NewKey(), wire.NewKey()
	path := write(t, "keys", first)
	args := []string{"ff08::1", "--net.key-file", path, "--net.accept-unsigned", "192.0.2.1", "--net.accept-unsigned", "fe80::/64"}
	was, err := Parse(args)
	if err != nil {
		t.Fatal(err)
	}
	if len(was.Keys.Hints()) != 1 || !slices.Equal(was.Unsigned, prefixes("192.0.2.1/32", "fe80::/64")) || was.Encrypt || was.Warnings != nil {
		t.Errorf("%+v", was)
	}
	if err := os.WriteFile(path, []byte(second+"\n"+first+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	next, err := Parse(args)
	if err != nil {
		t.Fatal(err)
	}
	if live, fixed := was.Differ(next); len(live) != 1 || live[0] != "net.key-file" || fixed != nil {
		t.Errorf("%v and %v differ, want the keys", live, fixed)
	}
	if len(next.Keys.Hints()) != 2 || next.Keys.Hints()[1] != was.Keys.Hints()[0] {
		t.Errorf("%v", next.Keys.Hints())
	}
	if got := fmt.Sprintf("%+v %#v", next, next); strings.Contains(got, first) || strings.Contains(got, second) {
		t.Error("the keys are printed")
	}
}

func TestNobodyIsNamedByNoneOrAnEmptyList(t *testing.T) {
	for _, value := range []string{`"none"`, `[]`, `""`, `["none"]`} {
		path := write(t, "joold.json", `{"net.mcast.addr": "ff08::1", "net.accept-unsigned": `+value+`}`)
		if c, err := Parse([]string{"--config", path}); err != nil || c.Unsigned != nil {
			t.Errorf("%s: %v, %v", value, c, err)
		}
	}
}

func TestSettingsThatNeedAKeyAreRefusedWithoutOne(t *testing.T) {
	for line, want := range map[string]string{
		"--net.encrypt":                       "--net.encrypt: there is no key",
		"--net.accept-unsigned ::1":           "--net.accept-unsigned: everybody is heard",
		"--net.accept-unsigned ::1/129":       `--net.accept-unsigned "::1/129": want prefixes or addresses, as in 2001:db8:ff08::/96, or none`,
		"--net.accept-unsigned none,::1":      `--net.accept-unsigned "none,::1": "none": want prefixes`,
		"--net.key-file /nonexistent/keys":    "--net.key-file: open /nonexistent/keys: no such file or directory: `joold keygen` makes a key",
		"--net.key-file /dev/null":            "--net.key-file: /dev/null: not a regular file",
		"--net.key-file /" + longPath:         "want the path of a file",
		"--net.key-file= --net.encrypt=true":  "--net.encrypt: there is no key",
		"--net.key-file KEYS --net.encrypt=x": `--net.encrypt "x": want true or false`,
	} {
		_, err := Parse(append([]string{"ff08::1"}, strings.Fields(line)...))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60s: %v, want %q", line, err, want)
		}
	}
}

var longPath = strings.Repeat("k", unix.PathMax)

func TestToSealAndToHearCNodesIsOddAndIsSaid(t *testing.T) {
	c, err := Parse([]string{"ff08::1", "--net.key-file", write(t, "keys", wire.NewKey()), "--net.encrypt", "--net.accept-unsigned", "::1"})
	if err != nil || len(c.Warnings) != 1 {
		t.Errorf("%v, %+v", err, c)
	}
}

func TestAFileOfKeysThatIsNoneIsRefused(t *testing.T) {
	for content, want := range map[string]string{
		"":         ": no key: want one of 32 bytes",
		"\nsecret": ": line 2: want a key of 32 bytes",
		strings.Repeat("# comment\n", maxKeyFile/10+1): "longer than 65536 bytes",
	} {
		path := write(t, "keys", content)
		_, err := Parse([]string{"ff08::1", "--net.key-file", path})
		if err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "--net.key-file: "+path) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%.20q: %v, want %q", content, err, want)
		}
	}
}

func TestAFileOfKeysIsForNobodyElse(t *testing.T) {
	path := write(t, "keys", wire.NewKey())
	for mode, fits := range map[os.FileMode]bool{
		0o600: true, 0o400: true, 0o700: true,
		0o640: false, 0o620: false, 0o610: false, 0o604: false, 0o602: false, 0o666: false, 0o440: false,
	} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		_, err := Parse([]string{"ff08::1", "--net.key-file", path})
		if (err == nil) != fits || err != nil && !strings.Contains(err.Error(), fmt.Sprintf("mode %#o: others than its owner may read or change it: `chmod 600`", mode)) {
			t.Errorf("%#o: %v", mode, err)
		}
	}
	if _, err := Parse([]string{"ff08::1", "--net.key-file", filepath.Dir(path)}); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("a directory: %v", err)
	}
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Parse([]string{"ff08::1", "--net.key-file", pipe}); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("a pipe: %v", err)
	}
}

// rule is an entry of an access control list.
type rule struct {
	tag, grants uint16
	id          uint32
}

func acl(rules ...rule) []byte {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for _, r := range rules {
		b = binary.LittleEndian.AppendUint16(b, r.tag)
		b = binary.LittleEndian.AppendUint16(b, r.grants)
		b = binary.LittleEndian.AppendUint32(b, r.id)
	}
	return b
}

func TestTheOwnerOfKeysIsRootOrTheDaemonsUserAndAListMayNameThese(t *testing.T) {
	const self, other, nobody = 990, 1000, ^uint32(0)
	// As systemd makes it for a service with User= (LoadCredential=).
	credential := func(grants uint16, user uint32, group uint16) []byte {
		return acl(rule{1, 4, nobody}, rule{2, grants, user}, rule{4, group, nobody}, rule{0x10, 4, nobody}, rule{0x20, 0, nobody})
	}
	for name, c := range map[string]struct {
		owner uint32
		mode  uint32
		acl   []byte
		want  string // "" if it fits
	}{
		"root's":                        {0, unix.S_IFREG | 0o600, nil, ""},
		"its own":                       {self, unix.S_IFREG | 0o600, nil, ""},
		"another's":                     {other, unix.S_IFREG | 0o600, nil, "user 1000 owns it"},
		"a credential":                  {0, unix.S_IFREG | 0o440, credential(4, self, 0), ""},
		"a list that root is on":        {0, unix.S_IFREG | 0o440, credential(6, 0, 0), ""},
		"a list that another is on":     {0, unix.S_IFREG | 0o440, credential(4, other, 0), "mode 0440"},
		"a list that names it in vain":  {0, unix.S_IFREG | 0o440, credential(0, other, 0), ""},
		"a list for the group":          {0, unix.S_IFREG | 0o440, credential(4, self, 4), "mode 0440"},
		"a list for another group":      {0, unix.S_IFREG | 0o440, acl(rule{8, 4, 4}), "mode 0440"},
		"a list for everybody":          {0, unix.S_IFREG | 0o444, credential(4, self, 0), "mode 0444"},
		"a list cut short":              {0, unix.S_IFREG | 0o440, credential(4, self, 0)[:17], "mode 0440"},
		"a list of another version":     {0, unix.S_IFREG | 0o440, append([]byte{3}, credential(4, self, 0)[1:]...), "mode 0440"},
		"readable by the group":         {0, unix.S_IFREG | 0o640, nil, "mode 0640"},
		"a socket":                      {0, unix.S_IFSOCK | 0o600, nil, "not a regular file"},
		"another's and readable by all": {other, unix.S_IFREG | 0o644, nil, "user 1000 owns it"},
	} {
		err := checkSecret(&unix.Stat_t{Uid: c.owner, Mode: c.mode}, c.acl, self)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func FuzzGrantsOnly(f *testing.F) {
	f.Add(acl(rule{1, 4, 0}, rule{2, 4, 7}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if grantsOnly(b, 7) && len(b)%8 != 4 {
			t.Errorf("%x is a list", b)
		}
	})
}
