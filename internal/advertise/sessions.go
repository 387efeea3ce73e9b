package advertise

import (
	"net/netip"
	"slices"

	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
)

// SessionToCarryService is a BGP session that should carry addresses of a Service.
type SessionToCarryService struct {
	Node, Peer string
	Addresses  []netip.Addr
}

// SessionsToCarryService returns the sessions that should carry the Service, as far as the
// advertisements, the labels of the nodes and the endpoints say. isServed says whether a node may
// announce an address because of its endpoints.
func SessionsToCarryService(s *snapshot.Snapshot, svc *Service, nodes []snapshot.NodeLabels, isServed func(node string, a netip.Addr) bool) []SessionToCarryService {
	coverage, reason := BGPAdsCoveringService(s, svc)
	if reason != "" {
		return nil
	}
	var out []SessionToCarryService
	for i := range nodes {
		n := view.Node{Name: nodes[i].Name, Labels: nodes[i].Labels}
		if isNodeExcluded(s, n.Labels) {
			continue
		}
		own, reason := BGPAdsUsableOnNode(coverage, &n)
		if reason != "" {
			continue
		}
		for _, p := range NamesOfPeersGettingRoute(own, s.Peers, &n) {
			addresses := addressesForPeer(own, p)
			if isMissing := func(a netip.Addr) bool { return !isServed(n.Name, a) }; slices.ContainsFunc(addresses, isMissing) {
				addresses = slices.DeleteFunc(slices.Clone(addresses), isMissing)
			}
			if len(addresses) > 0 {
				out = append(out, SessionToCarryService{n.Name, p, addresses})
			}
		}
	}
	return out
}

// addressesForPeer returns the addresses that the advertisements for the peer cover.
func addressesForPeer(coverage []BGPCoverage, peer string) []netip.Addr {
	var out []netip.Addr
	for _, c := range coverage {
		switch {
		case !c.AdmitsPeer(peer):
		case out == nil:
			out = c.Addresses // as usual: it is shared
		default:
			for _, a := range c.Addresses {
				if !slices.Contains(out, a) {
					out = append(slices.Clip(out), a)
				}
			}
		}
	}
	return out
}
