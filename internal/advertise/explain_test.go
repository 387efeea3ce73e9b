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

// example is a Service with one address in the pool "four", and three nodes with the label "name".
type example struct {
	snapshot snapshot.Snapshot
	service  Service
	nodes    []snapshot.NodeLabels
}

func newExample() *example {
	e := &example{service: Service{Labels: labels.Set{"app": "web"}, Addresses: []netip.Addr{exampleIPv4Address}}}
	e.snapshot.Pools = []*snapshot.Pool{
		{Name: "four", Ranges: []snapshot.Range{{First: exampleIPv4Address, Last: exampleIPv4Address}}},
		{Name: "six", Ranges: []snapshot.Range{{First: exampleIPv6Address, Last: exampleIPv6Address}}},
	}
	for _, name := range []string{"a", "b", "c"} {
		e.nodes = append(e.nodes, snapshot.NodeLabels{Name: name, Labels: map[string]string{"name": name}})
	}
	return e
}

// answer adds an L2Advertisement of the pools.
func (e *example) answer(edit func(*snapshot.L2Advertisement), pools ...string) {
	ad := &snapshot.L2Advertisement{Name: "l2-" + strings.Join(pools, "-"), Pools: pools}
	if edit != nil {
		edit(ad)
	}
	e.snapshot.L2Advertisements = append(e.snapshot.L2Advertisements, ad)
}

// route adds a BGPAdvertisement of the pools.
func (e *example) route(edit func(*snapshot.BGPAdvertisement), pools ...string) {
	ad := &snapshot.BGPAdvertisement{Name: "bgp-" + strings.Join(pools, "-"), Pools: pools, PrefixLengthIPv4: 32, PrefixLengthIPv6: 128}
	if edit != nil {
		edit(ad)
	}
	e.snapshot.BGPAdvertisements = append(e.snapshot.BGPAdvertisements, ad)
}

// peer adds a BGPPeer with an IPv4 address.
func (e *example) peer(name string, nodes ...labels.Selector) {
	e.snapshot.Peers = append(e.snapshot.Peers, &snapshot.Peer{Name: name, Address: netip.MustParseAddr("192.0.2.254"), NodeSelectors: nodes})
}

// both gives the Service a second address, of the pool "six".
func (e *example) both() { e.service.Addresses = append(e.service.Addresses, exampleIPv6Address) }

func (e *example) exclude(nodes ...int) {
	for _, i := range nodes {
		e.nodes[i].Labels[names.LabelExcludeNode] = ""
	}
}

func selectLabel(key, value string) labels.Selector {
	return labels.SelectorFromSet(labels.Set{key: value})
}

func selectL2NodeByName(node string) func(*snapshot.L2Advertisement) {
	return func(ad *snapshot.L2Advertisement) { ad.NodeSelectors = []labels.Selector{selectLabel("name", node)} }
}

func selectBGPNodeByName(node string) func(*snapshot.BGPAdvertisement) {
	return func(ad *snapshot.BGPAdvertisement) {
		ad.NodeSelectors = []labels.Selector{selectLabel("name", node)}
	}
}

func selectBGPPeerByName(peer string) func(*snapshot.BGPAdvertisement) {
	return func(ad *snapshot.BGPAdvertisement) { ad.Peers = []string{peer} }
}

func setLocalPrefForPeer(peer string, n uint32) func(*snapshot.BGPAdvertisement) {
	return func(ad *snapshot.BGPAdvertisement) { ad.LocalPref, ad.Peers = n, []string{peer} }
}

