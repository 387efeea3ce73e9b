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

// Slice is what is known of one EndpointSlice. Its endpoints that cannot serve are left out.
type Slice struct {
	// Service is empty in its name when the slice belongs to none.
	Service Key
	Name    string
	// Type of the addresses. An endpoint that has addresses of two types is in two slices.
	Type   discoveryv1.AddressType
	Places []Place
}

// Place is where endpoints can serve.
type Place struct {
	// Node is empty for endpoints of which that is not known.
	Node string
	// Count is how many endpoints can serve there.
	Count int
	// Ready says that one of them is ready and does not terminate.
	Ready bool
}

// FromSlice projects an EndpointSlice. An endpoint can serve when it has an address and is ready (an absent condition counts as
// ready), or still serving while it terminates.
func FromSlice(s *discoveryv1.EndpointSlice) Slice {
	out := Slice{Service: Key{Namespace: Share(s.Namespace), Name: s.Labels[discoveryv1.LabelServiceName]}, Name: s.Name, Type: discoveryv1.AddressType(Share(string(s.AddressType)))}
	for i := range s.Endpoints {
		e := &s.Endpoints[i]
		if len(e.Addresses) == 0 || !canServe(e.Conditions) {
			continue
		}
		node := ""
		if e.NodeName != nil {
			node = *e.NodeName
		}
		j := slices.IndexFunc(out.Places, func(p Place) bool { return p.Node == node })
		if j < 0 {
			j = len(out.Places)
			out.Places = append(out.Places, Place{Node: Share(node)})
		}
		out.Places[j].Count++
		if c := e.Conditions; (c.Ready == nil || *c.Ready) && (c.Terminating == nil || !*c.Terminating) {
			out.Places[j].Ready = true
		}
	}
	return out
}

// FromSlices projects all EndpointSlices of one Service together.
func FromSlices(service Key, all []discoveryv1.EndpointSlice) Endpoints {
	views := make([]Slice, 0, len(all))
	for i := range all {
		views = append(views, FromSlice(&all[i]))
	}
	return Join(service, views)
}

// Join puts all Slices of one Service together.
func Join(service Key, all []Slice) Endpoints {
	e := Endpoints{Service: service}
	counts := map[string]map[discoveryv1.AddressType]int{}
	for _, s := range all {
		for _, p := range s.Places {
			e.Serving = true
			if p.Node == "" {
				continue
			}
			if counts[p.Node] == nil {
				counts[p.Node] = map[discoveryv1.AddressType]int{}
			}
			counts[p.Node][s.Type] += p.Count
			if p.Ready {
				e.Ready = append(e.Ready, p.Node)
			}
		}
	}
	e.Nodes = slices.Sorted(maps.Keys(counts))
	for _, n := range e.Nodes {
		e.Counts = append(e.Counts, slices.Max(slices.Collect(maps.Values(counts[n]))))
	}
	slices.Sort(e.Ready)
	e.Ready = slices.Compact(e.Ready)
	return e
}

func canServe(c discoveryv1.EndpointConditions) bool {
	return c.Ready == nil || *c.Ready || (c.Serving != nil && *c.Serving)
}

// shutdownReason is the text with which a kubelet that is shutting down marks its node as not ready.
const shutdownReason = "node is shutting down"

// FromNode projects a node.
func FromNode(n *corev1.Node) Node {
	v := Node{Name: n.Name, Labels: n.Labels}
	_, v.Excluded = n.Labels[names.LabelExcludeNode]
	_, v.Leaving = n.Annotations[names.AnnotationDrain]
	for _, t := range n.Spec.Taints {
		v.Leaving = v.Leaving || t.Key == names.TaintOutOfService
	}
	for _, c := range n.Status.Conditions {
		switch c.Type {
		case corev1.NodeNetworkUnavailable:
			v.NetworkUnavailable = c.Status == corev1.ConditionTrue
		case corev1.NodeReady:
			v.Leaving = v.Leaving || (c.Status != corev1.ConditionTrue && strings.Contains(c.Message, shutdownReason))
		}
	}
	for _, a := range n.Status.Addresses {
		if a.Type != corev1.NodeInternalIP {
			continue
		}
		if ip, err := netip.ParseAddr(a.Address); err == nil {
			v.Addresses = append(v.Addresses, ip)
		}
	}
	return v
}
