package explain

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/controller/allocate"
	"github.com/gantry-lb/gantry/internal/ipfamily"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
)

// describePoolRefusals says of each pool why it is not open to a Service of the namespace, as the
// end of a sentence.
func describePoolRefusals(pools []*snapshot.Pool, namespace string) string {
	var closed []string
	for _, p := range pools {
		if !p.AutoAssign {
			closed = append(closed, p.Name+" has autoAssign false")
		} else {
			closed = append(closed, "the serviceAllocation of "+p.Name+" does not admit it"+describeAdmittedServices(p, namespace))
		}
	}
	return " (" + joinFirstElements(closed, maxListedElements) + ")"
}

// describeAdmittedServices says what the serviceAllocation of a pool admits, as the end of a
// sentence.
func describeAdmittedServices(p *snapshot.Pool, namespace string) string {
	a := p.ServiceAllocation
	switch {
	case a == nil:
		return ""
	case a.OnlyListedNamespaces && len(a.Namespaces) == 0:
		return fmt.Sprintf(": its namespaceSelectors (%s) match no namespace", joinSelectors(a.NamespaceSelectors))
	case a.OnlyListedNamespaces && !slices.Contains(a.Namespaces, namespace):
		return fmt.Sprintf(": it admits only the namespaces %s, not %s", joinFirstElements(a.Namespaces, maxListedElements), namespace)
	case len(a.ServiceSelectors) > 0:
		return fmt.Sprintf(": it admits only Services with the labels %s", joinSelectors(a.ServiceSelectors))
	}
	return ""
}

func joinSelectors(all []labels.Selector) string {
	var out []string
	for _, s := range all {
		out = append(out, s.String())
	}
	return strings.Join(out, " or ")
}

// findOnlyPoolOfService returns the one pool that can give the Service an address: the pool that
// the Service names, or the only pool of the cluster. It returns nil if there are several.
func findOnlyPoolOfService(c *serviceDiagnosis) *snapshot.Pool {
	if c.config == nil {
		return nil
	}
	if p := c.config.Snapshot.PoolByName(c.view.RequestedPool); p != nil {
		return p
	}
	if pools := c.config.Snapshot.Pools; len(pools) == 1 && pools[0].AutoAssign {
		return pools[0]
	}
	return nil
}

// explainPoolThatCannotGive says why a pool has no address of a needed family although it should: a
// fault, or settings that leave no address over. Nothing is set if it has some.
func explainPoolThatCannotGive(c *serviceDiagnosis, p *snapshot.Pool, s *v1beta1.IPAddressPoolStatus) cause {
	fault := explainFirstProblem(c.config.Problems, map[string]bool{"IPAddressPool " + p.Name: true})
	if fault.Reason == names.ReasonInvalidAddress || fault.Reason == names.ReasonOverlap {
		return fault
	}
	for _, a := range c.view.ClusterIPs {
		f := ipfamily.FamilyOf(a)
		hasSome := slices.ContainsFunc(usageOfEachFamily(s), func(u familyUsage) bool { return u.family == f })
		isOfFamily := func(r snapshot.Range) bool { return ipfamily.FamilyOf(r.First) == f }
		if hasSome || !slices.ContainsFunc(p.Ranges, isOfFamily) {
			continue
		}
		var because []string
		if p.AvoidBuggyIPs {
			because = append(because, "avoidBuggyIPs")
		}
		if len(p.ExcludedRanges) > 0 {
			because = append(because, "gantry.exclude or gantry.retire")
		}
		if p.Retirement != nil && p.Retirement.WholePool {
			because = append(because, "gantry.retire")
		}
		if len(because) > 0 {
			return cause{Explanation: names.NewExplanation(names.ReasonPoolExhausted, "the IPAddressPool %s may give none of its %s addresses, because of %s: add a range to it, or remove this", p.Name, f, strings.Join(because, " and "))}
		}
	}
	return cause{}
}

// namesOfPoolsToUse returns the pools that may give the Service an address, as far as their
// settings say.
func namesOfPoolsToUse(c *serviceDiagnosis) []string {
	empty := allocate.NewLedger()
	empty.UseSnapshot(c.config.Snapshot)
	var out []string
	for _, p := range allocate.ExplainPools(&c.view, empty, c.config.Snapshot) {
		if p.IsCandidate {
			out = append(out, p.Pool.Name)
		}
	}
	return out
}

// describeAddressesKeptBack names addresses of a pool that are free, and that no Service gets: they
// are reserved, or withheld for a while. It is the end of a sentence.
func describeAddressesKeptBack(ctx context.Context, c *serviceDiagnosis, pool string) string {
	p := c.config.Snapshot.PoolByName(pool)
	if p == nil {
		return ""
	}
	var out []string
	for _, r := range c.config.Snapshot.Reservations {
		isKept := func(a netip.Addr) bool { return p.CanAssignAddress(a) && r.Service.String() != c.view.Key.String() }
		if kept := slices.DeleteFunc(slices.Concat(r.Addresses, r.StatusAddresses), func(a netip.Addr) bool { return !isKept(a) }); len(kept) > 0 && (r.ExpiresAt.IsZero() || c.now().Before(r.ExpiresAt)) {
			out = append(out, fmt.Sprintf("AddressReservation %s keeps %s for Service %s", r.Name, view.JoinAddresses(kept[:1]), r.Service))
		}
	}
	withheld, _ := c.readWithheldAddresses(ctx) // these only complete the text
	for _, w := range withheld {
		if a, err := netip.ParseAddr(w.Address); err == nil && p.CanAssignAddress(a) && c.now().Before(w.Until.Time) {
			out = append(out, fmt.Sprintf("%s is withheld until %s (%s)", a, describeTime(&w.Until), w.Reason))
		}
	}
	if len(out) == 0 {
		return ""
	}
	return "; " + joinFirstElements(out, maxKeptBackInText)
}

// maxKeptBackInText bounds how many addresses a text names that are kept back.
const maxKeptBackInText = 2
