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

// usable is what the planning needs to know of the links.
type usable struct {
	links  facts.LinkSet
	denied plan.Denial
}

// planned is what the planning found since it was last taken.
type planned struct {
	plan    plan.Plan
	config  *snapshot.Snapshot
	changed map[netip.Addr]intent.Bid
	gone    map[netip.Addr]struct{}
}

// add puts a later Delta on top.
func (p *planned) add(d plan.Delta) {
	for _, b := range d.Changed {
		p.changed[b.Address] = b
		delete(p.gone, b.Address)
	}
	for _, a := range d.Gone {
		p.gone[a] = struct{}{}
		delete(p.changed, a)
	}
}

func (p planned) bids() elect.Bids {
	var out elect.Bids
	for _, b := range p.changed {
		out.Changed = append(out.Changed, b)
	}
	for a := range p.gone {
		out.Gone = append(out.Gone, a)
	}
	return out
}

// planLoop owns the Planner. What Run has not taken yet is kept, and what comes later is put on top of it.
func (a *Agent) planLoop(ctx context.Context, p *plan.Planner) {
	in := planning{Planner: p}
	fresh := func() planned {
		return planned{changed: map[netip.Addr]intent.Bid{}, gone: map[netip.Addr]struct{}{}}
	}
	next := fresh()
	var out chan planned // nil while there is nothing to tell
	resume := a.resume()
	for {
		select {
		case <-ctx.Done():
			return
		case out <- next:
			next, out = fresh(), nil
			continue
		case <-resume:
			if !in.synced {
				a.o.Log.Warn("no plan yet: going on with the routes that an earlier speaker of this node announced", "routes", len(a.o.Remembered.BGP.Routes))
				a.o.BGP.Set(a.o.Remembered.BGP)
			}
			continue
		case batch := <-a.changes:
			in.edit(batch)
			for range len(a.changes) { // a flood of events costs one Plan
				in.edit(<-a.changes)
			}
		case u := <-a.usable:
			p.SetLinks(u.links)
			p.SetDenied(u.denied)
		}
		if in.synced {
			next.add(p.Update())
			next.plan, next.config = p.Plan(), p.Snapshot()
			a.o.BGP.Set(desired(next.plan))
			out = a.planned
		}
	}
}

// desired is what a Plan has for routers.
func desired(p plan.Plan) bgp.Desired {
	return bgp.Desired{Peers: p.Peers, Routes: p.Routes, Leaving: p.Leaving}
}

// planning is what Changes edit.
type planning struct {
	*plan.Planner
	synced bool
}

func (in *planning) edit(batch []Change) {
	for _, c := range batch {
		c(in)
	}
}
