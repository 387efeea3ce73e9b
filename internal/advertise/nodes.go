package advertise

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
)

// NodeStateForService is what is known of a node that may announce a Service.
type NodeStateForService struct {
	snapshot.NodeLabels
	// Fault is why the node announces nothing at all. It is zero if it may announce.
	Fault names.Explanation
	// Layer2Fault is why the node announces nothing by layer 2. It is zero if it may.
	Layer2Fault names.Explanation
	// Links are the links that are usable, or only down. It is nil if they are not known.
	Links []LinkState
	// HasEndpoints says that an endpoint of the Service serves on the node. IsProxyBehind says that
	// kube-proxy on the node does not know it yet.
	HasEndpoints, IsProxyBehind bool
	// SessionFaultByPeer has the reason for each BGPPeer whose router gets no route from the node.
	SessionFaultByPeer map[string]names.Explanation
}

// LocalTrafficPolicy says whether only nodes with an endpoint announce the Service.
type LocalTrafficPolicy bool

// nodeFault is why one node does not announce the Service.
type nodeFault struct {
	node         string
	hasEndpoints bool
	names.Explanation
}

// nodeReasonsMostTellingFirst are the reasons of nodes, the most telling first.
var nodeReasonsMostTellingFirst = []names.Reason{
	names.ReasonRawSocketDenied, names.ReasonLinkDown, names.ReasonNoSession, names.ReasonNodeNetworkUnavailable, names.ReasonNodeLeaving,
	names.ReasonNodeExcluded, names.ReasonNoSpeaker, names.ReasonServiceProxyNotReady, names.ReasonNoAddressFamily, names.ReasonNoLinks, names.ReasonNoPeers,
	names.ReasonNoLocalEndpoints, names.ReasonNoAdvertisement,
}

// ExplainNodesNotAnnouncing says for a Service that is announced by no node what keeps each node
// from it. Its Reason is the most telling one: that of a node with endpoints comes first. Nothing
// is set if at least one node should announce the Service. Explain has to come first: it explains
// what is wrong with the advertisements themselves.
func ExplainNodesNotAnnouncing(s *snapshot.Snapshot, svc *Service, nodes []NodeStateForService, local LocalTrafficPolicy) names.Explanation {
	coverage := newServiceCoverage(s, svc, nodes)
	var faults []nodeFault
	var sessionTexts []string
	for i := range nodes {
		e := explainNode(&nodes[i], coverage, local)
		if e.IsAnnouncing() {
			return names.Explanation{}
		}
		sessionTexts = append(sessionTexts, e.sessionTexts...)
		faults = append(faults, nodeFault{e.Node, nodes[i].HasEndpoints, e.firstFault()})
	}
	return combineNodeFaults(faults, sessionTexts, local)
}

// NodeExplanation says by which protocols one node should announce a Service, and why not by the
// others.
type NodeExplanation struct {
	Node string
	// IsSelectedByL2Ad and IsSelectedByBGPAd say that advertisements of this kind select the node.
	IsSelectedByL2Ad, IsSelectedByBGPAd bool
	// Layer2Fault and BGPFault are why the node does not announce the Service by the protocol
	// although an advertisement selects it. They are zero if it should.
	Layer2Fault, BGPFault names.Explanation
	// Peers are the BGPPeers whose routers should get the Service from the node.
	Peers []string

	faultForEveryProtocol names.Explanation
	sessionTexts          []string
}

// IsAnnouncing says whether the node should announce the Service by one of the protocols.
func (e *NodeExplanation) IsAnnouncing() bool {
	return e.IsSelectedByL2Ad && !e.Layer2Fault.IsSet() || e.IsSelectedByBGPAd && !e.BGPFault.IsSet()
}

// Fault is why the node announces the Service by no protocol; it is zero if it should.
func (e *NodeExplanation) Fault() names.Explanation {
	if e.IsAnnouncing() {
		return names.Explanation{}
	}
	return e.firstFault()
}

