package reconcile

import (
	"reflect"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/view"
)

// TestNothingThatCountsIsLeftOut compares what a speaker learns of whole objects and of what its cache keeps of them.
func TestNothingThatCountsIsLeftOut(t *testing.T) {
	policy, class, node, yes, no := corev1.IPFamilyPolicyPreferDualStack, "c", "node1", true, false
	whole := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "default", Name: "web", UID: "u", ResourceVersion: "7", Generation: 3, CreationTimestamp: metav1.Unix(5, 0),
			Labels: map[string]string{"app": "web"},
			Annotations: map[string]string{
				names.AnnotationSharing: "k", names.AnnotationPool: "p", names.AnnotationFromPool: "p", names.AnnotationLoadBalancerIPs: "192.0.2.1,2001:db8::1",
				corev1.LastAppliedConfigAnnotation: "{}",
			},
		},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeLoadBalancer, LoadBalancerClass: &class, IPFamilyPolicy: &policy,
			ClusterIP: "10.96.0.1", ClusterIPs: []string{"10.96.0.1", "fd00::1"}, IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol},
			ExternalTrafficPolicy: corev1.ServiceExternalTrafficPolicyLocal, Selector: map[string]string{"app": "web"},
			Ports: []corev1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80, NodePort: 30080}},
		},
		Status: corev1.ServiceStatus{LoadBalancer: corev1.LoadBalancerStatus{Ingress: []corev1.LoadBalancerIngress{{IP: "192.0.2.1"}, {IP: "2001:db8::1"}}}},
	}
	want := view.FromService(whole)
	got, err := CompactService(whole.DeepCopy())
	if err != nil {
		t.Fatal(err)
	}
	if v := view.FromService(got.(*corev1.Service)); !reflect.DeepEqual(v, want) {
		t.Errorf("of the Service %+v is left, want %+v", v, want)
	}
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: "web-1", Labels: map[string]string{discoveryv1.LabelServiceName: "web", "other": "x"}},
		AddressType: discoveryv1.AddressTypeIPv6,
		Endpoints: []discoveryv1.Endpoint{
			{Addresses: []string{"fd00::2", "fd00::3"}, NodeName: &node, Conditions: discoveryv1.EndpointConditions{Ready: &no, Serving: &yes, Terminating: &yes}},
			{Addresses: []string{"fd00::4"}, NodeName: &node},
			{NodeName: &node},
			{Addresses: []string{"fd00::5"}, Conditions: discoveryv1.EndpointConditions{Ready: &no}},
		},
	}
	key := view.Key{Namespace: "default", Name: "web"}
	left, err := CompactSlice(slice.DeepCopy())
	if err != nil {
		t.Fatal(err)
	}
	c := left.(*discoveryv1.EndpointSlice)
	if c.Labels[discoveryv1.LabelServiceName] != "web" {
		t.Errorf("the slice belongs to %q", c.Labels[discoveryv1.LabelServiceName])
	}
	a, b := view.FromSlices(key, []discoveryv1.EndpointSlice{*slice}), view.FromSlices(key, []discoveryv1.EndpointSlice{*c})
	if !reflect.DeepEqual(a, b) {
		t.Errorf("of the slice %+v is left, want %+v", b, a)
	}
}
