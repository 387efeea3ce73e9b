package view

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/gantry-lb/gantry/api/names"
)

// EndpointSlice is what is known of one EndpointSlice, without endpoints that cannot serve.
type EndpointSlice struct {
	// Service has an empty name when the slice belongs to none.
	Service ObjectKey
	Name    string
	// AddressType of the slice. An endpoint with addresses of two types is in two slices.
	AddressType   discoveryv1.AddressType
	NodeEndpoints []NodeEndpoints
	// WithAddresses are the same endpoints with their addresses; nil if nobody needs them.
	WithAddresses *SliceEndpoints
}

// NodeEndpoints are the endpoints of a slice on one node.
type NodeEndpoints struct {
	// Node is empty when the node is unknown.
	Node string
	// ServingCount is how many endpoints can serve on the node.
	ServingCount int
	// HasReadyEndpoint says that one of them is ready and does not terminate.
	HasReadyEndpoint bool
}

// FromEndpointSlice converts an EndpointSlice. An endpoint can serve when it has an address and is
// ready (an absent condition counts as ready), or when it still serves while it terminates.
func FromEndpointSlice(s *discoveryv1.EndpointSlice) EndpointSlice {
	out := EndpointSlice{Service: ObjectKey{Namespace: InternString(s.Namespace), Name: s.Labels[discoveryv1.LabelServiceName]}, Name: s.Name, AddressType: discoveryv1.AddressType(InternString(string(s.AddressType)))}
	for i := range s.Endpoints {
		e := &s.Endpoints[i]
		if len(e.Addresses) == 0 || !canEndpointServe(e.Conditions) {
			continue
		}
		node := ""
		if e.NodeName != nil {
			node = *e.NodeName
		}
		j := slices.IndexFunc(out.NodeEndpoints, func(p NodeEndpoints) bool { return p.Node == node })
		if j < 0 {
			j = len(out.NodeEndpoints)
			out.NodeEndpoints = append(out.NodeEndpoints, NodeEndpoints{Node: InternString(node)})
		}
		out.NodeEndpoints[j].ServingCount++
		if isEndpointReady(e.Conditions) {
			out.NodeEndpoints[j].HasReadyEndpoint = true
		}
	}
	return out
}

// FromEndpointSlices converts all EndpointSlices of one Service into one value.
func FromEndpointSlices(service ObjectKey, all []discoveryv1.EndpointSlice) Endpoints {
	views := make([]EndpointSlice, 0, len(all))
	for i := range all {
		views = append(views, FromEndpointSlice(&all[i]))
	}
	return MergeEndpointSliceViews(service, views)
}

// MergeEndpointSliceViews merges all slices of one Service.
func MergeEndpointSliceViews(service ObjectKey, all []EndpointSlice) Endpoints {
	e := Endpoints{Service: service}
	counts := map[string]map[discoveryv1.AddressType]int{}
	families := map[discoveryv1.AddressType]bool{}
	for _, s := range all {
		for _, p := range s.NodeEndpoints {
			e.AnyServing, families[s.AddressType] = true, true
			if p.Node == "" {
				continue
			}
			if counts[p.Node] == nil {
				counts[p.Node] = map[discoveryv1.AddressType]int{}
			}
			counts[p.Node][s.AddressType] += p.ServingCount
			if p.HasReadyEndpoint {
				e.ReadyNodes = append(e.ReadyNodes, p.Node)
			}
		}
	}
	e.ServingNodes = slices.Sorted(maps.Keys(counts))
	for _, n := range e.ServingNodes {
		e.EndpointCountsOfServingNodes = append(e.EndpointCountsOfServingNodes, slices.Max(slices.Collect(maps.Values(counts[n]))))
	}
	e.recordMissingFamilies(counts, families)
	slices.Sort(e.ReadyNodes)
	e.ReadyNodes = slices.Compact(e.ReadyNodes)
	return e
}

// recordMissingFamilies records which families the endpoints do not serve, and on which nodes. A
// slice without the family in its type says nothing.
func (e *Endpoints) recordMissingFamilies(counts map[string]map[discoveryv1.AddressType]int, found map[discoveryv1.AddressType]bool) {
	hasIPv4, hasIPv6 := found[discoveryv1.AddressTypeIPv4], found[discoveryv1.AddressTypeIPv6]
	if !hasIPv4 && !hasIPv6 {
		return
	}
	e.NoneServesIPv4, e.NoneServesIPv6 = !hasIPv4, !hasIPv6
	for _, n := range e.ServingNodes {
		if counts[n][discoveryv1.AddressTypeIPv4] == 0 {
			e.NodesWithoutIPv4 = append(e.NodesWithoutIPv4, n)
		}
		if counts[n][discoveryv1.AddressTypeIPv6] == 0 {
			e.NodesWithoutIPv6 = append(e.NodesWithoutIPv6, n)
		}
	}
}

func isEndpointReady(c discoveryv1.EndpointConditions) bool {
	return (c.Ready == nil || *c.Ready) && (c.Terminating == nil || !*c.Terminating)
}

func canEndpointServe(c discoveryv1.EndpointConditions) bool {
	return c.Ready == nil || *c.Ready || (c.Serving != nil && *c.Serving)
}

// kubeletShutdownMessagePart is part of the message of the Ready condition while the kubelet shuts
// down.
const kubeletShutdownMessagePart = "node is shutting down"

// FromNode converts a node.
func FromNode(n *corev1.Node) Node {
	v := Node{Name: n.Name, Labels: n.Labels, IsExcluded: IsExcludedByLabels(n.Labels)}
	_, v.IsLeaving = n.Annotations[names.AnnotationDrainNode]
	for _, t := range n.Spec.Taints {
		v.IsLeaving = v.IsLeaving || t.Key == names.TaintOutOfService
	}
	for _, c := range n.Status.Conditions {
		switch c.Type {
		case corev1.NodeNetworkUnavailable:
			v.NetworkUnavailable = c.Status == corev1.ConditionTrue
		case corev1.NodeReady:
			v.IsKubeletSilent = c.Status == corev1.ConditionUnknown
			v.IsLeaving = v.IsLeaving || (c.Status != corev1.ConditionTrue && strings.Contains(c.Message, kubeletShutdownMessagePart))
		}
	}
	for _, a := range n.Status.Addresses {
		if a.Type != corev1.NodeInternalIP {
			continue
		}
		if ip, err := netip.ParseAddr(a.Address); err == nil {
			v.InternalAddresses = append(v.InternalAddresses, ip)
		}
	}
	return v
}

// IsExcludedByLabels says whether the labels of a node exclude it from external load balancers.
func IsExcludedByLabels(labels map[string]string) bool {
	_, excluded := labels[names.LabelExcludeNode]
	return excluded
}
