package advertise

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
)

// explanationRules are the rules of ExplainUnannouncedService, in order. The first one that fails
// is the explanation. Each returns why no node announces the Service, or nothing if that is not the
// cause.
var explanationRules = []func(*unannouncedService) names.Explanation{
	(*unannouncedService).explainAddressOutsidePools,
	(*unannouncedService).explainNoAdvertisement,
	(*unannouncedService).explainSharedWithServiceSelector,
	(*unannouncedService).explainAllSelectedNodesExcluded,
	(*unannouncedService).explainNoNodeSelected,
	(*unannouncedService).explainNoPeer,
	(*unannouncedService).explainUnusableBGPAds,
	(*unannouncedService).explainNoNodeForAllAddresses,
}

// ExplainUnannouncedService says which advertisement, selector or peer keeps every node from
// announcing the Service, and what to do. Nothing is set if at least one node may announce it: only
// the node itself, its links, its sessions or the endpoints can then be the cause. Explain uses
// only the labels of the nodes.
func ExplainUnannouncedService(s *snapshot.Snapshot, svc *Service, nodes []snapshot.NodeLabels) names.Explanation {
	f := &unannouncedService{snapshot: s, service: svc}
	f.layer2, f.layer2Reason = L2AdsCoveringService(s, svc)
	f.bgp, _ = BGPAdsCoveringService(s, svc)
	for i := range nodes {
		n := view.Node{Name: nodes[i].Name, Labels: nodes[i].Labels, IsExcluded: isNodeExcluded(s, nodes[i].Labels)}
		if f.mayNodeAnnounce(&n) {
			return names.Explanation{}
		}
		f.recordAdsSelectingNode(&n)
	}
	for _, rule := range explanationRules {
		if why := rule(f); why.IsSet() {
			return why
		}
	}
	return names.Explanation{}
}

// unannouncedService is what is known of a Service that no node announces.
type unannouncedService struct {
	snapshot *snapshot.Snapshot
	service  *Service
	// layer2 and bgp are the advertisements that cover the Service on any node.
	layer2       Layer2Coverage
	layer2Reason names.Reason
	bgp          []BGPCoverage
	// anyNodeSelected means that an advertisement selects a node,
	// anyExcludedNodeSelected that it selects an excluded one.
	anyNodeSelected, anyExcludedNodeSelected bool
	// anyNodeSelectedByBGPAd means that a BGPAdvertisement selects a node; anyPeerGetsRoute that
	// the node has a BGPPeer.
	anyNodeSelectedByBGPAd, anyPeerGetsRoute bool
	// unusableBGPAds are the BGPAdvertisements of the first node on which they contradict each
	// other.
	unusableBGPAds []BGPCoverage
}

// mayNodeAnnounce says whether the node may announce the Service.
func (f *unannouncedService) mayNodeAnnounce(n *view.Node) bool {
	if n.IsExcluded {
		return false
	}
	if f.layer2Reason == "" && f.layer2.NodeExclusionReason(n) == "" {
		return true
	}
	own, reason := BGPAdsUsableOnNode(f.bgp, n)
	return reason == "" && len(NamesOfPeersGettingRoute(own, f.snapshot.Peers, n)) > 0
}

// recordAdsSelectingNode records what the advertisements say about a node that does not announce
// the Service.
func (f *unannouncedService) recordAdsSelectingNode(n *view.Node) {
	own := adsSelectingNode(f.bgp, n)
	switch {
	case len(own) == 0 && !anyL2AdSelectsNode(f.layer2.Ads, n):
		return
	case n.IsExcluded:
		f.anyExcludedNodeSelected = true
		return
	}
	f.anyNodeSelected = true
	if len(own) == 0 {
		return
	}
	f.anyNodeSelectedByBGPAd = true
	f.anyPeerGetsRoute = f.anyPeerGetsRoute || len(NamesOfPeersGettingRoute(own, f.snapshot.Peers, n)) > 0
	if _, reason := BGPAdsUsableOnNode(own, n); reason != "" && f.unusableBGPAds == nil {
		f.unusableBGPAds = own
	}
}

func (f *unannouncedService) explainAddressOutsidePools() names.Explanation {
	for _, a := range f.service.Addresses {
		if f.snapshot.PoolOfEachAddress(f.service.RecordedPool, a) == nil {
			return names.NewExplanation(names.ReasonAddressOutsidePools,
				"the address %s is in no IPAddressPool%s: add it to one, or release it", a, f.namespacePhrase())
		}
	}
	return names.Explanation{}
}

func (f *unannouncedService) explainNoAdvertisement() names.Explanation {
	if len(f.layer2.Ads)+len(f.bgp) > 0 {
		return names.Explanation{}
	}
	return names.NewExplanation(names.ReasonNoAdvertisement,
		"no L2Advertisement or BGPAdvertisement%s selects pool %s and this Service: create one there", f.namespacePhrase(), f.quotePools())
}

// namespacePhrase names the namespace whose objects are read, as a part of a sentence.
func (f *unannouncedService) namespacePhrase() string {
	if f.snapshot == nil || f.snapshot.Namespace == "" {
		return ""
	}
	return " in namespace " + f.snapshot.Namespace
}

