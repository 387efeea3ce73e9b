package bgp

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/rib"
)

// RIBs returns what each peer gets, sorted by peer.
func (e *Engine) RIBs(ctx context.Context) []rib.PeerRIB {
	reply := make(chan []*peerWorker, 1)
	select {
	case e.workerListRequests <- reply:
	case <-ctx.Done():
		return nil
	}
	out := []rib.PeerRIB{}
	for _, w := range <-reply {
		described := make(chan rib.PeerRIB, 1)
		select {
		case w.ribRequests <- described:
			out = append(out, <-described)
		case <-w.done:
		case <-ctx.Done():
			return out
		}
	}
	slices.SortFunc(out, func(x, y rib.PeerRIB) int { return cmp.Compare(x.PeerName, y.PeerName) })
	return out
}

// describeRIB returns the routes of the peer, sorted by prefix.
func (w *peerWorker) describeRIB() rib.PeerRIB {
	out := rib.PeerRIB{PeerName: w.peerName, RouterAddress: w.status.RouterAddress.String(), SessionState: string(w.status.State), Routes: []rib.Route{}}
	external := w.currentDesiredState.peer.IsExternal()
	for _, r := range w.routeInbox.routesOfPeer(w.peerName) {
		one := rib.Route{Prefix: r.Prefix, AdvertisementNames: r.AdvertisementNames}
		if attributes := w.routes.adjRIBOut.attributesOf(r.Prefix); attributes != nil {
			one.Attributes = describeAttributes(attributes, external)
			one.Announced = w.status.State == Established
		}
		if held, ok := w.routes.withheldByPrefix[r.Prefix]; ok {
			why := explainWithheldRoute(held)
			one.WithheldReason, one.WithheldText = why.Reason, why.Text
		} else if !one.Announced {
			one.Attributes, one.WithheldReason, one.WithheldText = nil, names.ReasonNoSession, "no session with the router is established"
		}
		out.Routes = append(out.Routes, one)
	}
	slices.SortFunc(out.Routes, func(x, y rib.Route) int { return x.Prefix.Compare(y.Prefix) })
	return out
}

// describeAttributes returns the attributes as a router of this or another AS gets them.
func describeAttributes(a *PathAttributes, external bool) *rib.Attributes {
	out := &rib.Attributes{NextHop: a.NextHop.String()}
	if a.LinkLocalNextHop.IsValid() {
		out.LinkLocalNextHop = a.LinkLocalNextHop.String()
	}
	if a.HasMED {
		out.MED = &a.MED
	}
	if external {
		out.ASPathPrependCount = a.PrependCount
	} else {
		out.LocalPref = cmp.Or(a.LocalPref, DefaultLocalPref)
	}
	for _, c := range a.Communities {
		out.Communities = append(out.Communities, fmt.Sprintf("%d:%d", c>>16, c&0xffff))
	}
	for _, c := range a.LargeCommunities {
		out.LargeCommunities = append(out.LargeCommunities, fmt.Sprintf("%d:%d:%d", c[0], c[1], c[2]))
	}
	for _, c := range a.ExtendedCommunities {
		out.ExtendedCommunities = append(out.ExtendedCommunities, fmt.Sprintf("0x%x", c[:]))
	}
	return out
}
