// Command bench runs the lab's measurements, ours and the C daemon of the same Jool in turn, and puts their figures into docs/BENCHMARKS.md:
// go run ./test/lab/bench.
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
	"strings"
	"time"

	"joold/test/lab/guest"
)

// The figures stand between these lines of the document.
const (
	begin = "<!-- make bench-lab begins -->\n"
	end   = "<!-- make bench-lab ends -->\n"
)

func main() {
	document := flag.String("document", "docs/BENCHMARKS.md", "`file` whose figures are replaced; empty for none")
	match := flag.String("run", "TestLab//^Bench", "measurements to run, as go test's -run has it; what others measured is lost from the document")
	from := flag.String("from", "", "`file` with the output of an earlier run, to be told anew; nothing is measured")
	flag.Parse()
	if err := run(*document, *match, *from); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(document, match, from string) error {
	var text []byte
	if document != "" { // before the time for measuring is spent
		var err error
		if text, err = os.ReadFile(document); err != nil {
			return err
		}
		if _, err := replace(text, nil); err != nil {
			return fmt.Errorf("%s: %w", document, err)
		}
	}
	var figures []guest.Figure
	var out bytes.Buffer
	if from != "" {
		f, err := os.Open(from)
		if err != nil {
			return err
		}
		defer f.Close()
		if figures, err = read(f, io.Discard); err != nil {
			return err
		}
	} else {
		start := time.Now()
		var err error
		if figures, err = measure(match); err != nil {
			return err
		}
		fmt.Fprintf(&out, "Measured on %s, in %.0f minutes, with guests of 2 emulated processors, one guest at a time, on %s.\n\n",
			start.Format(time.DateOnly), time.Since(start).Minutes(), host())
	}
	tell(&out, figures)
	os.Stdout.Write(out.Bytes())
	if document == "" {
		return nil
	}
	text, err := replace(text, out.Bytes())
	if err != nil {
		return err
	}
	return os.WriteFile(document, text, 0o644)
}

// measure runs the measurements and shows their output as it comes.
func measure(match string) ([]guest.Figure, error) {
	cmd := exec.Command("go", "test", "-tags", "lab", "-count=1", "-v", "-timeout", "2h", "./test/lab", "-run", match, "-at-once", "1")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	figures, err := read(out, os.Stderr)
	if err != nil {
		cmd.Process.Kill()
		cmd.Wait()
		return nil, err
	}
	if err := cmd.Wait(); err != nil {
		return nil, fmt.Errorf("run the measurements: %w", err)
	}
	return figures, nil
}

// read finds the figures in the output of measurements, and shows that.
func read(from io.Reader, show io.Writer) (figures []guest.Figure, err error) {
	lines := bufio.NewScanner(from)
	for lines.Scan() {
		fmt.Fprintln(show, lines.Text())
		_, text, ok := strings.Cut(lines.Text(), guest.FigureMark)
		if !ok {
			continue
		}
		var f guest.Figure
		if err := json.Unmarshal([]byte(text), &f); err != nil {
			return nil, fmt.Errorf("figure %q: %w", text, err)
		}
		figures = append(figures, f)
	}
	if lines.Err() == nil && len(figures) == 0 {
		return nil, fmt.Errorf("nothing was measured")
	}
	return figures, lines.Err()
}

func host() string {
	text, _ := os.ReadFile("/proc/cpuinfo")
	model, processors := "an unknown model", 0
	for line := range strings.Lines(string(text)) {
		switch key, value, _ := strings.Cut(line, ":"); strings.TrimSpace(key) {
		case "processor":
			processors++
		case "model name":
			model = strings.TrimSpace(value)
		}
	}
	return fmt.Sprintf("%d processors: %s", processors, model)
}

// replace puts figures where those of the last run are.
func replace(text, figures []byte) ([]byte, error) {
	before, rest, ok := bytes.Cut(text, []byte(begin))
	_, after, found := bytes.Cut(rest, []byte(end))
	if !ok || !found {
		return nil, fmt.Errorf("it lacks the lines %q and %q, between which figures stand", strings.TrimSpace(begin), strings.TrimSpace(end))
	}
	return bytes.Join([][]byte{before, []byte(begin), []byte("\n"), figures, []byte("\n"), []byte(end), after}, nil), nil
}
