// Package rib has the values of the page on which a speaker says what each router gets from its
// node. The speaker encodes them as JSON, and kubectl gantry reads them.
package rib

import (
	"net/netip"

	"github.com/gantry-lb/gantry/api/names"
)

// RoutesPagePath is the path of the page.
const RoutesPagePath = "/bgp/routes"

// PeerRIB is what one peer gets: the routes of its Adj-RIB-Out, and those that are withheld from
// it.
type PeerRIB struct {
	PeerName      string  `json:"peer"`
	RouterAddress string  `json:"router"`
	SessionState  string  `json:"state"`
	Routes        []Route `json:"routes"`
}

// Route is one route of a peer.
type Route struct {
	Prefix netip.Prefix `json:"prefix"`
	// AdvertisementNames are the names of the BGPAdvertisements that announce the route.
	AdvertisementNames []string `json:"advertisements"`
	Announced          bool     `json:"announced"`
	// WithheldReason and WithheldText say why a route is not announced.
	WithheldReason names.Reason `json:"withheldReason,omitempty"`
	WithheldText   string       `json:"withheldText,omitempty"`
	// The attributes are those that the router gets.
	Attributes *Attributes `json:"attributes,omitempty"`
}

// Attributes are the attributes of an announced route.
type Attributes struct {
	NextHop             string   `json:"nextHop"`
	LinkLocalNextHop    string   `json:"linkLocalNextHop,omitempty"`
	LocalPref           uint32   `json:"localPref,omitempty"`
	MED                 *uint32  `json:"med,omitempty"`
	ASPathPrependCount  uint8    `json:"asPathPrepend,omitempty"`
	Communities         []string `json:"communities,omitempty"`
	LargeCommunities    []string `json:"largeCommunities,omitempty"`
	ExtendedCommunities []string `json:"extendedCommunities,omitempty"`
}
