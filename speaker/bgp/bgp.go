// Package bgp keeps BGP sessions with routers and announces routes on them. Engine.Set declares the
// desired peers and routes. For each peer one goroutine connects to the router, keeps the
// AdjRIBOut, the routes that the router should have, relays messages between the router and an
// UpdateGenerator, which encodes the UPDATEs, and reports the Status of the session. Routes that a
// router sends are dropped at the relay. A misbehaving router affects only its own session.
package bgp

import (
	"context"
	"net"
	"net/netip"
	"time"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/speaker/bgp/message"
)

// DefaultLocalPref is the local preference of routes without a configured one.
const DefaultLocalPref = 100

// UpdateGenerator encodes routes as UPDATEs. Package gobgp implements it.
type UpdateGenerator interface {
	// StartUpdateStream returns a connection that takes part in the session after the
	// OPENs: reading it gives the messages to send to the router, and the router's messages are
	// written to it. asn is our AS number. The connection follows the AdjRIBOut until it is closed.
	StartUpdateStream(n NegotiatedParameters, asn uint32, t *AdjRIBOut) net.Conn
}

// NegotiatedParameters is the result of the OPENs of both sides (RFC 5492).
type NegotiatedParameters struct {
	// RemoteOpen is the router's OPEN.
	RemoteOpen message.OpenMessage
	// LocalOpen is our OPEN.
	LocalOpen message.OpenMessage
	// CommonFamilies are the address families that both sides announced.
	CommonFamilies []message.AFI
	// HoldTime is the lower hold time of both OPENs; 0 disables it (RFC 4271 section 4.2).
	HoldTime time.Duration
	// KeepaliveInterval is the interval between our keepalives; 0 without a hold time.
	KeepaliveInterval time.Duration
	// ExtendedNextHop allows IPv6 next hops for IPv4 routes (RFC 8950).
	ExtendedNextHop bool
	// FourOctetASN makes AS paths have numbers of four octets (RFC 6793 section 4.1).
	FourOctetASN bool
	// AllowsLinkLocalOnlyNextHop allows a link-local next hop in 16 octets
	// (draft-ietf-idr-linklocal-capability).
	AllowsLinkLocalOnlyNextHop bool
	// GracefulRestart is true when both sides support it (RFC 4724).
	GracefulRestart bool
	// GracefulNotification is true when routes are also kept after a NOTIFICATION (RFC 8538).
	GracefulNotification bool
}

// Transport connects to routers. Package tcp implements it.
type Transport interface {
	// Dial connects to a router.
	Dial(ctx context.Context, o DialOptions) (Conn, error)
	// Listen accepts connections of routers on a TCP port.
	Listen(ctx context.Context, o ListenOptions) (Listener, error)
	// WatchRouterAndAdvertiseNode reports the link-local address of the router on a link, with the
	// link as zone, and reports it again when it changes. It reports an error while the link cannot
	// be used. It also advertises this node to the router. It returns when ctx ends.
	WatchRouterAndAdvertiseNode(ctx context.Context, device string, report func(router netip.Addr, err error))
	// ReadNodeAddresses returns the addresses of this node's links.
	ReadNodeAddresses() ([]NodeAddress, error)
	// WatchNodeAddresses calls changed after an address comes, goes or changes, until ctx ends.
	WatchNodeAddresses(ctx context.Context, changed func())
}

// ListenOptions say where to listen.
type ListenOptions struct {
	Port uint16
	// BindDevice is the VRF device to bind to; empty binds to none.
	BindDevice string
}

// Listener accepts connections from routers.
type Listener interface {
	// AcceptedConnections delivers the accepted connections.
	AcceptedConnections() <-chan Conn
	// SetRouterPassword sets the TCP MD5 password (RFC 2385) that a
	// router must use. An empty password removes it.
	SetRouterPassword(router netip.Addr, password string) error
	Close()
}

// DialOptions say where and how to connect.
type DialOptions struct {
	// RouterAddress is the router's address and port.
	RouterAddress netip.AddrPort
	// LocalAddress is our address. It is invalid when the kernel chooses the address.
	LocalAddress netip.Addr
	// BindDevice is the link or VRF device to bind to; empty binds to none.
	BindDevice string
	// Password is that of TCP MD5 (RFC 2385); empty for none.
	Password string
	// TTL is the TTL or hop limit of our packets.
	TTL uint8
	// MinReceivedTTL is the lowest accepted TTL of the router's packets; 0 accepts any (GTSM, RFC
	// 5082).
	MinReceivedTTL uint8
}

