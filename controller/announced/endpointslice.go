package announced

import (
	"slices"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/gantry-lb/gantry/internal/view"
)

// CompactEndpointSlice reduces an EndpointSlice in the cache to its Service and one endpoint that
// can serve, if there is one.
func CompactEndpointSlice(o any) (any, error) {
	if s, ok := o.(*discoveryv1.EndpointSlice); ok {
		service := s.Labels[discoveryv1.LabelServiceName]
		s.ObjectMeta = metav1.ObjectMeta{Namespace: s.Namespace, Name: s.Name, UID: s.UID, ResourceVersion: s.ResourceVersion}
		s.Labels = map[string]string{discoveryv1.LabelServiceName: service}
		s.Ports = nil
		able := slices.IndexFunc(s.Endpoints, func(e discoveryv1.Endpoint) bool {
			return view.MergedEndpointsOfSlices(view.ObjectKey{}, []discoveryv1.EndpointSlice{{Endpoints: []discoveryv1.Endpoint{e}}}).AnyServing
		})
		if able < 0 {
			s.Endpoints = nil
		} else {
			e := s.Endpoints[able]
			s.Endpoints = []discoveryv1.Endpoint{{Addresses: e.Addresses[:1:1], Conditions: e.Conditions}}
		}
	}
	return o, nil
}
