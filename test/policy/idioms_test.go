package policy

import (
	"go/ast"
	"go/token"
	"strconv"
	"strings"
	"testing"
)

// ruleException is a file or directory that may do what a rule forbids, and why.
type ruleException struct{ path, because string }

// exceptionList holds the exceptions of a rule. An exception that nothing needs is an error.
type exceptionList struct {
	exceptions []ruleException
	used       map[string]bool
}

func newExceptionList(exceptions ...ruleException) *exceptionList {
	return &exceptionList{exceptions, map[string]bool{}}
}

// allowsAndMarksUsed says whether the file is an exception. Only a place that breaks the rule may
// ask.
func (l *exceptionList) allowsAndMarksUsed(path string) bool {
	for _, e := range l.exceptions {
		if isInOrBelow(path, e.path) {
			l.used[e.path] = true
			return true
		}
	}
	return false
}

func (l *exceptionList) reportUnused(t *testing.T) {
	t.Helper()
	for _, e := range l.exceptions {
		if !l.used[e.path] {
			t.Errorf("%s is an exception (%s), but keeps the rule: delete the exception", e.path, e.because)
		}
	}
}

// nonTestSourceFiles returns the files that are neither tests nor below test/.
func nonTestSourceFiles(t *testing.T) []sourceFile {
	t.Helper()
	var out []sourceFile
	for _, f := range parseSources(t) {
		if !f.isTest && !isInOrBelow(f.dir, "test") {
			out = append(out, f)
		}
	}
	return out
}

// packageQualifiedName returns "package.name" if the expression is such a selector, and ""
// otherwise.
func packageQualifiedName(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.SelectorExpr:
		if x, ok := e.X.(*ast.Ident); ok {
			return x.Name + "." + e.Sel.Name
		}
	case *ast.IndexExpr: // a generic type
		return packageQualifiedName(e.X)
	}
	return ""
}

// isNonBlockingSendOrDrain says whether the select never waits, and either sends, or receives a
// value and forgets it.
func isNonBlockingSendOrDrain(s *ast.SelectStmt) bool {
	neverWaits, sends, forgets, doesNothing := false, false, false, true
	for _, c := range s.Body.List {
		clause := c.(*ast.CommClause)
		doesNothing = doesNothing && len(clause.Body) == 0
		switch clause.Comm.(type) {
		case nil:
			neverWaits = true
		case *ast.SendStmt:
			sends = true
		case *ast.ExprStmt:
			forgets = true
		}
	}
	return neverWaits && (sends || forgets && doesNothing)
}

func TestOnlyPackageLatestSendsWithoutBlocking(t *testing.T) {
	exceptions := newExceptionList(
		ruleException{"speaker/layer2/respond.go", "the channel blocks for some events and drops others"},
		ruleException{"speaker/bgp/passive.go", "a connection that one worker has no room for goes to the next one"},
	)
	for _, f := range nonTestSourceFiles(t) {
		if f.dir == "internal/latest" {
			continue
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			if s, ok := n.(*ast.SelectStmt); ok && isNonBlockingSendOrDrain(s) && !exceptions.allowsAndMarksUsed(f.path) {
				t.Errorf("%s:%d: a select that sends or drops without waiting: use latest.Value, latest.Wake or latest.BoundedQueue, which are tested with many goroutines", f.path, f.lineOf(n.Pos()))
			}
			return true
		})
	}
	exceptions.reportUnused(t)
}

func TestTypesOfPackageLatestAreUsedByPointer(t *testing.T) {
	types := map[string]bool{"latest.Value": true, "latest.Wake": true, "latest.BoundedQueue": true}
	for _, f := range parseSources(t) {
		pointers := map[ast.Expr]bool{}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.StarExpr:
				x := n.X
				if i, ok := x.(*ast.IndexExpr); ok {
					x = i.X
				}
				pointers[x] = true
			case *ast.SelectorExpr:
				if types[packageQualifiedName(n)] && !pointers[n] {
					t.Errorf("%s:%d: %s by value: its zero value has no channel and would spin, so use a pointer from its constructor", f.path, f.lineOf(n.Pos()), packageQualifiedName(n))
				}
			}
			return true
		})
	}
}

func TestNoTypeHasInitMethod(t *testing.T) {
	for _, f := range nonTestSourceFiles(t) {
		for _, d := range f.ast.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv != nil && strings.EqualFold(fn.Name.Name, "init") {
				t.Errorf("%s:%d: a method Init: a caller that forgets it gets a part that blocks without an error; write a constructor", f.path, f.lineOf(fn.Pos()))
			}
		}
	}
}

