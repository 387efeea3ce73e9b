package plan

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/advertise"
	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// BGPVerdict says whether this node announces a Service by BGP, to which peers, and why not.
type BGPVerdict struct {
	Service view.ObjectKey
	// Addresses are those of the Service. If Reason is ReasonAnnounced, they are those that the
	// node announces: endpoints serve them, and advertisements cover them.
	Addresses []netip.Addr
	// Peers are the names of the BGPPeers that get a route to it, sorted. It is empty
	// unless Reason is ReasonAnnounced.
	Peers  []string
	Reason names.Reason
	// EndpointsTerminating is set if externalTrafficPolicy is Local and no endpoint on this node is
	// ready any more, while some still serve.
	EndpointsTerminating bool
}

// gracefulRestartKeepRoutesTimeout is how long routers keep the routes while the speaker restarts
// (Restart Time, RFC 4724 section 3), unless the BGPPeer says it. Common BGP daemons use the same
// value.
const gracefulRestartKeepRoutesTimeout = 120 * time.Second

// serviceRouteContribution is what one Service adds to the routes.
type serviceRouteContribution struct {
	verdict                *BGPVerdict
	advertisementCoverages []advertise.BGPCoverage
	// localServingEndpointCount is the number of serving endpoints on this node; 0 if the traffic
	// policy is not Local.
	localServingEndpointCount int
	// endpointsTerminating is set if the traffic policy is Local and no endpoint on this node is
	// ready any more, while some still serve.
	endpointsTerminating bool
}

// equal says whether both add the same routes.
func (s *serviceRouteContribution) equal(o *serviceRouteContribution) bool {
	return s.verdict.Reason == o.verdict.Reason && slices.Equal(s.verdict.Peers, o.verdict.Peers) &&
		slices.Equal(s.verdict.Addresses, o.verdict.Addresses) && slices.EqualFunc(s.advertisementCoverages, o.advertisementCoverages, advertise.BGPCoverage.Equal) && s.localServingEndpointCount == o.localServingEndpointCount && s.endpointsTerminating == o.endpointsTerminating
}

// updateRoutes decides the changed Services, in order, and rebuilds the routes that this affects.
func (p *Planner) updateRoutes(changed []view.ObjectKey, all bool) {
	self, known := p.inputs.Nodes[p.inputs.SelfNode]
	if all {
		p.plan.Peers = nil
		if p.inputs.Snapshot != nil && known {
			for _, c := range p.inputs.Snapshot.Peers {
				if !c.SelectsNode(self.Labels) {
					continue
				}
				q := resolvePeer(c, &self, p.inputs.UsableLinks)
				if other := findPeerWithSameRouter(c, q.Address, p.inputs.Snapshot, &self); other != "" && !isPeerUnusable(&q) {
					q.BlockedExplanation, q.BFD = names.NewExplanation(names.ReasonDuplicatePeer, "the BGPPeer %q already connects this node to the same router: delete one of the two, or set a different sourceAddress or peerPort in one", other), nil
				}
				p.plan.Peers = append(p.plan.Peers, q)
			}
		}
		p.plan.NodeLeaving, p.plan.NodeInternalIPs = self.IsLeaving || self.IsExcluded, self.InternalAddresses
		p.plan.NodeUnavailableReason, p.plan.NodeUnfitReason = reasonNodeAnnouncesNothing(&self), p.unfitReasonOfSelf(&self)
	}
	var verdicts, gone []*BGPVerdict
	touched := map[netip.Prefix]struct{}{}
	for _, k := range changed {
		r := p.recordByService[k]
		if r == nil {
			continue
		}
		if r.service == nil || !known {
			if r.routeContribution != nil {
				gone = append(gone, r.routeContribution.verdict)
				p.removeRouteContribution(k, r.routeContribution, touched)
				r.routeContribution = nil
			}
			continue
		}
		if now := p.decideBGP(k, r, &self); r.routeContribution == nil || !now.equal(r.routeContribution) {
			if r.routeContribution != nil {
				p.removeRouteContribution(k, r.routeContribution, touched)
			}
			p.addRouteContribution(k, now, touched)
			r.routeContribution = now
			verdicts = append(verdicts, now.verdict)
		}
	}
	if all {
		for prefix := range p.servicesByPrefix {
			touched[prefix] = struct{}{}
		}
	}
	p.plan.BGPVerdicts = p.plan.BGPVerdicts.withEdits(verdicts, gone, func(x, y *BGPVerdict) int { return x.Service.Compare(y.Service) })
	p.rebuildRoutes(touched)
}

