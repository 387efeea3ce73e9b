package snapshot

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/api/v1beta2"
)

// bgpAds parses the BGPAdvertisements, the oldest first: of two that contradict each other the older stands.
func (b *builder) bgpAds(in []v1beta1.BGPAdvertisement, o *Objects, pools []*Pool) []*BGPAd {
	aliases, extended := b.aliases(o.Communities), b.extendedAliases(o.Communities)
	in = slices.Clone(in)
	slices.SortFunc(in, func(x, y v1beta1.BGPAdvertisement) int {
		return cmp.Or(x.CreationTimestamp.Compare(y.CreationTimestamp.Time), cmp.Compare(x.Name, y.Name))
	})
	var out []*BGPAd
	for i := range in {
		object := Object{Kind: "BGPAdvertisement", Namespace: in[i].Namespace, Name: in[i].Name}
		b.broken = false
		ad := b.bgpAd(object, &in[i], o, pools, aliases)
		b.extendAd(object, ad, in[i].Spec.Gantry, extended)
		ad.Pools = slices.DeleteFunc(ad.Pools, func(name string) bool {
			p := named(pools, name)
			return !b.fits(object, ad, p) || !b.agrees(object, ad, out, o.Nodes, p)
		})
		if b.broken {
			last := o.Last.bgpAd(ad.Name)
			if last == nil && !b.partly {
				continue
			}
			if last != nil {
				ad = last.still(out, o.Nodes, pools)
			}
		}
		out = append(out, ad)
	}
	slices.SortFunc(out, func(x, y *BGPAd) int { return cmp.Compare(x.Name, y.Name) })
	return out
}

func (b *builder) bgpAd(o Object, in *v1beta1.BGPAdvertisement, objects *Objects, pools []*Pool, aliases map[string]Community) *BGPAd {
	b.partly = false
	length := func(p *int32, d int) int {
		if p == nil {
			return d
		}
		return int(*p)
	}
	ad := &BGPAd{
		Name: in.Name, Length4: length(in.Spec.AggregationLength, 32), Length6: length(in.Spec.AggregationLengthV6, 128),
		LocalPref:        in.Spec.LocalPref,
		NodeSelectors:    b.selectors(o, "spec.nodeSelectors", in.Spec.NodeSelectors),
		ServiceSelectors: b.selectors(o, "spec.serviceSelectors", in.Spec.ServiceSelectors),
		Peers:            slices.Compact(slices.Sorted(slices.Values(in.Spec.Peers))),
		Pools:            b.attached(o, in.Spec.IPAddressPools, in.Spec.IPAddressPoolSelectors, pools),
	}
	for i, text := range in.Spec.Communities {
		field := fmt.Sprintf("spec.communities[%d]", i)
		c, known := aliases[text]
		if !known {
			var err error
			if c, err = ParseCommunity(text); err != nil && strings.Contains(text, ":") {
				b.fault(o, field, names.ReasonInvalidCommunity, "%s: %v", field, err)
			} else if err != nil {
				b.fault(o, field, names.ReasonUnknownCommunity, "%s: no Community names the alias %q: create one, or write a value such as 64512:100", field, text)
			}
		}
		ad.Communities = append(ad.Communities, c)
	}
	slices.SortFunc(ad.Communities, Community.Compare)
	ad.Communities = slices.Compact(ad.Communities)
	for i, n := range in.Spec.Peers {
		if !slices.ContainsFunc(objects.Peers, func(p v1beta2.BGPPeer) bool { return p.Name == n }) {
			field := fmt.Sprintf("spec.peers[%d]", i)
			b.problem(o, field, names.ReasonUnknownPeer, "%s: no BGPPeer %q exists in namespace %q: create it, or correct the name", field, n, o.Namespace)
		}
	}
	b.duplicates(o, "spec.communities", in.Spec.Communities)
	b.duplicates(o, "spec.peers", in.Spec.Peers)
	b.duplicates(o, "spec.ipAddressPools", in.Spec.IPAddressPools)
	b.duplicateSelectors(o, "spec.nodeSelectors", in.Spec.NodeSelectors)
	return ad
}

// duplicates names the texts that a list has twice; they do no harm, but they are seldom meant.
func (b *builder) duplicates(o Object, field string, list []string) {
	for i, text := range list {
		if slices.Contains(list[:i], text) {
			b.problem(o, field, names.ReasonDuplicate, "%s lists %q twice: take one out", field, text)
		}
	}
}

// duplicateSelectors does the same for selectors.
func (b *builder) duplicateSelectors(o Object, field string, in []metav1.LabelSelector) {
	var seen []string
	for i := range in {
		text := metav1.FormatLabelSelector(&in[i])
		if slices.Contains(seen, text) {
			b.problem(o, field, names.ReasonDuplicate, "%s lists the selector %q twice: take one out", field, text)
		}
		seen = append(seen, text)
	}
}

