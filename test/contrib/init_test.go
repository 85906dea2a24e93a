package contrib

import (
	"encoding/json"
	"os"
	"os/exec"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"joold/internal/config"
)

// What OpenRC has at hand for a service, as far as ours uses it: each shows
// what it was asked for. Services are shell, sourced after their conf.d files.
const openrc = `
	RC_SVCNAME=$1 dir=$2; shift 2
	mkdir "$dir/bin"
	for program in checkpath supervise-daemon; do
		printf '#!/bin/sh\necho %s "$@"\n' "$program" >"$dir/bin/$program"
	done
	chmod 755 "$dir/bin/"*
	PATH=$dir/bin:$PATH
	ebegin() { :; }
	eend() { return "$1"; }
	need() { :; }
	use() { :; }
	after() { :; }
	for f in joold "$RC_SVCNAME"; do
		[ ! -e "$dir/$f.confd" ] || . "$dir/$f.confd"
	done
	. ` + dir + `/openrc/joold
	depend
	start_pre
	eval printf "'[%s]'" $command $command_args # as its own supervise_start does
	echo
	echo "$supervisor $command_user $respawn_max ${GOMEMLIMIT:-}"
	"$@"`

func TestOpenRCStartsAndReloadsAnInstancePerLink(t *testing.T) {
	confd := regexp.MustCompile("(?m)^#([A-Za-z_]+=|export )").ReplaceAllString(read(t, dir+"/openrc/joold.confd"), "$1")
	tests := []struct {
		service string
		confd   map[string]string
		want    string
	}{
		{"joold", nil, `checkpath --directory --owner root:root --mode 0755 /run/joold
[/usr/local/bin/joold][-i][default][--config][/etc/joold/default.json]
supervise-daemon root:root 0 
supervise-daemon joold --signal HUP --pidfile /run/joold.pid
`},
		{"joold.edge", map[string]string{"joold": confd}, `checkpath --directory --owner root:nat64 --mode 0755 /run/joold
[/usr/local/bin/joold][-i][edge][--config][/etc/joold/edge.json][--log.level][debug]
supervise-daemon root:nat64 0 512MiB
supervise-daemon joold.edge --signal HUP --pidfile /run/joold.edge.pid
`},
		{"joold.two words", map[string]string{"joold": confd, "joold.two words": "joold_args=-t9"}, `checkpath --directory --owner root:nat64 --mode 0755 /run/joold
[/usr/local/bin/joold][-i][two words][--config][/etc/joold/two words.json][-t9]
supervise-daemon root:nat64 0 512MiB
supervise-daemon joold.two words --signal HUP --pidfile /run/joold.two words.pid
`},
	}
	for _, tt := range tests {
		d := t.TempDir()
		for name, text := range tt.confd {
			write(t, d+"/"+name+".confd", text, 0o644)
		}
		if got := run(t, "sh", "-euc", openrc, "sh", tt.service, d, "reload"); got != tt.want {
			t.Errorf("%s:\n%s\nwant\n%s", tt.service, got, tt.want)
		}
	}
}

// What OpenWrt's rc.common, procd and UCI have at hand for a service, likewise.
// A UCI file happens to be shell.
const procd = `
	file=$1
	config() { section=$2; sections="${sections:-} $2"; eval "type_$section=\$1"; }
	option() { eval "${section}_$1=\$2"; }
	list() { eval "${section}_$1=\"\${${section}_$1:-} \$2\""; }
	config_load() { . "$file"; }
	config_foreach() {
		for s in $sections; do
			eval "[ \$type_$s = $2 ]" || continue
			"$1" "$s"
		done
	}
	config_get() { eval "$1=\${$2_$3:-${4:-}}"; }
	config_get_bool() {
		config_get "$@"
		eval "case \$$1 in 1|on|true|yes|enabled) $1=1 ;; 0|off|false|no|disabled) $1=0 ;; *) $1=${4:-} ;; esac"
	}
	config_list_foreach() {
		eval "set -- \"\$3\" \${$1_$2:-}"
		f=$1; shift
		for v; do "$f" "$v"; done
	}
	procd_open_instance() { echo "instance $1"; }
	procd_set_param() { what=$1; shift; printf '%s' "$what"; printf ' [%s]' "$@"; echo; }
	procd_append_param() { what=$1; shift; printf '%s' "$what"; printf ' [%s]' "$@"; echo; }
	procd_close_instance() { echo end; }
	procd_add_reload_trigger() { echo "reload when $1 changes"; }
	. ` + dir + `/procd/joold
	start_service
	service_triggers`

