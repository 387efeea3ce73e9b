package snapshot

import (
	"cmp"
	"slices"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1beta1"
)

// parsePools parses the pools. If two entries overlap, the later one is left out: see
// sortPoolsByPrecedence for the order. A pool that an edit broke keeps its previous entries.
func (b *snapshotBuilder) parsePools(in []v1beta1.IPAddressPool, namespaces []NamespaceLabels, last *Snapshot) []*Pool {
	in = slices.Clone(in)
	slices.SortFunc(in, func(x, y v1beta1.IPAddressPool) int {
		return cmp.Or(x.CreationTimestamp.Compare(y.CreationTimestamp.Time), cmp.Compare(x.Name, y.Name))
	})
	entriesByPool := parseEntriesOfPools(in)
	takenRanges := newRangeIndex(entriesByPool)
	if !takenRanges.hasNoOverlap {
		sortPoolsByPrecedence(in, last)
		entriesByPool = parseEntriesOfPools(in)
	}
	var out []*Pool
	for i := range in {
		p := &in[i]
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
		b.currentObjectUnservable = false
		entries := b.acceptEntries(o, entriesByPool[i], takenRanges)
		if b.currentObjectUnservable && before != nil {
			entries = before.previousRangesWithoutOverlap(takenRanges)
		}
		pool.Ranges = make([]Range, 0, len(entries))
		for _, e := range entries {
			takenRanges.insertRange(e)
			pool.Ranges = append(pool.Ranges, e.Range)
		}
		b.parsePoolExtension(o, pool, before, p.Spec.Gantry)
		b.parseLiftAnnotation(o, pool, p.Annotations[names.AnnotationLiftWithheld])
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
