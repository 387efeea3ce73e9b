package advertise

import (
	"net/netip"
	"slices"
	"testing"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
)

func TestNodeExclusionReasonOfL2Ads(t *testing.T) {
	node := func(name string) view.Node { return view.Node{Name: name, Labels: map[string]string{"name": name}} }
	for name, c := range map[string]struct {
		edit func(*exampleCluster)
		node view.Node
		want names.Reason
	}{
		"without limits": {func(e *exampleCluster) { e.addL2Advertisement(nil, "four") }, node("a"), ""},
		"without network": {func(e *exampleCluster) { e.addL2Advertisement(nil, "four") },
			view.Node{NetworkUnavailable: true, IsExcluded: true, IsLeaving: true}, names.ReasonNodeNetworkUnavailable},
		"excluded":     {func(e *exampleCluster) { e.addL2Advertisement(nil, "four") }, view.Node{IsExcluded: true, IsLeaving: true}, names.ReasonNodeExcluded},
		"leaving":      {func(e *exampleCluster) { e.addL2Advertisement(limitL2AdToNode("b"), "four") }, view.Node{IsLeaving: true}, names.ReasonNodeLeaving},
		"not selected": {func(e *exampleCluster) { e.addL2Advertisement(limitL2AdToNode("b"), "four") }, node("a"), names.ReasonNoAdvertisement},
		"one of two ads": {func(e *exampleCluster) {
			e.addL2Advertisement(limitL2AdToNode("a"), "four")
			e.addL2Advertisement(limitL2AdToNode("b"), "four")
		}, node("b"), ""},
		"selected for one address of two pools": {func(e *exampleCluster) {
			e.addIPv6Address()
			e.addL2Advertisement(nil, "four")
			e.addL2Advertisement(limitL2AdToNode("b"), "six")
		},
			node("a"), names.ReasonNoAdvertisement},
		"selected for both addresses": {func(e *exampleCluster) {
			e.addIPv6Address()
			e.addL2Advertisement(nil, "four")
			e.addL2Advertisement(limitL2AdToNode("b"), "six")
		}, node("b"), ""},
		"the other address has no advertisement":     {func(e *exampleCluster) { e.addIPv6Address(); e.addL2Advertisement(limitL2AdToNode("a"), "four") }, node("a"), ""},
		"one advertisement of both pools selects it": {func(e *exampleCluster) { e.addIPv6Address(); e.addL2Advertisement(limitL2AdToNode("a"), "four", "six") }, node("a"), ""},
		"the advertisement of another pool selects it": {func(e *exampleCluster) {
			e.addL2Advertisement(limitL2AdToNode("b"), "four")
			e.addL2Advertisement(limitL2AdToNode("a"), "six")
		}, node("a"), names.ReasonNoAdvertisement},
	} {
		e := newExampleCluster()
		c.edit(e)
		coverage, _ := L2AdsCoveringService(&e.snapshot, &e.service)
		if got := coverage.NodeExclusionReason(&c.node); got != c.want {
			t.Errorf("%s: the node is refused with %q, want %q", name, got, c.want)
		}
	}
}

func TestPreferenceScoreCountsOnlyAdsSelectingNode(t *testing.T) {
	e := newExampleCluster()
	prefer := func(weight int, s labels.Selector) func(*snapshot.L2Advertisement) {
		return func(ad *snapshot.L2Advertisement) {
			ad.Preferences = append(ad.Preferences, snapshot.NodePreference{Weight: weight, NodeSelector: s})
		}
	}
	e.addL2Advertisement(prefer(1, labels.Everything()), "four")
	e.addL2Advertisement(func(ad *snapshot.L2Advertisement) {
		limitL2AdToNode("b")(ad)
		prefer(10, labels.Everything())(ad)
		ad.Rebalance = true
	}, "four")
	e.addL2Advertisement(prefer(100, newLabelSelector("name", "a")), "four")
	e.addL2Advertisement(prefer(50, labels.Everything()), "six")
	coverage, _ := L2AdsCoveringService(&e.snapshot, &e.service)
	for i, want := range []int{101, 11, 1} {
		n := view.Node{Labels: e.nodes[i].Labels}
		if got := coverage.PreferenceScore(&n); got != want {
			t.Errorf("node %s scores %d, want %d", e.nodes[i].Name, got, want)
		}
	}
	if !coverage.MayRebalance() {
		t.Error("an advertisement lets nodes give addresses away, and none may")
	}
	if coverage.Ads = coverage.Ads[:1]; coverage.MayRebalance() {
		t.Error("no advertisement lets nodes give addresses away, and they may")
	}
}

// Services with the same key are planned once for all. So coverages that admit different nodes need
// different keys.
func TestAdmittedNodesKeyDiffersByNodes(t *testing.T) {
	keys := map[string]string{}
	for name, edit := range map[string]func(*exampleCluster){
		"one address, one advertisement": func(e *exampleCluster) {},
		"one address, two advertisements": func(e *exampleCluster) {
			e.addL2Advertisement(func(ad *snapshot.L2Advertisement) { ad.Name = "more" }, "four")
		},
		"each address has its own advertisement": func(e *exampleCluster) { e.addIPv6Address(); e.addL2Advertisement(nil, "six") },
		"one advertisement for both addresses, one for one": func(e *exampleCluster) {
			e.addIPv6Address()
			e.addL2Advertisement(nil, "six")
			e.snapshot.L2Advertisements[0].Pools = []string{"four", "six"}
		},
		"both advertisements for both addresses": func(e *exampleCluster) {
			e.addIPv6Address()
			e.addL2Advertisement(nil, "six")
			e.snapshot.L2Advertisements[0].Pools = []string{"four", "six"}
			e.snapshot.L2Advertisements[1].Pools = []string{"four", "six"}
		},
	} {
		e := newExampleCluster()
		e.addL2Advertisement(nil, "four")
		edit(e)
		coverage, _ := L2AdsCoveringService(&e.snapshot, &e.service)
		key := coverage.AdmittedNodesKey()
		if other, taken := keys[key]; taken {
			t.Errorf("%q and %q have the same key %q", name, other, key)
		}
		keys[key] = name
	}
}

