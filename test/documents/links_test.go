package documents

import (
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"unicode"
)

var (
	linkPattern          = regexp.MustCompile(`(?s)\]\(([^()\s]+)\)`)
	repositoryURLPattern = regexp.MustCompile(`https://github\.com/gantry-lb/gantry/blob/main/([\w./-]+)(#[\w-]+)?`)
	headingPattern       = regexp.MustCompile(`(?m)^#+ (.*)$`)
)

// anchorsOfPage returns the anchors of the headings of a page, as forges make them.
func anchorsOfPage(text string) map[string]bool {
	out := map[string]bool{}
	for _, m := range headingPattern.FindAllStringSubmatch((page{text: text}).withoutCodeBlocks(), -1) {
		anchor := strings.Map(func(r rune) rune {
			switch {
			case r == ' ':
				return '-'
			case unicode.IsLetter(r), unicode.IsDigit(r), r == '-', r == '_':
				return unicode.ToLower(r)
			}
			return -1
		}, m[1])
		out[anchor] = true
	}
	return out
}

// describeBrokenLink returns what is wrong with a link to a file of the repository, or nothing.
func describeBrokenLink(path, anchor string) string {
	text, err := os.ReadFile(filepath.Join(repositoryRoot, path))
	if err != nil {
		if info, statErr := os.Stat(filepath.Join(repositoryRoot, path)); statErr == nil && info.IsDir() {
			return ""
		}
		return "there is no file " + path
	}
	if anchor != "" && !anchorsOfPage(string(text))[anchor] {
		return path + " has no heading with the anchor #" + anchor
	}
	return ""
}

// TestLinksLeadSomewhere checks each link of a page to another page or heading.
func TestLinksLeadSomewhere(t *testing.T) {
	count := 0
	for _, p := range readPages(t) {
		for _, m := range linkPattern.FindAllStringSubmatch(p.withoutCodeBlocks(), -1) {
			target, err := url.Parse(m[1])
			if err != nil || target.Scheme != "" {
				continue
			}
			count++
			path := filepath.Join(filepath.Dir(p.path), target.Path)
			if target.Path == "" {
				path = p.path
			}
			if fault := describeBrokenLink(path, target.Fragment); fault != "" {
				t.Errorf("%s links to %s: %s", p.path, m[1], fault)
			}
		}
	}
	if count < 100 {
		t.Errorf("the pages have %d links: this test looks in the wrong place", count)
	}
}

// TestEveryPageIsInTheIndex finds pages that the index of the documentation lacks.
func TestEveryPageIsInTheIndex(t *testing.T) {
	index := readRepositoryFile(t, "docs/README.md")
	for _, p := range readPages(t) {
		if name, isDoc := strings.CutPrefix(p.path, "docs/"); isDoc && name != "README.md" && !strings.Contains(index, "("+name+")") {
			t.Errorf("docs/README.md does not list %s", name)
		}
	}
}

// TestLinksOfProductLeadSomewhere checks the links to pages in the code, the alerts, the chart and
// the dashboards.
func TestLinksOfProductLeadSomewhere(t *testing.T) {
	count := 0
	for _, top := range []string{"cmd", "config", "charts", "controller", "speaker", "internal", "api"} {
		err := filepath.WalkDir(filepath.Join(repositoryRoot, top), func(path string, d os.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() || strings.HasSuffix(path, "_test.go") {
				return err
			}
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			for _, m := range repositoryURLPattern.FindAllStringSubmatch(string(text), -1) {
				count++
				if fault := describeBrokenLink(m[1], strings.TrimPrefix(m[2], "#")); fault != "" {
					t.Errorf("%s links to %s: %s", path, m[0], fault)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if count == 0 {
		t.Error("the product has no link to a page: this test looks in the wrong place")
	}
}
