package view

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func webService(change func(*corev1.Service)) *corev1.Service {
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeLoadBalancer, ClusterIP: "10.96.0.9", ExternalTrafficPolicy: corev1.ServiceExternalTrafficPolicyCluster,
			Ports: []corev1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80}},
		},
	}
	change(s)
	return s
}

func TestTrafficOfService(t *testing.T) {
	ports := []TrafficPort{{Name: "http", Port: Port{Protocol: "TCP", Number: 80}}}
	proxied := corev1.LoadBalancerIPModeProxy
	for name, tc := range map[string]struct {
		change func(*corev1.Service)
		want   *ServiceTraffic
	}{
		"an ordinary Service": {func(*corev1.Service) {}, &ServiceTraffic{Ports: ports}},
		"with session affinity": {func(s *corev1.Service) { s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP },
			&ServiceTraffic{Ports: ports, HasClientAffinity: true}},
		"with source ranges": {func(s *corev1.Service) {
			s.Spec.LoadBalancerSourceRanges = []string{"192.0.2.9/24", "2001:db8::/32", "192.0.2.0/24"}
		}, &ServiceTraffic{Ports: ports, SourceRanges: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/32")}}},
		"with source ranges that only Kubernetes parses": {func(s *corev1.Service) {
			s.Spec.LoadBalancerSourceRanges = []string{" 192.0.2.0/24", "2001:db8::1/32 ", "010.001.0.0/16", "203.0.113.0/024"}
		}, &ServiceTraffic{Ports: ports, SourceRanges: []netip.Prefix{
			netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("2001:db8::/32"),
		}}},
		"with a source range that is wrong":   {func(s *corev1.Service) { s.Spec.LoadBalancerSourceRanges = []string{"192.0.2.0/24", "all"} }, nil},
		"with an address as a source range":   {func(s *corev1.Service) { s.Spec.LoadBalancerSourceRanges = []string{"192.0.2.9"} }, nil},
		"with a source range of IPv4 in IPv6": {func(s *corev1.Service) { s.Spec.LoadBalancerSourceRanges = []string{"::ffff:192.0.2.0/120"} }, nil},
		"with the traffic policy Local":       {func(s *corev1.Service) { s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal }, nil},
		"of another type":                     {func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeClusterIP }, nil},
		"headless":                            {func(s *corev1.Service) { s.Spec.ClusterIP = corev1.ClusterIPNone }, nil},
		"of another service proxy":            {func(s *corev1.Service) { s.Labels = map[string]string{labelServiceProxyName: "mine"} }, nil},
		"behind a proxy": {func(s *corev1.Service) {
			s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "192.0.2.1", IPMode: &proxied}}
		}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			got := TrafficOfService(webService(tc.change))
			if diff := cmp.Diff(tc.want, got, cmp.Comparer(func(x, y netip.Prefix) bool { return x == y })); diff != "" {
				t.Error("the traffic differs (-want +got):\n", diff)
			}
		})
	}
}

func TestEndpointsOfSlice(t *testing.T) {
	yes, no, node, name, number, udp := true, false, "node1", "http", int32(8080), corev1.ProtocolUDP
	got := EndpointsOfSlice(&discoveryv1.EndpointSlice{
		Ports: []discoveryv1.EndpointPort{{Name: &name, Port: &number}, {Port: &number, Protocol: &udp}, {Name: &name}},
		Endpoints: []discoveryv1.Endpoint{
			{Addresses: []string{"10.244.1.2"}, NodeName: &node},
			{Addresses: []string{"10.244.1.3"}, NodeName: &node, Conditions: discoveryv1.EndpointConditions{Ready: &no, Serving: &yes, Terminating: &yes}},
			{Addresses: []string{"10.244.1.4"}, Conditions: discoveryv1.EndpointConditions{Ready: &no}},
			{Addresses: []string{"example.com"}},
			{},
		},
	})
	want := &SliceEndpoints{
		Ports: []TrafficPort{{Name: "http", Port: Port{Protocol: "TCP", Number: 8080}}, {Port: Port{Protocol: "UDP", Number: 8080}}},
		Endpoints: []SliceEndpoint{
			{Address: netip.MustParseAddr("10.244.1.2"), Node: "node1", IsReady: true},
			{Address: netip.MustParseAddr("10.244.1.3"), Node: "node1"},
		},
	}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(x, y netip.Addr) bool { return x == y })); diff != "" {
		t.Error("the endpoints differ (-want +got):\n", diff)
	}
}
