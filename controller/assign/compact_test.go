package assign

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/controller/assign/apitest"
	"github.com/gantry-lb/gantry/internal/view"
)

// TestCompactedServiceHasSameView compares the view of a Service before and after
// CompactService.
func TestCompactedServiceHasSameView(t *testing.T) {
	prefer, class := corev1.IPFamilyPolicyPreferDualStack, "example.com/class"
	tests := map[string]func(*corev1.Service){
		"plain": func(*corev1.Service) {},
		"that asks in older words": func(o *corev1.Service) {
			o.Annotations = map[string]string{names.AnnotationRequestedPoolOld: "p", names.AnnotationLoadBalancerIPsOld: "192.0.2.1", "example.com/other": "x"}
		},
		"that asks in newer words": func(o *corev1.Service) {
			o.Annotations = map[string]string{names.AnnotationAddressesPerFamily: "2", names.AnnotationAddressesToExchange: "192.0.2.1", names.AnnotationAllocatedFromPool: "p"}
		},
		"that shares": func(o *corev1.Service) {
			o.Annotations = map[string]string{names.AnnotationSharingKey: "key"}
			o.Spec.Selector = map[string]string{"a": "b"}
			o.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
		},
		"that shares in older words": func(o *corev1.Service) {
			o.Annotations = map[string]string{names.AnnotationSharingKeyOld: "key"}
			o.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyCluster
		},
		"of both families and a class, with labels and an address on wish": func(o *corev1.Service) {
			o.Spec.IPFamilyPolicy, o.Spec.LoadBalancerClass = &prefer, &class
			o.Spec.ClusterIPs, o.Spec.IPFamilies = []string{"fd00::1", "10.96.0.1"}, []corev1.IPFamily{corev1.IPv6Protocol, corev1.IPv4Protocol}
			o.Labels = map[string]string{"tier": "front"}
			o.Spec.LoadBalancerIP = "192.0.2.1"
		},
		"with a cluster IP only in the older field": func(o *corev1.Service) { o.Spec.ClusterIPs, o.Spec.ClusterIP = nil, "10.96.0.1" },
		"with an address and conditions of others": func(o *corev1.Service) {
			o.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "192.0.2.1"}, {Hostname: "a.example"}}
			o.Status.Conditions = []metav1.Condition{{Type: "example.com/Other", Status: metav1.ConditionTrue, Reason: "R", Message: "m"}}
		},
		"in deletion": func(o *corev1.Service) { o.DeletionTimestamp = &metav1.Time{Time: time.Unix(1, 0)} },
	}
	for name, edit := range tests {
		t.Run("a Service "+name, func(t *testing.T) {
			o := newLoadBalancer("a")
			o.UID, o.ResourceVersion, o.Generation = "uid", "7", 3
			edit(o)
			whole := o.DeepCopy()
			if _, err := CompactService(o); err != nil {
				t.Fatal(err)
			}
			want, got := view.FromService(whole), view.FromService(o)
			if !want.HasSharingAnnotation { // then they have no effect
				want.Ports, want.PodSelector = nil, ""
			}
			if d := cmp.Diff(want, got, cmp.Comparer(func(a, b fmt.Stringer) bool { return a.String() == b.String() })); d != "" {
				t.Errorf("what is seen has changed (-whole +kept):\n%s", d)
			}
			if d := cmp.Diff(whole.Status, o.Status); d != "" || o.UID != whole.UID || o.ResourceVersion != whole.ResourceVersion {
				t.Errorf("what is written has changed (-whole +kept):\n%s", d)
			}
		})
	}
}

// TestStartWritesOnlyTheNewService starts a controller with 3,000 Services of 100 pools, one of
// which is new.
func TestStartWritesOnlyTheNewService(t *testing.T) {
	runWithFakeTime(t, func(t *testing.T) {
		const n = 3000
		s := apitest.NewServer(nil)
		for i := range 100 {
			s.SetPool(fmt.Sprintf("p%02d", i), poolSpec(fmt.Sprintf("10.0.%d.0/27", i)))
		}
		for i := range n {
			s.CreateService(newLoadBalancer(fmt.Sprint("s", i)))
		}
		c := startController(t, s, nil, ServiceWorkerOptions{})
		time.Sleep(time.Minute)
		c.stopAndWait()
		if w := s.CountWriteRequestsOfKind("service"); w != n {
			t.Fatalf("%d writes for %d Services", w, n)
		}
		s.CreateService(newLoadBalancer("new"))
		before := s.CountWriteRequestsOfKind("pool")
		c = startController(t, s, nil, ServiceWorkerOptions{})
		defer c.stopAndWait()
		time.Sleep(time.Minute)
		if !firstAddress(s.ServiceByKey(serviceKey("new"))).IsValid() {
			t.Error("the new Service has no address")
		}
		if w := s.CountWriteRequestsOfKind("service") - n; w != 1 || s.CountWriteRequestsOfKind("pool")-before != 1 {
			t.Errorf("the start wrote %d Services and %d pools", w, s.CountWriteRequestsOfKind("pool")-before)
		}
	})
}
