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

// FromSlices projects all EndpointSlices of one Service together. An endpoint can serve when it has an address and is
// ready (an absent condition counts as ready), or still serving while it terminates.
func FromSlices(service Key, all []discoveryv1.EndpointSlice) Endpoints {
	e := Endpoints{Service: service}
	counts := map[string]map[discoveryv1.AddressType]int{}
	for i := range all {
		for j := range all[i].Endpoints {
			p := &all[i].Endpoints[j]
			if len(p.Addresses) == 0 || !canServe(p.Conditions) {
				continue
			}
			e.Serving = true
			if p.NodeName != nil && *p.NodeName != "" {
				if counts[*p.NodeName] == nil {
					counts[*p.NodeName] = map[discoveryv1.AddressType]int{}
				}
				counts[*p.NodeName][all[i].AddressType]++
				if c := p.Conditions; (c.Ready == nil || *c.Ready) && (c.Terminating == nil || !*c.Terminating) {
					e.Ready = append(e.Ready, *p.NodeName)
				}
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
