package announcedcondition

import (
	"slices"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/gantry-lb/gantry/internal/view"
)

// CompactEndpointSlice reduces an EndpointSlice in the cache to its Service and one endpoint that
// can serve on each node.
func CompactEndpointSlice(o any) (any, error) {
	if s, ok := o.(*discoveryv1.EndpointSlice); ok {
		service := s.Labels[discoveryv1.LabelServiceName]
		s.ObjectMeta = metav1.ObjectMeta{Namespace: s.Namespace, Name: s.Name, UID: s.UID, ResourceVersion: s.ResourceVersion}
		s.Labels = map[string]string{discoveryv1.LabelServiceName: service}
		s.Ports = nil
		var able []discoveryv1.Endpoint
		for _, e := range s.Endpoints {
			onSameNode := func(other discoveryv1.Endpoint) bool { return nodeNameOfEndpoint(other) == nodeNameOfEndpoint(e) }
			canServe := view.FromEndpointSlices(view.ObjectKey{}, []discoveryv1.EndpointSlice{{Endpoints: []discoveryv1.Endpoint{e}}}).AnyServing
			if canServe && !slices.ContainsFunc(able, onSameNode) {
				node := view.InternString(nodeNameOfEndpoint(e))
				able = append(able, discoveryv1.Endpoint{Addresses: e.Addresses[:1:1], Conditions: e.Conditions, NodeName: &node})
			}
		}
		s.Endpoints = slices.Clip(able)
	}
	return o, nil
}

// nodeNameOfEndpoint returns the node of an endpoint; empty if it is unknown.
func nodeNameOfEndpoint(e discoveryv1.Endpoint) string {
	if e.NodeName == nil {
		return ""
	}
	return *e.NodeName
}
