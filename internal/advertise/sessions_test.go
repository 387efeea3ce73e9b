package advertise

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
)

// TestSessionsToCarryServiceFollowAdsNodesEndpoints checks which sessions should carry which
// addresses, each written as "node peer: addresses".
func TestSessionsToCarryServiceFollowAdsNodesEndpoints(t *testing.T) {
	dualStackPeer := func(e *exampleCluster, name string, nodes ...labels.Selector) {
		e.addBGPPeer(name, nodes...)
		e.snapshot.Peers[len(e.snapshot.Peers)-1].DualStack = true
	}
	for name, tc := range map[string]struct {
		edit func(*exampleCluster)
		// silentNode serves no address, because it has no endpoint.
		silentNode string
		want       []string
	}{
		"no advertisement": {edit: func(e *exampleCluster) { e.addBGPPeer("x") }},
		"no peer":          {edit: func(e *exampleCluster) { e.addBGPAdvertisement(nil, "four") }},
		"each node":        {edit: func(e *exampleCluster) { e.addBGPPeer("x"); e.addBGPAdvertisement(nil, "four") }, want: []string{"a x: four", "b x: four", "c x: four"}},
		"an excluded node": {edit: func(e *exampleCluster) { e.addBGPPeer("x"); e.addBGPAdvertisement(nil, "four"); e.excludeNodes(1) }, want: []string{"a x: four", "c x: four"}},
		"a node without endpoints": {edit: func(e *exampleCluster) { e.addBGPPeer("x"); e.addBGPAdvertisement(nil, "four") }, silentNode: "c",
			want: []string{"a x: four", "b x: four"}},
		"an advertisement of one node": {edit: func(e *exampleCluster) { e.addBGPPeer("x"); e.addBGPAdvertisement(limitBGPAdToNode("b"), "four") }, want: []string{"b x: four"}},
		"a peer of one node": {edit: func(e *exampleCluster) {
			e.addBGPPeer("x")
			e.addBGPPeer("y", newLabelSelector("name", "c"))
			e.addBGPAdvertisement(nil, "four")
		},
			want: []string{"a x: four", "b x: four", "c x: four", "c y: four"}},
		"an advertisement for one peer": {edit: func(e *exampleCluster) {
			e.addBGPPeer("x")
			e.addBGPPeer("y")
			e.addBGPAdvertisement(func(ad *snapshot.BGPAdvertisement) { ad.Peers = []string{"y"} }, "four")
		}, want: []string{"a y: four", "b y: four", "c y: four"}},
		"two advertisements with one address each": {edit: func(e *exampleCluster) {
			e.addIPv6Address()
			dualStackPeer(e, "x", newLabelSelector("name", "a"))
			e.addBGPAdvertisement(nil, "four")
			e.addBGPAdvertisement(nil, "six")
			e.addBGPAdvertisement(nil, "four", "six")
		}, want: []string{"a x: four six"}},
	} {
		t.Run(name, func(t *testing.T) {
			e := newExampleCluster()
			tc.edit(e)
			var got []string
			for _, w := range SessionsToCarryService(&e.snapshot, &e.service, e.nodes, func(node string, _ netip.Addr) bool { return node != tc.silentNode }) {
				text := w.Node + " " + w.Peer + ":"
				for _, a := range w.Addresses {
					text += map[netip.Addr]string{exampleIPv4Address: " four", exampleIPv6Address: " six"}[a]
				}
				got = append(got, text)
			}
			if !slices.Equal(got, tc.want) {
				t.Errorf("the sessions are %q, want %q", got, tc.want)
			}
		})
	}
}

// TestSessionsLeaveOutAddressesWithoutEndpoints has endpoints of one family only.
func TestSessionsLeaveOutAddressesWithoutEndpoints(t *testing.T) {
	e := newExampleCluster()
	e.addIPv6Address()
	e.addBGPPeer("x", newLabelSelector("name", "a"))
	e.snapshot.Peers[0].DualStack = true
	e.addBGPAdvertisement(nil, "four", "six")
	got := SessionsToCarryService(&e.snapshot, &e.service, e.nodes, func(_ string, a netip.Addr) bool { return a == exampleIPv6Address })
	if want := []SessionToCarryService{{"a", "x", []netip.Addr{exampleIPv6Address}}}; fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("the sessions are %v, want %v", got, want)
	}
}

