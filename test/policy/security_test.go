package policy

import (
	"go/ast"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestEverySentenceOnSecurityNamesItsTest checks docs/security.md: each line of its lists ends with
// the test that holds the sentence, in brackets, and each named test exists.
func TestEverySentenceOnSecurityNamesItsTest(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(repositoryRoot, "docs", "security.md"))
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]bool{}
	for _, f := range parseSources(t) {
		for _, d := range f.ast.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && f.isTest && strings.HasPrefix(fn.Name.Name, "Test") {
				tests[fn.Name.Name] = true
			}
		}
	}
	named := regexp.MustCompile("`(Test[A-Z]\\w*)`")
	items := regexp.MustCompile(`(?m)^- (?:.*\n)(?:  .*\n)*`).FindAllString(string(text), -1)
	if len(items) < 10 {
		t.Fatalf("docs/security.md has %d sentences in lists: this test looks in the wrong place", len(items))
	}
	for _, item := range items {
		if !regexp.MustCompile("\\(`Test[^()]*\\)\\.\\s*$").MatchString(item) {
			t.Errorf("this sentence names no test at its end: %s", item)
		}
	}
	for _, m := range named.FindAllStringSubmatch(string(text), -1) {
		if !tests[m[1]] {
			t.Errorf("docs/security.md names %s, and no test has this name", m[1])
		}
	}
}
