package agent

import (
	"context"
	"net/netip"

	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/speaker/bgp"
	"github.com/gantry-lb/gantry/speaker/elect"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/intent"
	"github.com/gantry-lb/gantry/speaker/plan"
)

// plannerLinks is what the planner has to know of the links.
type plannerLinks struct {
	links, downLinks    facts.LinkSet
	rawSocketPermission plan.RawSocketPermission
}

// planUpdate is what changed in the plan since Run last read one.
type planUpdate struct {
	plan                plan.Plan
	snapshot            *snapshot.Snapshot
	changedBids         map[netip.Addr]intent.Bid
	addressesWithoutBid map[netip.Addr]struct{}
}

func newPlanUpdate() planUpdate {
	return planUpdate{changedBids: map[netip.Addr]intent.Bid{}, addressesWithoutBid: map[netip.Addr]struct{}{}}
}

// mergeDelta adds a later Delta.
func (p *planUpdate) mergeDelta(d plan.BidDelta) {
	for _, b := range d.ChangedBids {
		p.changedBids[b.Address] = b
		delete(p.addressesWithoutBid, b.Address)
	}
	for _, a := range d.AddressesWithoutBid {
		p.addressesWithoutBid[a] = struct{}{}
		delete(p.changedBids, a)
	}
}

func (p planUpdate) toBidsChanged() elect.BidsChanged {
	var out elect.BidsChanged
	for _, b := range p.changedBids {
		out.Bids = append(out.Bids, b)
	}
	for a := range p.addressesWithoutBid {
		out.AddressesWithoutBid = append(out.AddressesWithoutBid, a)
	}
	return out
}

// runPlanner owns the Planner. It merges updates that Run has not read yet.
func (a *Agent) runPlanner(ctx context.Context, p *plan.Planner) {
	in := plannerEditor{Planner: p}
	next := newPlanUpdate()
	var out chan planUpdate // nil while there is no update
	restoreRoutes := a.startRestoredRoutesTimer()
	for {
		select {
		case <-ctx.Done():
			return
		case out <- next:
			next, out = newPlanUpdate(), nil
			continue
		case <-restoreRoutes:
			if !in.clusterSynced {
				a.options.Log.Warn("no plan yet: announcing the routes of the last speaker of this node",
					"routes", len(a.options.RestoreFrom.DesiredBGP.Routes))
				a.options.BGPEngine.SetDesiredState(a.options.RestoreFrom.DesiredBGP)
			}
			continue
		case batch := <-a.plannerInputChangeBatches:
			in.applyChanges(batch)
			for range len(a.plannerInputChangeBatches) { // many changes cost one plan
				in.applyChanges(<-a.plannerInputChangeBatches)
			}
		case results := <-a.options.HealthCheckPoller.ChangedResults():
			for _, r := range results {
				p.SetHealthCheckResult(r)
			}
		case byNode := <-a.memberLinksForPlanner.C():
			p.SetPublishedLinksOfNodes(byNode)
		case u := <-a.linksForPlanner.C():
			p.SetLinks(u.links, u.downLinks)
			p.SetRawSocketPermission(u.rawSocketPermission)
		case f := <-a.fitnessOfNodesForPlanner.C():
			p.SetFitnessOfNodes(f)
		}
		if in.clusterSynced && p.NeedsUpdate() {
			next.mergeDelta(p.Update())
			next.plan, next.snapshot = p.Plan(), p.Snapshot()
			a.options.BGPEngine.SetDesiredState(desiredBGPOfPlan(next.plan))
			a.options.HealthCheckPoller.SetChecks(next.plan.HealthChecks)
			out = a.planUpdates
		}
	}
}

// desiredBGPOfPlan returns what the plan announces to routers.
func desiredBGPOfPlan(p plan.Plan) bgp.DesiredState {
	return bgp.DesiredState{Peers: p.Peers, Routes: p.Routes, NodeLeaving: p.NodeLeaving, NodeInternalIPs: p.NodeInternalIPs}
}

// plannerEditor applies Changes to a Planner.
type plannerEditor struct {
	*plan.Planner
	clusterSynced bool
}

func (in *plannerEditor) applyChanges(batch []PlannerInputChange) {
	for _, c := range batch {
		c(in)
	}
}
