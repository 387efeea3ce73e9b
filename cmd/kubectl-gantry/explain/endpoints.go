package explain

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
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

// describeAbsentEndpoints says whether there are Pods at all, and which are ready, as the end of a
// sentence.
func (c *serviceDiagnosis) describeAbsentEndpoints(ctx context.Context) string {
	own := c.readEndpointSlices(ctx)
	if len(c.service.Spec.Selector) == 0 && len(own) > 0 {
		return fmt.Sprintf("; the Service has no selector, and its EndpointSlice %s (addressType %s) has %s", own[0].Name, own[0].AddressType, formatCount(len(own[0].Endpoints), "endpoint"))
	}
	if len(c.service.Spec.Selector) == 0 {
		return "; the Service has no selector, so that somebody has to write its EndpointSlices" + describeStrayEndpointSlice(ctx, c)
	}
	isReadyByPod, readyFamilies := map[string]bool{}, map[string]bool{}
	for _, s := range own {
		for i := range s.Endpoints {
			o := &s.Endpoints[i]
			pod := fmt.Sprint(o.Addresses)
			if o.TargetRef != nil {
				pod = o.TargetRef.Name
			}
			isReady := o.Conditions.Ready == nil || *o.Conditions.Ready
			isReadyByPod[pod] = isReadyByPod[pod] || isReady
			if isReady {
				readyFamilies[string(s.AddressType)] = true
			}
		}
	}
	ready := 0
	for _, isReady := range isReadyByPod {
		if isReady {
			ready++
		}
	}
	matches := fmt.Sprintf("; the selector %s matches %s", podSelectorText(c.service), formatCount(len(isReadyByPod), "Pod"))
	switch families := slices.Sorted(maps.Keys(readyFamilies)); {
	case len(isReadyByPod) == 0:
		return fmt.Sprintf("; the selector %s matches no Pod that has an address", podSelectorText(c.service))
	case ready == 0:
		return matches + ", and none is ready"
	case len(families) == 1:
		return fmt.Sprintf("%s, and %s, with %s addresses only", matches, formatReadyCount(ready), families[0])
	}
	return matches + ", and " + formatReadyCount(ready)
}

func formatReadyCount(n int) string {
	if n == 1 {
		return "1 is ready"
	}
	return fmt.Sprintf("%d are ready", n)
}

// describeStrayEndpointSlice returns the end of a sentence about an EndpointSlice that was written
// by hand and belongs to no Service by its label.
func describeStrayEndpointSlice(ctx context.Context, c *serviceDiagnosis) string {
	var all discoveryv1.EndpointSliceList
	if err := c.objectReader.List(ctx, &all, client.InNamespace(c.key.Namespace)); err != nil {
		return ""
	}
	for i := range all.Items {
		s := &all.Items[i]
		of, hasLabel := s.Labels[discoveryv1.LabelServiceName]
		switch {
		case len(s.OwnerReferences) > 0 || s.Labels[discoveryv1.LabelManagedBy] == endpointSliceControllerName:
		case !hasLabel:
			return fmt.Sprintf(": EndpointSlice %s lacks the label %s=%s", s.Name, discoveryv1.LabelServiceName, c.key.Name)
		case of != c.key.Name && len(findSimilarNames(of, []string{c.key.Name})) > 0:
			return fmt.Sprintf(": EndpointSlice %s has the label %s=%s, not %s", s.Name, discoveryv1.LabelServiceName, of, c.key.Name)
		}
	}
	return ""
}

// endpointSliceControllerName is who writes the EndpointSlices of Services with a selector.
const endpointSliceControllerName = "endpointslice-controller.k8s.io"

// describeEndpointsWithoutNode says that no endpoint names its node, so that none is local to any,
// as the end of a sentence.
func describeEndpointsWithoutNode(ctx context.Context, c *serviceDiagnosis) string {
	all := c.readEndpointSlices(ctx)
	namesNode := func(p discoveryv1.Endpoint) bool { return p.NodeName != nil && *p.NodeName != "" }
	if len(all) == 0 || slices.ContainsFunc(all, func(s discoveryv1.EndpointSlice) bool { return slices.ContainsFunc(s.Endpoints, namesNode) }) {
		return ""
	}
	return fmt.Sprintf("; the endpoints in EndpointSlice %s do not name their nodes: write nodeName there, or set externalTrafficPolicy Cluster", all[0].Name)
}

// explainUnservedPort names a port of the Service that no endpoint serves: its Pods have no port of
// the name in targetPort, or an EndpointSlice that was written by hand has other ports.
func (c *serviceDiagnosis) explainUnservedPort(ctx context.Context) names.Explanation {
	all := slices.DeleteFunc(c.readEndpointSlices(ctx), func(s discoveryv1.EndpointSlice) bool { return len(s.Endpoints) == 0 })
	if len(all) == 0 {
		return names.Explanation{}
	}
	for _, p := range c.service.Spec.Ports {
		serves := func(q discoveryv1.EndpointPort) bool {
			return equalsWithDefault(q.Name, p.Name, "") && equalsWithDefault(q.Protocol, cmp.Or(p.Protocol, corev1.ProtocolTCP), corev1.ProtocolTCP)
		}
		isServed := slices.ContainsFunc(all, func(s discoveryv1.EndpointSlice) bool {
			return s.AddressType != discoveryv1.AddressTypeFQDN && slices.ContainsFunc(s.Ports, serves)
		})
		port := cmp.Or(p.Name, fmt.Sprint(p.Port))
		switch {
		case isServed:
		case len(c.service.Spec.Selector) > 0:
			return names.NewExplanation(names.ReasonNoEndpoints, "no endpoint serves its port %s: no Pod has a port named %q: correct targetPort", port, p.TargetPort.String())
		case all[0].AddressType == discoveryv1.AddressTypeFQDN:
			return names.NewExplanation(names.ReasonNoEndpoints, "no endpoint serves it: EndpointSlice %s has the addressType FQDN, which kube-proxy ignores: write IP addresses", all[0].Name)
		default:
			return names.NewExplanation(names.ReasonNoEndpoints, "no endpoint serves its port %s: EndpointSlice %s has no port with the name %q and the protocol %s: correct its ports", port, all[0].Name, p.Name, cmp.Or(p.Protocol, corev1.ProtocolTCP))
		}
	}
	return names.Explanation{}
}

// equalsWithDefault reports whether a value, which is fallback if it is nil, is the wanted one.
func equalsWithDefault[T comparable](value *T, wanted, fallback T) bool {
	if value == nil {
		return wanted == fallback
	}
	return *value == wanted
}
