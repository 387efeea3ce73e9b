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

// parseBGPAdvertisements parses the BGPAdvertisements, the oldest first. If two contradict each
// other, the older one stays in force.
func (b *snapshotBuilder) parseBGPAdvertisements(in []v1beta1.BGPAdvertisement, o *ConfigurationObjects, pools []*Pool) []*BGPAdvertisement {
	aliases, extended := b.parseCommunityAliases(o.Communities), b.parseExtendedCommunityAliases(o.Communities)
	in = slices.Clone(in)
	slices.SortFunc(in, func(x, y v1beta1.BGPAdvertisement) int {
		return cmp.Or(x.CreationTimestamp.Compare(y.CreationTimestamp.Time), cmp.Compare(x.Name, y.Name))
	})
	var out []*BGPAdvertisement
	for i := range in {
		object := ObjectReference{Kind: "BGPAdvertisement", Namespace: in[i].Namespace, Name: in[i].Name}
		b.currentObjectUnservable = false
		ad := b.parseBGPAdvertisement(object, &in[i], o, pools, aliases)
		b.parseBGPAdvertisementExtension(object, ad, in[i].Spec.Gantry, extended)
		ad.Pools = slices.DeleteFunc(ad.Pools, func(name string) bool {
			p := findPoolByName(pools, name)
			return !b.checkAggregateWithinPool(object, ad, p) || !b.checkNoLocalPrefConflict(object, ad, out, o.Nodes, p)
		})
		if b.currentObjectUnservable {
			last := o.PreviousSnapshot.bgpAdvertisementByName(ad.Name)
			if last == nil && !b.currentObjectServableForSomePools {
				continue
			}
			if last != nil {
				ad = last.copyWithoutPoolsItNoLongerFits(out, o.Nodes, pools)
			}
		}
		out = append(out, ad)
	}
	slices.SortFunc(out, func(x, y *BGPAdvertisement) int { return cmp.Compare(x.Name, y.Name) })
	return out
}

func (b *snapshotBuilder) parseBGPAdvertisement(o ObjectReference, in *v1beta1.BGPAdvertisement, objects *ConfigurationObjects, pools []*Pool, aliases map[string]Community) *BGPAdvertisement {
	b.currentObjectServableForSomePools = false
	length := func(p *int32, d int) int {
		if p == nil {
			return d
		}
		return int(*p)
	}
	ad := &BGPAdvertisement{
		Name: in.Name, PrefixLengthIPv4: length(in.Spec.AggregationLength, 32), PrefixLengthIPv6: length(in.Spec.AggregationLengthV6, 128),
		LocalPref:        in.Spec.LocalPref,
		NodeSelectors:    b.parseSelectors(o, "spec.nodeSelectors", in.Spec.NodeSelectors),
		ServiceSelectors: b.parseSelectors(o, "spec.serviceSelectors", in.Spec.ServiceSelectors),
		Peers:            slices.Compact(slices.Sorted(slices.Values(in.Spec.Peers))),
		Pools:            b.resolvePools(o, in.Spec.IPAddressPools, in.Spec.IPAddressPoolSelectors, pools),
	}
	for i, text := range in.Spec.Communities {
		field := fmt.Sprintf("spec.communities[%d]", i)
		c, known := aliases[text]
		if !known {
			var err error
			if c, err = ParseCommunity(text); err != nil && strings.Contains(text, ":") {
				b.reportProblemAndMarkBroken(o, field, names.ReasonInvalidCommunity, "%s: %v", field, err)
			} else if err != nil {
				b.reportProblemAndMarkBroken(o, field, names.ReasonUnknownCommunity, "%s: no Community names the alias %q in namespace %q: create one there, or write a value such as 64512:100", field, text, o.Namespace)
			}
		}
		ad.Communities = append(ad.Communities, c)
	}
	slices.SortFunc(ad.Communities, Community.Compare)
	ad.Communities = slices.Compact(ad.Communities)
	for i, n := range in.Spec.Peers {
		if !slices.ContainsFunc(objects.BGPPeers, func(p v1beta2.BGPPeer) bool { return p.Name == n }) {
			field := fmt.Sprintf("spec.peers[%d]", i)
			b.reportProblem(o, field, names.ReasonUnknownPeer, "%s: no BGPPeer %q exists in namespace %q: create it, or correct the name", field, n, o.Namespace)
		}
	}
	b.reportDuplicateListEntries(o, "spec.communities", in.Spec.Communities)
	b.reportDuplicateListEntries(o, "spec.peers", in.Spec.Peers)
	b.reportDuplicateListEntries(o, "spec.ipAddressPools", in.Spec.IPAddressPools)
	b.reportDuplicateSelectors(o, "spec.nodeSelectors", in.Spec.NodeSelectors)
	return ad
}

