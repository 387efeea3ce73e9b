package e2e

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/gantry-lb/gantry/test/cluster"
	"github.com/gantry-lb/gantry/test/lab"
)

// gantryImage is the name that stands for Gantry's programs in the lab.
const gantryImage = "registry.invalid/gantry:v0.1.0"

// expectPreflight runs kubectl gantry preflight until it exits with the status, and its output has
// the texts.
func expectPreflight(ctx context.Context, t *testing.T, s *cluster.Cluster, args []string, wantStatus int, texts ...string) {
	t.Helper()
	failOnError(t, cluster.AwaitNoError(ctx, "the preflight", func(ctx context.Context) error {
		out, status, err := runKubectlGantry(ctx, s, append([]string{"preflight"}, args...)...)
		if err != nil || ctx.Err() != nil {
			return errors.Join(err, ctx.Err())
		}
		for _, text := range texts {
			if status != wantStatus || !strings.Contains(out, text) {
				return fmt.Errorf("it exits with %d, want %d and %q:\n%s", status, wantStatus, text, out)
			}
		}
		return nil
	}))
}

// TestPreflightProbeAndSupportBundle goes the way of an operator: the nodes before an installation,
// with faults, then the cluster after it, Services from clients, and a bundle of what is broken.
func TestPreflightProbeAndSupportBundle(t *testing.T) {
	t.Parallel()
	ctx, s := startLabWithoutGantry(t, lab.Options{Nodes: 3})
	before := []string{"--image", gantryImage}
	expectPreflight(ctx, t, s, before, 0, "checks pass on 3 nodes")
	rounds := preflightFaultsBeforeInstallation()
	runPreflightRounds(ctx, t, s, append([]string{"--for", "bfd"}, before...), rounds)
	expectPreflight(ctx, t, s, append([]string{"--for", "bfd"}, before...), 0, "checks pass on 3 nodes")
	removeObjectsOfFaults(ctx, t, s)
	failOnError(t, cluster.AwaitNoError(ctx, "the end of the namespaces of the preflight", func(ctx context.Context) error {
		var all corev1.NamespaceList
		if err := s.API.List(ctx, &all); err != nil {
			return err
		}
		for i := range all.Items {
			if strings.HasPrefix(all.Items[i].Name, "gantry-preflight") {
				return fmt.Errorf("namespace %s is left over", all.Items[i].Name)
			}
		}
		return nil
	}))
	failOnError(t, s.InstallGantry(ctx))
	expectPreflight(ctx, t, s, nil, 0, "checks pass on 3 nodes")
	runPreflightRounds(ctx, t, s, nil, preflightFaultsAfterInstallation())
	expectPreflight(ctx, t, s, nil, 0, "checks pass on 3 nodes")
	expectPreflight(ctx, t, s, []string{"--on-nodes"}, 0, "checks pass on 3 nodes")
	failOnError(t, s.ApplyManifests(ctx, operatedServiceManifests+probedServiceManifests()))
	t.Run("probe", func(t *testing.T) { testProbeNamesStep(ctx, t, s) })
	t.Run("support bundle", func(t *testing.T) { testBundleExplainsAsTheCluster(ctx, t, s) })
}

// operatedServiceManifests are Services that work, and such that do not.
const operatedServiceManifests = `apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata: {name: operated, namespace: metallb-system}
spec: {addresses: [192.168.0.201-192.168.0.210, 192.168.0.215-192.168.0.229]}
---
apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata: {name: unadvertised, namespace: metallb-system}
spec: {addresses: [192.168.0.211-192.168.0.212], autoAssign: false}
---
apiVersion: metallb.io/v1beta1
kind: L2Advertisement
metadata: {name: operated, namespace: metallb-system}
spec: {ipAddressPools: [operated]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: operated, namespace: default}
spec:
  replicas: 2
  selector: {matchLabels: {app: operated}}
  template:
    metadata: {labels: {app: operated}}
    spec: {containers: [{name: web, image: web, ports: [{containerPort: 8080}, {containerPort: 7000, protocol: UDP}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: operated, namespace: default}
spec: {type: LoadBalancer, selector: {app: operated}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: operated-ranges, namespace: default}
spec: {type: LoadBalancer, selector: {app: operated}, loadBalancerSourceRanges: [10.99.0.0/16], ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: operated-without-pods, namespace: default}
spec: {type: LoadBalancer, selector: {app: nobody}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: operated-unadvertised, namespace: default, annotations: {metallb.io/address-pool: unadvertised}}
spec: {type: LoadBalancer, selector: {app: operated}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: operated-misspelt, namespace: default, annotations: {metallb.io/address-pool: oprated}}
spec: {type: LoadBalancer, selector: {app: operated}, ports: [{port: 80, targetPort: 8080}]}
---
`

// testBundleExplainsAsTheCluster compares the first lines of a broken cluster with those of its
// bundle.
func testBundleExplainsAsTheCluster(ctx context.Context, t *testing.T, s *cluster.Cluster) {
	bundle := filepath.Join(t.TempDir(), "bundle.tar.gz")
	questions := [][]string{{"explain", "pool", "operated"}, {"explain", "node", "node1"}, {"explain", "address", "192.168.0.211"}, {"status"}, {"preflight"}, {"holders"}, {"pools"}, {"services"}, {"moves"}, {"peers"}, {"routes", "node1"}}
	for _, name := range []string{"operated", "operated-ranges", "operated-without-pods", "operated-unadvertised", "operated-misspelt"} {
		questions = append(questions, []string{"explain", "service", name})
	}
	before := map[string]string{}
	ask := func(args ...string) string {
		out, status, err := runKubectlGantry(ctx, s, args...)
		failOnError(t, err)
		first, _, _ := strings.Cut(out, "\n")
		return fmt.Sprintf("%s (exit status %d)", first, status)
	}
	for _, q := range questions {
		before[strings.Join(q, " ")] = ask(q...)
	}
	out, status, err := runKubectlGantry(ctx, s, "support-bundle", "-f", bundle)
	if err != nil || status != 0 {
		t.Fatalf("support-bundle exits with %d: %v: %s", status, err, out)
	}
	for _, q := range questions {
		if got, want := ask(append([]string{"--from-bundle", bundle}, q...)...), before[strings.Join(q, " ")]; got != want {
			t.Errorf("%q: the bundle says\n%s\nand the cluster said\n%s", q, got, want)
		}
	}
}
