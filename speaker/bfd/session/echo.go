package session

import "time"

// echoFunction is the Echo function (RFC 5880 section 6.8.9): packets to ourselves that the neighbour's forwarding plane returns. Its
// zero value does nothing.
type echoFunction struct {
	nextAt   time.Time // the next packet
	interval time.Duration
	// lastReturn is when the last one returned. Before the first has, silence means that the neighbour does not return
	// them, and the control packets alone decide.
	lastReturn time.Time
	sentCount  int
}

// sendDueEcho sends an echo packet when one is due.
func (m *Machine) sendDueEcho() {
	if m.config.EchoInterval <= 0 || m.state != Up || m.remote.requiredMinEchoRxInterval == 0 {
		m.echo = echoFunction{}
		return
	}
	e := &m.echo
	e.interval = max(m.config.EchoInterval, m.remote.requiredMinEchoRxInterval)
	if e.nextAt.IsZero() {
		e.nextAt = m.now
	}
	if m.now.Before(e.nextAt) {
		return
	}
	m.output.SendEcho = true
	e.sentCount++
	e.nextAt = m.now.Add(m.withJitter(e.interval))
}

// recordReturn notes that an echo packet came back.
func (e *echoFunction) recordReturn(now time.Time) {
	if e.interval > 0 {
		e.lastReturn = now
	}
}

// detectionDeadline returns when silence means that the path has failed; zero is never.
func (e *echoFunction) detectionDeadline(multiplier uint8) time.Time {
	if e.lastReturn.IsZero() {
		return time.Time{}
	}
	return e.lastReturn.Add(time.Duration(multiplier) * e.interval)
}

// maxUnreturnedEchoes is how many echo packets may be sent in vain before that is worth telling.
const maxUnreturnedEchoes = 10

// isLost says that echo packets are sent and none ever returned.
func (e *echoFunction) isLost() bool {
	return e.lastReturn.IsZero() && e.sentCount >= maxUnreturnedEchoes
}