// reportDuplicateListEntries reports the texts that a list has twice. They do no harm, but are
// seldom intended.
func (b *snapshotBuilder) reportDuplicateListEntries(o ObjectReference, field string, list []string) {
	for i, text := range list {
		if slices.Contains(list[:i], text) {
			b.reportProblem(o, field, names.ReasonDuplicate, "%s lists %q twice: remove one", field, text)
		}
	}
}

// reportDuplicateSelectors does the same for selectors.
func (b *snapshotBuilder) reportDuplicateSelectors(o ObjectReference, field string, in []metav1.LabelSelector) {
	var seen []string
	for i := range in {
		text := metav1.FormatLabelSelector(&in[i])
		if slices.Contains(seen, text) {
			b.reportProblem(o, field, names.ReasonDuplicate, "%s lists the selector %q twice: remove one", field, text)
		}
		seen = append(seen, text)
	}
}

// checkAggregateWithinPool says whether the announced prefixes lie within the entries of a pool. An
// aggregate that is wider than an entry would attract traffic for addresses outside of the cluster.
func (b *snapshotBuilder) checkAggregateWithinPool(o ObjectReference, ad *BGPAdvertisement, p *Pool) bool {
	for _, r := range p.Ranges {
		if bits, length := r.widestPrefix().Bits(), ad.prefixLengthFor(r.First); bits > length {
			field := aggregationLengthField(r)
			b.currentObjectServableForSomePools = true
			b.reportProblemAndMarkBroken(o, field, names.ReasonAggregationLength,
				"%s: invalid aggregation length %d: prefix %d in this pool is more specific than the aggregation length for addresses %s of pool %q: write at least %d, or remove the pool",
				field, length, bits, r, p.Name, bits)
			return false
		}
	}
	for _, r := range p.Ranges {
		b.reportAggregateBeyondRange(o, ad, p, r)
	}
	return true
}

// reportAggregateBeyondRange reports an aggregate that contains addresses beside a range, which are
// not in the pool. The advertisement is served: the range has no better aggregates of this length.
func (b *snapshotBuilder) reportAggregateBeyondRange(o ObjectReference, ad *BGPAdvertisement, p *Pool, r Range) {
	isInPool := func(a netip.Addr) bool {
		return slices.ContainsFunc(p.Ranges, func(other Range) bool { return other.Contains(a) })
	}
	for _, end := range []struct{ inside, outside netip.Addr }{{r.First, r.First.Prev()}, {r.Last, r.Last.Next()}} {
		prefix := ad.AnnouncedPrefix(end.inside)
		if !end.outside.IsValid() || !prefix.Contains(end.outside) || isInPool(end.outside) {
			continue
		}
		field := aggregationLengthField(r)
		b.reportProblem(o, field, names.ReasonAggregationLength,
			"%s: the prefix %s also contains addresses beside the range %s of pool %q, so that routers send their traffic to the nodes: start and end the range at a multiple of the prefix, or write a larger length",
			field, prefix, r, p.Name)
		return
	}
}

// aggregationLengthField is the field with the length of the announced prefixes of a range.
func aggregationLengthField(r Range) string {
	if r.First.Is6() {
		return "spec.aggregationLengthV6"
	}
	return "spec.aggregationLength"
}

// prefixLengthFor is the length of the announced prefix for an address.
func (ad *BGPAdvertisement) prefixLengthFor(a netip.Addr) int {
	if a.Is4() {
		return ad.PrefixLengthIPv4
	}
	return ad.PrefixLengthIPv6
}

// AnnouncedPrefix returns the prefix that the advertisement announces for an address.
func (ad *BGPAdvertisement) AnnouncedPrefix(a netip.Addr) netip.Prefix {
	return netip.PrefixFrom(a, ad.prefixLengthFor(a)).Masked()
}

