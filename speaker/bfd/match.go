package bfd

import "github.com/gantry-lb/gantry/speaker/bfd/session"

// findSessionOfDatagram finds the session of a datagram by its discriminator, or else by its
// addresses (RFC 5880 section 6.3, RFC 5881 section 3, RFC 5883 section 4). It also returns the
// session of a datagram whose TTL is too low, so that the session can report the fault.
func (e *Engine) findSessionOfDatagram(d ReceivedDatagram) (*runningSession, session.Packet, session.DiscardReason) {
	if !d.ArrivedOnMultihopPort && d.TTL != 255 { // it crossed a router (RFC 5881 section 5)
		return nil, session.Packet{}, session.DiscardLowTTL
	}
	p, discarded := session.ParsePacket(d.Payload)
	if discarded != session.NotDiscarded {
		return nil, p, discarded
	}
	var found *runningSession
	if p.YourDiscriminator != 0 {
		// A packet with our discriminator must also come from the neighbour.
		if s := e.sessionsByDiscriminator[p.YourDiscriminator]; s != nil && s.key.matchesDatagram(d) {
			found = s
		}
	} else {
		found = e.findSessionByAddresses(d)
	}
	switch {
	case found == nil:
		return nil, p, session.DiscardUnknownSession
	case d.ArrivedOnMultihopPort && d.TTL < found.profile.MinimumTTL:
		return found, p, session.DiscardLowTTL
	}
	return found, p, session.NotDiscarded
}

// findSessionByAddresses finds the session by addresses: of several, the one with the most specific
// key.
func (e *Engine) findSessionByAddresses(d ReceivedDatagram) *runningSession {
	var found *runningSession
	for key, s := range e.sessionsByKey {
		if key.matchesDatagram(d) && (found == nil || key.matchSpecificity() > found.key.matchSpecificity()) {
			found = s
		}
	}
	return found
}

// matchesDatagram reports whether a datagram may belong to the session.
func (k SessionKey) matchesDatagram(d ReceivedDatagram) bool {
	return k.PeerAddress == d.SourceAddress && k.Multihop == d.ArrivedOnMultihopPort && k.VRF == d.VRF &&
		(k.Interface == "" || k.Interface == d.ArrivalInterface) && (!k.LocalAddress.IsValid() || k.LocalAddress == d.DestinationAddress)
}

func (k SessionKey) matchSpecificity() int {
	n := 0
	if k.Interface != "" {
		n++
	}
	if k.LocalAddress.IsValid() {
		n += 2
	}
	return n
}
