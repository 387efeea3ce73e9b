// Package session is one BFD session (RFC 5880, asynchronous mode) as a pure state machine. Its
// input is packets, commands and the passing of time; its output is packets to send and changes of
// state. It uses no clock, no socket and no address: time is an argument, and the caller seeds the
// source of randomness. Only one goroutine may use a Machine. A Machine never requests demand mode
// but honours the neighbour's request. Authentication is not supported.
package session

import "time"

// Config has the parameters of a session. They may change while the session is Up.
type Config struct {
	// DesiredMinTxInterval is the shortest interval at which we want to send
	// while the session is Up, from 10 ms to 60 s (RFC 5880 section 6.8.1).
	DesiredMinTxInterval time.Duration
	// RequiredMinRxInterval is the shortest interval at which we can receive,
	// from 10 ms to 60 s (RFC 5880 section 6.8.1).
	RequiredMinRxInterval time.Duration
	// DetectMultiplier is how many of our intervals the
	// neighbour waits for a packet, from 2 to 255.
	DetectMultiplier uint8
	// Passive waits for the neighbour's first packet (RFC 5880 section 6.1).
	Passive bool
	// EchoInterval is the shortest interval at which we send echo packets and at which
	// the neighbour may send them; 0 disables both (RFC 5880 section 6.4).
	EchoInterval time.Duration
}

const (
	// minNotUpTxInterval is the shortest transmit interval of a
	// session that is not Up (RFC 5880 section 6.8.3).
	minNotUpTxInterval = time.Second
	// adminDownPacketCount is how many packets signal AdminDown: one or two may be lost.
	adminDownPacketCount = 3
	// adminDownPacketInterval is the interval between these packets before jitter. It is short, so
	// that a planned stop does not wait for a slow session.
	adminDownPacketInterval = 50 * time.Millisecond
)

// Machine is the state machine of a session. Make it with New.
type Machine struct {
	config            Config
	transmitScheduler *TransmitScheduler
	discriminator     uint32
	stepTime          time.Time // of the step under way
	output            Output

	state                State
	diagnostic           Diagnostic
	stateSince           time.Time
	remote               remoteState
	lastPacketReceivedAt time.Time // zero once the Detection Time has passed without a packet

	// Our packets announce the first two intervals (bfd.DesiredMinTxInterval,
	// bfd.RequiredMinRxInterval); the session runs with the used ones. They
	// differ during a Poll Sequence (RFC 5880 section 6.8.3).
	desiredMinTxInterval  time.Duration
	requiredMinRxInterval time.Duration
	appliedMinTxInterval  time.Duration
	appliedMinRxInterval  time.Duration
	poll                  pollSequence

	lastSentPacket            Packet        // without P and F; zero before the first packet
	lastNonFinalPacketSentAt  time.Time     // when the last packet but a Final was sent
	nextPeriodicPacketAt      time.Time     // of the next periodic packet; zero without one
	scheduledPacketTxInterval time.Duration // with which nextPeriodicPacketAt was computed
	adminDownPacketsLeft      int           // AdminDown packets still to be sent
	echo                      echoState
}

// remoteState is what the neighbour's last packet said.
type remoteState struct {
	discriminator             uint32
	state                     State
	diagnostic                Diagnostic
	demand                    bool
	detectMultiplier          uint8
	desiredMinTxInterval      time.Duration
	requiredMinRxInterval     time.Duration
	requiredMinEchoRxInterval time.Duration
}

// initialRemoteState is the state of a neighbour without a packet yet (RFC 5880 section 6.8.1).
var initialRemoteState = remoteState{state: Down, requiredMinRxInterval: time.Microsecond}

// pollSequence is the state of Poll Sequences (RFC 5880 section 6.5).
type pollSequence struct {
	isActive bool
	// pollSent means that a packet of this sequence was sent. A Final before that does not end it.
	pollSent bool
	// anotherPollNeeded means that an interval changed since the
	// sequence began, so that another one must follow.
	anotherPollNeeded bool
}

// NewMachine returns a session in the state Down. Its first packet is due at once. The
// discriminator is not 0 and unique among the sessions of the system.
func NewMachine(discriminator uint32, c Config, jitter *TransmitScheduler, now time.Time) *Machine {
	m := &Machine{config: c, transmitScheduler: jitter, discriminator: discriminator, stepTime: now, stateSince: now, state: Down}
	m.remote = initialRemoteState
	m.applyChangedIntervals()
	m.nextPeriodicPacketAt = now
	return m
}

