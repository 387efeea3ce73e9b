package session

import "time"

// packet is what there is to tell now.
func (m *Machine) packet() Packet {
	p := Packet{
		Diagnostic: m.diagnostic, State: m.state, Multiplier: m.config.Multiplier,
		Mine: m.local, Yours: m.remote.discriminator, DesiredTx: m.tx, RequiredRx: m.rx,
	}
	if m.config.Echo > 0 {
		p.RequiredEchoRx = m.config.Echo
	}
	return p
}

// may says whether anything may be sent, and whether again and again (RFC 5880 section 6.8.7).
func (m *Machine) may() (once, periodic bool) {
	r := m.remote
	switch {
	case m.state == AdminDown:
		return m.left > 0, m.left > 0
	case m.config.Passive && r.discriminator == 0:
		return false, false
	case r.requiredRx == 0:
		return true, false
	case r.demand && m.state == Up && r.state == Up && !m.poll.active:
		return true, false
	}
	return true, true
}

// pace returns the interval of periodic packets before jitter (RFC 5880 section 6.8.2).
func (m *Machine) pace() time.Duration {
	if m.state == AdminDown {
		return farewellSpacing
	}
	return max(m.usedTx, m.remote.requiredRx)
}

// jitter shortens an interval by up to a quarter, so that sessions do not fall into step (RFC 5880 section 6.8.7). The
// multiplier is never 1 here, for which the section asks more.
func (m *Machine) jitter(d time.Duration) time.Duration {
	return d - time.Duration(m.random.Int64N(int64(d)/4+1))
}

// transmit sends what is due: the periodic packet, or one before its time because it has something new to tell.
func (m *Machine) transmit() {
	once, periodic := m.may()
	pace := m.pace()
	switch {
	case !periodic:
		m.nextSend = time.Time{}
	case m.nextSend.IsZero():
		m.nextSend = m.now
	case pace != m.paced && !m.sentAt.IsZero(): // the new interval counts from the last packet
		m.nextSend = m.sentAt.Add(m.jitter(pace))
	}
	m.paced = pace
	p := m.packet()
	due := periodic && !m.now.Before(m.nextSend)
	if !due && (!once || p == m.sent) {
		return
	}
	m.sent = p
	if m.state == AdminDown {
		m.left--
	}
	if m.poll.active {
		p.Poll, m.poll.asked = true, true
	}
	m.out.Send = append(m.out.Send, p)
	m.sentAt = m.now
	if m.nextSend = m.now.Add(m.jitter(pace)); !periodic || m.state == AdminDown && m.left == 0 {
		m.nextSend = time.Time{}
	}
}
