package agent

import (
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/plan"
)

// PlannerInputChange is a change of the planner's inputs.
type PlannerInputChange func(*plannerEditor)

// ApplyChangesToPlanner applies changes to a Planner as an Agent does. It reports whether
// NewClusterSyncedChange was among them.
func ApplyChangesToPlanner(p *plan.Planner, changes ...PlannerInputChange) (synced bool) {
	in := plannerEditor{Planner: p}
	in.applyChanges(changes)
	return in.clusterSynced
}

// NewServiceUpsertedChange adds or replaces a Service.
func NewServiceUpsertedChange(s view.Service) PlannerInputChange {
	return func(in *plannerEditor) { in.SetService(s) }
}

// NewServiceRemovedChange removes a Service.
func NewServiceRemovedChange(k view.ObjectKey) PlannerInputChange {
	return func(in *plannerEditor) { in.RemoveService(k) }
}

// NewEndpointsReplacedChange replaces the endpoints of a Service. Without any endpoints it removes
// the entry.
func NewEndpointsReplacedChange(e view.Endpoints) PlannerInputChange {
	return func(in *plannerEditor) { in.SetEndpoints(e) }
}

// NewNodeUpsertedChange adds or replaces a node.
func NewNodeUpsertedChange(n view.Node) PlannerInputChange {
	return func(in *plannerEditor) { in.SetNode(n) }
}

// NewNodeRemovedChange removes a node.
func NewNodeRemovedChange(name string) PlannerInputChange {
	return func(in *plannerEditor) { in.RemoveNode(name) }
}

// NewSnapshotReplacedChange replaces the configuration.
func NewSnapshotReplacedChange(s *snapshot.Snapshot) PlannerInputChange {
	return func(in *plannerEditor) { in.SetSnapshot(s) }
}

// NewClusterSyncedChange says that the whole cluster state has been posted once. Planning starts
// then: with half of the cluster state a speaker would give up addresses for lack of endpoints.
func NewClusterSyncedChange() PlannerInputChange {
	return func(in *plannerEditor) { in.clusterSynced = true }
}
