//go:build lab

// Package lab runs the scenarios of package guest in virtual machines with each version of Jool, and reports each as a test of this
// package: go test -tags lab ./test/lab -run 'TestLab/4.1.15/Tutorial'.
package lab

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"joold/test/lab/vm"
)

// atOnce is how many versions run at a time: scenarios wait more than they compute.
var atOnce = flag.Int("at-once", 2, "how many versions run at a time")

// suites are the guest's test programs, and which of their tests are scenarios. They run one after the other.
var suites = []struct{ program, tests string }{
	{"labguest", "."},
	{"nlchantest", "^TestKernel$"}, // package nlchan's own look at the kernel
}

// mixed are pairs of machines joined by a wire: J's version and K's. They run the scenarios named TestMixed..., and only those.
var mixed = []string{"J4.1.9-K4.1.15", "J4.1.15-K4.1.9"}

// once are scenarios in which nothing depends on Jool's version: the last shows them all.
var once = regexp.MustCompile(`^Test(Fault(TheSyncInterface|SendsThatAreRefused|Signals|ABigSweep)|Idle|Unit|Table(NoPeers|AnEmptied)|Cluster(Losses|ANode|Another|Either|AReturning)|CBaselineA(LoadedTable|StackTrace)|Bench(SteadyTrafficLater|ABig|TheOrder))`)

func TestLab(t *testing.T) {
	ctx := context.Background()
	if deadline, ok := t.Deadline(); ok {
		var cancel func()
		ctx, cancel = context.WithDeadlineCause(ctx, deadline.Add(-20*time.Second), fmt.Errorf("go test's time ran out"))
		t.Cleanup(cancel) // not deferred: the versions go on when this function has returned
	}
	image, err := vm.Build(ctx)
	if err != nil {
		t.Fatal(err)
	}
	programs := t.TempDir()
	if err := vm.Programs(ctx, programs); err != nil {
		t.Fatal(err)
	}
	if err := vm.TestProgram(ctx, filepath.Join(programs, "nlchantest"), "joold/internal/nlchan"); err != nil {
		t.Fatal(err)
	}
	room := make(chan struct{}, *atOnce)
	want := strings.Split(flag.Lookup("test.run").Value.String(), "/")
	for _, versions := range append(vm.Versions, mixed...) {
		t.Run(versions, func(t *testing.T) {
			scenarios := choose(t, programs, versions, want)
			if len(scenarios) == 0 {
				return
			}
			t.Parallel()
			room <- struct{}{}
			defer func() { <-room }()
			run := startGuests(ctx, t, image, programs, versions, scenarios, want)
			for _, name := range scenarios {
				t.Run(strings.TrimPrefix(name, "Test"), func(t *testing.T) { run.report(t, name) })
			}
			if err := run.end(); err != nil {
				t.Error(err)
			}
		})
	}
}

// choose lists the scenarios that -run asks for and that these versions are to show; the guest's test programs know them all.
func choose(t *testing.T, programs, versions string, want []string) (names []string) {
	for _, suite := range suites {
		out, err := exec.Command(filepath.Join(programs, suite.program), "-test.list", suite.tests).Output()
		if err != nil {
			t.Fatalf("list the scenarios: %v", err)
		}
		for name := range strings.Lines(string(out)) {
			name = strings.TrimSpace(name)
			if strings.HasPrefix(name, "TestBench") && (len(want) < 3 || !strings.Contains(want[2], "Bench")) {
				continue // they are measurements
			}
			if strings.HasPrefix(name, "TestMixed") != slices.Contains(mixed, versions) {
				continue
			}
			if once.MatchString(name) && versions != vm.Versions[len(vm.Versions)-1] {
				continue
			}
			if len(want) > 2 && !regexp.MustCompile(want[2]).MatchString(strings.TrimPrefix(name, "Test")) {
				continue
			}
			names = append(names, name)
		}
	}
	return names
}

