package agent

import (
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/plan"
)

// Change is an edit of what the plan rests on; see the functions that make one.
type Change func(*planning)

// Edit makes changes to a Planner, as an Agent does to its own, and says whether one of them was Synced.
func Edit(p *plan.Planner, changes ...Change) (synced bool) {
	in := planning{Planner: p}
	in.edit(changes)
	return in.synced
}

// SetService puts a Service in the place of its former View.
func SetService(s view.Service) Change {
	return func(in *planning) { in.SetService(s) }
}

// RemoveService forgets a Service.
func RemoveService(k view.Key) Change {
	return func(in *planning) { in.RemoveService(k) }
}

// SetEndpoints puts the endpoints of a Service in the place of its former ones; none at all are forgotten.
func SetEndpoints(e view.Endpoints) Change {
	return func(in *planning) { in.SetEndpoints(e) }
}

// SetNode puts a node in the place of its former View.
func SetNode(n view.Node) Change {
	return func(in *planning) { in.SetNode(n) }
}

// RemoveNode forgets a node.
func RemoveNode(name string) Change {
	return func(in *planning) { in.RemoveNode(name) }
}

// SetSnapshot puts a new configuration in the place of the former.
func SetSnapshot(s *snapshot.Snapshot) Change {
	return func(in *planning) { in.SetSnapshot(s) }
}

// Synced says that everything that exists has been posted once. Nothing is planned before: a speaker that has seen half
// of the cluster would give up addresses for want of endpoints.
func Synced() Change {
	return func(in *planning) { in.synced = true }
}
