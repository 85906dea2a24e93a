package docs

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// levels are how docs/OPERATIONS.md calls the level of a logger's methods, and
// where these have the message.
var levels = map[string]struct {
	name    string
	message int
}{
	"Info": {"info", 0}, "Warn": {"warn", 0}, "WarnWith": {"warn", 0}, "Error": {"error", 0},
	"InfoContext": {"info", 1}, "WarnContext": {"warn", 1}, "ErrorContext": {"error", 1},
}

// gap stands for what a message has from a variable.
const gap = "NAME"

// text is what a string expression says; ok is false where none of it is literal.
func text(e ast.Expr) (s string, ok bool) {
	switch e := e.(type) {
	case *ast.BasicLit:
		s, err := strconv.Unquote(e.Value)
		return s, err == nil && e.Kind == token.STRING
	case *ast.BinaryExpr:
		x, okX := text(e.X)
		y, okY := text(e.Y)
		return x + y, e.Op == token.ADD && (okX || okY)
	}
	return gap, false
}

// calls gives each call of a method or function in the product's own code.
func calls(t *testing.T, each func(at string, name string, args []ast.Expr)) {
	t.Helper()
	files := token.NewFileSet()
	for _, dir := range []string{"cmd", "internal"} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") {
				return err
			}
			f, err := parser.ParseFile(files, path, nil, parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			ast.Inspect(f, func(n ast.Node) bool {
				call, ok := n.(*ast.CallExpr)
				if !ok {
					return true
				}
				at := strings.TrimPrefix(files.Position(call.Pos()).String(), root+"/")
				switch fun := call.Fun.(type) {
				case *ast.SelectorExpr:
					each(at, fun.Sel.Name, call.Args)
				case *ast.Ident:
					each(at, fun.Name, call.Args)
				}
				return true
			})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// plain is a message without what Markdown or a warning's format adds to it.
func plain(s string) string {
	return strings.Join(strings.Fields(strings.NewReplacer("`", "", "%s", gap, "%d", gap).Replace(s)), " ")
}

// rows are the cells of the tables under a heading.
func rows(t *testing.T, doc, heading string) (cells [][]string) {
	t.Helper()
	_, section, ok := strings.Cut(doc, "\n"+heading+"\n")
	if !ok {
		t.Fatalf("there is no %q", heading)
	}
	if end := regexp.MustCompile(`(?m)^#`).FindStringIndex(section); end != nil {
		section = section[:end[0]]
	}
	for line := range strings.Lines(section) {
		if row := strings.TrimSpace(line); strings.HasPrefix(row, "| ") && !strings.HasPrefix(row, "| ---") {
			parts := strings.Split(strings.Trim(row, "|"), "|")
			for i := range parts {
				parts[i] = plain(parts[i])
			}
			cells = append(cells, parts)
		}
	}
	if len(cells) < 2 {
		t.Fatalf("%s: no table", heading)
	}
	return cells[1:] // without its head
}

// compare tells what one of two sets lacks.
func compare(t *testing.T, what string, told, real map[string]string) {
	t.Helper()
	for _, s := range slices.Sorted(maps.Keys(real)) {
		if _, ok := told[s]; !ok {
			t.Errorf("%s: not told of: %s (%s)", what, s, real[s])
		}
	}
	for _, s := range slices.Sorted(maps.Keys(told)) {
		if _, ok := real[s]; !ok {
			t.Errorf("%s: there is no such thing as: %s", what, s)
		}
	}
}

func TestTheOperatorIsToldEveryLogLineAndItsLevel(t *testing.T) {
	told, level := make(map[string]string), make(map[string]string)
	for _, row := range rows(t, read(t, "docs/OPERATIONS.md"), "## Log lines") {
		level[row[1]], told[row[1]] = row[0], ""
		if len(row) != 3 || row[2] == "" {
			t.Errorf("nothing is said about %q", row)
		}
	}
	real := make(map[string]string)
	calls(t, func(at, name string, args []ast.Expr) {
		l, ok := levels[name]
		switch {
		case strings.HasPrefix(at, "internal/logging/limiter.go:"): // hands on what others say
			return
		case name == "warn" && strings.HasPrefix(at, "internal/config/"): // Config.Warnings
			l, ok = levels["Warn"], true
		case ok && len(args) == 1:
			if id, isName := args[0].(*ast.Ident); isName && id.Name == "w" { // one of them
				return
			}
		}
		if !ok || len(args) <= l.message {
			return
		}
		message, ok := text(args[l.message])
		if !ok {
			t.Errorf("%s: a message that cannot be read here", at)
			return
		}
		message = plain(message)
		real[message] = at
		if told := level[message]; told != "" && told != l.name {
			t.Errorf("%s: %s: told to be of level %s, is %s", at, message, told, l.name)
		}
	})
	compare(t, "log lines", told, real)
}

func TestTheOperatorIsToldEveryErrorOfStatus(t *testing.T) {
	told, real := make(map[string]string), make(map[string]string)
	for _, row := range rows(t, read(t, "docs/OPERATIONS.md"), "### Errors") {
		told[row[0]] = ""
	}
	calls(t, func(at, name string, args []ast.Expr) {
		if strings.HasPrefix(at, "cmd/joold/status.go:") && (name == "count" || name == "counts") {
			if lit, ok := args[0].(*ast.BasicLit); ok {
				what, _ := text(lit)
				real[plain(what)] = at
			}
		}
	})
	compare(t, "errors of joold status", told, real)
}

func TestTheOperatorIsToldEveryExitStatus(t *testing.T) {
	told := make(map[string]string)
	for _, row := range rows(t, read(t, "docs/OPERATIONS.md"), "## Exit statuses") {
		told[row[0]+" "+row[1]] = ""
	}
	f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(root, "cmd/joold/exit.go"), nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	real := make(map[string]string)
	ast.Inspect(f, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || spec.Names[0].Name != "exitMeanings" {
			return true
		}
		for status, e := range spec.Values[0].(*ast.CompositeLit).Elts {
			meaning, _ := text(e.(*ast.KeyValueExpr).Value)
			real[strconv.Itoa(status)+" "+plain(meaning)] = "cmd/joold/exit.go"
		}
		return false
	})
	compare(t, "exit statuses", told, real)
}
