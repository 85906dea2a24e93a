package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// The completions that are installed, by shell.
var completionFiles = map[string]string{
	"bash": "../../contrib/completion/joold.bash",
	"zsh":  "../../contrib/completion/_joold",
	"fish": "../../contrib/completion/joold.fish",
}

func TestTheShippedCompletionsAreWhatTheProgramWrites(t *testing.T) {
	for _, shell := range shellNames() {
		shipped, err := os.ReadFile(completionFiles[shell])
		if err != nil {
			t.Fatal(err)
		}
		status, stdout, stderr := joold(t, "completion", shell)
		if status != exitOK || stderr != "" || stdout != string(shipped) {
			t.Errorf("%s is out of date: write it anew with `joold completion %s`", completionFiles[shell], shell)
		}
	}
}

// Programs that offer what the shell does when the user asks to complete the
// command line $2, with the completion $1. They print a candidate a line.
var completers = map[string]string{
	"bash": `
		source "$1"
		line=${2//=/ = } # as readline splits it
		read -ra COMP_WORDS <<<"$line"
		[[ $line == *' ' ]] && COMP_WORDS+=('')
		COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
		_joold
		printf '%s\n' "${COMPREPLY[@]}"`,
	"fish": `
		source $argv[1]
		complete -C $argv[2] | string replace -r '\t.*' '' | string replace -r '^--[^=]*=' ''
		true # replaced nothing, perhaps`,
	// zsh completes only at a prompt, so it is given one.
	"zsh": `
		zmodload zsh/zpty
		cat >$3/setup <<-END
			fpath=($3 \$fpath)
			cp $1 $3/_joold
			autoload -Uz compinit && compinit -u -D
			compadd() {
				local -a found
				if [[ \${@[1,(i)(-|--)]} != *-(O|A|D)\ * ]]; then
					builtin compadd -A found "\$@"
					print -rl -- \$found >>$3/found
				fi
				builtin compadd "\$@"
			}
			capture() {
				: >$3/found
				_main_complete
				mv $3/found $3/done
			}
			zle -C capture complete-word capture
			bindkey '^I' capture
			: >$3/ready
		END
		zpty z zsh -f -i
		zpty -w z "source $3/setup"
		until [[ -e $3/ready ]]; do sleep 0.02; done
		zpty -w -n z "$2"$'\t'
		until [[ -e $3/done ]]; do sleep 0.02; done
		cat $3/done
		zpty -d z`,
}

func TestShellsOfferWhatTheProgramUnderstands(t *testing.T) {
	interfaces, err := os.ReadDir("/sys/class/net")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, i := range interfaces {
		names = append(names, i.Name())
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "settings.json")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	words := func(s ...string) []string { return s }
	tests := []struct {
		line string
		want []string
	}{
		{"joold st", words("status")},
		{"joold -i edge st", words("status")},
		{"joold -i status --net.w", words("--net.wire")},
		{"joold status --", words("--help", "--instance", "--json", "--socket", "--watch")},
		{"joold status -i edge --s", words("--socket")},
		{"joold -p 6464 --net.wire ", words("4.1.11", "4.1.12", "4.1.13", "module")},
		{"joold --log.level=d", words("debug")},
		{"joold --log.level=debug --log.format ", words("json", "text")},
		{"joold --net.dev.in ", names},
		{"joold -o ", names},
		{"joold --config " + dir + "/set", words(file)},
		{"joold help ", words("advertise", "check", "completion", "exit-status", "follow", "help", "keygen", "status", "version")},
		{"joold completion ", words("bash", "fish", "zsh")},
		{"joold advertise --r", words("--rate")},
	}
	for _, shell := range shellNames() {
		for _, tt := range tests {
			completion, err := filepath.Abs(completionFiles[shell])
			if err != nil {
				t.Fatal(err)
			}
			args := []string{"-c", completers[shell], shell, completion, tt.line, t.TempDir()}
			if shell == "fish" { // has no $0
				args = slices.Delete(args, 2, 3)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute) // of a shell that never comes to its prompt
			cmd := exec.CommandContext(ctx, shell, args...)
			cmd.Dir = t.TempDir() // without files to offer
			cmd.Env = append(os.Environ(), "HOME="+t.TempDir())
			out, err := cmd.Output()
			cancel()
			if err != nil {
				t.Fatalf("%s (install Debian's package of that name): %v", shell, err)
			}
			got := strings.Fields(string(out))
			if filepath.IsAbs(tt.want[0]) { // zsh offers the last part of a path
				for i := range got {
					got[i] = filepath.Join(dir, filepath.Base(got[i]))
				}
			}
			slices.Sort(got)
			if got = slices.Compact(got); !slices.Equal(got, tt.want) {
				t.Errorf("%s: %q: offered %q, want %q", shell, tt.line, got, tt.want)
			}
		}
	}
}
