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
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"joold/internal/session"
	"joold/internal/wire"
)

// Config is what the daemon was told to do, complete and within bounds.
type Config struct {
	Instance string // Jool's name of the instance: 1 to 15 bytes, printable ASCII

	Group     string // the multicast group: an address, perhaps with %zone, or a host name; "" for none if there are Peers
	Port      uint16 // of the group, and where peers send to; not 0
	In, Out   string // interfaces to receive and to send on, by name or address; "" leaves it to the kernel; see Links
	TTL       int    // of what is sent, or its hop limit: 0 to 255
	ReuseAddr bool   // false only where a C daemon's file says so

	Peers []netip.AddrPort // nodes that are each sent to; at most 64, no port 0

	ReadBuffer int     // of the group's socket, in bytes: 4096 to 1,073,741,823
	Sources    Sources // who may send; none for anybody
	HopLimit   int     // the least that a datagram may arrive with, or TTL: 0 (not checked) to 255

	// What the daemon sets in the instance.
	FlushDeadline time.Duration // ss-flush-deadline, in whole milliseconds: 1 ms to 1 min; 0 leaves it
	Capacity      int           // the least ss-capacity, in sessions: 1 to 8,000,000; 0 leaves it
	Enable        bool          // whether to turn ss-enabled on

	Stats     bool   // whether to serve statistics
	StatsAddr string // an address or a host name
	StatsPort uint16 // not 0

	Cluster string // whose datagrams are ours: up to 63 bytes, printable ASCII; every node of one has the same

	KeyFile  string    // path; "" if nothing is signed
	Keys     wire.Keys // what it held
	Encrypt  bool      // only with keys
	Unsigned Sources   // who is heard without a signature though there are keys; none for nobody

	CPeers bool // whether C nodes listen, though none may have been heard

	Wire          session.Encoding // to send in; 0 for the local module's own
	BatchDeadline time.Duration    // how long an entry may wait for company: 1 ms to 1 s
	Pending       int              // sessions that may wait to be sent: 1 to 8,000,000
	Refresh       time.Duration    // longest interval between refreshes of a session that does not change: 1 s to 1 min; 0 for one that depends on who listens
	Table         int              // sessions remembered: 1 to 8,000,000

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
		ReadBuffer:    8 << 20,
		FlushDeadline: 20 * time.Millisecond,
		Capacity:      16384,
		StatsAddr:     "::",
		StatsPort:     6401,
		BatchDeadline: 10 * time.Millisecond,
		Pending:       65536,
		Table:         1_000_000,
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
	words []string                    // all values, where they can be listed
	live  bool                        // whether a running daemon can change over to another value
	set   func(*Config, string) error // an error tells what is wanted
	get   func(*Config) any           // what set has set, to be compared
}

