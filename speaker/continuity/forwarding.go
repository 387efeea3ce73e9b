package continuity

import (
	"net/netip"
	"slices"
	"time"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/forwarding"
	"github.com/gantry-lb/gantry/speaker/intent"
	"github.com/gantry-lb/gantry/speaker/packetrules"
)

// forwardingState is what the Engine knows for the decision of package forwarding.
type forwardingState struct {
	// addressesByNode are the addresses of the nodes that live as far as Kubernetes knows.
	addressesByNode map[string][]netip.Addr
	// macsByNode are those of current and earlier speakers: what a node forwards comes from its
	// kernel, also while its speaker restarts.
	macsByNode map[string][]facts.MAC
	// mustDecide is set after a change of the inputs. decidedAt is when the last decision was made.
	mustDecide bool
	decidedAt  time.Time
	written    intent.Forwarding // what SetForwarding got last
	// refreshAt is when to write although nothing changed.
	refreshAt time.Time
}

func newForwardingState() forwardingState {
	return forwardingState{addressesByNode: map[string][]netip.Addr{}, macsByNode: map[string][]facts.MAC{}}
}

// applyNode changes the addresses of a node. A node without any is gone.
func (f *forwardingState) applyNode(name string, addresses []netip.Addr) {
	f.mustDecide = true
	if len(addresses) > 0 {
		f.addressesByNode[name] = addresses
		return
	}
	delete(f.addressesByNode, name)
	delete(f.macsByNode, name)
}

// applyMembers changes the Ethernet addresses of the nodes.
func (f *forwardingState) applyMembers(all []facts.Member) {
	f.mustDecide = true
	for _, m := range all {
		if len(m.LinkMACs) > 0 {
			f.macsByNode[m.Name] = m.LinkMACs
		}
	}
}

// goneNodeDelay is how long a node is dead until nothing is forwarded to it any more. Its kernel
// serves connections also while its speaker restarts after a crash.
const goneNodeDelay = 10 * time.Second

// hasNodeGoneSince reports whether a dead node counts as gone now, and did not at the time before.
func (e *Engine) hasNodeGoneSince(before, now time.Time) bool {
	for _, since := range e.deadSinceByNode {
		if at := since.Add(goneNodeDelay); at.After(before) && !now.Before(at) {
			return true
		}
	}
	return false
}

// nextForwardingDeadline is when forwardIfDue has to be called without an input; zero if never.
func (e *Engine) nextForwardingDeadline() (next time.Time) {
	f := &e.forwarding
	switch {
	case !e.options.KeepConnections || !e.traffic.HasPlan:
		return next
	case !e.forwardingFeature.retryAt.IsZero():
		return e.forwardingFeature.retryAt
	case !e.forwardingFeature.mayWrite():
		return next
	case f.mustDecide:
		return f.decidedAt.Add(minDecisionInterval)
	}
	next = f.refreshAt
	for _, since := range e.deadSinceByNode {
		if at := since.Add(goneNodeDelay); at.After(f.decidedAt) && at.Before(next) {
			next = at
		}
	}
	if earliest := f.decidedAt.Add(minDecisionInterval); !next.IsZero() && next.Before(earliest) {
		return earliest
	}
	return next
}

// forwardIfDue decides what should be forwarded, and passes it to the kernel if it changed. Before
// the first plan it leaves alone what an earlier run of the process forwards.
func (e *Engine) forwardIfDue(now time.Time) {
	f := &e.forwarding
	isRefreshDue := !now.Before(f.refreshAt)
	f.mustDecide = f.mustDecide || e.hasNodeGoneSince(f.decidedAt, now)
	switch {
	case !e.options.KeepConnections || !e.traffic.HasPlan || now.Before(e.forwardingFeature.retryAt):
		return
	case !e.forwardingFeature.mayWrite():
		return
	case !f.mustDecide && !isRefreshDue || now.Before(f.decidedAt.Add(minDecisionInterval)):
		return
	}
	f.mustDecide, f.decidedAt = false, now
	want := e.decideForwarding(now)
	if want.IsSameAs(f.written) && !isRefreshDue && e.forwardingFeature.retryAt.IsZero() {
		return
	}
	if err := e.options.PacketRules.SetForwarding(want); err != nil {
		f.mustDecide = true
		e.setWriteFault(&e.forwardingFeature, err, now)
		return
	}
	f.written, f.refreshAt = want, now.Add(packetrules.ForwardingRefreshInterval)
	e.metrics.forwardedAddressCount.Store(int64(countHeldWithNextHop(want)))
	if !e.forwardingFeature.retryAt.IsZero() {
		e.forwardingFeature.retryAt = time.Time{}
		e.checkForwarding()
	}
}

func (e *Engine) decideForwarding(now time.Time) intent.Forwarding {
	return forwarding.Decide(forwarding.Inputs{
		SelfNode: e.options.NodeName, Holders: e.traffic.Holders, Services: e.services, AddressesByNode: e.forwarding.addressesByNode, MACsByNode: e.forwarding.macsByNode,
		IsDead: func(node string) bool {
			since, isDead := e.deadSinceByNode[node]
			return isDead && now.Sub(since) >= goneNodeDelay
		},
		LinksOf: e.linksForForwarding(), IsLeaving: e.traffic.IsHandingOver,
	})
}

// linksForForwarding returns a function for the links on which packets for an address may arrive by
// ARP and NDP: those on which this node would answer. A former holder that must not answer any more
// still gets packets from the others. Packets for addresses that routers get by BGP arrive on all
// nodes, so that nothing is known of who has their connections.
func (e *Engine) linksForForwarding() func(netip.Addr) facts.LinkSet {
	links := map[netip.Addr]facts.LinkSet{}
	for b := range e.traffic.Plan.Bids.All() {
		if len(b.OwnLinkIndexes) == 0 {
			continue
		}
		links[b.Address] = slices.DeleteFunc(slices.Clone(e.traffic.UsableLinks), func(l facts.Link) bool { return !slices.Contains(b.OwnLinkIndexes, l.Index) })
	}
	for v := range e.traffic.Plan.BGPVerdicts.All() {
		if v.Reason == names.ReasonAnnounced {
			for _, a := range v.Addresses {
				links[a] = nil
			}
		}
	}
	return func(a netip.Addr) facts.LinkSet {
		if some, ok := links[a]; ok {
			return some
		}
		return e.traffic.UsableLinks
	}
}

// countHeldWithNextHop counts the addresses that this node holds and forwards for.
func countHeldWithNextHop(f intent.Forwarding) int {
	n := 0
	for _, a := range f.Addresses {
		if !a.IsStandby && a.NextHop.IsValid() {
			n++
		}
	}
	return n
}

// forwardAtEnd writes once more what the last messages of the agent changed. What is forwarded then
// goes on without this process for some minutes.
func (e *Engine) forwardAtEnd() {
	select {
	case t := <-e.trafficUpdates.C():
		e.applyTraffic(t)
	default:
	}
	e.forwarding.mustDecide, e.forwarding.decidedAt = true, time.Time{}
	e.forwardIfDue(e.options.Now())
}
