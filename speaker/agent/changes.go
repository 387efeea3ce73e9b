package agent

import (
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/layer2"
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

// portID names a link and a family.
type portID struct {
	link   int
	family layer2.Family
}

// usable returns the inputs of the Plan, with the links on which frames can really be sent.
func (in *inputs) usable() plan.Inputs {
	out := in.plan
	out.Links = nil
	for _, l := range in.links {
		l.Without4, l.Without6 = in.failed[portID{l.Index, layer2.IPv4}], in.failed[portID{l.Index, layer2.IPv6}]
		if !l.Without4 || !l.Without6 {
			out.Links = append(out.Links, l)
		}
	}
	_, denied := in.refused()
	out.Denied = denied
	return out
}

// refused says whether raw sockets are refused for a whole family on every link, and why.
func (in *inputs) refused() (why string, all bool) {
	for _, f := range []layer2.Family{layer2.IPv4, layer2.IPv6} {
		n := 0
		for _, l := range in.links {
			if text, ok := in.denied[portID{l.Index, f}]; ok {
				n++
				if why == "" || text < why {
					why = text
				}
			}
		}
		all = all || (n > 0 && n == len(in.links))
	}
	return why, all
}
