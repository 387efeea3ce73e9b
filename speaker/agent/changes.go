package agent

import (
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/plan"
)

// Change is a change of the planner's inputs.
type Change func(*plannerEditor)

// ApplyChanges applies changes to a Planner as an Agent does. It reports whether MarkClusterSynced
// was among them.
func ApplyChanges(p *plan.Planner, changes ...Change) (synced bool) {
	in := plannerEditor{Planner: p}
	in.applyChanges(changes)
	return in.clusterSynced
}

// SetService adds or replaces a Service.
func SetService(s view.Service) Change {
	return func(in *plannerEditor) { in.SetService(s) }
}

// RemoveService removes a Service.
func RemoveService(k view.ObjectKey) Change {
	return func(in *plannerEditor) { in.RemoveService(k) }
}

// SetEndpoints replaces the endpoints of a Service. Without any endpoints it removes the entry.
func SetEndpoints(e view.Endpoints) Change {
	return func(in *plannerEditor) { in.SetEndpoints(e) }
}

// SetNode adds or replaces a node.
func SetNode(n view.Node) Change {
	return func(in *plannerEditor) { in.SetNode(n) }
}

// RemoveNode removes a node.
func RemoveNode(name string) Change {
	return func(in *plannerEditor) { in.RemoveNode(name) }
}

// SetSnapshot replaces the configuration.
func SetSnapshot(s *snapshot.Snapshot) Change {
	return func(in *plannerEditor) { in.SetSnapshot(s) }
}

// MarkClusterSynced says that the whole cluster state has been posted once. Planning starts then:
// with half of the cluster state a speaker would give up addresses for lack of endpoints.
func MarkClusterSynced() Change {
	return func(in *plannerEditor) { in.clusterSynced = true }
}
