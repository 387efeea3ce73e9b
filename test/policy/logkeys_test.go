package policy

import (
	"go/ast"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// logKey is a key of a log line, with its value.
type logKey struct {
	name  string
	value ast.Expr
	place token.Pos
}

// argumentsBeforeKeysByLogMethod are the methods that log, with the number of arguments before the
// keys.
var argumentsBeforeKeysByLogMethod = map[string]int{"Debug": 1, "Info": 1, "Warn": 1, "Error": 1, "With": 0, "LogStart": 2}

// logKeysOf returns the keys of a call that logs, or that collects keys for such a call in a slice.
func logKeysOf(n ast.Node) []logKey {
	var arguments []ast.Expr
	switch n := n.(type) {
	case *ast.CallExpr:
		if f, ok := n.Fun.(*ast.Ident); ok && f.Name == "append" && len(n.Args) > 1 && strings.HasSuffix(lastIdentifierOf(n.Args[0]), "pairs") {
			arguments = n.Args[1:]
			break
		}
		f, ok := n.Fun.(*ast.SelectorExpr)
		if !ok {
			return nil
		}
		before, isLevel := argumentsBeforeKeysByLogMethod[f.Sel.Name]
		receiver := lastIdentifierOf(f.X)
		isLogger := receiver == "log" || receiver == "Log" || receiver == "slog" || f.Sel.Name == "LogStart"
		if !isLevel || !isLogger || len(n.Args) < before {
			return nil
		}
		arguments = n.Args[before:]
	case *ast.CompositeLit:
		a, ok := n.Type.(*ast.ArrayType)
		if !ok || lastIdentifierOf(a.Elt) != "any" {
			return nil
		}
		arguments = n.Elts
	}
	var out []logKey
	for i := 0; i+1 < len(arguments); i += 2 {
		if lit, ok := arguments[i].(*ast.BasicLit); ok && lit.Kind == token.STRING {
			name, _ := strconv.Unquote(lit.Value)
			out = append(out, logKey{name, arguments[i+1], arguments[i].Pos()})
		}
	}
	return out
}

// lastIdentifierOf returns the last name of a selector, call or identifier.
func lastIdentifierOf(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		return e.Sel.Name
	case *ast.CallExpr:
		return lastIdentifierOf(e.Fun)
	}
	return ""
}

// documentedLogKeys returns the keys of the table in CONTRIBUTING.md.
func documentedLogKeys(t *testing.T) map[string]bool {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(repositoryRoot, "CONTRIBUTING.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, after, found := strings.Cut(string(text), "\n### Log keys\n")
	section, _, _ := strings.Cut(after, "\n## ")
	out := map[string]bool{}
	for _, row := range regexp.MustCompile(`(?m)^\|([^|]+)\|[^|]+\|$`).FindAllStringSubmatch(section, -1) {
		for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(row[1], -1) {
			out[m[1]] = true
		}
	}
	if !found || len(out) == 0 {
		t.Fatal("CONTRIBUTING.md has no table below \"Log keys\": this test looks in the wrong place")
	}
	return out
}

// TestLogKeysAreDocumented compares the keys of log lines with the table in CONTRIBUTING.md, so
// that one thing has one key in all lines.
func TestLogKeysAreDocumented(t *testing.T) {
	documented, used := documentedLogKeys(t), map[string]bool{}
	for _, f := range nonTestSourceFiles(t) {
		if !isInOrBelow(f.dir, "controller", "speaker", "internal") {
			continue
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			for _, k := range logKeysOf(n) {
				used[k.name] = true
				if !documented[k.name] {
					t.Errorf("%s:%d: the log key %q is not in the table of CONTRIBUTING.md: use one of that table, or add a row", f.path, f.lineOf(k.place), k.name)
				}
				if fault := faultOfLogValue(k); fault != "" {
					t.Errorf("%s:%d: the log key %q %s", f.path, f.lineOf(k.place), k.name, fault)
				}
			}
			return true
		})
	}
	for k := range documented {
		if !used[k] {
			t.Errorf("CONTRIBUTING.md has the log key %q, which no log line has", k)
		}
	}
}

// faultOfLogValue says what is wrong with the value of a key: a reason is a word of api/names, and
// an error is always below the key error.
func faultOfLogValue(k logKey) string {
	end := lastIdentifierOf(k.value)
	isError := strings.HasPrefix(strings.ToLower(end), "err") || strings.HasSuffix(end, "Err") || strings.HasSuffix(end, "Error")
	switch {
	case k.name == "reason" && !strings.Contains(end, "Reason"):
		return "has a value that is no Reason: people search logs for the words of docs/reasons.md"
	case k.name != "error" && isError:
		return "has an error: its key is error"
	}
	return ""
}
