package main

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

const repositoryRoot = "../.."

// readPluginTargets returns the systems for which "make plugin" builds.
func readPluginTargets(t *testing.T) []string {
	t.Helper()
	makefile, err := os.ReadFile(filepath.Join(repositoryRoot, "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	line := regexp.MustCompile(`(?m)^PLUGIN_TARGETS \?= (.*)$`).FindSubmatch(makefile)
	if line == nil {
		t.Fatal("the Makefile has no PLUGIN_TARGETS")
	}
	return strings.Fields(string(line[1]))
}

// TestPluginImportsNoLinuxOnlyPackage finds imports of packages that only Linux has, without
// compiling them.
func TestPluginImportsNoLinuxOnlyPackage(t *testing.T) {
	targets := readPluginTargets(t)
	for _, want := range []string{"linux/amd64", "linux/arm64", "darwin/amd64", "darwin/arm64", "windows/amd64", "windows/arm64"} {
		if !strings.Contains(strings.Join(targets, " "), want) {
			t.Errorf("make plugin does not build for %s", want)
		}
	}
	for _, target := range targets {
		goos, goarch, _ := strings.Cut(target, "/")
		cmd := exec.CommandContext(t.Context(), "go", "list", "-deps", "-f", "{{.ImportPath}}", ".")
		cmd.Env = append(os.Environ(), "GOOS="+goos, "GOARCH="+goarch, "CGO_ENABLED=0")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v: %s", target, err, out)
		}
		if strings.Contains(string(out), "vishvananda/netlink") {
			t.Errorf("%s: the program imports netlink, which only Linux has", target)
		}
	}
}

// TestKrewManifestNamesEachArchive checks the manifest that tools/krew.sh prints.
func TestKrewManifestNamesEachArchive(t *testing.T) {
	dir := t.TempDir()
	targets := readPluginTargets(t)
	sums := map[string]string{}
	for _, target := range targets {
		archive := "kubectl-gantry-" + strings.ReplaceAll(target, "/", "-") + ".tar.gz"
		if err := os.WriteFile(filepath.Join(dir, archive), []byte(target), 0o600); err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256([]byte(target))
		sums[archive] = hex.EncodeToString(sum[:])
	}
	out, err := exec.CommandContext(t.Context(), "sh", append([]string{filepath.Join(repositoryRoot, "tools", "krew.sh"), dir, "v1.2.3"}, targets...)...).Output()
	if err != nil {
		t.Fatal(err)
	}
	var manifest struct {
		Kind     string
		Metadata struct{ Name string }
		Spec     struct {
			Version, ShortDescription string
			Platforms                 []struct {
				Selector         struct{ MatchLabels map[string]string }
				URI, Sha256, Bin string
			}
		}
	}
	if err := yaml.Unmarshal(out, &manifest); err != nil {
		t.Fatalf("%v:\n%s", err, out)
	}
	if manifest.Kind != "Plugin" || manifest.Metadata.Name != "gantry" || manifest.Spec.Version != "v1.2.3" || len(manifest.Spec.Platforms) != len(targets) || len(manifest.Spec.ShortDescription) > 50 {
		t.Errorf("the manifest is\n%s", out)
	}
	for _, p := range manifest.Spec.Platforms {
		archive := "kubectl-gantry-" + p.Selector.MatchLabels["os"] + "-" + p.Selector.MatchLabels["arch"] + ".tar.gz"
		bin := "kubectl-gantry"
		if p.Selector.MatchLabels["os"] == "windows" {
			bin += ".exe"
		}
		if !strings.HasSuffix(p.URI, "/v1.2.3/"+archive) || p.Sha256 != sums[archive] || p.Bin != bin {
			t.Errorf("a platform is %+v", p)
		}
	}
}
