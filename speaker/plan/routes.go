package plan

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// BGPVerdict says whether this node announces a Service by BGP, to whom, and why not.
type BGPVerdict struct {
	Service   view.Key
	Addresses []netip.Addr
	// Peers are the names of the BGPPeers that get a route to it, sorted; empty unless Reason is ReasonAnnounced.
	Peers  []string
	Reason names.Reason
}

// restartTime is how long routers keep routes over a graceful restart: what the big daemons ask for (RFC 4724 section 3).
const restartTime = 120 * time.Second

// share is what one Service adds to the routes.
type share struct {
	verdict *BGPVerdict
	ads     []offer
	// endpoints is how many serve on this node, where only these get the Service's traffic.
	endpoints int
}

// offer is an advertisement with those addresses of a Service that are of its pools.
type offer struct {
	ad        *snapshot.BGPAd
	addresses []netip.Addr
}

func (o offer) equal(p offer) bool { return o.ad == p.ad && slices.Equal(o.addresses, p.addresses) }

// same says whether both add the same.
func (s *share) same(o *share) bool {
	return s.verdict.Reason == o.verdict.Reason && slices.Equal(s.verdict.Peers, o.verdict.Peers) &&
		slices.Equal(s.verdict.Addresses, o.verdict.Addresses) && slices.EqualFunc(s.ads, o.ads, offer.equal) && s.endpoints == o.endpoints
}

// route decides the Services that changed, in order, and makes the routes anew that this touches.
func (p *Planner) route(changed []view.Key, anew bool) {
	self, known := p.in.Nodes[p.in.Self]
	if anew {
		p.plan.Peers = nil
		if p.in.Snapshot != nil && known {
			for _, c := range p.in.Snapshot.Peers {
				if !matches(c.NodeSelectors, labels.Set(self.Labels)) {
					continue
				}
				q := peer(c, &self, p.in.Links)
				if other := repeats(c, q.Address, p.in.Snapshot, &self); other != "" && !hopeless(&q) {
					q.Blocked, q.BFD = block(names.ReasonDuplicatePeer, fmt.Sprintf("the BGPPeer %q connects this node to the same router already: delete one of them, or give one another sourceAddress or peerPort", other)), nil
				}
				p.plan.Peers = append(p.plan.Peers, q)
			}
		}
		p.plan.Leaving = self.Leaving || self.Excluded
	}
	var verdicts, gone []*BGPVerdict
	touched := map[netip.Prefix]struct{}{}
	for _, k := range changed {
		r := p.records[k]
		if r == nil {
			continue
		}
		if r.of == nil || !known {
			if r.share != nil {
				gone = append(gone, r.share.verdict)
				p.take(k, r.share, touched)
				r.share = nil
			}
			continue
		}
		if now := p.share(k, r, &self); r.share == nil || !now.same(r.share) {
			if r.share != nil {
				p.take(k, r.share, touched)
			}
			p.give(k, now, touched)
			r.share = now
			verdicts = append(verdicts, now.verdict)
		}
	}
	if anew {
		for prefix := range p.prefixes {
			touched[prefix] = struct{}{}
		}
	}
	p.plan.BGP = p.plan.BGP.edit(verdicts, gone, func(x, y *BGPVerdict) int { return x.Service.Compare(y.Service) })
	p.rebuild(touched)
}

// take forgets what a Service adds to the routes, and notes the prefixes that this touches.
func (p *Planner) take(k view.Key, s *share, touched map[netip.Prefix]struct{}) {
	s.each(func(prefix netip.Prefix) {
		if p.prefixes[prefix] = p.prefixes[prefix].without(k); len(p.prefixes[prefix]) == 0 {
			delete(p.prefixes, prefix)
		}
		touched[prefix] = struct{}{}
	})
}

// give takes note of what a Service adds.
func (p *Planner) give(k view.Key, s *share, touched map[netip.Prefix]struct{}) {
	s.each(func(prefix netip.Prefix) {
		p.prefixes[prefix] = p.prefixes[prefix].with(k)
		touched[prefix] = struct{}{}
	})
}

// each tells the prefixes that the advertisements announce for the Service; one may come several times.
func (s *share) each(tell func(netip.Prefix)) {
	for _, o := range s.ads {
		for _, a := range o.addresses {
			tell(prefix(o.ad, a))
		}
	}
}

