package session

import "time"

// currentPacket returns the packet that describes the session now.
func (m *Machine) currentPacket() Packet {
	p := Packet{
		Diagnostic: m.diagnostic, State: m.state, DetectMultiplier: m.config.DetectMultiplier,
		MyDiscriminator: m.discriminator, YourDiscriminator: m.remote.discriminator,
		DesiredMinTxInterval: m.desiredMinTxInterval, RequiredMinRxInterval: m.requiredMinRxInterval,
	}
	if m.config.EchoInterval > 0 {
		p.RequiredMinEchoRxInterval = m.config.EchoInterval
	}
	return p
}

// canSend reports whether a single packet may be sent and whether
// periodic packets may be sent (RFC 5880 section 6.8.7).
func (m *Machine) canSend() (once, periodic bool) {
	r := m.remote
	switch {
	case m.state == AdminDown:
		return m.adminDownPacketsLeft > 0, m.adminDownPacketsLeft > 0
	case m.config.Passive && r.discriminator == 0:
		return false, false
	case r.requiredMinRxInterval == 0:
		return true, false
	case r.demand && m.state == Up && r.state == Up && !m.poll.isActive:
		return true, false
	}
	return true, true
}

// transmitInterval returns the interval of periodic packets before jitter (RFC 5880 section 6.8.2).
func (m *Machine) transmitInterval() time.Duration {
	if m.state == AdminDown {
		return adminDownInterval
	}
	return max(m.usedTxInterval, m.remote.requiredMinRxInterval)
}

// withJitter shortens an interval by up to a quarter, so that sessions do not synchronise (RFC 5880
// section 6.8.7). A multiplier of 1 would need more jitter, but is not allowed here.
func (m *Machine) withJitter(d time.Duration) time.Duration {
	return d - time.Duration(m.random.Int64N(int64(d)/4+1))
}

// sendDuePacket sends the periodic packet when it is due, or an early one when its content changed.
func (m *Machine) sendDuePacket() {
	once, periodic := m.canSend()
	interval := m.transmitInterval()
	switch {
	case !periodic:
		m.nextSendAt = time.Time{}
	case m.nextSendAt.IsZero():
		m.nextSendAt = m.now
	case interval != m.scheduledTxInterval && !m.lastTransmitAt.IsZero():
		// The new interval counts from the last packet.
		m.nextSendAt = m.lastTransmitAt.Add(m.withJitter(interval))
	}
	m.scheduledTxInterval = interval
	p := m.currentPacket()
	due := periodic && !m.now.Before(m.nextSendAt)
	if !due && (!once || p == m.lastSentPacket) {
		return
	}
	m.lastSentPacket = p
	if m.state == AdminDown {
		m.adminDownPacketsLeft--
	}
	if m.poll.isActive {
		p.Poll, m.poll.pollSent = true, true
	}
	m.output.Packets = append(m.output.Packets, p)
	m.lastTransmitAt = m.now
	if m.nextSendAt = m.now.Add(m.withJitter(interval)); !periodic || m.state == AdminDown && m.adminDownPacketsLeft == 0 {
		m.nextSendAt = time.Time{}
	}
}
