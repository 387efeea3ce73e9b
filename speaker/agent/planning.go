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

// usableLinks is what the planner has to know of the links.
type usableLinks struct {
	links      facts.LinkSet
	rawSockets plan.RawSocketPermission
}

// planUpdate is what changed in the plan since Run last read one.
type planUpdate struct {
	plan          plan.Plan
	snapshot      *snapshot.Snapshot
	changedBids   map[netip.Addr]intent.Bid
	goneAddresses map[netip.Addr]struct{}
}

func newPlanUpdate() planUpdate {
	return planUpdate{changedBids: map[netip.Addr]intent.Bid{}, goneAddresses: map[netip.Addr]struct{}{}}
}

// mergeDelta adds a later Delta.
func (p *planUpdate) mergeDelta(d plan.Delta) {
	for _, b := range d.ChangedBids {
		p.changedBids[b.Address] = b
		delete(p.goneAddresses, b.Address)
	}
	for _, a := range d.GoneAddresses {
		p.goneAddresses[a] = struct{}{}
		delete(p.changedBids, a)
	}
}

func (p planUpdate) electionInput() elect.BidsChanged {
	var out elect.BidsChanged
	for _, b := range p.changedBids {
		out.Bids = append(out.Bids, b)
	}
	for a := range p.goneAddresses {
		out.GoneAddresses = append(out.GoneAddresses, a)
	}
	return out
}

// runPlanner owns the Planner. It merges updates that Run has not read yet.
func (a *Agent) runPlanner(ctx context.Context, p *plan.Planner) {
	in := plannerEditor{Planner: p}
	next := newPlanUpdate()
	var out chan planUpdate // nil while there is no update
	restoreRoutes := a.restoreRoutesTimer()
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
					"routes", len(a.options.RestoreFrom.BGP.Routes))
				a.options.BGP.Set(a.options.RestoreFrom.BGP)
			}
			continue
		case batch := <-a.changeBatches:
			in.applyChanges(batch)
			for range len(a.changeBatches) { // many changes cost one plan
				in.applyChanges(<-a.changeBatches)
			}
		case results := <-a.options.HealthChecks.Results():
			for _, r := range results {
				p.SetHealthCheckResult(r)
			}
		case u := <-a.usableLinks.C():
			p.SetLinks(u.links)
			p.SetRawSocketPermission(u.rawSockets)
		}
		if in.clusterSynced {
			next.mergeDelta(p.Update())
			next.plan, next.snapshot = p.Plan(), p.Snapshot()
			a.options.BGP.Set(desiredBGP(next.plan))
			a.options.HealthChecks.SetChecks(next.plan.HealthChecks)
			out = a.planUpdates
		}
	}
}

// desiredBGP returns what the plan announces to routers.
func desiredBGP(p plan.Plan) bgp.Desired {
	return bgp.Desired{Peers: p.Peers, Routes: p.Routes, Leaving: p.NodeLeaving}
}

// plannerEditor applies Changes to a Planner.
type plannerEditor struct {
	*plan.Planner
	clusterSynced bool
}

func (in *plannerEditor) applyChanges(batch []Change) {
	for _, c := range batch {
		c(in)
	}
}
