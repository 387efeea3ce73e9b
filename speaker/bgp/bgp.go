// Package bgp keeps sessions with routers and announces routes on them. An Engine is told what should be true, the peers
// and the routes; one goroutine a peer makes it so: it connects to the router, keeps a Table of what it should know, relays between
// it and a Library, which makes messages of that, and tells what it sees. What the router sends is taken in no further than the
// relay: its routes are dropped there. A peer that misbehaves harms its own session alone.
package bgp

import (
	"context"
	"net"
	"net/netip"
	"time"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/speaker/bfd"
	"github.com/gantry-lb/gantry/speaker/bgp/message"
)

// UpdateSource makes the messages about routes. Package gobgp has the real one.
type UpdateSource interface {
	// OpenConnection returns a connection on which the Library is a router's peer with the number asn, after the OPENs: what is read
	// from it are the messages after our OPEN, what is written to it the router's messages after its OPEN. It follows the
	// Table until the connection is closed.
	OpenConnection(s Negotiated, asn uint32, t *Table) net.Conn
}

// Negotiated is what the OPENs of both sides came to.
type Negotiated struct {
	// RemoteOpen is the router's OPEN, Self ours.
	RemoteOpen, LocalOpen message.Open
	// Families that both sides carry.
	Families []message.Family
	// HoldTime is the hold time, 0 for none; Keepalive the interval between our keepalives, 0 for none.
	HoldTime, KeepaliveInterval time.Duration
	// ExtendedNextHop says that IPv4 routes may have IPv6 next hops.
	ExtendedNextHop bool
	// GracefulRestart says that both sides restart gracefully; Notification, that this goes for NOTIFICATIONs too.
	GracefulRestart, GracefulNotification bool
}

// Transport makes the connections to routers. Package wire has the real one.
type Transport interface {
	Dial(ctx context.Context, t DialOptions) (Conn, error)
	// Listen waits for routers to connect to a TCP port.
	Listen(ctx context.Context, port uint16) (Listener, error)
	// FindRouter tells the link-local address of the router on a link, with the link as zone, again when that changes, and why there
	// is none when the link cannot be used. It lets the router find this node in turn, and returns when ctx ends.
	FindRouter(ctx context.Context, device string, tell func(router netip.Addr, err error))
	// IsOnLink says whether an address is on a link of this node, one hop away.
	IsOnLink(a netip.Addr) bool
}

// Listener takes connections from routers.
type Listener interface {
	// Connections delivers the connections.
	Connections() <-chan Conn
	// SetPassword sets what a router at an address has to sign with; an empty one lets it connect without.
	SetPassword(router netip.Addr, password string) error
	Close()
}

// DialOptions is where and how to connect.
type DialOptions struct {
	Remote netip.AddrPort
	// Source is invalid when the kernel chooses it.
	Source   netip.Addr
	Device   string
	Password string
	// TTL of our packets; MinTTL of the router's, 0 accepts any (RFC 5082).
	TTL, MinTTL uint8
}

// Conn is a connection to a router.
type Conn interface {
	net.Conn
	// SetPassword changes the password of the connection without ending it.
	SetPassword(password string) error
	// SetTTL sets the TTL of our packets, and the least that the router's may arrive with.
	SetTTL(ttl, least uint8) error
	// RemoteIP returns the router's address, Local ours.
	RemoteIP() netip.Addr
	LocalIP() netip.Addr
	// NextHops returns the addresses of this end for next hops, the connection's own among them; either may be invalid.
	NextHops() (v4, v6 netip.Addr)
}

// Status is what is seen of a session.
type Status struct {
	// Peer is the name of the BGPPeer.
	Peer string
	// Remote is the router's address and port.
	Remote netip.AddrPort
	State  State
	// Since is when the Phase began; Ups counts how often the session was established.
	Since            time.Time
	EstablishedCount int
	// Families are those of an established session.
	Families []message.Family
	// WantedRoutes is how many routes the peer should get; Announced how many it was sent.
	WantedRoutes, AnnouncedRoutes int
	// ASN is the router's number, once it told it.
	ASN uint32
	// HoldTime is the negotiated hold time.
	HoldTime time.Duration
	// GracefulRestart says that the router keeps our routes over a restart.
	GracefulRestart bool
	// BFDState is the state of the BFD session: "Up", "Init", "Down", "AdminDown", or empty without one; Fault what keeps it from
	// running as asked for.
	BFDState string
	BFDFault bfd.Fault
	// Reason is why no session is tried; empty while one is.
	Reason names.Reason
	// Withheld is why an established session does not carry all Routes; its zero value says that it does.
	Withheld Withheld
	// LastError says in a sentence why the session ended, or could not begin, the last time; empty when it never did.
	LastError string
	Messages  MessageCounts

	counter *messageCounter // that Counts are read from
}

// Withheld is why a route is not announced that should be: a Reason, and a sentence that says what to do.
type Withheld struct {
	Reason names.Reason
	Text   string
}

// State is how far a session has come.
type State string

// The phases of a session, named as RFC 4271 section 8.2.2 does.
const (
	Idle        State = "Idle"
	Connect     State = "Connect"
	Active      State = "Active" // waiting for the router to connect
	OpenSent    State = "OpenSent"
	Established State = "Established"
)

// MessageCounts are totals of messages since the engine has known the peer.
type MessageCounts struct{ Sent, Received CountsByType }

// CountsByType counts messages by type.
type CountsByType struct{ Opens, Updates, Notifications, Keepalives, RouteRefreshes uint64 }

func (m *CountsByType) countMessage(t message.Type) {
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
