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

// usableLinks is what the planning needs to know of the links.
type usableLinks struct {
	links      facts.LinkSet
	rawSockets plan.RawSockets
}

// planUpdate is what the planning found since it was last taken.
type planUpdate struct {
	plan          plan.Plan
	snapshot      *snapshot.Snapshot
	changedBids   map[netip.Addr]intent.Bid
	goneAddresses map[netip.Addr]struct{}
}

// mergeDelta puts a later Delta on top.
func (p *planUpdate) mergeDelta(d plan.Delta) {
	for _, b := range d.Changed {
		p.changedBids[b.Address] = b
		delete(p.goneAddresses, b.Address)
	}
	for _, a := range d.Gone {
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

// runPlanner owns the Planner. What Run has not taken yet is kept, and what comes later is put on top of it.
func (a *Agent) runPlanner(ctx context.Context, p *plan.Planner) {
	in := planEditor{Planner: p}
	fresh := func() planUpdate {
		return planUpdate{changedBids: map[netip.Addr]intent.Bid{}, goneAddresses: map[netip.Addr]struct{}{}}
	}
	next := fresh()
	var out chan planUpdate // nil while there is nothing to tell
	resume := a.restoreRoutesTimer()
	for {
		select {
		case <-ctx.Done():
			return
		case out <- next:
			next, out = fresh(), nil
			continue
		case <-resume:
			if !in.synced {
				a.options.Log.Warn("no plan yet: going on with the routes that an earlier speaker of this node announced", "routes", len(a.options.RestoreFrom.BGP.Routes))
				a.options.BGP.Set(a.options.RestoreFrom.BGP)
			}
			continue
		case batch := <-a.changeBatches:
			in.applyChanges(batch)
			for range len(a.changeBatches) { // a flood of events costs one Plan
				in.applyChanges(<-a.changeBatches)
			}
		case u := <-a.usableLinks:
			p.SetLinks(u.links)
			p.SetRawSockets(u.rawSockets)
		}
		if in.synced {
			next.mergeDelta(p.Update())
			next.plan, next.snapshot = p.Plan(), p.Snapshot()
			a.options.BGP.Set(desiredBGP(next.plan))
			out = a.planUpdates
		}
	}
}

// desiredBGP is what a Plan has for routers.
func desiredBGP(p plan.Plan) bgp.Desired {
	return bgp.Desired{Peers: p.Peers, Routes: p.Routes, Leaving: p.Leaving}
}

// planEditor is what Changes edit.
type planEditor struct {
	*plan.Planner
	synced bool
}

func (in *planEditor) applyChanges(batch []Change) {
	for _, c := range batch {
		c(in)
	}
}
