package policy

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

var (
	requirementPattern = regexp.MustCompile(`(?m)^\t(\S+) (v\S+)`)
	replacementPattern = regexp.MustCompile(`(?m)^\t(\S+) => (\S+) (v\S+)$`)
)

// readModuleVersions returns the version of each module that a go.mod lists, a replacement before a
// requirement.
func readModuleVersions(t *testing.T, dir string) map[string]string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(repositoryRoot, dir, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	versions := map[string]string{}
	for _, m := range requirementPattern.FindAllStringSubmatch(string(text), -1) {
		versions[m[1]] = m[2]
	}
	for _, m := range replacementPattern.FindAllStringSubmatch(string(text), -1) {
		if m[1] == m[2] {
			versions[m[1]] = m[3]
		}
	}
	return versions
}

// moduleWithOwnVersionPattern matches modules on which few packages depend, and whose versions
// belong to Helm or kustomize.
var moduleWithOwnVersionPattern = regexp.MustCompile(`/(errors|cli-runtime|kyaml)$|/kustomize/api$`)

// TestModulesOfToolsHaveVersionsOfProduct compares the versions of the modules that the product
// shares with Helm and kustomize. If a module such as golang.org/x/net differs, most packages of
// Kubernetes are compiled once for each version.
func TestModulesOfToolsHaveVersionsOfProduct(t *testing.T) {
	const dir = "tools/packages"
	product, compared := readModuleVersions(t, "."), 0
	for module, version := range readModuleVersions(t, dir) {
		want := product[module]
		if want == "" || moduleWithOwnVersionPattern.MatchString(module) {
			continue
		}
		if compared++; version != want {
			t.Errorf("%s/go.mod has %s %s, and the product has %s: replace it there, so that it is compiled once", dir, module, version, want)
		}
	}
	if compared < 30 {
		t.Errorf("only %d modules were compared: this test looks in the wrong place", compared)
	}
}
