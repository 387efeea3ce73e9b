package preview

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/gantry-lb/gantry/internal/advertise"
	"github.com/gantry-lb/gantry/internal/ipfamily"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
)

// routeOfPeer is a prefix that a router gets.
type routeOfPeer struct {
	prefix netip.Prefix
	peer   string
}

// attributesByNode has the attributes of a route that each node announces, as text.
type attributesByNode map[string]string

// compareRoutes says which routers would get or lose routes, or get them with other attributes.
func (p *outcomePair) compareRoutes() []Effect {
	before, after := p.before.collectRoutes(), p.after.collectRoutes()
	all := map[routeOfPeer]bool{}
	for r := range before {
		all[r] = true
	}
	for r := range after {
		all[r] = true
	}
	var out []Effect
	for _, r := range slices.SortedFunc(maps.Keys(all), func(x, y routeOfPeer) int {
		return cmp.Or(x.prefix.Compare(y.prefix), strings.Compare(x.peer, y.peer))
	}) {
		out = append(out, compareRoute(r, before[r], after[r])...)
	}
	return out
}

func compareRoute(r routeOfPeer, before, after attributesByNode) []Effect {
	var vanish, appear, change []string
	for _, node := range sortedUnion(before, after) {
		was, isBefore := before[node]
		now, isAfter := after[node]
		switch {
		case !isAfter:
			vanish = append(vanish, node)
		case !isBefore:
			appear = append(appear, node)
		case was != now:
			change = append(change, node)
		}
	}
	var out []Effect
	e := Effect{Subject: "BGPPeer " + r.peer, Addresses: []string{r.prefix.String()}}
	if len(vanish) > 0 {
		e.Kind, e.Nodes, e.Text = EffectRouteVanishes, vanish, fmt.Sprintf("the router would lose the route to %s from %s", r.prefix, joinNames(vanish))
		if len(after) == 0 {
			e.Text += ", and have none"
		}
		out = append(out, e)
	}
	if len(change) > 0 {
		e.Kind, e.Nodes = EffectRouteChanges, change
		e.Text = fmt.Sprintf("the route to %s from %s would have %s, not %s", r.prefix, joinNames(change), describeAttributes(after[change[0]]), describeAttributes(before[change[0]]))
		out = append(out, e)
	}
	if len(appear) > 0 {
		e.Kind, e.Nodes, e.Text = EffectRouteAppears, appear, fmt.Sprintf("the router would get the route to %s from %s", r.prefix, joinNames(appear))
		if text := after[appear[0]]; text != "" {
			e.Text += " with " + text
		}
		out = append(out, e)
	}
	return out
}

func describeAttributes(text string) string { return cmp.Or(text, "no attributes") }

// collectRoutes returns the routes of all Services.
func (o *outcome) collectRoutes() map[routeOfPeer]attributesByNode {
	adsByRouteAndNode := map[routeOfPeer]map[string][]*snapshot.BGPAdvertisement{}
	peers := o.peersByName()
	for k, expected := range o.expectationByService {
		svc := advertise.ServiceFromView(&o.settledByService[k].Service)
		coverage, _ := advertise.BGPAdsCoveringService(o.state.Configuration.Snapshot, &svc)
		for _, session := range expected.Sessions {
			i := slices.IndexFunc(o.state.Configuration.Nodes, func(n snapshot.NodeLabels) bool { return n.Name == session.Node })
			peer := peers[session.Peer]
			if i < 0 || peer == nil || peer.FirstProblem != nil {
				continue
			}
			usable, _ := advertise.BGPAdsUsableOnNode(coverage, &view.Node{Name: session.Node, Labels: o.state.Configuration.Nodes[i].Labels})
			for _, c := range usable {
				for _, a := range c.Addresses {
					if !c.AdmitsPeer(peer.Name) || !slices.Contains(session.Addresses, a) || !peer.CarriesFamily(ipfamily.FamilyOf(a)) {
						continue
					}
					r := routeOfPeer{c.Ad.AnnouncedPrefix(a), peer.Name}
					if adsByRouteAndNode[r] == nil {
						adsByRouteAndNode[r] = map[string][]*snapshot.BGPAdvertisement{}
					}
					if ads := adsByRouteAndNode[r][session.Node]; !slices.Contains(ads, c.Ad) {
						adsByRouteAndNode[r][session.Node] = append(ads, c.Ad)
					}
				}
			}
		}
	}
	out := map[routeOfPeer]attributesByNode{}
	for r, byNode := range adsByRouteAndNode {
		out[r] = attributesByNode{}
		for node, ads := range byNode {
			out[r][node] = listAttributes(ads)
		}
	}
	return out
}

// listAttributes lists what the advertisements of a route add to it, each once, in order.
func listAttributes(ads []*snapshot.BGPAdvertisement) string {
	var out []string
	for _, ad := range ads {
		if ad.LocalPref != 0 {
			out = append(out, fmt.Sprintf("local preference %d", ad.LocalPref))
		}
		if ad.HasMED {
			out = append(out, fmt.Sprintf("MED %d", ad.MED))
		}
		if ad.ASPathPrepend > 0 {
			out = append(out, fmt.Sprintf("AS path prepended %d times", ad.ASPathPrepend))
		}
		if ad.LinkBandwidthPerEndpoint > 0 {
			out = append(out, fmt.Sprintf("link bandwidth of %d Mbit/s for each endpoint", ad.LinkBandwidthPerEndpoint))
		}
		for _, c := range ad.Communities {
			out = append(out, "community "+c.String())
		}
		for _, c := range ad.ExtendedCommunities {
			out = append(out, fmt.Sprintf("extended community %x", c))
		}
	}
	slices.Sort(out)
	return strings.Join(slices.Compact(out), ", ")
}
