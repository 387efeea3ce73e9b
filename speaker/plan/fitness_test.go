package plan

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/facts"
)

// setUnfitNodes makes nodes unfit. All nodes of the example live.
func setUnfitNodes(in *Inputs, f facts.Fitness, nodes ...string) {
	in.FitnessOfNodes = FitnessOfNodes{UnfitOrDoubtfulNodes: map[string]facts.Fitness{}, LiveMembers: []string{"a", "b", "c"}}
	for _, n := range nodes {
		in.FitnessOfNodes.UnfitOrDoubtfulNodes[n] = f
	}
}

func TestUnfitNodeIsNoCandidateWhileFitNodeLives(t *testing.T) {
	silentProxy := facts.Fitness{NodeFault: string(names.ReasonServiceProxySilent)}
	silentLink := facts.Fitness{SilentSubnets: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}
	otherLink := facts.Fitness{SilentSubnets: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}}
	for name, tt := range map[string]struct {
		edit       func(*Inputs)
		candidates []string
		reason     names.Reason // of this node
		isInGrace  bool
	}{
		"another node is unfit": {func(in *Inputs) { setUnfitNodes(in, silentProxy, "b") }, []string{"a", "c"}, names.ReasonNotHolder, false},
		"this node is unfit":    {func(in *Inputs) { setUnfitNodes(in, silentProxy, "a") }, []string{"b", "c"}, names.ReasonServiceProxySilent, true},
		"no node is fit":        {func(in *Inputs) { setUnfitNodes(in, silentProxy, "a", "b", "c") }, []string{"a", "b", "c"}, names.ReasonNotHolder, false},
		"the others may be about to be unfit": {func(in *Inputs) {
			setUnfitNodes(in, silentProxy, "a")
			in.FitnessOfNodes.UnfitOrDoubtfulNodes["b"], in.FitnessOfNodes.UnfitOrDoubtfulNodes["c"] = facts.Fitness{IsDoubtful: true}, facts.Fitness{IsDoubtful: true}
		}, []string{"a", "b", "c"}, names.ReasonNotHolder, false},
		"its link is silent":            {func(in *Inputs) { setUnfitNodes(in, silentLink, "a") }, []string{"b", "c"}, names.ReasonLinkSilent, true},
		"a link of other addresses is":  {func(in *Inputs) { setUnfitNodes(in, otherLink, "a") }, []string{"a", "b", "c"}, names.ReasonNotHolder, false},
		"no fit node has a live member": {func(in *Inputs) { setUnfitNodes(in, silentProxy, "a"); in.FitnessOfNodes.LiveMembers = []string{"a"} }, []string{"a", "b", "c"}, names.ReasonNotHolder, false},
		"the kubelet of this node is silent": {func(in *Inputs) {
			setUnfitNodes(in, silentProxy)
			editNode("a", func(n *view.Node) { n.IsKubeletSilent = true })(in)
		}, []string{"b", "c"}, names.ReasonKubeletSilent, true},
		"policy Local, and the other endpoints are on an unfit node": {func(in *Inputs) {
			setUnfitNodes(in, silentProxy, "a", "b")
			editService(func(s *view.Service) { s.HasLocalTrafficPolicy = true })(in)
			in.Endpoints[webServiceKey] = view.Endpoints{Service: webServiceKey, AnyServing: true, ServingNodes: []string{"a", "b"}, EndpointCountsOfServingNodes: []int{1, 1}}
		}, []string{"a", "b"}, names.ReasonNotHolder, false},
	} {
		t.Run(name, func(t *testing.T) {
			in := exampleInputs()
			tt.edit(&in)
			p := buildPlan(in)
			b, v := p.Bids.Slice()[0], p.Layer2Verdicts.Slice()[0]
			if !slices.Equal(b.Candidates.Nodes, tt.candidates) || b.InEndpointGracePeriod != tt.isInGrace || v.Reason != tt.reason {
				t.Errorf("the candidates are %v, this node is in its grace period: %t, because of %s; want %v, %t, %s", b.Candidates.Nodes, b.InEndpointGracePeriod, v.Reason, tt.candidates, tt.isInGrace, tt.reason)
			}
			if tt.isInGrace == (len(b.OwnLinkIndexes) > 0) {
				t.Errorf("the links are %v", b.OwnLinkIndexes)
			}
		})
	}
}

func TestUnfitNodeAnnouncesNoRouteWhileFitNodeDoes(t *testing.T) {
	silentProxy := facts.Fitness{NodeFault: string(names.ReasonServiceProxySilent)}
	for name, tt := range map[string]struct {
		edit func(*Inputs)
		want names.Reason
	}{
		"this node is unfit":    {func(in *Inputs) { setUnfitNodes(in, silentProxy, "a") }, names.ReasonServiceProxySilent},
		"another node is unfit": {func(in *Inputs) { setUnfitNodes(in, silentProxy, "b") }, names.ReasonAnnounced},
		"no node is fit":        {func(in *Inputs) { setUnfitNodes(in, silentProxy, "a", "b", "c") }, names.ReasonAnnounced},
		"the fit nodes have no peer": {func(in *Inputs) {
			setUnfitNodes(in, silentProxy, "a")
			in.Snapshot.Peers[0].NodeSelectors, in.Snapshot.Peers[1].NodeSelectors = selectNodeByName("a"), selectNodeByName("a")
		}, names.ReasonAnnounced},
		"the fit nodes are excluded": {func(in *Inputs) {
			setUnfitNodes(in, silentProxy, "a")
			editNode("b", func(n *view.Node) { n.IsExcluded = true })(in)
			editNode("c", func(n *view.Node) { n.IsLeaving = true })(in)
		}, names.ReasonAnnounced},
		"policy Local, with endpoints only here": {func(in *Inputs) {
			setUnfitNodes(in, silentProxy, "a")
			editService(func(s *view.Service) { s.HasLocalTrafficPolicy = true })(in)
			in.Endpoints[webServiceKey] = view.Endpoints{Service: webServiceKey, AnyServing: true, ServingNodes: []string{"a"}, EndpointCountsOfServingNodes: []int{1}}
		}, names.ReasonAnnounced},
	} {
		t.Run(name, func(t *testing.T) {
			in := inputsWithPeers()
			tt.edit(&in)
			if v := soleBGPVerdict(t, in); v.Reason != tt.want {
				t.Errorf("the reason is %s, want %s", v.Reason, tt.want)
			}
		})
	}
}

func TestLiveMembersMatterOnlyIfNodeIsUnfit(t *testing.T) {
	p := NewPlanner(exampleInputs())
	p.Update()
	p.SetFitnessOfNodes(FitnessOfNodes{LiveMembers: []string{"a", "b"}})
	if p.mustReplanAll {
		t.Error("everything is decided again, although every node is fit")
	}
	p.SetFitnessOfNodes(FitnessOfNodes{LiveMembers: []string{"a", "b"}, UnfitOrDoubtfulNodes: map[string]facts.Fitness{"a": {NodeFault: "x"}}})
	if d := p.Update(); len(d.ChangedBids) != 1 || p.Plan().NodeUnfitReason != "x" {
		t.Errorf("the delta is %+v, and this node is unfit because of %q", d, p.Plan().NodeUnfitReason)
	}
	p.SetFitnessOfNodes(FitnessOfNodes{LiveMembers: []string{"a"}, UnfitOrDoubtfulNodes: map[string]facts.Fitness{"a": {NodeFault: "x"}}})
	if d := p.Update(); len(d.ChangedBids) != 1 || !d.ChangedBids[0].IsCandidate("a") {
		t.Errorf("after the last fit node died, the delta is %+v", d)
	}
}
