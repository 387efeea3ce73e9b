package session

import "time"

// buildCurrentPacket returns the packet that describes the session now.
func (m *Machine) buildCurrentPacket() Packet {
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

// mayTransmitOnceAndPeriodically reports whether a single packet may be sent and whether
// periodic packets may be sent (RFC 5880 section 6.8.7).
func (m *Machine) mayTransmitOnceAndPeriodically() (once, periodic bool) {
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
		return adminDownPacketInterval
	}
	return max(m.appliedMinTxInterval, m.remote.requiredMinRxInterval)
}

// sendPacketIfDueOrChanged sends the periodic packet when it is due, or an early one when its
// content changed.
func (m *Machine) sendPacketIfDueOrChanged() {
	once, periodic := m.mayTransmitOnceAndPeriodically()
	interval := m.transmitInterval()
	switch {
	case !periodic:
		m.nextPeriodicPacketAt = time.Time{}
	case m.nextPeriodicPacketAt.IsZero():
		m.nextPeriodicPacketAt = m.stepTime
	case interval != m.scheduledPacketTxInterval && !m.lastNonFinalPacketSentAt.IsZero():
		// The new interval counts from the last packet.
		m.nextPeriodicPacketAt = m.transmitScheduler.nextTransmitTime(m.lastNonFinalPacketSentAt, interval)
	}
	m.scheduledPacketTxInterval = interval
	p := m.buildCurrentPacket()
	due := periodic && !m.stepTime.Before(m.nextPeriodicPacketAt)
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
	m.output.PacketsToSend = append(m.output.PacketsToSend, p)
	m.lastNonFinalPacketSentAt = m.stepTime
	if m.nextPeriodicPacketAt = m.transmitScheduler.nextTransmitTime(m.stepTime, interval); !periodic || m.state == AdminDown && m.adminDownPacketsLeft == 0 {
		m.nextPeriodicPacketAt = time.Time{}
	}
}
