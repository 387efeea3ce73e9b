// Package gobgp encodes the UPDATEs of a session with GoBGP's packet library. No other
// package imports that library. It sends the routes of an AdjRIBOut and their changes in
// few messages, an End-of-RIB after the first routes (RFC 4724), and every route again
// on request (RFC 2918). It does not use GoBGP's server, which needs about 650 bytes
// for each route and peer and doubles the linked code.
package gobgp

import (
	"errors"
	"log/slog"
	"net"

	"github.com/gantry-lb/gantry/speaker/bgp"
	"github.com/gantry-lb/gantry/speaker/bgp/message"
)

// UpdateGenerator implements bgp.UpdateGenerator.
type UpdateGenerator struct{ log *slog.Logger }

var _ bgp.UpdateGenerator = (*UpdateGenerator)(nil)

// NewUpdateGenerator returns an UpdateGenerator. It logs routes that do not fit into a message.
func NewUpdateGenerator(log *slog.Logger) *UpdateGenerator { return &UpdateGenerator{log} }

// StartUpdateStream starts a sessionUpdateSender and returns the near end of its
// connection.
func (u *UpdateGenerator) StartUpdateStream(n bgp.NegotiatedParameters, asn uint32, t *bgp.AdjRIBOut) net.Conn {
	near, far := net.Pipe()
	s := &sessionUpdateSender{
		connToSessionRelay: far, negotiated: n, encoder: newUpdateEncoder(n, asn), changes: t.SubscribeToChanges(), log: u.log,
		sessionConfirmedSignal: make(chan struct{}), connectionClosedSignal: make(chan struct{}),
	}
	go s.readRouterMessages()
	go s.sendKeepaliveThenAllUpdates()
	return near
}

// sessionUpdateSender sends this node's routes to the router on one session. The goroutine of
// sendKeepaliveThenAllUpdates writes, and that of readRouterMessages reads.
type sessionUpdateSender struct {
	connToSessionRelay     net.Conn
	negotiated             bgp.NegotiatedParameters
	encoder                *updateEncoder
	changes                *bgp.PendingRouteChanges
	log                    *slog.Logger
	sessionConfirmedSignal chan struct{} // closed when the router has confirmed the session
	connectionClosedSignal chan struct{} // closed when the connection is closed
}

// readRouterMessages reads the router's messages that the relay forwards.
func (s *sessionUpdateSender) readRouterMessages() {
	defer close(s.connectionClosedSignal)
	r, confirmed := message.NewReader(s.connToSessionRelay), false
	for {
		m, err := r.ReadMessage()
		if err != nil {
			return
		}
		switch message.TypeOf(m) {
		case message.TypeKeepalive:
			if !confirmed {
				confirmed = true
				close(s.sessionConfirmedSignal)
			}
		case message.TypeRouteRefresh: // its body is the AFI, a reserved octet and the SAFI
			s.changes.MarkFamilyForResend(message.AFI(uint16(message.BodyOf(m)[0])<<8 | uint16(message.BodyOf(m)[1])))
		}
	}
}

// sendKeepaliveThenAllUpdates sends the KEEPALIVE that answers the OPEN, then the routes
// of the AdjRIBOut
// and their changes.
func (s *sessionUpdateSender) sendKeepaliveThenAllUpdates() {
	defer s.connToSessionRelay.Close()
	if _, err := s.connToSessionRelay.Write(message.EncodeKeepalive()); err != nil {
		return
	}
	var ready <-chan struct{} // nil before the router has confirmed the session
	confirmed := s.sessionConfirmedSignal
	for {
		var err error
		select {
		case <-s.connectionClosedSignal:
			return
		case <-confirmed:
			confirmed, ready = nil, s.changes.Ready()
			if err = s.sendPendingUpdates(); err == nil && s.negotiated.GracefulRestart {
				err = s.sendEndOfRIBOfEachFamily()
			}
		case <-ready:
			err = s.sendPendingUpdates()
		}
		if err != nil {
			return
		}
	}
}

// maxBatchBytes bounds the UPDATEs that are passed to the relay at once.
const maxBatchBytes = 4 * message.MaxMessageLength

// sendPendingUpdates sends the pending changes. It passes several UPDATEs at once, so that the
// relay sends them in few segments.
func (s *sessionUpdateSender) sendPendingUpdates() error {
	var batch []byte
	flush := func() error {
		if len(batch) == 0 {
			return nil
		}
		_, err := s.connToSessionRelay.Write(batch)
		batch = batch[:0]
		return err
	}
	err := s.encoder.encodeUpdates(s.changes.TakeChanges(), func(m []byte, fault error) error {
		if fault != nil {
			s.log.Error("announcing a route", "error", fault)
			return nil
		}
		if batch = append(batch, m...); len(batch) < maxBatchBytes {
			return nil
		}
		return flush()
	})
	return errors.Join(err, flush())
}

// sendEndOfRIBOfEachFamily tells the router that the first routes of
// each family are complete (RFC 4724 section 2).
func (s *sessionUpdateSender) sendEndOfRIBOfEachFamily() error {
	for _, f := range s.negotiated.CommonFamilies {
		m, err := encodeEndOfRIB(f)
		if err == nil {
			_, err = s.connToSessionRelay.Write(m)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
