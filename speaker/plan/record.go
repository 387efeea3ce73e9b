package plan

import (
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/gantry-lb/gantry/internal/view"
)

// record is all that the Planner keeps of one Service. There are tens of thousands in a large cluster, on every node: it holds
// what the rules look at and nothing else.
type record struct {
	// of is the Service; nil as long as only its endpoints are known, or when it is none of ours.
	of        *service
	endpoints endpoints
	// verdict is the one in the Plan; decision is nil where no node may hold the addresses by layer 2.
	verdict  *Verdict
	decision *decision
	// share is nil where the Service is not decided.
	share *share
}

// service is what the rules look at of a Service of ours.
type service struct {
	labels   tags
	pool     string // as recorded
	assigned []netip.Addr
	// local says that traffic stays on its node, sharing that it has the annotation by which addresses are shared.
	local, sharing bool
}

func newService(s *view.Service) *service {
	return &service{labels: newTags(s.Labels), pool: view.Share(s.PoolRecorded), assigned: slices.Clip(s.Assigned), local: s.Local, sharing: s.SharingPresent}
}

func (s *service) same(o *service) bool {
	return s.pool == o.pool && s.local == o.local && s.sharing == o.sharing && slices.Equal(s.assigned, o.assigned) && slices.Equal(s.labels, o.labels)
}

// view returns what is known of the Service.
func (s *service) view(k view.Key, class string) view.Service {
	out := view.Service{
		Key: k, LoadBalancer: true, Class: class, PoolRecorded: s.pool, Assigned: s.assigned, Local: s.local, SharingPresent: s.sharing,
	}
	if len(s.labels) > 0 {
		out.Labels = map[string]string{}
	}
	for _, t := range s.labels {
		out.Labels[t.key] = t.value
	}
	return out
}

// tags are labels, sorted by key: a map of Go's takes ten times as much for the few that a Service has.
type tags []tag

type tag struct{ key, value string }

var _ labels.Labels = tags(nil)

func newTags(set map[string]string) tags {
	if len(set) == 0 {
		return nil
	}
	out := make(tags, 0, len(set))
	for k, v := range set {
		out = append(out, tag{view.Share(k), v}) // many share the keys, few the values
	}
	slices.SortFunc(out, func(x, y tag) int { return strings.Compare(x.key, y.key) })
	return out
}

// Has is part of labels.Labels.
func (t tags) Has(key string) bool { _, ok := t.Lookup(key); return ok }

// Get is part of labels.Labels.
func (t tags) Get(key string) string { v, _ := t.Lookup(key); return v }

// Lookup is part of labels.Labels.
func (t tags) Lookup(key string) (string, bool) {
	i, ok := slices.BinarySearchFunc(t, key, func(e tag, key string) int { return strings.Compare(e.key, key) })
	if !ok {
		return "", false
	}
	return t[i].value, true
}

// endpoints are those of one Service.
type endpoints struct {
	serving bool // one at least can serve, wherever it is
	places  []place
}

// place is a node with endpoints that can serve.
type place struct {
	node  string
	count int32
	ready bool // one of them is ready and does not terminate
}

func newEndpoints(e *view.Endpoints) endpoints {
	out := endpoints{serving: e.Serving}
	if !e.Serving || len(e.Nodes) == 0 {
		return out
	}
	out.places = make([]place, 0, len(e.Nodes))
	for _, n := range e.Nodes {
		_, ready := slices.BinarySearch(e.Ready, n)
		out.places = append(out.places, place{n, int32(e.Count(n)), ready}) //nolint:gosec // a Service has at most some thousands
	}
	return out
}

func (e endpoints) same(o endpoints) bool {
	return e.serving == o.serving && slices.Equal(e.places, o.places)
}

// view returns what is known of the endpoints.
func (e endpoints) view(k view.Key) view.Endpoints {
	out := view.Endpoints{Service: k, Serving: e.serving}
	for _, p := range e.places {
		out.Nodes, out.Counts = append(out.Nodes, p.node), append(out.Counts, int(p.count))
		if p.ready {
			out.Ready = append(out.Ready, p.node)
		}
	}
	return out
}

// at returns the place on a node.
func (e endpoints) at(node string) (place, bool) {
	i, ok := slices.BinarySearchFunc(e.places, node, func(p place, node string) int { return strings.Compare(p.node, node) })
	if !ok {
		return place{}, false
	}
	return e.places[i], true
}

// sharers are the Services of one address or prefix, sorted. Nearly always it is one.
type sharers []view.Key

func (s sharers) with(k view.Key) sharers {
	i, found := slices.BinarySearchFunc(s, k, view.Key.Compare)
	if found {
		return s
	}
	if s == nil {
		return sharers{k}
	}
	return slices.Insert(s, i, k)
}

func (s sharers) without(k view.Key) sharers {
	i, found := slices.BinarySearchFunc(s, k, view.Key.Compare)
	if !found {
		return s
	}
	return slices.Delete(s, i, i+1)
}

// lists gives lists of names that are the same one place in memory: nearly all routes go to the same peers.
type lists [][]string

// mostLists bounds how many are remembered.
const mostLists = 16

func (l *lists) of(list []string) []string {
	for _, known := range *l {
		if slices.Equal(known, list) {
			return known
		}
	}
	if len(*l) < mostLists {
		*l = append(*l, list)
	}
	return list
}
