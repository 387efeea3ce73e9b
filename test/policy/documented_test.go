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

// TestFlagsAreInTheReadme compares the flags of controller and speaker with the README's tables: a flag that nobody can read
// about, and a row about a flag that is gone, are both faults.
func TestFlagsAreInTheReadme(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]bool{}
	for _, m := range regexp.MustCompile("(?m)^\\| `--([a-z0-9-]+)` \\|").FindAllStringSubmatch(string(text), -1) {
		rows[m[1]] = true
	}
	flags := map[string]bool{}
	for _, f := range sources(t) {
		tier := strings.HasPrefix(f.dir, "controller") || strings.HasPrefix(f.dir, "speaker") || f.dir == "internal/option"
		if f.test || !tier {
			continue
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			if name, ok := defined(n); ok {
				flags[name] = true
				if !rows[name] {
					t.Errorf("%s defines --%s, which is in no table of the README", f.path, name)
				}
			}
			return true
		})
	}
	for name := range rows {
		if !flags[name] {
			t.Errorf("the README tells of --%s, which no program has", name)
		}
	}
}

// defined returns the name of the flag that a call like fs.StringVar(&x, "name", ...) defines.
func defined(n ast.Node) (string, bool) {
	call, ok := n.(*ast.CallExpr)
	if !ok || len(call.Args) != 4 {
		return "", false
	}
	f, ok := call.Fun.(*ast.SelectorExpr)
	if !ok || !strings.HasSuffix(f.Sel.Name, "Var") {
		return "", false
	}
	lit, ok := call.Args[1].(*ast.BasicLit)
	if !ok || lit.Kind != token.STRING {
		return "", false
	}
	name, err := strconv.Unquote(lit.Value)
	return name, err == nil
}
