package plan

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/facts"
)

func TestRequestedHolderIsPreferred(t *testing.T) {
	for name, tt := range map[string]struct {
		edit func(*Inputs)
		// isPreferred says whether node b comes first. fault is a part of the text.
		isPreferred bool
		fault       string
	}{
		"it may hold the addresses": {func(*Inputs) {}, true, ""},
		"it does not exist":         {func(in *Inputs) { delete(in.Nodes, "b") }, false, "there is no node"},
		"it is excluded":            {editNode("b", func(n *view.Node) { n.IsExcluded = true }), false, string(names.ReasonNodeExcluded)},
		"it is leaving":             {editNode("b", func(n *view.Node) { n.IsLeaving = true }), false, string(names.ReasonNodeLeaving)},
		"it has no local endpoint": {func(in *Inputs) {
			editService(func(s *view.Service) { s.HasLocalTrafficPolicy = true })(in)
			e := in.Endpoints[webServiceKey]
			e.ServingNodes = []string{"c"}
			in.Endpoints[webServiceKey] = e
		}, false, string(names.ReasonNoLocalEndpoints)},
		"no advertisement selects it": {func(in *Inputs) { in.Snapshot.L2Advertisements[0].NodeSelectors = selectNodeByName("a") }, false, string(names.ReasonNoAdvertisement)},
		"its kube-proxy is silent": {func(in *Inputs) {
			setUnfitNodes(in, facts.Fitness{NodeFault: string(names.ReasonServiceProxySilent)}, "b")
		}, false, string(names.ReasonServiceProxySilent)},
		"no link of it reaches them": {func(in *Inputs) {
			in.PublishedLinksByNode = map[string]*facts.PublishedLinks{"b": publishedLinksWithOneLink("eth0", "203.0.113.11/24")}
		}, false, string(names.ReasonNoLinks)},
		"its speaker does not run": {func(in *Inputs) { in.FitnessOfNodes.LiveMembers = []string{"a", "c"} }, true, "does not run"},
		"its speaker runs":         {func(in *Inputs) { in.FitnessOfNodes.LiveMembers = []string{"a", "b"} }, true, ""},
	} {
		t.Run(name, func(t *testing.T) {
			in := exampleInputs()
			editService(func(s *view.Service) { s.RequestedHolder = "b" })(&in)
			tt.edit(&in)
			p := buildPlan(in)
			b, v := p.Bids.Slice()[0], p.Layer2Verdicts.Slice()[0]
			i := slices.Index(b.Candidates.Nodes, "b")
			isPreferred := i >= 0 && b.Candidates.PreferenceScores[i] == slices.Max(b.Candidates.PreferenceScores) && b.MayRebalance && slices.Min(append(slices.Clone(b.Candidates.PreferenceScores), 0)) < b.Candidates.PreferenceScores[i]
			if isPreferred != tt.isPreferred || v.RequestedHolderFault.IsSet() != (tt.fault != "") || !strings.Contains(v.RequestedHolderFault.Text, tt.fault) {
				t.Errorf("the candidates are %+v, the fault is %+v; want it preferred: %t, a fault with %q", b.Candidates, v.RequestedHolderFault, tt.isPreferred, tt.fault)
			}
		})
	}
}

func TestHolderRequestIsDecidedAgainWhenMembersChange(t *testing.T) {
	in := exampleInputs()
	editService(func(s *view.Service) { s.RequestedHolder = "b" })(&in)
	p := NewPlanner(in)
	p.Update()
	p.SetFitnessOfNodes(FitnessOfNodes{LiveMembers: []string{"a"}})
	p.Update()
	if v := p.Plan().Layer2Verdicts.Slice()[0]; !v.RequestedHolderFault.IsSet() {
		t.Error("the verdict does not say that the requested node has no speaker")
	}
}

// twoFamilyInputs has a Service with an address of each family. The links of node c have only IPv4.
func twoFamilyInputs() (in Inputs, ipv6Address netip.Addr) {
	ipv6Address, in = netip.MustParseAddr("2001:db8::1"), exampleInputs()
	in.Snapshot.Pools[0].Ranges = append(in.Snapshot.Pools[0].Ranges, snapshot.Range{First: ipv6Address, Last: ipv6Address})
	in.UsableLinks[0].AddressesWithPrefixLength = append(in.UsableLinks[0].AddressesWithPrefixLength, netip.MustParsePrefix("2001:db8::a/64"))
	in.PublishedLinksByNode = map[string]*facts.PublishedLinks{
		"b": publishedLinksWithOneLink("eth0", "192.0.2.11/24", "2001:db8::b/64"), "c": publishedLinksWithOneLink("eth0", "192.0.2.12/24"),
	}
	editService(func(s *view.Service) { s.AssignedAddresses = []netip.Addr{serviceAddress, ipv6Address} })(&in)
	return in, ipv6Address
}

func TestRequestedHolderGetsOnlyTheAddressesThatItsLinksReach(t *testing.T) {
	in, ipv6Address := twoFamilyInputs()
	editService(func(s *view.Service) { s.RequestedHolder = "c" })(&in)
	p := buildPlan(in)
	for _, b := range p.Bids.Slice() {
		if canMove := b.Address != ipv6Address; b.IsCandidate("c") != canMove || b.MayRebalance != canMove {
			t.Errorf("the candidates for %s are %v, and it may move: %t", b.Address, b.Candidates.Nodes, b.MayRebalance)
		}
	}
	if v := p.Layer2Verdicts.Slice()[0]; !strings.Contains(v.RequestedHolderFault.Text, string(names.ReasonNoLinks)) {
		t.Errorf("the fault is %+v, want one that names %s", v.RequestedHolderFault, names.ReasonNoLinks)
	}
	in.SelfNode, in.PublishedLinksByNode = "c", nil
	in.UsableLinks = facts.LinkSet{{Index: 2, Name: "eth0", AddressesWithPrefixLength: []netip.Prefix{netip.MustParsePrefix("192.0.2.12/24")}}}
	if v := buildPlan(in).Layer2Verdicts.Slice()[0]; v.RequestedHolderFault.IsSet() {
		t.Errorf("the requested node reports about itself: %+v", v.RequestedHolderFault)
	}
}

func TestNodeWithSilentLinkIsLeftOutForTheAddressesOfThisLink(t *testing.T) {
	in, ipv6Address := twoFamilyInputs()
	setUnfitNodes(&in, facts.Fitness{SilentSubnets: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}, "a")
	p := buildPlan(in)
	if four, six := candidateNodesOfAddress(p, serviceAddress), candidateNodesOfAddress(p, ipv6Address); !slices.Equal(four, []string{"b", "c"}) || !slices.Equal(six, []string{"a", "b"}) {
		t.Errorf("the candidates are %v and %v, want b and c, a and b", four, six)
	}
	if v := p.Layer2Verdicts.Slice()[0]; !v.IsSelfCandidate {
		t.Errorf("the verdict is %+v, want this node to be a candidate for the IPv6 address", v)
	}
}
