// Package documents checks the README and the pages of docs: each code block is parsed or run,
// each command exists, and each link leads somewhere. What a page shows of kubectl gantry is tested
// in cmd/kubectl-gantry/explain; docs/quickstart.md is followed in test/e2e.
package documents

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const repositoryRoot = "../.."

// maxReadmeLineCount keeps the README short enough to be read to its end.
const maxReadmeLineCount = 250

// codeBlock is a fenced block of a page.
type codeBlock struct {
	page     string // relative to the root
	line     int    // of the first line of the text
	language string
	text     string
}

// page is a Markdown file.
type page struct{ path, text string }

// readPages returns the README, the pages of docs, and the other pages for users.
func readPages(t *testing.T) []page {
	t.Helper()
	var out []page
	for _, pattern := range []string{"*.md", "docs/*.md", ".github/*.md", ".github/ISSUE_TEMPLATE/*"} {
		paths, err := filepath.Glob(filepath.Join(repositoryRoot, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			relative, _ := filepath.Rel(repositoryRoot, path)
			out = append(out, page{path: relative, text: readRepositoryFile(t, relative)})
		}
	}
	if len(out) < 15 {
		t.Fatalf("there are %d pages: this test looks in the wrong place", len(out))
	}
	return out
}

func readRepositoryFile(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(repositoryRoot, path))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// isForUsers reports whether a page is for people who run Gantry, rather than for those who change
// its code.
func (p page) isForUsers() bool {
	return p.path == "README.md" || strings.HasPrefix(p.path, "docs/") || strings.HasPrefix(p.path, ".github/") || p.path == "SECURITY.md" || p.path == "CHANGELOG.md"
}

// codeBlocks returns the fenced blocks of a page. A block in a list is indented.
func (p page) codeBlocks() []codeBlock {
	var out []codeBlock
	var open *codeBlock
	indent := ""
	for i, line := range strings.Split(p.text, "\n") {
		trimmed := strings.TrimLeft(line, " ")
		switch language, isFence := strings.CutPrefix(trimmed, "```"); {
		case isFence && open == nil:
			open, indent = &codeBlock{page: p.path, line: i + 2, language: language}, line[:len(line)-len(trimmed)]
		case isFence:
			out, open = append(out, *open), nil
		case open != nil:
			open.text += strings.TrimPrefix(line, indent) + "\n"
		}
	}
	return out
}

var inlineCodePattern = regexp.MustCompile("`([^`\n]+)`")

// withoutCodeBlocks returns the text of the page without its fenced blocks.
func (p page) withoutCodeBlocks() string {
	var out []string
	inside := false
	for line := range strings.SplitSeq(p.text, "\n") {
		isFence := strings.HasPrefix(strings.TrimLeft(line, " "), "```")
		if !isFence && !inside {
			out = append(out, line)
		}
		inside = inside != isFence
	}
	return strings.Join(out, "\n")
}

func TestReadmeIsShort(t *testing.T) {
	if n := strings.Count(readRepositoryFile(t, "README.md"), "\n"); n > maxReadmeLineCount {
		t.Errorf("the README has %d lines, and %d are allowed: move the text into a page of docs", n, maxReadmeLineCount)
	}
}

// TestReadmeBlocksAreFollowed compares the blocks of the README with docs/quickstart.md, which a
// test in the lab follows literally.
func TestReadmeBlocksAreFollowed(t *testing.T) {
	followed := readRepositoryFile(t, "docs/quickstart.md")
	count := 0
	for _, b := range (page{path: "README.md", text: readRepositoryFile(t, "README.md")}).codeBlocks() {
		if b.language != "sh" && b.language != "yaml" || b.text == "make demo\n" {
			continue
		}
		count++
		if !strings.Contains(followed, b.text) {
			t.Errorf("%s:%d: docs/quickstart.md does not have this block, so no test follows it:\n%s", b.page, b.line, b.text)
		}
	}
	if count < 5 {
		t.Errorf("the README has %d blocks: this test looks in the wrong place", count)
	}
}

// TestEveryCodeBlockIsChecked finds blocks of a kind that no test checks.
func TestEveryCodeBlockIsChecked(t *testing.T) {
	for _, p := range readPages(t) {
		if !p.isForUsers() {
			continue
		}
		for _, b := range p.codeBlocks() {
			switch b.language {
			case "sh", "yaml", "frr", "bird":
			case "text": // a picture, or what a command prints
			default:
				t.Errorf("%s:%d: a block of the kind %q is checked by no test: write sh, yaml, frr, bird or text", b.page, b.line, b.language)
			}
			if b.language == "text" && (strings.HasPrefix(b.text, "$ kubectl gantry explain ") || strings.HasPrefix(b.text, "$ kubectl gantry status")) && !strings.Contains(p.text, " -->\n```text\n"+b.text) {
				t.Errorf("%s:%d: no test compares this with what the command prints: write <!-- prints: SITUATION --> before it", b.page, b.line)
			}
		}
	}
}

// TestReadmeShowsStepsOfDemo compares the steps in the README with the headings in test/demo.
func TestReadmeShowsStepsOfDemo(t *testing.T) {
	var patterns []*regexp.Regexp
	source := strings.ReplaceAll(readRepositoryFile(t, "test/demo/main.go"), `\n`, "")
	for _, m := range regexp.MustCompile(`printHeading\("([^"]+)"`).FindAllStringSubmatch(source, -1) {
		pattern := regexp.MustCompile(`%[sd]`).ReplaceAllString(regexp.QuoteMeta(m[1]), ".+")
		patterns = append(patterns, regexp.MustCompile("^"+pattern+"$"))
	}
	count := 0
	for line := range strings.Lines(readRepositoryFile(t, "README.md")) {
		heading, isHeading := strings.CutPrefix(strings.TrimSpace(line), "== ")
		if !isHeading {
			continue
		}
		count++
		if !slices.ContainsFunc(patterns, func(p *regexp.Regexp) bool { return p.MatchString(heading) }) {
			t.Errorf("the demo does not print %q", heading)
		}
	}
	if count < 5 {
		t.Errorf("the README has %d steps of the demo: this test looks in the wrong place", count)
	}
}
