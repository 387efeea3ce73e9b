package agent

import (
	"net/netip"
	"slices"
	"time"

	"github.com/gantry-lb/gantry/speaker/elect"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/intent"
	"github.com/gantry-lb/gantry/speaker/plan"
)

// TrafficFacts are what the packet rules of this node depend on. They are immutable.
type TrafficFacts struct {
	// CarriedBindings are the addresses that this node answers for, and those that it is about to
	// take, sorted by address.
	CarriedBindings []intent.Binding
	UsableLinks     facts.LinkSet
	// Plan has content only if HasPlan is set: after the start it takes a while.
	Plan    plan.Plan
	HasPlan bool
	// Holders are the holders of all addresses, as far as this node knows.
	Holders []elect.Holder
	// Members are the speakers that are alive, including this one.
	Members []facts.Member
	// IsHandingOver is set when this node hands over all addresses, because its speaker stops.
	IsHandingOver bool
	// MemberNames are the nodes whose speakers are alive, including this one, sorted.
	MemberNames []string
	// DeclaredDeadMemberNames are those of them that the election has declared dead, sorted.
	DeclaredDeadMemberNames []string
	// VanishedAtByMember is when former members vanished that did not say that they leave.
	VanishedAtByMember map[string]time.Time
}

// trafficState is what reportTraffic knows of the last TrafficFacts.
type trafficState struct {
	hasChanged    bool
	claimsVersion elect.ClaimsVersion // of the last TrafficFacts
	reportedAt    time.Time
	isHandingOver bool // RequestHandover was called
}

// perAddressTrafficInterval times the number of addresses is the shortest time between two
// TrafficFacts: 50 ms with 10,000 addresses. Their cost grows with the addresses.
const perAddressTrafficInterval = 5 * time.Microsecond

// reportTraffic passes TrafficFacts on after a change. It does not wait for a late election, as a
// Status does: while a node is dead, each moment without packet rules costs connections.
func (a *Agent) reportTraffic(now time.Time) {
	version := a.electionMachine.ClaimsVersion()
	if a.options.ObserveTraffic == nil || !a.traffic.hasChanged && version == a.traffic.claimsVersion ||
		now.Sub(a.traffic.reportedAt) < time.Duration(a.plan.Bids.Len())*perAddressTrafficInterval {
		return
	}
	a.traffic.hasChanged, a.traffic.claimsVersion, a.traffic.reportedAt = false, version, now
	a.options.ObserveTraffic(TrafficFacts{
		CarriedBindings: a.listCarriedAddresses(), UsableLinks: a.ownUsableLinks, Plan: a.plan, HasPlan: a.checkpoint.hasFirstPlan,
		Holders: a.electionMachine.Holders(), Members: a.addressProbes.members.Members, IsHandingOver: a.traffic.isHandingOver,
		MemberNames: a.liveMemberNames, DeclaredDeadMemberNames: a.declaredDeadMemberNames,
		VanishedAtByMember: a.addressProbes.members.VanishedAtByMember,
	})
}

// listCarriedAddresses returns the addresses that this node answers for or is about to take.
func (a *Agent) listCarriedAddresses() []intent.Binding {
	all := map[netip.Addr]intent.Binding{}
	for _, b := range elect.AddressesToTake(a.electionMachine) {
		all[b.Address] = b
	}
	for ip, b := range a.heldBindingByAddress {
		all[ip] = b
	}
	out := make([]intent.Binding, 0, len(all))
	for _, b := range all {
		out = append(out, b)
	}
	slices.SortFunc(out, func(x, y intent.Binding) int { return x.Address.Compare(y.Address) })
	return out
}