// exampleLink is a Link of a test.
type exampleLink struct {
	index   int
	name    string
	subnets []netip.Prefix
	isDown  bool
	isVRRP  bool
}

func (l exampleLink) InterfaceIndex() int             { return l.index }
func (l exampleLink) InterfaceName() string           { return l.name }
func (l exampleLink) CanSendFamilyOf(netip.Addr) bool { return !l.isDown }
func (l exampleLink) HasVirtualRouterMAC() bool       { return l.isVRRP }
func (l exampleLink) CoversAddress(a netip.Addr) bool {
	return slices.ContainsFunc(l.subnets, func(p netip.Prefix) bool { return p.Contains(a) })
}

func TestLinksOnWhichAddressIsAnnounced(t *testing.T) {
	on := func(interfaces ...string) *snapshot.L2Advertisement {
		return &snapshot.L2Advertisement{Interfaces: interfaces}
	}
	elsewhere := on("eth1")
	limitL2AdToNode("b")(elsewhere)
	for name, c := range map[string]struct {
		ads     []*snapshot.L2Advertisement
		edit    func([]exampleLink)
		anyNode bool
		reach   SubnetReachedByAnyNode
		want    []int
	}{
		"the link of the subnet":                     {ads: []*snapshot.L2Advertisement{on()}, reach: SomeNodeReachesSubnet, want: []int{2}},
		"all links if no node has the subnet":        {ads: []*snapshot.L2Advertisement{on()}, edit: func(l []exampleLink) { l[0].subnets = nil }, reach: NoNodeReachesSubnet, want: []int{2, 3}},
		"none if another node has the subnet":        {ads: []*snapshot.L2Advertisement{on()}, edit: func(l []exampleLink) { l[0].subnets = nil }, reach: SomeNodeReachesSubnet},
		"no link that cannot send":                   {ads: []*snapshot.L2Advertisement{on()}, edit: func(l []exampleLink) { l[0].isDown = true }, reach: SomeNodeReachesSubnet},
		"no link of a virtual router":                {ads: []*snapshot.L2Advertisement{on()}, edit: func(l []exampleLink) { l[1].isVRRP, l[1].subnets = true, l[0].subnets }, reach: SomeNodeReachesSubnet, want: []int{2}},
		"a named link of a virtual router":           {ads: []*snapshot.L2Advertisement{on("eth1")}, edit: func(l []exampleLink) { l[1].isVRRP = true }, want: []int{3}},
		"the named link":                             {ads: []*snapshot.L2Advertisement{on("eth1")}, want: []int{3}},
		"the named link cannot send":                 {ads: []*snapshot.L2Advertisement{on("eth1")}, edit: func(l []exampleLink) { l[1].isDown = true }},
		"a name that the node does not have":         {ads: []*snapshot.L2Advertisement{on("eth9")}},
		"the links of all advertisements, each once": {ads: []*snapshot.L2Advertisement{on("eth1", "eth0"), on()}, reach: SomeNodeReachesSubnet, want: []int{2, 3}},
		"an advertisement for other nodes":           {ads: []*snapshot.L2Advertisement{elsewhere}},
		"an advertisement for any node":              {ads: []*snapshot.L2Advertisement{elsewhere}, anyNode: true, want: []int{3}},
		"no advertisement":                           {},
	} {
		links := []exampleLink{
			{index: 2, name: "eth0", subnets: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}},
			{index: 3, name: "eth1"},
		}
		if c.edit != nil {
			c.edit(links)
		}
		node := &view.Node{Labels: map[string]string{"name": "a"}}
		if c.anyNode {
			node = nil
		}
		if got := AnnouncingLinkIndexes(c.ads, node, exampleIPv4Address, links, c.reach); !slices.Equal(got, c.want) {
			t.Errorf("%s: the links are %v, want %v", name, got, c.want)
		}
	}
}

func TestL2AdsOfEachAddressWithTwoPools(t *testing.T) {
	e := newExampleCluster()
	e.addIPv6Address()
	e.addL2Advertisement(nil, "six")
	coverage, _ := L2AdsCoveringService(&e.snapshot, &e.service)
	if !slices.Equal(coverage.Addresses, []netip.Addr{exampleIPv6Address}) || coverage.AdsOfAddress(0)[0].Name != "l2-six" {
		t.Errorf("%v are covered by %v, want the second address by its own", coverage.Addresses, coverage.Ads)
	}
	e.snapshot.L2Advertisements[0].Pools = []string{"four"}
	e.service.Addresses = e.service.Addresses[:1]
	coverage, _ = L2AdsCoveringService(&e.snapshot, &e.service)
	if len(coverage.Addresses) != 1 || len(coverage.AdsOfAddress(0)) != 1 {
		t.Errorf("%v are covered by %v", coverage.Addresses, coverage.Ads)
	}
	if ads := L2AdvertisementsOfPool(&e.snapshot, "four"); len(ads) != 1 || len(L2AdvertisementsOfPool(&e.snapshot, "six")) > 0 {
		t.Errorf("pool four has the advertisements %v", ads)
	}
}
