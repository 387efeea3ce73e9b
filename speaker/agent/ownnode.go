package agent

import (
	"cmp"
	"maps"
	"slices"

	"github.com/gantry-lb/gantry/speaker/elect"
	"github.com/gantry-lb/gantry/speaker/facts"
)

// publishOwnNode publishes the links of this node to the other speakers, if they changed.
func (a *Agent) publishOwnNode(links plannerLinks) {
	p := facts.PublishedNode{
		LinkMACs: gatewayLinkMACsFirst(a.ownUsableLinks), MaxMessageFormat: elect.NewestMessageFormat,
		Links: facts.NewPublishedLinks(links.links, links.downLinks),
	}
	p.Links.RawSocketsDenied = bool(links.rawSocketPermission)
	if len(p.LinkMACs) == 0 { // without links the other nodes still know its last addresses
		p.LinkMACs = a.publishedNode.LinkMACs
	}
	if slices.Equal(p.LinkMACs, a.publishedNode.LinkMACs) && p.Links.Equal(a.publishedNode.Links) {
		return
	}
	a.publishedNode = p
	a.options.GossipMembership.PublishOwnNode(p)
}

// gatewayLinkMACsFirst returns the Ethernet addresses of the links and of their ports, each once:
// first those of links with a default gateway, then those of links with an address. There may be no
// room for all of them.
func gatewayLinkMACsFirst(links facts.LinkSet) []facts.MAC {
	importance := func(l facts.Link) int {
		switch {
		case len(l.DefaultGateways) > 0:
			return 0
		case len(l.AddressesWithPrefixLength) > 0:
			return 1
		}
		return 2
	}
	sorted := slices.Clone(links)
	slices.SortStableFunc(sorted, func(x, y facts.Link) int {
		return cmp.Or(cmp.Compare(importance(x), importance(y)), slices.Compare(x.MAC[:], y.MAC[:]))
	})
	var out []facts.MAC
	for _, l := range sorted {
		for _, mac := range l.MACsToSendWith() {
			if !slices.Contains(out, mac) {
				out = append(out, mac)
			}
		}
	}
	return out
}

// passMemberLinksToPlanner passes what the members say about their links to the planner, if it
// changed. The links of a dead node stay known: the candidates for an address do not change while
// its holder is replaced.
func (a *Agent) passMemberLinksToPlanner(set facts.MemberSet) {
	known := maps.Clone(a.linksByKnownMember)
	if known == nil {
		known = map[string]*facts.PublishedLinks{}
	}
	for _, m := range set.Members {
		switch {
		case m.Name == a.options.NodeName:
		case m.Links != nil:
			known[m.Name] = m.Links
		case m.MaxMessageFormat == 0: // a version that says nothing about links
			delete(known, m.Name)
		}
	}
	if maps.EqualFunc(known, a.linksByKnownMember, (*facts.PublishedLinks).Equal) {
		return
	}
	a.linksByKnownMember = known
	a.memberLinksForPlanner.Put(known)
}
