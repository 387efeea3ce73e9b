// Package gobgp makes the messages of a session with GoBGP's packet library, and is its only importer. It speaks the part of
// the protocol that is about routes: the UPDATEs that a Table and its changes need, packed, with an End-of-RIB after the first
// ones (RFC 4724), and every route again when the router asks for that (RFC 2918). GoBGP's server is not used: it
// keeps some 650 bytes for each route and peer, and would link twice the code.
package gobgp

import (
	"bufio"
	"log/slog"
	"net"

	"github.com/gantry-lb/gantry/speaker/bgp"
	"github.com/gantry-lb/gantry/speaker/bgp/message"
)

// UpdateSource makes sessions' messages.
type UpdateSource struct{ log *slog.Logger }

var _ bgp.UpdateSource = (*UpdateSource)(nil)

// New returns a Library that tells of routes which no message can carry.
func New(log *slog.Logger) *UpdateSource { return &UpdateSource{log} }

// OpenConnection returns a connection on which the other end is a peer of the router's, after the OPENs. It ends when it is closed.
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

// routeSender is the end of a session that sends routes. The goroutine of run writes, that of listen reads.
type routeSender struct {
	conn       net.Conn
	negotiated bgp.Negotiated
	encoder    *encoder
	changes    *bgp.Changes
	log        *slog.Logger
	// confirmed is closed when the router has confirmed the session, ended when nothing more can be read.
	confirmed, ended chan struct{}
}

// readMessages takes the router's messages that the relay passes on.
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

// run sends: the KEEPALIVE that answers the OPEN, and then what the Table has, as it changes.
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

// sendChanges sends what changed.
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

// sendEndOfRIB tells a router that restarts gracefully that the first routes of each family are sent.
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
