package announcedcondition

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/controller/configurationreader"
	"github.com/gantry-lb/gantry/internal/advertise"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/plan"
	"github.com/gantry-lb/gantry/speaker/status"
)

// linkedNode is a node with links, as its speaker sees them.
type linkedNode struct {
	view.Node
	usableLinks, downLinks facts.LinkSet
}

// newLinkedNode returns a node with up to three links in up to two subnets each.
func newLinkedNode(g *rand.Rand, i int) linkedNode {
	n := linkedNode{Node: view.Node{Name: fmt.Sprint("node", i), InternalAddresses: []netip.Addr{netip.MustParseAddr("2001:db8::1")}}}
	subnets := []string{"192.0.2.9/24", "172.31.0.9/16", "fd00:1::9/64", "fe80::9/64", "192.0.2.77/32"}
	for j := range g.IntN(4) {
		l := facts.Link{Index: j + 2, Name: fmt.Sprint("eth", j), MAC: facts.MAC{2, 0, 0, 0, byte(i), byte(j)}, IsDown: g.IntN(3) == 0, CannotSendIPv6: g.IntN(8) == 0}
		if g.IntN(10) == 0 {
			l.MAC = facts.MAC{0, 0, 0x5e, 0, 1, byte(j)}
		}
		for range 1 + g.IntN(2) {
			l.AddressesWithPrefixLength = append(l.AddressesWithPrefixLength, netip.MustParsePrefix(subnets[g.IntN(len(subnets))]))
		}
		if l.IsDown {
			n.downLinks = append(n.downLinks, l)
		} else {
			n.usableLinks = append(n.usableLinks, l)
		}
	}
	return n
}

// planAnnouncementOnNode returns what the planner of one of the nodes decides, and what its speaker
// writes.
func planAnnouncementOnNode(self linkedNode, nodes []linkedNode, s *snapshot.Snapshot, v *view.Service) (names.Reason, *v1alpha1.SpeakerStatusStatus) {
	in := plan.Inputs{
		SelfNode: self.Name, Snapshot: s, Services: map[view.ObjectKey]view.Service{v.Key: *v}, Nodes: map[string]view.Node{},
		Endpoints: map[view.ObjectKey]view.Endpoints{v.Key: {Service: v.Key, AnyServing: true}}, PublishedLinksByNode: map[string]*facts.PublishedLinks{},
		UsableLinks: self.usableLinks, DownLinks: self.downLinks,
	}
	for _, n := range nodes {
		if in.Nodes[n.Name] = n.Node; n.Name != self.Name {
			in.PublishedLinksByNode[n.Name] = facts.NewPublishedLinks(n.usableLinks, n.downLinks)
		}
	}
	p := plan.NewPlanner(in)
	p.Update()
	out := status.StatusInputs{Self: self.Name, Plan: p.Plan(), UsableLinks: self.usableLinks, DownLinks: self.downLinks, HeldAddressConflicts: &status.Conflicts{}, AcquireConflicts: &status.Conflicts{}}
	for _, l := range self.downLinks {
		out.SkippedLinks = append(out.SkippedLinks, facts.SkippedLink{Name: l.Name, Reason: facts.SkippedDownOrNoCarrier})
	}
	written := status.BuildSpeakerStatus(out)
	for verdict := range p.Plan().Layer2Verdicts.All() {
		return verdict.Reason, &written
	}
	return "", &written
}

// TestControllerAndSpeakerPlannerAgreeOnLinkFaults compares what the controller makes of the
// SpeakerStatuses with the decisions of the speakers that wrote them.
func TestControllerAndSpeakerPlannerAgreeOnLinkFaults(t *testing.T) {
	counts := map[names.Reason]int{}
	for seed := range uint64(4000) {
		g := rand.New(rand.NewPCG(seed, 0))
		address := []netip.Addr{netip.MustParseAddr("192.0.2.10"), netip.MustParseAddr("fd00:1::10")}[g.IntN(2)]
		ad := &snapshot.L2Advertisement{Name: "all", Pools: []string{"pool"}}
		if g.IntN(4) == 0 {
			ad.Interfaces = []string{"eth1"}
		}
		s := &snapshot.Snapshot{Pools: []*snapshot.Pool{{Name: "pool", Ranges: []snapshot.Range{{First: address, Last: address}}}}, L2Advertisements: []*snapshot.L2Advertisement{ad}}
		v := view.Service{Key: view.ObjectKey{Namespace: "default", Name: "web"}, IsLoadBalancer: true, AssignedAddresses: []netip.Addr{address}}
		config := &configurationreader.Configuration{Snapshot: s}
		var nodes []linkedNode
		for i := range 1 + g.IntN(3) {
			nodes = append(nodes, newLinkedNode(g, i))
			config.Nodes = append(config.Nodes, snapshot.NodeLabels{Name: nodes[i].Name})
		}
		reasons, speakers := map[string]names.Reason{}, map[string]*v1alpha1.SpeakerStatusStatus{}
		for _, n := range nodes {
			reasons[n.Name], speakers[n.Name] = planAnnouncementOnNode(n, nodes, s, &v)
		}
		svc := advertise.ServiceFromView(&v)
		states := newNodeStates(config, &v, &view.Endpoints{AnyServing: true}, speakers, nil)
		for i, e := range advertise.ExplainAnnouncementPerNode(s, &svc, states, false) {
			want := reasons[e.Node]
			if want == names.ReasonNotHolder {
				want = ""
			}
			counts[want]++
			// A node without any address looks like an older speaker, which does not describe its
			// links.
			if states[i].Links == nil && len(nodes[i].usableLinks) > 0 {
				continue
			}
			if e.Layer2Fault.Reason != want {
				t.Fatalf("cluster %d: the planner of %s decides %q for %s, and the controller says %q (%s)\n%+v", seed, e.Node, want, address, e.Layer2Fault.Reason, e.Layer2Fault.Text, nodes)
			}
		}
	}
	for _, reason := range []names.Reason{"", names.ReasonNoLinks, names.ReasonLinkDown, names.ReasonNoAddressFamily} {
		if counts[reason] < 50 {
			t.Errorf("only %d nodes have the reason %q: %v", counts[reason], reason, counts)
		}
	}
}
