package agent

import (
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/plan"
)

// SetService puts a Service in the place of its former View.
func SetService(s view.Service) Change {
	return func(in *inputs) { in.plan.Services[s.Key] = s }
}

// RemoveService forgets a Service.
func RemoveService(k view.Key) Change {
	return func(in *inputs) { delete(in.plan.Services, k) }
}

// SetEndpoints puts the endpoints of a Service in the place of its former ones; none at all are forgotten.
func SetEndpoints(e view.Endpoints) Change {
	return func(in *inputs) {
		if !e.Serving {
			delete(in.plan.Endpoints, e.Service)
			return
		}
		in.plan.Endpoints[e.Service] = e
	}
}

// SetNode puts a node in the place of its former View.
func SetNode(n view.Node) Change {
	return func(in *inputs) { in.plan.Nodes[n.Name] = n }
}

// RemoveNode forgets a node.
func RemoveNode(name string) Change {
	return func(in *inputs) { delete(in.plan.Nodes, name) }
}

// SetSnapshot puts a new configuration in the place of the former.
func SetSnapshot(s *snapshot.Snapshot) Change {
	return func(in *inputs) { in.plan.Snapshot = s }
}

// Synced says that everything that exists has been posted once. Nothing is planned before: a speaker that has seen half
// of the cluster would give up addresses for want of endpoints.
func Synced() Change {
	return func(in *inputs) { in.synced = true }
}

// usable returns the inputs of the Plan, with the links on which frames can really be sent.
func (in *inputs) usable() plan.Inputs {
	out := in.plan
	out.Links = nil
	for _, l := range in.links {
		if !in.failed[l.Index] {
			out.Links = append(out.Links, l)
		}
	}
	out.Denied = len(out.Links) == 0 && len(in.denied) > 0
	return out
}
