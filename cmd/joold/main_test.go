package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/spf13/pflag"

	"joold/internal/control"
	"joold/internal/mcast"
	"joold/internal/nlchan"
)

// joold runs a command line and returns what a shell would see of it.
func joold(t *testing.T, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	status = run(t.Context(), &env{args: args, stdin: strings.NewReader(""), stdout: &out, stderr: &errs})
	return status, out.String(), errs.String()
}

func TestAMistakeIsOneLineAndStatus2(t *testing.T) {
	dir := t.TempDir()
	config := filepath.Join(dir, "joold.json")
	if err := os.WriteFile(config, []byte(`{"net.ttl": 300}`), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		args []string
		want string
	}{
		{nil, "no multicast group: name one as in `joold ff08::db8:64:64`, by --net.mcast.addr, or in a file (see `joold help`); or nodes by --net.peer"},
		{[]string{"--nett.ttl", "3"}, "unknown flag --nett.ttl; the nearest is --net.ttl"},
		{[]string{"stauts"}, `no command, address or file is called "stauts"; the nearest command is "status"`},
		{[]string{"-i", "edge", "advertize"}, `no command, address or file is called "advertize"; the nearest command is "advertise"`},
		{[]string{"status", "--jsn"}, "unknown flag --jsn; the nearest is --json"},
		{[]string{"--jsn", "status"}, "unknown flag --jsn; the nearest is --json"},
		{[]string{"status", "edge"}, `status: unexpected argument "edge"`},
		{[]string{"advertise", "--rate", "0"}, `--rate "0": want a whole number from 1 to 10000000`},
		{[]string{"status", "--json=maybe"}, `--json "maybe": want true or false`},
		{[]string{"help", "stats"}, `help: nothing on "stats"; the nearest is "status"`},
		{[]string{"help", "status", "follow"}, `help: unexpected argument "follow"`},
		{[]string{"completion"}, "completion: want one shell: bash, fish, zsh"},
		{[]string{"completion", "bas"}, `completion: no shell "bas"; the nearest is "bash"`},
		{[]string{"--config", config}, config + `: "net.ttl": 300: want a whole number from 0 to 255`},
		{[]string{"--config", "a\nb"}, "open a b: no such file or directory"},
		{[]string{"10.0.0.1"}, `--net.mcast.addr "10.0.0.1": want a multicast address: one in 224.0.0.0/4 or ff00::/8`},
		{[]string{"--", "status"}, `no command, address or file is called "status"; the nearest command is "status"`},
	}
	for _, tt := range tests {
		status, stdout, stderr := joold(t, tt.args...)
		if want := "joold: " + tt.want + "\n"; status != exitUsage || stdout != "" || stderr != want {
			t.Errorf("%q: status %d, stdout %q\ngot  %swant %s", tt.args, status, stdout, stderr, want)
		}
	}
}

func TestACommandIsTheFirstArgumentThatIsNoFlagAndNoValue(t *testing.T) {
	tests := []struct{ line, name, rest string }{
		{"status", "status", ""},
		{"-i edge status", "status", "-i edge"},
		{"-iedge status", "status", "-iedge"},
		{"--instance=edge status --json", "status", "--instance=edge --json"},
		{"--instance edge status", "status", "--instance edge"},
		{"status -i status", "status", "-i status"},
		{"-i status", "", "-i status"},
		{"-i status follow", "follow", "-i status"},
		{"--json status", "status", "--json"},
		{"-q advertise", "advertise", "-q"},
		{"help status", "help", "status"},
		{"ff08::1", "", "ff08::1"},
		{"ff08::1 status", "", "ff08::1 status"},
		{"net.json mod.json 6401", "", "net.json mod.json 6401"},
		{"-- status", "", "-- status"},
		{"", "", ""},
	}
	for _, tt := range tests {
		c, rest := split(strings.Fields(tt.line))
		if got := strings.Join(rest, " "); c.name != tt.name || got != tt.rest {
			t.Errorf("%s: command %q with %q, want %q with %q", tt.line, c.name, got, tt.name, tt.rest)
		}
	}
}

// A command is found before its flags are known, so a flag must have the same
// shape wherever it occurs.
func TestAFlagMeansTheSameInEveryCommand(t *testing.T) {
	type shape struct{ short, value, none string }
	seen := make(map[string]shape)
	shorts := make(map[string]string)
	for _, c := range commands() {
		flags, _ := c.flags()
		flags.VisitAll(func(f *pflag.Flag) {
			s := shape{f.Shorthand, f.Value.Type(), f.NoOptDefVal}
			if was, ok := seen[f.Name]; ok && was != s {
				t.Errorf("--%s is %+v in one command and %+v in %q", f.Name, was, s, c.name)
			}
			seen[f.Name] = s
			if was, ok := shorts[f.Shorthand]; ok && f.Shorthand != "" && was != f.Name {
				t.Errorf("-%s is --%s in one command and --%s in %q", f.Shorthand, was, f.Name, c.name)
			}
			shorts[f.Shorthand] = f.Name
		})
	}
}

