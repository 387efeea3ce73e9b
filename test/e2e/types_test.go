package e2e

import (
	"context"
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/gantry-lb/gantry/test/cluster"
)

// testChangedServiceTypeReleasesAddress changes a Service to every type and back. With any other
// type nothing of Gantry is left on it and its address is free; as a LoadBalancer it is reachable
// again.
func testChangedServiceTypeReleasesAddress(ctx context.Context, t *testing.T, s *cluster.Cluster) {
	kubectl := createNamespaceAndKubectlFunc(ctx, t, s, "types")
	kubectl(readManualManifest(t, "002-webapp.yaml"), "apply", "-f", "-")
	const balancer = `{"spec":{"type":"LoadBalancer","externalName":null,"clusterIP":"","clusterIPs":null}}`
	for _, change := range []struct {
		to    corev1.ServiceType
		patch string
	}{
		{corev1.ServiceTypeClusterIP, `{"spec":{"type":"ClusterIP"}}`},
		{corev1.ServiceTypeNodePort, `{"spec":{"type":"NodePort"}}`},
		{corev1.ServiceTypeExternalName, `{"spec":{"type":"ExternalName","externalName":"my.database.example.com","clusterIP":null,"clusterIPs":null}}`},
		{"headless", `{"spec":{"type":"ClusterIP","clusterIP":"None","clusterIPs":["None"],"externalName":null}}`},
	} {
		t.Run(string(change.to), func(t *testing.T) {
			kubectl("", "patch", "service", "webapp", "--type=merge", "-p", `{"spec":{"type":"LoadBalancer"}}`)
			address, err := s.AwaitFirstAddressOfService(ctx, "types", "webapp")
			failOnError(t, err)
			url := fmt.Sprintf("http://%s:8080/", address)
			_, err = s.FetchURLUntilSuccess(ctx, "client", url)
			failOnError(t, err)
			if change.to == "headless" { // the API removes a cluster IP only for a type without one
				kubectl("", "patch", "service", "webapp", "--type=merge", "-p", `{"spec":{"type":"ExternalName","externalName":"example.com","clusterIP":null,"clusterIPs":null}}`)
			}
			kubectl("", "patch", "service", "webapp", "--type=merge", "-p", change.patch)
			awaitServiceUnannounced(ctx, t, s, serviceKey{"types", "webapp"}, url)
			failOnError(t, cluster.AwaitNoError(ctx, "a Service without anything of Gantry", func(ctx context.Context) error {
				svc, err := s.GetService(ctx, "types", "webapp")
				if err != nil {
					return err
				}
				return errorIfGantryWroteToService(svc)
			}))
			kubectl(fmt.Sprintf(serviceRequestingSameAddressManifest, address), "apply", "-f", "-")
			got, err := s.AwaitFirstAddressOfService(ctx, "types", "other")
			failOnError(t, err)
			if got != address {
				t.Errorf("another Service that requests %s got %s", address, got)
			}
			kubectl("", "delete", "service", "other")
			if change.to == "headless" {
				kubectl("", "patch", "service", "webapp", "--type=merge", "-p", `{"spec":{"type":"ExternalName","externalName":"example.com","clusterIP":null,"clusterIPs":null}}`)
				kubectl("", "patch", "service", "webapp", "--type=merge", "-p", balancer)
				_, err = s.AwaitFirstAddressOfService(ctx, "types", "webapp")
				failOnError(t, err)
			}
		})
	}
}

const serviceRequestingSameAddressManifest = `apiVersion: v1
kind: Service
metadata:
  name: other
  annotations: {metallb.io/loadBalancerIPs: %s}
spec:
  type: LoadBalancer
  selector: {app: webapp}
  ports: [{port: 1234}]
`
