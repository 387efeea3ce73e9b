package e2e

import (
	"context"
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
