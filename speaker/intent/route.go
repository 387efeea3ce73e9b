package intent

import (
	"net/netip"
	"slices"
	"time"

	"github.com/gantry-lb/gantry/api/names"
)

// Peer is a router that this node has a BGP session with. All its fields are resolved for this
// node. The tags are the keys of the speaker's checkpoint file.
type Peer struct {
	// Name is the name of the BGPPeer.
	Name string
	// Address is the address of the router. A link-local one has a zone. It is invalid for an
	// unnumbered peer, which is found on Device.
	Address netip.Addr
	// Port is the TCP port of the router.
	Port uint16
	// Unnumbered finds the router by its router advertisements on Device.
	Unnumbered bool
	// Device is the link or VRF that the session is bound to; empty for none.
	Device string
	// SourceAddress is the local address of the session. If it is invalid the kernel selects one.
	SourceAddress netip.Addr `json:"Source"`
	// LocalASN is the AS number that the router sees.
	LocalASN uint32
	// PeerASN is the AS number of the router. With 0, AcceptedASNs says which numbers are accepted.
	PeerASN      uint32
	AcceptedASNs DynamicASN `json:"ASNs"`
	// RouterID is the router ID of this end, an IPv4 address. If it is invalid, it is derived from
	// the session's address or the name of the node.
	RouterID netip.Addr
	// HoldTime is the hold time offered to the router, in whole seconds: 0, or 3 s to 65535 s
	// (RFC 4271 section 4.2).
	HoldTime time.Duration `json:"Hold"`
	// KeepaliveTime is the interval between keepalives; 0 is a third of the negotiated hold time.
	KeepaliveTime time.Duration `json:"Keepalive"`
	// MaxReconnectDelay is the longest delay between two attempts to connect.
	MaxReconnectDelay time.Duration `json:"Connect"`
	// Password is the one of TCP MD5 (RFC 2385), at most 80 bytes; empty for none. It must not be
	// written anywhere.
	Password string `json:"-"`
	// BlockedExplanation is why no session is tried, such as a missing Secret. The zero value does
	// not block.
	BlockedExplanation names.Explanation `json:"Blocked"`
	// Multihop allows an external router to be several hops away.
	Multihop bool
	// MaxHops, when not 0, is the largest number of hops to the router, checked by TTL
	// (GTSM, RFC 5082).
	MaxHops uint8 `json:"Hops"`
	// CarriesIPv4Routes and CarriesIPv6Routes are set when the session carries routes of the
	// family.
	CarriesIPv4Routes bool `json:"IPv4"`
	CarriesIPv6Routes bool `json:"IPv6"`
	// NoMultiprotocol omits the multiprotocol capability (RFC 4760).
	NoMultiprotocol bool
	// GracefulRestart asks the router to keep the routes for RestartTime while the speaker restarts
	// (RFC 4724, RFC 8538).
	GracefulRestart bool
	RestartTime     time.Duration
	// Passive waits for the router to connect and never connects to it.
	Passive bool
	// NextHopIPv4 and NextHopIPv6, if valid, are the next hops of the routes: an address with its
	// full length, or a network that contains an address of this node.
	NextHopIPv4 netip.Prefix `json:",omitzero"`
	NextHopIPv6 netip.Prefix `json:",omitzero"`
	// DrainDelay is how long the routes of a drained node, or of terminating endpoints, are
	// announced with a low preference before they are withdrawn. Without HasDrainDelay the
	// defaults apply.
	DrainDelay    time.Duration `json:",omitzero"`
	HasDrainDelay bool          `json:",omitzero"`
	// BFDStrict withholds all routes while the BFD session is not Up.
	BFDStrict bool `json:",omitzero"`
	// BFD is nil if no BFD session watches the router.
	BFD *BFD
}

// IsExternal reports whether the router belongs to another autonomous system.
func (p *Peer) IsExternal() bool {
	return p.AcceptedASNs == AcceptExternalASN || (p.AcceptedASNs == AcceptOnlyPeerASN && p.PeerASN != p.LocalASN)
}

// DynamicASN says which AS numbers of a router are accepted.
type DynamicASN uint8

// The values of DynamicASN.
const (
	AcceptOnlyPeerASN DynamicASN = iota // only PeerASN
	AcceptInternalASN                   // only LocalASN
	AcceptExternalASN                   // any but LocalASN
)

// BFD holds the parameters of a BFD session (RFC 5880).
type BFD struct {
	TransmitInterval time.Duration `json:"Transmit"`
	ReceiveInterval  time.Duration `json:"Receive"`
	EchoInterval     time.Duration `json:"Echo"`

	Multiplier        uint8
	EchoMode, Passive bool
	// MinTTL is the lowest accepted TTL of packets that come over several hops.
	MinTTL uint8
}

// Route is a prefix that is announced to some peers.
type Route struct {
	Prefix netip.Prefix
	// PeerNames are the names of these peers, sorted.
	PeerNames []string
	// AdvertisementNames are the names of the BGPAdvertisements that announce it, sorted.
	AdvertisementNames []string
	// EndpointsTerminating is set if the last endpoints on this node terminate and still serve.
	EndpointsTerminating bool
	Attributes
}

// Attributes are the BGP attributes of a Route. The zero value is a route without any. The tags are
// the keys of the speaker's checkpoint file.
type Attributes struct {
	// LocalPref is for internal peers (RFC 4271 section 5.1.5). 0 leaves it at 100.
	LocalPref uint32
	// MED is the metric (RFC 4271 section 5.1.4). It is sent if HasMED is set.
	MED    uint32
	HasMED bool
	// PrependCount is how often the local AS number is added to the AS path, 0 to 16, besides the
	// one that BGP requires.
	PrependCount uint8 `json:"Prepend"`
	// Communities are standard communities (RFC 1997), LargeCommunities those of RFC 8092, and
	// ExtendedCommunities those of RFC 4360 in their wire format. All are sorted.
	Communities         []uint32
	LargeCommunities    [][3]uint32 `json:"Large"`
	ExtendedCommunities [][8]byte   `json:"Extended"`
	// LinkBandwidthBytesPerSecond is the bandwidth of the link in bytes per second. A router may
	// use it to weigh equal routes. 0 sends none.
	LinkBandwidthBytesPerSecond uint64 `json:"Bandwidth"`
}

// maxCommunityBytes is how many bytes of communities a route may have, as in package
// advertise.
const maxCommunityBytes = 3800

// HasTooManyCommunities reports whether the communities do not fit into a message.
func (a Attributes) HasTooManyCommunities() bool {
	size := 4*len(a.Communities) + 8*len(a.ExtendedCommunities) + 12*len(a.LargeCommunities)
	return size > maxCommunityBytes
}

// Equal reports whether two Attributes are the same.
func (a Attributes) Equal(b Attributes) bool {
	return a.LocalPref == b.LocalPref && a.MED == b.MED && a.HasMED == b.HasMED &&
		a.PrependCount == b.PrependCount && a.LinkBandwidthBytesPerSecond == b.LinkBandwidthBytesPerSecond &&
		slices.Equal(a.Communities, b.Communities) &&
		slices.Equal(a.LargeCommunities, b.LargeCommunities) &&
		slices.Equal(a.ExtendedCommunities, b.ExtendedCommunities)
}
