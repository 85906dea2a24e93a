// Package config owns the daemon's settings: their names as flags and as keys
// of a file, their bounds and defaults, and the C daemon's own files. It turns
// them into one validated Config and opens nothing but those files: whether an
// instance, an interface or an address exists is for others to find out.
package config

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"joold/internal/session"
)

// Config is what the daemon was told to do, complete and within bounds.
type Config struct {
	Instance string // Jool's name of the instance: 1 to 15 bytes, printable ASCII

	Group     string // the multicast group: an address, perhaps with %zone, or a host name
	Port      uint16 // of the group, not 0
	In, Out   string // interfaces to receive and to send on, by name or address; "" leaves it to the kernel
	TTL       int    // of what is sent, or its hop limit: 0 to 255
	ReuseAddr bool   // false only where a C daemon's file says so

	Stats     bool   // whether to serve statistics
	StatsAddr string // an address or a host name
	StatsPort uint16 // not 0

	Wire          session.Encoding // to send in; 0 for the local module's own
	BatchDeadline time.Duration    // how long an entry may wait for company: 1 ms to 1 s

	ControlSocket string // path; "" for the instance's usual one

	LogJSON  bool
	LogLevel slog.Level

	Warnings []string // what was odd about the settings but could be worked with, for the log
}

// defaults are the C daemon's where it has any.
func defaults() *Config {
	return &Config{
		Instance:      "default",
		Port:          6400,
		TTL:           1,
		ReuseAddr:     true,
		StatsAddr:     "::",
		StatsPort:     6401,
		BatchDeadline: 10 * time.Millisecond,
	}
}

// setting is one thing that can be set, by flag and by key alike.
type setting struct {
	name  string // of the flag, without dashes, and of the key
	short string // letter of the short flag, if any
	arg   string // what its value is called in help
	def   string // how help shows its default
	kind  kind   // what a file may say
	doc   string
	set   func(*Config, string) error // an error tells what is wanted
	words []string                    // all values, where they can be listed
}

// settings in the order in which help lists them.
var settings = []setting{
	{"instance", "i", "NAME", "default", text, "Jool instance to serve", setInstance, nil},
	{"net.mcast.addr", "", "ADDR", "", text, "multicast group; the same as a bare ADDR", setGroup, nil},
	{"net.mcast.port", "p", "PORT", "6400", text | number, "UDP port of the group", setPort, nil},
	{"net.dev.in", "", "IF", "", text, "interface to receive on, or one of its addresses", setIn, nil},
	{"net.dev.out", "o", "IF", "", text, "interface to send on, or one of its addresses", setOut, nil},
	{"net.ttl", "t", "N", "1", number, "TTL, or hop limit, of what is sent", setTTL, nil},
	{"net.wire", "", "VERSION", "module", text, "encoding to send, the module's own or that of a version", setWire, wires},
	{"batch.deadline", "", "TIME", "10ms", text, "longest wait of an entry for company in its datagram", setBatchDeadline, nil},
	{"stats.address", "", "ADDR", "::", text, "serve statistics at this address", setStatsAddr, nil},
	{"stats.port", "", "PORT", "6401", text | number, "serve statistics at this UDP port", setStatsPort, nil},
	{"control.socket", "", "PATH", "", text, "control socket (usually /run/joold/NAME.sock)", setControlSocket, nil},
	{"log.format", "", "FORMAT", "text", text, "text or json", setLogFormat, logFormats},
	{"log.level", "", "LEVEL", "info", text, "debug, info, warn or error", setLogLevel, logLevels},
}

// ResolveGroup is the group's address and port, looked up if the group is
// given by name. The first address that is a multicast one is taken.
func (c *Config) ResolveGroup(ctx context.Context) (netip.AddrPort, error) {
	addrs := make([]netip.Addr, 1)
	var err error
	if addrs[0], err = netip.ParseAddr(c.Group); err != nil {
		if addrs, err = net.DefaultResolver.LookupNetIP(ctx, "ip", c.Group); err != nil {
			return netip.AddrPort{}, fmt.Errorf("multicast group %s: cannot be resolved: %w", c.Group, err)
		}
	}
	for _, a := range addrs {
		if a = a.Unmap(); a.IsMulticast() {
			return netip.AddrPortFrom(a, c.Port), nil
		}
	}
	return netip.AddrPort{}, fmt.Errorf("multicast group %s: %w", c.Group, ErrNotMulticast)
}

// ErrNotMulticast is why a group cannot be one.
var ErrNotMulticast = errors.New("want a multicast address: one in 224.0.0.0/4 or ff00::/8")

// The values of the settings that have few. wires[0] stands for no choice.
var (
	wires      = []string{"module", session.Enc4111.String(), session.Enc4112.String(), session.Enc4113.String()}
	logFormats = []string{"text", "json"}
	logLevels  = []string{"debug", "info", "warn", "error"}
)

