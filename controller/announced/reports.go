package announced

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1beta1"
)

// speakerReports are the speakers' reports about one Service.
type speakerReports struct {
	layer2Statuses []v1beta1.ServiceL2Status
	bgpStatuses    []v1beta1.ServiceBGPStatus
}

func (r speakerReports) isAnnounced() bool { return len(r.announcedProtocols()) > 0 }

// announcedProtocols lists the protocols by which the Service is announced.
func (r speakerReports) announcedProtocols() []string {
	var out []string
	if len(r.layer2Statuses) > 0 {
		out = append(out, "layer 2")
	}
	if slices.ContainsFunc(r.bgpStatuses, func(s v1beta1.ServiceBGPStatus) bool { return len(s.Status.Peers) > 0 }) {
		out = append(out, "BGP")
	}
	return out
}

// describeAnnouncement says by which protocols the Service is announced, and which foreign hosts
// claim its addresses. It names no node, so that a failover changes nothing.
func (r speakerReports) describeAnnouncement() (names.Reason, string) {
	text := "announced by " + strings.Join(r.announcedProtocols(), " and ")
	contested := r.contestedAddresses()
	if len(contested) == 0 {
		return names.ReasonAnnounced, text
	}
	return names.ReasonForeignClaim, fmt.Sprintf("%s, but a foreign host claims %s: clients may reach that host instead; find it, or remove the address from the pool",
		text, strings.Join(contested, ", and "))
}

// contestedAddresses lists the addresses that foreign hosts claim, each with the Ethernet address
// of the oldest claim: an attacker who changes the Ethernet address in each frame does not cause a
// write each time.
func (r speakerReports) contestedAddresses() []string {
	var all []v1beta1.AddressConflict
	for _, s := range r.layer2Statuses {
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
