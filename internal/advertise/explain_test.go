package advertise

import (
	"net/netip"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
)

var (
	exampleIPv4Address = netip.MustParseAddr("192.0.2.1")
	exampleIPv6Address = netip.MustParseAddr("fd00:1::1")
)

// exampleCluster is a Service with one address in the pool "four", and three nodes with the label
// "name".
type exampleCluster struct {
	snapshot snapshot.Snapshot
	service  Service
	nodes    []snapshot.NodeLabels
}

func newExampleCluster() *exampleCluster {
	e := &exampleCluster{service: Service{Labels: labels.Set{"app": "web"}, Addresses: []netip.Addr{exampleIPv4Address}}}
	e.snapshot.Pools = []*snapshot.Pool{
		{Name: "four", Ranges: []snapshot.Range{{First: exampleIPv4Address, Last: exampleIPv4Address}}},
		{Name: "six", Ranges: []snapshot.Range{{First: exampleIPv6Address, Last: exampleIPv6Address}}},
	}
	for _, name := range []string{"a", "b", "c"} {
		e.nodes = append(e.nodes, snapshot.NodeLabels{Name: name, Labels: map[string]string{"name": name}})
	}
	return e
}

// addL2Advertisement adds an L2Advertisement of the pools.
func (e *exampleCluster) addL2Advertisement(edit func(*snapshot.L2Advertisement), pools ...string) {
	ad := &snapshot.L2Advertisement{Name: "l2-" + strings.Join(pools, "-"), Pools: pools}
	if edit != nil {
		edit(ad)
	}
	e.snapshot.L2Advertisements = append(e.snapshot.L2Advertisements, ad)
}

// addBGPAdvertisement adds a BGPAdvertisement of the pools.
func (e *exampleCluster) addBGPAdvertisement(edit func(*snapshot.BGPAdvertisement), pools ...string) {
	ad := &snapshot.BGPAdvertisement{Name: "bgp-" + strings.Join(pools, "-"), Pools: pools, PrefixLengthIPv4: 32, PrefixLengthIPv6: 128}
	if edit != nil {
		edit(ad)
	}
	e.snapshot.BGPAdvertisements = append(e.snapshot.BGPAdvertisements, ad)
}

// addBGPPeer adds a BGPPeer with an IPv4 address.
func (e *exampleCluster) addBGPPeer(name string, nodes ...labels.Selector) {
	e.snapshot.Peers = append(e.snapshot.Peers, &snapshot.Peer{Name: name, Address: netip.MustParseAddr("192.0.2.254"), NodeSelectors: nodes})
}

// addIPv6Address gives the Service a second address, of the pool "six".
func (e *exampleCluster) addIPv6Address() {
	e.service.Addresses = append(e.service.Addresses, exampleIPv6Address)
}

func (e *exampleCluster) excludeNodes(nodes ...int) {
	for _, i := range nodes {
		e.nodes[i].Labels[names.LabelExcludeNode] = ""
	}
}

func newLabelSelector(key, value string) labels.Selector {
	return labels.SelectorFromSet(labels.Set{key: value})
}

func limitL2AdToNode(node string) func(*snapshot.L2Advertisement) {
	return func(ad *snapshot.L2Advertisement) {
		ad.NodeSelectors = []labels.Selector{newLabelSelector("name", node)}
	}
}

func limitBGPAdToNode(node string) func(*snapshot.BGPAdvertisement) {
	return func(ad *snapshot.BGPAdvertisement) {
		ad.NodeSelectors = []labels.Selector{newLabelSelector("name", node)}
	}
}

func limitBGPAdToPeer(peer string) func(*snapshot.BGPAdvertisement) {
	return func(ad *snapshot.BGPAdvertisement) { ad.Peers = []string{peer} }
}

func setLocalPrefForPeer(peer string, n uint32) func(*snapshot.BGPAdvertisement) {
	return func(ad *snapshot.BGPAdvertisement) { ad.LocalPref, ad.Peers = n, []string{peer} }
}

