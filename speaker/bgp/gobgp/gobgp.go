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
	"github.com/gantry-lb/gantry/speaker/bgp/frame"
)

// Library makes sessions' messages.
type Library struct{ log *slog.Logger }

var _ bgp.Library = (*Library)(nil)

// New returns a Library that tells of routes which no message can carry.
func New(log *slog.Logger) *Library { return &Library{log} }

// Open returns a connection on which the other end is a peer of the router's, after the OPENs. It ends when it is closed.
func (l *Library) Open(a bgp.Agreed, asn uint32, t *bgp.Table) net.Conn {
	near, far := net.Pipe()
	o := &outlet{
		conn: far, agreed: a, encoder: newEncoder(a, asn), changes: t.Follow(), log: l.log,
		confirmed: make(chan struct{}), ended: make(chan struct{}),
	}
	go o.listen()
	go o.run()
	return near
}

// outlet is the end of a session that sends routes. The goroutine of run writes, that of listen reads.
type outlet struct {
	conn    net.Conn
	agreed  bgp.Agreed
	encoder *encoder
	changes *bgp.Changes
	log     *slog.Logger
	// confirmed is closed when the router has confirmed the session, ended when nothing more can be read.
	confirmed, ended chan struct{}
}

// listen takes the router's messages that the relay passes on.
func (o *outlet) listen() {
	defer close(o.ended)
	r, buf, confirmed := bufio.NewReader(o.conn), make([]byte, frame.MaxLen), false
	for {
		m, err := frame.Read(r, buf)
		if err != nil {
			return
		}
		switch frame.TypeOf(m) {
		case frame.TypeKeepalive:
			if !confirmed {
				confirmed = true
				close(o.confirmed)
			}
		case frame.TypeRefresh: // its body is the AFI, a reserved octet and the SAFI
			o.changes.Again(frame.Family(uint16(frame.Body(m)[0])<<8 | uint16(frame.Body(m)[1])))
		}
	}
}

// run sends: the KEEPALIVE that answers the OPEN, and then what the Table has, as it changes.
func (o *outlet) run() {
	defer o.conn.Close()
	if _, err := o.conn.Write(frame.Keepalive()); err != nil {
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
			confirmed, some = nil, o.changes.Some()
			if err = o.send(); err == nil && o.agreed.Graceful {
				err = o.end()
			}
		case <-some:
			err = o.send()
		}
		if err != nil {
			return
		}
	}
}

// send sends what changed.
func (o *outlet) send() error {
	return o.encoder.updates(o.changes.Take(), func(m []byte, fault error) error {
		if fault != nil {
			o.log.Error("announcing a route", "error", fault)
			return nil
		}
		_, err := o.conn.Write(m)
		return err
	})
}

// end tells a router that restarts gracefully that the first routes of each family are sent.
func (o *outlet) end() error {
	for _, f := range o.agreed.Families {
		m, err := endOfRIB(f)
		if err == nil {
			_, err = o.conn.Write(m)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
