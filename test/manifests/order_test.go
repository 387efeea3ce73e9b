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

// awaitAddressBrieflyToKeepOrder waits for a short time until a Service has its expected address,
// before the next object is written. If two Services want the same address, the first one in the
// file gets it, even if the controller sees their pool between the two. If the Service needs the
// next object for its address, awaitExpectation waits for it later.
func (b *manifestOutcomeChecker) awaitAddressBrieflyToKeepOrder(t *testing.T, e expectation) {
	t.Helper()
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); {
		if met, _ := b.isExpectationMet(t.Context(), e); met {
			return
		}
		select {
		case <-t.Context().Done():
			return
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// awaitControllerSeesNoPools waits until the controller has seen that no pool is left, so that no
// Service of the next file gets an address of this one. The caches of the controller lag behind the
// API server, so it creates Services until one of them gets the reason NoPools.
func (b *manifestOutcomeChecker) awaitControllerSeesNoPools(ctx context.Context, t *testing.T) {
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
			t.Fatal("the controller has not noticed that the pools are deleted")
		case c.Reason == string(names.ReasonNoPools):
			return
		}
	}
}
