package bfd

import "github.com/gantry-lb/gantry/speaker/bfd/session"

// matchSession finds the session that a datagram belongs to, also of some that are not taken, by the discriminator where it has one and else by where it came from
// (RFC 5880 section 6.3, RFC 5881 section 3, RFC 5883 section 4).
func (e *Engine) matchSession(d Datagram) (*runningSession, session.Packet, session.DiscardReason) {
	if !d.Multihop && d.TTL != 255 { // it crossed a router, whatever it says (RFC 5881 section 5)
		return nil, session.Packet{}, session.LowTTL
	}
	p, why := session.Parse(d.Payload)
	if why != session.Accepted {
		return nil, p, why
	}
	var found *runningSession
	if p.YourDiscriminator != 0 {
		// A packet that knows the discriminator has to come from the neighbour all the same.
		if l := e.sessionsByDiscriminator[p.YourDiscriminator]; l != nil && l.key.matchesDatagram(d) {
			found = l
		}
	} else {
		found = e.findBySource(d)
	}
	switch {
	case found == nil:
		return nil, p, session.UnknownSession
	case d.Multihop && d.TTL < found.profile.MinimumTTL:
		return found, p, session.LowTTL
	}
	return found, p, session.Accepted
}

// findBySource finds the session by addresses; of several, the one that says more about where it is.
func (e *Engine) findBySource(d Datagram) *runningSession {
	var found *runningSession
	for k, l := range e.sessionsByKey {
		if k.matchesDatagram(d) && (found == nil || k.specificity() > found.key.specificity()) {
			found = l
		}
	}
	return found
}

// matchesDatagram says whether a datagram may belong to the session.
func (k Key) matchesDatagram(d Datagram) bool {
	return k.Peer == d.From && k.Multihop == d.Multihop && k.VRF == d.VRF &&
		(k.Interface == "" || k.Interface == d.Interface) && (!k.Local.IsValid() || k.Local == d.To)
}

func (k Key) specificity() int {
	n := 0
	if k.Interface != "" {
		n++
	}
	if k.Local.IsValid() {
		n += 2
	}
	return n
}
