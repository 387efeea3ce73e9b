package policy

import (
	"go/ast"
	"go/token"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// maxLinesByMainPackage bounds the main package of a program, without tests. Such a package is the
// list of the parts and their order; what a part does has a package of its own.
var maxLinesByMainPackage = map[string]int{"speaker": 295, "controller": 420, "cmd/kubectl-gantry": 40}

func TestMainPackagesStayWithinLineLimits(t *testing.T) {
	lines := map[string]int{}
	for _, f := range parseSources(t) {
		if _, ok := maxLinesByMainPackage[f.dir]; ok && !f.isTest {
			lines[f.dir] += f.lineCount
		}
	}
	for dir, limit := range maxLinesByMainPackage {
		if lines[dir] == 0 || lines[dir] > limit {
			t.Errorf("%s has %d lines, want 1 to %d: it lists the parts of the program, and what a part does belongs to a package that is named after it", dir, lines[dir], limit)
		}
	}
}

// findRunnableTypes returns the part types of product code as "directory.Type". A part is a type
// that works in a goroutine of its own: it has a method Run or Start with a context.
func findRunnableTypes(t *testing.T) map[string]bool {
	t.Helper()
	out := map[string]bool{}
	visitProductFunctions(t, func(f sourceFile, fn *ast.FuncDecl) {
		if fn.Recv == nil || fn.Name.Name != "Run" && fn.Name.Name != "Start" || len(fn.Type.Params.List) != 1 {
			return
		}
		if packageQualifiedName(fn.Type.Params.List[0].Type) == "context.Context" {
			out[f.dir+"."+unqualifiedTypeName(fn.Recv.List[0].Type)] = true
		}
	})
	return out
}

// findRunnableConstructors returns the functions of product code that return a part, as
// "directory.Function".
func findRunnableConstructors(t *testing.T, parts map[string]bool) map[string]bool {
	t.Helper()
	out := map[string]bool{}
	visitProductFunctions(t, func(f sourceFile, fn *ast.FuncDecl) {
		if fn.Recv != nil || fn.Type.Results == nil {
			return
		}
		if parts[f.dir+"."+unqualifiedTypeName(fn.Type.Results.List[0].Type)] {
			out[f.dir+"."+fn.Name.Name] = true
		}
	})
	return out
}

// unqualifiedTypeName returns the name of a type of the same package, and "" for other types.
func unqualifiedTypeName(e ast.Expr) string {
	if p, ok := e.(*ast.StarExpr); ok {
		e = p.X
	}
	if id, ok := e.(*ast.Ident); ok {
		return id.Name
	}
	return ""
}

// runnableVariableFinder finds the names in a file whose value is a part of another package:
// variables, parameters and fields.
type runnableVariableFinder struct {
	importDirs                  map[string]string // by the name of the import
	runnableTypes, constructors map[string]bool
	runnableVariableNames       map[string]bool
}

func newRunnableVariableFinder(f sourceFile, parts, constructors map[string]bool) *runnableVariableFinder {
	n := &runnableVariableFinder{map[string]string{}, parts, constructors, map[string]bool{}}
	for i, p := range f.importPaths() {
		dir, ours := strings.CutPrefix(p, modulePath)
		if name := path.Base(p); ours {
			if f.ast.Imports[i].Name != nil {
				name = f.ast.Imports[i].Name.Name
			}
			n.importDirs[name] = dir
		}
	}
	ast.Inspect(f.ast, n.visit)
	return n
}

// qualifiedName returns "directory.Name" for package.Name, *package.Name and &package.Name{}.
func (n *runnableVariableFinder) qualifiedName(e ast.Expr) string {
	switch x := e.(type) {
	case *ast.StarExpr:
		return n.qualifiedName(x.X)
	case *ast.UnaryExpr:
		return n.qualifiedName(x.X)
	case *ast.CompositeLit:
		return n.qualifiedName(x.Type)
	case *ast.CallExpr:
		return n.qualifiedName(x.Fun)
	}
	pkg, name, _ := strings.Cut(packageQualifiedName(e), ".")
	return n.importDirs[pkg] + "." + name
}

func (n *runnableVariableFinder) visit(node ast.Node) bool {
	switch x := node.(type) {
	case *ast.Field: // parameters and fields
		if n.runnableTypes[n.qualifiedName(x.Type)] {
			for _, id := range x.Names {
				n.runnableVariableNames[id.Name] = true
			}
		}
	case *ast.ValueSpec:
		for i, id := range x.Names {
			if x.Type != nil && n.runnableTypes[n.qualifiedName(x.Type)] || i < len(x.Values) && n.hasRunnableType(x.Values[i]) {
				n.runnableVariableNames[id.Name] = true
			}
		}
	case *ast.AssignStmt:
		for i, left := range x.Lhs {
			if id, ok := left.(*ast.Ident); ok && i < len(x.Rhs) && n.hasRunnableType(x.Rhs[i]) {
				n.runnableVariableNames[id.Name] = true
			}
		}
	}
	return true
}

func (n *runnableVariableFinder) hasRunnableType(e ast.Expr) bool {
	name := n.qualifiedName(e)
	if _, call := e.(*ast.CallExpr); call {
		return n.constructors[name]
	}
	return n.runnableTypes[name]
}

// exportedRunnableField returns the exported field of a part that the expression names, and "" for
// another expression: feed.Agent, or parts.feed.Agent.
func (n *runnableVariableFinder) exportedRunnableField(e ast.Expr) string {
	field, ok := e.(*ast.SelectorExpr)
	if !ok || !field.Sel.IsExported() {
		return ""
	}
	owner := ""
	switch x := field.X.(type) {
	case *ast.Ident:
		owner = x.Name
	case *ast.SelectorExpr:
		owner = x.Sel.Name
	}
	if !n.runnableVariableNames[owner] {
		return ""
	}
	return owner + "." + field.Sel.Name
}

func TestNoFieldOfRunnableIsSetAfterConstruction(t *testing.T) {
	parts := findRunnableTypes(t)
	made := findRunnableConstructors(t, parts)
	if len(parts) < 10 || len(made) < 10 {
		t.Fatalf("%d parts and %d constructors: this test looks in the wrong place", len(parts), len(made))
	}
	for _, f := range nonTestSourceFiles(t) {
		n := newRunnableVariableFinder(f, parts, made)
		ast.Inspect(f.ast, func(node ast.Node) bool {
			a, ok := node.(*ast.AssignStmt)
			if !ok || a.Tok != token.ASSIGN {
				return true
			}
			for _, left := range a.Lhs {
				if field := n.exportedRunnableField(left); field != "" {
					t.Errorf("%s:%d: %s is assigned after its part was made. Pass the value to the constructor: a part that waits for a field can be started too early, and nobody sees what is missing", f.path, f.lineOf(a.Pos()), field)
				}
			}
			return true
		})
	}
}

func TestEveryPackageHasALineInArchitecture(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(repositoryRoot, "ARCHITECTURE.md"))
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, f := range parseSources(t) {
		if f.isTest || seen[f.dir] || !isInOrBelow(f.dir, "cmd", "internal", "controller", "speaker") {
			continue
		}
		seen[f.dir] = true
		// speaker/layer2/wire has its place in the line of speaker/layer2.
		_, below, _ := strings.Cut(f.dir, "/")
		named := strings.Contains(string(text), "\n| `"+f.dir+"`") || strings.Contains(string(text), ", `"+f.dir+"`")
		if !named && !(strings.Contains(below, "/") && strings.Contains(string(text), "`"+below+"`")) {
			t.Errorf("ARCHITECTURE.md has no line for the package %s: say in one line what it does, since readers look for its place there", strconv.Quote(f.dir))
		}
	}
}
