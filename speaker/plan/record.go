package plan

import (
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/gantry-lb/gantry/internal/advertise"
	"github.com/gantry-lb/gantry/internal/view"
)

// serviceRecord is what the Planner stores about one Service. A large cluster has tens of thousands
// of Services, on every node, so it stores only what the rules use.
type serviceRecord struct {
	// service is nil if only the endpoints are known, or if the Service is not of our class.
	service   *serviceFacts
	endpoints endpointFacts
	// layer2Verdict is the one in the Plan. decision is nil if no node may hold the addresses by
	// layer 2.
	layer2Verdict  *Layer2Verdict
	layer2Decision *layer2Decision
	// routeContribution is nil until the Service is decided.
	routeContribution *serviceRouteContribution
	proxyRulesState   ProxyRulesState
}

// serviceFacts are the fields of a Service that the rules use.
type serviceFacts struct {
	labels            labelList
	recordedPool      string // as recorded on the Service
	assignedAddresses []netip.Addr
	// hasLocalTrafficPolicy means the traffic policy Local. hasSharingKey means that the Service
	// has the annotation for shared addresses.
	hasLocalTrafficPolicy, hasSharingKey bool
	healthCheckNodePort                  uint16
	requestedHolder                      string // a node; empty if any may hold the addresses
}

func newServiceFacts(s *view.Service) *serviceFacts {
	return &serviceFacts{labels: newLabelList(s.Labels), recordedPool: view.InternString(s.RecordedPool), assignedAddresses: slices.Clip(s.AssignedAddresses), hasLocalTrafficPolicy: s.HasLocalTrafficPolicy, hasSharingKey: s.HasSharingAnnotation, healthCheckNodePort: s.HealthCheckNodePort, requestedHolder: view.InternString(s.RequestedHolder)}
}

func (s *serviceFacts) equal(o *serviceFacts) bool {
	return s.recordedPool == o.recordedPool && s.hasLocalTrafficPolicy == o.hasLocalTrafficPolicy && s.hasSharingKey == o.hasSharingKey && s.healthCheckNodePort == o.healthCheckNodePort && s.requestedHolder == o.requestedHolder && slices.Equal(s.assignedAddresses, o.assignedAddresses) && slices.Equal(s.labels, o.labels)
}

// toAdvertiseService returns the fields that decide which advertisements cover the Service.
func (s *serviceFacts) toAdvertiseService() advertise.Service {
	return advertise.Service{
		Labels: s.labels, RecordedPool: s.recordedPool, Addresses: s.assignedAddresses, HasSharingKey: s.hasSharingKey,
	}
}

// toServiceView returns the Service as a View, with the stored fields only.
func (s *serviceFacts) toServiceView(k view.ObjectKey, class string) view.Service {
	out := view.Service{
		Key: k, IsLoadBalancer: true, LoadBalancerClass: class, RecordedPool: s.recordedPool, AssignedAddresses: s.assignedAddresses, HasLocalTrafficPolicy: s.hasLocalTrafficPolicy, HasSharingAnnotation: s.hasSharingKey, HealthCheckNodePort: s.healthCheckNodePort, RequestedHolder: s.requestedHolder,
	}
	if len(s.labels) > 0 {
		out.Labels = map[string]string{}
	}
	for _, t := range s.labels {
		out.Labels[t.key] = t.value
	}
	return out
}

// labelList has labels, sorted by key. For the few labels of a Service, a Go map takes
// ten times as much memory.
type labelList []label

type label struct{ key, value string }

var _ labels.Labels = labelList(nil)

func newLabelList(set map[string]string) labelList {
	if len(set) == 0 {
		return nil
	}
	out := make(labelList, 0, len(set))
	for k, v := range set {
		// many Services have the same keys, few the same values
		out = append(out, label{view.InternString(k), v})
	}
	slices.SortFunc(out, func(x, y label) int { return strings.Compare(x.key, y.key) })
	return out
}

// Has implements labels.Labels.
func (t labelList) Has(key string) bool { _, ok := t.Lookup(key); return ok }

// Get implements labels.Labels.
func (t labelList) Get(key string) string { v, _ := t.Lookup(key); return v }

// Lookup implements labels.Labels.
func (t labelList) Lookup(key string) (string, bool) {
	i, ok := slices.BinarySearchFunc(t, key, func(e label, key string) int { return strings.Compare(e.key, key) })
	if !ok {
		return "", false
	}
	return t[i].value, true
}

// endpointFacts are the endpoints of one Service.
type endpointFacts struct {
	anyCanServe bool // at least one endpoint can serve, on any node
	// noneServesIPv4 and noneServesIPv6 mean that no endpoint has an address of the family.
	noneServesIPv4, noneServesIPv6 bool
	servingNodes                   []nodeEndpoints
}