// Step applies one input and returns the output. A packet that was waiting to be read must be
// stepped before the Tick that follows it, since only a Tick lets the Detection Time expire.
func (m *Machine) Step(now time.Time, in Input) Output {
	m.stepTime, m.output = now, Output{PacketsToSend: m.output.PacketsToSend[:0]}
	switch in := in.(type) {
	case PacketReceived:
		m.receivePacket(in.Packet)
	case ConfigChanged:
		m.config = in.Config
	case StopRequested:
		m.shutDown()
	case RestartRequested:
		m.restartSession()
	case EchoReturned:
		m.echo.recordEchoReturn(now)
	case TimePassed:
		m.takeDownIfDetectionTimePassed()
	}
	m.applyChangedIntervals()
	m.sendPacketIfDueOrChanged()
	m.sendDueEcho()
	return m.output
}

// receivePacket applies RFC 5880 section 6.8.6 from the point where the session is known.
func (m *Machine) receivePacket(p Packet) {
	if p.AuthenticationPresent {
		m.output.DiscardReason = DiscardUnexpectedAuthentication
		return
	}
	m.remote = remoteState{
		discriminator:             p.MyDiscriminator,
		state:                     p.State,
		diagnostic:                p.Diagnostic,
		demand:                    p.Demand,
		detectMultiplier:          p.DetectMultiplier,
		desiredMinTxInterval:      p.DesiredMinTxInterval,
		requiredMinRxInterval:     p.RequiredMinRxInterval,
		requiredMinEchoRxInterval: p.RequiredMinEchoRxInterval,
	}
	if p.Final && m.poll.isActive && m.poll.pollSent {
		m.poll = pollSequence{isActive: m.poll.anotherPollNeeded}
	}
	if m.state == AdminDown {
		m.output.DiscardReason = DiscardSessionAdminDown
		return
	}
	m.lastPacketReceivedAt = m.stepTime
	m.updateStateFromPacket(p)
	if p.Poll {
		// The answer has the intervals of the new state (RFC 5880 section 6.8.3).
		m.applyChangedIntervals()
		final := m.buildCurrentPacket()
		m.lastSentPacket, final.Final = final, true
		m.output.PacketsToSend = append(m.output.PacketsToSend, final)
	}
}

// updateStateFromPacket applies the state machine of RFC 5880 section 6.8.6.
func (m *Machine) updateStateFromPacket(p Packet) {
	if p.State == AdminDown {
		if m.state != Down {
			m.enterState(Down, DiagnosticNeighbourSignalledDown, CauseNeighbourSignalledAdminDown)
		}
		return
	}
	switch m.state {
	case Down:
		switch p.State {
		case Down:
			m.enterState(Init, m.diagnostic, CauseHandshakeProgress)
		case Init:
			m.enterState(Up, DiagnosticNone, CauseHandshakeProgress)
		}
	case Init:
		if p.State == Init || p.State == Up {
			m.enterState(Up, DiagnosticNone, CauseHandshakeProgress)
		}
	case Up:
		if p.State == Down {
			m.enterState(Down, DiagnosticNeighbourSignalledDown, CauseNeighbourSignalledDown)
		}
	}
}

// enterState changes the state.
func (m *Machine) enterState(s State, d Diagnostic, c Cause) {
	m.output.StateChange = &StateChange{From: m.state, To: s, Cause: c, RemoteDiagnostic: m.remote.diagnostic}
	m.state, m.diagnostic, m.stateSince = s, d, m.stepTime
	m.echo = echoState{}
}

// takeDownIfDetectionTimePassed acts when the Detection Time of control or echo packets has
// passed without a packet (RFC 5880 sections 6.8.4 and 6.8.5).
func (m *Machine) takeDownIfDetectionTimePassed() {
	if at := m.detectionDeadline(); !at.IsZero() && !m.stepTime.Before(at) {
		m.lastPacketReceivedAt = time.Time{}
		if m.state == Init || m.state == Up {
			m.enterState(Down, DiagnosticDetectionExpired, CauseDetectionExpired)
		}
		// The discriminator must be forgotten (RFC 5880 section 6.8.1). So are
		// the other values: a neighbour that returns sends them again.
		m.remote, m.poll = initialRemoteState, pollSequence{}
	}
	if at := m.echo.detectionDeadline(m.config.DetectMultiplier); !at.IsZero() && !m.stepTime.Before(at) && m.state == Up {
		m.enterState(Down, DiagnosticEchoFailed, CauseEchoFailed)
	}
}