// procdCommand is the command line in what procd was told.
func procdCommand(told string) (args []string) {
	for _, line := range regexp.MustCompile("(?m)^command (.*)$").FindAllStringSubmatch(told, -1) {
		for _, arg := range regexp.MustCompile(`\[([^]]*)\]`).FindAllStringSubmatch(line[1], -1) {
			args = append(args, arg[1])
		}
	}
	return args
}

func TestProcdStartsTheShippedInstance(t *testing.T) {
	want := `instance default
command [/usr/sbin/joold] [-i] [default]
command [--net.mcast.addr=ff08::db8:64:64]
command [--net.mcast.port=6464]
command [--net.dev.in=eth2]
command [--net.dev.out=eth2]
respawn [3600] [1] [0]
stderr [1]
no_new_privs [1]
end
reload when joold changes
`
	shipped := dir + "/procd/joold.config"
	if got := run(t, "sh", "-euc", procd, "sh", shipped); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}

	all := regexp.MustCompile("(?m)^#\t").ReplaceAllString(read(t, shipped), "\t")
	path := t.TempDir() + "/joold"
	write(t, path, all+"config instance off\n\toption enabled 0\nconfig instance odd\n\toption instance two-words\n", 0o644)
	got := run(t, "sh", "-euc", procd, "sh", path)
	for _, line := range []string{"command [--net.source=2001:db8:ff08::/96]", "command [--mod.enable=1]", "env [GOMEMLIMIT=64MiB]", "instance two-words", "command [/usr/sbin/joold] [-i] [two-words]"} {
		if !strings.Contains(got, line+"\n") {
			t.Errorf("no %s in\n%s", line, got)
		}
	}
	if n := strings.Count(got, "instance "); n != 2 {
		t.Errorf("%d instances, want 2:\n%s", n, got)
	}
}

func TestProcdGivesTheDaemonEverySetting(t *testing.T) {
	reference := dir + "/joold.json"
	data, err := os.ReadFile(reference)
	if err != nil {
		t.Fatal(err)
	}
	var settings map[string]any
	if err := json.Unmarshal(data, &settings); err != nil {
		t.Fatal(err)
	}
	uci := "config instance '" + settings["instance"].(string) + "'\n"
	var want []string
	for key, value := range settings {
		option := strings.NewReplacer(".", "_", "-", "_").Replace(key)
		switch v := value.(type) {
		case []any:
			for _, one := range v {
				uci += "\tlist " + option + " '" + one.(string) + "'\n"
				want = append(want, "--"+key+"="+one.(string))
			}
		case bool:
			uci += "\toption " + option + " 'off'\n"
			want = append(want, "--"+key+"=0")
		default:
			text, _ := json.Marshal(v)
			plain := strings.Trim(string(text), `"`)
			uci += "\toption " + option + " '" + plain + "'\n"
			if key != "instance" && plain != "" {
				want = append(want, "--"+key+"="+plain)
			}
		}
	}
	path := t.TempDir() + "/joold"
	write(t, path, uci, 0o644)
	args := procdCommand(run(t, "sh", "-euc", procd, "sh", path))
	for _, flag := range want {
		if !slices.Contains(args, flag) {
			t.Errorf("no %s in %q", flag, args)
		}
	}
	got, err := config.Parse(args[1:])
	if err != nil {
		t.Fatalf("%q: %v", args, err)
	}
	file, err := config.Parse([]string{"--config", reference})
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, file) {
		t.Errorf("got  %+v\nwant %+v", got, file)
	}
}

// shellcheck is for lint; this is for the shells that are there.
func TestTheServiceFilesAreShell(t *testing.T) {
	for _, shell := range []string{"dash", "bash"} {
		for _, file := range []string{"/openrc/joold", "/openrc/joold.confd", "/procd/joold", "/keepalived/backup.sh"} {
			if out, err := exec.Command(shell, "-n", dir+file).CombinedOutput(); err != nil || len(out) > 0 {
				t.Errorf("%s %s: %v\n%s", shell, file, err, out)
			}
		}
	}
}
