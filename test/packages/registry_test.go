package packages

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"github.com/gantry-lb/gantry/test/apiserver"
)

// startRegistry starts a registry of container images that runs until the test ends, and returns
// its address.
func startRegistry(t *testing.T) string {
	t.Helper()
	skipWithoutHelmAndKustomize(t)
	address := "127.0.0.1:" + apiserver.FindFreeTCPPort(t)
	cmd := exec.CommandContext(t.Context(), filepath.Join(RepositoryRoot(), "bin", "crane"), "registry", "serve", "--address", address)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	retryUntilNoError(t, "the registry", func(ctx context.Context) error {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/v2/", nil)
		if err != nil {
			return err
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			return err
		}
		return response.Body.Close()
	})
	return address
}

// runInDirectory runs a command of the documents in a directory, with the programs of the
// repository's bin directory, and returns its output.
func runInDirectory(t *testing.T, dir, command string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "sh", "-euc", command)
	home := t.TempDir()
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "HOME="+home, "HELM_CACHE_HOME="+home, "HELM_CONFIG_HOME="+home, "HELM_DATA_HOME="+home)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", command, err, out)
	}
	return string(out)
}

// findCommandOfDocument returns the only line of a document that begins with a text, with the
// address of a registry in the place of the example's.
func findCommandOfDocument(t *testing.T, document, begin, registry string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(RepositoryRoot(), filepath.FromSlash(document)))
	if err != nil {
		t.Fatal(err)
	}
	lines := regexp.MustCompile("(?m)^"+regexp.QuoteMeta(begin)+".*$").FindAllString(string(text), -1)
	if len(lines) != 1 {
		t.Fatalf("%s has %d lines that begin with %q, want one", document, len(lines), begin)
	}
	return strings.ReplaceAll(lines[0], "registry.example", registry)
}

// TestImageIsPushedAsTheDocumentsSay pushes the archive to a registry as the documents say, and
// pulls the image again. It has the programs, and the name that the manifests of the documents
// have.
func TestImageIsPushedAsTheDocumentsSay(t *testing.T) {
	registry, dir := startRegistry(t), t.TempDir()
	if err := os.Symlink(filepath.Join(RepositoryRoot(), "bin"), filepath.Join(dir, "bin")); err != nil {
		t.Fatal(err)
	}
	buildImageArchive(t, filepath.Join(dir, "dist", "image.tar"))
	runInDirectory(t, dir, findCommandOfDocument(t, "docs/install.md", "bin/crane push", registry))
	image := registry + "/gantry:" + ReadVersion()
	runInDirectory(t, dir, "bin/crane pull "+image+" pulled.tar")
	pulled, err := ReadImageArchive(filepath.Join(dir, "pulled.tar"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := gocmp.Diff([]string{"controller", "etc/passwd", "speaker"}, slices.Sorted(maps.Keys(pulled.FileByPath))); diff != "" {
		t.Errorf("the pulled image has other files:\n%s", diff)
	}
}

// TestChartIsInstalledFromRegistry pushes the chart to a registry as the documents say. It is then
// rendered as from the repository, by both versions of Helm. A copy of the chart as an OCI layout
// reaches another registry without a network between them.
func TestChartIsInstalledFromRegistry(t *testing.T) {
	registry, dir := startRegistry(t), t.TempDir()
	for _, name := range []string{"bin", "charts", "test"} {
		if err := os.Symlink(filepath.Join(RepositoryRoot(), name), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	want, err := RenderHelm(t.Context(), "metallb-system", "{}")
	if err != nil {
		t.Fatal(err)
	}
	version := strings.TrimPrefix(ReadVersion(), "v")
	for i, helm := range []string{"helm", "helm3"} {
		repository := fmt.Sprintf("%s/charts-%d", registry, i)
		runInDirectory(t, dir, fmt.Sprintf("bin/%s package charts/gantry --destination dist", helm))
		push := findCommandOfDocument(t, "docs/chart-values.md", "helm push", registry)
		runInDirectory(t, dir, "bin/"+helm+strings.TrimPrefix(strings.Replace(push, registry+"/charts", repository, 1), "helm")+" --plain-http")
		render := func(where string) string {
			// Without a cluster, Helm 3 assumes a Kubernetes that is too old.
			return runInDirectory(t, dir, fmt.Sprintf("bin/%s template gantry %s --plain-http --namespace metallb-system --kube-version 1.37 --values test/packages/testdata/image.yaml --version %s 2>/dev/null", helm, where, version))
		}
		if diff := gocmp.Diff(indexObjectsByName(t, want), indexObjectsByName(t, render("oci://"+repository+"/gantry"))); diff != "" {
			t.Errorf("%s: the chart of the repository (-) and of the registry (+) differ:\n%s", helm, diff)
		}
		layout, other := filepath.Join(dir, "layout-"+helm), registry+"/elsewhere-"+helm
		runInDirectory(t, dir, fmt.Sprintf("bin/crane pull --format=oci %s/gantry:%s %s", repository, version, layout))
		runInDirectory(t, dir, fmt.Sprintf("bin/crane push %s %s/gantry:%s", layout, other, version))
		if diff := gocmp.Diff(indexObjectsByName(t, want), indexObjectsByName(t, render("oci://"+other+"/gantry"))); diff != "" {
			t.Errorf("%s: the chart of the repository (-) and of the OCI layout (+) differ:\n%s", helm, diff)
		}
	}
}

// TestChartDescribesItsKinds: Artifact Hub shows the annotations of Chart.yaml. They list the kinds
// that users write, with their CRDs.
func TestChartDescribesItsKinds(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(RepositoryRoot(), "charts", "gantry", "Chart.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var chart struct{ Annotations map[string]string }
	if err := yaml.Unmarshal(text, &chart); err != nil {
		t.Fatal(err)
	}
	var kinds []struct{ Kind, Version, Name, DisplayName, Description string }
	var examples []map[string]any
	for key, list := range map[string]any{"artifacthub.io/crds": &kinds, "artifacthub.io/crdsExamples": &examples} {
		if err := yaml.UnmarshalStrict([]byte(chart.Annotations[key]), list); err != nil {
			t.Errorf("%s is no list that Artifact Hub can read: %v", key, err)
		}
	}
	described := []string{"Service"}
	for _, k := range kinds {
		described = append(described, k.Kind)
		plural, group, _ := strings.Cut(k.Name, ".")
		crd, err := os.ReadFile(filepath.Join(RepositoryRoot(), "config", "crd", "bases", group+"_"+plural+".yaml"))
		if err != nil || !strings.Contains(string(crd), "    kind: "+k.Kind+"\n") || !strings.Contains(string(crd), "    name: "+k.Version+"\n") || k.Description == "" {
			t.Errorf("no CRD is %+v, or it has no description: %v", k, err)
		}
	}
	if diff := gocmp.Diff(kindsOfUsers, described); diff != "" {
		t.Errorf("the annotation describes other kinds (+) than those that users write (-):\n%s", diff)
	}
	if len(examples) == 0 {
		t.Error("the annotations have no example")
	}
}
