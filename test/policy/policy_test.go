// Package policy checks the rules of the repository: which package may import which, how large
// files and functions may be, what may be called where, and how things are named. A failure has the
// place, the rule and the reason for it.
package policy

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
)

const modulePath = "github.com/gantry-lb/gantry/"

// repositoryRoot is the root of the repository.
const repositoryRoot = "../.."

// sourceFile is a parsed source file.
type sourceFile struct {
	path      string // relative to the root
	dir       string
	ast       *ast.File
	fileSet   *token.FileSet
	isTest    bool
	lineCount int // lines
}

// parseSources returns every Go file of the main module that is not generated.
func parseSources(t *testing.T) []sourceFile {
	t.Helper()
	files, err := parseSourcesOnce()
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// parseSourcesOnce parses the files for all tests.
var parseSourcesOnce = sync.OnceValues(func() ([]sourceFile, error) {
	var out []sourceFile
	err := filepath.WalkDir(repositoryRoot, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(repositoryRoot, path)
		if d.IsDir() && (strings.HasPrefix(d.Name(), ".") && rel != "." || rel == "test/lab/kube" || rel == "tools" || rel == "bin") {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(path, ".go") || strings.HasPrefix(d.Name(), "zz_generated") {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		set := token.NewFileSet()
		parsed, err := parser.ParseFile(set, path, text, parser.ParseComments)
		if err != nil {
			return err
		}
		out = append(out, sourceFile{
			path: rel, dir: filepath.Dir(rel), ast: parsed, fileSet: set,
			isTest: strings.HasSuffix(rel, "_test.go"), lineCount: strings.Count(string(text), "\n"),
		})
		return nil
	})
	return out, err
})

func (f *sourceFile) importPaths() []string {
	var out []string
	for _, i := range f.ast.Imports {
		p, _ := strconv.Unquote(i.Path.Value)
		out = append(out, p)
	}
	return out
}

func (f *sourceFile) lineOf(p token.Pos) int { return f.fileSet.Position(p).Line }

// isInOrBelow reports whether the directory is one of the places, or below one of them.
func isInOrBelow(dir string, places ...string) bool {
	for _, p := range places {
		if dir == p || strings.HasPrefix(dir, p+"/") {
			return true
		}
	}
	return false
}

// decisionPackages are the packages that make decisions and have no effects.
var decisionPackages = []string{"internal/advertise", "controller/allocate", "controller/pendingwrites", "speaker/plan", "speaker/steering", "speaker/elect", "speaker/fitness", "speaker/probing", "speaker/status", "speaker/bfd/session"}

// effectPackages are the packages that do I/O, each with one library.
var effectPackages = []string{"speaker/layer2", "speaker/healthcheck", "speaker/links", "speaker/members", "speaker/bfd", "speaker/bgp", "speaker/packetrules"}

// forbiddenImports lists imports that are not allowed in some places, and why.
var forbiddenImports = []struct {
	places  []string
	not     []string
	because string
}{
	{[]string{"api/names"}, []string{modulePath, "k8s.io/", "sigs.k8s.io/"}, "names are plain words that every tier may use"},
	{[]string{"api", "internal/view", "internal/snapshot", "internal/advertise"}, []string{"k8s.io/client-go", "sigs.k8s.io/controller-runtime", "log", modulePath + "controller", modulePath + "speaker"}, "values have no client and no log"},
	{[]string{"speaker/intent", "speaker/facts"}, []string{"k8s.io/", "sigs.k8s.io/", modulePath + "api/v1alpha1", modulePath + "api/v1beta1", modulePath + "api/v1beta2", modulePath + "controller", modulePath + "internal/advertise", modulePath + "internal/configuration", modulePath + "internal/ipfamily", modulePath + "internal/latest", modulePath + "internal/option", modulePath + "internal/priorityqueue", modulePath + "internal/rib", modulePath + "internal/snapshot", modulePath + "internal/view", modulePath + "speaker"}, "engines share these and do not depend on Kubernetes"},
	{decisionPackages, []string{"context", "log", "os", "net/http", "k8s.io/api/", "k8s.io/client-go", "sigs.k8s.io/", "github.com/prometheus"}, "a decision is a function of its arguments"},
	{effectPackages, []string{"k8s.io/", "sigs.k8s.io/", modulePath + "internal/advertise", modulePath + "internal/configuration", modulePath + "internal/option", modulePath + "internal/snapshot", modulePath + "internal/view", modulePath + "speaker/plan", modulePath + "speaker/elect", modulePath + "api/v1beta1"}, "an engine applies the desired state and does not depend on Kubernetes"},
	{[]string{"speaker/agent"}, []string{"k8s.io/client-go", "sigs.k8s.io/controller-runtime"}, "the agent is tested without an API server"},
	{[]string{"controller"}, []string{modulePath + "speaker", modulePath + "cmd"}, "the binaries share only values"},
	{[]string{"speaker"}, []string{modulePath + "controller", modulePath + "cmd"}, "the binaries share only values"},
	{[]string{"cmd"}, []string{modulePath + "speaker"}, "kubectl gantry also runs on systems that no speaker runs on"},
	{[]string{"api", "cmd", "internal", "controller", "speaker"}, []string{modulePath + "test"}, "the product does not depend on its tests"},
}

func TestForbiddenImports(t *testing.T) {
	for _, f := range parseSources(t) {
		if f.isTest {
			continue
		}
		for _, rule := range forbiddenImports {
			if !isInOrBelow(f.dir, rule.places...) {
				continue
			}
			for _, p := range f.importPaths() {
				for _, not := range rule.not {
					if p == strings.TrimSuffix(not, "/") || strings.HasPrefix(p, strings.TrimSuffix(not, "/")+"/") {
						t.Errorf("%s imports %s: %s", f.path, p, rule.because)
					}
				}
			}
		}
	}
}

// The largest sizes. What is larger has more than one purpose.
const (
	maxFileLines     = 500
	maxFunctionLines = 80
	maxParameters    = 5
)

func TestFilesFunctionsAndParametersStayWithinLimits(t *testing.T) {
	for _, f := range parseSources(t) {
		if f.lineCount > maxFileLines {
			t.Errorf("%s has %d lines, more than %d: split it by purpose", f.path, f.lineCount, maxFileLines)
		}
		for _, d := range f.ast.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok || fn.Body == nil {
				continue
			}
			if n := f.lineOf(fn.End()) - f.lineOf(fn.Pos()) + 1; n > maxFunctionLines {
				t.Errorf("%s:%d: %s has %d lines, more than %d: split it by purpose; a test becomes named scenarios", f.path, f.lineOf(fn.Pos()), fn.Name, n, maxFunctionLines)
			}
			n := 0
			for i, p := range fn.Type.Params.List {
				if _, ctx := p.Type.(*ast.SelectorExpr); i == 0 && ctx && p.Type.(*ast.SelectorExpr).Sel.Name == "Context" {
					continue
				}
				if _, variadic := p.Type.(*ast.Ellipsis); variadic {
					continue
				}
				n += max(len(p.Names), 1)
			}
			if n > maxParameters {
				t.Errorf("%s:%d: %s has %d parameters, more than %d: give it a struct", f.path, f.lineOf(fn.Pos()), fn.Name, n, maxParameters)
			}
		}
	}
}

// forbiddenCalls lists calls that are not allowed in some places, and why.
var forbiddenCalls = []struct {
	call    string
	places  []string // empty: everywhere except test/ and tests
	but     []string // files that are allowed to
	because string
}{
	{"time.Now", decisionPackages, nil, "time is an argument"},
	{"snapshot.BuildSnapshot", []string{"controller"}, []string{"controller/configurationreader/reader.go", "controller/admission/admission.go"}, "a controller has one Snapshot, which the Reader of the configuration publishes; only the webhook asks what another one would be"},
	{"time.Sleep", nil, nil, "a wait has to end with its context"},
	{"os.Exit", nil, []string{"controller/main.go", "speaker/main.go", "cmd/kubectl-gantry/main.go"}, "a program exits only in main"},
	{"context.Background", nil, []string{"controller/main.go", "speaker/main.go", "cmd/kubectl-gantry/main.go"}, "a context comes from the caller"},
	{"net.ParseIP", nil, nil, "addresses are netip values"},
	{"log.Print", nil, nil, "logs are structured"},
	{"log.Printf", nil, nil, "logs are structured"},
}

func TestForbiddenCalls(t *testing.T) {
	for _, f := range parseSources(t) {
		if f.isTest || isInOrBelow(f.dir, "test", "speaker/links/netnstest") { // for tests only
			continue
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			x, ok := sel.X.(*ast.Ident)
			if !ok {
				return true
			}
			for _, c := range forbiddenCalls {
				if x.Name+"."+sel.Sel.Name != c.call || (c.places != nil && !isInOrBelow(f.dir, c.places...)) || isInOrBelow(f.path, c.but...) {
					continue
				}
				t.Errorf("%s:%d: %s: %s", f.path, f.lineOf(n.Pos()), c.call, c.because)
			}
			return true
		})
	}
}

