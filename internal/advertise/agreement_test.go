package advertise_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/advertise"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/plan"
)

// clusterGenerator makes small clusters in which advertisements often fail to meet Services and
// nodes.
type clusterGenerator struct{ *rand.Rand }

// chooseFewSelectors returns selectors of a value of a label, or often none.
func (g clusterGenerator) chooseFewSelectors(key string) []labels.Selector {
	var out []labels.Selector
	for range max(0, g.IntN(4)-1) {
		out = append(out, labels.SelectorFromSet(labels.Set{key: fmt.Sprint(g.IntN(3))}))
	}
	return out
}

func (g clusterGenerator) chooseRandomSubset(from ...string) []string {
	var out []string
	for _, x := range from {
		if g.IntN(2) == 0 {
			out = append(out, x)
		}
	}
	return out
}

// newSnapshot returns three pools with some advertisements and peers.
func (g clusterGenerator) newSnapshot() *snapshot.Snapshot {
	s := &snapshot.Snapshot{}
	for i, a := range poolAddresses {
		s.Pools = append(s.Pools, &snapshot.Pool{Name: poolNames[i], Ranges: []snapshot.Range{{First: a, Last: a.Next()}}})
	}
	for i := range g.IntN(3) {
		s.L2Advertisements = append(s.L2Advertisements, &snapshot.L2Advertisement{
			Name: fmt.Sprint("l2-", i), Pools: g.chooseRandomSubset(poolNames...), NodeSelectors: g.chooseFewSelectors("rack"), ServiceSelectors: g.chooseFewSelectors("app"),
		})
	}
	for i := range g.IntN(4) {
		s.BGPAdvertisements = append(s.BGPAdvertisements, g.newBGPAdvertisement(i))
	}
	for i := range g.IntN(3) {
		p := &snapshot.Peer{
			Name: fmt.Sprint("peer-", i), Address: netip.MustParseAddr(fmt.Sprint("198.51.100.", i+1)), Port: 179, DualStack: g.IntN(4) == 0,
			NodeSelectors: g.chooseFewSelectors("rack"),
		}
		if g.IntN(4) == 0 {
			p.Address = netip.MustParseAddr(fmt.Sprint("2001:db8::", i+1))
		}
		s.Peers = append(s.Peers, p)
	}
	return s
}

func (g clusterGenerator) newBGPAdvertisement(i int) *snapshot.BGPAdvertisement {
	ad := &snapshot.BGPAdvertisement{
		Name: fmt.Sprint("bgp-", i), Pools: g.chooseRandomSubset(poolNames...), NodeSelectors: g.chooseFewSelectors("rack"), ServiceSelectors: g.chooseFewSelectors("app"),
		PrefixLengthIPv4: 32 - g.IntN(2), PrefixLengthIPv6: 128, LocalPref: uint32(g.IntN(4) / 3),
	}
	if g.IntN(2) == 0 {
		ad.Peers = g.chooseRandomSubset("peer-0", "peer-1")
	}
	if g.IntN(2) == 0 {
		for j := range 200 + 150*g.IntN(2) {
			ad.Communities = append(ad.Communities, snapshot.Community{Large: true, FirstPart: uint32(i), ThirdPartOfLarge: uint32(j)})
		}
	}
	return ad
}

var (
	poolNames     = []string{"p", "q", "six"}
	poolAddresses = []netip.Addr{netip.MustParseAddr("192.0.2.10"), netip.MustParseAddr("192.0.2.20"), netip.MustParseAddr("fd00:1::1")}
	webServiceKey = view.ObjectKey{Namespace: "default", Name: "web"}
)

