package snapshot

import (
	"slices"
	"sort"
	"strings"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1beta1"
)

// sortPoolsByPrecedence sorts pools by their precedence for addresses that two of them list. A pool
// that was edited to list what another pool had comes last: the Services of the other pool would
// change their advertisements. Among the others the older pool comes first. A program that starts
// knows of no edit, except of one that the status of the pool reports as an overlap.
func sortPoolsByPrecedence(pools []parsedPool, last *Snapshot) {
	had := newPreviousRanges(last)
	isLate := map[string]bool{}
	for i := range pools {
		p := pools[i].object
		if last.PoolByName(p.Name) == nil {
			isLate[p.Name] = doesPoolStatusReportOverlap(p)
		} else {
			isLate[p.Name] = had.anotherPoolHadRangeOf(&pools[i])
		}
	}
	slices.SortFunc(pools, func(x, y parsedPool) int {
		switch {
		case isLate[x.object.Name] && !isLate[y.object.Name]:
			return 1
		case isLate[y.object.Name] && !isLate[x.object.Name]:
			return -1
		}
		return comparePoolsByAge(x, y)
	})
}

// previousRanges are all ranges of a Snapshot, sorted by their first address. They do not overlap.
type previousRanges []poolRange

func newPreviousRanges(s *Snapshot) previousRanges {
	var out previousRanges
	if s == nil {
		return nil
	}
	for _, p := range s.Pools {
		for _, r := range p.Ranges {
			out = append(out, poolRange{Range: r, poolName: p.Name})
		}
	}
	slices.SortFunc(out, func(x, y poolRange) int { return x.First.Compare(y.First) })
	return out
}

// anotherPoolHadRangeOf says whether an entry of the pool overlaps a range that another pool had.
func (all previousRanges) anotherPoolHadRangeOf(p *parsedPool) bool {
	for i := range p.entries {
		if p.entries[i].err != nil {
			continue
		}
		r := p.entries[i].Range
		for i := sort.Search(len(all), func(i int) bool { return r.First.Compare(all[i].Last) <= 0 }); i < len(all) && all[i].overlaps(r); i++ {
			if all[i].poolName != p.object.Name {
				return true
			}
		}
	}
	return false
}

// doesPoolStatusReportOverlap says whether the status of the pool reports an overlap of its current
// spec.
func doesPoolStatusReportOverlap(p *v1beta1.IPAddressPool) bool {
	if p.Status.Gantry == nil {
		return false
	}
	c := meta.FindStatusCondition(p.Status.Gantry.Conditions, names.ConditionValid)
	return c != nil && c.Status == metav1.ConditionFalse && c.ObservedGeneration == p.Generation && strings.Contains(c.Message, overlapProblemText)
}
