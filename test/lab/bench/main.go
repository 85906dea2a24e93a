//go:build lab

// Command bench runs the lab's measurements, ours and the C daemon of the same Jool in turn, and writes them as the tables of docs/BENCHMARKS.md:
// go run -tags lab ./test/lab/bench.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"

	"joold/test/lab/guest"
)

// The tables stand between these lines of the document.
const (
	begin = "<!-- figures of make bench-lab begin -->\n"
	end   = "<!-- figures of make bench-lab end -->\n"
)

func main() {
	document := flag.String("document", "docs/BENCHMARKS.md", "`file` whose tables are replaced")
	match := flag.String("run", "TestLab//^Bench", "measurements to run, as go test's -run has it; others lose their tables")
	flag.Parse()
	if err := run(*document, *match); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(document, match string) error {
	start := time.Now()
	figures, err := measure(match)
	if err != nil {
		return err
	}
	var tables bytes.Buffer
	fmt.Fprintf(&tables, "Measured on %s, in %v, on %s, with guests of 2 emulated processors, one at a time.\n",
		start.Format(time.DateOnly), time.Since(start).Round(time.Minute), host())
	write(&tables, figures)
	os.Stdout.Write(tables.Bytes())
	return replace(document, tables.Bytes())
}

// measure runs the measurements and shows their output as it comes.
func measure(match string) (figures []guest.Figure, err error) {
	cmd := exec.Command("go", "test", "-tags", "lab", "-count=1", "-v", "-timeout", "2h", "./test/lab", "-run", match, "-at-once", "1")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	for lines := bufio.NewScanner(out); lines.Scan(); {
		fmt.Fprintln(os.Stderr, lines.Text())
		if _, text, ok := strings.Cut(lines.Text(), guest.FigureMark); ok {
			var f guest.Figure
			if err := json.Unmarshal([]byte(text), &f); err != nil {
				return nil, fmt.Errorf("figure %q: %w", text, err)
			}
			figures = append(figures, f)
		}
	}
	if err := cmd.Wait(); err != nil {
		return nil, fmt.Errorf("run the measurements: %w", err)
	}
	if len(figures) == 0 {
		return nil, fmt.Errorf("%q measures nothing", match)
	}
	return figures, nil
}

func host() string {
	text, _ := os.ReadFile("/proc/cpuinfo")
	model := "an unknown processor"
	for line := range strings.Lines(string(text)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
			model = strings.TrimSpace(value)
		}
	}
	return fmt.Sprintf("%d of %s", runtime.NumCPU(), model)
}

// write writes a table for each workload, in which each daemon is compared with the one that was measured first, the C daemon's.
func write(w io.Writer, figures []guest.Figure) {
	var workloads []string
	for _, f := range figures {
		if !slices.Contains(workloads, f.Workload) {
			workloads = append(workloads, f.Workload)
		}
	}
	for _, workload := range workloads {
		fmt.Fprintf(w, "\n### %s\n\n", workload)
		fmt.Fprintln(w, "| Jool | daemon | took | datagrams | entries injected | at the peer | CPU J + K, ticks | not announced | resident J, K |")
		fmt.Fprintln(w, "| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
		first := map[string]guest.Figure{}
		for _, f := range figures {
			if f.Workload != workload {
				continue
			}
			base, ok := first[f.Jool]
			if !ok {
				base, first[f.Jool] = f, f
			}
			dropped := "not counted"
			if f.Dropped >= 0 {
				dropped = fmt.Sprint(f.Dropped)
			}
			fmt.Fprintf(w, "| %s | %s | %s | %s | %s | %d of %d | %d + %d%s | %s | %d, %d MiB |\n", f.Jool, f.Daemon, took(f),
				with(f.Datagrams, base.Datagrams, ok), with(f.Injected, base.Injected, ok), f.AtPeer, f.Of,
				f.TicksJ, f.TicksK, ratio(f.TicksJ+f.TicksK, base.TicksJ+base.TicksK, ok), dropped, f.ResidentJ>>10, f.ResidentK>>10)
		}
	}
}

func took(f guest.Figure) string {
	s := fmt.Sprintf("%.1f s", f.Seconds)
	if f.Packets > 0 {
		s += fmt.Sprintf(", %.0f packets/s", float64(f.Packets)/f.Seconds)
	}
	return s
}

func with(n, base int, compare bool) string { return fmt.Sprint(n) + ratio(n, base, compare) }

// ratio is a count as a part of another.
func ratio(n, base int, compare bool) string {
	if !compare || base == 0 {
		return ""
	}
	return fmt.Sprintf(" (%.3g)", float64(n)/float64(base))
}

// replace puts tables where those of the last run are.
func replace(document string, tables []byte) error {
	text, err := os.ReadFile(document)
	if err != nil {
		return err
	}
	before, rest, ok := strings.Cut(string(text), begin)
	_, after, found := strings.Cut(rest, end)
	if !ok || !found {
		return fmt.Errorf("%s lacks the lines between which tables stand", document)
	}
	return os.WriteFile(document, []byte(before+begin+"\n"+string(tables)+"\n"+end+after), 0o644)
}
