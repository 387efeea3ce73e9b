package policy

import (
	"bytes"
	"go/ast"
	"go/token"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/yaml"

	"github.com/gantry-lb/gantry/api/v1beta1"
)

// libraryMethodsWithBool are methods whose parameters an interface of a library defines. Add to the
// list only for a library.
var libraryMethodsWithBool = map[string]bool{
	"speaker/members/delegate.go LocalState":       true, // memberlist.Delegate
	"speaker/members/delegate.go MergeRemoteState": true, // memberlist.Delegate
}

func TestExportedFunctionsTakeNoBool(t *testing.T) {
	for _, f := range parseSources(t) {
		if f.isTest || isInOrBelow(f.dir, "test") {
			continue
		}
		for _, d := range f.ast.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok || !fn.Name.IsExported() || libraryMethodsWithBool[f.path+" "+fn.Name.Name] {
				continue
			}
			for _, p := range fn.Type.Params.List {
				if id, ok := p.Type.(*ast.Ident); ok && id.Name == "bool" {
					t.Errorf("%s:%d: %s takes a bool: true says nothing where it is called; make two functions, or a named type", f.path, f.lineOf(p.Pos()), fn.Name)
				}
			}
		}
	}
}

func TestReasonsAreUniqueAndCommented(t *testing.T) {
	seen := map[string]string{} // word -> the constant that has it
	for _, f := range parseSources(t) {
		if f.isTest || !isInOrBelow(f.dir, "api/names") {
			continue
		}
		for _, d := range f.ast.Decls {
			g, ok := d.(*ast.GenDecl)
			if !ok || g.Tok != token.CONST {
				continue
			}
			for _, s := range g.Specs {
				checkReasonIsUniqueAndCommented(t, f, s.(*ast.ValueSpec), seen)
			}
		}
	}
	if len(seen) == 0 {
		t.Error("api/names has no Reason: this test looks in the wrong place")
	}
}

// checkReasonIsUniqueAndCommented checks one constant, and ignores those that are not a Reason.
func checkReasonIsUniqueAndCommented(t *testing.T, f sourceFile, v *ast.ValueSpec, seen map[string]string) {
	if id, ok := v.Type.(*ast.Ident); !ok || id.Name != "Reason" {
		return
	}
	name, at := v.Names[0].Name, f.lineOf(v.Pos())
	if !strings.HasPrefix(v.Doc.Text(), name+": ") {
		t.Errorf("%s:%d: %s needs a comment %q: a Reason is what users look up", f.path, at, name, name+": when it is given")
	}
	lit, ok := v.Values[0].(*ast.BasicLit)
	if !ok || lit.Value != `"`+strings.TrimPrefix(name, "Reason")+`"` {
		t.Errorf("%s:%d: %s has another value than its name says: a reader of one has to find the other", f.path, at, name)
		return
	}
	if other, double := seen[lit.Value]; double {
		t.Errorf("%s:%d: %s is the same word as %s: a Reason means one thing", f.path, at, name, other)
	}
	seen[lit.Value] = name
}

// unfinishedMarks are the words that mark unfinished work in a comment.
var unfinishedMarks = []string{"TO" + "DO", "FIX" + "ME", "XX" + "X"}

func TestNoUnfinishedWork(t *testing.T) {
	for _, f := range parseSources(t) {
		for _, group := range f.ast.Comments {
			for _, c := range group.List {
				for _, m := range unfinishedMarks {
					if strings.Contains(c.Text, m) {
						t.Errorf("%s:%d: %s: do it, or say in SCOPE.md or the README that it is missing", f.path, f.lineOf(c.Pos()), m)
					}
				}
			}
		}
	}
}

// TestManifestsHaveNoUnknownField decodes the manifests strictly: the API server would silently
// drop a misspelt field.
func TestManifestsHaveNoUnknownField(t *testing.T) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientscheme.AddToScheme, v1beta1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	decoder := serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer()
	n := 0
	for _, dir := range []string{"samples", "default", "rbac", "components/webhook", "components/l2-only", "components/continuity"} {
		files, err := filepath.Glob(filepath.Join(repositoryRoot, "config", dir, "*.yaml"))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range files {
			if filepath.Base(path) == "kustomization.yaml" { // not an object of the API
				continue
			}
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			for i, doc := range splitYAMLIntoJSONDocuments(t, text) {
				if bytes.HasPrefix(doc, []byte("[")) { // a patch
					continue
				}
				n++
				if _, _, err := decoder.Decode(doc, nil, nil); err != nil {
					t.Errorf("%s, document %d: %v", path, i+1, err)
				}
			}
		}
	}
	if n == 0 {
		t.Error("config has no manifests: this test looks in the wrong place")
	}
}

// splitYAMLIntoJSONDocuments splits a file and converts each document to JSON, which resolves
// anchors.
func splitYAMLIntoJSONDocuments(t *testing.T, text []byte) [][]byte {
	t.Helper()
	var out [][]byte
	for _, doc := range bytes.Split(text, []byte("\n---\n")) {
		j, err := yaml.YAMLToJSONStrict(doc)
		if err != nil {
			t.Fatal(err)
		}
		if string(j) != "null" {
			out = append(out, j)
		}
	}
	return out
}