// fits says whether the prefixes that the advertisement announces lie within the entries of a pool: an aggregate that is
// wider than an entry would attract traffic for addresses that are not the cluster's.
func (b *builder) fits(o Object, ad *BGPAd, p *Pool) bool {
	for _, r := range p.Ranges {
		if bits, length := r.widest().Bits(), ad.length(r.First); bits > length {
			field := "spec.aggregationLength"
			if r.First.Is6() {
				field = "spec.aggregationLengthV6"
			}
			b.partly = true
			b.fault(o, field, names.ReasonAggregationLength,
				"%s: invalid aggregation length %d: prefix %d in this pool is more specific than the aggregation length for addresses %s of pool %q: write at least %d, or leave the pool out",
				field, length, bits, r, p.Name, bits)
			return false
		}
	}
	return true
}

// length is the length of the prefix announced for an address.
func (ad *BGPAd) length(a netip.Addr) int {
	if a.Is4() {
		return ad.Length4
	}
	return ad.Length6
}

// agrees says whether no older advertisement gives the same prefixes of a pool another localPref at a peer and on a node
// that both share.
func (b *builder) agrees(o Object, ad *BGPAd, older []*BGPAd, nodes []Node, p *Pool) bool {
	for _, other := range older {
		if ad.contradicts(other, nodes, p) {
			b.partly = true
			b.fault(o, "spec.localPref", names.ReasonConflictingAdvertisements,
				"spec.localPref: %d contradicts BGPAdvertisement %q, which announces the same prefixes of pool %q with %d: write the same localPref, or separate them by peers, nodeSelectors or pools",
				ad.LocalPref, other.Name, p.Name, other.LocalPref)
			return false
		}
	}
	return true
}

func (ad *BGPAd) contradicts(other *BGPAd, nodes []Node, p *Pool) bool {
	return ad.LocalPref != other.LocalPref && len(ad.ServiceSelectors) == 0 && len(other.ServiceSelectors) == 0 &&
		slices.Contains(other.Pools, p.Name) && ad.samePrefixes(other, p) &&
		sharePeer(ad.Peers, other.Peers) && shareNode(ad.NodeSelectors, other.NodeSelectors, nodes)
}

// samePrefixes says whether both announce the same prefixes of a pool, as far as it has addresses of a family.
func (ad *BGPAd) samePrefixes(other *BGPAd, p *Pool) bool {
	return slices.ContainsFunc(p.Ranges, func(r Range) bool { return ad.length(r.First) == other.length(r.First) })
}

func sharePeer(x, y []string) bool {
	return len(x) == 0 || len(y) == 0 || slices.ContainsFunc(x, func(n string) bool { return slices.Contains(y, n) })
}

// shareNode says whether a node matches both lists of selectors. Without a known node they are taken to share one.
func shareNode(x, y []labels.Selector, nodes []Node) bool {
	return len(nodes) == 0 || slices.ContainsFunc(nodes, func(n Node) bool { return Matches(x, n.Labels) && Matches(y, n.Labels) })
}

// named returns the pool of that name, or nil.
func named(pools []*Pool, name string) *Pool {
	s := Snapshot{Pools: pools}
	return s.Pool(name)
}

// still returns the advertisement as it last was, without the pools that it does not fit any more.
func (ad *BGPAd) still(older []*BGPAd, nodes []Node, pools []*Pool) *BGPAd {
	var quiet builder
	out := *ad
	out.Pools = slices.DeleteFunc(slices.Clone(ad.Pools), func(name string) bool {
		p := named(pools, name)
		return p == nil || !quiet.fits(Object{}, ad, p) || !quiet.agrees(Object{}, ad, older, nodes, p)
	})
	return &out
}

// widest returns the shortest prefix that lies within the Range.
func (r Range) widest() netip.Prefix {
	best := netip.PrefixFrom(r.First, r.First.BitLen())
	for a := r.First; ; {
		p := netip.PrefixFrom(a, a.BitLen())
		for p.Bits() > 0 {
			w := netip.PrefixFrom(a, p.Bits()-1)
			if w.Masked().Addr() != a || r.Last.Less(lastOf(w)) {
				break
			}
			p = w
		}
		if p.Bits() < best.Bits() {
			best = p
		}
		end := lastOf(p)
		if end == r.Last {
			return best
		}
		a = end.Next()
	}
}

// String writes the Range as a CIDR where it is one, and with both ends otherwise.
func (r Range) String() string {
	if p := r.widest(); p.Masked().Addr() == r.First && lastOf(p) == r.Last {
		return p.String()
	}
	return r.First.String() + "-" + r.Last.String()
}
