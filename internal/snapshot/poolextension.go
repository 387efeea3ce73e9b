package snapshot

import (
	"fmt"
	"slices"
	"time"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1beta1"
)

// defaultQuarantineDelay is the CRD's default. It gives a person time to look, and the address is
// not lost for long to a notebook that only visited.
const defaultQuarantineDelay = time.Hour

// parsePoolExtension reads spec.gantry of a pool.
func (b *snapshotBuilder) parsePoolExtension(o ObjectReference, pool, before *Pool, in *v1beta1.PoolExtension) {
	if in == nil {
		return
	}
	pool.AssignmentOrder = AssignmentOrder(in.Order)
	if in.Cooldown != nil {
		pool.CooldownDelay = max(in.Cooldown.Duration, 0)
	}
	if in.Quota != nil {
		pool.Quota = &NamespaceQuota{DefaultLimit: -1, LimitByNamespace: map[string]int{}}
		if in.Quota.PerNamespace != nil {
			pool.Quota.DefaultLimit = int(*in.Quota.PerNamespace)
		}
		for _, n := range in.Quota.Namespaces {
			pool.Quota.LimitByNamespace[n.Namespace] = int(n.Addresses)
		}
	}
	if in.Probe != nil {
		pool.AcquireProbe = &ProbeSettings{QuarantineDelay: defaultQuarantineDelay}
		if in.Probe.Quarantine != nil {
			pool.AcquireProbe.QuarantineDelay = in.Probe.Quarantine.Duration
		}
	}
	b.currentObjectUnservable = false
	for i, text := range in.Exclude {
		r, err := ParseRange(text)
		if err != nil {
			field := fmt.Sprintf("spec.gantry.exclude[%d]", i)
			b.reportProblemAndMarkBroken(o, field, names.ReasonInvalidAddress, "%s: %v; until this is corrected the pool gives no further address", field, err)
			continue
		}
		pool.ExcludedRanges = append(pool.ExcludedRanges, r)
	}
	switch {
	case !b.currentObjectUnservable:
	case before != nil:
		pool.ExcludedRanges = before.ExcludedRanges
	default: // it is unknown which addresses must not be given
		pool.ExcludedRanges = slices.Clone(pool.Ranges)
	}
}
