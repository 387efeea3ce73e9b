package advertise

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/ipfamily"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
)

// describeBGPCoverage lists the advertisements with their addresses.
func describeBGPCoverage(coverage []BGPCoverage) string {
	var out []string
	for _, c := range coverage {
		out = append(out, fmt.Sprint(c.Ad.Name, c.Addresses))
	}
	return strings.Join(out, " ")
}

func TestWhichBGPAdvertisementsNodeUses(t *testing.T) {
	for name, c := range map[string]struct {
		edit func(*exampleCluster)
		node view.Node
		ads  string
		want names.Reason
	}{
		"one advertisement": {edit: func(e *exampleCluster) { e.addBGPAdvertisement(nil, "four") }, ads: "bgp-four[192.0.2.1]"},
		"each address has its own": {edit: func(e *exampleCluster) {
			e.addIPv6Address()
			e.addBGPAdvertisement(nil, "four")
			e.addBGPAdvertisement(nil, "six")
		},
			ads: "bgp-four[192.0.2.1] bgp-six[fd00:1::1]"},
		"one for both": {edit: func(e *exampleCluster) { e.addIPv6Address(); e.addBGPAdvertisement(nil, "four", "six") }, ads: "bgp-four-six[192.0.2.1 fd00:1::1]"},
		"only those of the node": {edit: func(e *exampleCluster) {
			e.addIPv6Address()
			e.addBGPAdvertisement(nil, "four")
			e.addBGPAdvertisement(limitBGPAdToNode("b"), "six")
			e.addBGPAdvertisement(limitBGPAdToNode("a"), "four", "six")
		}, ads: "bgp-four[192.0.2.1] bgp-four-six[192.0.2.1 fd00:1::1]"},
		"none for the node": {edit: func(e *exampleCluster) { e.addBGPAdvertisement(limitBGPAdToNode("b"), "four") }, want: names.ReasonNoAdvertisement},
		"a leaving and excluded node withdraws its routes itself": {edit: func(e *exampleCluster) { e.addBGPAdvertisement(nil, "four") },
			node: view.Node{IsLeaving: true, IsExcluded: true}, ads: "bgp-four[192.0.2.1]"},
		"a node without network": {edit: func(e *exampleCluster) { e.addBGPAdvertisement(nil, "four") },
			node: view.Node{NetworkUnavailable: true}, want: names.ReasonNodeNetworkUnavailable},
		"a contradiction counts before the node's network": {edit: func(e *exampleCluster) {
			e.addBGPAdvertisement(setLocalPrefForPeer("x", 1), "four")
			e.addBGPAdvertisement(setLocalPrefForPeer("x", 2), "four")
		},
			node: view.Node{NetworkUnavailable: true}, want: names.ReasonConflictingAdvertisements},
		"a contradiction with an advertisement for all peers": {edit: func(e *exampleCluster) {
			e.addBGPAdvertisement(setLocalPrefForPeer("x", 1), "four")
			e.addBGPAdvertisement(nil, "four")
		},
			want: names.ReasonConflictingAdvertisements},
		"two preferences for two peers": {edit: func(e *exampleCluster) {
			e.addBGPAdvertisement(setLocalPrefForPeer("x", 1), "four")
			e.addBGPAdvertisement(setLocalPrefForPeer("y", 2), "four")
		},
			ads: "bgp-four[192.0.2.1] bgp-four[192.0.2.1]"},
	} {
		e := newExampleCluster()
		c.edit(e)
		if c.node.Labels == nil {
			c.node.Labels = map[string]string{"name": "a"}
		}
		coverage, reason := BGPAdsCoveringService(&e.snapshot, &e.service)
		if reason == "" {
			coverage, reason = BGPAdsUsableOnNode(coverage, &c.node)
		}
		if got := describeBGPCoverage(coverage); got != c.ads || reason != c.want {
			t.Errorf("%s: the node announces %q, reason %q; want %q, %q", name, got, reason, c.ads, c.want)
		}
	}
}

