package intent

import (
	"net/netip"
	"slices"
	"time"
)

// Peer is a router that this node peers with, with everything resolved for this node.
type Peer struct {
	// Name is the BGPPeer's.
	Name string
	// Address of the router, with a zone when it is link-local; invalid for an unnumbered peer, which is found on Device.
	Address netip.Addr
	// Port is the router's TCP port.
	Port uint16
	// Unnumbered finds the router by its router advertisements on Device.
	Unnumbered bool
	// Device is the link, or VRF, that the session is bound to; empty binds to none.
	Device string
	// SourceAddress is the node's address that the session starts from; invalid leaves it to the kernel.
	SourceAddress netip.Addr `json:"Source"`
	// LocalASN is the number that the router sees.
	LocalASN uint32
	// PeerASN is the router's number; 0 accepts what ASNs says.
	PeerASN    uint32
	DynamicASN DynamicASN `json:"ASNs"`
	// RouterID of this end, an IPv4 address; invalid derives it from the session's address or this node's name.
	RouterID netip.Addr
	// HoldTime is the hold time offered to the router, in whole seconds: 0, or 3 s to 65535 s
	// (RFC 4271 section 4.2).
	HoldTime time.Duration `json:"Hold"`
	// KeepaliveTime is the interval between keepalives; 0 is a third of the negotiated hold time.
	KeepaliveTime time.Duration `json:"Keepalive"`
	// ConnectTime is the longest pause between two attempts to connect.
	ConnectTime time.Duration `json:"Connect"`
	// Password of TCP MD5 (RFC 2385), at most 80 bytes; empty for none. It is never written anywhere.
	Password string `json:"-"`
	// Blocked says why no session is tried, such as a missing Secret; its zero value does not.
	Blocked BlockReason
	// Multihop lets an external router be several hops away.
	Multihop bool
	// MaxHops, when not 0, is the largest number of hops to the router, checked by TTL (GTSM, RFC 5082).
	MaxHops uint8 `json:"Hops"`
	// IPv4 and IPv6 say whose routes the session carries.
	IPv4, IPv6 bool
	// NoMultiprotocol leaves the multiprotocol capability out (RFC 4760).
	NoMultiprotocol bool
	// GracefulRestart keeps the routes at the router for RestartTime while the speaker restarts (RFC 4724, RFC 8538).
	GracefulRestart bool
	RestartTime     time.Duration
	// Passive waits for the router to connect, and never does itself.
	Passive bool
	// BFD is nil when no BFD session watches the router.
	BFD *BFD
}

// BlockReason is why no session is tried: a Reason of api/names, and a sentence that says what to do.
type BlockReason struct{ Reason, Text string }

// IsSet says whether there is something that blocks.
func (b BlockReason) IsSet() bool { return b != BlockReason{} }

// IsExternal says whether the router is of another autonomous system.
func (p *Peer) IsExternal() bool {
	return p.DynamicASN == ASNExternal || (p.DynamicASN == ASNGiven && p.PeerASN != p.LocalASN)
}

// DynamicASN says which numbers of a router are accepted when its number is not given.
type DynamicASN uint8

// The values of ASNs.
const (
	ASNGiven    DynamicASN = iota // PeerASN alone
	ASNInternal                   // the local number
	ASNExternal                   // any but the local number
)

// BFD holds the parameters of a BFD session (RFC 5880).
type BFD struct {
	TransmitInterval time.Duration `json:"Transmit"`
	ReceiveInterval  time.Duration `json:"Receive"`
	EchoInterval     time.Duration `json:"Echo"`

	Multiplier        uint8
	EchoMode, Passive bool
	// MinTTL of packets received over several hops.
	MinTTL uint8
}

// Route is a prefix to be announced to the named peers.
type Route struct {
	Prefix netip.Prefix
	// Peers are the names of the peers that get it, sorted.
	Peers []string
	Attributes
}

// Attributes are what a Route says beyond its prefix. The zero value is a plain route.
type Attributes struct {
	// LocalPref for internal peers (RFC 4271 section 5.1.5); 0 leaves it at 100.
	LocalPref uint32
	// MED is the metric (RFC 4271 section 5.1.4), sent when HasMED.
	MED    uint32
	HasMED bool
	// PrependCount is how often the own number is repeated in the AS path, 0 to 16, beyond the one time that is due.
	PrependCount uint8 `json:"Prepend"`
	// Communities, sorted: standard (RFC 1997), large (RFC 8092), extended as they stand on the wire (RFC 4360).
	Communities         []uint32
	LargeCommunities    [][3]uint32 `json:"Large"`
	ExtendedCommunities [][8]byte   `json:"Extended"`
	// Bandwidth of the link, in bytes per second, by which a router may weigh equal routes; 0 says nothing of it.
	Bandwidth uint64
}

// maxCommunityBytes is how many bytes of communities a route may have, as in package snapshot.
const maxCommunityBytes = 3800

// SafeCommunityCount are never too many, of whatever kind.
const SafeCommunityCount = maxCommunityBytes / 12

// HasTooManyCommunities says whether the route has more communities than a message can carry.
func (a Attributes) HasTooManyCommunities() bool {
	return 4*len(a.Communities)+8*len(a.ExtendedCommunities)+12*len(a.LargeCommunities) > maxCommunityBytes
}

// Equal says whether two Attributes are the same.
func (a Attributes) Equal(b Attributes) bool {
	return a.LocalPref == b.LocalPref && a.MED == b.MED && a.HasMED == b.HasMED && a.PrependCount == b.PrependCount && a.Bandwidth == b.Bandwidth &&
		slices.Equal(a.Communities, b.Communities) && slices.Equal(a.LargeCommunities, b.LargeCommunities) && slices.Equal(a.ExtendedCommunities, b.ExtendedCommunities)
}
