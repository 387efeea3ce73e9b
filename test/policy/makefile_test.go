package policy

import (
	"go/ast"
	"os"
	"path/filepath"
	"regexp"
	"slices"
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
		names, dir := parseTestsRunByMakefileLine(line)
		for _, name := range names {
			found++
			if _, ok := existing[dir+" "+name]; !ok {
				t.Errorf("the Makefile runs %s of %s, which does not exist: the target would succeed without a test", name, dir)
			}
		}
	}
	if found == 0 {
		t.Error("no target of the Makefile runs a test by its name: correct the pattern of this test")
	}
}

var (
	makefileRunFlagPattern       = regexp.MustCompile(`-run[ =]'?(Test[\w(|)]+)`)
	alternativesPattern          = regexp.MustCompile(`\(([\w|]+)\)`)
	makefileBuildTagPattern      = regexp.MustCompile(`go test .*-tags[ =](\w+).* (\./[\w/]+)`)
	makefileTestDirectoryPattern = regexp.MustCompile(` \./([\w/]+)`)
)

// parseTestsRunByMakefileLine returns the tests that a line of the Makefile runs, and their
// directory. They are empty if the line runs none by its name.
func parseTestsRunByMakefileLine(line string) (names []string, dir string) {
	n, d := makefileRunFlagPattern.FindStringSubmatch(line), makefileTestDirectoryPattern.FindStringSubmatch(line)
	if n == nil || d == nil {
		return nil, ""
	}
	return expandAlternatives(n[1]), d[1]
}

// expandAlternatives returns the names that a pattern such as TestOf(This|That) stands for.
func expandAlternatives(pattern string) []string {
	at := alternativesPattern.FindStringSubmatchIndex(pattern)
	if at == nil {
		return []string{pattern}
	}
	var out []string
	for _, a := range strings.Split(pattern[at[2]:at[3]], "|") {
		out = append(out, expandAlternatives(pattern[:at[0]]+a+pattern[at[1]:])...)
	}
	return out
}

func TestExpandAlternatives(t *testing.T) {
	for pattern, want := range map[string][]string{
		"TestIt": {"TestIt"}, "TestOf(This|That)Here": {"TestOfThisHere", "TestOfThatHere"}, "Test(A|B)(C|D)": {"TestAC", "TestAD", "TestBC", "TestBD"},
	} {
		if got := expandAlternatives(pattern); !slices.Equal(got, want) {
			t.Errorf("%s stands for %q, want %q", pattern, got, want)
		}
	}
	if names, dir := parseTestsRunByMakefileLine("\tgo test -v -run 'TestOf(This|That)' ./test/e2e"); !slices.Equal(names, []string{"TestOfThis", "TestOfThat"}) || dir != "test/e2e" {
		t.Errorf("a quoted pattern runs %q of %q", names, dir)
	}
}

// TestFilesWithBuildTagsAreVetted finds tests that only a target with a build tag compiles.
func TestFilesWithBuildTagsAreVetted(t *testing.T) {
	makefile, err := os.ReadFile(filepath.Join(repositoryRoot, "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	tagged := makefileBuildTagPattern.FindAllStringSubmatch(string(makefile), -1)
	for _, m := range tagged {
		if vet := "go vet -tags " + m[1] + " " + m[2] + "\n"; !strings.Contains(string(makefile), vet) {
			t.Errorf("the Makefile tests %s with the tag %s and never runs %q: such a file may cease to compile, and nobody sees it", m[2], m[1], strings.TrimSpace(vet))
		}
	}
	if len(tagged) == 0 {
		t.Error("no target of the Makefile tests with a build tag: correct the pattern of this test, or delete it")
	}
}
