package announcedcondition

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1beta1"
)

// TestServiceUnannouncedFromTheStartGetsWarning checks a condition that was written together with
// the address.
func TestServiceUnannouncedFromTheStartGetsWarning(t *testing.T) {
	h := newConditionWriterHarness(t)
	if err := h.api.DeleteAllOf(t.Context(), &discoveryv1.EndpointSlice{}, client.InNamespace("default")); err != nil {
		t.Fatal(err)
	}
	var s corev1.Service
	if err := h.api.Get(t.Context(), client.ObjectKey{Namespace: "default", Name: "web"}, &s); err != nil {
		t.Fatal(err)
	}
	c, certain := h.writer.PredictUnannouncedCondition(t.Context(), &s, []netip.Addr{netip.MustParseAddr("192.0.2.1")})
	if !certain {
		t.Fatal("the forecast is not certain")
	}
	c.LastTransitionTime = metav1.NewTime(h.now)
	s.Status.Conditions = []metav1.Condition{c}
	if err := h.api.Status().Update(t.Context(), &s); err != nil {
		t.Fatal(err)
	}
	h.serviceWrites = 0
	h.reconcileAndAdvanceTimeFor("web", 5*time.Second)
	if n := h.countEvents("Normal announceFailed NoEndpoints: "); n != 1 || h.serviceWrites > 0 {
		t.Errorf("%d events and %d writes, want 1 and none: %q", n, h.serviceWrites, h.sentEvents)
	}
	h.reconcileAndAdvanceTimeFor("web", time.Minute) // its Pods do not come
	if n := h.countEvents("Warning announceFailed NoEndpoints: "); n != 1 || h.serviceWrites > 0 {
		t.Errorf("%d Warnings and %d writes, want 1 and none: %q", n, h.serviceWrites, h.sentEvents)
	}
}

// TestPredictionAwaitsUnreadAdvertisement creates a Service together with the advertisement of its
// pool, as a manifest with both does. The prediction already says what the condition says later.
func TestPredictionAwaitsUnreadAdvertisement(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newConditionWriterHarness(t)
		advertisement := &v1beta1.BGPAdvertisement{ObjectMeta: metav1.ObjectMeta{Namespace: names.DefaultNamespace, Name: "first"}}
		if err := h.api.Delete(t.Context(), advertisement); err != nil {
			t.Fatal(err)
		}
		if _, err := h.configurationReader.ReadNow(t.Context()); err != nil {
			t.Fatal(err)
		}
		advertisement.ResourceVersion = ""
		h.createObject(advertisement)
		h.configurationReader.NotifyAnnouncementObjectChanged()
		s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "together"}, Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer}}
		s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "192.0.2.77"}}
		c, certain := h.writer.PredictUnannouncedCondition(t.Context(), s, []netip.Addr{netip.MustParseAddr("192.0.2.77")})
		if !certain {
			t.Fatal("the prediction is not certain")
		}
		c.LastTransitionTime = metav1.NewTime(h.now)
		s.Status.Conditions = []metav1.Condition{c}
		h.createObject(s)
		h.serviceWrites = 0
		c = h.reconcileAndAdvanceTimeFor("together", 10*time.Second)
		h.expectCondition("a Service without Pods", c, metav1.ConditionFalse, names.ReasonNoEndpoints, "no endpoint of the Service can serve")
		if h.serviceWrites > 0 {
			t.Errorf("the prediction was corrected by %d writes", h.serviceWrites)
		}
	})
}
