package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/test/cluster"
	"github.com/gantry-lb/gantry/test/lab"
	"github.com/gantry-lb/gantry/test/packages"
)

// runHelm runs Helm in Gantry's namespace with values on its standard input, and returns its
// output.
func runHelm(ctx context.Context, t *testing.T, s *cluster.Cluster, values string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(ctx, filepath.Join(lab.RepositoryRoot(), "bin", "helm"), append(args, "--namespace", names.DefaultNamespace)...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+s.Kubeconfig(), "HELM_CACHE_HOME="+t.TempDir(), "HELM_CONFIG_HOME="+t.TempDir(), "HELM_DATA_HOME="+t.TempDir())
	cmd.Stdin = strings.NewReader(values)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("helm %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// installChart installs the chart with values as a release named gantry, and waits until every Pod
// is ready. name is how the names of the objects begin.
func installChart(ctx context.Context, t *testing.T, s *cluster.Cluster, values, name string) {
	t.Helper()
	args := append([]string{"install", "gantry", filepath.Join(lab.RepositoryRoot(), "charts", "gantry"), "--values", "-"}, packages.HelmImageArguments()...)
	runHelm(ctx, t, s, values, args...)
	for _, workload := range []string{"deployment/" + name + "-controller", "daemonset/" + name + "-speaker"} {
		runKubectl(ctx, t, s, "", "-n", names.DefaultNamespace, "rollout", "status", "--timeout=5m", workload)
	}
}

// createNamespaceForSpeakers creates Gantry's namespace with the label that lets speakers run.
func createNamespaceForSpeakers(ctx context.Context, t *testing.T, s *cluster.Cluster) {
	t.Helper()
	runKubectl(ctx, t, s, "", "create", "namespace", names.DefaultNamespace)
	runKubectl(ctx, t, s, "", "label", "namespace", names.DefaultNamespace, "pod-security.kubernetes.io/enforce=privileged")
}

// TestOnlyNodeWithExcludeLabelServes: the only node of a small cluster often has the label that
// excludes nodes of the control plane. The condition names the remedy, and the value of the chart
// works.
func TestOnlyNodeWithExcludeLabelServes(t *testing.T) {
	if m := packages.DescribeUnbuiltHelmOrKustomize(); m != "" {
		t.Skip(m)
	}
	ctx, s := startLabWithoutGantry(t, lab.Options{Nodes: 1})
	runKubectl(ctx, t, s, "", "label", "node", "node1", "node.kubernetes.io/exclude-from-external-load-balancers=")
	failOnError(t, s.ApplyManifests(ctx, backendManifest))
	createNamespaceForSpeakers(ctx, t, s)
	installChart(ctx, t, s, "{}", "gantry")
	failOnError(t, s.ApplyManifests(ctx, cluster.FirstPoolAndL2AdvertisementManifest+serviceManifestOfClass("on-only-node", "")))
	runKubectl(ctx, t, s, "", "wait", "service/on-only-node", "--for=condition="+names.ConditionAnnounced+"=False", "--timeout=3m")
	if out := runKubectl(ctx, t, s, "", "get", "service", "on-only-node", "-o", `jsonpath={.status.conditions[?(@.type=="`+names.ConditionAnnounced+`")]}`); !strings.Contains(out, "ignore-exclude-lb") || !strings.Contains(out, string(names.ReasonNodeExcluded)) {
		t.Errorf("the condition is %s, want the Reason %s and the flag --ignore-exclude-lb", out, names.ReasonNodeExcluded)
	}
	runHelm(ctx, t, s, "speaker: {ignoreExcludeLB: true}", append([]string{"upgrade", "gantry", filepath.Join(lab.RepositoryRoot(), "charts", "gantry"), "--values", "-"}, packages.HelmImageArguments()...)...)
	checkFirstPoolAddressReachable(ctx, t, s, "on-only-node")
}

// TestClusterWithIPv6OnlyServes: the nodes, the Pods and the Services of the cluster have no IPv4
// address.
func TestClusterWithIPv6OnlyServes(t *testing.T) {
	ctx, s := startLabWithGantry(t, lab.Options{Nodes: 2, Families: lab.IPv6Only})
	failOnError(t, s.ApplyManifests(ctx, backendManifest+poolManifestOf("ipv6-only", `"fd00:a8::d0/124"`)+"---\n"+everyPoolAdvertisementManifest+serviceManifestOfClass("ipv6-only", "")))
	a, err := s.AwaitFirstAddressOfService(ctx, "default", "ipv6-only")
	failOnError(t, err)
	if a.String() != "fd00:a8::d0" {
		t.Errorf("the Service has the address %v, want the first of the pool, fd00:a8::d0", a)
	}
	_, err = s.FetchURLUntilSuccess(ctx, "client", "http://["+a.String()+"]/")
	failOnError(t, err)
	holder, err := s.AwaitSingleAnnouncingNode(ctx, "ipv6-only", "")
	failOnError(t, err)
	// The speakers of the other nodes hear each other by IPv6.
	failOnError(t, s.KillNode(ctx, holder))
	_, err = s.AwaitSingleAnnouncingNode(ctx, "ipv6-only", holder)
	failOnError(t, err)
}

// everyPoolAdvertisementManifest is the L2Advertisement of the first pool, for all pools.
const everyPoolAdvertisementManifest = `apiVersion: metallb.io/v1beta1
kind: L2Advertisement
metadata: {name: example, namespace: metallb-system}
spec: {ipAddressPools: []}
`

// poolManifestOf is an IPAddressPool with a range.
func poolManifestOf(name, addresses string) string {
	return fmt.Sprintf(`---
apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata: {name: %s, namespace: metallb-system}
spec: {addresses: [%s]}
`, name, addresses)
}
