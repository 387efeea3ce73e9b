package policy

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

// maxCommentColumns is how wide a line with a comment may be; a tab counts as tabColumns.
const (
	maxCommentColumns = 100
	tabColumns        = 4
)

// commentDirectivePattern matches comments that a program reads. Their form is not ours to choose.
var commentDirectivePattern = regexp.MustCompile(`^//(go:|line |lint:|nolint|export |\s*\+kubebuilder|\s*\+k8s|\s*\+groupName)`)

func TestCommentLinesAreNarrow(t *testing.T) {
	for _, f := range parseSources(t) {
		lines := readLines(t, f)
		for _, group := range f.ast.Comments {
			for _, c := range group.List {
				if commentDirectivePattern.MatchString(c.Text) {
					continue
				}
				for i := f.lineOf(c.Pos()); i <= f.lineOf(c.End()); i++ {
					if n := countColumnsWithTabs(lines[i-1]); n > maxCommentColumns && !isOneWordComment(lines[i-1]) {
						t.Errorf("%s:%d: a line with a comment has %d columns, more than %d: wrap it, so that it is read without scrolling",
							f.path, i, n, maxCommentColumns)
					}
				}
			}
		}
	}
}

// readLines returns the lines of a source file.
func readLines(t *testing.T, f sourceFile) []string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(repositoryRoot, f.path))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(string(text), "\n")
}

func countColumnsWithTabs(line string) int {
	return utf8.RuneCountInString(line) + (tabColumns-1)*strings.Count(line, "\t")
}

// isOneWordComment reports whether a line is a comment of one word, such as a URL, which cannot be
// wrapped.
func isOneWordComment(line string) bool {
	fields := strings.Fields(line)
	return len(fields) == 2 && fields[0] == "//"
}

// lintersInUse are the linters that `make lint` runs.
var lintersInUse = []string{"govet", "staticcheck"}

var nolintPattern = regexp.MustCompile(`^//\s*nolint(?::\s*([\w,]+))?`)

func TestNolintNamesALinterInUse(t *testing.T) {
	for _, f := range parseSources(t) {
		for _, group := range f.ast.Comments {
			for _, c := range group.List {
				m := nolintPattern.FindStringSubmatch(c.Text)
				if m == nil {
					continue
				}
				for _, linter := range strings.Split(m[1], ",") {
					if !slices.Contains(lintersInUse, linter) {
						t.Errorf("%s:%d: nolint for %q: `make lint` does not run it, so that the line silences nothing",
							f.path, f.lineOf(c.Pos()), linter)
					}
				}
			}
		}
	}
}
