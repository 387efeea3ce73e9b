package reconcile

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1beta1"
)

// speakerReports are what the speakers say of one Service.
type speakerReports struct {
	l2  []v1beta1.ServiceL2Status
	bgp []v1beta1.ServiceBGPStatus
}

func (r speakerReports) isAnnounced() bool { return len(r.announcedProtocols()) > 0 }

// announcedProtocols lists by what the Service is announced.
func (r speakerReports) announcedProtocols() []string {
	var out []string
	if len(r.l2) > 0 {
		out = append(out, "layer 2")
	}
	if slices.ContainsFunc(r.bgp, func(s v1beta1.ServiceBGPStatus) bool { return len(s.Status.Peers) > 0 }) {
		out = append(out, "BGP")
	}
	return out
}

// describeAnnouncement says by what the Service is announced, and who else claims its addresses. It names no node, so that a failover changes nothing.
func (r speakerReports) describeAnnouncement() (names.Reason, string) {
	text := "announced by " + strings.Join(r.announcedProtocols(), " and ")
	contested := r.contestedAddresses()
	if len(contested) == 0 {
		return names.ReasonAnnounced, text
	}
	return names.ReasonForeignClaim, fmt.Sprintf("%s, and a host that does not hold it claims %s: clients may reach that one; find it, or take the address out of the pool",
		text, strings.Join(contested, ", and "))
}

// contestedAddresses lists the addresses that foreign hosts claim, each with the Ethernet address of the one that has done so for longest: a
// forger who takes another one for each frame does not have the Service written again and again.
func (r speakerReports) contestedAddresses() []string {
	var all []v1beta1.AddressConflict
	for _, s := range r.l2 {
		if s.Status.Gantry != nil {
			all = append(all, s.Status.Gantry.Conflicts...)
		}
	}
	slices.SortFunc(all, func(x, y v1beta1.AddressConflict) int {
		return cmp.Or(cmp.Compare(x.Address, y.Address), x.Since.Compare(y.Since.Time), cmp.Compare(x.MAC, y.MAC))
	})
	all = slices.CompactFunc(all, func(x, y v1beta1.AddressConflict) bool { return x.Address == y.Address })
	var out []string
	for _, c := range all {
		out = append(out, fmt.Sprintf("%s (%s)", c.Address, c.MAC))
	}
	return out
}
