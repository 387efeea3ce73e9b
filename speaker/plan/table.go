package plan

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// table gathers what several Services and advertisements say of a prefix, for each peer.
type table map[cell]intent.Attributes

type cell struct {
	prefix netip.Prefix
	peer   string
}

// add puts the routes of a Service into the table, those of one prefix alone if it is valid, and returns the names of the peers that
// get one.
func (t table) add(peers []intent.Peer, s *share, only netip.Prefix) []string {
	var to []string
	weights := map[cell]uint64{} // of several advertisements the largest counts, of several Services the sum
	for i := range peers {
		p := &peers[i]
		if hopeless(p) {
			continue
		}
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
				if only.IsValid() && c.prefix != only {
					continue
				}
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
func (t table) routes(peers *lists) []*intent.Route {
	cells := slices.SortedFunc(maps.Keys(t), func(x, y cell) int {
		return cmp.Or(x.prefix.Compare(y.prefix), cmp.Compare(x.peer, y.peer))
	})
	var out []*intent.Route
	first := 0 // of the routes of this prefix
next:
	for _, c := range cells {
		if len(out) > 0 && out[len(out)-1].Prefix != c.prefix {
			first = len(out)
		}
		for _, r := range out[first:] {
			if r.Attributes.Equal(t[c]) {
				r.Peers = append(r.Peers, c.peer)
				continue next
			}
		}
		out = append(out, &intent.Route{Prefix: c.prefix, Peers: []string{c.peer}, Attributes: t[c]})
	}
	for _, r := range out {
		r.Peers = peers.of(r.Peers)
	}
	return out
}