// unannouncedServiceCases are configurations with the reason why an address is not announced; no
// reason when it is.
var unannouncedServiceCases = map[string]struct {
	edit func(*exampleCluster)
	want names.Reason
	text string
}{
	"an L2Advertisement without limits": {edit: func(e *exampleCluster) { e.addL2Advertisement(nil, "four") }},
	"a BGPAdvertisement and a BGPPeer":  {edit: func(e *exampleCluster) { e.addBGPAdvertisement(nil, "four"); e.addBGPPeer("x") }},
	"one node is enough":                {edit: func(e *exampleCluster) { e.addL2Advertisement(limitL2AdToNode("c"), "four"); e.excludeNodes(0, 1) }},
	"every node is excluded, and the label does not count": {edit: func(e *exampleCluster) {
		e.addL2Advertisement(nil, "four")
		e.excludeNodes(0, 1, 2)
		e.snapshot.IgnoresExcludeLabel = true
	}},
	"one address of two is enough": {edit: func(e *exampleCluster) { e.addIPv6Address(); e.addL2Advertisement(nil, "four") }},
	"an address outside of its pool that the Service keeps": {edit: func(e *exampleCluster) {
		e.addL2Advertisement(nil, "four")
		e.service.Addresses, e.service.RecordedPool = []netip.Addr{netip.MustParseAddr("203.0.113.1")}, "four"
	}},
	"the second protocol stands in for the first": {edit: func(e *exampleCluster) {
		e.addL2Advertisement(limitL2AdToNode("none"), "four")
		e.addBGPAdvertisement(nil, "four")
		e.addBGPPeer("x")
	}},

	"an address of no pool": {edit: func(e *exampleCluster) {
		e.addL2Advertisement(nil, "four")
		e.service.Addresses = append(e.service.Addresses, netip.MustParseAddr("203.0.113.1"))
	}, want: names.ReasonAddressOutsidePools, text: "the address 203.0.113.1 is in no IPAddressPool"},
	"no advertisement": {edit: func(e *exampleCluster) { e.addIPv6Address() },
		want: names.ReasonNoAdvertisement, text: `selects pool "four" or "six" and this Service`},
	"advertisements of another pool": {edit: func(e *exampleCluster) { e.addL2Advertisement(nil, "six"); e.addBGPAdvertisement(nil, "six") },
		want: names.ReasonNoAdvertisement, text: `selects pool "four" and this Service`},
	"advertisements for other Services": {edit: func(e *exampleCluster) {
		e.addL2Advertisement(func(ad *snapshot.L2Advertisement) {
			ad.ServiceSelectors = []labels.Selector{newLabelSelector("app", "db")}
		}, "four")
		e.addBGPAdvertisement(func(ad *snapshot.BGPAdvertisement) {
			ad.ServiceSelectors = []labels.Selector{newLabelSelector("app", "db")}
		}, "four")
	}, want: names.ReasonNoAdvertisement, text: "create one"},
	"a shared address and a service selector": {edit: func(e *exampleCluster) {
		e.service.HasSharingKey = true
		e.addL2Advertisement(func(ad *snapshot.L2Advertisement) {
			ad.ServiceSelectors = []labels.Selector{newLabelSelector("app", "web")}
		}, "four")
	}, want: names.ReasonSharedWithServiceSelector, text: `the L2Advertisement "l2-four" has serviceSelectors`},
	"every selected node is excluded": {edit: func(e *exampleCluster) { e.addL2Advertisement(limitL2AdToNode("a"), "four"); e.excludeNodes(0) },
		want: names.ReasonNodeExcluded, text: names.LabelExcludeNode},
	"every node that gets routes is excluded": {edit: func(e *exampleCluster) {
		e.addBGPAdvertisement(nil, "four")
		e.addBGPPeer("x")
		e.excludeNodes(0, 1, 2)
	},
		want: names.ReasonNodeExcluded, text: "remove it from one of them. In a cluster without other nodes, set the flag --ignore-exclude-lb"},
	"node selectors that match no node": {edit: func(e *exampleCluster) {
		e.addL2Advertisement(limitL2AdToNode("none"), "four")
		e.addBGPAdvertisement(limitBGPAdToNode("none"), "four")
	},
		want: names.ReasonNoAdvertisement, text: "match no node"},
	"no node at all": {edit: func(e *exampleCluster) { e.addL2Advertisement(nil, "four"); e.nodes = nil },
		want: names.ReasonNoAdvertisement, text: "match no node"},
	"no BGPPeer": {edit: func(e *exampleCluster) { e.addBGPAdvertisement(nil, "four") },
		want: names.ReasonNoPeers, text: "create one, or correct their spec.peers"},
	"only BGPPeers of other names": {edit: func(e *exampleCluster) { e.addBGPAdvertisement(limitBGPAdToPeer("y"), "four"); e.addBGPPeer("x") },
		want: names.ReasonNoPeers, text: "create one, or correct their spec.peers"},
	"only BGPPeers of other nodes": {edit: func(e *exampleCluster) {
		e.addBGPAdvertisement(limitBGPAdToNode("a"), "four")
		e.addBGPPeer("x", newLabelSelector("name", "b"))
	},
		want: names.ReasonNoPeers, text: "no BGPPeer on a node that they select"},
	"only BGPPeers of another family": {edit: func(e *exampleCluster) {
		e.service.Addresses = []netip.Addr{exampleIPv6Address}
		e.addBGPAdvertisement(nil, "six")
		e.addBGPPeer("x")
	}, want: names.ReasonNoPeers, text: "for the family of the address"},
	"no BGPPeer, and an L2Advertisement for no node": {edit: func(e *exampleCluster) {
		e.addL2Advertisement(limitL2AdToNode("none"), "four")
		e.addBGPAdvertisement(nil, "four")
	},
		want: names.ReasonNoPeers, text: "no BGPPeer to announce it to"},
	"a contradiction beside an L2Advertisement for no node": {edit: func(e *exampleCluster) {
		e.addL2Advertisement(limitL2AdToNode("none"), "four")
		e.addBGPAdvertisement(setLocalPrefForPeer("x", 7), "four")
		e.addBGPAdvertisement(setLocalPrefForPeer("x", 8), "four", "six")
		e.addBGPPeer("x")
	}, want: names.ReasonConflictingAdvertisements, text: `"bgp-four" and "bgp-four-six"`},
	"two preferences for addresses of two pools": {edit: func(e *exampleCluster) {
		e.addIPv6Address()
		e.addBGPAdvertisement(setLocalPrefForPeer("x", 7), "four")
		e.addBGPAdvertisement(setLocalPrefForPeer("x", 8), "six")
		e.addBGPPeer("x")
	}},
	"two preferences, and a node with only one of them": {edit: func(e *exampleCluster) {
		e.addBGPAdvertisement(setLocalPrefForPeer("x", 7), "four")
		e.addBGPAdvertisement(func(ad *snapshot.BGPAdvertisement) { setLocalPrefForPeer("x", 8)(ad); limitBGPAdToNode("a")(ad) }, "four")
		e.addBGPPeer("x")
	}},
	"two preferences, and the other node is excluded": {edit: func(e *exampleCluster) {
		e.addBGPAdvertisement(setLocalPrefForPeer("x", 7), "four")
		e.addBGPAdvertisement(func(ad *snapshot.BGPAdvertisement) { setLocalPrefForPeer("x", 8)(ad); limitBGPAdToNode("a")(ad) }, "four")
		e.addBGPPeer("x")
		e.excludeNodes(1, 2)
	}, want: names.ReasonConflictingAdvertisements, text: "with a localPref of 7 and of 8"},
	"addresses of two pools that are announced on different nodes": {edit: func(e *exampleCluster) {
		e.addIPv6Address()
		e.addL2Advertisement(limitL2AdToNode("a"), "four")
		e.addL2Advertisement(limitL2AdToNode("b"), "six")
	}, want: names.ReasonNoAdvertisement, text: "let the nodeSelectors have a node in common"},
}

