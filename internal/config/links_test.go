package config

import (
	"slices"
	"strings"
	"testing"
)

func TestSeveralInterfacesAreSeveralLinks(t *testing.T) {
	for line, want := range map[string][]Link{
		"":                                     {{"", ""}},
		"--net.dev.in eth2":                    {{"eth2", ""}},
		"--net.dev.in eth2 --net.dev.out eth3": {{"eth2", "eth3"}},
		"--net.dev.in a,b --net.dev.out a,b":   {{"a", "a"}, {"b", "b"}},
		"--net.dev.in a,192.0.2.1 -o ::1%lo,a": {{"a", "::1%lo"}, {"192.0.2.1", "a"}},
	} {
		c, err := Parse(append([]string{"ff08::1"}, strings.Fields(line)...))
		if err != nil || !slices.Equal(c.Links(), want) {
			t.Errorf("%q: %v, want %v", line, err, want)
		}
	}
	for line, says := range map[string]string{
		"--net.dev.in a,b":                       "--net.dev.in names 2 interfaces, --net.dev.out 1",
		"--net.dev.in a,b -o a,b,c":              "want as many, in the same order",
		"--net.dev.in a,a -o a,b":                "a is there twice",
		"--net.dev.in a, -o a,b":                 "want the name of an interface",
		"--net.dev.in a,b -o a,b --net.peer ::1": "--net.peer goes with one interface",
		"-o a,b,c,d,e,f,g,h,i":                   "9 are too many: want at most 8",
	} {
		if _, err := Parse(append([]string{"ff08::1"}, strings.Fields(line)...)); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v, want %q", line, err, says)
		}
	}
}