// settings in the order in which help lists them.
var settings = []setting{
	{name: "instance", short: "i", arg: "NAME", def: "default", kind: text,
		doc: "Jool instance to serve",
		set: setInstance, get: func(c *Config) any { return c.Instance }},
	{name: "net.mcast.addr", arg: "ADDR", kind: text,
		doc: "multicast group; the same as a bare ADDR",
		set: setGroup, get: func(c *Config) any { return c.Group }},
	{name: "net.mcast.port", short: "p", arg: "PORT", def: "6400", kind: text | number,
		doc: "UDP port, of the group and of this node",
		set: setPort, get: func(c *Config) any { return c.Port }},
	{name: "net.peer", arg: "ADDR[:PORT]", def: "none", kind: text | list,
		doc: "send to this node by unicast as well, or instead; may be repeated",
		set: setPeers, get: func(c *Config) any { return c.Peers }},
	{name: "net.dev.in", arg: "IF", kind: text,
		doc: "interface to receive on, or one of its addresses; or several, one a link",
		set: setIn, get: func(c *Config) any { return c.In }},
	{name: "net.dev.out", short: "o", arg: "IF", kind: text,
		doc: "interface to send on, or one of its addresses; or several, likewise",
		set: setOut, get: func(c *Config) any { return c.Out }},
	{name: "net.ttl", short: "t", arg: "N", def: "1", kind: number,
		doc: "TTL, or hop limit, of what is sent",
		set: setTTL, get: func(c *Config) any { return c.TTL }},
	{name: "net.source", arg: "PREFIX", def: "any", kind: text | list, live: true,
		doc: "accept datagrams only from here; may be repeated",
		set: setSources, get: func(c *Config) any { return c.Sources }},
	{name: "net.hop-limit", arg: "N", def: "0", kind: number, live: true,
		doc: "accept no datagram with a lower TTL, or hop limit; 0 accepts all",
		set: setHopLimit, get: func(c *Config) any { return c.HopLimit }},
	{name: "net.rcvbuf", arg: "BYTES", def: "8388608", kind: number,
		doc: "receive buffer of the group's socket",
		set: setReadBuffer, get: func(c *Config) any { return c.ReadBuffer }},
	{name: "net.cluster", arg: "CLUSTER", kind: text,
		doc: "cluster to belong to, if several share the group",
		set: setCluster, get: func(c *Config) any { return c.Cluster }},
	{name: "net.key-file", arg: "FILE", kind: text, live: true,
		doc: "keys of the cluster: the first signs, all verify",
		set: setKeyFile, get: func(c *Config) any { return []any{c.KeyFile, c.Keys} }},
	{name: "net.encrypt", arg: "bool", def: "false", kind: truth, live: true,
		doc: "encrypt sessions as well, so that no C node reads them",
		set: setEncrypt, get: func(c *Config) any { return c.Encrypt }},
	{name: "net.accept-unsigned", arg: "PREFIX", def: "none", kind: text | list, live: true,
		doc: "hear who cannot sign, as a C node, from here; may be repeated",
		set: setUnsigned, get: func(c *Config) any { return c.Unsigned }},
	{name: "net.c-peers", arg: "bool", def: "false", kind: truth, live: true,
		doc: "C daemons listen that may never speak: refresh often, for them",
		set: setCPeers, get: func(c *Config) any { return c.CPeers }},
	{name: "net.wire", arg: "VERSION", def: "module", kind: text, words: wires,
		doc: "encoding to send, the module's own or that of a version",
		set: setWire, get: func(c *Config) any { return c.Wire }},
	{name: "mod.flush-deadline", arg: "TIME", def: "20ms", kind: text, live: true,
		doc: "set the instance's ss-flush-deadline; keep leaves it",
		set: setFlushDeadline, get: func(c *Config) any { return c.FlushDeadline }},
	{name: "mod.capacity", arg: "N", def: "16384", kind: text | number, live: true,
		doc: "raise the instance's ss-capacity to this; keep leaves it",
		set: setCapacity, get: func(c *Config) any { return c.Capacity }},
	{name: "mod.enable", arg: "bool", def: "false", kind: truth, live: true,
		doc: "turn the instance's ss-enabled on",
		set: setEnable, get: func(c *Config) any { return c.Enable }},
	{name: "batch.deadline", arg: "TIME", def: "10ms", kind: text, live: true,
		doc: "longest wait of an entry for company in its datagram",
		set: setBatchDeadline, get: func(c *Config) any { return c.BatchDeadline }},
	{name: "batch.refresh", arg: "TIME", def: "auto", kind: text, live: true,
		doc: "longest interval between refreshes of an unchanged session; auto is 60s while only joold is heard, else 2s",
		set: setRefresh, get: func(c *Config) any { return c.Refresh }},
	{name: "batch.capacity", arg: "N", def: "65536", kind: number, live: true,
		doc: "sessions that may wait to be sent",
		set: setPending, get: func(c *Config) any { return c.Pending }},
	{name: "batch.table", arg: "N", def: "1000000", kind: number,
		doc: "sessions to remember",
		set: setTable, get: func(c *Config) any { return c.Table }},
	{name: "stats.address", arg: "ADDR", def: "::", kind: text,
		doc: "serve statistics at this address",
		set: setStatsAddr, get: func(c *Config) any { return []any{c.Stats, c.StatsAddr} }},
	{name: "stats.port", arg: "PORT", def: "6401", kind: text | number,
		doc: "serve statistics at this UDP port",
		set: setStatsPort, get: func(c *Config) any { return []any{c.Stats, c.StatsPort} }},
	{name: "control.socket", arg: "PATH", kind: text,
		doc: "control socket (usually /run/joold/NAME.sock)",
		set: setControlSocket, get: func(c *Config) any { return c.ControlSocket }},
	{name: "log.format", arg: "FORMAT", def: "text", kind: text, words: logFormats,
		doc: "text or json",
		set: setLogFormat, get: func(c *Config) any { return c.LogJSON }},
	{name: "log.level", arg: "LEVEL", def: "info", kind: text, words: logLevels, live: true,
		doc: "debug, info, warn or error",
		set: setLogLevel, get: func(c *Config) any { return c.LogLevel }},
}

