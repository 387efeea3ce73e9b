package plan

import (
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/facts"
)

var (
	serviceAddress = netip.MustParseAddr("192.0.2.1")
	webServiceKey  = view.ObjectKey{Namespace: "default", Name: "web"}
)

// buildPlan returns the Plan of complete inputs.
func buildPlan(in Inputs) Plan {
	p := NewPlanner(in)
	p.Update()
	return p.Plan()
}

// exampleInputs is a cluster of three nodes, seen from node a, with one Service that
// every node may announce.
func exampleInputs() Inputs {
	pool := &snapshot.Pool{Name: "p", Ranges: []snapshot.Range{{First: serviceAddress, Last: serviceAddress.Next()}}}
	in := Inputs{
		SelfNode:  "a",
		Snapshot:  &snapshot.Snapshot{Pools: []*snapshot.Pool{pool}, L2Advertisements: []*snapshot.L2Advertisement{{Name: "ad", Pools: []string{"p"}}}},
		Services:  map[view.ObjectKey]view.Service{webServiceKey: {Key: webServiceKey, IsLoadBalancer: true, AssignedAddresses: []netip.Addr{serviceAddress}}},
		Endpoints: map[view.ObjectKey]view.Endpoints{webServiceKey: {Service: webServiceKey, AnyServing: true, ServingNodes: []string{"b"}}},
		Nodes:     map[string]view.Node{},
		UsableLinks: facts.LinkSet{
			{Index: 2, Name: "eth0", AddressesWithPrefixLength: []netip.Prefix{netip.MustParsePrefix("192.0.2.10/24"), netip.MustParsePrefix("fe80::2/64")}},
			{Index: 3, Name: "eth1", AddressesWithPrefixLength: []netip.Prefix{netip.MustParsePrefix("198.51.100.10/24"), netip.MustParsePrefix("fe80::3/64")}},
		},
	}
	for _, n := range []string{"a", "b", "c"} {
		in.Nodes[n] = view.Node{Name: n, Labels: map[string]string{"name": n}}
	}
	return in
}

func editService(f func(*view.Service)) func(*Inputs) {
	return func(in *Inputs) {
		s := in.Services[webServiceKey]
		f(&s)
		in.Services[webServiceKey] = s
	}
}

func editNode(name string, f func(*view.Node)) func(*Inputs) {
	return func(in *Inputs) {
		n := in.Nodes[name]
		f(&n)
		in.Nodes[name] = n
	}
}

func editL2Advertisement(f func(*snapshot.L2Advertisement)) func(*Inputs) {
	return func(in *Inputs) { f(in.Snapshot.L2Advertisements[0]) }
}

// takeLinkDown takes a usable link of node a down.
func takeLinkDown(in *Inputs, i int) {
	l := in.UsableLinks[i]
	l.IsDown = true
	in.DownLinks, in.UsableLinks = facts.LinkSet{l}, slices.Delete(slices.Clone(in.UsableLinks), i, i+1)
}

func selectNodeByName(name string) []labels.Selector {
	return []labels.Selector{labels.SelectorFromSet(labels.Set{"name": name})}
}

