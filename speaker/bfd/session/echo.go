package session

import "time"

// echo is the Echo function (RFC 5880 section 6.8.9): packets to ourselves that the neighbour's forwarding plane returns. Its
// zero value does nothing.
type echo struct {
	next time.Time // the next packet
	pace time.Duration
	// came is when the last one returned. Before the first has, silence means that the neighbour does not return
	// them, and the control packets alone decide.
	came time.Time
	sent int
}

// echoes sends an echo packet when one is due.
func (m *Machine) echoes() {
	if m.config.Echo <= 0 || m.state != Up || m.remote.echoRx == 0 {
		m.echo = echo{}
		return
	}
	e := &m.echo
	e.pace = max(m.config.Echo, m.remote.echoRx)
	if e.next.IsZero() {
		e.next = m.now
	}
	if m.now.Before(e.next) {
		return
	}
	m.out.Echo = true
	e.sent++
	e.next = m.now.Add(m.jitter(e.pace))
}

// returned notes that an echo packet came back.
func (e *echo) returned(now time.Time) {
	if e.pace > 0 {
		e.came = now
	}
}

// deadline returns when silence means that the path has failed; zero is never.
func (e *echo) deadline(multiplier uint8) time.Time {
	if e.came.IsZero() {
		return time.Time{}
	}
	return e.came.Add(time.Duration(multiplier) * e.pace)
}

// unreturned is how many echo packets may be sent in vain before that is worth telling.
const unreturned = 10

// lost says that echo packets are sent and none ever returned.
func (e *echo) lost() bool { return e.came.IsZero() && e.sent >= unreturned }
