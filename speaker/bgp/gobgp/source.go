// Package gobgp encodes the UPDATEs of a session with GoBGP's packet library. No other
// package imports that library. It sends the routes of a Table and their changes in
// few messages, an End-of-RIB after the first routes (RFC 4724), and every route again
// on request (RFC 2918). It does not use GoBGP's server, which needs about 650 bytes
// for each route and peer and doubles the linked code.
package gobgp

import (
	"bufio"
	"log/slog"
	"net"

	"github.com/gantry-lb/gantry/speaker/bgp"
	"github.com/gantry-lb/gantry/speaker/bgp/message"
)

// UpdateGenerator implements bgp.UpdateGenerator.
type UpdateGenerator struct{ log *slog.Logger }

var _ bgp.UpdateGenerator = (*UpdateGenerator)(nil)

// New returns an UpdateGenerator. It logs routes that do not fit into a message.
func New(log *slog.Logger) *UpdateGenerator { return &UpdateGenerator{log} }

// OpenUpdateConnection starts a routeSender and returns the near end of its connection.
func (u *UpdateGenerator) OpenUpdateConnection(n bgp.Negotiated, asn uint32, t *bgp.Table) net.Conn {
	near, far := net.Pipe()
	s := &routeSender{
		conn: far, negotiated: n, encoder: newUpdateEncoder(n, asn), changes: t.Subscribe(), log: u.log,
		sessionConfirmed: make(chan struct{}), connectionClosed: make(chan struct{}),
	}
	go s.readRouterMessages()
	go s.sendRoutes()
	return near
}

// routeSender sends this node's routes to the router on one session. The goroutine of sendRoutes
// writes, and that of readRouterMessages reads.
type routeSender struct {
	conn             net.Conn
	negotiated       bgp.Negotiated
	encoder          *updateEncoder
	changes          *bgp.PendingChanges
	log              *slog.Logger
	sessionConfirmed chan struct{} // closed when the router has confirmed the session
	connectionClosed chan struct{} // closed when the connection is closed
}

// readRouterMessages reads the router's messages that the relay forwards.
func (s *routeSender) readRouterMessages() {
	defer close(s.connectionClosed)
	r, buf, confirmed := bufio.NewReader(s.conn), make([]byte, message.MaxMessageLength), false
	for {
		m, err := message.ReadMessage(r, buf)
		if err != nil {
			return
		}
		switch message.TypeOf(m) {
		case message.TypeKeepalive:
			if !confirmed {
				confirmed = true
				close(s.sessionConfirmed)
			}
		case message.TypeRouteRefresh: // its body is the AFI, a reserved octet and the SAFI
			s.changes.ResendFamily(message.AFI(uint16(message.BodyOf(m)[0])<<8 | uint16(message.BodyOf(m)[1])))
		}
	}
}

// sendRoutes sends the KEEPALIVE that answers the OPEN, then the Table's routes and their changes.
func (s *routeSender) sendRoutes() {
	defer s.conn.Close()
	if _, err := s.conn.Write(message.EncodeKeepalive()); err != nil {
		return
	}
	var ready <-chan struct{} // nil before the router has confirmed the session
	confirmed := s.sessionConfirmed
	for {
		var err error
		select {
		case <-s.connectionClosed:
			return
		case <-confirmed:
			confirmed, ready = nil, s.changes.Ready()
			if err = s.sendChanges(); err == nil && s.negotiated.GracefulRestart {
				err = s.sendEndOfRIB()
			}
		case <-ready:
			err = s.sendChanges()
		}
		if err != nil {
			return
		}
	}
}

// sendChanges sends the pending changes.
func (s *routeSender) sendChanges() error {
	return s.encoder.encodeUpdates(s.changes.TakePending(), func(m []byte, fault error) error {
		if fault != nil {
			s.log.Error("announcing a route", "error", fault)
			return nil
		}
		_, err := s.conn.Write(m)
		return err
	})
}

// sendEndOfRIB tells the router that the first routes of
// each family are complete (RFC 4724 section 2).
func (s *routeSender) sendEndOfRIB() error {
	for _, f := range s.negotiated.Families {
		m, err := encodeEndOfRIB(f)
		if err == nil {
			_, err = s.conn.Write(m)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
