package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"joold/internal/config"
)

// shells are those that completion is written for, and what writes it.
var shells = map[string]func(*strings.Builder, []completable){
	"bash": completeBash,
	"zsh":  completeZsh,
	"fish": completeFish,
}

func shellNames() []string { return slices.Sorted(maps.Keys(shells)) }

func completionCommand() *command {
	return &command{
		name:  "completion",
		args:  "bash|zsh|fish",
		short: "write the shell's completion of joold",
		words: shellNames,
		long: `Examples:
  joold completion bash > /etc/bash_completion.d/joold
  joold completion zsh > /usr/local/share/zsh/site-functions/_joold
  joold completion fish > /etc/fish/completions/joold.fish`,
		setup: func(*pflag.FlagSet) func(context.Context, *env) error {
			return func(_ context.Context, e *env) error {
				if len(e.args) != 1 {
					return usagef("completion: want one shell: %s", strings.Join(shellNames(), ", "))
				}
				text, err := completion(e.args[0])
				if err != nil {
					return err
				}
				_, err = io.WriteString(e.stdout, text)
				return err
			}
		},
	}
}

// completion is the script that completes joold's command line in a shell.
func completion(shell string) (string, error) {
	write := shells[shell]
	if write == nil {
		return "", usagef("completion: no shell %q; the nearest is %q", shell, config.Nearest(shell, shellNames()))
	}
	var cs []completable
	for _, c := range commands() {
		cs = append(cs, c.completable())
	}
	var b strings.Builder
	write(&b, cs)
	return b.String(), nil
}

// completable is a command as a shell needs to know it.
type completable struct {
	name, short string
	flags       []completableFlag
	words       []string // what the first argument may be
}

type completableFlag struct {
	name, short, doc string
	takesValue       bool
	repeated         bool
	value            valueKind
	words            []string // for valueWords
}

// valueKind is where a shell finds what a flag's value may be.
type valueKind int

const (
	valueFree valueKind = iota
	valueWords
	valueInstance
	valueInterface
	valueFile
)

func (c *command) completable() completable {
	out := completable{name: c.name, short: c.short}
	if c.words != nil {
		out.words = c.words()
	}
	fs, _ := c.flags()
	fs.VisitAll(func(f *pflag.Flag) {
		flag := completableFlag{name: f.Name, short: f.Shorthand, doc: f.Usage, takesValue: f.NoOptDefVal == ""}
		switch f.Value.Type() {
		case "NAME":
			flag.value = valueInstance
		case "IF":
			flag.value = valueInterface
		case "FILE", "PATH":
			flag.value = valueFile
		}
		if v, ok := f.Value.(interface{ Words() []string }); ok && v.Words() != nil {
			flag.value, flag.words = valueWords, v.Words()
		}
		if v, ok := f.Value.(interface{ Repeated() bool }); ok {
			flag.repeated = v.Repeated()
		}
		out.flags = append(out.flags, flag)
	})
	return out
}

// spellings are the flag with its dashes, short first.
func (f *completableFlag) spellings() []string {
	if f.short == "" {
		return []string{"--" + f.name}
	}
	return []string{"-" + f.short, "--" + f.name}
}