// explanationCases are configurations with the reason why an address is not announced; no reason
// when it is.
var explanationCases = map[string]struct {
	edit func(*example)
	want names.Reason
	text string
}{
	"an L2Advertisement without limits": {edit: func(e *example) { e.answer(nil, "four") }},
	"a BGPAdvertisement and a BGPPeer":  {edit: func(e *example) { e.route(nil, "four"); e.peer("x") }},
	"one node is enough":                {edit: func(e *example) { e.answer(selectL2NodeByName("c"), "four"); e.exclude(0, 1) }},
	"every node is excluded, and the label does not count": {edit: func(e *example) {
		e.answer(nil, "four")
		e.exclude(0, 1, 2)
		e.snapshot.IgnoresExcludeLabel = true
	}},
	"one address of two is enough": {edit: func(e *example) { e.both(); e.answer(nil, "four") }},
	"an address outside of its pool that the Service keeps": {edit: func(e *example) {
		e.answer(nil, "four")
		e.service.Addresses, e.service.RecordedPool = []netip.Addr{netip.MustParseAddr("203.0.113.1")}, "four"
	}},
	"the second protocol stands in for the first": {edit: func(e *example) {
		e.answer(selectL2NodeByName("none"), "four")
		e.route(nil, "four")
		e.peer("x")
	}},

	"an address of no pool": {edit: func(e *example) {
		e.answer(nil, "four")
		e.service.Addresses = append(e.service.Addresses, netip.MustParseAddr("203.0.113.1"))
	}, want: names.ReasonAddressOutsidePools, text: "the address 203.0.113.1 is in no IPAddressPool"},
	"no advertisement": {edit: func(e *example) { e.both() },
		want: names.ReasonNoAdvertisement, text: `selects pool "four" or "six" and this Service`},
	"advertisements of another pool": {edit: func(e *example) { e.answer(nil, "six"); e.route(nil, "six") },
		want: names.ReasonNoAdvertisement, text: `selects pool "four" and this Service`},
	"advertisements for other Services": {edit: func(e *example) {
		e.answer(func(ad *snapshot.L2Advertisement) { ad.ServiceSelectors = []labels.Selector{selectLabel("app", "db")} }, "four")
		e.route(func(ad *snapshot.BGPAdvertisement) { ad.ServiceSelectors = []labels.Selector{selectLabel("app", "db")} }, "four")
	}, want: names.ReasonNoAdvertisement, text: "create one"},
	"a shared address and a service selector": {edit: func(e *example) {
		e.service.HasSharingKey = true
		e.answer(func(ad *snapshot.L2Advertisement) { ad.ServiceSelectors = []labels.Selector{selectLabel("app", "web")} }, "four")
	}, want: names.ReasonSharedWithServiceSelector, text: `the L2Advertisement "l2-four" has serviceSelectors`},
	"every selected node is excluded": {edit: func(e *example) { e.answer(selectL2NodeByName("a"), "four"); e.exclude(0) },
		want: names.ReasonNodeExcluded, text: names.LabelExcludeNode},
	"every node that gets routes is excluded": {edit: func(e *example) { e.route(nil, "four"); e.peer("x"); e.exclude(0, 1, 2) },
		want: names.ReasonNodeExcluded, text: "remove it from one of them"},
	"node selectors that match no node": {edit: func(e *example) {
		e.answer(selectL2NodeByName("none"), "four")
		e.route(selectBGPNodeByName("none"), "four")
	},
		want: names.ReasonNoAdvertisement, text: "match no node"},
	"no node at all": {edit: func(e *example) { e.answer(nil, "four"); e.nodes = nil },
		want: names.ReasonNoAdvertisement, text: "match no node"},
	"no BGPPeer": {edit: func(e *example) { e.route(nil, "four") },
		want: names.ReasonNoPeers, text: "create one, or correct their spec.peers"},
	"only BGPPeers of other names": {edit: func(e *example) { e.route(selectBGPPeerByName("y"), "four"); e.peer("x") },
		want: names.ReasonNoPeers, text: "create one, or correct their spec.peers"},
	"only BGPPeers of other nodes": {edit: func(e *example) { e.route(selectBGPNodeByName("a"), "four"); e.peer("x", selectLabel("name", "b")) },
		want: names.ReasonNoPeers, text: "no BGPPeer on a node that they select"},
	"only BGPPeers of another family": {edit: func(e *example) {
		e.service.Addresses = []netip.Addr{exampleIPv6Address}
		e.route(nil, "six")
		e.peer("x")
	}, want: names.ReasonNoPeers, text: "for the family of the address"},
	"no BGPPeer, and an L2Advertisement for no node": {edit: func(e *example) { e.answer(selectL2NodeByName("none"), "four"); e.route(nil, "four") },
		want: names.ReasonNoPeers, text: "no BGPPeer to announce it to"},
	"a contradiction beside an L2Advertisement for no node": {edit: func(e *example) {
		e.answer(selectL2NodeByName("none"), "four")
		e.route(setLocalPrefForPeer("x", 7), "four")
		e.route(setLocalPrefForPeer("x", 8), "four", "six")
		e.peer("x")
	}, want: names.ReasonConflictingAdvertisements, text: `"bgp-four" and "bgp-four-six"`},
	"two preferences for addresses of two pools": {edit: func(e *example) {
		e.both()
		e.route(setLocalPrefForPeer("x", 7), "four")
		e.route(setLocalPrefForPeer("x", 8), "six")
		e.peer("x")
	}},
	"two preferences, and a node with only one of them": {edit: func(e *example) {
		e.route(setLocalPrefForPeer("x", 7), "four")
		e.route(func(ad *snapshot.BGPAdvertisement) { setLocalPrefForPeer("x", 8)(ad); selectBGPNodeByName("a")(ad) }, "four")
		e.peer("x")
	}},
	"two preferences, and the other node is excluded": {edit: func(e *example) {
		e.route(setLocalPrefForPeer("x", 7), "four")
		e.route(func(ad *snapshot.BGPAdvertisement) { setLocalPrefForPeer("x", 8)(ad); selectBGPNodeByName("a")(ad) }, "four")
		e.peer("x")
		e.exclude(1, 2)
	}, want: names.ReasonConflictingAdvertisements, text: "with a localPref of 7 and of 8"},
	"addresses of two pools that are announced on different nodes": {edit: func(e *example) {
		e.both()
		e.answer(selectL2NodeByName("a"), "four")
		e.answer(selectL2NodeByName("b"), "six")
	}, want: names.ReasonNoAdvertisement, text: "let the nodeSelectors have a node in common"},
}

func TestExplanation(t *testing.T) {
	for name, c := range explanationCases {
		t.Run(name, func(t *testing.T) {
			e := newExample()
			c.edit(e)
			why := Explain(&e.snapshot, &e.service, e.nodes)
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

func TestRulesAcceptMissingSnapshot(t *testing.T) {
	e := newExample()
	if got := Explain(nil, &e.service, e.nodes).Reason; got != names.ReasonAddressOutsidePools {
		t.Errorf("the reason is %q, want %q", got, names.ReasonAddressOutsidePools)
	}
	if ads := L2AdvertisementsOfPool(nil, "four"); len(ads) > 0 {
		t.Errorf("pool four has the advertisements %v, want none", ads)
	}
	if _, reason := Layer2(nil, &Service{}); reason != names.ReasonNoAddress {
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