func TestOnlyPackageIPFamilyDeclaresFamily(t *testing.T) {
	for _, f := range parseSources(t) {
		if f.dir == "internal/ipfamily" {
			continue
		}
		for _, d := range f.ast.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				if strings.EqualFold(d.Name.Name, "FamilyOf") {
					t.Errorf("%s:%d: %s: use ipfamily.FamilyOf, which knows IPv4-mapped addresses", f.path, f.lineOf(d.Pos()), d.Name)
				}
			case *ast.GenDecl:
				for _, s := range d.Specs {
					ts, ok := s.(*ast.TypeSpec)
					if !ok || !strings.HasSuffix(strings.ToLower(ts.Name.Name), "family") {
						continue
					}
					if _, basic := ts.Type.(*ast.Ident); basic {
						t.Errorf("%s:%d: type %s: use ipfamily.Family, since a second type needs conversions", f.path, f.lineOf(ts.Pos()), ts.Name)
					}
				}
			}
		}
	}
}

// isReasonType says whether the expression is names.Reason.
func isReasonType(e ast.Expr) bool { return packageQualifiedName(e) == "names.Reason" }

// isStringType says whether the expression is string.
func isStringType(e ast.Expr) bool {
	i, ok := e.(*ast.Ident)
	return ok && i.Name == "string"
}

// flattenFieldTypes returns the type of each field, once for each of its names.
func flattenFieldTypes(l *ast.FieldList) []ast.Expr {
	var out []ast.Expr
	if l == nil {
		return nil
	}
	for _, f := range l.List {
		for range max(len(f.Names), 1) {
			out = append(out, f.Type)
		}
	}
	return out
}

func TestReasonWithTextIsOneExplanationType(t *testing.T) {
	exceptions := newExceptionList(
		ruleException{"controller/announcedcondition", "a condition of the API has the two apart"},
	)
	for _, f := range nonTestSourceFiles(t) {
		// values of the API; explanations of many rules, each with its own function
		if isInOrBelow(f.dir, "api", "internal/advertise", "internal/snapshot") {
			continue
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncType:
				results := flattenFieldTypes(n.Results)
				for i := range max(len(results)-1, 0) {
					if isReasonType(results[i]) && isStringType(results[i+1]) && !exceptions.allowsAndMarksUsed(f.path) {
						t.Errorf("%s:%d: a function returns a Reason and a text: return a names.Explanation, which cannot be torn apart", f.path, f.lineOf(n.Pos()))
					}
				}
			case *ast.StructType:
				fields := flattenFieldTypes(n.Fields)
				if len(fields) == 2 && isReasonType(fields[0]) && isStringType(fields[1]) {
					t.Errorf("%s:%d: a struct of a Reason and a text: use names.Explanation, since a second type needs conversions", f.path, f.lineOf(n.Pos()))
				}
			}
			return true
		})
	}
	exceptions.reportUnused(t)
}

// fnvConstants are the offsets and primes of FNV with 32 and 64 bits.
var fnvConstants = map[uint64]bool{2166136261: true, 16777619: true, 14695981039346656037: true, 1099511628211: true}

func TestFNVHashIsNotWrittenByHand(t *testing.T) {
	for _, f := range parseSources(t) {
		if f.path == "test/policy/idioms_test.go" {
			continue
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			lit, ok := n.(*ast.BasicLit)
			if !ok || lit.Kind != token.INT {
				return true
			}
			if v, err := strconv.ParseUint(lit.Value, 0, 64); err == nil && fnvConstants[v] {
				t.Errorf("%s:%d: FNV by hand: use hash/fnv, which does not allocate either", f.path, f.lineOf(n.Pos()))
			}
			return true
		})
	}
}

// clockCalls read the clock.
var clockCalls = map[string]bool{"time.Now": true, "time.Since": true, "time.Until": true, "metav1.Now": true}

func TestTheClockIsInjected(t *testing.T) {
	exceptions := newExceptionList(
		ruleException{"speaker/bgp/tcp/routersearch.go", "the read deadline of its socket follows this clock"},
		ruleException{"speaker/layer2/wire/groups.go", "time.AfterFunc follows this clock"},
		ruleException{"speaker/layer2/layer2test/lan.go", "a stand-in for tests, which run in a bubble with a clock of its own"},
	)
	for _, f := range nonTestSourceFiles(t) {
		if f.ast.Name.Name == "main" {
			continue
		}
		deadlines := map[ast.Node]bool{} // the calls in the argument of a Set...Deadline
		ast.Inspect(f.ast, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			if sel, ok := call.Fun.(*ast.SelectorExpr); ok && strings.HasPrefix(sel.Sel.Name, "Set") && strings.HasSuffix(sel.Sel.Name, "Deadline") {
				for _, a := range call.Args {
					ast.Inspect(a, func(n ast.Node) bool { deadlines[n] = true; return true })
				}
			}
			if name := packageQualifiedName(call.Fun); clockCalls[name] && !deadlines[n] && !exceptions.allowsAndMarksUsed(f.path) {
				t.Errorf("%s:%d: %s: take the time as an argument in a decision, and a clock as the option Now in an effect, so that tests can move it", f.path, f.lineOf(n.Pos()), name)
			}
			return true
		})
	}
	exceptions.reportUnused(t)
}