func (g clusterGenerator) newService() view.Service {
	v := view.Service{Key: webServiceKey, IsLoadBalancer: true, Labels: map[string]string{"app": fmt.Sprint(g.IntN(3))}, HasSharingAnnotation: g.IntN(4) == 0}
	for _, a := range poolAddresses {
		if g.IntN(2) == 0 {
			v.AssignedAddresses = append(v.AssignedAddresses, a)
		}
	}
	if g.IntN(10) == 0 || len(v.AssignedAddresses) == 0 {
		v.AssignedAddresses = append(v.AssignedAddresses, netip.MustParseAddr("203.0.113.1"))
		v.RecordedPool = []string{"", "p"}[g.IntN(2)]
	}
	return v
}

func (g clusterGenerator) newNodes() []snapshot.NodeLabels {
	var out []snapshot.NodeLabels
	for i := range 1 + g.IntN(3) {
		n := snapshot.NodeLabels{Name: fmt.Sprint("node-", i), Labels: map[string]string{"rack": fmt.Sprint(g.IntN(3))}}
		if g.IntN(4) == 0 {
			n.Labels[names.LabelExcludeNode] = ""
		}
		out = append(out, n)
	}
	return out
}

// plannerAnnouncesService says whether the planner of a node lets it announce the Service.
// Endpoints, links and raw sockets are in order.
func plannerAnnouncesService(s *snapshot.Snapshot, v view.Service, nodes []snapshot.NodeLabels, self string) bool {
	in := plan.Inputs{
		SelfNode: self, Snapshot: s, Services: map[view.ObjectKey]view.Service{v.Key: v}, Nodes: map[string]view.Node{},
		Endpoints:   map[view.ObjectKey]view.Endpoints{v.Key: {Service: v.Key, AnyServing: true}},
		UsableLinks: facts.LinkSet{{Index: 2, Name: "eth0", AddressesWithPrefixLength: []netip.Prefix{netip.MustParsePrefix("192.0.2.9/24"), netip.MustParsePrefix("fe80::9/64")}}},
	}
	for _, n := range nodes {
		_, excluded := n.Labels[names.LabelExcludeNode]
		excluded = excluded && !s.IgnoresExcludeLabel
		in.Nodes[n.Name] = view.Node{Name: n.Name, Labels: n.Labels, IsExcluded: excluded}
	}
	p := plan.NewPlanner(in)
	p.Update()
	for b := range p.Plan().Bids.All() {
		if b.IsCandidate(self) && len(b.OwnLinkIndexes) > 0 {
			return true
		}
	}
	return len(p.Plan().Routes) > 0 && !p.Plan().NodeLeaving
}

// TestExplainAgreesWithSpeakerPlanners compares the controller with the planners of all nodes.
func TestExplainAgreesWithSpeakerPlanners(t *testing.T) {
	counts := map[names.Reason]int{}
	for seed := range uint64(5000) {
		g := clusterGenerator{rand.New(rand.NewPCG(seed, 0))}
		s, v, nodes := g.newSnapshot(), g.newService(), g.newNodes()
		s.IgnoresExcludeLabel = g.IntN(4) == 0
		svc := advertise.ServiceFromView(&v)
		why := advertise.ExplainUnannouncedService(s, &svc, nodes)
		reason := why.Reason
		counts[reason]++
		announcing := ""
		for _, n := range nodes {
			if plannerAnnouncesService(s, v, nodes, n.Name) {
				announcing = n.Name
			}
		}
		if (reason == "") != (announcing != "") {
			t.Fatalf("cluster %d: the condition says %q (%s), and the node that announces is %q", seed, reason, why.Text, announcing)
		}
	}
	// Clusters that never fail for a reason would prove nothing of it.
	for _, reason := range []names.Reason{
		"", names.ReasonAddressOutsidePools, names.ReasonNoAdvertisement, names.ReasonSharedWithServiceSelector, names.ReasonNodeExcluded,
		names.ReasonNoPeers, names.ReasonConflictingAdvertisements, names.ReasonTooManyCommunities,
	} {
		if counts[reason] < 20 {
			t.Errorf("only %d clusters have the reason %q: %v", counts[reason], reason, counts)
		}
	}
}