func TestEveryErrorHasItsStatus(t *testing.T) {
	tests := []struct {
		err    error
		status int
	}{
		{nlchan.ErrNoModule, exitNoModule},
		{nlchan.ErrNoInstance, exitNoInstance},
		{nlchan.ErrSyncDisabled, exitNoInstance},
		{nlchan.ErrPermission, exitNoPrivilege},
		{fs.ErrPermission, exitNoPrivilege},
		{mcast.ErrNoInterface, exitNoInterface},
		{mcast.ErrInterfaceDown, exitNoInterface},
		{mcast.ErrNoAddress, exitNoInterface},
		{mcast.ErrNoRoute, exitNoInterface},
		{mcast.ErrPortInUse, exitNoInterface},
		{mcast.ErrNotMulticast, exitUsage},
		{control.ErrNoDaemon, exitNoDaemon},
		{control.ErrInUse, exitFailed},
		{errors.New("something else"), exitFailed},
		{usageError{fs.ErrPermission}, exitUsage}, // a file of settings that cannot be read
		{fmt.Errorf("%w; and the kernel cannot: %w", control.ErrNoDaemon, nlchan.ErrNoModule), exitNoDaemon},
	}
	for _, tt := range tests {
		if got := exitStatus(fmt.Errorf("tried: %w", tt.err)); got != tt.status {
			t.Errorf("%v: status %d, want %d", tt.err, got, tt.status)
		}
	}
}

func TestAClientWithoutADaemonSaysSo(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "none.sock")
	for _, name := range []string{"status", "advertise"} {
		status, stdout, stderr := joold(t, name, "--socket", socket)
		if status != exitNoDaemon || stdout != "" || !strings.HasPrefix(stderr, "joold: no joold daemon is running at "+socket) ||
			strings.Count(stderr, "\n") != 1 {
			t.Errorf("%s: status %d, stdout %q, stderr %q", name, status, stdout, stderr)
		}
	}
}

func TestAnInterruptedCommandSaysSo(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var errs bytes.Buffer
	status := run(ctx, &env{args: []string{"status", "--socket", filepath.Join(t.TempDir(), "s")}, stdout: &errs, stderr: &errs})
	if status != exitFailed || errs.String() != "joold: interrupted\n" {
		t.Errorf("status %d, %q", status, errs.String())
	}
}

func TestWhatCannotBeWrittenFails(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	for _, args := range [][]string{{"version"}, {"--version"}, {"help"}, {"help", "exit-status"}, {"completion", "bash"}, {"keygen"}} {
		var errs bytes.Buffer
		status := run(t.Context(), &env{args: args, stdout: full, stderr: &errs})
		if status != exitFailed || !strings.Contains(errs.String(), "no space left") {
			t.Errorf("%q: status %d, %q", args, status, errs.String())
		}
	}
}

func TestVersionNamesJooldGoAndEncodings(t *testing.T) {
	version = "1.2.3"
	defer func() { version = "" }()
	want := regexp.MustCompile(`^joold 1\.2\.3\ngo\S+( \S+)* linux/\w+\nencodings 4\.1\.11, 4\.1\.12, 4\.1\.13\n$`)
	for _, arg := range []string{"version", "--version"} {
		status, stdout, stderr := joold(t, arg)
		if status != exitOK || stderr != "" || !want.MatchString(stdout) {
			t.Errorf("%s: status %d, %q, %q", arg, status, stdout, stderr)
		}
	}
}

func TestHelpIsTheSameHoweverItIsAskedFor(t *testing.T) {
	for topic, lines := range map[string][]string{
		"":       {"help", "--help", "-h", "-i edge --help"},
		"status": {"help status", "status --help", "--help status", "-i edge -h status"},
	} {
		var want bytes.Buffer
		if err := printHelp(&env{stdout: &want}, topic); err != nil {
			t.Fatal(err)
		}
		for _, line := range lines {
			status, stdout, stderr := joold(t, strings.Fields(line)...)
			if status != exitOK || stderr != "" || stdout != want.String() {
				t.Errorf("joold %s: status %d, stderr %q, stdout\n%s", line, status, stderr, stdout)
			}
		}
	}
}

