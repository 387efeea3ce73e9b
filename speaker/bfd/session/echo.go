package session

import "time"

// echoState is the Echo function (RFC 5880 section 6.8.9): packets addressed to ourselves
// that the neighbour's forwarding plane returns. Its zero value does nothing.
type echoState struct {
	nextEchoAt time.Time // when the next packet is due
	interval   time.Duration
	// lastReturnAt is when the last packet returned. Before the first return, silence means that
	// the neighbour does not return them, and only control packets watch the path.
	lastReturnAt  time.Time
	sentEchoCount int
}

// sendDueEcho requests an echo packet when one is due.
func (m *Machine) sendDueEcho() {
	if m.config.EchoInterval <= 0 || m.state != Up || m.remote.requiredMinEchoRxInterval == 0 {
		m.echo = echoState{}
		return
	}
	e := &m.echo
	e.interval = max(m.config.EchoInterval, m.remote.requiredMinEchoRxInterval)
	if e.nextEchoAt.IsZero() {
		e.nextEchoAt = m.stepTime
	}
	if m.stepTime.Before(e.nextEchoAt) {
		return
	}
	m.output.MustSendEcho = true
	e.sentEchoCount++
	e.nextEchoAt = m.transmitScheduler.nextTransmitTime(m.stepTime, e.interval)
}

// recordEchoReturn records that an echo packet returned.
func (e *echoState) recordEchoReturn(now time.Time) {
	if e.interval > 0 {
		e.lastReturnAt = now
	}
}

// detectionDeadline returns when silence means that the path
// has failed; zero if echo packets do not watch it.
func (e *echoState) detectionDeadline(multiplier uint8) time.Time {
	if e.lastReturnAt.IsZero() {
		return time.Time{}
	}
	return e.lastReturnAt.Add(time.Duration(multiplier) * e.interval)
}

// echoesSentBeforeReportedLost is how many echo packets are sent without a return before that is
// reported.
const echoesSentBeforeReportedLost = 10

// hasNoEchoReturned reports whether echo packets are sent and none has returned.
func (e *echoState) hasNoEchoReturned() bool {
	return e.lastReturnAt.IsZero() && e.sentEchoCount >= echoesSentBeforeReportedLost
}
