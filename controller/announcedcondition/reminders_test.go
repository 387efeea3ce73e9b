package announcedcondition

import (
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
)

// TestWarningOfRefusedRequestIsRepeated checks a Service that keeps its address because it does not
// get the one that it asks for.
func TestWarningOfRefusedRequestIsRepeated(t *testing.T) {
	h := newConditionWriterHarness(t)
	h.setSessionWithTor("node1", names.Explanation{})
	h.reportRoutesOfServiceWeb("node1")
	var s corev1.Service
	setReason := func(reason names.Reason) {
		t.Helper()
		if err := h.api.Get(t.Context(), client.ObjectKey{Namespace: "default", Name: "web"}, &s); err != nil {
			t.Fatal(err)
		}
		s.Status.Conditions = []metav1.Condition{{Type: names.ConditionAddressAssigned, Status: metav1.ConditionTrue, Reason: string(reason), Message: "it has another owner", LastTransitionTime: metav1.NewTime(h.now.Add(-time.Hour))}}
		if err := h.api.Status().Update(t.Context(), &s); err != nil {
			t.Fatal(err)
		}
	}
	const warning = "Warning AllocationFailed AddressInUse: it has another owner"
	setReason(names.ReasonAddressInUse)
	if h.reconcileAndAdvanceTimeFor("web", 10*time.Minute); h.countEvents(warning) != 0 {
		t.Errorf("the first Warning is that of the worker, and there is %q", h.sentEvents)
	}
	if h.reconcileAndAdvanceTimeFor("web", time.Hour); h.countEvents(warning) != 2 {
		t.Errorf("there are %d Warnings after 70 minutes, want 2 besides the first: %q", h.countEvents(warning), h.sentEvents)
	}
	if n := testutil.CollectAndCount(h.writer, "gantry_services_without_address"); n != 0 {
		t.Error("the Service counts as one without an address")
	}
	setReason(names.ReasonAssigned)
	if h.reconcileAndAdvanceTimeFor("web", time.Hour); h.countEvents(warning) != 2 {
		t.Errorf("the Warning is repeated after the end of the fault: %q", h.sentEvents)
	}
}
