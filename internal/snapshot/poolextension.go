package snapshot

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1beta1"
)

// sharingWithinNamespace is the value of spec.gantry.sharing with which only Services of one
// namespace share an address.
const sharingWithinNamespace = "Namespace"

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
	pool.MaxAddressesPerService = int(in.MaxPerService)
	pool.SharesOnlyWithinNamespace = in.Sharing == sharingWithinNamespace
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
		pool.AcquireProbe = &AcquireProbeSettings{QuarantineDelay: defaultQuarantineDelay}
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
	b.parseRetirement(o, pool, before, in.Retire)
}

// defaultRetiredServicesPerMinute is the CRD's default.
const defaultRetiredServicesPerMinute = 60

// parseRetirement reads spec.gantry.retire of a pool. With an entry that cannot be read, what was
// retired before stays in force: no further Service gives up an address by mistake.
func (b *snapshotBuilder) parseRetirement(o ObjectReference, pool, before *Pool, in *v1beta1.PoolRetirement) {
	if in == nil {
		return
	}
	perMinute := int64(in.ServicesPerMinute)
	if perMinute <= 0 {
		perMinute = defaultRetiredServicesPerMinute
	}
	retired := &Retirement{WholePool: len(in.Addresses) == 0, ServiceReassignInterval: time.Minute / time.Duration(perMinute)}
	b.currentObjectUnservable = false
	for i, text := range in.Addresses {
		field := fmt.Sprintf("spec.gantry.retire.addresses[%d]", i)
		r, err := ParseRange(text)
		switch {
		case err != nil:
			b.reportProblemAndMarkBroken(o, field, names.ReasonInvalidAddress, "%s: %v; until this is corrected nothing further is retired", field, err)
		case !slices.ContainsFunc(pool.Ranges, r.overlaps):
			b.reportProblem(o, field, names.ReasonAddressNotInPool, "%s: no address of %q is in spec.addresses: correct it, or remove it", field, text)
		default:
			retired.Ranges = append(retired.Ranges, r)
		}
	}
	if b.currentObjectUnservable {
		if retired = nil; before != nil {
			retired = before.Retirement
		}
	}
	if pool.Retirement = retired; retired != nil {
		pool.ExcludedRanges = slices.Concat(pool.ExcludedRanges, retired.Ranges)
	}
}

// parseLiftWithheldAnnotation reads the annotation that ends cool-downs and quarantines of a pool.
func (b *snapshotBuilder) parseLiftWithheldAnnotation(o ObjectReference, pool *Pool, text string) {
	if text = strings.TrimSpace(text); text == "" {
		return
	}
	if text == liftAllAddressesValue {
		pool.LiftWithheldValue, pool.WithheldAddressesToFree = text, slices.Clone(pool.Ranges)
		return
	}
	for _, entry := range strings.Split(text, ",") {
		r, err := ParseRange(strings.TrimSpace(entry))
		if err != nil {
			b.reportProblem(o, "metadata.annotations", names.ReasonInvalidAddress, "the annotation %s: %v; or write %s", names.AnnotationLiftWithheld, err, liftAllAddressesValue)
			pool.WithheldAddressesToFree = nil
			return
		}
		pool.WithheldAddressesToFree = append(pool.WithheldAddressesToFree, r)
	}
	pool.LiftWithheldValue = text
}

// liftAllAddressesValue as the value of the annotation means all addresses of the pool.
const liftAllAddressesValue = "all"
