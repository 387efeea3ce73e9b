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

// TestFlagReferenceMatchesFlags compares the flags of controller and speaker with the tables of
// docs/reference-flags.md. It finds flags without a row, rows of flags that do not exist, and wrong
// defaults.
func TestFlagReferenceMatchesFlags(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(repositoryRoot, "docs", "reference-flags.md"))
	if err != nil {
		t.Fatal(err)
	}
	rows, defaultCells := map[string]bool{}, map[string]string{}
	for _, m := range regexp.MustCompile("(?m)^\\| `--([a-z0-9-]+)` \\|([^|]*)\\|").FindAllStringSubmatch(string(text), -1) {
		rows[m[1]], defaultCells[m[1]] = true, m[2]
	}
	flags := map[string]bool{}
	for _, f := range parseSources(t) {
		tier := strings.HasPrefix(f.dir, "controller") || strings.HasPrefix(f.dir, "speaker") || f.dir == "internal/option"
		if f.isTest || !tier {
			continue
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			if name, ok := flagDefinedByCall(n); ok {
				flags[name] = true
				if !rows[name] {
					t.Errorf("%s defines --%s, which has no row in docs/reference-flags.md: users look flags up there", f.path, name)
				}
				if value, isLiteral := literalFlagDefault(n.(*ast.CallExpr)); isLiteral && !strings.Contains(defaultCells[name], "`"+value+"`") {
					t.Errorf("%s gives --%s the default %s, and docs/reference-flags.md says %q", f.path, name, value, defaultCells[name])
				}
			}
			return true
		})
	}
	for name := range rows {
		if !flags[name] {
			t.Errorf("docs/reference-flags.md has a row for --%s, which no program defines", name)
		}
	}
}

// flagDefinedByCall returns the name of the flag that a call like fs.StringVar(&x, "name", ...)
// defines.
func flagDefinedByCall(n ast.Node) (string, bool) {
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

// literalFlagDefault returns the default of a flag, if the call has it as a literal. An empty one
// is none.
func literalFlagDefault(call *ast.CallExpr) (string, bool) {
	switch value := call.Args[2].(type) {
	case *ast.BasicLit:
		if value.Kind == token.STRING {
			text, err := strconv.Unquote(value.Value)
			return text, err == nil && text != ""
		}
		return value.Value, true
	case *ast.Ident:
		return value.Name, value.Name == "true" || value.Name == "false"
	}
	return "", false
}

// TestReasonsAreDocumented compares the Reasons with docs/reasons.md, where users look them up.
func TestReasonsAreDocumented(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(repositoryRoot, "docs", "reasons.md"))
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]bool{}
	for _, line := range strings.Split(string(text), "\n") {
		if cells := strings.Split(line, "|"); len(cells) > 2 {
			for _, m := range regexp.MustCompile("`([A-Z]\\w+)`").FindAllStringSubmatch(cells[1], -1) {
				rows[m[1]] = true
			}
		}
	}
	reasons := map[string]bool{}
	for _, f := range parseSources(t) {
		if f.dir != "api/names" || f.isTest {
			continue
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			v, ok := n.(*ast.ValueSpec)
			if !ok || !strings.HasPrefix(v.Names[0].Name, "Reason") || len(v.Values) != 1 {
				return true
			}
			if lit, ok := v.Values[0].(*ast.BasicLit); ok {
				word, _ := strconv.Unquote(lit.Value)
				reasons[word] = true
				if !rows[word] {
					t.Errorf("%s has no row in docs/reasons.md: say what it means and what to do", word)
				}
			}
			return true
		})
	}
	for word := range rows {
		if !reasons[word] {
			t.Errorf("docs/reasons.md explains %s, which is not a Reason", word)
		}
	}
}

// TestDependenciesAreListedInContributing compares the direct requirements of go.mod with the table
// in CONTRIBUTING.md.
func TestDependenciesAreListedInContributing(t *testing.T) {
	mod, err := os.ReadFile(filepath.Join(repositoryRoot, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(repositoryRoot, "CONTRIBUTING.md"))
	if err != nil {
		t.Fatal(err)
	}
	direct := regexp.MustCompile(`(?m)^\t(\S+) v\S+$`).FindAllStringSubmatch(string(mod), -1)
	if len(direct) == 0 {
		t.Fatal("go.mod requires nothing: this test looks in the wrong place")
	}
	for _, m := range direct {
		if !strings.Contains(string(text), "`"+m[1]+"`") {
			t.Errorf("go.mod requires %s, and CONTRIBUTING.md does not say why", m[1])
		}
	}
}

// TestContributingTablesNameExistingFiles checks the paths in the tables "Where to start" of
// CONTRIBUTING.md. A file name without a path is in the directory of a path of its row.
func TestContributingTablesNameExistingFiles(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(repositoryRoot, "CONTRIBUTING.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, tables, found := strings.Cut(string(text), "\n## Where to start\n")
	section, _, _ := strings.Cut(tables, "\n## ")
	rows := regexp.MustCompile(`(?m)^\|[^|]+\|([^|]+)\|$`).FindAllStringSubmatch(section, -1)
	if !found || len(rows) < 50 {
		t.Fatalf("CONTRIBUTING.md has %d rows that say where to start: this test looks in the wrong place", len(rows))
	}
	for _, row := range rows {
		var paths, names []string
		for _, m := range regexp.MustCompile("`([^` ]+)`").FindAllStringSubmatch(row[1], -1) {
			switch word := m[1]; {
			case strings.HasPrefix(word, "bin/"): // a built program
			case strings.Contains(word, "/"):
				paths = append(paths, word)
			case regexp.MustCompile(`\.(go|yaml|json|txt|sh)$`).MatchString(word):
				names = append(names, word)
			}
		}
		directories := map[string]bool{}
		for _, path := range paths {
			info, err := os.Stat(filepath.Join(repositoryRoot, path))
			switch {
			case err != nil:
				t.Errorf("CONTRIBUTING.md says to start in %s, which does not exist: name the file that has its code now", path)
			case info.IsDir():
				directories[path] = true
			default:
				directories[filepath.Dir(path)] = true
			}
		}
		for _, name := range names {
			if !fileExistsInOneOf(directories, name) {
				t.Errorf("CONTRIBUTING.md says to start in %s, which is in no directory of its row: %s", name, strings.TrimSpace(row[1]))
			}
		}
	}
}

func fileExistsInOneOf(directories map[string]bool, name string) bool {
	for directory := range directories {
		if _, err := os.Stat(filepath.Join(repositoryRoot, directory, name)); err == nil {
			return true
		}
	}
	return false
}
