package packages

import (
	"bytes"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// earlierChartCommit is the commit of the first chart that was released.
const earlierChartCommit = "4ed98b1"

// extractEarlierChart writes an earlier chart into a directory, or skips the test if the repository
// is a clone without its history.
func extractEarlierChart(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	archive := exec.CommandContext(t.Context(), "git", "-C", RepositoryRoot(), "archive", earlierChartCommit, "charts", "config")
	text, err := archive.Output()
	if err != nil {
		t.Skipf("the repository lacks the commit %s: fetch its history", earlierChartCommit)
	}
	extract := exec.CommandContext(t.Context(), "tar", "-x", "-C", dir)
	extract.Stdin = bytes.NewReader(text)
	if out, err := extract.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return filepath.Join(dir, "charts", "gantry")
}

// earlierValues are values of a release of the earlier chart.
const earlierValues = `
imagePullSecrets: [{name: registry}]
loadBalancerClass: example.com/gantry
controller: {replicas: 1, podLabels: {team: net}, affinity: {nodeAffinity: {}}}
speaker: {gossip: {port: 7947}, layer2: {refreshInterval: 2m}, tolerations: []}
webhook: {enabled: true, failurePolicy: Ignore}
prometheus: {enabled: true, interval: 30s, labels: {release: prometheus}}
`

// TestUpgradeFromEarlierChart walks through the life of a release that the earlier chart installed,
// as the README describes it: with Helm 4, with Helm 3, and with Helm 3 before Helm 4. Helm 3
// merges on the client's side and Helm 4 on the server's side, so each can leave other things
// behind. After each step, the cluster has exactly the objects of the chart, and what users
// applied.
func TestUpgradeFromEarlierChart(t *testing.T) {
	earlier := extractEarlierChart(t)
	b := newPackageInstaller(t)
	b.installForeignCRDs()
	for _, way := range []struct{ name, first, later string }{{"Helm 4", "helm", "helm"}, {"Helm 3", "helm3", "helm3"}, {"Helm 3 and then 4", "helm3", "helm"}} {
		t.Run(way.name, func(t *testing.T) {
			b := &packageInstaller{t, b.kubectl, b.apiClient, earlier, way.first}
			b.removeCRDs()
			b.runHelm(earlierValues, "install", "gantry")
			b.awaitCRDs()
			b.runKubectl(userObjectsManifest, "apply", "-f", "-")
			former := b.readObjects(b.runHelm("", "get manifest", "gantry"))

			b.chart, b.helm = "", way.later
			b.runHelm("{}", "upgrade", "gantry", "--reset-then-reuse-values")
			current := b.runHelm("", "get manifest", "gantry")
			upgraded := b.readObjects(current)
			b.runHelm("", "rollback", "gantry")
			if diff := gocmp.Diff(former, b.readObjects(b.runHelm("", "get manifest", "gantry"))); diff != "" {
				t.Errorf("the objects before the upgrade (-) and after the rollback (+) differ:\n%s", diff)
			}
			b.runHelm("{}", "upgrade", "gantry", "--reset-then-reuse-values")
			b.runHelm("", "uninstall", "gantry")
			b.checkOnlyCRDsRemain(current)
			b.runHelm(earlierValues, "install", "gantry")
			if diff := gocmp.Diff(b.readObjects(current), upgraded); diff != "" {
				t.Errorf("the objects after a new installation (-) and after the upgrade (+) differ:\n%s", diff)
			}
			b.runHelm("", "uninstall", "gantry")
			// The CRDs still name the former release.
			b.runHelm(earlierValues, "install", "renamed", "--take-ownership")
			b.runKubectl(userObjectsManifest, "get", "-f", "-")
			b.runHelm("", "uninstall", "renamed")
			b.checkOnlyCRDsRemain(current)
		})
	}
}

// removeCRDs removes Gantry's CRDs, so that Helm owns those that it creates.
func (b *packageInstaller) removeCRDs() {
	b.Helper()
	for _, name := range strings.Fields(b.runKubectl("", "get", "customresourcedefinitions", "-o", "name")) {
		if strings.HasSuffix(name, ".metallb.io") || strings.HasSuffix(name, ".gantry.dev") {
			b.runKubectl("", "delete", name, "--timeout=1m")
		}
	}
}

// awaitCRDs waits until the API server serves every CRD.
func (b *packageInstaller) awaitCRDs() {
	b.Helper()
	b.runKubectl("", "wait", "customresourcedefinitions", "--all", "--for=condition=Established", "--timeout=2m")
}

// readObjects returns what the API server stores of the objects of manifests, by kind and name. It
// leaves out what the API server or Helm writes for itself.
func (b *packageInstaller) readObjects(manifests string) map[string]map[string]any {
	b.Helper()
	objects, err := SplitObjects(manifests)
	if err != nil {
		b.Fatal(err)
	}
	out := map[string]map[string]any{}
	for _, o := range objects {
		if err := b.apiClient.Get(b.Context(), client.ObjectKeyFromObject(o), o); err != nil {
			b.Errorf("%s %s: %v", o.GetKind(), o.GetName(), err)
			continue
		}
		for _, field := range [][]string{
			{"status"}, {"metadata", "resourceVersion"}, {"metadata", "uid"}, {"metadata", "creationTimestamp"}, {"metadata", "generation"}, {"metadata", "managedFields"},
			{"metadata", "annotations", "meta.helm.sh/release-name"}, {"metadata", "annotations", "meta.helm.sh/release-namespace"},
			{"metadata", "annotations", "deprecated.daemonset.template.generation"},
			// Addresses that the API server chooses.
			{"spec", "clusterIP"}, {"spec", "clusterIPs"},
		} {
			unstructured.RemoveNestedField(o.Object, field...)
		}
		out[o.GetKind()+" "+o.GetNamespace()+"/"+o.GetName()] = o.Object
	}
	return out
}

// checkOnlyCRDsRemain checks that of the objects of manifests only the CRDs are left, and with them
// what users applied.
func (b *packageInstaller) checkOnlyCRDsRemain(manifests string) {
	b.Helper()
	objects, err := SplitObjects(manifests)
	if err != nil {
		b.Fatal(err)
	}
	for _, o := range objects {
		err := b.apiClient.Get(b.Context(), client.ObjectKeyFromObject(o), o)
		if remains := err == nil; remains != (o.GetKind() == "CustomResourceDefinition") {
			b.Errorf("after the release is uninstalled, %s %s is left: %v, want the CRDs only (%v)", o.GetKind(), o.GetName(), remains, err)
		}
	}
	b.runKubectl(userObjectsManifest, "get", "-f", "-")
}