func (e *NodeExplanation) firstFault() names.Explanation {
	switch {
	case e.faultForEveryProtocol.IsSet():
		return e.faultForEveryProtocol
	case e.Layer2Fault.IsSet():
		return e.Layer2Fault
	}
	return e.BGPFault
}

// ExplainAnnouncementPerNode says for each node what ExplainNodesNotAnnouncing says for all of
// them.
func ExplainAnnouncementPerNode(s *snapshot.Snapshot, svc *Service, nodes []NodeStateForService, local LocalTrafficPolicy) []NodeExplanation {
	coverage := newServiceCoverage(s, svc, nodes)
	out := make([]NodeExplanation, 0, len(nodes))
	for i := range nodes {
		out = append(out, explainNode(&nodes[i], coverage, local))
	}
	return out
}

// serviceCoverage has the advertisements that cover a Service on any node.
type serviceCoverage struct {
	snapshot     *snapshot.Snapshot
	layer2       Layer2Coverage
	layer2Reason names.Reason
	bgp          []BGPCoverage
	// subnetReachOfEachAddress has the SubnetReachedByAnyNode of each of the addresses of layer2.
	subnetReachOfEachAddress []SubnetReachedByAnyNode
}

func newServiceCoverage(s *snapshot.Snapshot, svc *Service, nodes []NodeStateForService) *serviceCoverage {
	layer2, layer2Reason := L2AdsCoveringService(s, svc)
	bgp, _ := BGPAdsCoveringService(s, svc)
	out := &serviceCoverage{snapshot: s, layer2: layer2, layer2Reason: layer2Reason, bgp: bgp}
	for i, a := range layer2.Addresses {
		ads := layer2.AdsOfAddress(i)
		reaches := func(n NodeStateForService) bool {
			return AnyL2AdSelectsNode(ads, &view.Node{Name: n.Name, Labels: n.Labels}) && AnyLinkCoversAddress(n.Links, a)
		}
		out.subnetReachOfEachAddress = append(out.subnetReachOfEachAddress, SubnetReachedByAnyNode(slices.ContainsFunc(nodes, reaches)))
	}
	return out
}

// explainNode says by which protocols the node should announce the Service, and why not.
func explainNode(n *NodeStateForService, c *serviceCoverage, local LocalTrafficPolicy) NodeExplanation {
	node := view.Node{Name: n.Name, Labels: n.Labels, IsExcluded: isNodeExcluded(c.snapshot, n.Labels)}
	own := adsSelectingNode(c.bgp, &node)
	out := NodeExplanation{Node: n.Name, IsSelectedByL2Ad: c.layer2Reason == "" && c.layer2.selectsNodeForAllAddresses(&node), IsSelectedByBGPAd: len(own) > 0}
	out.faultForEveryProtocol = n.faultForEveryProtocol(&node, out.IsSelectedByL2Ad || out.IsSelectedByBGPAd, local)
	if out.faultForEveryProtocol.IsSet() {
		out.Layer2Fault, out.BGPFault = out.faultForEveryProtocol, out.faultForEveryProtocol
		return out
	}
	if out.IsSelectedByL2Ad {
		out.Layer2Fault = n.layer2Fault(c, &node)
	}
	if out.IsSelectedByBGPAd {
		out.Peers = NamesOfPeersGettingRoute(own, c.snapshot.Peers, &node)
		out.BGPFault, out.sessionTexts = n.sessionFaults(out.Peers)
	}
	return out
}