// listAds names the advertisements that cover the Service.
func (f *unannouncedService) listAds() string {
	var out []string
	for _, ad := range f.layer2.Ads {
		out = append(out, fmt.Sprintf("L2Advertisement %q", ad.Name))
	}
	for _, c := range f.bgp {
		out = append(out, fmt.Sprintf("BGPAdvertisement %q", c.Ad.Name))
	}
	return "the " + joinLimitedWithSeparator(" and the ", out, maxNodesInText, "advertisements")
}

// listBGPAds names the BGPAdvertisements that cover the Service.
func (f *unannouncedService) listBGPAds() string {
	var out []string
	for _, c := range f.bgp {
		out = append(out, c.Ad.Name)
	}
	return joinLimitedWithSeparator(", ", out, maxNodesInText, "advertisements")
}

// missingPeerNamesPhrase names the peers of these BGPAdvertisements, as a part of a sentence.
func (f *unannouncedService) missingPeerNamesPhrase() string {
	var out []string
	for _, c := range f.bgp {
		for _, p := range c.Ad.Peers {
			if !slices.Contains(out, p) {
				out = append(out, p)
			}
		}
	}
	if len(out) == 0 {
		return ""
	}
	return ", and none has the name " + joinLimitedWithSeparator(" or ", out, maxNodesInText, "names")
}

// quotePools lists the pools of the Service.
func (f *unannouncedService) quotePools() string {
	var out []string
	for _, p := range f.snapshot.PoolOfEachAddress(f.service.RecordedPool, f.service.Addresses...) {
		if name := strconv.Quote(p.Name); !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	return strings.Join(out, " or ")
}

func (f *unannouncedService) explainSharedWithServiceSelector() names.Explanation {
	if f.layer2Reason != names.ReasonSharedWithServiceSelector {
		return names.Explanation{}
	}
	i := slices.IndexFunc(f.layer2.Ads, hasServiceSelector)
	return names.NewExplanation(names.ReasonSharedWithServiceSelector,
		"the Service may share its address (annotation %s), and the L2Advertisement %q has serviceSelectors, which might separate the Services of the address: select by pool instead",
		names.AnnotationSharingKey, f.layer2.Ads[i].Name)
}

func (f *unannouncedService) explainAllSelectedNodesExcluded() names.Explanation {
	if f.anyNodeSelected || !f.anyExcludedNodeSelected {
		return names.Explanation{}
	}
	return names.Explanation{Reason: names.ReasonNodeExcluded, Text: "every node that the advertisements select has the label " + names.LabelExcludeNode + ": remove it from one of them. In a cluster without other nodes, set the flag --ignore-exclude-lb instead (chart: speaker.ignoreExcludeLB)"}
}

func (f *unannouncedService) explainNoNodeSelected() names.Explanation {
	if f.anyNodeSelected {
		return names.Explanation{}
	}
	return names.Explanation{Reason: names.ReasonNoAdvertisement, Text: fmt.Sprintf("the nodeSelectors of %s match no node: correct them, or label a node", f.listAds())}
}

func (f *unannouncedService) explainNoPeer() names.Explanation {
	if !f.anyNodeSelectedByBGPAd || f.anyPeerGetsRoute {
		return names.Explanation{}
	}
	exists := func(p *snapshot.Peer) bool {
		return slices.ContainsFunc(f.bgp, func(c BGPCoverage) bool { return c.AdmitsPeer(p.Name) })
	}
	if !slices.ContainsFunc(f.snapshot.Peers, exists) {
		return names.NewExplanation(names.ReasonNoPeers, "the BGPAdvertisements that select the Service (%s) have no BGPPeer to announce it to%s: create one%s, or correct their spec.peers", f.listBGPAds(), f.missingPeerNamesPhrase(), f.namespacePhrase())
	}
	return names.Explanation{Reason: names.ReasonNoPeers, Text: "the BGPAdvertisements that select the Service (" + f.listBGPAds() + ") have no BGPPeer on a node that they select, for the family of the address: correct the nodeSelectors of both, or create a BGPPeer with an address of this family"}
}

func (f *unannouncedService) explainUnusableBGPAds() names.Explanation {
	if two := findLocalPrefConflict(f.unusableBGPAds); two != nil {
		return names.NewExplanation(names.ReasonConflictingAdvertisements,
			"the BGPAdvertisements %q and %q both select the Service, with a localPref of %d and of %d: write the same value in both, or separate them by serviceSelectors, peers or nodeSelectors",
			two[0].Name, two[1].Name, two[0].LocalPref, two[1].LocalPref)
	}
	if ad := findAdOverCommunityLimit(f.unusableBGPAds); ad != nil {
		return names.NewExplanation(names.ReasonTooManyCommunities,
			"the BGPAdvertisements that select the Service, %q among them, have more communities in total than a route can carry: remove some, or separate them by peers", ad.Name)
	}
	return names.Explanation{}
}

// explainNoNodeForAllAddresses is the last rule: addresses in several pools, whose advertisements
// select different nodes.
func (f *unannouncedService) explainNoNodeForAllAddresses() names.Explanation {
	return names.Explanation{Reason: names.ReasonNoAdvertisement, Text: "no node is selected by the L2Advertisements of all addresses of the Service, which are in different pools: let the nodeSelectors have a node in common"}
}