// Differ tells which settings are others in next, by name: those to which a
// running daemon can change over, and those that take a new start.
func (c *Config) Differ(next *Config) (live, fixed []string) {
	for _, s := range settings {
		switch {
		case reflect.DeepEqual(s.get(c), s.get(next)):
		case s.live:
			live = append(live, s.name)
		default:
			fixed = append(fixed, s.name)
		}
	}
	if c.ReuseAddr != next.ReuseAddr {
		fixed = append(fixed, reuseAddr)
	}
	return live, fixed
}

// ResolveGroup is the group's address and port, looked up if the group is
// given by name. The first address that is a multicast one is taken. Where there is
// no group it is not valid.
func (c *Config) ResolveGroup(ctx context.Context) (netip.AddrPort, error) {
	if c.Group == "" {
		return netip.AddrPort{}, nil
	}
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
	if c.Group == "" && len(c.Peers) == 0 {
		return errors.New("no multicast group: name one as in `joold ff08::db8:64:64`, " +
			"by --net.mcast.addr, or in a file (see `joold help`); or nodes by --net.peer")
	}
	if err := c.checkLinks(); err != nil {
		return err
	}
	return c.completePeers()
}

// maxInstance is INAME_MAX_SIZE without its terminator.
const maxInstance = 15

func setInstance(c *Config, s string) error {
	if s == "" || len(s) > maxInstance || strings.ContainsFunc(s, unprintable) {
		return fmt.Errorf("want 1 to %d printable ASCII characters", maxInstance)
	}
	c.Instance = s
	return nil
}

func unprintable(r rune) bool { return r < ' ' || r > '~' }

// maxCluster keeps a name readable. The empty one is a name as well.
const maxCluster = 63

