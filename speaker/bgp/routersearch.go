package bgp

import (
	"context"
	"net/netip"
	"slices"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/speaker/intent"
)

// routerSearch looks for the router of unnumbered peers on one link.
type routerSearch struct {
	cancel             context.CancelFunc
	foundRouterAddress netip.Addr // invalid until a router was found
	lastError          error
}

// routerSearchResult is a result of a routerSearch.
type routerSearchResult struct {
	search        *routerSearch
	routerAddress netip.Addr
	err           error
}

// resolveUnnumberedPeers fills in the addresses of unnumbered peers.
// It runs one routerSearch on each of their links.
func (e *Engine) resolveUnnumberedPeers(ctx context.Context, peers []intent.Peer) []intent.Peer {
	wanted := map[string]bool{}
	for i := range peers {
		if peers[i].Unnumbered {
			wanted[peers[i].Device] = true
		}
	}
	for device, r := range e.routerSearchByDevice {
		if !wanted[device] {
			r.cancel()
			delete(e.routerSearchByDevice, device)
		}
	}
	if len(wanted) == 0 {
		return peers
	}
	peers = slices.Clone(peers)
	for i := range peers {
		p := &peers[i]
		if !p.Unnumbered {
			continue
		}
		r := e.routerSearchByDevice[p.Device]
		if r == nil {
			r = e.startRouterSearch(ctx, p.Device)
		}
		switch p.Address = r.foundRouterAddress; {
		case r.foundRouterAddress.IsValid() || p.BlockedExplanation.IsSet():
		case r.lastError != nil:
			p.BlockedExplanation = names.Explanation{Reason: names.ReasonNoRouter, Text: r.lastError.Error()}
		default:
			p.BlockedExplanation = names.NewExplanation(names.ReasonNoRouter, "no router has advertised itself on %s yet: configure this node as an unnumbered neighbour there, or enable router advertisements on the router", p.Device)
		}
	}
	return peers
}

// startRouterSearch looks for a router on a link until ctx ends or the link is not wanted any more.
func (e *Engine) startRouterSearch(ctx context.Context, device string) *routerSearch {
	ctx, cancel := context.WithCancel(ctx)
	r := &routerSearch{cancel: cancel}
	e.routerSearchByDevice[device] = r
	e.goroutines.Go(func() {
		e.options.Transport.WatchRouterAndAdvertiseNode(ctx, device, func(a netip.Addr, err error) {
			select {
			case e.routerSearchResults <- routerSearchResult{r, a, err}:
			case <-ctx.Done():
			}
		})
	})
	return r
}

// recordRouterSearchResult stores the result of a search. A known router stays
// when its link fails: the session then ends by itself.
func (e *Engine) recordRouterSearchResult(s routerSearchResult) {
	s.search.lastError = s.err
	if s.err != nil {
		e.options.Log.Warn("looking for an unnumbered router", "error", s.err)
		return
	}
	e.options.Log.Info("a router advertises itself", "router", s.routerAddress, "formerRouter", s.search.foundRouterAddress)
	s.search.foundRouterAddress = s.routerAddress
}
