package explain

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/controller/clusternetwork"
)

// explainAddressOfCluster says that an address of the Service belongs to a node or to the Pods of
// one. The Nodes are read only if the controller reports such an address of the pool.
func explainAddressOfCluster(c *serviceDiagnosis, ctx context.Context) cause {
	var pool v1beta1.IPAddressPool
	if err := c.objectReader.Get(ctx, client.ObjectKey{Namespace: c.gantryNamespace, Name: c.view.RecordedPool}, &pool); err != nil || pool.Status.Gantry == nil {
		return cause{}
	}
	if valid := meta.FindStatusCondition(pool.Status.Gantry.Conditions, names.ConditionValid); valid == nil || valid.Status != metav1.ConditionFalse {
		return cause{}
	}
	var nodes corev1.NodeList
	if err := c.objectReader.ListFromServer(ctx, &nodes); err != nil {
		return cause{}
	}
	for i := range nodes.Items {
		for _, used := range clusternetwork.AddressesAndPodNetworksOfNode(&nodes.Items[i]) {
			for _, a := range c.view.AssignedAddresses {
				is := "is"
				if used.First != used.Last {
					is = "is in"
				}
				if used.Contains(a) {
					return cause{names.NewExplanation(names.ReasonClusterAddress, "%s %s %s, so that clients do not reach the Service: exclude it in IPAddressPool %s, and let the Service have another one by the annotation %s=%s", a, is, used.Use, pool.Name, names.AnnotationAddressesToExchange, a),
						repairTarget{kind: "IPAddressPool", key: client.ObjectKeyFromObject(&pool), field: "spec.gantry.exclude"}}
				}
			}
		}
	}
	return cause{}
}
