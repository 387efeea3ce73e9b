// Package view holds small immutable projections of Kubernetes objects: what a decision may look at, and nothing else.
// It is the only place where annotations and the address strings of Services are parsed. The functions are pure;
// a View shares no memory with the object that it came from, and must not be changed.
package view

import (
	"net/netip"
	"slices"
)

// Key names a namespaced object.
type Key struct{ Namespace, Name string }

// String returns "namespace/name".
func (k Key) String() string { return k.Namespace + "/" + k.Name }

// Compare orders Keys by namespace, then name.
func (k Key) Compare(o Key) int {
	if c := cmpString(k.Namespace, o.Namespace); c != 0 {
		return c
	}
	return cmpString(k.Name, o.Name)
}

func cmpString(a, b string) int {
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
	Key    Key
	UID    string
	Labels map[string]string
	// LoadBalancer says that spec.type is LoadBalancer and the object is not about to vanish from our class.
	LoadBalancer bool
	// Class is spec.loadBalancerClass; empty when absent.
	Class string
	// ClusterIPs are the valid addresses of spec.clusterIPs; empty for a headless Service.
	ClusterIPs []netip.Addr
	// PrimaryFamily is the family of spec.ipFamilies[0], or of the first cluster IP.
	PrimaryFamily Family
	FamilyPolicy  FamilyPolicy
	Ports         []Port
	// Local is true for externalTrafficPolicy Local.
	Local bool
	// Selector is spec.selector in canonical text ("a=b,c=d"), empty when the Service has none.
	Selector string
	// Assigned are the addresses in status.loadBalancer.ingress, in the order of the status.
	Assigned []netip.Addr
	// StatusMalformed holds ingress entries that are no addresses (a hostname, say).
	StatusMalformed []string
	// PoolRecorded is the pool that the status was written with (names.AnnotationFromPool).
	PoolRecorded string
	// Pool is the pool asked for by annotation, empty when none.
	Pool string
	// Requested are the addresses asked for by annotation or spec.loadBalancerIP, in the order given.
	Requested []netip.Addr
	// Count is how many addresses of each family it asks for; 0 counts as 1.
	Count int
	// Releasing are addresses that it wants to exchange for others, where it holds them.
	Releasing []netip.Addr
	// RequestFault says in one sentence why the Service's request cannot be read; empty when it can.
	RequestFault string
	// SharingKey allows Services with the same non-empty key to share an address.
	SharingKey string
	// SharingPresent says that the sharing annotation exists, even with an empty value.
	SharingPresent bool
	// Created is the creation time in seconds since 1970: of two Services that claim one address the older keeps it.
	Created int64
	// Generation counts the edits of the spec, for conditions.
	Generation int64
	// Deleting says that the object has a deletion timestamp.
	Deleting bool
}

// Families returns the families of the Service's cluster IPs, sorted, each once.
func (s *Service) Families() []Family {
	var out []Family
	for _, a := range s.ClusterIPs {
		out = append(out, FamilyOf(a))
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Endpoints is what is known of the endpoints of one Service, all its slices together.
type Endpoints struct {
	Service Key
	// Serving says that at least one endpoint anywhere can serve: ready, or serving while it terminates.
	Serving bool
	// Nodes are the names of the nodes with at least one endpoint that can serve, sorted.
	Nodes []string
	// Counts is how many endpoints can serve on each of the Nodes, in their order; one that has addresses of both families
	// counts once.
	Counts []int
	// Ready are the names of the nodes with at least one endpoint that is ready and does not terminate, sorted.
	Ready []string
}

// Local returns the nodes that should announce a Service whose traffic stays on its node: those with ready endpoints. While
// there are none, those where an endpoint still serves though it terminates.
func (e Endpoints) Local() []string {
	if len(e.Ready) > 0 {
		return e.Ready
	}
	return e.Nodes
}

// Count returns how many endpoints on the node can serve.
func (e Endpoints) Count(node string) int {
	i, ok := slices.BinarySearch(e.Nodes, node)
	if !ok || i >= len(e.Counts) {
		return 0
	}
	return e.Counts[i]
}

// On says whether an endpoint on the node can serve.
func (e Endpoints) On(node string) bool {
	_, ok := slices.BinarySearch(e.Nodes, node)
	return ok
}

// Node is what a decision may know of a Kubernetes node.
type Node struct {
	Name   string
	Labels map[string]string
	// Addresses are the node's internal addresses.
	Addresses []netip.Addr
	// Excluded says that the node has the label that excludes it from external load balancers.
	Excluded bool
	// NetworkUnavailable says that the condition of that name is True.
	NetworkUnavailable bool
	// Leaving says that the node asks its addresses to be handed over: the out-of-service taint, the drain
	// annotation, or a kubelet that reports its shutdown.
	Leaving bool
}
