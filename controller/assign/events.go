package assign

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/controller/allocate"
	"github.com/gantry-lb/gantry/controller/events"
	"github.com/gantry-lb/gantry/internal/view"
)

// reportDecision reports a written Decision by events and a log line. It is called only when the
// status changed, so that nothing is repeated on every pass.
func (r *ServiceWorker) reportDecision(w *serviceStatusWriteTask) {
	d := w.decision
	if lost := describeLostAddresses(w.serviceBefore, w.serviceAfter); lost != "" {
		r.deferredEventQueue.addEvent(r.Now(), w.serviceBefore, corev1.EventTypeNormal, names.EventClearAssignment, events.TruncateNote("given up: "+lost))
	}
	if d.Reason == names.ReasonProbing { // the result of the probe is reported
		r.Log.Info(d.Text, "service", w.service.Key.String(), "reason", d.Reason)
		return
	}
	kind, reason := eventTypeAndReasonForDecision(&w.service, d)
	r.deferredEventQueue.addEvent(r.Now(), w.serviceBefore, kind, reason, events.TruncateNote(string(d.Reason)+": "+d.Text))
	// it prefers to have the other family too
	if d.Reason == names.ReasonAssigned && d.DecideAgainWhenAddressesFree {
		r.deferredEventQueue.addEvent(r.Now(), w.serviceBefore, corev1.EventTypeNormal, names.EventAdditionalAssignFailed,
			"no pool that is open to the Service has a free address of the other family: the Service gets one once there is")
	}
	for _, text := range view.ExplainUnknownAnnotations(w.serviceBefore) {
		r.RecordEvent(w.serviceBefore, corev1.EventTypeWarning, names.EventUnknownAnnotation, text)
	}
	for _, m := range describeDeprecatedAnnotations(w.serviceBefore) {
		r.deferredEventQueue.addEvent(r.Now(), w.serviceBefore, corev1.EventTypeWarning, names.EventDeprecatedAnnotation, m)
	}
	if kind == corev1.EventTypeWarning { // an operator searches for what was refused
		r.Log.Warn(d.Text, "service", w.service.Key.String(), "reason", d.Reason)
		return
	}
	r.Log.Info(d.Text, "service", w.service.Key.String(), "reason", d.Reason)
}

// eventTypeAndReasonForDecision returns the type of the event for a Decision, and its reason as
// defined by the metallb.io API.
func eventTypeAndReasonForDecision(v *view.Service, d allocate.Decision) (kind, reason string) {
	switch {
	case d.Reason == names.ReasonNoClusterIP:
		return corev1.EventTypeWarning, names.EventNoClusterIPs
	case d.Reason == names.ReasonFamilyMismatch && v.FamilyPolicy == view.RequireDualStack && len(v.ClusterIPFamilies()) < 2:
		return corev1.EventTypeWarning, names.EventNotEnoughClusterIPs
	case d.Reason == names.ReasonAssigned:
		return corev1.EventTypeNormal, names.EventAllocated
	// the other address is under way
	case d.Reason == names.ReasonAddressRetired && len(d.Addresses) > 0:
		return corev1.EventTypeNormal, names.EventAddressRetired
	case d.Reason == names.ReasonInvalidRequest:
		return corev1.EventTypeWarning, names.EventLoadBalancerFailed
	}
	return corev1.EventTypeWarning, names.EventAllocationFailed
}

// describeLostAddresses lists the addresses that a Service had before and no longer has; empty when
// there are none.
func describeLostAddresses(before, after *corev1.Service) string {
	var lost []string
	for _, in := range before.Status.LoadBalancer.Ingress {
		still := func(x corev1.LoadBalancerIngress) bool { return x.IP == in.IP }
		if in.IP != "" && !slices.ContainsFunc(after.Status.LoadBalancer.Ingress, still) {
			lost = append(lost, in.IP)
		}
	}
	return strings.Join(lost, ", ")
}

// describeDeprecatedAnnotations returns a sentence for each annotation in its older spelling.
func describeDeprecatedAnnotations(s *corev1.Service) []string {
	var said []string
	for _, pair := range [][2]string{
		{names.AnnotationRequestedPoolOld, names.AnnotationRequestedPool},
		{names.AnnotationLoadBalancerIPsOld, names.AnnotationLoadBalancerIPs},
		{names.AnnotationSharingKeyOld, names.AnnotationSharingKey},
	} {
		if _, ok := s.Annotations[pair[0]]; ok {
			said = append(said, fmt.Sprintf("the annotation %s is an older spelling: write %s", pair[0], pair[1]))
		}
	}
	return said
}
