package view

import (
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	utilnet "k8s.io/utils/net"
)

// ServiceTraffic says what a service proxy does with packets to the external addresses of a
// Service.
type ServiceTraffic struct {
	Ports []TrafficPort
	// SourceRanges are the clients that may connect. A family without a range is open to all.
	SourceRanges []netip.Prefix
	// HasClientAffinity is set when each client stays at one endpoint.
	HasClientAffinity bool
}

// TrafficPort is a port of a Service. Its endpoints are at the port of this name in an
// EndpointSlice.
type TrafficPort struct {
	Name string
	Port
}

// labelServiceProxyName is on Services that kube-proxy leaves to another program.
const labelServiceProxyName = "service.kubernetes.io/service-proxy-name"

// TrafficOfService returns what kube-proxy does with packets that come from outside to the
// addresses of the Service, if it sends them to endpoints of the whole cluster. It returns nil for
// a Service that kube-proxy does not serve, for the traffic policy Local, and if a source range is
// not clear.
func TrafficOfService(s *corev1.Service) *ServiceTraffic {
	_, hasOtherProxy := s.Labels[labelServiceProxyName]
	if s.Spec.Type != corev1.ServiceTypeLoadBalancer || s.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal ||
		s.Spec.ClusterIP == "" || s.Spec.ClusterIP == corev1.ClusterIPNone || hasOtherProxy || hasProxiedIngress(s) {
		return nil
	}
	networks, ok := parseClientNetworks(s.Spec.LoadBalancerSourceRanges)
	if !ok {
		return nil
	}
	out := &ServiceTraffic{SourceRanges: networks, HasClientAffinity: s.Spec.SessionAffinity == corev1.ServiceAffinityClientIP}
	for _, p := range s.Spec.Ports {
		out.Ports = append(out.Ports, TrafficPort{Name: InternString(p.Name), Port: Port{Protocol: InternString(string(p.Protocol)), Number: uint16(p.Port)}})
	}
	return out
}

// parseClientNetworks parses the ranges of clients as Kubernetes does, which takes blanks and
// leading zeros. It returns false if one cannot be parsed: without it more clients might get in.
func parseClientNetworks(all []string) ([]netip.Prefix, bool) {
	var out []netip.Prefix
	for _, text := range all {
		_, n, err := utilnet.ParseCIDRSloppy(strings.TrimSpace(text))
		if err != nil {
			return nil, false
		}
		a, _ := netip.AddrFromSlice(n.IP)
		if a.Is4In6() { // IPv4 written as IPv6: not all programs read it alike
			return nil, false
		}
		bits, _ := n.Mask.Size()
		out = append(out, netip.PrefixFrom(a, bits))
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return slices.Compact(out), true
}

// hasProxiedIngress says whether kube-proxy leaves an address alone, because a load balancer in
// front of it sends packets to the nodes' own addresses.
func hasProxiedIngress(s *corev1.Service) bool {
	return slices.ContainsFunc(s.Status.LoadBalancer.Ingress, func(in corev1.LoadBalancerIngress) bool {
		return in.IPMode != nil && *in.IPMode == corev1.LoadBalancerIPModeProxy
	})
}

// SliceEndpoints are the endpoints of an EndpointSlice with their addresses.
type SliceEndpoints struct {
	Ports     []TrafficPort
	Endpoints []SliceEndpoint
}

// SliceEndpoint is an endpoint that can serve.
type SliceEndpoint struct {
	Address netip.Addr
	Node    string // empty if it is not known
	// IsReady is set unless the endpoint terminates and still serves.
	IsReady bool
}

// EndpointsOfSlice returns the endpoints of a slice that can serve.
func EndpointsOfSlice(s *discoveryv1.EndpointSlice) *SliceEndpoints {
	out := &SliceEndpoints{}
	for _, p := range s.Ports {
		if p.Port == nil {
			continue
		}
		port := TrafficPort{Port: Port{Protocol: string(corev1.ProtocolTCP), Number: uint16(*p.Port)}}
		if p.Name != nil {
			port.Name = InternString(*p.Name)
		}
		if p.Protocol != nil {
			port.Protocol = InternString(string(*p.Protocol))
		}
		out.Ports = append(out.Ports, port)
	}
	for i := range s.Endpoints {
		e := &s.Endpoints[i]
		if len(e.Addresses) == 0 || !canEndpointServe(e.Conditions) {
			continue
		}
		a, err := netip.ParseAddr(e.Addresses[0]) // the others mean the same (EndpointSlice API)
		if err != nil {
			continue
		}
		one := SliceEndpoint{Address: a, IsReady: isEndpointReady(e.Conditions)}
		if e.NodeName != nil {
			one.Node = InternString(*e.NodeName)
		}
		out.Endpoints = append(out.Endpoints, one)
	}
	return out
}
