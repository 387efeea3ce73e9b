package advertise

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/ipfamily"
	"github.com/gantry-lb/gantry/internal/snapshot"
)

// nodeStates returns the nodes of the example with a usable link eth0.
func (e *exampleCluster) nodeStates() []NodeStateForService {
	var out []NodeStateForService
	for _, n := range e.nodes {
		out = append(out, NodeStateForService{NodeLabels: n, Links: []LinkState{linkInSubnet("eth0")}})
	}
	return out
}

// linkInSubnet returns a usable link in the subnet of the address of the example.
func linkInSubnet(name string) LinkState {
	return LinkState{Name: name, Families: []ipfamily.Family{ipfamily.IPv4}, Subnets: []netip.Prefix{netip.PrefixFrom(exampleIPv4Address, 24).Masked()}}
}

// linkInOtherSubnet returns a usable link in another subnet.
func linkInOtherSubnet(name string) LinkState {
	l := linkInSubnet(name)
	l.Subnets = []netip.Prefix{netip.MustParsePrefix("172.31.0.0/16")}
	return l
}

// downLink returns a link in the subnet of the example without carrier.
func downLink(name string) LinkState {
	l := linkInSubnet(name)
	l.IsDown = true
	return l
}

var noAnswerSessionFault = names.NewExplanation(names.ReasonNoAnswer, "the router does not answer")

