package policy

import (
	"go/ast"
	"slices"
	"testing"
)

// advertisementMatchFields are the fields of advertisements that package advertise matches with
// Services, nodes and links.
var advertisementMatchFields = []string{"NodeSelectors", "ServiceSelectors", "Preferences", "Interfaces"}

// placesThatMayMatchAdvertisements are the packages and files that may use these fields, and why.
var placesThatMayMatchAdvertisements = []struct{ place, because string }{
	{"internal/advertise", "the home of the rules"},
	{"internal/snapshot", "parses the fields, and looks for advertisements that contradict each other"},
	{"api", "declares the fields"},
	{"controller/allocate", "ServiceSelectors of a pool"},
	{"speaker/status/status.go", "Interfaces of a report"},
	{"cmd/kubectl-gantry/explain", "Interfaces of a report"},
	{"cmd/kubectl-gantry/legacyconfig", "NodeSelectors of a ConfigMap, which become those of a BGPPeer"},
}

const advertisementMatchRuleReason = "the explanation of a Service is what speakers do only as long as one package matches advertisements: call internal/advertise"

func TestAdvertisementsAreMatchedInOnePackage(t *testing.T) {
	used := map[string]bool{}
	for _, f := range parseSources(t) {
		if f.isTest || !isInOrBelow(f.dir, "api", "cmd", "internal", "controller", "speaker") {
			continue
		}
		for _, field := range findAdvertisementMatchFields(f.ast) {
			i := slices.IndexFunc(placesThatMayMatchAdvertisements, func(p struct{ place, because string }) bool { return isInOrBelow(f.path, p.place) })
			if i < 0 {
				t.Errorf("%s uses %s: %s", f.fileAndLineOf(field.Pos()), field.Sel.Name, advertisementMatchRuleReason)
				continue
			}
			used[placesThatMayMatchAdvertisements[i].place] = true
		}
	}
	for _, p := range placesThatMayMatchAdvertisements {
		if !used[p.place] && p.place != "api" {
			t.Errorf("%s may use the selectors of advertisements (%s), and does not: remove it from the list", p.place, p.because)
		}
	}
}

// findAdvertisementMatchFields returns the places that read one of the fields.
func findAdvertisementMatchFields(file *ast.File) []*ast.SelectorExpr {
	var out []*ast.SelectorExpr
	ast.Inspect(file, func(n ast.Node) bool {
		if sel, ok := n.(*ast.SelectorExpr); ok && slices.Contains(advertisementMatchFields, sel.Sel.Name) {
			out = append(out, sel)
		}
		return true
	})
	return out
}
