package plan

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// After any changes in any order, the Plan equals the one that buildPlan makes from the present
// inputs, and the Deltas lead from one Plan to the next.
func TestIncrementalPlanEqualsRebuiltPlan(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		first := exampleInputs()
		p := NewPlanner(first)
		bids := map[netip.Addr]bool{}
		name := rapid.SampledFrom([]string{"web", "mail", "dns"})
		node := rapid.SampledFrom([]string{"a", "b", "c", "d"})
		for range rapid.IntRange(1, 12).Draw(t, "changes") {
			key := view.ObjectKey{Namespace: "default", Name: name.Draw(t, "service")}
			switch rapid.IntRange(0, 8).Draw(t, "change") {
			case 0:
				a := serviceAddress
				if rapid.Bool().Draw(t, "other address") {
					a = serviceAddress.Next()
				}
				p.SetService(view.Service{Key: key, IsLoadBalancer: true, AssignedAddresses: []netip.Addr{a}, HasLocalTrafficPolicy: rapid.Bool().Draw(t, "local")})
			case 1:
				p.RemoveService(key)
			case 2:
				n := node.Draw(t, "endpoint")
				p.SetEndpoints(view.Endpoints{Service: key, AnyServing: true, ServingNodes: []string{n}, ReadyNodes: []string{n}})
			case 3:
				p.SetEndpoints(view.Endpoints{Service: key})
			case 4:
				n := node.Draw(t, "node")
				p.SetNode(view.Node{Name: n, Labels: map[string]string{"name": n}, IsExcluded: rapid.Bool().Draw(t, "excluded")})
			case 5:
				p.RemoveNode(node.Draw(t, "removed"))
			case 6:
				all := slices.Concat(p.Inputs().UsableLinks, p.Inputs().DownLinks)
				usable := rapid.IntRange(0, len(all)).Draw(t, "links")
				p.SetLinks(all[:usable], all[usable:])
				p.SetPublishedLinksOfNodes(map[string]*facts.PublishedLinks{node.Draw(t, "node with links"): publishedLinksWithOneLink("eth0", "192.0.2.11/24")})
			case 7:
				s := *first.Snapshot
				s.L2Advertisements = []*snapshot.L2Advertisement{{Name: "ad", Pools: []string{"p"}, NodeSelectors: selectNodeByName(node.Draw(t, "selected"))}}
				p.SetSnapshot(&s)
			case 8:
				answerHealthCheck(facts.ServiceHealthCheckOutcome(rapid.IntRange(1, 3).Draw(t, "outcome")))(p)
			}
			var d BidDelta
			if p.NeedsUpdate() { // without a need the plan stays right
				d = p.Update()
			}
			for _, b := range d.ChangedBids {
				bids[b.Address] = true
			}
			for _, a := range d.AddressesWithoutBid {
				delete(bids, a)
			}
			if want := buildPlan(p.Inputs()); !haveEqualLayer2Plans(p.Plan(), want) {
				t.Fatalf("the plan is %+v, built from its inputs it is %+v", p.Plan(), want)
			}
			if len(bids) != p.Plan().Bids.Len() {
				t.Fatalf("the deltas lead to %d bids, the plan has %d", len(bids), p.Plan().Bids.Len())
			}
		}
	})
}

// A new condition of a Service, or the heartbeat of a node, changes no plan. With 1,000 Services a
// takeover causes thousands of such events on every node.
func TestEventsWithoutAChangeNeedNoUpdate(t *testing.T) {
	in := exampleInputs()
	p := NewPlanner(in)
	if !p.NeedsUpdate() {
		t.Error("a planner that has decided nothing needs no update")
	}
	p.Update()
	for _, s := range in.Services {
		p.SetService(s)
	}
	for _, e := range in.Endpoints {
		p.SetEndpoints(e)
	}
	for _, n := range in.Nodes {
		p.SetNode(n)
	}
	if p.NeedsUpdate() {
		t.Error("objects that are as before need an update")
	}
	for _, s := range in.Services {
		s.AssignedAddresses = nil
		p.SetService(s)
	}
	if !p.NeedsUpdate() {
		t.Error("Services without their addresses need no update")
	}
}

