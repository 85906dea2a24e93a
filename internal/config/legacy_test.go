package config

import (
	"reflect"
	"strings"
	"testing"
)

func TestTheCDaemonsFilesAreUnderstood(t *testing.T) {
	// The two files of Jool's manual.
	net := `{
		"multicast address": "233.252.0.64",
		"multicast port": "6464",
		"in interface": "192.0.2.1",
		"out interface": "192.0.2.1",
		"reuseaddr": 1,
		"ttl": 3
	}`
	mod := `{ "instance": "edge" }`
	want := with(func(c *Config) {
		c.Group, c.Port, c.In, c.Out, c.TTL = "233.252.0.64", 6464, "192.0.2.1", "192.0.2.1", 3
	})

	netFile, modFile := write(t, "net.json", net), write(t, "mod.json", mod)
	check := func(want *Config, args ...string) {
		t.Helper()
		got, err := Parse(args)
		if err != nil {
			t.Fatalf("%q: %v", args, err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%q:\ngot  %+v\nwant %+v", args, got, want)
		}
	}
	check(want, netFile)
	want.Instance = "edge"
	check(want, netFile, modFile)
	want.Stats, want.StatsPort = true, 45678
	check(want, netFile, modFile, "45678")
	want.StatsPort, want.TTL, want.Group = 7, 9, "233.252.0.65"
	check(want, "--stats.port", "7", netFile, "-t9", modFile, "45678", "--net.mcast.addr", "233.252.0.65")
}

func TestTheCDaemonsFilesAreReadAsCDoes(t *testing.T) {
	tests := []struct {
		file     string
		want     *Config
		warnings string
	}{
		{`{"Multicast Address": "ff08::1", "TTL": 4}`, with(func(c *Config) { c.Group, c.TTL = "ff08::1", 4 }), ""},
		{`{"multicast address": "ff08::1"}`, with(func(c *Config) { c.Group = "ff08::1" }), ""},
		{`{"multicast address": "sync.example", "reuseaddr": 0}`, with(func(c *Config) { c.Group, c.ReuseAddr = "sync.example", false }), ""},
		{`{"ttl": 2, "TTL": 3, "in interface": null}`, with(func(c *Config) { c.TTL = 2 }), `NET: keys that are not read: "TTL" (again)`},
		{`{"instance": "edge", "comment": {"by": ["me"]}}`, defaults(), `NET: keys that are not read: "instance" (unknown), "comment" (unknown)`},
		{"{}\n}", defaults(), `NET: line 2: what follows the closing brace is not read`},
	}
	for _, tt := range tests {
		c := defaults()
		if err := c.decodeLegacy("NET", []byte(tt.file), legacyNet); err != nil {
			t.Errorf("%s: %v", tt.file, err)
			continue
		}
		if got := strings.Join(c.Warnings, "; "); got != tt.warnings {
			t.Errorf("%s:\nwarned %s\nwant   %s", tt.file, got, tt.warnings)
		}
		c.Warnings = nil
		if !reflect.DeepEqual(c, tt.want) {
			t.Errorf("%s:\ngot  %+v\nwant %+v", tt.file, c, tt.want)
		}
	}
}

func TestAMistakeInACFileIsNamed(t *testing.T) {
	tests := []struct{ file, want string }{
		{`{"multicast port": 6464}`, `NET: "multicast port": 6464: want a string, as in "6464"`},
		{`{"multicast address": "192.0.2.1"}`, `NET: "multicast address": "192.0.2.1": want a multicast address: one in 224.0.0.0/4 or ff00::/8`},
		{`{"ttl": "3"}`, `NET: "ttl": "3": want a number`},
		{`{"ttl": 300}`, `NET: "ttl": 300: want a whole number from 0 to 255`},
		{`{"reuseaddr": 1.5}`, `NET: "reuseaddr": 1.5: want a whole number: 0 for no, another for yes`},
		{`{"in interface": ""}`, `NET: "in interface": "": want the name of an interface, or one of its addresses`},
		{`{"instance": "edge", "net.ttl": 1}`, "NET: key \"net.ttl\": this is no file of the C daemon's: run `joold --config NET`"},
		{`{"ttl": }`, `NET: line 1: not JSON: invalid character '}' looking for beginning of value`},
	}
	for _, tt := range tests {
		err := defaults().decodeLegacy("NET", []byte(tt.file), legacyNet)
		if err == nil {
			t.Errorf("%s: accepted", tt.file)
		} else if err.Error() != tt.want {
			t.Errorf("%s:\ngot  %s\nwant %s", tt.file, err, tt.want)
		}
	}
}

func TestAMistakeInTheCDaemonsArgumentsIsNamed(t *testing.T) {
	net, mod := write(t, "net.json", `{"multicast address": "ff08::1"}`), write(t, "mod.json", `{}`)
	tests := []struct {
		args []string
		want string
	}{
		{[]string{net, mod, "0"}, `statistics port "0": want a port from 1 to 65535`},
		{[]string{net, mod, "6401", "x"}, `unexpected argument "x" after the statistics port`},
		{[]string{net, "/nonexistent"}, `open /nonexistent: no such file or directory`},
		{[]string{mod}, `no multicast group`},
		{[]string{"--config", net, net}, `with --config there can be no other file`},
	}
	for _, tt := range tests {
		_, err := Parse(tt.args)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q:\ngot  %v\nwant %s", tt.args, err, tt.want)
		}
	}
}

func TestManyUnknownKeysMakeOneShortWarning(t *testing.T) {
	var file strings.Builder
	file.WriteString(`{"ttl": 1`)
	for range 1000 {
		file.WriteString(`, "` + strings.Repeat("k", 100) + `": 1`)
	}
	file.WriteString("}")
	c := defaults()
	if err := c.decodeLegacy("NET", []byte(file.String()), legacyNet); err != nil {
		t.Fatal(err)
	}
	if len(c.Warnings) != 1 || len(c.Warnings[0]) > 1000 || !strings.HasSuffix(c.Warnings[0], ", 992 more") {
		t.Errorf("warnings: %q", c.Warnings)
	}
}

func FuzzLegacyFiles(f *testing.F) {
	f.Add([]byte(`{"multicast address": "ff08::1", "multicast port": "6464", "in interface": "eth2", "ttl": 3, "reuseaddr": 0}`), []byte(`{"instance": "edge"}`))
	f.Add([]byte(`{"TTL": -1}`), []byte(`{"instance": null} junk`))
	f.Fuzz(func(t *testing.T, net, mod []byte) {
		c := defaults()
		for _, file := range []struct {
			data []byte
			keys []legacyKey
		}{{net, legacyNet}, {mod, legacyMod}} {
			if err := c.decodeLegacy("FILE", file.data, file.keys); err != nil {
				oneLine(t, err)
				return
			}
		}
		inBounds(t, c)
	})
}
