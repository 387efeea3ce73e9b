package policy

import (
	"fmt"
	"go/ast"
	"go/token"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"
)

// glossaryTerm is a row of the glossary of ARCHITECTURE.md.
type glossaryTerm struct {
	word                    string
	homeDirectories         []string // directories
	otherAllowedDirectories []string // the other directories that may declare the word
}

var (
	glossaryHeadingPattern = regexp.MustCompile(`(?mi)^#+ .*glossary.*$`)
	backtickedTextPattern  = regexp.MustCompile("`([^`]+)`")
)

// parseGlossary reads the table with the columns word, meaning, home package and also in.
func parseGlossary(t *testing.T) []glossaryTerm {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(repositoryRoot, "ARCHITECTURE.md"))
	if err != nil {
		t.Fatal(err)
	}
	head := glossaryHeadingPattern.FindIndex(text)
	if head == nil {
		t.Fatal("ARCHITECTURE.md has no section named Glossary: it says which package declares which word")
	}
	var terms []glossaryTerm
	inTable := false
	for _, line := range strings.Split(string(text[head[1]:]), "\n") {
		if strings.HasPrefix(line, "#") {
			break
		}
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if !strings.HasPrefix(line, "|") || len(cells) < 4 || strings.Contains(line, "---") {
			continue
		}
		if strings.EqualFold(strings.TrimSpace(cells[0]), "word") {
			inTable = true
			continue
		}
		if inTable {
			terms = append(terms, parseGlossaryRow(t, cells)...)
		}
	}
	if len(terms) == 0 {
		t.Fatal("the Glossary of ARCHITECTURE.md has no row: | word | meaning | home package | also in (reason) |")
	}
	return terms
}

// parseGlossaryRow reads a row, which may name several words of one home.
func parseGlossaryRow(t *testing.T, cells []string) []glossaryTerm {
	t.Helper()
	homes, places := parseBacktickedDirectories(t, cells[0], cells[2]), parseBacktickedDirectories(t, cells[0], cells[3])
	if len(homes) == 0 {
		t.Errorf("the Glossary gives%sno home package: name its directory in backticks", cells[0])
	}
	reasons := strings.Trim(backtickedTextPattern.ReplaceAllString(cells[3], ""), " :;,.")
	if len(places) > 0 && len(reasons) < 4*len(places) {
		t.Errorf("the Glossary lets%salso be declared in %s without saying why", cells[0], strings.Join(places, ", "))
	}
	var out []glossaryTerm
	for _, word := range strings.Split(cells[0], ",") {
		out = append(out, glossaryTerm{strings.ToLower(strings.Trim(word, " *`_")), homes, places})
	}
	return out
}

// parseBacktickedDirectories returns the directories that a cell names in backticks.
func parseBacktickedDirectories(t *testing.T, word, cell string) []string {
	t.Helper()
	var out []string
	for _, m := range backtickedTextPattern.FindAllStringSubmatch(cell, -1) {
		dir := strings.Trim(m[1], "/")
		if info, err := os.Stat(filepath.Join(repositoryRoot, dir)); err != nil || !info.IsDir() {
			if strings.Contains(dir, "/") {
				t.Errorf("the Glossary names %q for%swhich is no directory", dir, word)
			}
			continue // the name of something in a reason
		}
		out = append(out, dir)
	}
	return out
}

// TestGlossaryWordsAreDeclaredInListedPackages compares the glossary with the names of types,
// functions, methods and packages of product code. One word means one thing, so that a reader has
// to learn it once.
func TestGlossaryWordsAreDeclaredInListedPackages(t *testing.T) {
	terms := parseGlossary(t)
	used := map[string]bool{} // "word directory"
	for name, where := range collectProductDeclarations(t) {
		words := splitCamelCaseName(name)
		for _, tm := range terms {
			if !slices.ContainsFunc(words, func(w string) bool { return w == tm.word || w == tm.word+"s" }) {
				continue
			}
			for _, at := range where {
				i := slices.IndexFunc(slices.Concat(tm.homeDirectories, tm.otherAllowedDirectories), func(p string) bool { return isInOrBelow(at.dir, p) })
				if i < 0 {
					t.Errorf("%s declares %s, and %q belongs to %s: use another word, or add the package to the Glossary with the reason",
						at.fileAndLine, name, tm.word, strings.Join(tm.homeDirectories, ", "))
					continue
				}
				used[tm.word+" "+slices.Concat(tm.homeDirectories, tm.otherAllowedDirectories)[i]] = true
			}
		}
	}
	for _, tm := range terms {
		for _, dir := range slices.Concat(tm.homeDirectories, tm.otherAllowedDirectories) {
			if !used[tm.word+" "+dir] {
				t.Errorf("the Glossary says that %s declares %q, and no type, function or package there does: correct the row", dir, tm.word)
			}
		}
	}
}

// declarationPlace is where a name is declared.
type declarationPlace struct{ dir, fileAndLine string }

// collectProductDeclarations returns the types, functions, methods and packages of product code, by
// name.
func collectProductDeclarations(t *testing.T) map[string][]declarationPlace {
	t.Helper()
	out := map[string][]declarationPlace{}
	add := func(dir, place, name string) { out[name] = append(out[name], declarationPlace{dir, place}) }
	packages := map[string]bool{}
	for _, f := range parseSources(t) {
		if !isProductFile(f) {
			continue
		}
		if !packages[f.dir] {
			packages[f.dir] = true
			add(f.dir, f.dir, path.Base(f.dir))
		}
		for _, d := range f.ast.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				add(f.dir, f.fileAndLineOf(d.Pos()), d.Name.Name)
			case *ast.GenDecl:
				for _, s := range d.Specs {
					if ts, ok := s.(*ast.TypeSpec); ok {
						add(f.dir, f.fileAndLineOf(ts.Pos()), ts.Name.Name)
					}
				}
			}
		}
	}
	return out
}

// fileAndLineOf returns the file and the line of a position, as failures name them.
func (f *sourceFile) fileAndLineOf(p token.Pos) string {
	return fmt.Sprintf("%s:%d", f.path, f.lineOf(p))
}

// splitCamelCaseName splits a name into its words, in lower case: ARPProbeTimeout is arp, probe,
// timeout.
func splitCamelCaseName(name string) []string {
	var out []string
	letters := []rune(name)
	start := 0
	for i := 1; i <= len(letters); i++ {
		if i < len(letters) && !isWordStart(letters, i) {
			continue
		}
		out = append(out, strings.ToLower(string(letters[start:i])))
		start = i
	}
	return out
}

func isWordStart(letters []rune, i int) bool {
	return unicode.IsUpper(letters[i]) &&
		(!unicode.IsUpper(letters[i-1]) || i+1 < len(letters) && unicode.IsLower(letters[i+1]))
}

func TestSplitCamelCaseName(t *testing.T) {
	for name, want := range map[string]string{
		"ARPProbeTimeout": "arp probe timeout", "leaseInterval": "lease interval", "Claims": "claims", "toIPNet": "to ip net",
		"newBGP": "new bgp", "x": "x",
	} {
		if got := strings.Join(splitCamelCaseName(name), " "); got != want {
			t.Errorf("%s has the words %q, want %q", name, got, want)
		}
	}
}