func TestEveryPackageHasOneComment(t *testing.T) {
	comments := map[string]int{}
	for _, f := range parseSources(t) {
		if strings.HasSuffix(f.ast.Name.Name, "_test") {
			continue
		}
		n := comments[f.dir]
		if f.ast.Doc != nil {
			n++
			if f.ast.Doc.Text() == "" {
				t.Errorf("%s: the package comment is empty", f.path)
			}
		}
		comments[f.dir] = n
	}
	for dir, n := range comments {
		if n != 1 {
			t.Errorf("%s has %d package comments, want one, which says what it owns and what it never does", dir, n)
		}
	}
}

func TestExportedNamesHaveComments(t *testing.T) {
	for _, f := range parseSources(t) {
		if f.isTest {
			continue
		}
		for _, d := range f.ast.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				if d.Name.IsExported() && d.Doc == nil {
					t.Errorf("%s:%d: %s has no comment", f.path, f.lineOf(d.Pos()), d.Name)
				}
			case *ast.GenDecl:
				for _, s := range d.Specs {
					ts, ok := s.(*ast.TypeSpec)
					if ok && ts.Name.IsExported() && d.Doc == nil && ts.Doc == nil {
						t.Errorf("%s:%d: type %s has no comment", f.path, f.lineOf(ts.Pos()), ts.Name)
					}
				}
			}
		}
	}
}

// publicAPIWordPrefixes are the prefixes of words that only api/names declares.
var publicAPIWordPrefixes = []string{"metallb.io/", "metallb.universe.tf/", "gantry.dev/"}

func TestAPIWordsAreDeclaredOnlyInAPINames(t *testing.T) {
	for _, f := range parseSources(t) {
		// uses the API group, which is no annotation
		if f.isTest || isInOrBelow(f.dir, "api/names", "test") || f.path == "internal/option/awaitcrds.go" {
			continue
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			lit, ok := n.(*ast.BasicLit)
			if !ok || lit.Kind != token.STRING {
				return true
			}
			text, _ := strconv.Unquote(lit.Value)
			for _, p := range publicAPIWordPrefixes {
				if strings.HasPrefix(text, p) {
					t.Errorf("%s:%d: %q: words that users see are declared in api/names", f.path, f.lineOf(lit.Pos()), text)
				}
			}
			return true
		})
	}
}

func TestModuleHasNoReplace(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(repositoryRoot, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(text), "replace ") {
		t.Error("go.mod has a replace: modules that import this one would ignore it")
	}
}
