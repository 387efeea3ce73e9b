package explain

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	discoveryv1 "k8s.io/api/discovery/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/controller/announcedcondition"
)

// readEndpointSlices returns the EndpointSlices of the Service, which were listed before.
func (c *serviceDiagnosis) readEndpointSlices(ctx context.Context) []discoveryv1.EndpointSlice {
	var all discoveryv1.EndpointSliceList
	if err := c.objectReader.List(ctx, &all, client.InNamespace(c.key.Namespace), client.MatchingFields{announcedcondition.EndpointSlicesByServiceIndex: c.key.Name}); err != nil {
		return nil
	}
	return all.Items
}

// describeAbsentEndpoints says whether there are Pods at all, as the end of a sentence.
func (c *serviceDiagnosis) describeAbsentEndpoints(ctx context.Context) string {
	if len(c.service.Spec.Selector) == 0 {
		return "; the Service has no selector, so that somebody has to write its EndpointSlices"
	}
	pods := map[string]bool{}
	for _, s := range c.readEndpointSlices(ctx) {
		for i := range s.Endpoints {
			if target := s.Endpoints[i].TargetRef; target != nil {
				pods[target.Name] = true
			} else {
				pods[fmt.Sprint(s.Endpoints[i].Addresses)] = true
			}
		}
	}
	if len(pods) == 0 {
		return fmt.Sprintf("; the selector %s matches no Pod that has an address", podSelectorText(c.service))
	}
	return fmt.Sprintf("; the selector %s matches %s, and none is ready", podSelectorText(c.service), formatCount(len(pods), "Pod"))
}

// explainUnservedPort names a port of the Service that no endpoint serves: its Pods have no port of
// the name in targetPort.
func (c *serviceDiagnosis) explainUnservedPort(ctx context.Context) names.Explanation {
	all := c.readEndpointSlices(ctx)
	if len(c.service.Spec.Selector) == 0 || !slices.ContainsFunc(all, func(s discoveryv1.EndpointSlice) bool { return len(s.Endpoints) > 0 }) {
		return names.Explanation{}
	}
	for _, p := range c.service.Spec.Ports {
		isServed := slices.ContainsFunc(all, func(s discoveryv1.EndpointSlice) bool {
			return len(s.Endpoints) > 0 && slices.ContainsFunc(s.Ports, func(q discoveryv1.EndpointPort) bool {
				return q.Name == nil && p.Name == "" || q.Name != nil && *q.Name == p.Name
			})
		})
		if !isServed {
			return names.NewExplanation(names.ReasonNoEndpoints, "no endpoint serves its port %s: no Pod has a port named %q: correct targetPort", cmp.Or(p.Name, fmt.Sprint(p.Port)), p.TargetPort.String())
		}
	}
	return names.Explanation{}
}
