package e2e

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/gantry-lb/gantry/test/cluster"
	"github.com/gantry-lb/gantry/test/lab"
	"github.com/gantry-lb/gantry/test/packages"
)

// TestInstallationAndConfigurationInOneSync applies everything at once, as a tool does that follows
// a repository: the CRDs, the programs, the webhook, and what users write, the last first. It tries
// again until nothing fails.
func TestInstallationAndConfigurationInOneSync(t *testing.T) {
	t.Parallel()
	if m := packages.DescribeUnbuiltHelmOrKustomize(); m != "" {
		t.Skip(m)
	}
	ctx, s := startLabWithoutGantry(t, lab.Options{Nodes: 2})
	installation, err := packages.RenderKustomize(ctx, "webhook")
	failOnError(t, err)
	manifests := installation + "---\n" + cluster.FirstPoolAndL2AdvertisementManifest + "---\n" + oneObjectOfEveryUserKindManifest + "---\n" + backendManifest +
		serviceManifestOfClass("synced", "") + serviceManifestOfClass("synced-high", "loadBalancerIP: 192.168.0.230")
	documents := strings.Split(manifests, "---\n")
	slices.Reverse(documents)
	reversed := strings.Join(documents, "\n---\n")
	failOnError(t, cluster.AwaitNoError(ctx, "a sync", func(context.Context) error { return s.ApplyManifests(ctx, reversed) }))
	failOnError(t, s.AwaitGantryRollout(ctx))
	checkFirstPoolAddressReachable(ctx, t, s, "synced")
	checkSyncedHighAddress(ctx, t, s)
	t.Run("a second sync changes nothing", func(t *testing.T) {
		if _, err := exec.LookPath("diff"); err != nil {
			t.Skip("kubectl diff runs the program diff, which is missing")
		}
		for _, flags := range [][]string{nil, {"--server-side", "--force-conflicts"}} {
			// A first application by another way changes the fields' owners.
			runKubectl(ctx, t, s, manifests, append([]string{"apply", "-f", "-"}, flags...)...)
			if out, err := s.RunKubectl(ctx, manifests, append([]string{"diff", "-f", "-"}, flags...)...); err != nil {
				t.Errorf("a second application with %v would change\n%s%v", flags, out, err)
			}
		}
	})
	t.Run("a pool is split in one commit", func(t *testing.T) {
		for _, flags := range [][]string{nil, {"--server-side", "--force-conflicts"}} {
			testPoolSplitInOneCommit(ctx, t, s, flags)
		}
	})
}

// splitPoolManifest is first-pool in two parts. The new part comes first, so that it overlaps the
// old one for a moment.
const splitPoolManifest = `apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata: {name: second-pool, namespace: metallb-system}
spec: {addresses: [192.168.0.217-192.168.0.233]}
---
apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata: {name: first-pool, namespace: metallb-system}
spec: {addresses: [192.168.0.201-192.168.0.216]}
---
apiVersion: metallb.io/v1beta1
kind: L2Advertisement
metadata: {name: example, namespace: metallb-system}
spec: {ipAddressPools: [first-pool, second-pool]}
`

// testPoolSplitInOneCommit splits the pool of two Services, with the webhook on. The webhook only
// warns of the overlap. The Services keep their addresses, each part gives addresses of its own,
// and nothing is left to report. At the end the pool is whole again.
func testPoolSplitInOneCommit(ctx context.Context, t *testing.T, s *cluster.Cluster, flags []string) {
	t.Helper()
	secondPool, _, _ := strings.Cut(splitPoolManifest, "---\n")
	_, err := s.RunKubectl(ctx, secondPool, append([]string{"apply", "-f", "-", "--dry-run=server", "--warnings-as-errors"}, flags...)...)
	if err == nil || strings.Contains(err.Error(), "denied the request") || !strings.Contains(err.Error(), "first-pool") {
		t.Errorf("the new part alone gives %v, want a warning that names first-pool", err)
	}
	apply := append([]string{"apply", "-f", "-"}, flags...)
	runKubectl(ctx, t, s, splitPoolManifest, apply...)
	failOnError(t, s.ApplyManifests(ctx, strings.Replace(serviceManifestOfClass("in-second-part", ""), "metadata: {", "metadata: {annotations: {metallb.io/address-pool: second-pool}, ", 1)))
	a, err := s.AwaitFirstAddressOfService(ctx, "default", "in-second-part")
	failOnError(t, err)
	if a.String() != "192.168.0.217" {
		t.Errorf("a new Service of the second part has %v, want 192.168.0.217", a)
	}
	_, err = s.FetchURLUntilSuccess(ctx, "client", "http://"+a.String()+"/")
	failOnError(t, err)
	checkFirstPoolAddressReachable(ctx, t, s, "synced")
	checkSyncedHighAddress(ctx, t, s)
	failOnError(t, cluster.AwaitNoError(ctx, "the parts of the pool", func(ctx context.Context) error {
		out, err := s.RunKubectl(ctx, "", "-n", "metallb-system", "get", "ipaddresspools", "-o",
			`jsonpath={range .items[*]}{.metadata.name} {.status.assignedIPv4} {.status.gantry.conditions[?(@.type=="gantry.dev/Valid")].status}{"\n"}{end}`)
		if err == nil && out != "first-pool 1 True\nsecond-pool 2 True\n" {
			err = errors.New("their names, assigned addresses and conditions are\n" + out)
		}
		return err
	}))
	runKubectl(ctx, t, s, "", "delete", "service", "in-second-part")
	runKubectl(ctx, t, s, "", "-n", "metallb-system", "delete", "ipaddresspool", "second-pool")
	runKubectl(ctx, t, s, cluster.FirstPoolAndL2AdvertisementManifest, apply...)
	checkSyncedHighAddress(ctx, t, s)
}

// checkSyncedHighAddress checks that the second Service has the address that it asks for, and that
// a client reaches it.
func checkSyncedHighAddress(ctx context.Context, t *testing.T, s *cluster.Cluster) {
	t.Helper()
	a, err := s.AwaitFirstAddressOfService(ctx, "default", "synced-high")
	failOnError(t, err)
	if a.String() != "192.168.0.230" {
		t.Errorf("the Service that asks for 192.168.0.230 has %v", a)
	}
	_, err = s.FetchURLUntilSuccess(ctx, "client", "http://"+a.String()+"/")
	failOnError(t, err)
}

// serviceManifestOfClass is a Service of the backend with one more line in its spec.
func serviceManifestOfClass(name, line string) string {
	return fmt.Sprintf(`---
apiVersion: v1
kind: Service
metadata: {name: %s}
spec:
  type: LoadBalancer
  selector: {app: web}
  ports: [{port: 80}]
  %s
`, name, line)
}