func setCluster(c *Config, s string) error {
	if len(s) > maxCluster || strings.ContainsFunc(s, unprintable) {
		return fmt.Errorf("want up to %d printable ASCII characters", maxCluster)
	}
	c.Cluster = s
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

// maxLinks bounds the links of a cluster. Two are what it is for.
const maxLinks = 8

// setInterface takes one interface, or several with commas between them.
func setInterface(dst *string, s string) error {
	links := strings.Split(s, ",")
	for i, one := range links {
		if _, err := netip.ParseAddr(one); err != nil {
			// The kernel's own rules (dev_valid_name).
			odd := func(r rune) bool { return r == '/' || r == ':' || unicode.IsSpace(r) || !unicode.IsPrint(r) }
			if one == "" || len(one) > maxInterface || one == "." || one == ".." || strings.ContainsFunc(one, odd) {
				return errors.New("want the name of an interface, or one of its addresses")
			}
		}
		if slices.Contains(links[:i], one) {
			return fmt.Errorf("%s is there twice", one)
		}
	}
	if len(links) > maxLinks {
		return fmt.Errorf("%d are too many: want at most %d", len(links), maxLinks)
	}
	*dst = s
	return nil
}

// Link is the interfaces of one link, each as In and Out.
type Link struct{ In, Out string }

// Links are the links that carry the group: one, unless In and Out list several, the
// first of each for the first link.
func (c *Config) Links() []Link {
	in, out := strings.Split(c.In, ","), strings.Split(c.Out, ",")
	links := make([]Link, len(in))
	for i := range links {
		links[i] = Link{in[i], out[i]}
	}
	return links
}

// checkLinks is for what neither In nor Out can tell alone.
func (c *Config) checkLinks() error {
	in, out := strings.Count(c.In, ",")+1, strings.Count(c.Out, ",")+1
	switch {
	case in != out:
		return fmt.Errorf("--net.dev.in names %d interfaces, --net.dev.out %d: want as many, in the same order", in, out)
	case in > 1 && len(c.Peers) > 0:
		return errors.New("--net.peer goes with one interface to receive on and one to send on: several carry a group")
	}
	return nil
}

func setTTL(c *Config, s string) error      { return setNumber(&c.TTL, s, 0, 255) }
func setHopLimit(c *Config, s string) error { return setNumber(&c.HopLimit, s, 0, 255) }

// setReadBuffer's bounds are the kernel's: it doubles what it is asked for, in
// a C int.
func setReadBuffer(c *Config, s string) error { return setNumber(&c.ReadBuffer, s, 4096, 1<<30-1) }

func setNumber(dst *int, s string, low, high int) error {
	n, err := strconv.Atoi(s)
	if err != nil || n < low || n > high {
		return fmt.Errorf("want a whole number from %d to %d", low, high)
	}
	*dst = n
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

// keep leaves a setting of the instance as it is.
const keep = "keep"

// setFlushDeadline is stricter than the module, which takes any number of
// milliseconds that fits in 32 bits. With 0 it would queue nothing, and Jool's
// own default is 2 s.
func setFlushDeadline(c *Config, s string) error {
	if s == keep {
		c.FlushDeadline = 0
		return nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < time.Millisecond || d > time.Minute || d%time.Millisecond != 0 {
		return errors.New("want a time from 1ms to 1m0s, in whole milliseconds, or " + keep)
	}
	c.FlushDeadline = d
	return nil
}

// maxSessions bounds what counts sessions: batch.MaxTable. The module takes any
// ss-capacity that fits in 32 bits; its memory ends long before.
const maxSessions = 8_000_000

func setCapacity(c *Config, s string) error {
	if s == keep {
		c.Capacity = 0
		return nil
	}
	if err := setNumber(&c.Capacity, s, 1, maxSessions); err != nil {
		return fmt.Errorf("%w, or %s", err, keep)
	}
	return nil
}

func setCPeers(c *Config, s string) error { return setTruth(&c.CPeers, s) }

func setEnable(c *Config, s string) error { return setTruth(&c.Enable, s) }

func setTruth(dst *bool, s string) (err error) {
	if *dst, err = strconv.ParseBool(s); err != nil {
		return errors.New("want true or false")
	}
	return nil
}

func setBatchDeadline(c *Config, s string) error {
	return setTime(&c.BatchDeadline, s, time.Millisecond, time.Second)
}

func setRefresh(c *Config, s string) error {
	if s == "auto" {
		c.Refresh = 0
		return nil
	}
	if err := setTime(&c.Refresh, s, time.Second, time.Minute); err != nil {
		return errors.New("want auto, or a time from 1s to 1m0s")
	}
	return nil
}

func setTime(dst *time.Duration, s string, low, high time.Duration) error {
	d, err := time.ParseDuration(s)
	if err != nil || d < low || d > high {
		return fmt.Errorf("want a time from %v to %v", low, high)
	}
	*dst = d
	return nil
}

func setPending(c *Config, s string) error { return setNumber(&c.Pending, s, 1, maxSessions) }
func setTable(c *Config, s string) error   { return setNumber(&c.Table, s, 1, maxSessions) }

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