func TestHelpFitsTheScreenAndLeavesNothingOut(t *testing.T) {
	for _, topic := range append(helpTopics(), "") {
		var out bytes.Buffer
		if err := printHelp(&env{stdout: &out}, topic); err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(out.String()) {
			if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > width {
				t.Errorf("help %s: %d columns: %s", topic, n, line)
			}
		}
		if topic == "" {
			for _, name := range commandNames() {
				if !strings.Contains(out.String(), "\n  "+name+" ") {
					t.Errorf("help does not name %s", name)
				}
			}
		}
	}
}

const manual = "../../docs/joold.8"

// section is the part of the manual under a heading (.SH or .SS), up to the next
// heading of any kind.
func section(t *testing.T, text, heading string) string {
	t.Helper()
	_, after, ok := strings.Cut(text, "\n"+heading+"\n")
	if !ok {
		t.Fatalf("the manual has no %s", heading)
	}
	if end := regexp.MustCompile(`(?m)^\.S[HS]\b`).FindStringIndex(after); end != nil {
		after = after[:end[0]]
	}
	return after
}

func TestTheManualHasEveryFlagAndNoOther(t *testing.T) {
	data, err := os.ReadFile(manual)
	if err != nil {
		t.Fatal(err)
	}
	text := string(data)
	known := make(map[string]bool)
	for _, c := range commands() {
		heading := ".SS " + c.name
		if c.name == "" {
			heading = ".SH OPTIONS"
		}
		part := section(t, text, heading)
		flags, _ := c.flags()
		flags.VisitAll(func(f *pflag.Flag) {
			known[f.Name] = true
			if f.Name == "help" && c.name != "" {
				return // told once for all
			}
			entry := `\fB\-\-` + strings.ReplaceAll(f.Name, "-", `\-`) + `\fR`
			if f.Shorthand != "" {
				entry = `\fB\-` + f.Shorthand + `\fR, ` + entry
			}
			if f.NoOptDefVal == "" {
				entry += ` \fI` + f.Value.Type() + `\fR`
			}
			if !strings.Contains(part, ".TP\n"+entry+"\n") {
				t.Errorf("%s: no entry %s", heading, entry)
			}
			if def := f.DefValue; f.NoOptDefVal == "" && def != "" && !strings.Contains(part, def) {
				t.Errorf("%s: %s: the default, %s, is not told", heading, entry, def)
			}
		})
		for _, m := range regexp.MustCompile(`\.TP\n.*\\fB\\-\\-([a-z.\\-]+)\\fR`).FindAllStringSubmatch(part, -1) {
			if flags.Lookup(strings.ReplaceAll(m[1], `\-`, "-")) == nil {
				t.Errorf("%s: there is no flag --%s", heading, m[1])
			}
		}
	}
	for _, m := range regexp.MustCompile(`\\-\\-([a-z](?:[a-z.]|\\-)*[a-z])`).FindAllStringSubmatch(text, -1) {
		if !known[strings.ReplaceAll(m[1], `\-`, "-")] {
			t.Errorf("the manual speaks of --%s, which no command has", m[1])
		}
	}
}

func TestTheManualHasTheExitStatusesOfTheProgram(t *testing.T) {
	data, err := os.ReadFile(manual)
	if err != nil {
		t.Fatal(err)
	}
	part := section(t, string(data), ".SH EXIT STATUS")
	if n := strings.Count(part, ".TP\n"); n != int(exits) {
		t.Errorf("%d statuses, want %d", n, exits)
	}
	for status, meaning := range exitMeanings {
		entry := ".TP\n.B " + strconv.Itoa(status) + "\n" + strings.ToUpper(meaning[:1]) + meaning[1:] + ".\n"
		if !strings.Contains(part, entry) {
			t.Errorf("no entry %q", entry)
		}
	}
}

func TestTheManualIsFreeOfFormattingWarnings(t *testing.T) {
	out, err := exec.Command("groff", "-man", "-ww", "-z", manual).CombinedOutput()
	if err != nil || len(out) > 0 {
		t.Errorf("groff (Debian's groff-base): %v\n%s", err, out)
	}
}

func TestAMistypedCommandIsNotTakenForAFileThatExists(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := os.WriteFile("net", []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	var taken []string
	for _, arg := range []string{"net", "net.json", "./x", "ff08::1", "ff08::zz", "follw"} {
		if !mistyped(arg) {
			taken = append(taken, arg)
		}
	}
	if want := []string{"net", "net.json", "./x", "ff08::1", "ff08::zz"}; !slices.Equal(taken, want) {
		t.Errorf("taken for an address or a file: %q, want %q", taken, want)
	}
}