// The limit is one for each peer and prefix. A community that several advertisements have counts
// once.
func TestCommunityLimitPerPeerAndPrefix(t *testing.T) {
	standard := func(from, count int) func(*snapshot.BGPAdvertisement) {
		return func(ad *snapshot.BGPAdvertisement) {
			for i := range count {
				ad.Communities = append(ad.Communities, snapshot.Community{FirstPart: 1, SecondPart: uint32(from + i)})
			}
		}
	}
	extended := func(count int) func(*snapshot.BGPAdvertisement) {
		return func(ad *snapshot.BGPAdvertisement) {
			for i := range count {
				ad.ExtendedCommunities = append(ad.ExtendedCommunities, snapshot.ExtendedCommunity{byte(i >> 8), byte(i)})
			}
		}
	}
	large := func(ad *snapshot.BGPAdvertisement) {
		for i := range 10 {
			ad.Communities = append(ad.Communities, snapshot.Community{Large: true, ThirdPartOfLarge: uint32(i)})
		}
	}
	toPeer := func(peer string, edit func(*snapshot.BGPAdvertisement)) func(*snapshot.BGPAdvertisement) {
		return func(ad *snapshot.BGPAdvertisement) { edit(ad); limitBGPAdToPeer(peer)(ad) }
	}
	for name, c := range map[string]struct {
		edits []func(*snapshot.BGPAdvertisement)
		want  names.Reason
	}{
		"as many standard ones as fit":              {[]func(*snapshot.BGPAdvertisement){standard(0, MaxCommunityBytesPerRoute/4)}, ""},
		"one standard one too many":                 {[]func(*snapshot.BGPAdvertisement){standard(0, MaxCommunityBytesPerRoute/4+1)}, names.ReasonTooManyCommunities},
		"one too many in two advertisements":        {[]func(*snapshot.BGPAdvertisement){standard(0, 500), standard(500, MaxCommunityBytesPerRoute/4-499)}, names.ReasonTooManyCommunities},
		"the same ones in two advertisements":       {[]func(*snapshot.BGPAdvertisement){standard(0, 800), standard(100, 800)}, ""},
		"for two peers":                             {[]func(*snapshot.BGPAdvertisement){toPeer("x", standard(0, 800)), toPeer("y", standard(800, 800))}, ""},
		"for one peer, beside one for all":          {[]func(*snapshot.BGPAdvertisement){standard(0, 800), toPeer("y", standard(800, 800))}, names.ReasonTooManyCommunities},
		"as many extended ones as fit":              {[]func(*snapshot.BGPAdvertisement){extended(MaxCommunityBytesPerRoute / 8)}, ""},
		"one extended one too many":                 {[]func(*snapshot.BGPAdvertisement){extended(MaxCommunityBytesPerRoute/8 + 1)}, names.ReasonTooManyCommunities},
		"the space of large ones":                   {[]func(*snapshot.BGPAdvertisement){standard(0, MaxCommunityBytesPerRoute/4-30), large}, ""},
		"one more than the space beside large ones": {[]func(*snapshot.BGPAdvertisement){standard(0, MaxCommunityBytesPerRoute/4-29), large}, names.ReasonTooManyCommunities},
		"too many, but for prefixes of two lengths": {[]func(*snapshot.BGPAdvertisement){
			standard(0, 800), func(ad *snapshot.BGPAdvertisement) { standard(800, 800)(ad); ad.PrefixLengthIPv4 = 24 },
		}, ""},
	} {
		e := newExampleCluster()
		for _, edit := range c.edits {
			e.addBGPAdvertisement(edit, "four")
		}
		coverage, _ := BGPAdsCoveringService(&e.snapshot, &e.service)
		if _, got := BGPAdsUsableOnNode(coverage, &view.Node{}); got != c.want {
			t.Errorf("%s: the reason is %q, want %q", name, got, c.want)
		}
	}
}

func TestWhichPeersOfNodeGetRoute(t *testing.T) {
	for name, c := range map[string]struct {
		edit func(*exampleCluster)
		want []string
	}{
		"all peers": {func(e *exampleCluster) { e.addBGPAdvertisement(nil, "four"); e.addBGPPeer("x"); e.addBGPPeer("y") }, []string{"x", "y"}},
		"the named peer": {func(e *exampleCluster) {
			e.addBGPAdvertisement(limitBGPAdToPeer("y"), "four")
			e.addBGPPeer("x")
			e.addBGPPeer("y")
		}, []string{"y"}},
		"only those of the node": {func(e *exampleCluster) {
			e.addBGPAdvertisement(nil, "four")
			e.addBGPPeer("x", newLabelSelector("name", "b"))
			e.addBGPPeer("y")
		}, []string{"y"}},
		"a peer that carries the other family": {func(e *exampleCluster) {
			e.service.Addresses = []netip.Addr{exampleIPv6Address}
			e.addBGPAdvertisement(nil, "six")
			e.addBGPPeer("x")
		}, nil},
		"a peer that carries both families": {func(e *exampleCluster) {
			e.service.Addresses = []netip.Addr{exampleIPv6Address}
			e.addBGPAdvertisement(nil, "six")
			e.addBGPPeer("x")
			e.snapshot.Peers[0].DualStack = true
		}, []string{"x"}},
		"a faulty peer, of which the family is unknown": {func(e *exampleCluster) {
			e.addBGPAdvertisement(nil, "four")
			e.snapshot.Peers = []*snapshot.Peer{{Name: "x", FirstProblem: &snapshot.Problem{}}}
		}, []string{"x"}},
		"an unnumbered peer": {func(e *exampleCluster) {
			e.addBGPAdvertisement(nil, "four")
			e.snapshot.Peers = []*snapshot.Peer{{Name: "x", Interface: "eth0"}}
		}, []string{"x"}},
		"the default gateways": {func(e *exampleCluster) {
			e.addBGPAdvertisement(nil, "four")
			e.snapshot.Peers = []*snapshot.Peer{{Name: "four", DefaultGatewayFamily: ipfamily.IPv4}, {Name: "six", DefaultGatewayFamily: ipfamily.IPv6}}
		}, []string{"four"}},
	} {
		e := newExampleCluster()
		c.edit(e)
		n := view.Node{Labels: labels.Set{"name": "a"}}
		coverage, _ := BGPAdsCoveringService(&e.snapshot, &e.service)
		if got := NamesOfPeersGettingRoute(coverage, e.snapshot.Peers, &n); !slices.Equal(got, c.want) {
			t.Errorf("%s: the peers are %v, want %v", name, got, c.want)
		}
	}
}

func TestBGPCoverageEqual(t *testing.T) {
	ad := &snapshot.BGPAdvertisement{}
	x := BGPCoverage{ad, []netip.Addr{exampleIPv4Address}}
	if !x.Equal(BGPCoverage{ad, []netip.Addr{exampleIPv4Address}}) || x.Equal(BGPCoverage{ad, nil}) || x.Equal(BGPCoverage{&snapshot.BGPAdvertisement{}, x.Addresses}) {
		t.Error("coverages are equal if advertisement and addresses are")
	}
}
