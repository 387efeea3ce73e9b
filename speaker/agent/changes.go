package agent

import (
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/plan"
)

// Change is an edit of what the plan rests on; see the functions that make one.
type Change func(*planEditor)

// ApplyChanges makes changes to a Planner, as an Agent does to its own, and says whether one of them was Synced.
func ApplyChanges(p *plan.Planner, changes ...Change) (synced bool) {
	in := planEditor{Planner: p}
	in.applyChanges(changes)
	return in.synced
}

// SetService puts a Service in the place of its former View.
func SetService(s view.Service) Change {
	return func(in *planEditor) { in.SetService(s) }
}

// RemoveService forgets a Service.
func RemoveService(k view.ObjectKey) Change {
	return func(in *planEditor) { in.RemoveService(k) }
}

// SetEndpoints puts the endpoints of a Service in the place of its former ones; none at all are forgotten.
func SetEndpoints(e view.Endpoints) Change {
	return func(in *planEditor) { in.SetEndpoints(e) }
}

// SetNode puts a node in the place of its former View.
func SetNode(n view.Node) Change {
	return func(in *planEditor) { in.SetNode(n) }
}

// RemoveNode forgets a node.
func RemoveNode(name string) Change {
	return func(in *planEditor) { in.RemoveNode(name) }
}

// SetSnapshot puts a new configuration in the place of the former.
func SetSnapshot(s *snapshot.Snapshot) Change {
	return func(in *planEditor) { in.SetSnapshot(s) }
}

// MarkSynced says that everything that exists has been posted once. Nothing is planned before: a speaker that has seen half
// of the cluster would give up addresses for want of endpoints.
func MarkSynced() Change {
	return func(in *planEditor) { in.synced = true }
}
