package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/gantry-lb/gantry/test/cluster"
	"github.com/gantry-lb/gantry/test/lab"
)

// TestFirstStepsOfUserInEachKubeProxyMode follows the first steps of a user: a pool, an
// advertisement, a Service. It checks the address, the NodePort, the Service without NodePorts, and
// that an ExternalName Service stays as it is.
func TestFirstStepsOfUserInEachKubeProxyMode(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{lab.KubeProxyNFTables, lab.KubeProxyIPTables} {
		t.Run(mode, func(t *testing.T) {
			ctx, s := startLabWithGantry(t, lab.Options{Nodes: 3, ProxyMode: mode})
			failOnError(t, s.ApplyManifests(ctx, cluster.FirstPoolAndL2AdvertisementManifest))
			failOnError(t, s.ApplyManifests(ctx, cluster.ExampleServiceAndDeploymentManifest))
			failOnError(t, s.ApplyManifests(ctx, externalNameManifest))
			checkExampleServiceReachable(ctx, t, s)
			testServiceWithoutNodePortsAnswers(ctx, t, s)
			other, err := s.GetService(ctx, "default", "backend-service")
			failOnError(t, err)
			if len(other.Status.LoadBalancer.Ingress)+len(other.Status.Conditions)+len(other.Annotations) > 1 {
				t.Errorf("the ExternalName Service was changed: %v %v", other.Annotations, other.Status)
			}
		})
	}
}

const externalNameManifest = `apiVersion: v1
kind: Service
metadata:
  name: backend-service
  namespace: default
spec:
  type: ExternalName
  externalName: backend-service.example.svc.cluster.local
`

func checkExampleServiceReachable(ctx context.Context, t *testing.T, s *cluster.Cluster) {
	address, err := s.AwaitFirstAddressOfService(ctx, "tekton-pipelines", "tekton-dashboard")
	failOnError(t, err)
	if want := netip.MustParseAddr("192.168.0.201"); address != want {
		t.Fatalf("the first Service got %s, want the pool's first address %s", address, want)
	}
	svc, err := s.GetService(ctx, "tekton-pipelines", "tekton-dashboard")
	failOnError(t, err)
	in := svc.Status.LoadBalancer.Ingress[0]
	if in.IPMode == nil || *in.IPMode != "VIP" {
		t.Errorf("ipMode is %v, want VIP", in.IPMode)
	}
	if got := svc.Annotations["metallb.io/ip-allocated-from-pool"]; got != "first-pool" {
		t.Errorf("the annotation has the pool %q, want first-pool", got)
	}
	for _, client := range []string{"client", "far"} {
		body, err := s.FetchURLUntilSuccess(ctx, client, "http://192.168.0.201:9097/")
		failOnError(t, err)
		if !strings.Contains(body, "pod: tekton-dashboard-") {
			t.Errorf("from %s the answer is not the dashboard's:\n%s", client, body)
		}
	}
	port := svc.Spec.Ports[0].NodePort
	for _, node := range []string{"192.168.0.11", "192.168.0.12", "192.168.0.13"} {
		_, err := s.FetchURLUntilSuccess(ctx, "client", fmt.Sprintf("http://%s:%d/", node, port))
		failOnError(t, err)
	}
	if body, err := s.FetchURLFromHost(ctx, "client", fmt.Sprintf("http://192.168.0.201:%d/", port)); err == nil {
		t.Errorf("the NodePort answers on the external address:\n%s", body)
	}
}

// testServiceWithoutNodePortsAnswers deletes the Service and creates it again with
// allocateLoadBalancerNodePorts: false.
func testServiceWithoutNodePortsAnswers(ctx context.Context, t *testing.T, s *cluster.Cluster) {
	_, err := s.RunKubectl(ctx, "", "-n", "tekton-pipelines", "delete", "svc", "tekton-dashboard")
	failOnError(t, err)
	failOnError(t, s.ApplyManifests(ctx, strings.Replace(cluster.ExampleServiceAndDeploymentManifest, "  type: LoadBalancer", "  allocateLoadBalancerNodePorts: false\n  type: LoadBalancer", 1)))
	address, err := s.AwaitFirstAddressOfService(ctx, "tekton-pipelines", "tekton-dashboard")
	failOnError(t, err)
	if address.String() != "192.168.0.201" {
		t.Errorf("the new Service got %s, want 192.168.0.201, which is free again", address)
	}
	svc, err := s.GetService(ctx, "tekton-pipelines", "tekton-dashboard")
	failOnError(t, err)
	if p := svc.Spec.Ports[0].NodePort; p != 0 {
		t.Errorf("the Service has the NodePort %d, want none", p)
	}
	_, err = s.FetchURLUntilSuccess(ctx, "client", "http://192.168.0.201:9097/")
	failOnError(t, err)
}