func haveEqualLayer2Plans(x, y Plan) bool {
	return slices.EqualFunc(x.Bids.Slice(), y.Bids.Slice(), intent.Bid.Equal) && reflect.DeepEqual(x.Layer2Verdicts.Slice(), y.Layer2Verdicts.Slice())
}

// Once endpoints are ready elsewhere, the node is no candidate, although its
// terminating endpoints still serve.
func TestNodeStaysCandidateUntilOthersReady(t *testing.T) {
	in := exampleInputs()
	editService(func(s *view.Service) { s.HasLocalTrafficPolicy = true })(&in)
	for _, c := range []struct {
		nodes, ready []string
		eligible     bool
		grace        bool
	}{
		{[]string{"a"}, []string{"a"}, true, false},
		{[]string{"a"}, nil, true, false}, // no node has ready endpoints
		{[]string{"a", "b"}, []string{"b"}, false, true},
		{[]string{"b"}, []string{"b"}, false, false},
	} {
		in.Endpoints[webServiceKey] = view.Endpoints{Service: webServiceKey, AnyServing: true, ServingNodes: c.nodes, ReadyNodes: c.ready}
		p := buildPlan(in)
		b := p.Bids.Slice()[0]
		if b.IsCandidate("a") != c.eligible || b.InEndpointGracePeriod != c.grace {
			t.Errorf("with endpoints on %v, ready ones on %v: eligible %v, grace %v", c.nodes, c.ready, b.IsCandidate("a"), b.InEndpointGracePeriod)
		}
		if want := names.ReasonNoLocalEndpoints; !c.eligible && p.Layer2Verdicts.Slice()[0].Reason != want {
			t.Errorf("the reason is %s, want %s", p.Layer2Verdicts.Slice()[0].Reason, want)
		}
	}
}

// largeInputs is a cluster of 100 nodes with n Services.
func largeInputs(n int) Inputs {
	first := netip.MustParseAddr("10.0.0.0")
	in := Inputs{
		SelfNode:    "node-000",
		Snapshot:    &snapshot.Snapshot{Pools: []*snapshot.Pool{{Name: "p", Ranges: []snapshot.Range{{First: first, Last: netip.MustParseAddr("10.255.255.255")}}}}, L2Advertisements: []*snapshot.L2Advertisement{{Name: "ad", Pools: []string{"p"}}}},
		Services:    map[view.ObjectKey]view.Service{},
		Endpoints:   map[view.ObjectKey]view.Endpoints{},
		Nodes:       map[string]view.Node{},
		UsableLinks: exampleInputs().UsableLinks,
	}
	for i := range 100 {
		name := fmt.Sprintf("node-%03d", i)
		in.Nodes[name] = view.Node{Name: name, Labels: map[string]string{"kubernetes.io/hostname": name}}
	}
	for i := range n {
		k := view.ObjectKey{Namespace: "default", Name: fmt.Sprintf("service-%05d", i)}
		first = first.Next()
		in.Services[k] = view.Service{Key: k, IsLoadBalancer: true, AssignedAddresses: []netip.Addr{first}}
		in.Endpoints[k] = view.Endpoints{Service: k, AnyServing: true, ServingNodes: []string{"node-001"}, ReadyNodes: []string{"node-001"}}
	}
	return in
}

// This plans one Service whose endpoints come and go, among 10,000 in a cluster of 100 nodes.
func BenchmarkChangeOfOneServiceAmong10000(b *testing.B) {
	p := NewPlanner(largeInputs(10000))
	p.Update()
	k := view.ObjectKey{Namespace: "default", Name: "service-05000"}
	longest := time.Duration(0)
	for i := 0; b.Loop(); i++ {
		p.SetEndpoints(view.Endpoints{Service: k, AnyServing: i%2 == 1})
		begun := time.Now()
		if d := p.Update(); len(d.ChangedBids)+len(d.AddressesWithoutBid) != 1 {
			b.Fatalf("the delta is %v", d)
		}
		longest = max(longest, time.Since(begun))
	}
	b.ReportMetric(float64(longest.Microseconds())/1000, "ms-longest")
}

// This plans all Services again, as when a node is added.
func BenchmarkReplanOf10000Services(b *testing.B) {
	p := NewPlanner(largeInputs(10000))
	for i := 0; b.Loop(); i++ {
		p.SetNode(view.Node{Name: "node-new", IsExcluded: i%2 == 0})
		p.Update()
	}
}
