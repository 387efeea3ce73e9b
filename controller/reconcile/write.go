package reconcile

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/controller/allocate"
	"github.com/gantry-lb/gantry/internal/view"
)

type netAddr = netip.Addr

// ipModeVIP says that packets arrive with the address as their destination, so that nodes may not shortcut it.
var ipModeVIP = corev1.LoadBalancerIPModeVIP

// write brings the Service's status and pool annotation in line with a Decision, in one request, and says whether
// anything had to be written. A write on the base of an older object is refused by the API server as a conflict.
func (r *Services) write(ctx context.Context, s *corev1.Service, d allocate.Decision, pool string) (bool, error) {
	after := s.DeepCopy()
	after.Status.LoadBalancer.Ingress = nil
	for _, a := range d.Addresses {
		after.Status.LoadBalancer.Ingress = append(after.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: a.String(), IPMode: &ipModeVIP})
	}
	keepPorts(s, after)
	if len(d.Addresses) > 0 {
		metav1.SetMetaDataAnnotation(&after.ObjectMeta, names.AnnotationFromPool, pool)
	} else {
		delete(after.Annotations, names.AnnotationFromPool)
	}
	c := metav1.Condition{
		Type: names.ConditionAddressAssigned, Status: metav1.ConditionTrue, ObservedGeneration: s.Generation,
		Reason: string(d.Reason), Message: d.Text,
	}
	if len(d.Addresses) == 0 {
		c.Status = metav1.ConditionFalse
	}
	meta.SetStatusCondition(&after.Status.Conditions, c)
	return r.patch(ctx, s, after)
}

// keepPorts leaves the status as it is where it says the same already: another writer may have added to an entry.
func keepPorts(before, after *corev1.Service) {
	old := before.Status.LoadBalancer.Ingress
	same := func(x, y corev1.LoadBalancerIngress) bool {
		return x.IP == y.IP && x.IPMode != nil && *x.IPMode == *y.IPMode
	}
	if slices.EqualFunc(old, after.Status.LoadBalancer.Ingress, same) {
		after.Status.LoadBalancer.Ingress = old
	}
}

// marked says whether the Service carries anything that we wrote.
func marked(s *corev1.Service) bool {
	_, annotated := s.Annotations[names.AnnotationFromPool]
	return annotated || meta.FindStatusCondition(s.Status.Conditions, names.ConditionAddressAssigned) != nil
}

// clear takes back all that we wrote on a Service.
func (r *Services) clear(ctx context.Context, s *corev1.Service) error {
	after := s.DeepCopy()
	held, _ := r.ledger.Held(view.Key{Namespace: s.Namespace, Name: s.Name})
	after.Status.LoadBalancer.Ingress = slices.DeleteFunc(after.Status.LoadBalancer.Ingress, func(in corev1.LoadBalancerIngress) bool {
		a, err := netip.ParseAddr(in.IP)
		return err == nil && (slices.Contains(held.Addresses, a) || s.Spec.Type != corev1.ServiceTypeLoadBalancer)
	})
	delete(after.Annotations, names.AnnotationFromPool)
	meta.RemoveStatusCondition(&after.Status.Conditions, names.ConditionAddressAssigned)
	meta.RemoveStatusCondition(&after.Status.Conditions, names.ConditionAnnounced)
	_, err := r.patch(ctx, s, after)
	return err
}

// patch writes the difference through the status subresource, which carries annotations too.
func (r *Services) patch(ctx context.Context, before, after *corev1.Service) (bool, error) {
	if equality.Semantic.DeepEqual(before.Status, after.Status) && equality.Semantic.DeepEqual(before.Annotations, after.Annotations) {
		return false, nil
	}
	base := client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{})
	if err := r.Client.Status().Patch(ctx, after, base); client.IgnoreNotFound(err) != nil {
		return false, fmt.Errorf("writing the status of Service %s/%s: %w", before.Namespace, before.Name, err)
	}
	return true, nil
}

// tell records the outcome as an event and a line in the log. It is called when the written status changed, so that
// nothing is repeated on every pass.
func (r *Services) tell(s *corev1.Service, v *view.Service, d allocate.Decision) {
	kind, reason := corev1.EventTypeNormal, names.EventAllocated
	switch {
	case d.Reason == names.ReasonInvalidRequest:
		kind, reason = corev1.EventTypeWarning, names.EventLoadBalancerFailed
	case d.Reason != names.ReasonAssigned:
		kind, reason = corev1.EventTypeWarning, names.EventAllocationFailed
	}
	r.Events.Eventf(s, nil, kind, reason, "Allocate", "%s: %s", d.Reason, d.Text)
	r.Log.Info(d.Text, "service", v.Key.String(), "reason", d.Reason)
}