func TestBidAndLayer2ReasonOfService(t *testing.T) {
	tests := map[string]struct {
		edit       func(*Inputs)
		candidates []string // sorted; nil if there is no bid
		links      []int
		reason     names.Reason
	}{
		"every node may hold the address":               {edit: func(*Inputs) {}, candidates: []string{"a", "b", "c"}, links: []int{2}, reason: names.ReasonNotHolder},
		"a Service of another class has no bid":         {edit: editService(func(s *view.Service) { s.LoadBalancerClass = "other" })},
		"without an address":                            {edit: editService(func(s *view.Service) { s.AssignedAddresses = nil }), reason: names.ReasonNoAddress},
		"an address of no pool":                         {edit: editService(func(s *view.Service) { s.AssignedAddresses = []netip.Addr{netip.MustParseAddr("203.0.113.1")} }), reason: names.ReasonAddressOutsidePools},
		"no advertisement":                              {edit: func(in *Inputs) { in.Snapshot.L2Advertisements = nil }, reason: names.ReasonNoAdvertisement},
		"an advertisement for other Services":           {edit: editL2Advertisement(func(ad *snapshot.L2Advertisement) { ad.ServiceSelectors = selectNodeByName("other") }), reason: names.ReasonNoAdvertisement},
		"no endpoints":                                  {edit: func(in *Inputs) { in.Endpoints = nil }, reason: names.ReasonNoEndpoints},
		"policy Local allows only nodes with endpoints": {edit: editService(func(s *view.Service) { s.HasLocalTrafficPolicy = true }), candidates: []string{"b"}, reason: names.ReasonNoLocalEndpoints},
		"a node selector allows only its nodes":         {edit: editL2Advertisement(func(ad *snapshot.L2Advertisement) { ad.NodeSelectors = selectNodeByName("c") }), candidates: []string{"c"}, reason: names.ReasonNoAdvertisement},
		"an excluded node":                              {edit: editNode("a", func(n *view.Node) { n.IsExcluded = true }), candidates: []string{"b", "c"}, reason: names.ReasonNodeExcluded},
		"a leaving node":                                {edit: editNode("b", func(n *view.Node) { n.IsLeaving = true }), candidates: []string{"a", "c"}, links: []int{2}, reason: names.ReasonNotHolder},
		"a node without network":                        {edit: editNode("a", func(n *view.Node) { n.NetworkUnavailable = true }), candidates: []string{"b", "c"}, reason: names.ReasonNodeNetworkUnavailable},
		"named links":                                   {edit: editL2Advertisement(func(ad *snapshot.L2Advertisement) { ad.Interfaces = []string{"eth1"} }), candidates: []string{"a", "b", "c"}, links: []int{3}, reason: names.ReasonNotHolder},
		"named links that this node does not have":      {edit: editL2Advertisement(func(ad *snapshot.L2Advertisement) { ad.Interfaces = []string{"eth9"} }), candidates: []string{"b", "c"}, reason: names.ReasonNoLinks},
		"no link's subnet covers the address":           {edit: func(in *Inputs) { in.UsableLinks[0].AddressesWithPrefixLength = nil }, candidates: []string{"a", "b", "c"}, links: []int{2, 3}, reason: names.ReasonNotHolder},
		"the link into the subnet is down":              {edit: func(in *Inputs) { takeLinkDown(in, 0) }, candidates: []string{"b", "c"}, reason: names.ReasonLinkDown},
		"another link is down":                          {edit: func(in *Inputs) { takeLinkDown(in, 1) }, candidates: []string{"a", "b", "c"}, links: []int{2}, reason: names.ReasonNotHolder},
		"raw sockets are not permitted":                 {edit: func(in *Inputs) { in.UsableLinks, in.RawSocketsDenied = nil, true }, candidates: []string{"b", "c"}, reason: names.ReasonRawSocketDenied},
		"a shared address and a service selector": {edit: func(in *Inputs) {
			editService(func(s *view.Service) { s.HasSharingAnnotation, s.Labels = true, map[string]string{"name": "x"} })(in)
			editL2Advertisement(func(ad *snapshot.L2Advertisement) { ad.ServiceSelectors = selectNodeByName("x") })(in)
		}, reason: names.ReasonSharedWithServiceSelector},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			in := exampleInputs()
			tc.edit(&in)
			p := buildPlan(in)
			var candidates []string
			var links []int
			if p.Bids.Len() > 0 {
				candidates, links = p.Bids.Slice()[0].Candidates.Nodes, p.Bids.Slice()[0].OwnLinkIndexes
			}
			if !reflect.DeepEqual(candidates, tc.candidates) || !reflect.DeepEqual(links, tc.links) {
				t.Errorf("the candidates are %v on links %v, want %v on %v", candidates, links, tc.candidates, tc.links)
			}
			var reason names.Reason
			if p.Layer2Verdicts.Len() > 0 {
				reason = p.Layer2Verdicts.Slice()[0].Reason
			}
			if reason != tc.reason {
				t.Errorf("the reason is %q, want %q", reason, tc.reason)
			}
		})
	}
}

func TestNodePreferenceWeightsAddUp(t *testing.T) {
	in := exampleInputs()
	in.Snapshot.L2Advertisements[0].Preferences = []snapshot.NodePreference{{Weight: 10, NodeSelector: selectNodeByName("c")[0]}, {Weight: 5, NodeSelector: selectNodeByName("b")[0]}, {Weight: 1, NodeSelector: labels.Everything()}}
	if got, want := buildPlan(in).Bids.Slice()[0].Candidates.PreferenceScores, []int{1, 6, 11}; !slices.Equal(got, want) {
		t.Errorf("the scores of a, b and c are %v, want %v", got, want)
	}
}

// The candidates of a bid depend neither on the node that builds the plan nor on the order of maps.
func TestCandidatesAreTheSameOnEveryNode(t *testing.T) {
	want := buildPlan(exampleInputs()).Bids.Slice()[0].Candidates
	for _, self := range []string{"a", "b", "c"} {
		in := exampleInputs()
		in.SelfNode, in.Nodes = self, maps.Clone(in.Nodes)
		if got := buildPlan(in).Bids.Slice()[0].Candidates; got.ContentHash != want.ContentHash || !slices.Equal(got.Nodes, want.Nodes) {
			t.Errorf("node %s sees the candidates %v, node a %v", self, got, want)
		}
	}
}

func TestOneNodeServesAllServicesOfAnAddress(t *testing.T) {
	in := exampleInputs()
	other := view.ObjectKey{Namespace: "default", Name: "other"}
	in.Services[other] = view.Service{Key: other, IsLoadBalancer: true, AssignedAddresses: []netip.Addr{serviceAddress}, HasLocalTrafficPolicy: true}
	in.Endpoints[other] = view.Endpoints{Service: other, AnyServing: true, ServingNodes: []string{"c"}}
	p := buildPlan(in)
	if p.Bids.Len() != 1 || !slices.Equal(p.Bids.Slice()[0].Candidates.Nodes, []string{"c"}) {
		t.Errorf("the bids are %v, want one with only node c, which can serve both", p.Bids)
	}
}
