package bgp

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"

	"github.com/gantry-lb/gantry/api/names"
)

// RIB is what one peer gets: the routes of its Adj-RIB-Out and those that are withheld from it.
type RIB struct {
	Peer          string     `json:"peer"`
	RouterAddress string     `json:"router"`
	State         State      `json:"state"`
	Routes        []RIBRoute `json:"routes"`
}

// RIBRoute is one route of a RIB.
type RIBRoute struct {
	Prefix netip.Prefix `json:"prefix"`
	// Advertisements are the names of the BGPAdvertisements that announce the route.
	Advertisements []string `json:"advertisements"`
	Announced      bool     `json:"announced"`
	// WithheldReason and WithheldText say why a route is not announced.
	WithheldReason names.Reason `json:"withheldReason,omitempty"`
	WithheldText   string       `json:"withheldText,omitempty"`
	// The attributes are those that the router gets.
	Attributes *RIBAttributes `json:"attributes,omitempty"`
}

// RIBAttributes are the attributes of an announced route.
type RIBAttributes struct {
	NextHop             string   `json:"nextHop"`
	LinkLocalNextHop    string   `json:"linkLocalNextHop,omitempty"`
	LocalPref           uint32   `json:"localPref,omitempty"`
	MED                 *uint32  `json:"med,omitempty"`
	ASPathPrepend       uint8    `json:"asPathPrepend,omitempty"`
	Communities         []string `json:"communities,omitempty"`
	LargeCommunities    []string `json:"largeCommunities,omitempty"`
	ExtendedCommunities []string `json:"extendedCommunities,omitempty"`
}

// RIBs returns what each peer gets, sorted by peer.
func (e *Engine) RIBs(ctx context.Context) []RIB {
	reply := make(chan []*worker, 1)
	select {
	case e.workerListRequests <- reply:
	case <-ctx.Done():
		return nil
	}
	out := []RIB{}
	for _, w := range <-reply {
		rib := make(chan RIB, 1)
		select {
		case w.ribRequests <- rib:
			out = append(out, <-rib)
		case <-w.done:
		case <-ctx.Done():
			return out
		}
	}
	slices.SortFunc(out, func(x, y RIB) int { return cmp.Compare(x.Peer, y.Peer) })
	return out
}

// describeRIB returns the routes of the peer, sorted by prefix.
func (w *worker) describeRIB() RIB {
	out := RIB{Peer: w.peerName, RouterAddress: w.status.RouterAddress.String(), State: w.status.State, Routes: []RIBRoute{}}
	external := w.currentDesiredState.peer.IsExternal()
	for _, r := range w.routeInbox.routesOfPeer(w.peerName) {
		one := RIBRoute{Prefix: r.Prefix, Advertisements: r.AdvertisementNames}
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
	slices.SortFunc(out.Routes, func(x, y RIBRoute) int { return x.Prefix.Compare(y.Prefix) })
	return out
}

// describeAttributes returns the attributes as a router of this or another AS gets them.
func describeAttributes(a *PathAttributes, external bool) *RIBAttributes {
	out := &RIBAttributes{NextHop: a.NextHop.String()}
	if a.LinkLocalNextHop.IsValid() {
		out.LinkLocalNextHop = a.LinkLocalNextHop.String()
	}
	if a.HasMED {
		out.MED = &a.MED
	}
	if external {
		out.ASPathPrepend = a.PrependCount
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