// TestPerNodeExplanationsAgreeWithJointOne compares the explanation of all nodes with that of
// each.
func TestPerNodeExplanationsAgreeWithJointOne(t *testing.T) {
	for name, tc := range nodeExplanationCases {
		t.Run(name, func(t *testing.T) {
			e := newExampleCluster()
			nodes := e.nodeStates()
			tc.edit(e, nodes)
			all := ExplainNodesNotAnnouncing(&e.snapshot, &e.service, nodes, tc.local)
			each := ExplainAnnouncementPerNode(&e.snapshot, &e.service, nodes, tc.local)
			if len(each) != len(nodes) {
				t.Fatalf("%d nodes are explained, want %d", len(each), len(nodes))
			}
			var reasons []names.Reason
			for i := range each {
				if f := each[i].Fault(); f.IsSet() == each[i].IsAnnouncing() {
					t.Errorf("node %s announces the Service: %v, and its fault is %v", each[i].Node, each[i].IsAnnouncing(), f)
				}
				reasons = append(reasons, each[i].Fault().Reason)
			}
			if all.IsSet() == slices.Contains(reasons, "") || all.IsSet() && !slices.Contains(reasons, all.Reason) {
				t.Errorf("the reasons of the nodes are %q, and all together %q", reasons, all.Reason)
			}
		})
	}
}

// fakeOtherNodesLink is a link of another node, as far as this one knows it.
type fakeOtherNodesLink struct {
	name                               string
	coversAddress, hasVirtualRouterMAC bool
}

func (l fakeOtherNodesLink) HasName(n string) bool         { return l.name == n }
func (l fakeOtherNodesLink) CoversAddress(netip.Addr) bool { return l.coversAddress }
func (l fakeOtherNodesLink) HasVirtualRouterMAC() bool     { return l.hasVirtualRouterMAC }

func TestAdsAdmitLinkOfOtherNode(t *testing.T) {
	node := &view.Node{Name: "a", Labels: map[string]string{"name": "a"}}
	anyLink, onlyBond := &snapshot.L2Advertisement{}, &snapshot.L2Advertisement{Interfaces: []string{"bond0"}}
	otherNode := &snapshot.L2Advertisement{NodeSelectors: []labels.Selector{newLabelSelector("name", "b")}}
	for _, tc := range []struct {
		what  string
		ads   []*snapshot.L2Advertisement
		link  fakeOtherNodesLink
		reach SubnetReachedByAnyNode
		want  bool
	}{
		{"a link in the subnet", []*snapshot.L2Advertisement{anyLink}, fakeOtherNodesLink{name: "eth0", coversAddress: true}, SomeNodeReachesSubnet, true},
		{"a link elsewhere, while another node is in the subnet", []*snapshot.L2Advertisement{anyLink}, fakeOtherNodesLink{name: "eth0"}, SomeNodeReachesSubnet, false},
		{"a link elsewhere, like all others", []*snapshot.L2Advertisement{anyLink}, fakeOtherNodesLink{name: "eth0"}, NoNodeReachesSubnet, true},
		{"a virtual router's link", []*snapshot.L2Advertisement{anyLink}, fakeOtherNodesLink{name: "vrrp1", coversAddress: true, hasVirtualRouterMAC: true}, SomeNodeReachesSubnet, false},
		{"a virtual router's link that is named", []*snapshot.L2Advertisement{onlyBond}, fakeOtherNodesLink{name: "bond0", coversAddress: true, hasVirtualRouterMAC: true}, SomeNodeReachesSubnet, true},
		{"a link that is not named", []*snapshot.L2Advertisement{onlyBond}, fakeOtherNodesLink{name: "eth0", coversAddress: true}, SomeNodeReachesSubnet, false},
		{"one advertisement of two", []*snapshot.L2Advertisement{onlyBond, anyLink}, fakeOtherNodesLink{name: "eth0", coversAddress: true}, SomeNodeReachesSubnet, true},
		{"an advertisement for another node", []*snapshot.L2Advertisement{otherNode}, fakeOtherNodesLink{name: "eth0", coversAddress: true}, SomeNodeReachesSubnet, false},
		{"no advertisement", nil, fakeOtherNodesLink{name: "eth0", coversAddress: true}, NoNodeReachesSubnet, false},
	} {
		if got := AdsAdmitLinkOfOtherNode(tc.ads, node, tc.link, exampleIPv4Address, tc.reach); got != tc.want {
			t.Errorf("%s: it can be used: %v, want %v", tc.what, got, tc.want)
		}
	}
}

// TestFaultsOfNodesWithoutPeers has a cluster without nodes, and a node without peers.
func TestFaultsOfNodesWithoutPeers(t *testing.T) {
	e := newExampleCluster()
	e.addBGPAdvertisement(nil, "four")
	if got := ExplainNodesNotAnnouncing(&e.snapshot, &e.service, nil, false); got.IsSet() {
		t.Errorf("without nodes the explanation is %v, want none", got)
	}
	got := ExplainNodesNotAnnouncing(&e.snapshot, &e.service, e.nodeStates(), false)
	if got.Reason != names.ReasonNoPeers || !strings.Contains(got.Text, "no BGPPeer") {
		t.Errorf("without peers the explanation is %v, want %s", got, names.ReasonNoPeers)
	}
}
