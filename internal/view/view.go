// Package view holds small immutable extracts of Kubernetes objects, with everything that decisions
// need of them. It is the only place where annotations and the addresses of Services are parsed.
// The functions are pure. A value may share memory with its object, and neither may be changed.
package view

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/gantry-lb/gantry/internal/ipfamily"
)

// ObjectKey names a namespaced object.
type ObjectKey struct{ Namespace, Name string }

// String returns "namespace/name".
func (k ObjectKey) String() string { return k.Namespace + "/" + k.Name }

// Compare orders by namespace, then by name.
func (k ObjectKey) Compare(o ObjectKey) int {
	if c := strings.Compare(k.Namespace, o.Namespace); c != 0 {
		return c
	}
	return strings.Compare(k.Name, o.Name)
}

// FamilyPolicy is a Service's spec.ipFamilyPolicy.
type FamilyPolicy string

// The family policies of the Kubernetes API; an absent one counts as SingleStack.
const (
	SingleStack      FamilyPolicy = "SingleStack"
	PreferDualStack  FamilyPolicy = "PreferDualStack"
	RequireDualStack FamilyPolicy = "RequireDualStack"
)

// Port is one port of a Service. Services that share an address must not have one in common.
type Port struct {
	Protocol string // TCP, UDP or SCTP
	Number   uint16
}

// Service is what a decision needs to know of a Service.
type Service struct {
	Key    ObjectKey
	UID    string
	Labels map[string]string
	// IsLoadBalancer says that spec.type is LoadBalancer.
	IsLoadBalancer bool
	// LoadBalancerClass is spec.loadBalancerClass; empty when absent.
	LoadBalancerClass string
	// ClusterIPs are the valid addresses of spec.clusterIPs; empty for a headless Service.
	ClusterIPs []netip.Addr
	// PrimaryFamily is the family of spec.ipFamilies[0], or of the first cluster IP.
	PrimaryFamily ipfamily.Family
	FamilyPolicy  FamilyPolicy
	Ports         []Port
	// HasLocalTrafficPolicy is true for externalTrafficPolicy Local.
	HasLocalTrafficPolicy bool
	// HealthCheckNodePort is the port at which kube-proxy answers how many endpoints of the Service
	// it knows on its node; 0 when absent.
	HealthCheckNodePort uint16
	// PodSelector is spec.selector in canonical form ("a=b,c=d"); empty when the Service has none.
	PodSelector string
	// AssignedAddresses are the addresses in status.loadBalancer.ingress, in the order of the
	// status.
	AssignedAddresses []netip.Addr
	// NonAddressIngressEntries holds ingress entries that are no addresses, for example host names.
	NonAddressIngressEntries []string
	// RecordedPool is the pool of the first address as the status says
	// (names.ConditionAllocatedFromPool).
	RecordedPool string
	// RequestedPool is the pool named by the annotation; empty when there is none.
	RequestedPool string
	// RequestedAddresses are the addresses named by the annotation or spec.loadBalancerIP, in that
	// order.
	RequestedAddresses []netip.Addr
	// RequestedAddressesPerFamily is how many addresses of each family it asks for; 0 counts as 1.
	RequestedAddressesPerFamily int
	// AddressesToExchange are addresses that it wants to exchange for others, if it holds them.
	AddressesToExchange []netip.Addr
	// RequestedHolder is the node that should hold the addresses; empty if any may.
	RequestedHolder string
	// InvalidRequestText says in one sentence why the request cannot be read; empty when it can.
	InvalidRequestText string
	// SharingKey: Services with the same non-empty key may share an address.
	SharingKey string
	// HasSharingAnnotation says that the sharing annotation exists, even with an empty value.
	HasSharingAnnotation bool
	// CreatedUnixSeconds is the creation time in seconds since 1970. If two Services claim one
	// address, the older one keeps it.
	CreatedUnixSeconds int64
	// Generation counts the edits of the spec; conditions refer to it.
	Generation int64
	// Traffic is that of TrafficOfService; nil if nobody needs it.
	Traffic *ServiceTraffic
}