// rebuild makes the routes of the touched prefixes anew; all others stay as they are.
func (p *Planner) rebuild(touched map[netip.Prefix]struct{}) {
	if len(touched) == 0 {
		return
	}
	var fresh []*intent.Route
	t := table{} // of one prefix at a time: one of all would be large
	for _, prefix := range slices.SortedFunc(maps.Keys(touched), netip.Prefix.Compare) {
		clear(t)
		for _, k := range p.prefixes[prefix] {
			t.add(p.plan.Peers, p.records[k].share, prefix)
		}
		fresh = append(fresh, t.routes(&p.peers)...)
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

// share decides one Service.
func (p *Planner) share(k view.Key, r *record, self *view.Node) *share {
	ads, reason := routable(&p.in, r, self)
	out := &share{verdict: &BGPVerdict{Service: k, Addresses: r.of.assigned, Reason: reason}, ads: ads}
	if here, ok := r.endpoints.at(p.in.Self); ok && r.of.local {
		out.endpoints = int(here.count)
	}
	if reason == names.ReasonAnnounced {
		if out.verdict.Peers = p.peers.of((table{}).add(p.plan.Peers, out, netip.Prefix{})); len(out.verdict.Peers) == 0 {
			out.verdict.Reason = names.ReasonNoPeers
		}
	}
	return out
}

// routable applies the rules in order and returns the advertisements that cover the Service on this node. A node that is
// leaving still announces: how its routes go is the engine's to do in good order.
func routable(in *Inputs, r *record, self *view.Node) ([]offer, names.Reason) {
	s := r.of
	if len(s.assigned) == 0 {
		return nil, names.ReasonNoAddress
	}
	pools := in.Snapshot.PoolsOf(s.pool, s.assigned...)
	if pools == nil {
		return nil, names.ReasonAddressOutsidePools
	}
	var ads []offer // in the order of the Snapshot
	for _, ad := range in.Snapshot.BGPAds {
		if !announces(ad.Pools, pools) || !matches(ad.NodeSelectors, labels.Set(self.Labels)) || !matches(ad.ServiceSelectors, s.labels) {
			continue
		}
		o := offer{ad: ad, addresses: s.assigned}
		if slices.ContainsFunc(pools, func(p *snapshot.Pool) bool { return !slices.Contains(ad.Pools, p.Name) }) {
			o.addresses = nil
			for i, a := range s.assigned {
				if slices.Contains(ad.Pools, pools[i].Name) {
					o.addresses = append(o.addresses, a)
				}
			}
		}
		ads = append(ads, o)
	}
	_, here := r.endpoints.at(in.Self)
	switch {
	case len(ads) == 0:
		return nil, names.ReasonNoAdvertisement
	case contradict(ads):
		return nil, names.ReasonConflictingAdvertisements
	case overloaded(ads):
		return nil, names.ReasonTooManyCommunities
	case self.NetworkUnavailable:
		return nil, names.ReasonNodeNetworkUnavailable
	case !r.endpoints.serving:
		return nil, names.ReasonNoEndpoints
	case s.local && !here:
		return nil, names.ReasonNoLocalEndpoints
	}
	return ads, names.ReasonAnnounced
}

// contradict says whether two advertisements give one prefix of the Service different values of localPref at one peer.
func contradict(ads []offer) bool {
	for i, ox := range ads {
		for _, oy := range ads[:i] {
			x, y := ox.ad, oy.ad
			share := len(x.Peers) == 0 || len(y.Peers) == 0 ||
				slices.ContainsFunc(x.Peers, func(p string) bool { return slices.Contains(y.Peers, p) })
			same := slices.ContainsFunc(ox.addresses, func(a netip.Addr) bool {
				return slices.Contains(oy.addresses, a) && prefix(x, a) == prefix(y, a)
			})
			if share && same && x.LocalPref != y.LocalPref {
				return true
			}
		}
	}
	return false
}

// prefix is what the advertisement announces for an address.
func prefix(ad *snapshot.BGPAd, a netip.Addr) netip.Prefix {
	bits := ad.Length4
	if a.Is6() {
		bits = ad.Length6
	}
	return netip.PrefixFrom(a, bits).Masked()
}
