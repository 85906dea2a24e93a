//go:build lab

package guest

import (
	"os"
	"strings"
	"testing"
)

// A recorder is a test that may fail without its host failing.
type recorder struct {
	*testing.T
	errors string
	ends   []func()
}

func (r *recorder) Errorf(format string, args ...any) { r.errors += format }
func (r *recorder) Cleanup(f func())                  { r.ends = append(r.ends, f) }

func TestCBaselineAStackTraceInTheKernelsLogFailsAScenario(t *testing.T) {
	for _, test := range []struct {
		mayTrace string
		fails    bool
	}{{"", true}, {"made up", false}} {
		r := &recorder{T: t}
		New(r, Config{MayTrace: test.mayTrace})
		if err := os.WriteFile("/dev/kmsg", []byte("<4>WARNING: CPU: 0 PID: 1 at made up/by.c:1\n"), 0); err != nil {
			t.Fatal(err)
		}
		for _, end := range r.ends {
			end()
		}
		if failed := strings.Contains(r.errors, "the kernel complained"); failed != test.fails {
			t.Errorf("with MayTrace %q the scenario failed: %v", test.mayTrace, failed)
		}
	}
}

func TestCBaselineWhatJoolWritesIsToldFromWhatTheMachineWrites(t *testing.T) {
	l := New(t, Config{})
	l.script(local{}, "dmesg -c")
	for _, line := range []string{"hrtimer: interrupt took 10316077 ns", "Jool ERROR (f): made up", "Jool: made up, too"} {
		if err := os.WriteFile("/dev/kmsg", []byte("<4>"+line+"\n"), 0); err != nil {
			t.Fatal(err)
		}
	}
	log := ofJool(l.script(local{}, "dmesg -c"))
	if strings.Count(log, "\n") != 2 || strings.Count(log, "made up") != 2 {
		t.Errorf("of Jool:\n%s", log)
	}
}
