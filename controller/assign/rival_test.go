package assign

import (
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/controller/assign/apitest"
)

// newStatusManagedFieldsEntry is what the API server records of a program that writes the status.
func newStatusManagedFieldsEntry(manager string) metav1.ManagedFieldsEntry {
	now := metav1.NewTime(time.Now())
	return metav1.ManagedFieldsEntry{Manager: manager, Operation: metav1.ManagedFieldsOperationUpdate, Subresource: "status", Time: &now, FieldsV1: metav1.NewFieldsV1(`{"f:status":{"f:loadBalancer":{"f:ingress":{}}}}`)}
}

// newServiceOfOtherProduct returns a Service with the addresses that another product gave it.
func newServiceOfOtherProduct(name, manager string, addresses ...string) *corev1.Service {
	o := newLoadBalancer(name)
	o.ManagedFields = []metav1.ManagedFieldsEntry{newStatusManagedFieldsEntry(manager)}
	for _, a := range addresses {
		o.Status.LoadBalancer.Ingress = append(o.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: a})
	}
	return o
}

func statusAddresses(o *corev1.Service) (out []string) {
	for _, in := range o.Status.LoadBalancer.Ingress {
		out = append(out, in.IP)
	}
	return out
}

// TestServicesOfOtherProductsKeepTheirAddresses: kube-vip, Cilium's LB-IPAM and ServiceLB leave
// Services with addresses. If a pool has these, the Services keep them, and new ones get others.
func TestServicesOfOtherProductsKeepTheirAddresses(t *testing.T) {
	runWithFakeTime(t, func(t *testing.T) {
		s := apitest.NewServer(nil)
		s.SetPool("p", v1beta1.IPAddressPoolSpec{Addresses: []string{"192.0.2.0/28"}})
		kubeVIP := newServiceOfOtherProduct("kube-vip", "kube-vip", "192.0.2.0")
		kubeVIP.Annotations = map[string]string{"kube-vip.io/loadbalancerIPs": "192.0.2.0", "kube-vip.io/vipHost": "node1"}
		kubeVIP.Labels = map[string]string{"implementation": "kube-vip"}
		kubeVIP.Spec.LoadBalancerIP = "192.0.2.0"
		cilium := newServiceOfOtherProduct("cilium", "cilium-operator-generic", "192.0.2.1")
		cilium.Status.Conditions = []metav1.Condition{{Type: "cilium.io/IPAMRequestSatisfied", Status: metav1.ConditionTrue, Reason: "satisfied"}}
		// ServiceLB gives the addresses of all nodes.
		serviceLB := newServiceOfOtherProduct("servicelb", "k3s", "192.0.2.2", "192.0.2.3", "192.0.2.4")
		serviceLB.Annotations = map[string]string{names.AnnotationAddressesPerFamily: "3"}
		serviceLB.Finalizers = []string{"service.kubernetes.io/load-balancer-cleanup"}
		// A pool gives one address of each family, and takes none that a Service asks to keep.
		want := map[string][]string{"kube-vip": {"192.0.2.0"}, "cilium": {"192.0.2.1"}, "servicelb": {"192.0.2.2", "192.0.2.3", "192.0.2.4"}, "new": {"192.0.2.5"}}
		for _, o := range []*corev1.Service{newLoadBalancer("new"), kubeVIP, cilium, serviceLB} {
			s.CreateService(o)
		}
		c := startController(t, s, nil, ServiceWorkerOptions{})
		defer c.stopAndWait()
		time.Sleep(3 * time.Second)
		for name, addresses := range want {
			o := s.ServiceByKey(serviceKey(name))
			if got := statusAddresses(o); !slices.Equal(got, addresses) || addressAssignedConditionReason(o) != names.ReasonAssigned {
				t.Errorf("Service %s has %q, want %q: %v", name, got, addresses, o.Status.Conditions)
			}
		}
	})
}

// TestRivalIsNamedInEventAndCondition: another program that changes the addresses of a Service is
// named for as long as it may still run.
func TestRivalIsNamedInEventAndCondition(t *testing.T) {
	runWithFakeTime(t, func(t *testing.T) {
		s := apitest.NewServer(nil)
		s.SetPool("p", poolSpec("192.0.2.0/28"))
		recorder := &eventRecorder{}
		c := startController(t, s, nil, ServiceWorkerOptions{RecordEvent: recorder.recordEvent})
		defer c.stopAndWait()
		s.CreateService(newLoadBalancer("a"))
		time.Sleep(time.Second)
		wantAddressAndReason(t, s, "a", "192.0.2.0", names.ReasonAssigned)
		s.EditService(serviceKey("a"), func(o *corev1.Service) {
			o.Status.LoadBalancer.Ingress[0].IP = "192.0.2.9"
			o.ManagedFields = append(o.ManagedFields, newStatusManagedFieldsEntry("cilium-operator-generic"))
		})
		time.Sleep(3 * time.Second)
		const want = "another program (cilium-operator-generic, which is Cilium's LB-IPAM) writes the addresses of this Service too"
		conditionText := func() string {
			return meta.FindStatusCondition(s.ServiceByKey(serviceKey("a")).Status.Conditions, names.ConditionAddressAssigned).Message
		}
		if text := conditionText(); !strings.Contains(text, want) {
			t.Errorf("the condition says %q, want %q", text, want)
		}
		warning := "Warning " + names.EventOtherController + " OtherController: " + want
		if all := recorder.eventsOf("a"); !slices.ContainsFunc(all, func(e string) bool { return strings.HasPrefix(e, warning) }) {
			t.Errorf("the events are %q, want %q", all, warning)
		}
		time.Sleep(rivalReportInterval + time.Minute)
		if text := conditionText(); strings.Contains(text, "another program") {
			t.Errorf("after a long silence, the condition still says %q", text)
		}
	})
}

// TestPersonIsNoRival: who edits the status with kubectl is no program that writes again.
func TestPersonIsNoRival(t *testing.T) {
	runWithFakeTime(t, func(t *testing.T) {
		s := apitest.NewServer(nil)
		s.SetPool("p", poolSpec("192.0.2.0/28"))
		recorder := &eventRecorder{}
		c := startController(t, s, nil, ServiceWorkerOptions{RecordEvent: recorder.recordEvent})
		defer c.stopAndWait()
		s.CreateService(newLoadBalancer("a"))
		time.Sleep(time.Second)
		s.EditService(serviceKey("a"), func(o *corev1.Service) {
			o.Status.LoadBalancer.Ingress[0].IP = "192.0.2.9"
			o.ManagedFields = append(o.ManagedFields, newStatusManagedFieldsEntry("kubectl-edit"))
		})
		time.Sleep(3 * time.Second)
		if all := strings.Join(recorder.eventsOf("a"), "\n"); strings.Contains(all, "another program") {
			t.Errorf("the events are %q", all)
		}
	})
}
