package config

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"joold/internal/batch"
	"joold/internal/session"
)

// with is the default configuration, changed.
func with(change func(*Config)) *Config {
	c := defaults()
	change(c)
	return c
}

func prefixes(texts ...string) (ps []netip.Prefix) {
	for _, p := range texts {
		ps = append(ps, netip.MustParsePrefix(p))
	}
	return ps
}

// write makes a file of settings and returns its path.
func write(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestTheTutorialsCommandLineIsUnderstood(t *testing.T) {
	got, err := Parse(strings.Fields("-i default --net.mcast.addr ff08::db8:64:64 --net.mcast.port 6464 --net.dev.in eth2 --net.dev.out eth2"))
	if err != nil {
		t.Fatal(err)
	}
	want := &Config{
		Instance: "default", Group: "ff08::db8:64:64", Port: 6464, In: "eth2", Out: "eth2", TTL: 1, ReuseAddr: true,
		ReadBuffer: 8388608, FlushDeadline: 20 * time.Millisecond, Capacity: 16384, StatsAddr: "::", StatsPort: 6401,
		BatchDeadline: 10 * time.Millisecond, Pending: 65536, Table: 1000000,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestFlagsAreSpeltAsInC(t *testing.T) {
	group := with(func(c *Config) { c.Group = "ff08::1" })
	tests := map[string]*Config{
		"ff08::1":                  group,
		"--net.mcast.addr=ff08::1": group,
		"--net.mcast.addr ff08::1": group,
		"ff08::1 -p 7000":          with(func(c *Config) { c.Group, c.Port = "ff08::1", 7000 }),
		"-p7000 ff08::1":           with(func(c *Config) { c.Group, c.Port = "ff08::1", 7000 }),
		"-p domain ff08::1":        with(func(c *Config) { c.Group, c.Port = "ff08::1", 53 }),
		"-i edge -o 192.0.2.1 -t 0 233.252.0.64 --net.dev.in=192.0.2.1": with(func(c *Config) {
			c.Instance, c.Group, c.In, c.Out, c.TTL = "edge", "233.252.0.64", "192.0.2.1", "192.0.2.1", 0
		}),
		"ff02::1:2%eth2":                with(func(c *Config) { c.Group = "ff02::1:2%eth2" }),
		"--net.mcast.addr sync.example": with(func(c *Config) { c.Group = "sync.example" }),
		"ff08::1 --stats.port 6401":     with(func(c *Config) { c.Group, c.Stats = "ff08::1", true }),
		"ff08::1 --stats.address ::1": with(func(c *Config) {
			c.Group, c.Stats, c.StatsAddr = "ff08::1", true, "::1"
		}),
		"ff08::1 --net.wire 4.1.11":    with(func(c *Config) { c.Group, c.Wire = "ff08::1", session.Enc4111 }),
		"ff08::1 --net.wire module":    group,
		"ff08::1 --net.cluster edge-1": with(func(c *Config) { c.Group, c.Cluster = "ff08::1", "edge-1" }),
		"ff08::1 --net.cluster=":       group,
		"ff08::1 --batch.deadline 2ms --log.format json --log.level debug --control.socket /tmp/s": with(func(c *Config) {
			c.Group, c.BatchDeadline, c.LogJSON, c.LogLevel, c.ControlSocket = "ff08::1", 2*time.Millisecond, true, slog.LevelDebug, "/tmp/s"
		}),
		"-t 7 -t 9 ff08::1": with(func(c *Config) { c.Group, c.TTL = "ff08::1", 9 }),
		"ff08::1 --mod.flush-deadline 1m --mod.capacity 1 --mod.enable": with(func(c *Config) {
			c.Group, c.FlushDeadline, c.Capacity, c.Enable = "ff08::1", time.Minute, 1, true
		}),
		"ff08::1 --mod.flush-deadline keep --mod.capacity keep --mod.enable=false": with(func(c *Config) {
			c.Group, c.FlushDeadline, c.Capacity = "ff08::1", 0, 0
		}),
		"ff08::1 --net.rcvbuf 4096 --net.hop-limit 255": with(func(c *Config) {
			c.Group, c.ReadBuffer, c.HopLimit = "ff08::1", 4096, 255
		}),
		"ff08::1 --batch.table 8000000 --batch.capacity 1 --batch.refresh 60s": with(func(c *Config) {
			c.Group, c.Table, c.Pending, c.Refresh = "ff08::1", 8_000_000, 1, time.Minute
		}),
		"ff08::1 --net.source 2001:db8:ff08::4/96 --net.source=192.0.2.1": with(func(c *Config) {
			c.Group, c.Sources = "ff08::1", prefixes("192.0.2.1/32", "2001:db8:ff08::/96")
		}),
		"ff08::1 --net.source ::ffff:192.0.2.1/120,fe80::1,::ffff:192.0.2.1": with(func(c *Config) {
			c.Group, c.Sources = "ff08::1", prefixes("192.0.2.0/24", "fe80::1/128")
		}),
		"ff08::1 --net.source any": group,
	}
	for line, want := range tests {
		got, err := Parse(strings.Fields(line))
		if err != nil {
			t.Errorf("%s: %v", line, err)
		} else if !reflect.DeepEqual(got, want) {
			t.Errorf("%s:\ngot  %+v\nwant %+v", line, got, want)
		}
	}
}

func TestAMistakeOnTheCommandLineIsOneLineThatNamesIt(t *testing.T) {
	tests := []struct{ line, want string }{
		{"", "no multicast group: name one as in `joold ff08::db8:64:64`, by --net.mcast.addr, or in a file (see `joold help`); or nodes by --net.peer"},
		{"--net.mcast.adr ff08::1", "unknown flag --net.mcast.adr; the nearest is --net.mcast.addr"},
		{"--net.mcast.address ff08::1", "unknown flag --net.mcast.address; the nearest is --net.mcast.addr"},
		{"-x ff08::1", "unknown flag -x"},
		{"ff08::1 --net.ttl", "--net.ttl needs a value: N"},
		{"ff08::1 -t", "--net.ttl needs a value: N"},
		{"ff08::1 --net.ttl 256", `--net.ttl "256": want a whole number from 0 to 255`},
		{"ff08::1 -t -1", `--net.ttl "-1": want a whole number from 0 to 255`},
		{"ff08::1 -p 65536", `--net.mcast.port "65536": want a port from 1 to 65535 or the name of a UDP service (/etc/services)`},
		{"ff08::1 -p 0", `--net.mcast.port "0": want a port from 1 to 65535 or the name of a UDP service (/etc/services)`},
		{"ff08::1 -p no-such", `--net.mcast.port "no-such": want a port from 1 to 65535 or the name of a UDP service (/etc/services)`},
		{"ff08::1 -i sixteencharacter", `--instance "sixteencharacter": want 1 to 15 printable ASCII characters`},
		{"ff08::1 -i a\tb", `--instance "a\tb": want 1 to 15 printable ASCII characters`},
		{"ff08::1 -i é", `--instance "é": want 1 to 15 printable ASCII characters`},
		{"ff08::1 --net.dev.in eth0/1", `--net.dev.in "eth0/1": want the name of an interface, or one of its addresses`},
		{"ff08::1 -o interface-number-1", `--net.dev.out "interface-number-1": want the name of an interface, or one of its addresses`},
		{"ff08::1 --net.wire 4.1.14", `--net.wire "4.1.14": want module, 4.1.11, 4.1.12 or 4.1.13`},
		{"ff08::1 --batch.deadline 10", `--batch.deadline "10": want a time from 1ms to 1s`},
		{"ff08::1 --batch.deadline 2s", `--batch.deadline "2s": want a time from 1ms to 1s`},
		{"ff08::1 --batch.refresh 999ms", `--batch.refresh "999ms": want auto, or a time from 1s to 1m0s`},
		{"ff08::1 --batch.refresh 61s", `--batch.refresh "61s": want auto, or a time from 1s to 1m0s`},
		{"ff08::1 --batch.capacity 0", `--batch.capacity "0": want a whole number from 1 to 8000000`},
		{"ff08::1 --batch.table 8000001", `--batch.table "8000001": want a whole number from 1 to 8000000`},
		{"ff08::1 --mod.flush-deadline 0", `--mod.flush-deadline "0": want a time from 1ms to 1m0s, in whole milliseconds, or keep`},
		{"ff08::1 --mod.flush-deadline 1.5ms", `--mod.flush-deadline "1.5ms": want a time from 1ms to 1m0s, in whole milliseconds, or keep`},
		{"ff08::1 --mod.flush-deadline 61s", `--mod.flush-deadline "61s": want a time from 1ms to 1m0s, in whole milliseconds, or keep`},
		{"ff08::1 --mod.capacity 0", `--mod.capacity "0": want a whole number from 1 to 8000000, or keep`},
		{"ff08::1 --mod.enable=maybe", `--mod.enable "maybe": want true or false`},
		{"ff08::1 --net.rcvbuf 4095", `--net.rcvbuf "4095": want a whole number from 4096 to 1073741823`},
		{"ff08::1 --net.rcvbuf 8M", `--net.rcvbuf "8M": want a whole number from 4096 to 1073741823`},
		{"ff08::1 --net.cluster " + strings.Repeat("c", 64), `--net.cluster "` + strings.Repeat("c", 64) + `": want up to 63 printable ASCII characters`},
		{"ff08::1 --net.cluster caf\u00e9", `--net.cluster "café": want up to 63 printable ASCII characters`},
		{"ff08::1 --net.hop-limit 256", `--net.hop-limit "256": want a whole number from 0 to 255`},
		{"ff08::1 --net.source 192.0.2.0/33", `--net.source "192.0.2.0/33": want prefixes or addresses, as in 2001:db8:ff08::/96, or any`},
		{"ff08::1 --net.source fe80::1%eth2", `--net.source "fe80::1%eth2": want prefixes or addresses, as in 2001:db8:ff08::/96, or any`},
		{"ff08::1 --net.source ::ffff:0.0.0.0/64", `--net.source "::ffff:0.0.0.0/64": want prefixes or addresses, as in 2001:db8:ff08::/96, or any`},
		{"ff08::1 --net.source=", `--net.source "": want prefixes or addresses, as in 2001:db8:ff08::/96, or any`},
		{"ff08::1 --net.source any --net.source 192.0.2.1", `--net.source "any,192.0.2.1": "any": want prefixes or addresses, as in 2001:db8:ff08::/96, or any`},
		{"ff08::1 --log.level loud", `--log.level "loud": want debug, info, warn or error`},
		{"ff08::1 --log.format xml", `--log.format "xml": want text or json`},
		{"ff08::1 --stats.address [::]", `--stats.address "[::]": want an IPv4 or IPv6 address, or a host name`},
		{"ff08::1 --control.socket /" + strings.Repeat("s", 107), `--control.socket "/` + strings.Repeat("s", 107) + `": want an absolute path of at most 107 bytes`},
		{"2001:db8::1", `--net.mcast.addr "2001:db8::1": want a multicast address: one in 224.0.0.0/4 or ff00::/8`},
		{"192.0.2.1", `--net.mcast.addr "192.0.2.1": want a multicast address: one in 224.0.0.0/4 or ff00::/8`},
		{"::ffff:224.0.0.9", `--net.mcast.addr "::ffff:224.0.0.9": want a multicast address: one in 224.0.0.0/4 or ff00::/8`},
		{"--net.mcast.addr ff08::zz", `--net.mcast.addr "ff08::zz": want an IPv4 or IPv6 address, or a host name`},
		{"--net.mcast.addr 233.252.0", `--net.mcast.addr "233.252.0": want an IPv4 or IPv6 address, or a host name`},
		{"ff08::1 eth2", `unexpected argument "eth2" after the group ff08::1`},
		{"ff08::1 --net.mcast.addr ff08::2", "the group is given twice: ff08::1 and --net.mcast.addr"},
		{"/nonexistent", `"/nonexistent" is neither an IP address nor a file that can be read (a host name goes with --net.mcast.addr): open /nonexistent: no such file or directory`},
		{"--config /nonexistent", "open /nonexistent: no such file or directory"},
		{"--config= ff08::1", `--config "": want the path of a file`},
		{"--config a.json b.json", `unexpected argument "b.json": with --config there can be no other file`},
		{"--=x", "bad flag syntax: --=x"},
	}
	for _, tt := range tests {
		_, err := Parse(strings.FieldsFunc(tt.line, func(r rune) bool { return r == ' ' }))
		if err == nil {
			t.Errorf("%s: accepted", tt.line)
		} else if err.Error() != tt.want {
			t.Errorf("%s:\ngot  %s\nwant %s", tt.line, err, tt.want)
		}
	}
}

func TestFlagsWinOverTheFile(t *testing.T) {
	path := write(t, "joold.json", `{"instance": "edge", "net.mcast.addr": "ff08::1", "net.mcast.port": "7000", "net.ttl": 3, "stats.port": 7001}`)
	got, err := Parse([]string{"--config", path, "-t", "5", "ff08::2", "-i", "core"})
	if err != nil {
		t.Fatal(err)
	}
	want := with(func(c *Config) {
		c.Instance, c.Group, c.Port, c.TTL = "core", "ff08::2", 7000, 5
		c.Stats, c.StatsPort = true, 7001
	})
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestNoTableIsAskedForThatCannotBe(t *testing.T) {
	if maxSessions != batch.MaxTable {
		t.Errorf("--batch.table takes up to %d, a table %d", maxSessions, batch.MaxTable)
	}
}

func TestARepeatedFlagReplacesTheFilesList(t *testing.T) {
	for value, want := range map[string][]netip.Prefix{
		`"192.0.2.1"`:                   prefixes("192.0.2.1/32"),
		`["192.0.2.1"]`:                 prefixes("192.0.2.1/32"),
		`["192.0.2.0/24", "fe80::/10"]`: prefixes("192.0.2.0/24", "fe80::/10"),
		`"any"`:                         nil,
	} {
		path := write(t, "joold.json", `{"net.mcast.addr": "ff08::1", "net.source": `+value+`}`)
		for flags, want := range map[string][]netip.Prefix{
			"":                                     want,
			"--net.source any":                     nil,
			"--net.source ::1 --net.source fe80::": prefixes("::1/128", "fe80::/128"),
		} {
			got, err := Parse(append(strings.Fields(flags), "--config", path))
			if err != nil {
				t.Fatalf("%s, %q: %v", value, flags, err)
			}
			if !slices.Equal(got.Sources, want) {
				t.Errorf("%s, %q: %v, want %v", value, flags, got.Sources, want)
			}
		}
	}
}

func TestReadAgainTheSettingsAreTheFilesAsItIsThen(t *testing.T) {
	path := write(t, "joold.json", `{"net.mcast.port": 7000, "net.ttl": 3, "net.source": "::1"}`)
	fs := pflag.NewFlagSet("", pflag.ContinueOnError)
	flags := Define(fs)
	if err := ParseFlags(fs, []string{"ff08::1", "-t5", "--net.source", "::2", "--net.source", "::3", "--config", path}); err != nil {
		t.Fatal(err)
	}
	want := with(func(c *Config) {
		c.Group, c.Port, c.TTL, c.Sources = "ff08::1", 7000, 5, prefixes("::2/128", "::3/128")
	})
	for _, port := range []uint16{7000, 7000, 7001} {
		want.Port = port
		if err := os.WriteFile(path, fmt.Appendf(nil, `{"net.mcast.port": %d, "net.ttl": 3, "net.source": "::1"}`, port), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := flags.Config(fs.Args())
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("got  %+v\nwant %+v", got, want)
		}
	}
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := flags.Config(fs.Args()); err == nil {
		t.Error("half a file was accepted")
	}
}

func TestADifferenceIsNamedAndToldApartByWhetherItCanBeApplied(t *testing.T) {
	// Another value of each setting.
	live := map[string]string{
		"net.source": "::1", "net.hop-limit": "255", "log.level": "debug",
		"net.key-file": "/k", "net.encrypt": "true", "net.accept-unsigned": "::1", "net.c-peers": "true",
		"mod.flush-deadline": "keep", "mod.capacity": "keep", "mod.enable": "true",
		"batch.deadline": "1ms", "batch.refresh": "1m", "batch.capacity": "1",
	}
	fixed := map[string]string{
		"instance": "edge", "net.mcast.addr": "ff08::2", "net.mcast.port": "6401", "net.dev.in": "eth0", "net.dev.out": "eth0",
		"net.ttl": "2", "net.rcvbuf": "4096", "net.cluster": "edge", "net.wire": "4.1.12", "net.peer": "192.0.2.5", "batch.table": "1", "control.socket": "/s", "log.format": "json",
		"stats.address": "::1", "stats.port": "1",
	}
	was := with(func(c *Config) { c.Group, c.Stats = "ff08::1", true })
	for _, s := range settings {
		value, isLive := live[s.name]
		if !isLive {
			value = fixed[s.name]
		}
		next := *was
		if err := s.set(&next, value); err != nil {
			t.Fatalf("%s: %v", s.name, err)
		}
		gotLive, gotFixed := was.Differ(&next)
		wantLive, wantFixed := []string{s.name}, []string(nil)
		if !isLive {
			wantLive, wantFixed = wantFixed, wantLive
		}
		if !slices.Equal(gotLive, wantLive) || !slices.Equal(gotFixed, wantFixed) {
			t.Errorf("%s: %q can be applied and %q not, want %q and %q", s.name, gotLive, gotFixed, wantLive, wantFixed)
		}
	}

	next := *was
	if live, fixed := was.Differ(&next); live != nil || fixed != nil {
		t.Errorf("the same: %q and %q", live, fixed)
	}
	next.Stats, next.ReuseAddr, next.TTL, next.LogLevel = false, false, 9, slog.LevelWarn
	gotLive, gotFixed := was.Differ(&next)
	if want := []string{"log.level"}; !slices.Equal(gotLive, want) {
		t.Errorf("can be applied: %q, want %q", gotLive, want)
	}
	if want := []string{"net.ttl", "stats.address", "stats.port", "reuseaddr"}; !slices.Equal(gotFixed, want) {
		t.Errorf("cannot be applied: %q, want %q", gotFixed, want)
	}
}

// A Config that Differ does not look at all of would change without a word.
func TestEveryFieldOfTheConfigBelongsToASetting(t *testing.T) {
	for i := range reflect.TypeFor[Config]().NumField() {
		field := reflect.TypeFor[Config]().Field(i)
		if field.Name == "Warnings" { // of the files, not of what is wanted
			continue
		}
		c, next := new(Config), new(Config)
		v := reflect.ValueOf(next).Elem().Field(i)
		switch v.Kind() {
		case reflect.String:
			v.SetString("x")
		case reflect.Bool:
			v.SetBool(true)
		case reflect.Slice:
			v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		case reflect.Struct:
			next.Keys = someKeys(t)
		default:
			v.Set(reflect.ValueOf(1).Convert(v.Type()))
		}
		if live, fixed := c.Differ(next); len(live)+len(fixed) == 0 {
			t.Errorf("%s: no setting differs", field.Name)
		}
	}
}

func TestAFlagThatRepeatsTheDefaultStillWinsOverTheFile(t *testing.T) {
	path := write(t, "joold.json", `{"net.mcast.addr": "ff08::1", "net.ttl": 3, "net.wire": "4.1.11"}`)
	got, err := Parse([]string{"--config", path, "--net.ttl=1", "--net.wire=module"})
	if err != nil {
		t.Fatal(err)
	}
	if got.TTL != 1 || got.Wire != 0 {
		t.Errorf("TTL %d, wire %v; want 1 and the module's", got.TTL, got.Wire)
	}
}

func TestAMistakeInTheFileIsOneLineThatNamesKeyValueAndBound(t *testing.T) {
	tests := []struct{ file, want string }{
		{`{"net.mcast.adr": "ff08::1"}`, `unknown key "net.mcast.adr"; the nearest is "net.mcast.addr"`},
		{`{"multicast address": "ff08::1"}`, `unknown key "multicast address"; the nearest is "net.mcast.addr"`},
		{`{"Instance": "edge"}`, `unknown key "Instance"; the nearest is "instance"`},
		{`{"log.levle": "x"}`, `unknown key "log.levle"; the nearest is "log.level"`},
		{`{"net.ttl": 256}`, `"net.ttl": 256: want a whole number from 0 to 255`},
		{`{"net.ttl": 1.5}`, `"net.ttl": 1.5: want a whole number from 0 to 255`},
		{`{"net.ttl": "1"}`, `"net.ttl": "1": want a number`},
		{`{"net.mcast.port": 0}`, `"net.mcast.port": 0: want a port from 1 to 65535 or the name of a UDP service (/etc/services)`},
		{`{"net.mcast.port": true}`, `"net.mcast.port": true: want a string or a number`},
		{`{"instance": null}`, `"instance": null: want a string`},
		{`{"instance": 7}`, `"instance": 7: want a string, as in "7"`},
		{`{"instance": {"name": "edge"}}`, `"instance": an object: want a string`},
		{`{"instance": ["edge"]}`, `"instance": an array: want a string`},
		{`{"mod.enable": "true"}`, `"mod.enable": "true": want true or false`},
		{`{"mod.enable": 1}`, `"mod.enable": 1: want true or false`},
		{`{"mod.capacity": false}`, `"mod.capacity": false: want a string or a number`},
		{`{"net.rcvbuf": "8388608"}`, `"net.rcvbuf": "8388608": want a number`},
		{`{"net.source": []}`, `"net.source": an array: want prefixes or addresses, as in 2001:db8:ff08::/96, or any`},
		{`{"net.source": [""]}`, `"net.source": an array: want prefixes or addresses, as in 2001:db8:ff08::/96, or any`},
		{`{"net.source": ["192.0.2.1", "x"]}`, `"net.source": an array: "x": want prefixes or addresses, as in 2001:db8:ff08::/96, or any`},
		{`{"net.source": ["192.0.2.1", 7]}`, `"net.source": an array: want a string or a list of strings`},
		{`{"net.source": 7}`, `"net.source": 7: want prefixes or addresses, as in 2001:db8:ff08::/96, or any`},
		{`{"instance": "a", "instance": "b"}`, `key "instance" stands here twice`},
		{`{"net.dev.in": "` + strings.Repeat("x", 100) + `"}`, `"net.dev.in": "` + strings.Repeat("x", 63) + `...: want the name of an interface, or one of its addresses`},
		{"{\n\"net.ttl\": 1,\n}", `line 3: not JSON: invalid character '}' looking for beginning of object key string`},
		{"{}\n{}", `line 2: unexpected text after the closing brace`},
		{"", `line 1: not JSON: the file ends too early`},
		{"{\n\"net.ttl\":", `line 2: not JSON: the file ends too early`},
		{`["net.ttl"]`, `want a JSON object: {"key": value, ...}`},
		{`"net.ttl"`, `want a JSON object: {"key": value, ...}`},
	}
	for _, tt := range tests {
		err := defaults().decode([]byte(tt.file))
		if err == nil {
			t.Errorf("%s: accepted", tt.file)
		} else if err.Error() != tt.want {
			t.Errorf("%s:\ngot  %s\nwant %s", tt.file, err, tt.want)
		}
	}
}

func TestAnOverlongFileIsRefused(t *testing.T) {
	path := write(t, "joold.json", strings.Repeat(" ", maxFile)+"{}")
	if _, err := Parse([]string{"--config", path}); err == nil || !strings.Contains(err.Error(), "longer than 1048576 bytes") {
		t.Errorf("got %v", err)
	}
	path = write(t, "joold.json", strings.Repeat(" ", maxFile-29)+`{"net.mcast.addr": "ff08::1"}`)
	if _, err := Parse([]string{"--config", path}); err != nil {
		t.Errorf("a file of just the limit: %v", err)
	}
}

func TestWhatIsNoRegularFileIsNotRead(t *testing.T) {
	dir := t.TempDir()
	pipe, socket, link := filepath.Join(dir, "pipe"), filepath.Join(dir, "socket"), filepath.Join(dir, "link")
	if err := errors.Join(syscall.Mkfifo(pipe, 0o600), os.Symlink(pipe, link)); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	settings := write(t, "mod.json", `{"multicast address": "ff08::1"}`)
	for _, args := range [][]string{
		{"--config", pipe}, {"--config", link}, {"--config", dir}, {"--config", "/dev/zero"}, {"--config", "/dev/null"},
		{pipe}, {settings, pipe}, {dir}, {"/dev/zero"},
	} {
		parsed := make(chan error, 1)
		go func() {
			_, err := Parse(args)
			parsed <- err
		}()
		select {
		case err := <-parsed:
			path := args[len(args)-1]
			if err == nil || !strings.Contains(err.Error(), path+": not a regular file") {
				t.Errorf("%q: %v", args, err)
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("%q: it waits", args)
		}
	}
	if _, err := Parse([]string{"--config", socket}); err == nil {
		t.Error("a socket was read")
	}
	file := filepath.Join(dir, "joold.json")
	if err := os.Symlink(write(t, "joold.json", `{"net.mcast.addr": "ff08::1"}`), file); err != nil {
		t.Fatal(err)
	}
	if _, err := Parse([]string{"--config", file}); err != nil {
		t.Errorf("a link to a regular file: %v", err)
	}
}

// reference is the file that is shipped to be copied.
const reference = "../../contrib/joold.json"

func TestTheReferenceFileHasEveryFlagAndNothingElse(t *testing.T) {
	data, err := os.ReadFile(reference)
	if err != nil {
		t.Fatal(err)
	}
	members, _, err := parseObject(data)
	if err != nil {
		t.Fatal(err)
	}
	var keys, flags []string
	for _, m := range members {
		keys = append(keys, m.key)
	}
	fs := pflag.NewFlagSet("", pflag.ContinueOnError)
	fs.SortFlags = false
	Define(fs)
	fs.VisitAll(func(f *pflag.Flag) {
		if f.Name != "config" { // a file cannot name itself
			flags = append(flags, f.Name)
		}
	})
	if !slices.Equal(keys, flags) {
		t.Errorf("keys  %q\nflags %q", keys, flags)
	}
}

func TestTheReferenceFileIsUnderstood(t *testing.T) {
	got, err := Parse([]string{"--config", reference})
	if err != nil {
		t.Fatal(err)
	}
	want := with(func(c *Config) {
		c.Group, c.Port, c.In, c.Out = "ff08::db8:64:64", 6464, "eth2", "eth2"
		c.Stats, c.StatsAddr = true, "::1"
	})
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestTheDefaultsInHelpAreTheDefaults(t *testing.T) {
	c := defaults()
	for _, s := range settings {
		if s.def == "" {
			continue
		}
		if err := s.set(c, s.def); err != nil {
			t.Errorf("%s: default %q: %v", s.name, s.def, err)
		}
	}
	c.Stats = false // to set it is to ask for it
	if want := defaults(); !reflect.DeepEqual(c, want) {
		t.Errorf("got  %+v\nwant %+v", c, want)
	}
}

func TestTheGroupIsResolvedWithItsZone(t *testing.T) {
	for group, want := range map[string]string{
		"ff08::db8:64:64": "[ff08::db8:64:64]:6400",
		"ff02::64%eth2":   "[ff02::64%eth2]:6400",
		"233.252.0.64":    "233.252.0.64:6400",
	} {
		c := with(func(c *Config) { c.Group = group })
		got, err := c.ResolveGroup(t.Context())
		if err != nil || got.String() != want {
			t.Errorf("%s: %v, %v; want %s", group, got, err, want)
		}
	}
	c := with(func(c *Config) { c.Group = "192.0.2.1" })
	if _, err := c.ResolveGroup(t.Context()); !errors.Is(err, ErrNotMulticast) {
		t.Errorf("192.0.2.1: %v, want ErrNotMulticast", err)
	}
	c.Group = "sync.example"
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.ResolveGroup(ctx); err == nil || !strings.Contains(err.Error(), "multicast group sync.example: cannot be resolved") {
		t.Errorf("a name that has no address: %v", err)
	}
}

func TestNearestCountsLetters(t *testing.T) {
	names := []string{"status", "follow", "advertise"}
	for name, want := range map[string]string{"stauts": "status", "": "status", "advertize": "advertise", "folow": "follow"} {
		if got := Nearest(name, names); got != want {
			t.Errorf("nearest to %q: %q, want %q", name, got, want)
		}
	}
	if got := Nearest("x", nil); got != "" {
		t.Errorf("nearest of none: %q", got)
	}
}

func TestAClientFindsItsDaemonByInstanceOrSocket(t *testing.T) {
	fs := pflag.NewFlagSet("", pflag.ContinueOnError)
	cl := DefineClient(fs)
	if want := (Client{Instance: "default"}); *cl != want {
		t.Errorf("without flags: %+v, want %+v", *cl, want)
	}
	if err := ParseFlags(fs, []string{"-i", "edge", "--socket", "/tmp/s"}); err != nil {
		t.Fatal(err)
	}
	if want := (Client{Instance: "edge", Socket: "/tmp/s"}); *cl != want {
		t.Errorf("got %+v, want %+v", *cl, want)
	}
	if err := ParseFlags(fs, []string{"-i", ""}); err == nil {
		t.Error("an empty instance was accepted")
	}
}

func TestANumberKeepsWithinItsBounds(t *testing.T) {
	for arg, want := range map[string]int{"1": 1, "100": 100, "0": 0, "101": 0, "-1": 0, "x": 0, "": 0, "1.5": 0, "99999999999999999999": 0} {
		fs := pflag.NewFlagSet("", pflag.ContinueOnError)
		n := DefineNumber(fs, "rate", "sessions a second", 1, 100)
		err := ParseFlags(fs, []string{"--rate", arg})
		switch {
		case *n != want:
			t.Errorf("%q: %d, want %d", arg, *n, want)
		case want != 0 && err != nil:
			t.Errorf("%q: %v", arg, err)
		case want == 0 && (err == nil || !strings.HasSuffix(err.Error(), "want a whole number from 1 to 100")):
			t.Errorf("%q: %v", arg, err)
		}
	}
}

// FuzzFile checks that no file of settings crashes the decoder, and that what
// it accepts lies within the documented bounds.
func FuzzFile(f *testing.F) {
	data, err := os.ReadFile(reference)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte(`{"net.mcast.port": "domain", "net.ttl": 255, "net.wire": "4.1.12", "batch.deadline": "1s"}`))
	f.Add([]byte(`{"net.source": ["192.0.2.1", "::ffff:192.0.2.1/97"], "mod.enable": false, "mod.capacity": "keep", "mod.flush-deadline": "3s"}`))
	f.Add([]byte(`{"instance": "\u0000"}`))
	f.Add([]byte(`{"a": {"b": [1, 2, {}]}} x`))
	f.Fuzz(func(t *testing.T, data []byte) {
		c := defaults()
		if err := c.decode(data); err != nil {
			oneLine(t, err)
			return
		}
		inBounds(t, c)
	})
}

// oneLine checks that an error is fit for a log: one line, not of any length.
func oneLine(t *testing.T, err error) {
	t.Helper()
	if s := err.Error(); strings.ContainsAny(s, "\n\r") || len(s) > 1000 {
		t.Errorf("not one short line: %q", s)
	}
}

func inBounds(t *testing.T, c *Config) {
	t.Helper()
	if n := len(c.Instance); n < 1 || n > 15 || strings.ContainsAny(c.Instance, "\x00\n") {
		t.Errorf("instance %q", c.Instance)
	}
	if c.Port == 0 || c.StatsPort == 0 || c.TTL < 0 || c.TTL > 255 || c.BatchDeadline <= 0 || c.BatchDeadline > time.Second {
		t.Errorf("out of bounds: %+v", c)
	}
	for name, in := range map[string]bool{
		"net.rcvbuf":         c.ReadBuffer >= 4096 && c.ReadBuffer < 1<<30,
		"net.hop-limit":      c.HopLimit >= 0 && c.HopLimit <= 255,
		"mod.flush-deadline": c.FlushDeadline >= 0 && c.FlushDeadline <= time.Minute && c.FlushDeadline%time.Millisecond == 0,
		"mod.capacity":       c.Capacity >= 0 && c.Capacity <= maxSessions,
		"batch.capacity":     c.Pending >= 1 && c.Pending <= maxSessions,
		"batch.table":        c.Table >= 1 && c.Table <= maxSessions,
		"batch.refresh":      c.Refresh == 0 || c.Refresh >= time.Second && c.Refresh <= time.Minute,
	} {
		if !in {
			t.Errorf("%s is out of bounds: %+v", name, c)
		}
	}
	if len(c.Cluster) > 63 || strings.ContainsAny(c.Cluster, "\x00\n") {
		t.Errorf("cluster %q", c.Cluster)
	}
	for _, p := range slices.Concat(c.Sources, c.Unsigned) {
		if !p.IsValid() || p != p.Masked() || p.Addr().Is4In6() {
			t.Errorf("source %v", p)
		}
	}
	if len(c.Warnings) > 4 {
		t.Errorf("%d warnings", len(c.Warnings))
	}
}
