package policy

import (
	"go/ast"
	"go/token"
	"slices"
	"strings"
	"testing"
)

// allowedLastWordsOfDurationNames are the last words that the name of a duration may have.
var allowedLastWordsOfDurationNames = []string{"timeout", "interval", "delay"}

// reasonByExceptionalDurationName are other names of durations, or their last words, and why they
// are right.
var reasonByExceptionalDurationName = map[string]string{
	"Age":           "how old something is: nothing waits for it",
	"ClockSkew":     "how far two clocks may differ: nothing waits for it",
	"ConnectTime":   "the ConnectRetryTime of RFC 4271 section 8, as the API names it",
	"DetectionTime": "RFC 5880 section 6.8.4",
	"HoldTime":      "RFC 4271 section 4.2",
	"KeepaliveTime": "RFC 4271 section 10, as the API names it",
	"LeaseDuration": "client-go's leader election",
	"Lifetime":      "how long a certificate is valid, RFC 5280 section 4.1.2.5",
	"RenewDeadline": "client-go's leader election",
	"RestartTime":   "RFC 4724 section 3",
	"RetryPeriod":   "client-go's leader election",
}

// timePackageUnitNames are the constants of package time that make a duration of a number.
var timePackageUnitNames = []string{"Nanosecond", "Microsecond", "Millisecond", "Second", "Minute", "Hour"}

// TestDurationNamesEndInTimeoutIntervalOrDelay looks at fields, constants and variables of
// packages. A name that ends in Timeout, Interval or Delay says that it is a duration, and what
// happens when it is over.
func TestDurationNamesEndInTimeoutIntervalOrDelay(t *testing.T) {
	known := map[string]bool{} // "directory name" of the durations found so far
	check := func(f sourceFile, name *ast.Ident, what string) {
		known[f.dir+" "+name.Name] = true
		if !isAllowedDurationName(name.Name) {
			t.Errorf("%s:%d: %s %s is a duration: its name ends in Timeout, Interval or Delay, or has a reason in reasonByExceptionalDurationName",
				f.path, f.lineOf(name.Pos()), what, name.Name)
		}
	}
	for _, f := range parseSources(t) {
		if !isProductFile(f) {
			continue
		}
		for _, d := range f.ast.Decls {
			g, ok := d.(*ast.GenDecl)
			if !ok {
				continue
			}
			for _, s := range g.Specs {
				switch s := s.(type) {
				case *ast.ValueSpec:
					for i, name := range s.Names {
						if isDurationType(s.Type) || i < len(s.Values) && isDurationExpression(s.Values[i], f.dir, known) {
							check(f, name, strings.ToLower(g.Tok.String()))
						}
					}
				case *ast.TypeSpec:
					for _, name := range durationFieldsOfStruct(s.Type) {
						check(f, name, "field")
					}
				}
			}
		}
	}
	if len(known) == 0 {
		t.Error("product code has no durations: this test looks in the wrong place")
	}
}

func isAllowedDurationName(name string) bool {
	words := splitCamelCaseName(name)
	last := words[len(words)-1]
	if slices.Contains(allowedLastWordsOfDurationNames, last) || slices.Contains(allowedLastWordsOfDurationNames, strings.TrimSuffix(last, "s")) {
		return true
	}
	for excused := range reasonByExceptionalDurationName {
		end := splitCamelCaseName(excused)
		if len(words) >= len(end) && slices.Equal(words[len(words)-len(end):], end) {
			return true
		}
	}
	return false
}

func isDurationType(e ast.Expr) bool {
	sel, ok := e.(*ast.SelectorExpr)
	if !ok || sel.Sel.Name != "Duration" {
		return false
	}
	x, ok := sel.X.(*ast.Ident)
	return ok && x.Name == "time"
}

// isDurationExpression reports whether an expression makes a duration of the units of package time,
// or of another duration of the package.
func isDurationExpression(e ast.Expr, dir string, known map[string]bool) bool {
	switch e := e.(type) {
	case *ast.ParenExpr:
		return isDurationExpression(e.X, dir, known)
	case *ast.BinaryExpr:
		if e.Op == token.QUO && isDurationExpression(e.Y, dir, known) {
			return false // how often one fits into the other
		}
		return isDurationExpression(e.X, dir, known) || isDurationExpression(e.Y, dir, known)
	case *ast.Ident:
		return known[dir+" "+e.Name]
	case *ast.CallExpr:
		return isDurationType(e.Fun)
	case *ast.SelectorExpr:
		x, ok := e.X.(*ast.Ident)
		return ok && x.Name == "time" && slices.Contains(timePackageUnitNames, e.Sel.Name)
	}
	return false
}

// durationFieldsOfStruct returns the fields of type time.Duration of a struct, those of structs in
// it too.
func durationFieldsOfStruct(e ast.Expr) []*ast.Ident {
	var out []*ast.Ident
	ast.Inspect(e, func(n ast.Node) bool {
		if s, ok := n.(*ast.StructType); ok {
			for _, field := range s.Fields.List {
				if isDurationType(field.Type) {
					out = append(out, field.Names...)
				}
			}
		}
		return true
	})
	return out
}
