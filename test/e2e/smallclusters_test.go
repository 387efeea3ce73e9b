package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/test/cluster"
	"github.com/gantry-lb/gantry/test/lab"
	"github.com/gantry-lb/gantry/test/packages"
)

// runHelm runs Helm with values on its standard input, in Gantry's namespace unless the arguments
// name another, and returns its output.
func runHelm(ctx context.Context, t *testing.T, s *cluster.Cluster, values string, args ...string) string {
	t.Helper()
	if !slices.Contains(args, "--namespace") {
		args = append(args, "--namespace", names.DefaultNamespace)
	}
	cmd := exec.CommandContext(ctx, filepath.Join(lab.RepositoryRoot(), "bin", "helm"), args...)
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
	t.Parallel()
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
	upgradeChart(ctx, t, s, "speaker: {ignoreExcludeLB: true}")
	checkFirstPoolAddressReachable(ctx, t, s, "on-only-node")
	runKubectl(ctx, t, s, "", "delete", "service", "on-only-node")
	t.Run("ServiceLB beside it", func(t *testing.T) { testServiceLBBesideByClass(ctx, t, s) })
	t.Run("a second release beside it", func(t *testing.T) { testSecondReleaseBesideByClass(ctx, t, s) })
}

// upgradeChart upgrades the release gantry, and waits until every Pod runs with the new values.
func upgradeChart(ctx context.Context, t *testing.T, s *cluster.Cluster, values string) {
	t.Helper()
	runHelm(ctx, t, s, values, append([]string{"upgrade", "gantry", filepath.Join(lab.RepositoryRoot(), "charts", "gantry"), "--values", "-"}, packages.HelmImageArguments()...)...)
	failOnError(t, s.AwaitGantryRollout(ctx))
}

// testServiceLBBesideByClass: with a class of its own, Gantry serves the Services of this class,
// and ServiceLB of K3s those without a class. Each leaves those of the other alone.
func testServiceLBBesideByClass(ctx context.Context, t *testing.T, s *cluster.Cluster) {
	upgradeChart(ctx, t, s, "loadBalancerClass: example.com/gantry\nspeaker: {ignoreExcludeLB: true}\n")
	serviceLB := s.StartServiceLBStandIn(ctx)
	defer serviceLB.Stop()
	failOnError(t, s.ApplyManifests(ctx, serviceManifestOfClass("by-gantry", "loadBalancerClass: example.com/gantry")+serviceManifestOfClass("by-servicelb", "")))
	checkFirstPoolAddressReachable(ctx, t, s, "by-gantry")
	a, err := s.AwaitFirstAddressOfService(ctx, "default", "by-servicelb")
	failOnError(t, err)
	if a.String() != "192.168.0.11" {
		t.Errorf("the Service of ServiceLB has %v, want the address of the node, 192.168.0.11", a)
	}
	_, err = s.FetchURLUntilSuccess(ctx, "client", "http://"+a.String()+"/")
	failOnError(t, err)
	// A controller that starts looks at all Services again.
	runKubectl(ctx, t, s, "", "-n", names.DefaultNamespace, "rollout", "restart", "deployment/gantry-controller", "daemonset/gantry-speaker")
	failOnError(t, s.AwaitGantryRollout(ctx))
	checkFirstPoolAddressReachable(ctx, t, s, "by-gantry")
	_, err = s.FetchURLUntilSuccess(ctx, "client", "http://"+a.String()+"/")
	failOnError(t, err)
	if own, other := serviceLB.CountWritesOfService("by-servicelb"), serviceLB.CountWritesOfService("by-gantry"); own != 1 || other != 0 {
		t.Errorf("ServiceLB wrote the addresses of its own Service %d times and those of the other one %d times, want once and never", own, other)
	}
	if out := runKubectl(ctx, t, s, "", "get", "service", "by-servicelb", "-o", "jsonpath={.status.conditions}"); strings.Contains(out, "gantry.dev") {
		t.Errorf("the Service of ServiceLB has conditions of Gantry: %s", out)
	}
	if out := runKubectl(ctx, t, s, "", "get", "service", "by-gantry", "-o", "jsonpath={.status.conditions}"); strings.Contains(out, "another program") {
		t.Errorf("Gantry takes ServiceLB for a rival: %s", out)
	}
	runKubectl(ctx, t, s, "", "delete", "service", "by-servicelb", "by-gantry", "--timeout=1m")
}

// secondReleaseValuesPattern finds the values of a second release in docs/chart-values.md.
var secondReleaseValuesPattern = regexp.MustCompile("(?s)## Two installations in one cluster\n.*?```yaml\n(.*?)```")

// testSecondReleaseBesideByClass installs a second release with the values that
// docs/chart-values.md has. The programs of both run on one node, and each release serves its own
// class from its own pool.
func testSecondReleaseBesideByClass(ctx context.Context, t *testing.T, s *cluster.Cluster) {
	text, err := os.ReadFile(filepath.Join(lab.RepositoryRoot(), "docs", "chart-values.md"))
	failOnError(t, err)
	block := secondReleaseValuesPattern.FindStringSubmatch(string(text))
	if block == nil {
		t.Fatal("docs/chart-values.md has no values of a second release")
	}
	upgradeChart(ctx, t, s, "otherConfigurationNamespaces: [second]\nspeaker: {ignoreExcludeLB: true}\n")
	chart := filepath.Join(lab.RepositoryRoot(), "charts", "gantry")
	runHelm(ctx, t, s, block[1]+"  ignoreExcludeLB: true\n", append([]string{"install", "second", chart, "--namespace", "second", "--create-namespace", "--values", "-"}, packages.HelmImageArguments()...)...)
	for _, workload := range []string{"deployment/second-controller", "daemonset/second-speaker"} {
		runKubectl(ctx, t, s, "", "-n", "second", "rollout", "status", "--timeout=5m", workload)
	}
	inSecond := strings.NewReplacer("namespace: metallb-system", "namespace: second", "192.168.0.201-192.168.0.233", "192.168.0.234/32")
	failOnError(t, s.ApplyManifests(ctx, inSecond.Replace(cluster.FirstPoolAndL2AdvertisementManifest)+
		serviceManifestOfClass("of-first-release", "")+serviceManifestOfClass("of-second-release", "loadBalancerClass: example.com/second")))
	checkFirstPoolAddressReachable(ctx, t, s, "of-first-release")
	a, err := s.AwaitFirstAddressOfService(ctx, "default", "of-second-release")
	failOnError(t, err)
	if a.String() != "192.168.0.234" {
		t.Errorf("the Service of the second release has %v, want 192.168.0.234", a)
	}
	_, err = s.FetchURLUntilSuccess(ctx, "client", "http://"+a.String()+"/")
	failOnError(t, err)
}

// TestClusterWithIPv6OnlyServes: the nodes, the Pods and the Services of the cluster have no IPv4
// address.
func TestClusterWithIPv6OnlyServes(t *testing.T) {
	t.Parallel()
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
