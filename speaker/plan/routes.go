package plan

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"time"

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
	verdict BGPVerdict
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
func (s share) same(o share) bool {
	return s.verdict.Reason == o.verdict.Reason && slices.Equal(s.verdict.Peers, o.verdict.Peers) &&
		slices.Equal(s.verdict.Addresses, o.verdict.Addresses) && slices.EqualFunc(s.ads, o.ads, offer.equal) && s.endpoints == o.endpoints
}

// route decides the Services that changed, and puts the routes together again when that changes any.
func (p *Planner) route(anew bool) {
	self, known := p.in.Nodes[p.in.Self]
	if anew {
		p.plan.Peers = nil
		if p.in.Snapshot != nil && known {
			for _, c := range p.in.Snapshot.Peers {
				if matches(c.NodeSelectors, self.Labels) {
					p.plan.Peers = append(p.plan.Peers, peer(c, &self, p.in.Links))
				}
			}
		}
		p.plan.Leaving = self.Leaving || self.Excluded
	}
	var verdicts, gone []BGPVerdict
	for _, k := range sortedKeys(p.dirty) {
		old, had := p.shares[k]
		s, ok := p.in.Services[k]
		if ok = ok && known && s.LoadBalancer && s.Class == p.in.Class; !ok {
			if had {
				gone = append(gone, BGPVerdict{Service: k})
			}
			delete(p.shares, k)
			continue
		}
		if now := p.share(&s, &self); !had || !now.same(old) {
			p.shares[k] = now
			verdicts = append(verdicts, now.verdict)
		}
	}
	if !anew && len(verdicts)+len(gone) == 0 {
		return
	}
	p.plan.BGP = replace(p.plan.BGP, verdicts, gone,
		func(x, y BGPVerdict) int { return x.Service.Compare(y.Service) })
	t := table{}
	for _, s := range p.shares {
		t.add(p.plan.Peers, &s)
	}
	p.plan.Routes = t.routes()
}

// share decides one Service.
func (p *Planner) share(s *view.Service, self *view.Node) share {
	ads, reason := routable(&p.in, s, self)
	out := share{verdict: BGPVerdict{Service: s.Key, Addresses: s.Assigned, Reason: reason}, ads: ads}
	if s.Local {
		out.endpoints = p.in.Endpoints[s.Key].Count(p.in.Self)
	}
	if reason == names.ReasonAnnounced {
		if out.verdict.Peers = (table{}).add(p.plan.Peers, &out); len(out.verdict.Peers) == 0 {
			out.verdict.Reason = names.ReasonNoPeers
		}
	}
	return out
}

// routable applies the rules in order and returns the advertisements that cover the Service on this node. A node that is
// leaving still announces: how its routes go is the engine's to do in good order.
func routable(in *Inputs, s *view.Service, self *view.Node) ([]offer, names.Reason) {
	if len(s.Assigned) == 0 {
		return nil, names.ReasonNoAddress
	}
	pools := in.Snapshot.PoolsOf(s.PoolRecorded, s.Assigned...)
	if pools == nil {
		return nil, names.ReasonAddressOutsidePools
	}
	var ads []offer // in the order of the Snapshot
	for _, ad := range in.Snapshot.BGPAds {
		if !announces(ad.Pools, pools) || !matches(ad.NodeSelectors, self.Labels) || !matches(ad.ServiceSelectors, s.Labels) {
			continue
		}
		o := offer{ad: ad}
		for i, a := range s.Assigned {
			if slices.Contains(ad.Pools, pools[i].Name) {
				o.addresses = append(o.addresses, a)
			}
		}
		ads = append(ads, o)
	}
	e := in.Endpoints[s.Key]
	switch {
	case len(ads) == 0:
		return nil, names.ReasonNoAdvertisement
	case contradict(ads):
		return nil, names.ReasonConflictingAdvertisements
	case self.NetworkUnavailable:
		return nil, names.ReasonNodeNetworkUnavailable
	case !e.Serving:
		return nil, names.ReasonNoEndpoints
	case s.Local && !e.On(in.Self):
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

// table gathers what several Services and advertisements say of a prefix, for each peer.
type table map[cell]intent.Attributes

type cell struct {
	prefix netip.Prefix
	peer   string
}

// add puts the routes of a Service into the table and returns the names of the peers that get one.
func (t table) add(peers []intent.Peer, s *share) []string {
	var to []string
	weights := map[cell]uint64{} // of several advertisements the largest counts, of several Services the sum
	for i := range peers {
		p := &peers[i]
		for _, o := range s.ads {
			ad := o.ad
			if len(ad.Peers) > 0 && !slices.Contains(ad.Peers, p.Name) {
				continue
			}
			for _, a := range o.addresses {
				if a.Is4() && !p.IPv4 || a.Is6() && !p.IPv6 {
					continue
				}
				c := cell{prefix(ad, a), p.Name}
				t[c] = merge(t[c], ad)
				if ad.Bandwidth > 0 && s.endpoints > 0 {
					weights[c] = max(weights[c], uint64(ad.Bandwidth)*1e6/8*uint64(s.endpoints)) //nolint:gosec // neither is below 0
				}
				to = append(to, p.Name)
			}
		}
	}
	for c, w := range weights {
		a := t[c]
		a.Bandwidth += w
		t[c] = a
	}
	slices.Sort(to)
	return slices.Compact(to)
}

// merge adds what an advertisement says of a prefix to what others said. Communities are united; of different values of
// localPref, which only aggregates over several Services can have by now, the highest counts, and of metrics the lowest: the
// better one.
func merge(a intent.Attributes, ad *snapshot.BGPAd) intent.Attributes {
	a.LocalPref, a.Prepend = max(a.LocalPref, ad.LocalPref), max(a.Prepend, ad.Prepend)
	if ad.HasMED && (!a.HasMED || ad.MED < a.MED) {
		a.MED, a.HasMED = ad.MED, true
	}
	if len(ad.Communities)+len(ad.Extended) == 0 {
		return a
	}
	standard, large, extended := slices.Clone(a.Communities), slices.Clone(a.Large), slices.Clone(a.Extended)
	for _, c := range ad.Communities {
		if c.Large {
			large = append(large, [3]uint32{c.A, c.B, c.C})
		} else {
			standard = append(standard, c.A<<16|c.B)
		}
	}
	for _, c := range ad.Extended {
		extended = append(extended, c)
	}
	slices.Sort(standard)
	slices.SortFunc(large, func(x, y [3]uint32) int { return slices.Compare(x[:], y[:]) })
	slices.SortFunc(extended, func(x, y [8]byte) int { return slices.Compare(x[:], y[:]) })
	a.Communities, a.Large, a.Extended = slices.Compact(standard), slices.Compact(large), slices.Compact(extended)
	return a
}

// routes returns the table as routes, sorted: peers that get the same are named together.
func (t table) routes() []intent.Route {
	cells := slices.SortedFunc(maps.Keys(t), func(x, y cell) int {
		return cmp.Or(x.prefix.Compare(y.prefix), cmp.Compare(x.peer, y.peer))
	})
	var out []intent.Route
	first := 0 // of the routes of this prefix
next:
	for _, c := range cells {
		if len(out) > 0 && out[len(out)-1].Prefix != c.prefix {
			first = len(out)
		}
		for i := first; i < len(out); i++ {
			if out[i].Attributes.Equal(t[c]) {
				out[i].Peers = append(out[i].Peers, c.peer)
				continue next
			}
		}
		out = append(out, intent.Route{Prefix: c.prefix, Peers: []string{c.peer}, Attributes: t[c]})
	}
	return out
}
