package manifests

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// createNodesInTwoRacks creates a node in each of two racks, with an address and a Pod network that
// pools may contain by mistake.
func createNodesInTwoRacks(t *testing.T, c client.Client) {
	t.Helper()
	for rack, n := range map[string]struct{ address, podNetwork string }{"a": {"10.172.0.1", "10.171.0.0/24"}, "b": {"10.172.0.2", "10.171.1.0/24"}} {
		o := &corev1.Node{}
		o.Name, o.Labels = "node-"+rack, map[string]string{"rack": rack}
		o.Spec.PodCIDR, o.Spec.PodCIDRs = n.podNetwork, []string{n.podNetwork}
		if err := c.Create(t.Context(), o); err != nil {
			t.Fatal(err)
		}
		o.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: n.address}}
		if err := c.Status().Update(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
}