func TestExplainUnannouncedService(t *testing.T) {
	for name, c := range unannouncedServiceCases {
		t.Run(name, func(t *testing.T) {
			e := newExampleCluster()
			c.edit(e)
			why := ExplainUnannouncedService(&e.snapshot, &e.service, e.nodes)
			got, text := why.Reason, why.Text
			if got != c.want || !strings.Contains(text, c.text) {
				t.Errorf("the condition says %q, %q; want %q with %q", got, text, c.want, c.text)
			}
			if (got == "") != (text == "") {
				t.Errorf("Reason %q has the text %q", got, text)
			}
		})
	}
}

func TestExplainAndCoverageAcceptNilSnapshot(t *testing.T) {
	e := newExampleCluster()
	if got := ExplainUnannouncedService(nil, &e.service, e.nodes).Reason; got != names.ReasonAddressOutsidePools {
		t.Errorf("the reason is %q, want %q", got, names.ReasonAddressOutsidePools)
	}
	if ads := L2AdvertisementsOfPool(nil, "four"); len(ads) > 0 {
		t.Errorf("pool four has the advertisements %v, want none", ads)
	}
	if _, reason := L2AdsCoveringService(nil, &Service{}); reason != names.ReasonNoAddress {
		t.Errorf("without an address the reason is %q, want %q", reason, names.ReasonNoAddress)
	}
}

func TestServiceFromViewKeepsUsedFields(t *testing.T) {
	got := ServiceFromView(&view.Service{
		Labels: map[string]string{"app": "web"}, RecordedPool: "four",
		AssignedAddresses: []netip.Addr{exampleIPv4Address}, HasSharingAnnotation: true,
	})
	if got.Labels.Get("app") != "web" || got.RecordedPool != "four" || len(got.Addresses) != 1 || !got.HasSharingKey {
		t.Errorf("the Service is %+v", got)
	}
}