// detectionTime returns the Detection Time (RFC 5880 section
// 6.8.4), or 0 before the neighbour's first packet.
func (m *Machine) detectionTime() time.Duration {
	return time.Duration(m.remote.detectMultiplier) * max(m.appliedMinRxInterval, m.remote.desiredMinTxInterval)
}

// detectionDeadline returns when the Detection Time expires; zero if it does not run.
func (m *Machine) detectionDeadline() time.Time {
	if m.lastPacketReceivedAt.IsZero() {
		return time.Time{}
	}
	return m.lastPacketReceivedAt.Add(m.detectionTime())
}

// applyChangedIntervals applies a change of the intervals (RFC 5880 section 6.8.3).
func (m *Machine) applyChangedIntervals() {
	tx, rx := m.config.DesiredMinTxInterval, m.config.RequiredMinRxInterval
	if m.state != Up {
		tx = max(tx, minNotUpTxInterval)
	}
	if tx != m.desiredMinTxInterval || rx != m.requiredMinRxInterval {
		m.desiredMinTxInterval, m.requiredMinRxInterval = tx, rx
		switch {
		case m.remote.discriminator == 0 || m.state == AdminDown: // no neighbour to negotiate with
		case m.poll.isActive:
			m.poll.anotherPollNeeded = true
		default:
			m.poll = pollSequence{isActive: true}
		}
	}
	// Until its Final the neighbour may not know the change. Until then we
	// send as often as it expects and wait as long as its packets may take.
	unconfirmed := m.state == Up && m.poll.isActive
	if !unconfirmed || m.desiredMinTxInterval < m.appliedMinTxInterval {
		m.appliedMinTxInterval = m.desiredMinTxInterval
	}
	if !unconfirmed || m.requiredMinRxInterval > m.appliedMinRxInterval {
		m.appliedMinRxInterval = m.requiredMinRxInterval
	}
}

// shutDown begins the administrative shutdown (RFC 5880 section 6.8.16).
func (m *Machine) shutDown() {
	if m.state == AdminDown {
		return
	}
	m.adminDownPacketsLeft = 0
	if m.remote.discriminator != 0 {
		m.adminDownPacketsLeft = adminDownPacketCount
	}
	m.poll, m.lastPacketReceivedAt = pollSequence{}, time.Time{}
	m.enterState(AdminDown, DiagnosticAdminDown, CauseStoppedLocally)
}

// restartSession starts the session again after a shutdown. The neighbour's values may be outdated.
func (m *Machine) restartSession() {
	if m.state != AdminDown {
		return
	}
	m.remote = initialRemoteState
	m.enterState(Down, DiagnosticNone, CauseRestartedLocally)
}

// HasDetectionTimePassed reports whether a Detection Time has passed, so that a Tick takes the
// session down. Packets that wait to be read must be stepped before.
func (m *Machine) HasDetectionTimePassed(now time.Time) bool {
	control, echo := m.detectionDeadline(), m.echo.detectionDeadline(m.config.DetectMultiplier)
	return (!control.IsZero() && !now.Before(control)) || (!echo.IsZero() && !now.Before(echo))
}

// IsStopped reports whether the session has ended and AdminDown was signalled.
func (m *Machine) IsStopped() bool { return m.state == AdminDown && m.adminDownPacketsLeft == 0 }

// NextStepDeadline returns the latest time for the next Tick; zero if none is needed.
func (m *Machine) NextStepDeadline() time.Time {
	next := m.nextPeriodicPacketAt
	for _, t := range [...]time.Time{m.detectionDeadline(), m.echo.nextEchoAt, m.echo.detectionDeadline(m.config.DetectMultiplier)} {
		if !t.IsZero() && (next.IsZero() || t.Before(next)) {
			next = t
		}
	}
	return next
}