// ClusterIPFamilies returns the families of the Service's cluster IPs, sorted, each once.
func (s *Service) ClusterIPFamilies() []ipfamily.Family {
	var out []ipfamily.Family
	for _, a := range s.ClusterIPs {
		out = append(out, ipfamily.FamilyOf(a))
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Endpoints is what is known of the endpoints of one Service, from all its slices.
type Endpoints struct {
	Service ObjectKey
	// AnyServing says that at least one endpoint can serve: it is ready, or still serves while it
	// terminates.
	AnyServing bool
	// ServingNodes are the nodes with at least one endpoint that can serve, sorted.
	ServingNodes []string
	// EndpointCountsOfServingNodes is how many endpoints can serve on each of the ServingNodes, in
	// their order. An endpoint with addresses of both families counts once.
	EndpointCountsOfServingNodes []int
	// ReadyNodes are the nodes with at least one endpoint that is ready and does not terminate,
	// sorted.
	ReadyNodes []string
	// NoneServesIPv4 and NoneServesIPv6 mean that no endpoint has an address of the family.
	NoneServesIPv4, NoneServesIPv6 bool
	// NodesWithoutIPv4 and NodesWithoutIPv6 are those of the ServingNodes whose endpoints have no
	// address of the family, sorted.
	NodesWithoutIPv4, NodesWithoutIPv6 []string
}

// ServesFamilyOf says whether an endpoint can serve addresses of this family.
func (e Endpoints) ServesFamilyOf(a netip.Addr) bool {
	return e.AnyServing && !(a.Is4() && e.NoneServesIPv4) && !(!a.Is4() && e.NoneServesIPv6)
}

// RestrictToFamilyOf returns the endpoints without the nodes that serve no address of this family.
func (e Endpoints) RestrictToFamilyOf(a netip.Addr) Endpoints {
	without := e.NodesWithoutIPv4
	if !a.Is4() {
		without = e.NodesWithoutIPv6
	}
	if len(without) == 0 {
		return e
	}
	lacks := func(node string) bool { _, found := slices.BinarySearch(without, node); return found }
	out := e
	out.ServingNodes, out.EndpointCountsOfServingNodes, out.ReadyNodes = nil, nil, nil
	for _, n := range e.ServingNodes {
		if !lacks(n) {
			out.ServingNodes, out.EndpointCountsOfServingNodes = append(out.ServingNodes, n), append(out.EndpointCountsOfServingNodes, e.CountServingOnNode(n))
		}
	}
	for _, n := range e.ReadyNodes {
		if !lacks(n) {
			out.ReadyNodes = append(out.ReadyNodes, n)
		}
	}
	return out
}

// NodesForLocalTraffic returns the nodes that announce a Service with externalTrafficPolicy Local:
// those with ready endpoints, or, if there are none, those where a terminating endpoint still
// serves.
func (e Endpoints) NodesForLocalTraffic() []string {
	if len(e.ReadyNodes) > 0 {
		return e.ReadyNodes
	}
	return e.ServingNodes
}

// CountServingOnNode returns how many endpoints on the node can serve.
func (e Endpoints) CountServingOnNode(node string) int {
	i, ok := slices.BinarySearch(e.ServingNodes, node)
	if !ok || i >= len(e.EndpointCountsOfServingNodes) {
		return 0
	}
	return e.EndpointCountsOfServingNodes[i]
}

// CanServeOn says whether an endpoint on the node can serve.
func (e Endpoints) CanServeOn(node string) bool {
	_, ok := slices.BinarySearch(e.ServingNodes, node)
	return ok
}

// Node is what a decision needs to know of a Kubernetes node.
type Node struct {
	Name   string
	Labels map[string]string
	// InternalAddresses are the node's internal addresses.
	InternalAddresses []netip.Addr
	// IsExcluded says that the node has the label that excludes it from external load balancers.
	IsExcluded bool
	// NetworkUnavailable says that the condition of that name is True.
	NetworkUnavailable bool
	// IsKubeletSilent says that the condition Ready is Unknown: the kubelet has not reported for a
	// while.
	IsKubeletSilent bool
	// IsLeaving says that the node's addresses should move to other nodes: it has the
	// out-of-service taint or the drain annotation, or its kubelet reports its shutdown.
	IsLeaving bool
}
