package policy

import (
	"go/ast"
	"strings"
	"testing"
)

// TestEveryReasonIsUsedByProductCode finds Reasons that no program gives: users would look for a
// word that they never meet.
func TestEveryReasonIsUsedByProductCode(t *testing.T) {
	declared, used := map[string]bool{}, map[string]bool{}
	for _, f := range parseSources(t) {
		if f.isTest || !isInOrBelow(f.dir, "api", "cmd", "internal", "controller", "speaker") {
			continue
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.ValueSpec:
				if f.dir == "api/names" && strings.HasPrefix(n.Names[0].Name, "Reason") {
					declared[n.Names[0].Name] = true
				}
			case *ast.SelectorExpr:
				if x, ok := n.X.(*ast.Ident); ok && x.Name == "names" {
					used[n.Sel.Name] = true
				}
			}
			return true
		})
	}
	if len(declared) == 0 {
		t.Fatal("api/names declares no Reason: this test looks in the wrong place")
	}
	for name := range declared {
		if !used[name] {
			t.Errorf("names.%s is given by no program: remove it, and its row in docs/reasons.md", name)
		}
	}
}
