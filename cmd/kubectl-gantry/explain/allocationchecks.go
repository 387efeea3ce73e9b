package explain

import (
	"fmt"
	"net/netip"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/report"
	"github.com/gantry-lb/gantry/internal/view"
)

// addAllocationChecks says which quotas, reservations and sharing keys count for the Service.
func (c *serviceDiagnosis) addAllocationChecks() {
	if c.config == nil {
		return
	}
	addQuotaChecks(c)
	addKeptAddressChecks(c)
	addSharingCheck(c)
}

// refusalOfCondition returns what the controller wrote, if it refused an address for one of the
// Reasons.
func refusalOfCondition(a *metav1.Condition, reasons ...names.Reason) names.Explanation {
	if a == nil || a.Status == metav1.ConditionTrue && a.Reason == string(names.ReasonAssigned) || !slices.Contains(reasons, names.Reason(a.Reason)) {
		return names.Explanation{}
	}
	return names.Explanation{Reason: names.Reason(a.Reason), Text: a.Message}
}

// addQuotaChecks says how many addresses the namespace may have of the pools that the Service may
// use.
func addQuotaChecks(c *serviceDiagnosis) {
	refusal := refusalOfCondition(c.addressCondition, names.ReasonQuotaExceeded)
	candidates := namesOfPoolsToUse(c)
	for _, p := range c.config.Snapshot.Pools {
		isUsed := p.Name == c.view.RecordedPool || len(c.view.AssignedAddresses) == 0 && slices.Contains(candidates, p.Name)
		if p.Quota == nil || !isUsed {
			continue
		}
		limit, isLimited := p.Quota.LimitForNamespace(c.key.Namespace)
		switch name, what := "quota of pool "+p.Name, fmt.Sprintf("namespace %s may have at most %d of its addresses of each family", c.key.Namespace, limit); {
		case !isLimited:
			c.addWideOnlyCheck(name, report.ResultWell, names.Explanation{Text: "has no limit for namespace " + c.key.Namespace})
		case refusal.IsSet():
			c.addCheck(name, report.ResultNotWell, names.Explanation{Reason: refusal.Reason, Text: what})
		default:
			c.addCheck(name, report.ResultWell, names.Explanation{Text: what})
		}
	}
}

// addKeptAddressChecks says which AddressReservations keep addresses for the Service, or keep those
// that it requests for others.
func addKeptAddressChecks(c *serviceDiagnosis) {
	for _, r := range c.config.Snapshot.Reservations {
		if !r.ExpiresAt.IsZero() && !c.now().Before(r.ExpiresAt) {
			continue
		}
		kept := slices.Concat(r.Addresses, r.StatusAddresses)
		isRequested := func(a netip.Addr) bool { return slices.Contains(c.view.RequestedAddresses, a) }
		switch name := "reservation " + r.Name; {
		case r.Service == c.view.Key && len(kept) > 0:
			c.addCheck(name, report.ResultWell, names.Explanation{Text: "keeps " + view.JoinAddresses(kept) + " for the Service"})
		case r.Service == c.view.Key:
			c.addCheck(name, report.ResultWell, names.Explanation{Text: "keeps what the Service has"})
		case slices.ContainsFunc(kept, isRequested):
			c.addCheck(name, report.ResultNotWell, names.NewExplanation(names.ReasonAddressReserved, "keeps a requested address for Service %s", r.Service))
		}
	}
}

// addSharingCheck says with whom the Service may share its addresses.
func addSharingCheck(c *serviceDiagnosis) {
	refusal := refusalOfCondition(c.addressCondition, names.ReasonAddressInUse, names.ReasonSharingKeyDiffers, names.ReasonPortConflict, names.ReasonTrafficPolicyConflict)
	switch {
	case refusal.IsSet():
		c.addCheck("sharing", report.ResultNotWell, refusal)
	case c.view.SharingKey != "":
		c.addCheck("sharing", report.ResultWell, names.Explanation{Text: "may share its addresses with Services that have the sharing key " + c.view.SharingKey})
	}
}
