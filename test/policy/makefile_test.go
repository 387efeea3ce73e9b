package policy

import (
	"go/ast"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestMakefileNamesExistingTests finds targets that would run no test: `go test -run` with a name
// that does not exist succeeds.
func TestMakefileNamesExistingTests(t *testing.T) {
	makefile, err := os.ReadFile(filepath.Join("..", "..", "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	existing := map[string]struct{}{}
	for _, f := range parseSources(t) {
		for _, d := range f.ast.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && f.isTest && fn.Recv == nil {
				existing[f.dir+" "+fn.Name.Name] = struct{}{}
			}
		}
	}
	found := 0
	for _, line := range strings.Split(string(makefile), "\n") {
		name, dir := parseTestRunByMakefileLine(line)
		if name == "" {
			continue
		}
		found++
		if _, ok := existing[dir+" "+name]; !ok {
			t.Errorf("the Makefile runs %s of %s, which does not exist: the target would succeed without a test", name, dir)
		}
	}
	if found == 0 {
		t.Error("no target of the Makefile runs a test by its name: correct the pattern of this test")
	}
}

var (
	makefileRunFlagPattern       = regexp.MustCompile(`-run[ =](Test\w+)`)
	makefileTestDirectoryPattern = regexp.MustCompile(` \./([\w/]+)`)
)

// parseTestRunByMakefileLine returns the test that a line of the Makefile runs, and its directory.
// They are empty if the line runs none by its name.
func parseTestRunByMakefileLine(line string) (name, dir string) {
	n, d := makefileRunFlagPattern.FindStringSubmatch(line), makefileTestDirectoryPattern.FindStringSubmatch(line)
	if n == nil || d == nil {
		return "", ""
	}
	return n[1], d[1]
}
