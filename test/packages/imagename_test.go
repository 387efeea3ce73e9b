package packages

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// imagesOfManifests returns the images of all containers in the manifests.
func imagesOfManifests(t *testing.T, manifests string) []string {
	t.Helper()
	objects, err := SplitObjects(manifests)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, o := range objects {
		containers, _, _ := unstructured.NestedSlice(o.Object, "spec", "template", "spec", "containers")
		for _, c := range containers {
			out = append(out, c.(map[string]any)["image"].(string))
		}
	}
	return out
}

// TestNoOverlayNamesAnImageThatOthersCouldPublish: an image without the name of a registry comes
// from a public one, where anybody can register the account. What is published there would run as
// root on each node. Names under .invalid are reserved (RFC 6761, section 6.4): no registry can
// have one.
func TestNoOverlayNamesAnImageThatOthersCouldPublish(t *testing.T) {
	skipWithoutHelmAndKustomize(t)
	for overlay := range EquivalentHelmValuesByKustomizeOverlay {
		text, err := RenderKustomize(t.Context(), overlay)
		if err != nil {
			t.Fatal(err)
		}
		images := imagesOfManifests(t, text)
		if len(images) != 2 {
			t.Errorf("config/%s has the images %v, want one of the controller and one of the speaker", overlay, images)
		}
		for _, image := range images {
			if registry, _, _ := strings.Cut(image, "/"); !strings.HasSuffix(registry, ".invalid") {
				t.Errorf("config/%s pulls %s: write a registry under .invalid", overlay, image)
			}
		}
	}
}

func TestHelmChartWithoutImageRepositoryIsRefused(t *testing.T) {
	skipWithoutHelmAndKustomize(t)
	_, err := RenderHelm(t.Context(), "metallb-system", `image: {repository: ""}`)
	if err == nil {
		t.Fatal("the chart is rendered without image.repository")
	}
	for _, want := range []string{"image.repository", "make image"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error lacks %q: %v", want, err)
		}
	}
}

var readmeHelmInstallPattern = regexp.MustCompile(`(?m)^helm install gantry charts/gantry (.*)$`)

var readmeKustomizationPattern = regexp.MustCompile("(?s)`kustomization.yaml`:\\s*```yaml\n(.*?)```")

// TestReadmeInstallLinesNameTheImage renders what the README says about the image, for both ways to
// install.
func TestReadmeInstallLinesNameTheImage(t *testing.T) {
	skipWithoutHelmAndKustomize(t)
	want := "registry.example/gantry:" + ReadVersion()
	readme, err := os.ReadFile(filepath.Join(RepositoryRoot(), "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	helm, kustomization := readmeHelmInstallPattern.FindSubmatch(readme), readmeKustomizationPattern.FindSubmatch(readme)
	if helm == nil || kustomization == nil {
		t.Fatal("the README has no helm install, or no kustomization.yaml")
	}
	args := append([]string{"template", "gantry", filepath.Join(RepositoryRoot(), "charts", "gantry")}, strings.Fields(string(helm[1]))...)
	byHelm, err := runProgram(t.Context(), "", "helm", args...)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.Symlink(filepath.Join(RepositoryRoot(), "config"), filepath.Join(dir, "config")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), kustomization[1], 0o600); err != nil {
		t.Fatal(err)
	}
	byKustomize, err := runProgram(t.Context(), "", "kustomize", "build", dir)
	if err != nil {
		t.Fatal(err)
	}
	for way, text := range map[string]string{"Helm": byHelm, "kustomize": byKustomize} {
		for _, image := range imagesOfManifests(t, text) {
			if image != want {
				t.Errorf("the README's way with %s pulls %s, want %s", way, image, want)
			}
		}
	}
}