// faultForEveryProtocol returns why the node announces the Service by no protocol.
func (n *NodeStateForService) faultForEveryProtocol(node *view.Node, isSelected bool, local LocalTrafficPolicy) names.Explanation {
	switch {
	case !isSelected:
		return names.NewExplanation(names.ReasonNoAdvertisement, "no advertisement of the Service selects the node")
	case bool(local) && !n.HasEndpoints:
		return names.NewExplanation(names.ReasonNoLocalEndpoints, "no endpoint of the Service serves there")
	case node.IsExcluded:
		return names.NewExplanation(names.ReasonNodeExcluded, "it has the label %s: remove it", names.LabelExcludeNode)
	case n.Fault.IsSet():
		return n.Fault
	case bool(local) && n.IsProxyBehind:
		return names.NewExplanation(names.ReasonServiceProxyNotReady, "kube-proxy there does not know the endpoints of the Service yet: look at kube-proxy")
	}
	return names.Explanation{}
}

// sessionFaults returns why no session of the node carries the Service, and a text for each session
// that should and does not. No reason is returned if one of them carries it.
func (n *NodeStateForService) sessionFaults(peers []string) (why names.Explanation, texts []string) {
	if len(peers) == 0 {
		return names.NewExplanation(names.ReasonNoPeers, "no BGPPeer that the BGPAdvertisements name selects the node and carries the family"), nil
	}
	for _, p := range peers {
		fault, faulty := n.SessionFaultByPeer[p]
		if !faulty {
			return names.Explanation{}, texts
		}
		texts = append(texts, fmt.Sprintf("%s on %s: %s (%s)", p, n.Name, fault.Text, fault.Reason))
	}
	return names.NewExplanation(names.ReasonNoSession, "none of its BGP sessions carries the Service"), texts
}

const (
	// maxNodesInText and maxSessionsInText bound how many nodes and sessions a text names.
	maxNodesInText    = 4
	maxSessionsInText = 2
)

// combineNodeFaults makes one sentence of the faults of all nodes.
func combineNodeFaults(faults []nodeFault, sessionTexts []string, local LocalTrafficPolicy) names.Explanation {
	if len(faults) == 0 {
		return names.Explanation{}
	}
	weight := func(f nodeFault) int {
		w := slices.Index(nodeReasonsMostTellingFirst, f.Reason)
		if w < 0 {
			w = 0 // a reason that few know of
		}
		if bool(local) && !f.hasEndpoints && f.Reason != names.ReasonNoLocalEndpoints {
			w += len(nodeReasonsMostTellingFirst)
		}
		return w
	}
	slices.SortStableFunc(faults, func(x, y nodeFault) int {
		return cmp.Or(cmp.Compare(weight(x), weight(y)), cmp.Compare(x.node, y.node))
	})
	out := names.Explanation{Reason: faults[0].Reason}
	if len(sessionTexts) > 0 && out.Reason == names.ReasonNoSession {
		out.Text = fmt.Sprintf("0 of %d BGP sessions carry the Service: %s", len(sessionTexts), joinLimited(sessionTexts, maxSessionsInText, "sessions"))
		return out
	}
	var texts []string
	for len(faults) > 0 {
		same := slices.IndexFunc(faults, func(f nodeFault) bool { return f.Explanation != faults[0].Explanation })
		if same < 0 {
			same = len(faults)
		}
		var on []string
		for _, f := range faults[:same] {
			on = append(on, f.node)
		}
		texts = append(texts, joinLimited(on, maxNodesInText, "nodes")+": "+faults[0].Text)
		faults = faults[same:]
	}
	prefix := "no node announces it: "
	if local {
		prefix = "externalTrafficPolicy is Local, and no node announces it: "
	}
	out.Text = prefix + joinLimitedWithSeparator("; ", texts, maxNodesInText, "nodes")
	return out
}

func joinLimited(all []string, limit int, what string) string {
	return joinLimitedWithSeparator(", ", all, limit, what)
}

// joinLimitedWithSeparator joins the first elements, and says how many more there are.
func joinLimitedWithSeparator(separator string, all []string, limit int, what string) string {
	text := strings.Join(all[:min(len(all), limit)], separator)
	if more := len(all) - limit; more > 0 {
		text += fmt.Sprintf("%sand %d more %s", separator, more, what)
	}
	return text
}
