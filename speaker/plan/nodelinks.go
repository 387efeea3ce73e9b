package plan

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/advertise"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/facts"
)

// SetPublishedLinksOfNodes sets what the other nodes say about their links. A node without an entry
// counts as able to answer for every address.
func (p *Planner) SetPublishedLinksOfNodes(byNode map[string]*facts.PublishedLinks) {
	for name, n := range byNode {
		if !n.Equal(p.inputs.PublishedLinksByNode[name]) {
			p.mustReplanAll = true
		}
	}
	for name := range p.inputs.PublishedLinksByNode {
		if _, still := byNode[name]; !still {
			p.mustReplanAll = true
		}
	}
	p.inputs.PublishedLinksByNode = byNode
}

// publishedLinksOfNode returns what is known of the links of a node; nil if nothing is.
func (p *Planner) publishedLinksOfNode(name string) *facts.PublishedLinks {
	if name == p.inputs.SelfNode {
		if p.ownPublishedLinks == nil {
			p.ownPublishedLinks = facts.NewPublishedLinks(p.inputs.UsableLinks, p.inputs.DownLinks)
			p.ownPublishedLinks.RawSocketsDenied = p.inputs.RawSocketsDenied
		}
		return p.ownPublishedLinks
	}
	return p.inputs.PublishedLinksByNode[name]
}

// allSubnets returns the subnets of all nodes, sorted, each once.
func (p *Planner) allSubnets() []netip.Prefix {
	if p.subnetsOfNodes != nil {
		return p.subnetsOfNodes
	}
	p.subnetsOfNodes = []netip.Prefix{}
	for name := range p.inputs.Nodes {
		if n := p.publishedLinksOfNode(name); n != nil {
			for _, l := range n.Links {
				p.subnetsOfNodes = append(p.subnetsOfNodes, l.Subnets...)
			}
		}
	}
	slices.SortFunc(p.subnetsOfNodes, netip.Prefix.Compare)
	p.subnetsOfNodes = slices.Compact(p.subnetsOfNodes)
	return p.subnetsOfNodes
}

// keyOfCoveringSubnets returns a key for the subnets that contain the address. All addresses of one
// family with the same key can be answered by the same nodes.
func (p *Planner) keyOfCoveringSubnets(a netip.Addr) string {
	var key strings.Builder
	fmt.Fprintf(&key, "%t", a.Is4())
	for i, subnet := range p.allSubnets() {
		if subnet.Contains(a) {
			key.WriteByte(',')
			key.WriteString(strconv.Itoa(i))
		}
	}
	return key.String()
}

// nodesAbleToAnswerFor returns the admitted nodes that can answer for Addresses[i] of the coverage,
// as far as their links are known. They are shared by all addresses in the same subnets.
func (p *Planner) nodesAbleToAnswerFor(coverage *advertise.Layer2Coverage, i int) *nodesAdmittedByAds {
	a, ads := coverage.Addresses[i], coverage.AdsOfAddress(i)
	key := coverage.AdmittedNodesKey() + "|"
	for _, ad := range ads {
		key += ad.Name + "/"
	}
	key += "|" + p.keyOfCoveringSubnets(a)
	if f := p.admittedNodesByAds[key]; f != nil {
		return f
	}
	admitted, reach := p.admittedNodesFor(coverage), p.subnetReachOfSelectedNodes(ads, a)
	f := &nodesAdmittedByAds{scoreByNode: make(map[string]int, len(admitted.scoreByNode)), exclusionReasonOfSelf: admitted.exclusionReasonOfSelf}
	for name, score := range admitted.scoreByNode {
		node := p.inputs.Nodes[name]
		if name == p.inputs.SelfNode || canNodeAnswer(ads, &node, a, p.publishedLinksOfNode(name), reach) {
			f.scoreByNode[name] = score
		}
	}
	p.admittedNodesByAds[key] = f
	return f
}

// subnetReachOfSelectedNodes says whether a node that the advertisements select has a link into the
// subnet of the address, even if that link is down or the node may not announce now.
func (p *Planner) subnetReachOfSelectedNodes(ads []*snapshot.L2Advertisement, a netip.Addr) advertise.SubnetReachedByAnyNode {
	for name, node := range p.inputs.Nodes {
		n := p.publishedLinksOfNode(name)
		if n == nil || !advertise.AnyL2AdSelectsNode(ads, &node) {
			continue
		}
		if advertise.AnyLinkCoversAddress(n.Links, a) {
			return advertise.SomeNodeReachesSubnet
		}
	}
	return advertise.NoNodeReachesSubnet
}

// canNodeAnswer reports whether another node can answer for the address, as far as its links are
// known.
func canNodeAnswer(ads []*snapshot.L2Advertisement, node *view.Node, a netip.Addr, n *facts.PublishedLinks, reach advertise.SubnetReachedByAnyNode) bool {
	switch {
	case n == nil:
		return true
	case n.RawSocketsDenied || (a.Is4() && !n.HasFamilyOf(a, node.InternalAddresses)):
		return false
	case n.IsIncomplete:
		return true
	}
	return slices.ContainsFunc(n.Links, func(l facts.PublishedLink) bool {
		return !l.IsDown && l.CanSendFamilyOf(a) && advertise.AdsAdmitLinkOfOtherNode(ads, node, l, a, reach)
	})
}

// ownLinksForAddress returns this node's links for an address, or why it has none.
func (p *Planner) ownLinksForAddress(ads []*snapshot.L2Advertisement, a netip.Addr) ([]int, names.Reason) {
	self, own := p.inputs.Nodes[p.inputs.SelfNode], p.publishedLinksOfNode(p.inputs.SelfNode)
	links, reason := advertise.AnsweringLinkIndexes(ads, &self, a, advertise.LinksOfNode[facts.Link]{
		UsableLinks: p.inputs.UsableLinks, DownLinks: p.inputs.DownLinks,
		HasAddressOfFamily: own.HasFamilyOf(a, self.InternalAddresses), AreRawSocketsDenied: p.inputs.RawSocketsDenied,
	}, p.subnetReachOfSelectedNodes(ads, a))
	return links, cmp.Or(reason, names.ReasonNotHolder)
}
