package snapshot

import (
	"cmp"
	"fmt"
	"slices"
	"sort"
	"strings"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1beta1"
)

// ClusterAddressRange is a range of addresses that the cluster itself uses, so that a Service with
// such an address cannot be reached, or the node cannot.
type ClusterAddressRange struct {
	Range
	// Use says what for, for example "the address of node a".
	Use string
}

func (u ClusterAddressRange) text() string {
	if u.First == u.Last {
		return u.First.String()
	}
	return u.Range.String()
}

// maxClusterAddressesInText bounds how many of them the text of a Problem names.
const maxClusterAddressesInText = 3

// reportAddressesUsedByCluster reports for each pool which of its addresses the cluster uses. They
// are given all the same: the owner of the pool may know better.
func (b *snapshotBuilder) reportAddressesUsedByCluster(in []v1beta1.IPAddressPool, pools []*Pool, used []ClusterAddressRange) {
	if len(used) == 0 {
		return
	}
	all := sortedAssignableRanges(pools)
	found := map[string][]string{}
	used = slices.SortedFunc(slices.Values(used), func(x, y ClusterAddressRange) int {
		return cmp.Or(x.First.Compare(y.First), x.Last.Compare(y.Last), cmp.Compare(x.Use, y.Use))
	})
	for _, u := range used {
		last := ""
		for i := sort.Search(len(all), func(i int) bool { return u.First.Compare(all[i].Last) <= 0 }); i < len(all) && all[i].overlaps(u.Range); i++ {
			if name := all[i].poolName; name != last {
				found[name] = append(found[name], u.text()+" is "+u.Use)
				last = name
			}
		}
	}
	for i := range in {
		texts := found[in[i].Name]
		if len(texts) == 0 {
			continue
		}
		more := ""
		if n := len(texts) - maxClusterAddressesInText; n > 0 {
			texts, more = texts[:maxClusterAddressesInText], fmt.Sprintf(", and %d more", n)
		}
		o := ObjectReference{Kind: "IPAddressPool", Namespace: in[i].Namespace, Name: in[i].Name}
		b.reportProblem(o, "spec.addresses", names.ReasonClusterAddress,
			"spec.addresses: %s%s: clients of a Service with such an address would not reach the Service; list the addresses in gantry.exclude, or remove them from the pool",
			strings.Join(texts, ", "), more)
	}
}

// sortedAssignableRanges returns what all pools can assign, sorted by the first address.
func sortedAssignableRanges(pools []*Pool) []poolRange {
	var out []poolRange
	for _, p := range pools {
		for _, r := range p.AssignableRanges() {
			out = append(out, poolRange{Range: r, poolName: p.Name})
		}
	}
	slices.SortFunc(out, func(x, y poolRange) int { return x.First.Compare(y.First) })
	return out
}