// Conn is a connection to a router.
type Conn interface {
	net.Conn
	// SetPassword changes the TCP MD5 password of the open connection.
	SetPassword(password string) error
	// SetTTLAndMinReceivedTTL sets the TTL of our packets and the lowest accepted TTL of the
	// router's.
	SetTTLAndMinReceivedTTL(ttl, minTTL uint8) error
	// RemoteIP returns the router's address.
	RemoteIP() netip.Addr
	// LocalIP returns the address of this end.
	LocalIP() netip.Addr
}

// PeerSessionStatus describes a session.
type PeerSessionStatus struct {
	// PeerName is the name of the BGPPeer.
	PeerName string
	// RouterAddress is the router's address and port.
	RouterAddress netip.AddrPort
	// State is the state of the finite state machine.
	State State
	// StateSince is when the State began.
	StateSince time.Time
	// UpOrDownSince is when the session was established, or when it ended. Before the first session
	// it is when the speaker began to try.
	UpOrDownSince time.Time
	// EstablishedCount is how often the session was established.
	EstablishedCount int
	// NegotiatedFamilies are those of an established session.
	NegotiatedFamilies []message.AFI
	// AnnounceableFamilies are those of the NegotiatedFamilies whose routes have a next hop, so
	// that the session can carry them.
	AnnounceableFamilies []message.AFI
	// WantedRouteCount is how many routes the router should have.
	WantedRouteCount int
	// AnnouncedRouteCount is how many routes an established session announces.
	AnnouncedRouteCount int
	// RouterASN is the router's AS number, 0 before its first OPEN.
	RouterASN uint32
	// HoldTime is the negotiated hold time.
	HoldTime time.Duration
	// RouterKeepsRoutesOverRestart is true when the router keeps our routes while the speaker
	// restarts.
	RouterKeepsRoutesOverRestart bool
	// BFDState is "Up", "Init", "Down" or "AdminDown"; empty without BFD.
	BFDState string
	// BFDFault is why the BFD session does not run as configured; otherwise zero.
	BFDFault names.Explanation
	// SessionConfigChangedAt is when the configuration last asked for a session that differs from
	// the one before.
	SessionConfigChangedAt time.Time
	// DrainingPrefixes are routes of an established session whose last endpoints on this node
	// terminate. DrainedPrefixes are those that were withdrawn for this reason.
	DrainingPrefixes, DrainedPrefixes []netip.Prefix
	// NotConnectingReason is why the speaker does not try to connect, or rejects the router; empty
	// otherwise.
	NotConnectingReason names.Reason
	// WithheldRouteReason is why an established session announces fewer than WantedRouteCount;
	// otherwise zero.
	WithheldRouteReason names.Explanation
	// LastError says why the last session ended or could not be established; zero if none failed.
	LastError names.Explanation
	// LastErrorTime is when the text of LastError was first seen.
	LastErrorTime time.Time
	// MessageTotals are totals since the peer was configured.
	MessageTotals MessageCounts

	messageCounter *messageCounter // the source of MessageTotals
}

// State is the state of the session's finite state machine.
type State string

// The states (RFC 4271 section 8.2.2).
const (
	Idle    State = "Idle"
	Connect State = "Connect"
	Active  State = "Active" // waiting for the router to connect
	// OpenConfirm: both OPENs were exchanged; the KEEPALIVE of the router has not come.
	OpenConfirm State = "OpenConfirm"
	Established State = "Established"
)

// MessageCounts are totals since the peer was configured.
type MessageCounts struct{ Sent, Received MessageCountsByType }

// MessageCountsByType counts messages by type.
type MessageCountsByType struct{ Opens, Updates, Notifications, Keepalives, RouteRefreshes uint64 }

func (m *MessageCountsByType) countMessage(t message.MessageType) {
	switch t {
	case message.TypeOpen:
		m.Opens++
	case message.TypeUpdate:
		m.Updates++
	case message.TypeNotification:
		m.Notifications++
	case message.TypeKeepalive:
		m.Keepalives++
	case message.TypeRouteRefresh:
		m.RouteRefreshes++
	}
}