// nodeExplanationCases are states of the nodes, with the Reason and the texts that a user reads.
var nodeExplanationCases = map[string]struct {
	edit  func(*exampleCluster, []NodeStateForService)
	local LocalTrafficPolicy
	want  names.Reason
	texts []string
}{
	"nothing is wrong": {edit: func(e *exampleCluster, _ []NodeStateForService) { e.addL2Advertisement(nil, "four") }},
	"one node is enough": {edit: func(e *exampleCluster, n []NodeStateForService) {
		e.addL2Advertisement(nil, "four")
		n[0].Fault = names.NewExplanation(names.ReasonNodeLeaving, "it is leaving")
		n[1].Layer2Fault = names.NewExplanation(names.ReasonNoLinks, "it has no link")
	}},
	"all nodes leave": {edit: func(e *exampleCluster, n []NodeStateForService) {
		e.addL2Advertisement(nil, "four")
		for i := range n {
			n[i].Fault = names.NewExplanation(names.ReasonNodeLeaving, "it is leaving")
		}
	}, want: names.ReasonNodeLeaving, texts: []string{"no node announces it: a, b, c: it is leaving"}},
	"the only node with endpoints is excluded": {edit: func(e *exampleCluster, n []NodeStateForService) {
		e.addL2Advertisement(nil, "four")
		e.excludeNodes(1)
		n[1].HasEndpoints = true
	}, local: true, want: names.ReasonNodeExcluded, texts: []string{"externalTrafficPolicy is Local", "b: it has the label " + names.LabelExcludeNode, "a, c: no endpoint"}},
	"the node with endpoints is not selected": {edit: func(e *exampleCluster, n []NodeStateForService) {
		e.addL2Advertisement(limitL2AdToNode("a"), "four")
		n[1].HasEndpoints = true
	}, local: true, want: names.ReasonNoLocalEndpoints, texts: []string{"a: no endpoint of the Service serves there; b, c: no advertisement of the Service selects the node"}},
	"no endpoint on a selected node, another one leaves": {edit: func(e *exampleCluster, n []NodeStateForService) {
		e.addL2Advertisement(nil, "four")
		n[0].Fault, n[0].HasEndpoints = names.NewExplanation(names.ReasonNodeLeaving, "it is leaving"), true
	}, local: true, want: names.ReasonNodeLeaving, texts: []string{"a: it is leaving; b, c: no endpoint"}},
	"kube-proxy is behind": {edit: func(e *exampleCluster, n []NodeStateForService) {
		e.addL2Advertisement(nil, "four")
		n[2].HasEndpoints, n[2].IsProxyBehind = true, true
	}, local: true, want: names.ReasonServiceProxyNotReady, texts: []string{"c: kube-proxy there"}},
	"no usable interface": {edit: func(e *exampleCluster, _ []NodeStateForService) {
		e.addL2Advertisement(func(ad *snapshot.L2Advertisement) { ad.Interfaces = []string{"eth7"} }, "four")
	}, want: names.ReasonNoLinks, texts: []string{"names eth7, and the usable links are eth0"}},
	"no usable interface of two advertisements": {edit: func(e *exampleCluster, n []NodeStateForService) {
		e.addL2Advertisement(func(ad *snapshot.L2Advertisement) { ad.Interfaces = []string{"eth9", "bond0"} }, "four")
		e.addL2Advertisement(func(ad *snapshot.L2Advertisement) { ad.Interfaces = []string{"bond0"} }, "four", "six")
		n[0].Links = []LinkState{}
	}, want: names.ReasonNoLinks, texts: []string{"names bond0, eth9, and the usable links are eth0", "a: the L2Advertisements limit", "the usable links are none"}},
	"an advertisement without limit is enough": {edit: func(e *exampleCluster, _ []NodeStateForService) {
		e.addL2Advertisement(func(ad *snapshot.L2Advertisement) { ad.Interfaces = []string{"eth7"} }, "four")
		e.addL2Advertisement(nil, "four", "six")
	}},
	"one interface of two is enough": {edit: func(e *exampleCluster, _ []NodeStateForService) {
		e.addL2Advertisement(func(ad *snapshot.L2Advertisement) { ad.Interfaces = []string{"eth0", "eth7"} }, "four")
	}},
	"the link of every node is down": {edit: func(e *exampleCluster, n []NodeStateForService) {
		e.addL2Advertisement(nil, "four")
		for i := range n {
			n[i].Links = []LinkState{linkInOtherSubnet("eth0"), downLink("eth1")}
		}
	}, want: names.ReasonLinkDown, texts: []string{"a, b, c: its link eth1 in the subnet of " + exampleIPv4Address.String() + " is down"}},
	"the only link of every node is down": {edit: func(e *exampleCluster, n []NodeStateForService) {
		e.addL2Advertisement(nil, "four")
		for i := range n {
			n[i].Links, n[i].Layer2Fault = []LinkState{downLink("eth1")}, names.NewExplanation(names.ReasonNoLinks, "no link is usable")
		}
	}, want: names.ReasonLinkDown, texts: []string{"a, b, c: its link eth1"}},
	"no node has a usable link": {edit: func(e *exampleCluster, n []NodeStateForService) {
		e.addL2Advertisement(nil, "four")
		for i := range n {
			n[i].Links, n[i].Layer2Fault = []LinkState{}, names.NewExplanation(names.ReasonNoLinks, "no link is usable")
		}
	}, want: names.ReasonNoLinks, texts: []string{"a, b, c: no link is usable"}},
	"only a node that leaves is in the subnet": {edit: func(e *exampleCluster, n []NodeStateForService) {
		e.addL2Advertisement(nil, "four")
		n[1].Links, n[2].Links = []LinkState{linkInOtherSubnet("eth0")}, []LinkState{linkInOtherSubnet("eth0")}
		n[0].Fault = names.NewExplanation(names.ReasonNodeLeaving, "it is leaving")
	}, want: names.ReasonNodeLeaving, texts: []string{"a: it is leaving; b, c: none of its usable links (eth0) is in the subnet of " + exampleIPv4Address.String()}},
	"no node is in the subnet": {edit: func(e *exampleCluster, n []NodeStateForService) {
		e.addL2Advertisement(nil, "four")
		for i := range n {
			n[i].Links = []LinkState{linkInOtherSubnet("eth0")}
		}
	}},
	"no node has an address of the family": {edit: func(e *exampleCluster, n []NodeStateForService) {
		e.addL2Advertisement(nil, "four")
		for i := range n {
			n[i].Links = []LinkState{{Name: "eth0", Families: []ipfamily.Family{ipfamily.IPv6}}}
		}
	}, want: names.ReasonNoAddressFamily, texts: []string{"a, b, c: it has no IPv4 address"}},
	"one address of two families can be answered": {edit: func(e *exampleCluster, _ []NodeStateForService) {
		e.addIPv6Address()
		e.addL2Advertisement(nil, "four", "six")
	}},
	"raw sockets are denied": {edit: func(e *exampleCluster, n []NodeStateForService) {
		e.addL2Advertisement(nil, "four")
		for i := range n {
			n[i].Links, n[i].Layer2Fault = []LinkState{downLink("eth1")}, names.NewExplanation(names.ReasonRawSocketDenied, "the capability is missing")
		}
	}, want: names.ReasonRawSocketDenied, texts: []string{"a, b, c: the capability is missing"}},
	"a speaker that says nothing about its links": {edit: func(e *exampleCluster, n []NodeStateForService) {
		e.addL2Advertisement(nil, "four")
		n[0].Links = nil
	}},
	"no session": {edit: func(e *exampleCluster, n []NodeStateForService) {
		e.addBGPAdvertisement(nil, "four")
		e.addBGPPeer("x")
		for i := range n {
			n[i].SessionFaultByPeer = map[string]names.Explanation{"x": noAnswerSessionFault}
		}
	}, want: names.ReasonNoSession, texts: []string{"0 of 3 BGP sessions carry the Service: x on a: the router does not answer (NoAnswer), x on b", "and 1 more sessions"}},
	"one session of two is enough": {edit: func(e *exampleCluster, n []NodeStateForService) {
		e.addBGPAdvertisement(nil, "four")
		e.addBGPPeer("x")
		e.addBGPPeer("y")
		for i := range n {
			n[i].SessionFaultByPeer = map[string]names.Explanation{"x": noAnswerSessionFault}
		}
	}},
	"no session, but layer 2": {edit: func(e *exampleCluster, n []NodeStateForService) {
		e.addL2Advertisement(nil, "four")
		e.addBGPAdvertisement(nil, "four")
		e.addBGPPeer("x")
		for i := range n {
			n[i].SessionFaultByPeer = map[string]names.Explanation{"x": noAnswerSessionFault}
		}
	}},
}

// TestExplainNodesReportsMostTellingReason checks a Service that its advertisements cover, and that
// no node announces.
func TestExplainNodesReportsMostTellingReason(t *testing.T) {
	for name, tt := range nodeExplanationCases {
		t.Run(name, func(t *testing.T) {
			e := newExampleCluster()
			nodes := e.nodeStates()
			tt.edit(e, nodes)
			got := ExplainNodesNotAnnouncing(&e.snapshot, &e.service, nodes, tt.local)
			if got.Reason != tt.want {
				t.Fatalf("the reason is %q, want %q: %s", got.Reason, tt.want, got.Text)
			}
			for _, text := range tt.texts {
				if !strings.Contains(got.Text, text) {
					t.Errorf("the text is %q, want %q in it", got.Text, text)
				}
			}
		})
	}
}