// guests are one run of scenarios in one guest, or in two joined by a wire.
type guests struct {
	events <-chan event
	stray  strings.Builder // output that belongs to no test
	failed bool
	ended  <-chan error
}

// An event is one of test2json's.
type event struct{ Action, Test, Output string }

func startGuests(ctx context.Context, t *testing.T, image, programs, versions string, scenarios, want []string) *guests {
	pattern := "^(" + strings.Join(scenarios, "|") + ")$"
	if len(want) > 3 {
		pattern += "/" + strings.Join(want[3:], "/")
	}
	script := "status=0\n"
	for _, suite := range suites {
		script += fmt.Sprintf("%s -test.v=test2json -test.timeout=0 -test.run='%s' || status=1\n", suite.program, pattern)
	}
	script += "exit $status"

	convert := exec.Command("go", "tool", "test2json", "-p", versions)
	in, err := convert.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := convert.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := convert.Start(); err != nil {
		t.Fatal(err)
	}

	ctx, cancel := context.WithCancel(ctx)
	j, k, two := strings.Cut(strings.TrimPrefix(versions, "J"), "-K")
	first := vm.Guest{Image: image, Jool: j, Output: in}
	var second vm.Guest
	if two {
		a, b, err := vm.Wire()
		if err != nil {
			t.Fatal(err)
		}
		first.Wire = a
		second = vm.Guest{Image: image, Jool: k, Output: io.Discard, Wire: b, Share: share(t, programs, "exec labguest agent")}
		script = "export LAB_WIRE=1\n" + script
	}
	first.Share = share(t, programs, script)

	ended := make(chan error, 1)
	go func() {
		defer in.Close()
		var other chan error
		if two {
			other = make(chan error, 1)
			go func() { other <- second.Run(ctx) }()
		}
		err := first.Run(ctx)
		cancel() // the second has no end of its own
		if two {
			<-other
		}
		ended <- err
	}()

	events := make(chan event)
	go func() {
		defer close(events)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			var e event
			if err := json.Unmarshal(lines.Bytes(), &e); err == nil {
				events <- e
			}
		}
		convert.Wait()
	}()
	return &guests{events: events, ended: ended}
}

func share(t *testing.T, programs, script string) string {
	dir := t.TempDir()
	if err := vm.Share(dir, programs, script); err != nil {
		t.Fatal(err)
	}
	return dir
}

// report waits for a scenario to start, and reports it as this test.
func (g *guests) report(t *testing.T, name string) {
	for e := range g.events {
		if e.Test == "" {
			g.stray.WriteString(e.Output)
		}
		if e.Action == "run" && e.Test == name {
			g.follow(t, name)
			return
		}
	}
	t.Fatalf("the guest never reported it; it wrote:\n%s", g.stray.String())
}

// follow reports, as it happens, what the guest says of a test and its subtests, which run one after the other.
func (g *guests) follow(t *testing.T, name string) {
	for e := range g.events {
		switch {
		case e.Action == "run":
			t.Run(strings.TrimPrefix(e.Test, name+"/"), func(t *testing.T) { g.follow(t, e.Test) })
		case e.Action == "output":
			if text := strings.TrimSpace(e.Output); !strings.HasPrefix(text, "=== ") && !strings.HasPrefix(text, "--- ") {
				fmt.Fprint(t.Output(), e.Output)
			}
		case e.Test == name && e.Action == "pass":
			return
		case e.Test == name && (e.Action == "fail" || e.Action == "skip"):
			g.failed = true
			if !t.Failed() { // else a subtest has said so
				t.Errorf("in the guest: %s", e.Action)
			}
			return
		}
	}
	t.Fatal("the guest ended without a verdict")
}

// end waits for the guests to have powered off. That tests failed in them has been reported by then.
func (g *guests) end() error {
	for range g.events {
	}
	if err := <-g.ended; err != nil && !g.failed {
		return err
	}
	return nil
}
