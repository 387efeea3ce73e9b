// Package packages renders what users install: the overlays of config/ with kustomize, and
// charts/gantry with Helm. It runs the programs in the repository's bin directory. Its tests
// apply the result to an API server on which nothing runs; the end-to-end tests run it.
package packages

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

// EquivalentHelmValuesByKustomizeOverlay are the installations in config/, each with the chart's
// values for the same result.
var EquivalentHelmValuesByKustomizeOverlay = map[string]string{
	"default":    "{}",
	"l2-only":    "bgp: {enabled: false}",
	"continuity": "speaker: {continuity: {aroundDeadNodes: true, keepConnections: true}}",
	"webhook":    "webhook: {enabled: true}",
	"prometheus": "prometheus: {enabled: true}",
}

// RepositoryRoot returns the root of the repository, which it finds from the path of this source
// file.
func RepositoryRoot() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(file), "..", "..")
}

// DescribeUnbuiltHelmOrKustomize returns which program is not built and how to build it, or "" if
// all are built.
func DescribeUnbuiltHelmOrKustomize() string {
	for _, p := range []string{"helm", "helm3", "kustomize", "crane"} {
		if _, err := os.Stat(filepath.Join(RepositoryRoot(), "bin", p)); err != nil {
			return "bin/" + p + " is not built: make packages-tools"
		}
	}
	return ""
}

// RenderKustomize returns the manifests of config/<overlay>.
func RenderKustomize(ctx context.Context, overlay string) (string, error) {
	return runProgram(ctx, "", "kustomize", "build", filepath.Join(RepositoryRoot(), "config", overlay))
}

// RenderKustomizeInNamespace returns the manifests of config/<overlay> with the namespace of an
// overlay that dir, an empty directory, gets.
func RenderKustomizeInNamespace(ctx context.Context, dir, overlay, namespace string) (string, error) {
	from, err := filepath.Rel(dir, filepath.Join(RepositoryRoot(), "config", overlay))
	if err != nil {
		return "", err
	}
	text := "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nnamespace: " + namespace + "\nresources: [" + from + "]\n"
	if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(text), 0o600); err != nil {
		return "", err
	}
	return runProgram(ctx, "", "kustomize", "build", dir)
}

// RenderKustomizeWithComponent returns the manifests of config/<overlay> with a component of
// config/components, by an overlay that dir, an empty directory, gets.
func RenderKustomizeWithComponent(ctx context.Context, dir, overlay, component string) (string, error) {
	config, err := filepath.Rel(dir, filepath.Join(RepositoryRoot(), "config"))
	if err != nil {
		return "", err
	}
	text := "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [" + filepath.Join(config, overlay) + "]\ncomponents: [" + filepath.Join(config, "components", component) + "]\n"
	if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(text), 0o600); err != nil {
		return "", err
	}
	return runProgram(ctx, "", "kustomize", "build", dir)
}

// ReadVersion returns the tag of the image that the chart installs, or "" if Chart.yaml has none.
func ReadVersion() string {
	text, err := os.ReadFile(filepath.Join(RepositoryRoot(), "charts", "gantry", "Chart.yaml"))
	if err != nil {
		return ""
	}
	var chart struct{ AppVersion string }
	_ = yaml.Unmarshal(text, &chart)
	return chart.AppVersion
}

// HelmImageArguments are the arguments with which Helm gives the image the name that it has in
// config/.
func HelmImageArguments() []string {
	return []string{"--values", filepath.Join(RepositoryRoot(), "test", "packages", "testdata", "image.yaml")}
}

// RenderHelm returns the manifests of the chart for a release named gantry in the namespace. values
// is YAML. The image has the name that it has in config/, unless the values name another.
func RenderHelm(ctx context.Context, namespace, values string, args ...string) (string, error) {
	all := []string{"template", "gantry", filepath.Join(RepositoryRoot(), "charts", "gantry"), "--namespace", namespace}
	all = append(append(append(all, HelmImageArguments()...), "--values", "-"), args...)
	return runProgram(ctx, values, "helm", all...)
}

// runProgram runs one of the programs. The error has the program's error output.
func runProgram(ctx context.Context, input, program string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(RepositoryRoot(), "bin", program), args...)
	var out, problems bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader([]byte(input)), &out, &problems
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w\n%s", program, err, &problems)
	}
	return out.String(), nil
}

// SplitObjects splits manifests into objects and keeps their order.
func SplitObjects(manifests string) ([]*unstructured.Unstructured, error) {
	var out []*unstructured.Unstructured
	for i, doc := range bytes.Split([]byte("\n"+manifests), []byte("\n---\n")) {
		o := &unstructured.Unstructured{}
		if err := yaml.UnmarshalStrict(doc, &o.Object); err != nil {
			return nil, fmt.Errorf("reading document %d: %w", i+1, err)
		}
		if len(o.Object) > 0 {
			out = append(out, o)
		}
	}
	return out, nil
}
