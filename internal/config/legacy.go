package config

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// legacyKey is a key of the C daemon's files.
type legacyKey struct {
	name string
	here string // the setting that it became, if any
	kind kind
	set  func(*Config, string) error
}

// The keys of the C daemon's files, of every version: what it calls the network
// socket's configuration and the module socket's (src/usr/joold, 4.1.9 and 4.1.15).
var (
	legacyNet = []legacyKey{
		{"multicast address", "net.mcast.addr", text, setGroup},
		{"multicast port", "net.mcast.port", text, setPort},
		{"in interface", "net.dev.in", text, setIn},
		{"out interface", "net.dev.out", text, setOut},
		{reuseAddr, "", number, setReuseAddr},
		{"ttl", "net.ttl", number, setTTL},
	}
	legacyMod = []legacyKey{
		{"instance", "instance", text, setInstance},
	}
)

// reuseAddr is the one key that became no setting: here it is always on.
const reuseAddr = "reuseaddr"

func setReuseAddr(c *Config, s string) error {
	n, err := strconv.ParseInt(s, 10, 32)
	if err != nil {
		return errors.New("want a whole number: 0 for no, another for yes")
	}
	c.ReuseAddr = n != 0
	return nil
}

// readLegacy takes the arguments of the C daemon: NET.json [MOD.json [STATS_PORT]].
func (c *Config) readLegacy(args []string) error {
	if len(args) > 3 {
		return fmt.Errorf("unexpected argument %q after the statistics port", args[3])
	}
	data, err := load(args[0])
	if err != nil {
		return fmt.Errorf("%q is neither an IP address nor a file that can be read (a host name goes with --net.mcast.addr): %w", args[0], err)
	}
	if err := c.decodeLegacy(args[0], data, legacyNet); err != nil {
		return err
	}
	if len(args) > 1 {
		if data, err = load(args[1]); err != nil {
			return err
		}
		if err := c.decodeLegacy(args[1], data, legacyMod); err != nil {
			return err
		}
	}
	if len(args) > 2 {
		if err := setStatsPort(c, args[2]); err != nil {
			return fmt.Errorf("statistics port %q: %w", args[2], err)
		}
	}
	return nil
}

// decodeLegacy reads as the C daemon does: keys in any case, the first of equal
// ones, others passed over, as is what follows the object and a null. It says
// so where the operator may have meant something else.
func (c *Config) decodeLegacy(path string, data []byte, keys []legacyKey) error {
	members, rest, err := parseObject(data)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if len(rest) > 0 {
		c.warn("%s: line %d: what follows the closing brace is not read", path, lineOf(data, len(data)-len(rest)))
	}
	seen := make(map[string]bool)
	var unread []string
	for _, m := range members {
		key, ok := legacyNamed(keys, m.key)
		switch {
		case !ok && isOurs(m.key):
			return fmt.Errorf("%s: key %q: this is no file of the C daemon's: run `joold --config %[1]s`", path, m.key)
		case !ok:
			unread = append(unread, fmt.Sprintf("%q (unknown)", shorten(m.key)))
			continue
		case seen[key.name]:
			unread = append(unread, fmt.Sprintf("%q (again)", m.key))
		case string(m.value) == "null":
		default:
			if err := m.apply(c, key.kind, key.set); err != nil {
				return fmt.Errorf("%s: %w", path, err)
			}
		}
		seen[key.name] = true
	}
	if more := len(unread) - maxUnread; more > 0 {
		unread = append(unread[:maxUnread], fmt.Sprintf("%d more", more))
	}
	if len(unread) > 0 {
		c.warn("%s: keys that are not read: %s", path, strings.Join(unread, ", "))
	}
	return nil
}

// maxUnread is how many keys that are not read a warning names.
const maxUnread = 8

// isOurs tells whether a key is a setting's that no C file has: not "instance".
func isOurs(key string) bool {
	_, ok := settingNamed(key)
	return ok && strings.Contains(key, ".")
}

func legacyNamed(keys []legacyKey, name string) (legacyKey, bool) {
	for _, k := range keys {
		if strings.EqualFold(k.name, name) {
			return k, true
		}
	}
	return legacyKey{}, false
}

func (c *Config) warn(format string, args ...any) {
	c.Warnings = append(c.Warnings, fmt.Sprintf(format, args...))
}
