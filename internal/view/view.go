// Package view holds small immutable projections of Kubernetes objects: what a decision may look at, and nothing else.
// It is the only place where annotations and the address strings of Services are parsed. The functions are pure;
// a View shares no memory with the object that it came from, and must not be changed.
package view

import (
	"net/netip"
	"slices"
)

// ObjectKey names a namespaced object.
type ObjectKey struct{ Namespace, Name string }

// String returns "namespace/name".
func (k ObjectKey) String() string { return k.Namespace + "/" + k.Name }

// Compare orders Keys by namespace, then name.
func (k ObjectKey) Compare(o ObjectKey) int {
	if c := compareStrings(k.Namespace, o.Namespace); c != 0 {
		return c
	}
	return compareStrings(k.Name, o.Name)
}

func compareStrings(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// Family is an address family.
type Family uint8

// The address families, in the order in which an automatic pair is listed.
const (
	IPv4 Family = 4
	IPv6 Family = 6
)

// FamilyOf returns the family of a; an IPv4-mapped IPv6 address counts as IPv4.
func FamilyOf(a netip.Addr) Family {
	if a.Unmap().Is4() {
		return IPv4
	}
	return IPv6
}

// FamilyPolicy is a Service's spec.ipFamilyPolicy.
type FamilyPolicy string

// The family policies of the Kubernetes API; an absent one counts as SingleStack.
const (
	SingleStack      FamilyPolicy = "SingleStack"
	PreferDualStack  FamilyPolicy = "PreferDualStack"
	RequireDualStack FamilyPolicy = "RequireDualStack"
)

// Port is one port of a Service: what must be disjoint between Services that share an address.
type Port struct {
	Protocol string // TCP, UDP or SCTP
	Number   uint16
}

// Service is what a decision may know of a Service.
type Service struct {
	Key    ObjectKey
	UID    string
	Labels map[string]string
	// IsLoadBalancer says that spec.type is IsLoadBalancer and the object is not about to vanish from our class.
	IsLoadBalancer bool
	// Class is spec.loadBalancerClass; empty when absent.
	Class string
	// ClusterIPs are the valid addresses of spec.readClusterIPs; empty for a headless Service.
	ClusterIPs []netip.Addr
	// PrimaryFamily is the family of spec.ipFamilies[0], or of the first cluster IP.
	PrimaryFamily Family
	FamilyPolicy  FamilyPolicy
	Ports         []Port
	// LocalTrafficPolicy is true for externalTrafficPolicy Local.
	LocalTrafficPolicy bool
	// PodSelector is spec.selector in canonical text ("a=b,c=d"), empty when the Service has none.
	PodSelector string
	// AssignedAddresses are the addresses in status.loadBalancer.ingress, in the order of the status.
	AssignedAddresses []netip.Addr
	// MalformedIngress holds ingress entries that are no addresses (a hostname, say).
	MalformedIngress []string
	// RecordedPool is the pool that the status was written with (names.AnnotationFromPool).
	RecordedPool string
	// RequestedPool is the pool asked for by annotation, empty when none.
	RequestedPool string
	// RequestedAddresses are the addresses asked for by annotation or spec.loadBalancerIP, in the order given.
	RequestedAddresses []netip.Addr
	// AddressCount is how many addresses of each family it asks for; 0 counts as 1.
	AddressCount int
	// AddressesToRelease are addresses that it wants to exchange for others, where it holds them.
	AddressesToRelease []netip.Addr
	// RequestFault says in one sentence why the Service's request cannot be read; empty when it can.
	RequestFault string
	// SharingKey allows Services with the same non-empty key to share an address.
	SharingKey string
	// HasSharingAnnotation says that the sharing annotation exists, even with an empty value.
	HasSharingAnnotation bool
	// CreatedUnix is the creation time in seconds since 1970: of two Services that claim one address the older keeps it.
	CreatedUnix int64
	// Generation counts the edits of the spec, for conditions.
	Generation int64
	// IsDeleting says that the object has a deletion timestamp.
	IsDeleting bool
}

// ClusterIPFamilies returns the families of the Service's cluster IPs, sorted, each once.
func (s *Service) ClusterIPFamilies() []Family {
	var out []Family
	for _, a := range s.ClusterIPs {
		out = append(out, FamilyOf(a))
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Endpoints is what is known of the endpoints of one Service, all its slices together.
type Endpoints struct {
	Service ObjectKey
	// AnyServing says that at least one endpoint anywhere can serve: ready, or serving while it terminates.
	AnyServing bool
	// ServingNodes are the names of the nodes with at least one endpoint that can serve, sorted.
	ServingNodes []string
	// ServingCounts is how many endpoints can serve on each of the Nodes, in their order; one that has addresses of both families
	// counts once.
	ServingCounts []int
	// ReadyNodes are the names of the nodes with at least one endpoint that is ready and does not terminate, sorted.
	ReadyNodes []string
}

// NodesForLocalTraffic returns the nodes that should announce a Service whose traffic stays on its node: those with ready endpoints. While
// there are none, those where an endpoint still serves though it terminates.
func (e Endpoints) NodesForLocalTraffic() []string {
	if len(e.ReadyNodes) > 0 {
		return e.ReadyNodes
	}
	return e.ServingNodes
}

// CountOnNode returns how many endpoints on the node can serve.
func (e Endpoints) CountOnNode(node string) int {
	i, ok := slices.BinarySearch(e.ServingNodes, node)
	if !ok || i >= len(e.ServingCounts) {
		return 0
	}
	return e.ServingCounts[i]
}

// CanServeOn says whether an endpoint on the node can serve.
func (e Endpoints) CanServeOn(node string) bool {
	_, ok := slices.BinarySearch(e.ServingNodes, node)
	return ok
}

// Node is what a decision may know of a Kubernetes node.
type Node struct {
	Name   string
	Labels map[string]string
	// InternalAddresses are the node's internal addresses.
	InternalAddresses []netip.Addr
	// Excluded says that the node has the label that excludes it from external load balancers.
	Excluded bool
	// NetworkUnavailable says that the condition of that name is True.
	NetworkUnavailable bool
	// Leaving says that the node asks its addresses to be handed over: the out-of-service taint, the drain
	// annotation, or a kubelet that reports its shutdown.
	Leaving bool
}