// reasonNodeAnnouncesNothing returns why a node announces nothing at all; empty if it may announce.
func reasonNodeAnnouncesNothing(n *view.Node) names.Reason {
	switch {
	case n.NetworkUnavailable:
		return names.ReasonNodeNetworkUnavailable
	case n.IsExcluded:
		return names.ReasonNodeExcluded
	case n.IsLeaving:
		return names.ReasonNodeLeaving
	}
	return ""
}

// removeRouteContribution removes what a Service adds to the routes, and marks its prefixes as
// touched.
func (p *Planner) removeRouteContribution(k view.ObjectKey, s *serviceRouteContribution, touched map[netip.Prefix]struct{}) {
	s.forEachPrefix(func(prefix netip.Prefix) {
		if p.servicesByPrefix[prefix] = p.servicesByPrefix[prefix].withoutService(k); len(p.servicesByPrefix[prefix]) == 0 {
			delete(p.servicesByPrefix, prefix)
		}
		touched[prefix] = struct{}{}
	})
}

// addRouteContribution stores what a Service adds to the routes, and marks its prefixes as touched.
func (p *Planner) addRouteContribution(k view.ObjectKey, s *serviceRouteContribution, touched map[netip.Prefix]struct{}) {
	s.forEachPrefix(func(prefix netip.Prefix) {
		p.servicesByPrefix[prefix] = p.servicesByPrefix[prefix].withService(k)
		touched[prefix] = struct{}{}
	})
}

// forEachPrefix calls visit with each prefix that the advertisements announce for the Service. A
// prefix may come several times.
func (s *serviceRouteContribution) forEachPrefix(visit func(netip.Prefix)) {
	for _, o := range s.advertisementCoverages {
		for _, a := range o.Addresses {
			visit(o.Ad.AnnouncedPrefix(a))
		}
	}
}

// rebuildRoutes computes the routes of the touched prefixes again. All others stay as they are.
func (p *Planner) rebuildRoutes(touched map[netip.Prefix]struct{}) {
	if len(touched) == 0 {
		return
	}
	var fresh []*intent.Route
	t := routeAttributeTable{} // reused for each prefix: one table for all would be large
	for _, prefix := range slices.SortedFunc(maps.Keys(touched), netip.Prefix.Compare) {
		clear(t)
		for _, k := range p.servicesByPrefix[prefix] {
			t.addRoutesOfService(p.plan.Peers, p.recordByService[k].routeContribution, prefix)
		}
		fresh = append(fresh, t.sortedRoutes(&p.peerNameLists, &p.advertisementNameLists)...)
	}
	out := make([]*intent.Route, 0, len(p.plan.Routes)+len(fresh))
	for _, r := range p.plan.Routes {
		if _, ok := touched[r.Prefix]; ok {
			continue
		}
		for len(fresh) > 0 && fresh[0].Prefix.Compare(r.Prefix) < 0 {
			out, fresh = append(out, fresh[0]), fresh[1:]
		}
		out = append(out, r)
	}
	p.plan.Routes = append(out, fresh...)
}

