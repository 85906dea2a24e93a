package main

import (
	"bytes"
	"strings"
	"testing"

	"joold/test/lab/guest"
)

const output = `=== RUN   TestLab/4.1.15/BenchNewFlows/C
        bench_test.go:1: FIGURE {"Jool":"4.1.15","Workload":"new","Packets":10,"Seconds":2,"Daemon":"C","Datagrams":1000,"AtPeer":9,"Of":9,"TicksJ":100,"TicksK":50,"Dropped":-1}
        bench_test.go:1: FIGURE {"Jool":"4.1.15","Workload":"join-big","Seconds":2,"Daemon":"ours","AtPeer":9,"Of":9,"LagHalf":40,"LagMost":250}
        bench_test.go:1: FIGURE {"Jool":"4.1.15","Workload":"new","Packets":10,"Seconds":2,"Daemon":"ours","Datagrams":900,"AtPeer":9,"Of":9,"TicksJ":500,"TicksK":50}
        bench_test.go:1: FIGURE {"Jool":"4.1.15","Workload":"new","Packets":10,"Seconds":2,"Daemon":"ours","Datagrams":700,"AtPeer":9,"Of":9,"TicksJ":200,"TicksK":50}
        bench_test.go:1: FIGURE {"Jool":"4.1.15","Workload":"new","Packets":10,"Seconds":2,"Daemon":"ours","Datagrams":800,"AtPeer":8,"Of":9,"TicksJ":190,"TicksK":50}
`

func TestTheMedianOfAllRoundsIsComparedWithItsTarget(t *testing.T) {
	figures, err := read(strings.NewReader(output), new(bytes.Buffer))
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	tell(&out, figures)
	for _, line := range []string{
		"| 4.1.15 | new | ours | datagrams | 0.8 | times C | 1.05 | reached |",
		"| 4.1.15 | new | ours | CPU of both | 1.67 | times C | 1 | **missed** |",
		"| 4.1.15 | new | ours | sessions that are not at the peer | 0 |  | 0 | reached |",
		"| 4.1.15 | ours | 3 | 2.0 | 5 | 0 | 0 | 800 | 0 | 9 of 9 | 200 + 50 | 0 + 0 | 0 + 0 | 0.0, 0.0 |",
		"| a new one after: half of them, all |",
		"| 0.0, 0.0 | 40 ms, 250 ms |",
		"| 4.1.15 | C | 1 | 2.0 | 5 | 0 | not counted |",
	} {
		if !strings.Contains(out.String(), line) {
			t.Errorf("the tables lack %q:\n%s", line, &out)
		}
	}
}

func TestEachWorkloadOfATargetHasATable(t *testing.T) {
	for _, target := range targets {
		found := false
		for _, w := range workloads {
			found = found || w.name == target.workload
		}
		if !found {
			t.Errorf("%q has a target and no table", target.workload)
		}
	}
}

func TestOnlyTheFiguresOfADocumentAreReplaced(t *testing.T) {
	text, err := replace([]byte("before\n"+begin+"old\n"+end+"after\n"), []byte("new\n"))
	if want := "before\n" + begin + "\nnew\n\n" + end + "after\n"; err != nil || string(text) != want {
		t.Errorf("the document is %q, %v, not %q", text, err, want)
	}
	if _, err := replace([]byte("before\n"+end+begin), nil); err == nil {
		t.Error("a document without a place for figures is taken")
	}
}

func TestOutputWithoutFiguresIsAnError(t *testing.T) {
	if _, err := read(strings.NewReader("ok joold/test/lab 1.0s\n"), new(bytes.Buffer)); err == nil {
		t.Error("nothing measured is no error")
	}
	if _, err := read(strings.NewReader(guest.FigureMark+"{\n"), new(bytes.Buffer)); err == nil {
		t.Error("half a figure is no error")
	}
}