// valued are the spellings of all flags that take a value, each once.
func valued(cs []completable) []string {
	var all []string
	for _, c := range cs {
		for _, f := range c.flags {
			if f.takesValue {
				all = append(all, f.spellings()...)
			}
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// subcommands are all but the daemon.
func subcommands(cs []completable) (names []string) {
	for _, c := range cs {
		if c.name != "" {
			names = append(names, c.name)
		}
	}
	return names
}

// listInstances prints, in any of the shells' common tongue, the instances that
// have a daemon or that jool knows.
const listInstances = `{
        ls /run/joold 2>/dev/null | sed -n 's/\(@[0-9]*\)\{0,1\}\.sock$//p'
        jool instance display --csv --no-headers 2>/dev/null | cut -d, -f2
    } | sort -u`

func completeBash(b *strings.Builder, cs []completable) {
	fmt.Fprintf(b, `# bash completion of joold, written by: joold completion bash

_joold_instances() {
    %s
}

_joold_matching() { # those lines of the input that begin with $1
    local line
    while IFS= read -r line; do
        [[ $line == "$1"* ]] && COMPREPLY+=("$line")
    done
}

_joold_words() { # those further arguments that begin with $1
    _joold_matching "$1" < <(printf '%%s\n' "${@:2}")
}

_joold_files() { # those files whose path begins with $1
    compopt -o filenames 2>/dev/null
    _joold_matching "$1" < <(compgen -f -- "$1")
}

_joold() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} command='' i
    COMPREPLY=()
    # --flag=value comes as three words.
    if [[ $cur == = ]]; then
        cur=''
    elif [[ $prev == = ]]; then
        prev=${COMP_WORDS[COMP_CWORD-2]}
    fi
    for ((i = 1; i < COMP_CWORD; i++)); do
        case ${COMP_WORDS[i]} in
        %s)
            [[ ${COMP_WORDS[i+1]} == = ]] && ((i++))
            ((i++))
            ;;
        %s)
            command=${COMP_WORDS[i]}
            break
            ;;
        esac
    done

    case $command:$prev in
`, listInstances, strings.Join(valued(cs), "|"), strings.Join(subcommands(cs), "|"))
	for _, c := range cs {
		for _, f := range c.flags {
			if !f.takesValue {
				continue
			}
			var patterns []string
			for _, s := range f.spellings() {
				patterns = append(patterns, c.name+":"+s)
			}
			action := "" // nothing to offer
			switch f.value {
			case valueWords:
				action = `_joold_words "$cur" ` + strings.Join(f.words, " ") + "; "
			case valueInstance:
				action = `_joold_matching "$cur" < <(_joold_instances); `
			case valueInterface:
				action = `_joold_matching "$cur" < <(ls /sys/class/net 2>/dev/null); `
			case valueFile:
				action = `_joold_files "$cur"; `
			}
			fmt.Fprintf(b, "    %s) %sreturn ;;\n", strings.Join(patterns, "|"), action)
		}
	}
	b.WriteString("    esac\n\n    case $command:$cur in\n")
	for _, c := range cs {
		var names []string
		for _, f := range c.flags {
			names = append(names, f.spellings()...)
		}
		fmt.Fprintf(b, "    %s:-*) _joold_words \"$cur\" %s ;;\n", c.name, strings.Join(names, " "))
		switch {
		case c.name == "":
			fmt.Fprintf(b, "    :*) _joold_words \"$cur\" %s; _joold_files \"$cur\" ;;\n", strings.Join(subcommands(cs), " "))
		case c.words != nil:
			fmt.Fprintf(b, "    %s:*) _joold_words \"$cur\" %s ;;\n", c.name, strings.Join(c.words, " "))
		}
	}
	b.WriteString("    esac\n}\n\ncomplete -F _joold joold\n")
}

func completeZsh(b *strings.Builder, cs []completable) {
	fmt.Fprintf(b, `#compdef joold
# zsh completion of joold, written by: joold completion zsh

_joold_instances() {
    local -a instances
    instances=(${(f)"$(%s)"})
    compadd -a instances
}

_joold_commands() {
    local -a names
    names=(
`, listInstances)
	for _, c := range cs {
		if c.name != "" {
			fmt.Fprintf(b, "        %s\n", zshQuote(c.name+":"+c.short))
		}
	}
	fmt.Fprintf(b, `    )
    _describe command names
    _files
}

_joold() {
    local command i
    for ((i = 2; i < CURRENT; i++)); do
        case $words[i] in
        (%s) ((i++)) ;;
        (%s)
            command=$words[i]
            break
            ;;
        esac
    done

    case $command in
`, strings.Join(valued(cs), "|"), strings.Join(subcommands(cs), "|"))
	for _, c := range cs {
		pattern := c.name
		if pattern == "" {
			pattern = "''"
		}
		fmt.Fprintf(b, "    (%s)\n        _arguments -s", pattern)
		for _, f := range c.flags {
			writeZshFlag(b, &f)
		}
		switch {
		case c.name == "":
			b.WriteString(" \\\n            '*: :_joold_commands'")
		case c.words != nil:
			fmt.Fprintf(b, " \\\n            ': :(%s)' ': :(%s)'", c.name, strings.Join(c.words, " "))
		default:
			fmt.Fprintf(b, " \\\n            ': :(%s)'", c.name)
		}
		b.WriteString("\n        ;;\n")
	}
	b.WriteString("    esac\n}\n\n_joold \"$@\"\n")
}

func writeZshFlag(b *strings.Builder, f *completableFlag) {
	suffix, value := "", ""
	if f.takesValue {
		suffix, value = "=", ":value:"
		switch f.value {
		case valueWords:
			value += "(" + strings.Join(f.words, " ") + ")"
		case valueInstance:
			value += "_joold_instances"
		case valueInterface:
			value += "_net_interfaces"
		case valueFile:
			value += "_files"
		default:
			value += " "
		}
	}
	// Each spelling excludes the other, not what else is on the line.
	exclude := "(" + strings.Join(f.spellings(), " ") + ")"
	if f.repeated {
		exclude = "*"
	}
	doc := "[" + strings.NewReplacer("[", `\[`, "]", `\]`, ":", `\:`).Replace(f.doc) + "]"
	fmt.Fprintf(b, " \\\n            %s", zshQuote(exclude+"--"+f.name+suffix+doc+value))
	if f.short != "" {
		if f.takesValue {
			suffix = "+" // in the same word or the next
		}
		fmt.Fprintf(b, " \\\n            %s", zshQuote(exclude+"-"+f.short+suffix+doc+value))
	}
}

func zshQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

func completeFish(b *strings.Builder, cs []completable) {
	fmt.Fprintf(b, `# fish completion of joold, written by: joold completion fish

function __joold_instances
    begin
        ls /run/joold 2>/dev/null | sed -n 's/\(@[0-9]*\)\{0,1\}\.sock$//p'
        jool instance display --csv --no-headers 2>/dev/null | cut -d, -f2
    end | sort -u
end

# Tells whether the command line's command is the given one; none is the daemon.
function __joold_in
    set -l skip 0
    set -l command ''
    for word in (commandline -opc)[2..-1]
        if test $skip = 1
            set skip 0
            continue
        end
        switch $word
            case %s
                set skip 1
            case %s
                set command $word
                break
        end
    end
    test "$command" = "$argv[1]"
end

complete -c joold -n 'not __joold_in ""' -f
`, strings.Join(valued(cs), " "), strings.Join(subcommands(cs), " "))
	for _, c := range cs {
		if c.name != "" {
			fmt.Fprintf(b, "complete -c joold -n '__joold_in \"\"' -a %s -d %s\n", c.name, fishQuote(c.short))
		}
	}
	for _, c := range cs {
		b.WriteByte('\n')
		in := fmt.Sprintf("complete -c joold -n '__joold_in \"%s\"'", c.name)
		if c.words != nil {
			fmt.Fprintf(b, "%s -a '%s'\n", in, strings.Join(c.words, " "))
		}
		for _, f := range c.flags {
			fmt.Fprintf(b, "%s -l %s", in, f.name)
			if f.short != "" {
				fmt.Fprintf(b, " -s %s", f.short)
			}
			fmt.Fprintf(b, " -d %s", fishQuote(f.doc))
			if f.takesValue {
				switch f.value {
				case valueFree:
					b.WriteString(" -x")
				case valueWords:
					fmt.Fprintf(b, " -x -a '%s'", strings.Join(f.words, " "))
				case valueInstance:
					b.WriteString(" -x -a '(__joold_instances)'")
				case valueInterface:
					b.WriteString(" -x -a '(ls /sys/class/net 2>/dev/null)'")
				case valueFile:
					b.WriteString(" -r -F")
				}
			}
			b.WriteByte('\n')
		}
	}
}

func fishQuote(s string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(s) + "'"
}
