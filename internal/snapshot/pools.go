package snapshot

import (
	"cmp"
	"slices"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1beta1"
)

// parsedPool is a pool with its entries.
type parsedPool struct {
	object  *v1beta1.IPAddressPool
	entries []parsedEntry
}

// parseEntriesOfPools parses the entries of all pools, and sorts the pools by age.
func parseEntriesOfPools(in []v1beta1.IPAddressPool) []parsedPool {
	out := make([]parsedPool, len(in))
	for i := range in {
		out[i] = parsedPool{&in[i], parseEntries(in[i].Spec.Addresses)}
	}
	slices.SortFunc(out, comparePoolsByAge)
	return out
}

// comparePoolsByAge puts the older pool first.
func comparePoolsByAge(x, y parsedPool) int {
	return cmp.Or(x.object.CreationTimestamp.Compare(y.object.CreationTimestamp.Time), cmp.Compare(x.object.Name, y.object.Name))
}

// parsePools parses the pools. If two entries overlap, the later one is left out: see
// sortPoolsByPrecedence for the order. A pool that an edit broke keeps its previous entries.
func (b *snapshotBuilder) parsePools(in []v1beta1.IPAddressPool, namespaces []NamespaceLabels, last *Snapshot) []*Pool {
	parsed := parseEntriesOfPools(in)
	canTakeAllEntries := areEntriesSoundAndDisjoint(parsed)
	if !canTakeAllEntries {
		sortPoolsByPrecedence(parsed, last)
	}
	takenRanges := &rangeIndex{}
	var out []*Pool
	for i := range parsed {
		p := parsed[i].object
		o := ObjectReference{Kind: "IPAddressPool", Namespace: p.Namespace, Name: p.Name}
		b.currentObjectUnservable = false
		pool := &Pool{
			Name: p.Name, Labels: p.Labels,
			AutoAssign:        p.Spec.AutoAssign == nil || *p.Spec.AutoAssign,
			AvoidBuggyIPs:     p.Spec.AvoidBuggyIPs,
			ServiceAllocation: b.parseServiceAllocation(o, p.Spec.AllocateTo, namespaces),
		}
		before := last.PoolByName(p.Name)
		if b.currentObjectUnservable && before != nil {
			pool.ServiceAllocation = before.ServiceAllocation
		}
		if canTakeAllEntries {
			pool.Ranges = rangesOfEntries(parsed[i].entries)
		} else {
			pool.Ranges = b.takeRangesForPool(o, parsed[i].entries, before, takenRanges)
		}
		b.parsePoolExtension(o, pool, before, p.Spec.Gantry)
		b.parseLiftWithheldAnnotation(o, pool, p.Annotations[names.AnnotationLiftWithheld])
		out = append(out, pool)
	}
	slices.SortFunc(out, func(x, y *Pool) int { return cmp.Compare(x.Name, y.Name) })
	return out
}

func (b *snapshotBuilder) parseServiceAllocation(o ObjectReference, in *v1beta1.ServiceAllocation, namespaces []NamespaceLabels) *ServiceAllocation {
	if in == nil {
		return nil
	}
	a := &ServiceAllocation{Priority: in.Priority}
	a.OnlyListedNamespaces = len(in.Namespaces)+len(in.NamespaceSelectors) > 0
	named := make(map[string]struct{}, len(in.Namespaces))
	for _, n := range in.Namespaces {
		if _, double := named[n]; double {
			b.reportProblem(o, "spec.serviceAllocation.namespaces", names.ReasonDuplicate, "spec.serviceAllocation.namespaces lists %q twice: remove one", n)
			continue
		}
		named[n] = struct{}{}
		a.Namespaces = append(a.Namespaces, n)
	}
	a.NamespaceSelectors = b.parseSelectors(o, "spec.serviceAllocation.namespaceSelectors", in.NamespaceSelectors)
	for _, s := range a.NamespaceSelectors {
		for _, n := range namespaces {
			if s.Matches(labels.Set(n.Labels)) {
				a.Namespaces = append(a.Namespaces, n.Name)
			}
		}
	}
	slices.Sort(a.Namespaces)
	a.Namespaces = slices.Compact(a.Namespaces)
	a.ServiceSelectors = b.parseSelectors(o, "spec.serviceAllocation.serviceSelectors", in.ServiceSelectors)
	return a
}
