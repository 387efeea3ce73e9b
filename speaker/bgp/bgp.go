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
	"github.com/gantry-lb/gantry/speaker/bgp/frame"
)

// Library makes the messages about routes. Package gobgp has the real one.
type Library interface {
	// Open returns a connection on which the Library is a router's peer with the number asn, after the OPENs: what is read
	// from it are the messages after our OPEN, what is written to it the router's messages after its OPEN. It follows the
	// Table until the connection is closed.
	Open(s Agreed, asn uint32, t *Table) net.Conn
}

// Agreed is what the OPENs of both sides came to.
type Agreed struct {
	// Peer is the router's OPEN, Self ours.
	Peer, Self frame.Open
	// Families that both sides carry.
	Families []frame.Family
	// Hold is the hold time, 0 for none; Keepalive the interval between our keepalives, 0 for none.
	Hold, Keepalive time.Duration
	// ExtendedNextHop says that IPv4 routes may have IPv6 next hops.
	ExtendedNextHop bool
	// Graceful says that both sides restart gracefully; Notification, that this goes for NOTIFICATIONs too.
	Graceful, Notification bool
}

// Transport makes the connections to routers. Package wire has the real one.
type Transport interface {
	Dial(ctx context.Context, t Target) (Conn, error)
	// Listen waits for routers to connect to a TCP port.
	Listen(ctx context.Context, port uint16) (Listener, error)
	// Find tells the link-local address of the router on a link, with the link as zone, again when that changes, and why there
	// is none when the link cannot be used. It lets the router find this node in turn, and returns when ctx ends.
	Find(ctx context.Context, device string, tell func(router netip.Addr, err error))
	// OnLink says whether an address is on a link of this node, one hop away.
	OnLink(a netip.Addr) bool
}

// Listener takes connections from routers.
type Listener interface {
	// Incoming delivers the connections.
	Incoming() <-chan Conn
	// SetPassword sets what a router at an address has to sign with; an empty one lets it connect without.
	SetPassword(router netip.Addr, password string) error
	Close()
}

// Target is where and how to connect.
type Target struct {
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
	// Remote returns the router's address, Local ours.
	Remote() netip.Addr
	Local() netip.Addr
	// NextHops returns the addresses of this end for next hops, the connection's own among them; either may be invalid.
	NextHops() (v4, v6 netip.Addr)
}

// State is what is seen of a session.
type State struct {
	// Peer is the name of the BGPPeer.
	Peer string
	// Remote is the router's address and port.
	Remote netip.AddrPort
	Phase  Phase
	// Since is when the Phase began; Ups counts how often the session was established.
	Since time.Time
	Ups   int
	// Families are those of an established session.
	Families []frame.Family
	// Routes is how many routes the peer should get; Announced how many it was sent.
	Routes, Announced int
	// ASN is the router's number, once it told it.
	ASN uint32
	// Hold is the negotiated hold time.
	Hold time.Duration
	// Graceful says that the router keeps our routes over a restart.
	Graceful bool
	// BFD is the state of the BFD session: "Up", "Init", "Down", "AdminDown", or empty without one; Fault what keeps it from
	// running as asked for.
	BFD   string
	Fault bfd.Fault
	// Reason is why no session is tried; empty while one is.
	Reason names.Reason
	// Withheld is why an established session does not carry all Routes; its zero value says that it does.
	Withheld Withheld
	// LastError says in a sentence why the session ended, or could not begin, the last time; empty when it never did.
	LastError string
	Counts    Counts

	tally *tally // that Counts are read from
}

// Withheld is why a route is not announced that should be: a Reason, and a sentence that says what to do.
type Withheld struct {
	Reason names.Reason
	Text   string
}

// Phase is how far a session has come.
type Phase string

// The phases of a session, named as RFC 4271 section 8.2.2 does.
const (
	Idle        Phase = "Idle"
	Connect     Phase = "Connect"
	Active      Phase = "Active" // waiting for the router to connect
	OpenSent    Phase = "OpenSent"
	Established Phase = "Established"
)

// Counts are totals of messages since the engine has known the peer.
type Counts struct{ Sent, Received Messages }

// Messages counts messages by type.
type Messages struct{ Opens, Updates, Notifications, Keepalives, Refreshes uint64 }

func (m *Messages) count(t frame.Type) {
	switch t {
	case frame.TypeOpen:
		m.Opens++
	case frame.TypeUpdate:
		m.Updates++
	case frame.TypeNotification:
		m.Notifications++
	case frame.TypeKeepalive:
		m.Keepalives++
	case frame.TypeRefresh:
		m.Refreshes++
	}
}