// servesFamilyOf reports whether an endpoint can serve addresses of this family.
func (e endpointFacts) servesFamilyOf(a netip.Addr) bool {
	return e.anyCanServe && !(a.Is4() && e.noneServesIPv4) && !(!a.Is4() && e.noneServesIPv6)
}

// nodeEndpoints is a node with endpoints that can serve.
type nodeEndpoints struct {
	nodeName         string
	servingCount     int32
	hasReadyEndpoint bool // one of them is ready and does not terminate
	// lacksIPv4 and lacksIPv6 mean that no endpoint there has an address of the family.
	lacksIPv4, lacksIPv6 bool
}

// servesFamilyOf reports whether an endpoint on the node can serve addresses of this family.
func (n nodeEndpoints) servesFamilyOf(a netip.Addr) bool {
	return !(a.Is4() && n.lacksIPv4) && !(!a.Is4() && n.lacksIPv6)
}

func newEndpointFacts(e *view.Endpoints) endpointFacts {
	out := endpointFacts{anyCanServe: e.AnyServing, noneServesIPv4: e.NoneServesIPv4, noneServesIPv6: e.NoneServesIPv6}
	if !e.AnyServing || len(e.ServingNodes) == 0 {
		return out
	}
	out.servingNodes = make([]nodeEndpoints, 0, len(e.ServingNodes))
	for _, n := range e.ServingNodes {
		_, ready := slices.BinarySearch(e.ReadyNodes, n)
		_, lacksIPv4 := slices.BinarySearch(e.NodesWithoutIPv4, n)
		_, lacksIPv6 := slices.BinarySearch(e.NodesWithoutIPv6, n)
		out.servingNodes = append(out.servingNodes, nodeEndpoints{n, int32(e.CountServingOnNode(n)), ready, lacksIPv4, lacksIPv6})
	}
	return out
}

func (e endpointFacts) equal(o endpointFacts) bool {
	return e.anyCanServe == o.anyCanServe && e.noneServesIPv4 == o.noneServesIPv4 && e.noneServesIPv6 == o.noneServesIPv6 && slices.Equal(e.servingNodes, o.servingNodes)
}

// toEndpointsView returns the endpoints as a View, with the stored fields only.
func (e endpointFacts) toEndpointsView(k view.ObjectKey) view.Endpoints {
	out := view.Endpoints{Service: k, AnyServing: e.anyCanServe, NoneServesIPv4: e.noneServesIPv4, NoneServesIPv6: e.noneServesIPv6}
	for _, p := range e.servingNodes {
		out.ServingNodes, out.EndpointCountsOfServingNodes = append(out.ServingNodes, p.nodeName), append(out.EndpointCountsOfServingNodes, int(p.servingCount))
		if p.hasReadyEndpoint {
			out.ReadyNodes = append(out.ReadyNodes, p.nodeName)
		}
		if p.lacksIPv4 {
			out.NodesWithoutIPv4 = append(out.NodesWithoutIPv4, p.nodeName)
		}
		if p.lacksIPv6 {
			out.NodesWithoutIPv6 = append(out.NodesWithoutIPv6, p.nodeName)
		}
	}
	return out
}

// endpointsOnNode returns the endpoints on a node.
func (e endpointFacts) endpointsOnNode(node string) (nodeEndpoints, bool) {
	i, ok := slices.BinarySearchFunc(e.servingNodes, node, func(p nodeEndpoints, node string) int { return strings.Compare(p.nodeName, node) })
	if !ok {
		return nodeEndpoints{}, false
	}
	return e.servingNodes[i], true
}

// sortedServiceKeys has the Services of one address or prefix, sorted. Nearly always it has one.
type sortedServiceKeys []view.ObjectKey

func (s sortedServiceKeys) withService(k view.ObjectKey) sortedServiceKeys {
	i, found := slices.BinarySearchFunc(s, k, view.ObjectKey.Compare)
	if found {
		return s
	}
	if s == nil {
		return sortedServiceKeys{k}
	}
	return slices.Insert(s, i, k)
}

func (s sortedServiceKeys) withoutService(k view.ObjectKey) sortedServiceKeys {
	i, found := slices.BinarySearchFunc(s, k, view.ObjectKey.Compare)
	if !found {
		return s
	}
	return slices.Delete(s, i, i+1)
}

// nameListCache returns one shared slice for equal lists of names, because nearly all
// routes go to the same peers.
type nameListCache [][]string

// nameListCacheLimit bounds how many lists are cached.
const nameListCacheLimit = 16

func (l *nameListCache) intern(list []string) []string {
	for _, known := range *l {
		if slices.Equal(known, list) {
			return known
		}
	}
	if len(*l) < nameListCacheLimit {
		*l = append(*l, list)
	}
	return list
}
