package manifests

import (
	"context"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
)

// awaitBeforeNext waits a moment for what a Service is to get before the next object comes: of two that want the same, the one that stands
// first in the file is to be the first, also where the controller learns of its pool between the two. Where it takes the next
// object, check waits for it later.
func (b *harness) awaitBeforeNext(t *testing.T, e expectation) {
	t.Helper()
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); {
		if met, _ := b.isMet(t.Context(), e); met {
			return
		}
		select {
		case <-t.Context().Done():
			return
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// awaitNoPools waits until the controller knows that no pool is left: a Service of the next file must not find a pool of this one.
// What the API server has taken, the controller's caches learn a moment later; a Service without wishes tells what it knows.
func (b *harness) awaitNoPools(ctx context.Context, t *testing.T) {
	t.Helper()
	for {
		s := &corev1.Service{}
		s.Namespace, s.GenerateName = "default", "settle-"
		s.Spec.Type, s.Spec.Ports = corev1.ServiceTypeLoadBalancer, []corev1.ServicePort{{Port: 80}}
		if err := b.apiClient.Create(ctx, s); err != nil {
			t.Fatalf("waiting for the controller: %v", err)
		}
		var c *metav1.Condition
		for c == nil && ctx.Err() == nil {
			_ = b.apiClient.Get(ctx, client.ObjectKeyFromObject(s), s)
			c = meta.FindStatusCondition(s.Status.Conditions, names.ConditionAddressAssigned)
		}
		if err := b.apiClient.Delete(context.WithoutCancel(ctx), s); err != nil {
			t.Errorf("deleting %s: %v", s.Name, err)
		}
		switch {
		case ctx.Err() != nil:
			t.Fatal("the controller did not take notice of the pools' deletion")
		case c.Reason == string(names.ReasonNoPools):
			return
		}
	}
}
