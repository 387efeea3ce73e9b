package assign

import (
	"fmt"
	"net/netip"
	"slices"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/internal/ipfamily"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
)

// retiredRanges are all ranges that a pool retired at any time. A controller may carry out a
// retirement late.
type retiredRanges []snapshot.Range

func (r retiredRanges) contains(a netip.Addr) bool {
	return slices.ContainsFunc(r, func(x snapshot.Range) bool { return x.Contains(a) })
}

// isExchangeOfRetiredAddress says whether the Service only gave up retired addresses, each for
// another one of its family, in one write.
func (r retiredRanges) isExchangeOfRetiredAddress(lost netip.Addr, before, after *corev1.Service) bool {
	countOfFamily := func(s *corev1.Service) int {
		return len(slices.DeleteFunc(ingressAddresses(s), func(a netip.Addr) bool { return ipfamily.FamilyOf(a) != ipfamily.FamilyOf(lost) }))
	}
	return r.contains(lost) && countOfFamily(after) >= countOfFamily(before)
}

// changeRetirementOfPool edits what a pool retires: nothing, the whole pool, or one of its entries.
func (w *twoControllerHarness) changeRetirementOfPool(s historyStep) {
	name := []string{"p", "p6", "q"}[s.targetIndex%3]
	spec := *w.server.PoolByName(name).Spec.DeepCopy()
	spec.Gantry.Retire = nil
	if s.actionVariant%4 > 0 {
		spec.Gantry.Retire = &v1beta1.PoolRetirement{ServicesPerMinute: []int32{0, 6, 60, 600}[s.actionVariant%4]}
		entries := spec.Addresses
		if s.actionVariant%2 == 0 {
			entries = entries[:1]
			spec.Gantry.Retire.Addresses = entries
		}
		w.recordRetiredRanges(entries)
	}
	w.server.SetPool(name, spec)
	w.notifyConfigurationChanged()
}

// retirePoolAndFindUnmovedServices retires the whole pool q at the end, and returns the Services
// that hold one of its addresses although they could have others.
func (w *twoControllerHarness) retirePoolAndFindUnmovedServices() []string {
	w.changeRetirementOfPool(historyStep{targetIndex: 2, actionVariant: 3})
	time.Sleep(10 * time.Minute)
	synctest.Wait()
	var retired retiredRanges
	for _, text := range possibleRangesByPool["q"][0] {
		retired = append(retired, parseTestRange(text))
	}
	var out []string
	free := w.findFreeAddressesByFamily()
	for f, list := range free {
		free[f] = slices.DeleteFunc(list, retired.contains)
	}
	for _, s := range w.server.AllServices() {
		v := view.FromService(s)
		if !v.IsLoadBalancer || len(v.RequestedAddresses)+len(v.AddressesToExchange) > 0 || v.RequestedPool != "" {
			continue
		}
		hasOneOfEach := len(v.AssignedAddresses) == len(v.ClusterIPFamilies())
		if v.FamilyPolicy == view.RequireDualStack && !hasOneOfEach {
			continue // it waits for both families, and keeps what it has
		}
		held := slices.DeleteFunc(slices.Clone(v.AssignedAddresses), func(a netip.Addr) bool { return !retired.contains(a) })
		needed := map[ipfamily.Family]int{}
		for _, a := range held {
			needed[ipfamily.FamilyOf(a)]++
		}
		if len(held) > 0 && needed[ipfamily.IPv4] <= len(free[ipfamily.IPv4]) && needed[ipfamily.IPv6] <= len(free[ipfamily.IPv6]) {
			out = append(out, fmt.Sprintf("%s holds %v, which are retired, while %v are free", s.Name, held, free))
		}
		// The other address may have left its pool, or the pool may have been edited: that is told
		// first.
		reason := addressAssignedConditionReason(s)
		if len(held) > 0 && hasOneOfEach && reason != names.ReasonAddressRetired && reason != names.ReasonAddressNotInPool {
			out = append(out, fmt.Sprintf("%s holds %v, which are retired, for the reason %s", s.Name, held, reason))
		}
	}
	return append(out, w.findUnallowedSharing()...)
}

func parseTestRange(text string) snapshot.Range {
	r, err := snapshot.ParseRange(text)
	if err != nil {
		panic(err)
	}
	return r
}
