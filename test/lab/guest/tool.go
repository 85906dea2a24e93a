package guest

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
)

// Tool is this package's program inside the guest.
const Tool = "labguest"

// tools are what Tool does besides running scenarios.
var tools = map[string]func(args []string) error{
	"agent": func([]string) error { return serveAgent() },
	"dump":  dumpSessions,
	"load":  loadSessions,
	"small": runSmall,
	"shell": shell,
	"demo":  showDemo,
}

// RunTool does what Tool is asked to do besides running scenarios, and says whether it was.
func RunTool(args []string) bool {
	if len(args) == 0 || tools[args[0]] == nil {
		return false
	}
	if err := tools[args[0]](args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "%s %s: %v\n", Tool, args[0], err)
		os.Exit(1)
	}
	return true
}

func dumpSessions(args []string) error {
	j, err := dialJool(args[0])
	if err != nil {
		return err
	}
	w := bufio.NewWriter(os.Stdout)
	defer w.Flush()
	return j.dump(w)
}

func loadSessions(args []string) error {
	j, err := dialJool(args[0])
	if err != nil {
		return err
	}
	var sessions []Session
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		s, err := parseSession(in.Text())
		if err != nil {
			return err
		}
		sessions = append(sessions, s)
	}
	return j.load(sessions)
}

// A person is a T for somebody who looks on: everything is shown as it happens.
type person struct {
	say      func(kind byte, text string) // kind is one of the demonstration's
	failed   bool
	cleanups []func()
}

func (*person) Helper()            {}
func (p *person) Failed() bool     { return p.failed }
func (p *person) Cleanup(f func()) { p.cleanups = append(p.cleanups, f) }

func (p *person) Logf(format string, args ...any) {
	p.say(DemoText, fmt.Sprintf(format, args...))
}

func (p *person) Errorf(format string, args ...any) {
	p.failed = true
	p.say(DemoBad, "FAILED: "+fmt.Sprintf(format, args...))
}

func (p *person) Fatalf(format string, args ...any) {
	p.Errorf(format, args...)
	p.cleanup()
	os.Exit(1)
}

func (p *person) cleanup() {
	for len(p.cleanups) > 0 {
		last := len(p.cleanups) - 1
		f := p.cleanups[last]
		p.cleanups = p.cleanups[:last]
		f()
	}
}

// shell makes the network and leaves it to a person.
func shell([]string) error {
	New(&person{say: func(_ byte, text string) { fmt.Println(text) }}, Config{})
	for _, name := range []string{"J", "K", "n6", "n4"} {
		script := fmt.Sprintf(`#!/bin/sh
[ $# -gt 0 ] || set -- bash --norc
PS1='%[1]s:\w\$ ' exec nsenter -n/run/netns/%[1]s -m/run/mnt-%[1]s -u/run/uts-%[1]s "$@"
`, name)
		if err := os.WriteFile("/usr/bin/"+name, []byte(script), 0o755); err != nil {
			return err
		}
	}
	fmt.Print(`
The tutorial's network is up, with Jool's instance "default" in J and K. J owns 2001:db8::1 and 192.0.2.1.

  J, K, n6, n4           a shell in that node; with a command, that command in it: J jool session display --icmp
  joold, c-joold, jool   this project's daemon, the C one with its two files, Jool's tool ("jool session proxy")
  /lab/contrib           what the project ships; /run/syslog in each node is its syslog
  exit                   ends the guest; what was changed in it is gone

`)
	cmd := exec.Command("bash", "--norc")
	cmd.Env = append(os.Environ(), `PS1=lab:\w\$ `)
	cmd.Dir = "/root"
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Run() // how the last command of the shell ended is its user's affair
	return nil
}
