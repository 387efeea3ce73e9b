package checkpoint

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/speaker/bgp"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// savedPeer is an intent.Peer without its password, which must not be on a disk. HasPassword is set
// if the peer has one.
type savedPeer struct {
	intent.Peer
	HasPassword bool `json:"Signed,omitempty"`
}

// savedRouteGroup is routes with the same peers and attributes. Thousands of Services share one.
type savedRouteGroup struct {
	Peers      []string
	Attributes intent.Attributes
	// Terminating is set if the last endpoints of the prefixes on this node terminate.
	Terminating    bool     `json:",omitempty"`
	Advertisements []string `json:",omitempty"`
	Prefixes       []netip.Prefix
}

// maxRouteGroupsComparedPerRoute bounds how many groups are compared with each route.
const maxRouteGroupsComparedPerRoute = 8

func groupRoutesAndStripPasswords(d bgp.DesiredState) (peers []savedPeer, groups []savedRouteGroup) {
	for _, p := range d.Peers {
		signed := p.Password != ""
		p.Password = ""
		peers = append(peers, savedPeer{p, signed})
	}
	for _, r := range d.Routes {
		last := groups[max(0, len(groups)-maxRouteGroupsComparedPerRoute):]
		i := slices.IndexFunc(last, func(g savedRouteGroup) bool {
			return slices.Equal(g.Peers, r.PeerNames) && g.Attributes.Equal(r.Attributes) && g.Terminating == r.EndpointsTerminating && slices.Equal(g.Advertisements, r.AdvertisementNames)
		})
		if i < 0 {
			groups = append(groups, savedRouteGroup{
				Peers: r.PeerNames, Attributes: r.Attributes, Prefixes: []netip.Prefix{r.Prefix}, Terminating: r.EndpointsTerminating,
				Advertisements: r.AdvertisementNames,
			})
			continue
		}
		last[i].Prefixes = append(last[i].Prefixes, r.Prefix)
	}
	return peers, groups
}

// ungroupRoutesBlockPasswordPeers returns the peers and routes to resume with. It blocks peers
// with a password.
func ungroupRoutesBlockPasswordPeers(peers []savedPeer, groups []savedRouteGroup) (bgp.DesiredState, error) {
	var d bgp.DesiredState
	known := map[string]bool{}
	for _, p := range peers {
		incomplete := p.Port == 0 || p.LocalASN == 0 || !p.Address.IsValid() && !p.Unnumbered
		if known[p.Name] || p.Name == "" || !p.BlockedExplanation.IsSet() && incomplete {
			return d, fmt.Errorf("the entry of BGPPeer %q is invalid", p.Name)
		}
		known[p.Name] = true
		if p.Password = ""; p.HasPassword && !p.BlockedExplanation.IsSet() {
			p.BlockedExplanation = names.Explanation{
				Reason: names.ReasonUnknownSecret,
				Text: "the speaker started while the API server is unreachable, " +
					"and passwords are not saved on the node: the session waits for the API server",
			}
		}
		d.Peers = append(d.Peers, p.Peer)
	}
	for _, g := range groups {
		for _, prefix := range g.Prefixes {
			if !prefix.IsValid() {
				return d, fmt.Errorf("a route to %v has no prefix", g.Peers)
			}
			d.Routes = append(d.Routes, &intent.Route{
				Prefix: prefix, PeerNames: g.Peers, Attributes: g.Attributes, EndpointsTerminating: g.Terminating, AdvertisementNames: g.Advertisements,
			})
		}
	}
	compare := func(x, y *intent.Route) int {
		return cmp.Or(x.Prefix.Compare(y.Prefix), slices.Compare(x.PeerNames, y.PeerNames))
	}
	slices.SortFunc(d.Routes, compare)
	for i := range d.Routes[min(1, len(d.Routes)):] {
		if r := d.Routes[i]; compare(r, d.Routes[i+1]) == 0 {
			return d, fmt.Errorf("the route %s to %v is there twice", r.Prefix, r.PeerNames)
		}
	}
	return d, nil
}
