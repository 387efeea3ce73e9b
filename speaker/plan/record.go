package plan

import (
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/gantry-lb/gantry/internal/view"
)

// serviceRecord is all that the Planner keeps of one Service. There are tens of thousands in a large cluster, on every node: it holds
// what the rules look at and nothing else.
type serviceRecord struct {
	// service is the Service; nil as long as only its endpoints are known, or when it is none of ours.
	service   *serviceFacts
	endpoints endpointFacts
	// verdict is the one in the Plan; decision is nil where no node may hold the addresses by layer 2.
	verdict  *Verdict
	decision *layer2Decision
	// contribution is nil where the Service is not decided.
	contribution *contribution
}

// serviceFacts is what the rules look at of a Service of ours.
type serviceFacts struct {
	labels       labelList
	recordedPool string // as recorded
	assigned     []netip.Addr
	// isLocalTraffic says that traffic stays on its node, sharing that it has the annotation by which addresses are shared.
	isLocalTraffic, hasSharingKey bool
}

func newServiceFacts(s *view.Service) *serviceFacts {
	return &serviceFacts{labels: newLabelList(s.Labels), recordedPool: view.Intern(s.RecordedPool), assigned: slices.Clip(s.AssignedAddresses), isLocalTraffic: s.LocalTrafficPolicy, hasSharingKey: s.HasSharingAnnotation}
}

func (s *serviceFacts) equal(o *serviceFacts) bool {
	return s.recordedPool == o.recordedPool && s.isLocalTraffic == o.isLocalTraffic && s.hasSharingKey == o.hasSharingKey && slices.Equal(s.assigned, o.assigned) && slices.Equal(s.labels, o.labels)
}

// toView returns what is known of the Service.
func (s *serviceFacts) toView(k view.ObjectKey, class string) view.Service {
	out := view.Service{
		Key: k, IsLoadBalancer: true, Class: class, RecordedPool: s.recordedPool, AssignedAddresses: s.assigned, LocalTrafficPolicy: s.isLocalTraffic, HasSharingAnnotation: s.hasSharingKey,
	}
	if len(s.labels) > 0 {
		out.Labels = map[string]string{}
	}
	for _, t := range s.labels {
		out.Labels[t.key] = t.value
	}
	return out
}

// labelList are labels, sorted by key: a map of Go's takes ten times as much for the few that a Service has.
type labelList []label

type label struct{ key, value string }

var _ labels.Labels = labelList(nil)

func newLabelList(set map[string]string) labelList {
	if len(set) == 0 {
		return nil
	}
	out := make(labelList, 0, len(set))
	for k, v := range set {
		out = append(out, label{view.Intern(k), v}) // many share the keys, few the values
	}
	slices.SortFunc(out, func(x, y label) int { return strings.Compare(x.key, y.key) })
	return out
}

// Has is part of labels.Labels.
func (t labelList) Has(key string) bool { _, ok := t.Lookup(key); return ok }

// Get is part of labels.Labels.
func (t labelList) Get(key string) string { v, _ := t.Lookup(key); return v }

// Lookup is part of labels.Labels.
func (t labelList) Lookup(key string) (string, bool) {
	i, ok := slices.BinarySearchFunc(t, key, func(e label, key string) int { return strings.Compare(e.key, key) })
	if !ok {
		return "", false
	}
	return t[i].value, true
}

// endpointFacts are those of one Service.
type endpointFacts struct {
	isServing bool // one at least can serve, wherever it is
	nodes     []nodeEndpoints
}

// nodeEndpoints is a node with endpoints that can serve.
type nodeEndpoints struct {
	node     string
	count    int32
	hasReady bool // one of them is ready and does not terminate
}

func newEndpointFacts(e *view.Endpoints) endpointFacts {
	out := endpointFacts{isServing: e.AnyServing}
	if !e.AnyServing || len(e.ServingNodes) == 0 {
		return out
	}
	out.nodes = make([]nodeEndpoints, 0, len(e.ServingNodes))
	for _, n := range e.ServingNodes {
		_, ready := slices.BinarySearch(e.ReadyNodes, n)
		out.nodes = append(out.nodes, nodeEndpoints{n, int32(e.CountOnNode(n)), ready}) //nolint:gosec // a Service has at most some thousands
	}
	return out
}

func (e endpointFacts) equal(o endpointFacts) bool {
	return e.isServing == o.isServing && slices.Equal(e.nodes, o.nodes)
}

// toView returns what is known of the endpoints.
func (e endpointFacts) toView(k view.ObjectKey) view.Endpoints {
	out := view.Endpoints{Service: k, AnyServing: e.isServing}
	for _, p := range e.nodes {
		out.ServingNodes, out.ServingCounts = append(out.ServingNodes, p.node), append(out.ServingCounts, int(p.count))
		if p.hasReady {
			out.ReadyNodes = append(out.ReadyNodes, p.node)
		}
	}
	return out
}

// onNode returns the place on a node.
func (e endpointFacts) onNode(node string) (nodeEndpoints, bool) {
	i, ok := slices.BinarySearchFunc(e.nodes, node, func(p nodeEndpoints, node string) int { return strings.Compare(p.node, node) })
	if !ok {
		return nodeEndpoints{}, false
	}
	return e.nodes[i], true
}

// serviceList are the Services of one address or prefix, sorted. Nearly always it is one.
type serviceList []view.ObjectKey

func (s serviceList) withService(k view.ObjectKey) serviceList {
	i, found := slices.BinarySearchFunc(s, k, view.ObjectKey.Compare)
	if found {
		return s
	}
	if s == nil {
		return serviceList{k}
	}
	return slices.Insert(s, i, k)
}

func (s serviceList) withoutService(k view.ObjectKey) serviceList {
	i, found := slices.BinarySearchFunc(s, k, view.ObjectKey.Compare)
	if !found {
		return s
	}
	return slices.Delete(s, i, i+1)
}

// nameListCache gives lists of names that are the same one place in memory: nearly all routes go to the same peers.
type nameListCache [][]string

// nameListCacheLimit bounds how many are remembered.
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