// withoutUnservedAddresses returns the coverages without the addresses that no endpoint serves: one
// family of the Service may have none.
func withoutUnservedAddresses(all []advertise.BGPCoverage, isServed func(netip.Addr) bool) []advertise.BGPCoverage {
	if !slices.ContainsFunc(all, func(c advertise.BGPCoverage) bool { return !allAddressesMatch(c.Addresses, isServed) }) {
		return all
	}
	var out []advertise.BGPCoverage
	for _, c := range all {
		c.Addresses = slices.DeleteFunc(slices.Clone(c.Addresses), func(a netip.Addr) bool { return !isServed(a) })
		if len(c.Addresses) > 0 {
			out = append(out, c)
		}
	}
	return out
}

// coveredAddresses returns those of the addresses that one of the coverages has.
func coveredAddresses(coverages []advertise.BGPCoverage, addresses []netip.Addr) []netip.Addr {
	isCovered := func(a netip.Addr) bool {
		return slices.ContainsFunc(coverages, func(c advertise.BGPCoverage) bool { return slices.Contains(c.Addresses, a) })
	}
	if allAddressesMatch(addresses, isCovered) {
		return addresses // as usual: they are shared
	}
	return slices.DeleteFunc(slices.Clone(addresses), func(a netip.Addr) bool { return !isCovered(a) })
}

func allAddressesMatch(all []netip.Addr, match func(netip.Addr) bool) bool {
	return !slices.ContainsFunc(all, func(a netip.Addr) bool { return !match(a) })
}

// decideBGP applies the rules in order to one Service. A leaving node still announces: the BGP
// engine withdraws its routes in order.
func (p *Planner) decideBGP(k view.ObjectKey, r *serviceRecord, self *view.Node) *serviceRouteContribution {
	svc := r.service.toAdvertiseService()
	coverage, reason := advertise.BGPAdsCoveringService(p.inputs.Snapshot, &svc)
	ads := coverage
	if reason == "" {
		ads, reason = advertise.BGPAdsUsableOnNode(coverage, self)
	}
	here, hasLocalEndpoints := r.endpoints.endpointsOnNode(p.inputs.SelfNode)
	switch {
	case reason != "":
	case !r.endpoints.anyCanServe:
		reason = names.ReasonNoEndpoints
	case r.service.hasLocalTrafficPolicy && !hasLocalEndpoints:
		reason = names.ReasonNoLocalEndpoints
	case r.service.hasLocalTrafficPolicy && !r.isProxyReady():
		reason = names.ReasonServiceProxyNotReady
	default:
		reason = p.unfitReasonForRoutes(r, coverage, self)
	}
	out := &serviceRouteContribution{verdict: &BGPVerdict{Service: k, Addresses: r.service.assignedAddresses, Reason: reason}}
	if hasLocalEndpoints && r.service.hasLocalTrafficPolicy {
		out.localServingEndpointCount = int(here.servingCount)
		out.endpointsTerminating = !here.hasReadyEndpoint
		out.verdict.EndpointsTerminating = out.endpointsTerminating
	}
	if reason != "" {
		return out
	}
	ads = withoutUnservedAddresses(ads, func(a netip.Addr) bool {
		return r.endpoints.servesFamilyOf(a) && (!r.service.hasLocalTrafficPolicy || here.servesFamilyOf(a))
	})
	if len(ads) == 0 {
		out.verdict.Reason = names.ReasonNoEndpoints
		if r.service.hasLocalTrafficPolicy {
			out.verdict.Reason = names.ReasonNoLocalEndpoints
		}
		return out
	}
	out.advertisementCoverages, out.verdict.Addresses = ads, coveredAddresses(ads, r.service.assignedAddresses)
	out.verdict.Reason, out.verdict.Peers = names.ReasonAnnounced, p.peerNameLists.intern((routeAttributeTable{}).addRoutesOfService(p.plan.Peers, out, netip.Prefix{}))
	if len(out.verdict.Peers) == 0 {
		out.verdict.Reason = names.ReasonNoPeers
	}
	return out
}
