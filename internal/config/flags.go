package config

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/spf13/pflag"
)

// Flags are the daemon's settings as a command line gives them.
type Flags struct {
	set  *pflag.FlagSet
	file string
}

// Define adds the daemon's flags to fs.
func Define(fs *pflag.FlagSet) *Flags {
	f := &Flags{set: fs}
	for _, s := range settings {
		flag := fs.VarPF(&value{
			text:     &s.def,
			arg:      s.arg,
			words:    s.words,
			repeated: s.kind&list != 0,
			check:    func(v string) error { return s.set(new(Config), v) },
		}, s.name, s.short, s.doc)
		if s.kind == truth {
			flag.NoOptDefVal = "true"
		}
	}
	fs.Var(&value{text: &f.file, arg: "FILE", check: notEmpty}, "config",
		"file of settings, named as the flags are; flags win")
	return f
}

// Config is the daemon's configuration after the flags were parsed, from args
// (what they left of the command line), a file that either names, and the
// flags themselves, which win. Asked again, it reads the files again.
func (f *Flags) Config(args []string) (*Config, error) {
	c := defaults()
	group := ""
	if len(args) > 0 && isAddr(args[0]) {
		if f.set.Changed("net.mcast.addr") {
			return nil, fmt.Errorf("the group is given twice: %s and --net.mcast.addr", args[0])
		}
		if len(args) > 1 {
			return nil, fmt.Errorf("unexpected argument %q after the group %s", args[1], args[0])
		}
		group, args = args[0], nil
	}
	switch {
	case f.file != "" && len(args) > 0:
		return nil, fmt.Errorf("unexpected argument %q: with --config there can be no other file", args[0])
	case f.file != "":
		if err := c.readFile(f.file); err != nil {
			return nil, err
		}
	case len(args) > 0:
		if err := c.readLegacy(args); err != nil {
			return nil, err
		}
	}
	for _, s := range settings {
		if flag := f.set.Lookup(s.name); flag.Changed {
			if err := s.set(c, flag.Value.String()); err != nil {
				return nil, fmt.Errorf("--%s %q: %w", s.name, flag.Value, err)
			}
		}
	}
	if group != "" {
		if err := setGroup(c, group); err != nil {
			return nil, fmt.Errorf("--net.mcast.addr %q: %w", group, err)
		}
	}
	if err := c.validate(); err != nil {
		return nil, err
	}
	return c, c.readKeys()
}

// Parse is the daemon's configuration from its whole command line.
func Parse(args []string) (*Config, error) {
	fs := pflag.NewFlagSet("joold", pflag.ContinueOnError)
	f := Define(fs)
	if err := ParseFlags(fs, args); err != nil {
		return nil, err
	}
	return f.Config(fs.Args())
}

// Client is what a command needs to find a running daemon.
type Client struct {
	Instance string // Jool's name of the instance, within the same bounds as Config's
	Socket   string // path of the daemon's control socket; "" for the usual one
}

// DefineClient adds to fs the flags that say which daemon is meant.
func DefineClient(fs *pflag.FlagSet) *Client {
	cl := new(Client)
	DefineInstance(fs, &cl.Instance)
	fs.Var(&value{text: &cl.Socket, arg: "PATH", check: func(v string) error { return setControlSocket(new(Config), v) }},
		"socket", "control socket of the daemon (usually /run/joold/NAME.sock)")
	return cl
}

// DefineInstance adds to fs the flag that says which instance is meant.
func DefineInstance(fs *pflag.FlagSet, name *string) {
	*name = defaults().Instance
	fs.VarP(&value{text: name, arg: "NAME", check: func(v string) error { return setInstance(new(Config), v) }},
		"instance", "i", "Jool instance that is meant")
}

// DefineNumber adds to fs a flag for a whole number from low to high. It is 0
// where the flag is not given.
func DefineNumber(fs *pflag.FlagSet, name, usage string, low, high int) *int {
	n, text := 0, ""
	fs.Var(&value{text: &text, arg: "N", check: func(v string) error {
		return setNumber(&n, v, low, high)
	}}, name, usage)
	return &n
}

// value is a flag whose text is checked when it is parsed. Type, which help
// shows, is what the argument is called.
type value struct {
	text     *string
	arg      string
	words    []string
	repeated bool // what is given again is added, with a comma
	given    bool
	check    func(string) error
}

var _ pflag.Value = (*value)(nil)

func (v *value) String() string { return *v.text }
func (v *value) Type() string   { return v.arg }

// Words are the flag's values where they can be listed, for completion.
func (v *value) Words() []string { return v.words }

// Repeated tells whether the flag may be given several times, likewise.
func (v *value) Repeated() bool { return v.repeated }

func (v *value) Set(s string) error {
	if err := v.check(s); err != nil {
		return err
	}
	if v.repeated && v.given {
		s = *v.text + "," + s
	}
	*v.text, v.given = s, true
	return nil
}

// ParseFlags parses args. Its errors are one line and name the nearest flag
// where there is none of a name; pflag.ErrHelp comes as it is.
func ParseFlags(fs *pflag.FlagSet, args []string) error {
	fs.SortFlags = false
	fs.Usage = func() {}
	return flagError(fs, fs.Parse(args))
}

func flagError(fs *pflag.FlagSet, err error) error {
	var (
		unknown *pflag.NotExistError
		missing *pflag.ValueRequiredError
		invalid *pflag.InvalidValueError
	)
	switch {
	case errors.As(err, &unknown) && unknown.GetSpecifiedShortnames() != "":
		return fmt.Errorf("unknown flag -%s", unknown.GetSpecifiedName())
	case errors.As(err, &unknown):
		var names []string
		fs.VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
		return fmt.Errorf("unknown flag --%s; the nearest is --%s", unknown.GetSpecifiedName(), Nearest(unknown.GetSpecifiedName(), names))
	case errors.As(err, &missing):
		return fmt.Errorf("--%s needs a value: %s", missing.GetFlag().Name, missing.GetFlag().Value.Type())
	case errors.As(err, &invalid) && invalid.GetFlag().Value.Type() == "bool":
		return fmt.Errorf("--%s %q: want true or false", invalid.GetFlag().Name, invalid.GetValue())
	case errors.As(err, &invalid):
		return fmt.Errorf("--%s %q: %w", invalid.GetFlag().Name, invalid.GetValue(), errors.Unwrap(invalid))
	}
	return err
}

func isAddr(s string) bool {
	_, err := netip.ParseAddr(s)
	return err == nil
}

func notEmpty(s string) error {
	if s == "" {
		return errors.New("want the path of a file")
	}
	return nil
}

// Nearest is the one of names with the fewest letters to change, add or drop
// to reach it from name.
func Nearest(name string, names []string) string {
	best, least := "", -1
	for _, n := range names {
		if d := distance(name, n); least < 0 || d < least {
			best, least = n, d
		}
	}
	return best
}

// distance is Levenshtein's.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
