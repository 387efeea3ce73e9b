package bgp

import (
	"net/netip"
	"slices"
	"sync"

	"github.com/gantry-lb/gantry/internal/latest"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// routeInbox passes the routes of all peers, and the changes of one peer's routes, from the Engine
// to a worker. So a change costs only the peers that it concerns, however many routes there are.
type routeInbox struct {
	ready *latest.Wake

	mu               sync.Mutex // guards the fields below
	routesOfAllPeers []*intent.Route
	// changedByPrefix has the latest route of each changed prefix, nil if it is gone.
	changedByPrefix map[netip.Prefix]*intent.Route
}

func newRouteInbox() *routeInbox {
	return &routeInbox{ready: latest.NewWake(), changedByPrefix: map[netip.Prefix]*intent.Route{}}
}

// replaceRoutesAndAddChanges replaces the routes of all peers and adds the changes of the worker's
// peer.
func (b *routeInbox) replaceRoutesAndAddChanges(all []*intent.Route, changes []peerRouteChange) {
	b.mu.Lock()
	b.routesOfAllPeers = all
	for _, c := range changes {
		b.changedByPrefix[c.prefix] = c.route
	}
	b.mu.Unlock()
	if len(changes) > 0 {
		b.ready.Signal()
	}
}

// routesOfPeerClearingChanges returns the routes of the peer. They contain all changes.
func (b *routeInbox) routesOfPeerClearingChanges(peer string) []*intent.Route {
	b.takeChanges()
	return b.routesOfPeer(peer)
}

// routesOfPeer returns the routes of the peer.
func (b *routeInbox) routesOfPeer(peer string) []*intent.Route {
	b.mu.Lock()
	all := b.routesOfAllPeers
	b.mu.Unlock()
	out := make([]*intent.Route, 0, len(all))
	for _, r := range all {
		if _, ok := slices.BinarySearch(r.PeerNames, peer); ok {
			out = append(out, r)
		}
	}
	return out
}

// takeChanges returns the changes since the last call of either method.
func (b *routeInbox) takeChanges() map[netip.Prefix]*intent.Route {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := b.changedByPrefix
	if len(out) > 0 {
		b.changedByPrefix = map[netip.Prefix]*intent.Route{}
	}
	return out
}

// peerRouteChange is the new route of a prefix for one peer, nil if it is gone.
type peerRouteChange struct {
	prefix netip.Prefix
	route  *intent.Route
}

// diffRoutesByPeer returns what changes for each peer between two lists of routes. Unchanged routes
// are the same values in both, so that the cost is that of the changes, besides one comparison for
// each route.
func diffRoutesByPeer(before, after []*intent.Route) map[string][]peerRouteChange {
	for len(before) > 0 && len(after) > 0 && before[0] == after[0] {
		before, after = before[1:], after[1:]
	}
	for len(before) > 0 && len(after) > 0 && before[len(before)-1] == after[len(after)-1] {
		before, after = before[:len(before)-1], after[:len(after)-1]
	}
	if len(before)+len(after) == 0 {
		return nil
	}
	same := map[*intent.Route]struct{}{}
	beforeByPrefix := map[netip.Prefix][]*intent.Route{}
	for _, r := range before {
		beforeByPrefix[r.Prefix] = append(beforeByPrefix[r.Prefix], r)
	}
	for _, r := range after {
		if slices.Contains(beforeByPrefix[r.Prefix], r) {
			same[r] = struct{}{}
		}
	}
	changes := map[string][]peerRouteChange{}
	add := func(r *intent.Route, now *intent.Route) {
		if _, ok := same[r]; ok {
			return
		}
		for _, name := range r.PeerNames {
			changes[name] = append(changes[name], peerRouteChange{r.Prefix, now})
		}
	}
	for _, r := range before { // a later change of the same prefix counts
		add(r, nil)
	}
	for _, r := range after {
		add(r, r)
	}
	return changes
}
