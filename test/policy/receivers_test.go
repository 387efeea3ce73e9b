package policy

import (
	"go/ast"
	"go/token"
	"testing"
)

// The largest sizes of a type with state. A reader cannot hold more in mind.
const (
	maxMethodsOfStatefulType    = 60
	maxFieldLinesOfStatefulType = 30
)

// statefulTypeAdvice are the limits on types with state, and why.
var statefulTypeAdvice = struct{ methods, fieldLines string }{
	methods: "a type with so many methods is a package without boundaries: give a part of its state to a type of its own",
	fieldLines: "any of its methods may change any of its fields, so a reader has to know them all: " +
		"group the fields that change together in a type of their own",
}

// largeStatefulTypes are the types that may have more methods, how many, and why. The number only
// goes down. Delete an entry when its type is split.
var largeStatefulTypes = map[string]struct {
	methods int
	because string
}{}

// statefulType is a type of the product with what the rules count.
type statefulType struct {
	methodCount int
	fieldLines  int
	// fieldAssigningMethod is a method that assigns to a field, or empty.
	fieldAssigningMethod string
	place                string
}

func TestStatefulTypesStaySmall(t *testing.T) {
	types := map[string]*statefulType{} // by directory and name
	ensure := func(f sourceFile, name string) *statefulType {
		key := f.dir + "." + name
		if types[key] == nil {
			types[key] = &statefulType{}
		}
		return types[key]
	}
	for _, f := range parseSources(t) {
		if f.isTest || !isInOrBelow(f.dir, "api", "cmd", "internal", "controller", "speaker") {
			continue
		}
		for _, d := range f.ast.Decls {
			switch d := d.(type) {
			case *ast.GenDecl:
				for _, s := range d.Specs {
					ts, ok := s.(*ast.TypeSpec)
					if !ok {
						continue
					}
					if st, ok := ts.Type.(*ast.StructType); ok {
						r := ensure(f, ts.Name.Name)
						r.fieldLines = len(st.Fields.List)
						r.place = f.path
					}
				}
			case *ast.FuncDecl:
				name, isPointer, ok := receiverTypeNameAndPointer(d)
				if !ok {
					continue
				}
				r := ensure(f, name)
				r.methodCount++
				if isPointer && assignsToReceiverField(d) {
					r.fieldAssigningMethod = d.Name.Name
				}
			}
		}
	}
	changing := 0
	for key, r := range types {
		if r.fieldAssigningMethod != "" {
			changing++
		}
		limitMethods, limitFields := maxMethodsOfStatefulType, maxFieldLinesOfStatefulType
		if e, listed := largeStatefulTypes[key]; listed {
			if r.methodCount <= maxMethodsOfStatefulType {
				t.Errorf("%s has %d methods, no more than %d: delete it from largeReceivers", key, r.methodCount, maxMethodsOfStatefulType)
			}
			limitMethods = e.methods
		}
		if r.methodCount > limitMethods {
			t.Errorf("%s: %s has %d methods, more than %d: %s", r.place, key, r.methodCount, limitMethods, statefulTypeAdvice.methods)
		}
		if r.fieldAssigningMethod != "" && r.fieldLines > limitFields {
			t.Errorf("%s: %s has %d field lines, more than %d, and %s changes it: %s",
				r.place, key, r.fieldLines, limitFields, r.fieldAssigningMethod, statefulTypeAdvice.fieldLines)
		}
	}
	for key := range largeStatefulTypes {
		if types[key] == nil {
			t.Errorf("largeReceivers lists %s, which does not exist: delete it", key)
		}
	}
	if changing == 0 {
		t.Error("no type of the product is changed by its methods: this test looks in the wrong place")
	}
}

// receiverTypeNameAndPointer returns the name of the receiver's type of a method, and whether it is
// a pointer.
func receiverTypeNameAndPointer(d *ast.FuncDecl) (name string, isPointer, ok bool) {
	if d.Recv == nil || len(d.Recv.List) == 0 {
		return "", false, false
	}
	expr := d.Recv.List[0].Type
	if star, isStar := expr.(*ast.StarExpr); isStar {
		isPointer, expr = true, star.X
	}
	switch generic := expr.(type) {
	case *ast.IndexExpr:
		expr = generic.X
	case *ast.IndexListExpr:
		expr = generic.X
	}
	id, ok := expr.(*ast.Ident)
	if !ok {
		return "", false, false
	}
	return id.Name, isPointer, true
}

// assignsToReceiverField reports whether a method assigns to a field of its receiver: to the field
// itself, to a part of it, or to all of them at once.
func assignsToReceiverField(d *ast.FuncDecl) bool {
	if d.Body == nil || len(d.Recv.List[0].Names) == 0 {
		return false
	}
	receiver := d.Recv.List[0].Names[0].Name
	found := false
	ast.Inspect(d.Body, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.AssignStmt:
			for _, target := range n.Lhs {
				found = found || (n.Tok != token.DEFINE && isReceiverFieldExpression(target, receiver))
			}
		case *ast.IncDecStmt:
			found = found || isReceiverFieldExpression(n.X, receiver)
		}
		return true
	})
	return found
}

// isReceiverFieldExpression reports whether an expression is a field of the receiver, or below one:
// r.x, r.x.y, r.x[i] or *r.
func isReceiverFieldExpression(e ast.Expr, receiver string) bool {
	for depth := 0; ; depth++ {
		switch x := e.(type) {
		case *ast.SelectorExpr:
			e = x.X
		case *ast.IndexExpr:
			e = x.X
		case *ast.StarExpr:
			e = x.X
		case *ast.ParenExpr:
			e = x.X
		case *ast.Ident:
			return depth > 0 && x.Name == receiver
		default:
			return false
		}
	}
}