// checkNoLocalPrefConflict says whether no older advertisement gives the same prefixes of a pool
// another localPref, at a peer and on a node that both have.
func (b *snapshotBuilder) checkNoLocalPrefConflict(o ObjectReference, ad *BGPAdvertisement, older []*BGPAdvertisement, nodes []NodeLabels, p *Pool) bool {
	for _, other := range older {
		if ad.hasLocalPrefConflictWith(other, nodes, p) {
			b.currentObjectServableForSomePools = true
			b.reportProblemAndMarkBroken(o, "spec.localPref", names.ReasonConflictingAdvertisements,
				"spec.localPref: %d contradicts BGPAdvertisement %q, which announces the same prefixes of pool %q with %d: write the same localPref, or separate them by peers, nodeSelectors or pools",
				ad.LocalPref, other.Name, p.Name, other.LocalPref)
			return false
		}
	}
	return true
}

func (ad *BGPAdvertisement) hasLocalPrefConflictWith(other *BGPAdvertisement, nodes []NodeLabels, p *Pool) bool {
	return ad.LocalPref != other.LocalPref && len(ad.ServiceSelectors) == 0 && len(other.ServiceSelectors) == 0 &&
		slices.Contains(other.Pools, p.Name) && ad.announcesSamePrefixes(other, p) &&
		havePeerInCommon(ad.Peers, other.Peers) && haveNodeInCommon(ad.NodeSelectors, other.NodeSelectors, nodes)
}

// announcesSamePrefixes says whether both announce the same prefixes of a pool, for at least one
// family.
func (ad *BGPAdvertisement) announcesSamePrefixes(other *BGPAdvertisement, p *Pool) bool {
	return slices.ContainsFunc(p.Ranges, func(r Range) bool { return ad.prefixLengthFor(r.First) == other.prefixLengthFor(r.First) })
}

func havePeerInCommon(x, y []string) bool {
	return len(x) == 0 || len(y) == 0 || slices.ContainsFunc(x, func(n string) bool { return slices.Contains(y, n) })
}

// haveNodeInCommon says whether a node matches both lists of selectors. If no node is known, the
// answer is yes.
func haveNodeInCommon(x, y []labels.Selector, nodes []NodeLabels) bool {
	return len(nodes) == 0 || slices.ContainsFunc(nodes, func(n NodeLabels) bool {
		return AnySelectorMatches(x, labels.Set(n.Labels)) && AnySelectorMatches(y, labels.Set(n.Labels))
	})
}

// findPoolByName returns the pool with that name, or nil.
func findPoolByName(pools []*Pool, name string) *Pool {
	s := Snapshot{Pools: pools}
	return s.PoolByName(name)
}

// copyWithoutPoolsItNoLongerFits returns a copy of the advertisement without the pools that it does
// not fit any more.
func (ad *BGPAdvertisement) copyWithoutPoolsItNoLongerFits(older []*BGPAdvertisement, nodes []NodeLabels, pools []*Pool) *BGPAdvertisement {
	var quiet snapshotBuilder
	out := *ad
	out.Pools = slices.DeleteFunc(slices.Clone(ad.Pools), func(name string) bool {
		p := findPoolByName(pools, name)
		return p == nil || !quiet.checkAggregateWithinPool(ObjectReference{}, ad, p) || !quiet.checkNoLocalPrefConflict(ObjectReference{}, ad, older, nodes, p)
	})
	return &out
}

// widestPrefix returns the shortest prefix that lies within the Range.
func (r Range) widestPrefix() netip.Prefix {
	best := netip.PrefixFrom(r.First, r.First.BitLen())
	for a := r.First; ; {
		p := netip.PrefixFrom(a, a.BitLen())
		for p.Bits() > 0 {
			w := netip.PrefixFrom(a, p.Bits()-1)
			if w.Masked().Addr() != a || r.Last.Less(lastAddressOfPrefix(w)) {
				break
			}
			p = w
		}
		if p.Bits() < best.Bits() {
			best = p
		}
		end := lastAddressOfPrefix(p)
		if end == r.Last {
			return best
		}
		a = end.Next()
	}
}

// String writes the Range as a CIDR if it is one, and with both ends otherwise.
func (r Range) String() string {
	if p := r.widestPrefix(); p.Masked().Addr() == r.First && lastAddressOfPrefix(p) == r.Last {
		return p.String()
	}
	return r.First.String() + "-" + r.Last.String()
}
