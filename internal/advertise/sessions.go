package advertise

import (
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
)

// WantedSession is a BGP session that should carry a Service.
type WantedSession struct{ Node, Peer string }

// WantedSessions returns the sessions that should carry the Service, as far as the advertisements,
// the labels of the nodes and the endpoints say.
func WantedSessions(s *snapshot.Snapshot, svc *Service, nodes []snapshot.NodeLabels, hasEndpoints func(node string) bool) []WantedSession {
	coverage, reason := BGP(s, svc)
	if reason != "" {
		return nil
	}
	var out []WantedSession
	for i := range nodes {
		n := view.Node{Name: nodes[i].Name, Labels: nodes[i].Labels}
		if view.IsExcludedByLabels(n.Labels) || !hasEndpoints(n.Name) {
			continue
		}
		own, reason := OnNode(coverage, &n)
		if reason != "" {
			continue
		}
		for _, p := range PeerNames(own, s.Peers, &n) {
			out = append(out, WantedSession{n.Name, p})
		}
	}
	return out
}
