package assign

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/controller/allocate"
)

// ingressIPModeVIP says that packets arrive with the address as their destination, so that nodes
// must not shortcut them.
var ingressIPModeVIP = corev1.LoadBalancerIPModeVIP

// withDecidedStatus returns the Service with the status and the annotations for a Decision.
func withDecidedStatus(s *corev1.Service, d allocate.Decision, pool string) *corev1.Service {
	after := s.DeepCopy()
	after.Status.LoadBalancer.Ingress = nil
	for _, a := range d.Addresses {
		after.Status.LoadBalancer.Ingress = append(after.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: a.String(), IPMode: &ingressIPModeVIP})
	}
	keepUnchangedIngress(s, after)
	setPoolAnnotationsAndCondition(after, d, pool)
	c := metav1.Condition{
		Type: names.ConditionAddressAssigned, Status: metav1.ConditionTrue, ObservedGeneration: s.Generation,
		Reason: string(d.Reason), Message: d.Text,
	}
	if len(d.Addresses) == 0 {
		c.Status = metav1.ConditionFalse
		// There is no address to announce.
		meta.RemoveStatusCondition(&after.Status.Conditions, names.ConditionAnnounced)
	}
	meta.SetStatusCondition(&after.Status.Conditions, c)
	return after
}

// setPoolAnnotationsAndCondition writes the pools of the addresses: into annotations, which other
// programs read, and into a condition, which the owner of the Service cannot edit.
func setPoolAnnotationsAndCondition(after *corev1.Service, d allocate.Decision, pool string) {
	all := strings.Join(d.PoolsOfAllAddressesIfSeveral, ",")
	delete(after.Annotations, names.AnnotationAllocatedFromPool)
	delete(after.Annotations, names.AnnotationAllocatedFromSeveralPools)
	if len(d.PoolsOfAllAddressesIfSeveral) > 1 {
		metav1.SetMetaDataAnnotation(&after.ObjectMeta, names.AnnotationAllocatedFromSeveralPools, all)
	} else {
		all = pool
	}
	if len(d.Addresses) == 0 || pool == "" { // a pool of that name may be unknown
		meta.RemoveStatusCondition(&after.Status.Conditions, names.ConditionAllocatedFromPool)
		return
	}
	metav1.SetMetaDataAnnotation(&after.ObjectMeta, names.AnnotationAllocatedFromPool, pool)
	meta.SetStatusCondition(&after.Status.Conditions, metav1.Condition{
		Type: names.ConditionAllocatedFromPool, Status: metav1.ConditionTrue, Reason: string(names.ReasonAssigned), Message: all,
	})
}

// changeStatusToBumpResourceVersion changes the status so that the API server gives the Service
// another resourceVersion, without new content: a write on the previous version cannot succeed any
// more.
func changeStatusToBumpResourceVersion(after *corev1.Service, now time.Time) {
	c := meta.FindStatusCondition(after.Status.Conditions, names.ConditionAddressAssigned)
	changedAt := metav1.NewTime(now).Rfc3339Copy()
	if !changedAt.After(c.LastTransitionTime.Time) { // the API has no fractions of a second
		changedAt = metav1.NewTime(c.LastTransitionTime.Add(time.Second))
	}
	c.LastTransitionTime = changedAt
}

// withBumpedCondition returns the Service with its condition at another time, so that the API
// server gives the Service another resourceVersion. A Service without the condition gets one until
// it is decided.
func withBumpedCondition(s *corev1.Service, reason names.Reason, now time.Time) *corev1.Service {
	after := s.DeepCopy()
	if meta.FindStatusCondition(after.Status.Conditions, names.ConditionAddressAssigned) == nil {
		meta.SetStatusCondition(&after.Status.Conditions, metav1.Condition{
			Type: names.ConditionAddressAssigned, Status: metav1.ConditionUnknown, ObservedGeneration: s.Generation,
			Reason: string(reason), Message: "the controller waits for the outcome of an earlier write", LastTransitionTime: metav1.NewTime(now),
		})
		return after
	}
	changeStatusToBumpResourceVersion(after, now)
	return after
}

// keepUnchangedIngress keeps the ingress entries if they are equal, because another writer may have
// added fields.
func keepUnchangedIngress(before, after *corev1.Service) {
	old := before.Status.LoadBalancer.Ingress
	same := func(x, y corev1.LoadBalancerIngress) bool {
		return x.IP == y.IP && x.IPMode != nil && *x.IPMode == *y.IPMode
	}
	if slices.EqualFunc(old, after.Status.LoadBalancer.Ingress, same) {
		after.Status.LoadBalancer.Ingress = old
	}
}

// hasOurStatusOrAnnotations says whether the Service has anything that we wrote.
func hasOurStatusOrAnnotations(s *corev1.Service) bool {
	_, annotated := s.Annotations[names.AnnotationAllocatedFromPool]
	return annotated || meta.FindStatusCondition(s.Status.Conditions, names.ConditionAddressAssigned) != nil
}

// withoutOurStatus returns the Service without what we wrote: the addresses that it held from us,
// or all addresses when it is no LoadBalancer any more.
func withoutOurStatus(s *corev1.Service, held []netip.Addr) *corev1.Service {
	after := s.DeepCopy()
	after.Status.LoadBalancer.Ingress = slices.DeleteFunc(after.Status.LoadBalancer.Ingress, func(in corev1.LoadBalancerIngress) bool {
		a, err := netip.ParseAddr(in.IP)
		return err == nil && (slices.Contains(held, a) || s.Spec.Type != corev1.ServiceTypeLoadBalancer)
	})
	delete(after.Annotations, names.AnnotationAllocatedFromPool)
	delete(after.Annotations, names.AnnotationAllocatedFromSeveralPools)
	meta.RemoveStatusCondition(&after.Status.Conditions, names.ConditionAddressAssigned)
	meta.RemoveStatusCondition(&after.Status.Conditions, names.ConditionAllocatedFromPool)
	meta.RemoveStatusCondition(&after.Status.Conditions, names.ConditionAnnounced)
	return after
}

// areStatusAndAnnotationsEqual says whether there is nothing to write.
func areStatusAndAnnotationsEqual(before, after *corev1.Service) bool {
	return equality.Semantic.DeepEqual(before.Status, after.Status) && equality.Semantic.DeepEqual(before.Annotations, after.Annotations)
}
