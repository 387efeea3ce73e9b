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

// UpdateSource implements bgp.UpdateSource.
type UpdateSource struct{ log *slog.Logger }

var _ bgp.UpdateSource = (*UpdateSource)(nil)

// New returns an UpdateSource. It logs routes that do not fit into a message.
func New(log *slog.Logger) *UpdateSource { return &UpdateSource{log} }

// OpenConnection starts a routeSender and returns the near end of its connection.
func (l *UpdateSource) OpenConnection(a bgp.Negotiated, asn uint32, t *bgp.Table) net.Conn {
	near, far := net.Pipe()
	o := &routeSender{
		conn: far, negotiated: a, encoder: newEncoder(a, asn), changes: t.Subscribe(), log: l.log,
		confirmed: make(chan struct{}), ended: make(chan struct{}),
	}
	go o.readMessages()
	go o.run()
	return near
}

// routeSender sends routes on one session. The goroutine of run writes, that of readMessages reads.
type routeSender struct {
	conn       net.Conn
	negotiated bgp.Negotiated
	encoder    *encoder
	changes    *bgp.Changes
	log        *slog.Logger
	// confirmed is closed when the router has confirmed the
	// session, ended when the connection is closed.
	confirmed, ended chan struct{}
}

// readMessages reads the router's messages that the relay forwards.
func (o *routeSender) readMessages() {
	defer close(o.ended)
	r, buf, confirmed := bufio.NewReader(o.conn), make([]byte, message.MaxLength), false
	for {
		m, err := message.Read(r, buf)
		if err != nil {
			return
		}
		switch message.TypeOf(m) {
		case message.TypeKeepalive:
			if !confirmed {
				confirmed = true
				close(o.confirmed)
			}
		case message.TypeRouteRefresh: // its body is the AFI, a reserved octet and the SAFI
			o.changes.ResendFamily(message.Family(uint16(message.BodyOf(m)[0])<<8 | uint16(message.BodyOf(m)[1])))
		}
	}
}

// run sends the KEEPALIVE that answers the OPEN, then the Table's routes and their changes.
func (o *routeSender) run() {
	defer o.conn.Close()
	if _, err := o.conn.Write(message.EncodeKeepalive()); err != nil {
		return
	}
	var some <-chan struct{} // nil before the router has confirmed the session
	confirmed := o.confirmed
	for {
		var err error
		select {
		case <-o.ended:
			return
		case <-confirmed:
			confirmed, some = nil, o.changes.Ready()
			if err = o.sendChanges(); err == nil && o.negotiated.GracefulRestart {
				err = o.sendEndOfRIB()
			}
		case <-some:
			err = o.sendChanges()
		}
		if err != nil {
			return
		}
	}
}

// sendChanges sends the pending changes.
func (o *routeSender) sendChanges() error {
	return o.encoder.encodeUpdates(o.changes.TakePending(), func(m []byte, fault error) error {
		if fault != nil {
			o.log.Error("announcing a route", "error", fault)
			return nil
		}
		_, err := o.conn.Write(m)
		return err
	})
}

// sendEndOfRIB tells the router that the first routes of
// each family are complete (RFC 4724 section 2).
func (o *routeSender) sendEndOfRIB() error {
	for _, f := range o.negotiated.Families {
		m, err := encodeEndOfRIB(f)
		if err == nil {
			_, err = o.conn.Write(m)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