// validate is for what no setting can tell alone.
func (c *Config) validate() error {
	if c.Group == "" {
		return errors.New("no multicast group: name one as in `joold ff08::db8:64:64`, " +
			"by --net.mcast.addr, or in a file (see `joold help`)")
	}
	return nil
}

// maxInstance is INAME_MAX_SIZE without its terminator.
const maxInstance = 15

func setInstance(c *Config, s string) error {
	unprintable := func(r rune) bool { return r < ' ' || r > '~' }
	if s == "" || len(s) > maxInstance || strings.ContainsFunc(s, unprintable) {
		return fmt.Errorf("want 1 to %d printable ASCII characters", maxInstance)
	}
	c.Instance = s
	return nil
}

func setGroup(c *Config, s string) error {
	a, err := netip.ParseAddr(s)
	switch {
	case err != nil && !isHost(s):
		return errors.New("want an IPv4 or IPv6 address, or a host name")
	case err == nil && (!a.IsMulticast() || a.Is4In6()):
		return ErrNotMulticast
	}
	c.Group = s
	return nil
}

func setIn(c *Config, s string) error  { return setInterface(&c.In, s) }
func setOut(c *Config, s string) error { return setInterface(&c.Out, s) }

// maxInterface is IFNAMSIZ without its terminator.
const maxInterface = 15

func setInterface(dst *string, s string) error {
	if _, err := netip.ParseAddr(s); err != nil {
		// The kernel's own rules (dev_valid_name).
		odd := func(r rune) bool { return r == '/' || r == ':' || unicode.IsSpace(r) || !unicode.IsPrint(r) }
		if s == "" || len(s) > maxInterface || s == "." || s == ".." || strings.ContainsFunc(s, odd) {
			return errors.New("want the name of an interface, or one of its addresses")
		}
	}
	*dst = s
	return nil
}

func setTTL(c *Config, s string) error {
	n, err := strconv.ParseUint(s, 10, 8)
	if err != nil {
		return errors.New("want a whole number from 0 to 255")
	}
	c.TTL = int(n)
	return nil
}

func setWire(c *Config, s string) error {
	if !slices.Contains(wires, s) {
		return wantOneOf(wires)
	}
	c.Wire = 0
	if s != wires[0] {
		c.Wire, _ = session.ParseEncoding(s) // one of its own names
	}
	return nil
}

func wantOneOf(words []string) error {
	last := len(words) - 1
	return fmt.Errorf("want %s or %s", strings.Join(words[:last], ", "), words[last])
}

func setBatchDeadline(c *Config, s string) error {
	d, err := time.ParseDuration(s)
	if err != nil || d < time.Millisecond || d > time.Second {
		return errors.New("want a time from 1ms to 1s")
	}
	c.BatchDeadline = d
	return nil
}

func setStatsAddr(c *Config, s string) error {
	if _, err := netip.ParseAddr(s); err != nil && !isHost(s) {
		return errors.New("want an IPv4 or IPv6 address, or a host name")
	}
	c.StatsAddr, c.Stats = s, true
	return nil
}

func setStatsPort(c *Config, s string) error {
	c.Stats = true
	return parsePort(&c.StatsPort, s)
}

func setPort(c *Config, s string) error { return parsePort(&c.Port, s) }

// parsePort accepts what getaddrinfo does, but 0.
func parsePort(dst *uint16, s string) error {
	n, err := net.LookupPort("udp", s)
	if err != nil || n == 0 {
		return errors.New("want a port from 1 to 65535 or the name of a UDP service (/etc/services)")
	}
	*dst = uint16(n)
	return nil
}

// maxSocketPath is the length of sun_path without its terminator.
const maxSocketPath = 107

func setControlSocket(c *Config, s string) error {
	if s != "" && !strings.HasPrefix(s, "/") || len(s) > maxSocketPath || strings.ContainsRune(s, 0) {
		return fmt.Errorf("want an absolute path of at most %d bytes", maxSocketPath)
	}
	c.ControlSocket = s
	return nil
}

func setLogFormat(c *Config, s string) error {
	if !slices.Contains(logFormats, s) {
		return wantOneOf(logFormats)
	}
	c.LogJSON = s == "json"
	return nil
}

func setLogLevel(c *Config, s string) error {
	if !slices.Contains(logLevels, s) {
		return wantOneOf(logLevels)
	}
	return c.LogLevel.UnmarshalText([]byte(s))
}

// isHost tells whether s could be a host name. What looks like a mistyped
// address is none.
func isHost(s string) bool {
	if s == "" || len(s) > 253 || strings.Trim(s, "0123456789.") == "" {
		return false
	}
	for _, r := range s {
		if r >= utf8.RuneSelf || r != '-' && r != '.' && r != '_' && !unicode.IsLetter(r) && !unicode.IsDigit(r) {
			return false
		}
	}
	return true
}
