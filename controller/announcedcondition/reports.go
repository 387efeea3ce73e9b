package announcedcondition

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/internal/view"
)

// speakerReports are what living speakers report about one Service.
type speakerReports struct {
	layer2Statuses []v1beta1.ServiceL2Status
	// sessions are the BGP sessions that should carry the Service.
	sessions []sessionReport
	// deadLayer2Nodes counts the nodes whose speakers were found dead after they had reported the
	// Service by layer 2.
	deadLayer2Nodes int
}

// areAllAnnouncingSpeakersDead reports whether the speakers of all nodes that announced the Service
// were found dead, and there was at least one.
func (r *speakerReports) areAllAnnouncingSpeakersDead() bool {
	isDead := func(s sessionReport) bool { return s.fault.Reason == names.ReasonNoSpeaker }
	return len(r.layer2Statuses) == 0 && r.deadLayer2Nodes+len(r.sessions) > 0 &&
		!slices.ContainsFunc(r.sessions, func(s sessionReport) bool { return !isDead(s) })
}

// sessionReport is a BGP session that should carry a Service.
type sessionReport struct {
	node, peer string
	// wantedAddresses are those of the Service that the session should carry.
	wantedAddresses []netip.Addr
	// carriesIPv4 and carriesIPv6 mean that the router has the Service's route of that family.
	carriesIPv4, carriesIPv6 bool
	// fault is why the session carries none of the addresses. It is zero if it carries one.
	// familyFault is why it does not carry a family that it does not carry.
	fault, familyFault names.Explanation
}

// carriesAddress reports whether the router has the route to the address.
func (s *sessionReport) carriesAddress(a netip.Addr) bool {
	return slices.Contains(s.wantedAddresses, a) && (a.Is4() && s.carriesIPv4 || !a.Is4() && s.carriesIPv6)
}

// restrictSessionsToAddresses returns what the sessions are for some of the addresses that they
// should carry.
func restrictSessionsToAddresses(all []sessionReport, addresses []netip.Addr) []sessionReport {
	var out []sessionReport
	for _, s := range all {
		s.wantedAddresses = slices.DeleteFunc(slices.Clone(s.wantedAddresses), func(a netip.Addr) bool { return !slices.Contains(addresses, a) })
		if len(s.wantedAddresses) == 0 {
			continue
		}
		if !s.fault.IsSet() && !slices.ContainsFunc(s.wantedAddresses, s.carriesAddress) {
			s.fault = s.familyFault
		}
		out = append(out, s)
	}
	return out
}

// announcementSummary says how clients reach a Service.
type announcementSummary struct {
	// announcedAddresses and missing are the addresses that somebody announces, and those that
	// nobody does.
	announcedAddresses, unannouncedAddresses []netip.Addr
	byLayer2                                 bool
	byBGP                                    bool
}

// summarizeAnnouncement returns how each of the addresses is announced.
func (r *speakerReports) summarizeAnnouncement(addresses []netip.Addr) announcementSummary {
	var out announcementSummary
	for _, a := range addresses {
		layer2 := slices.ContainsFunc(r.layer2Statuses, func(s v1beta1.ServiceL2Status) bool { return announcesAddress(&s.Status, a) })
		bgp := slices.ContainsFunc(r.sessions, func(s sessionReport) bool { return s.carriesAddress(a) })
		out.byLayer2, out.byBGP = out.byLayer2 || layer2, out.byBGP || bgp
		if layer2 || bgp {
			out.announcedAddresses = append(out.announcedAddresses, a)
		} else {
			out.unannouncedAddresses = append(out.unannouncedAddresses, a)
		}
	}
	return out
}

// announcesAddress reports whether the node of the report answers for the address. A report of
// another program has no addresses: it is about all of them.
func announcesAddress(s *v1beta1.ServiceL2StatusStatus, a netip.Addr) bool {
	return s.Gantry == nil || slices.Contains(s.Gantry.Addresses, a.String())
}

// describeAnnouncement says by which protocols the Service is announced, which sessions do not
// carry it if withSessions is set, and which foreign hosts claim its addresses. It names no node of
// layer 2, so that a failover changes nothing. A router that returns gets its sessions one after
// the other within seconds: the first text does not count them, so that it need not be corrected.
func (r *speakerReports) describeAnnouncement(found *announcementSummary, withSessions bool) (names.Reason, string) {
	text := describeProtocols(found)
	if faulty := r.faultySessions(); withSessions && found.byBGP && len(faulty) > 0 {
		first := faulty[0]
		text += fmt.Sprintf(", on %d of %d BGP sessions: not on %s on %s: %s (%s)", len(r.sessions)-len(faulty), len(r.sessions), first.peer, first.node, first.fault.Text, first.fault.Reason)
	}
	contested, reserved := r.describeForeignHosts(), r.describeBroadcastAddresses()
	switch {
	case len(contested)+len(reserved) == 0:
		return names.ReasonAnnounced, text
	case len(contested) == 0:
		return names.ReasonBroadcastAddress, fmt.Sprintf("%s, but %s: hosts of that subnet cannot connect to it; exclude it from the pool (spec.gantry.exclude, or avoidBuggyIPs), and give the Service another address",
			text, strings.Join(reserved, ", and "))
	}
	return names.ReasonForeignClaim, fmt.Sprintf("%s, but a foreign host claims %s: clients may reach that host instead; find it, or remove the address from the pool",
		text, strings.Join(contested, ", and "))
}

func describeProtocols(found *announcementSummary) string {
	var protocols []string
	if found.byLayer2 {
		protocols = append(protocols, "layer 2")
	}
	if found.byBGP {
		protocols = append(protocols, "BGP")
	}
	return "announced by " + strings.Join(protocols, " and ")
}

// faultySessions returns the sessions that do not carry the Service.
func (r *speakerReports) faultySessions() []sessionReport {
	return slices.DeleteFunc(slices.Clone(r.sessions), func(s sessionReport) bool { return !s.fault.IsSet() })
}

// describeForeignHosts lists the addresses that foreign hosts claim, each with the Ethernet address
// of the oldest claim: an attacker who changes the Ethernet address in each frame does not cause a
// write each time.
func (r *speakerReports) describeForeignHosts() []string {
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

// describeBroadcastAddresses says which addresses are the network or the broadcast address of a
// subnet, each once.
func (r *speakerReports) describeBroadcastAddresses() []string {
	var out []string
	for _, s := range r.layer2Statuses {
		if s.Status.Gantry == nil {
			continue
		}
		for _, a := range s.Status.Gantry.ReservedAddresses {
			use := "broadcast"
			if network, _, _ := strings.Cut(a.Subnet, "/"); network == a.Address {
				use = "network"
			}
			out = append(out, fmt.Sprintf("%s is the %s address of the subnet %s", a.Address, use, a.Subnet))
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// describeUnannouncedAddresses says which addresses are announced and which are not, and why.
func describeUnannouncedAddresses(found *announcementSummary, why names.Explanation) string {
	if len(found.announcedAddresses) == 0 {
		return why.Text
	}
	return fmt.Sprintf("%s: %s; %s: %s", view.JoinAddresses(found.announcedAddresses), describeProtocols(found), view.JoinAddresses(found.unannouncedAddresses), why.Text)
}
