// Package session is one BFD session (RFC 5880, asynchronous mode) as a pure state machine: packets, commands and the passing
// of time go in, packets to send and changes of state come out. It knows no clock, no socket and no address; time is an
// argument and randomness a source that the caller seeds. A Machine belongs to one goroutine. Demand mode is never asked
// for, but a neighbour that asks for it gets it; authentication is not supported.
package session

import (
	"math/rand/v2"
	"time"
)

// Config is what may be chosen of a session. It may change while the session is Up.
type Config struct {
	// DesiredMinTxInterval and Receive are the Desired Min TX and Required Min RX Intervals while Up, from 10 ms to 60 s.
	DesiredMinTxInterval, RequiredMinRxInterval time.Duration
	// DetectMultiplier is how many of our intervals the neighbour waits for a packet, 2 to 255.
	DetectMultiplier uint8
	// Passive waits for the neighbour's first packet (RFC 5880 section 6.1).
	Passive bool
	// EchoInterval is how often echo packets are sent while the neighbour takes them, and how often they may be sent to us; 0
	// means neither (RFC 5880 section 6.4).
	EchoInterval time.Duration
}

const (
	// slowTxInterval is the least interval of a session that is not Up (RFC 5880 section 6.8.3).
	slowTxInterval = time.Second
	// adminDownPackets is how many packets tell the neighbour of an administrative end: one or two may be lost.
	adminDownPackets = 3
	// adminDownInterval is the most that lies between them, so that a planned stop does not wait for a slow session.
	adminDownInterval = 50 * time.Millisecond
)

// Machine is a session. Make it with New.
type Machine struct {
	config        Config
	random        *rand.Rand
	discriminator uint32
	now           time.Time // of the step under way
	output        Output

	state      State
	diagnostic Diagnostic
	stateSince time.Time
	remote     remoteState
	lastHeard  time.Time // of the last packet, zero when the Detection Time has passed without one

	// desiredMinTxInterval and rx are what we tell (bfd.DesiredMinTxInterval, bfd.RequiredMinRxInterval), usedTxInterval and usedRxInterval what we
	// act by. They differ while a Poll Sequence is under way (RFC 5880 section 6.8.3).
	desiredMinTxInterval, requiredMinRxInterval, usedTxInterval, usedRxInterval time.Duration
	poll                                                                        pollSequence

	lastSent       Packet    // the last one, without P and F; its zero value is no packet's
	lastPeriodicAt time.Time // of the last periodic one
	nextSendAt     time.Time // zero when there is none
	lastTxInterval time.Duration
	adminDownLeft  int // of the farewells
	echo           echoFunction
}

// remoteState is what the neighbour's last packet said.
type remoteState struct {
	discriminator                                                          uint32
	state                                                                  State
	diagnostic                                                             Diagnostic
	demand                                                                 bool
	detectMultiplier                                                       uint8
	desiredMinTxInterval, requiredMinRxInterval, requiredMinEchoRxInterval time.Duration
}

// unknownRemote is what is known of a neighbour that was not heard (RFC 5880 section 6.8.1).
var unknownRemote = remoteState{state: Down, requiredMinRxInterval: time.Microsecond}

// pollSequence is the state of Poll Sequences (RFC 5880 section 6.5).
type pollSequence struct {
	active bool
	// pollSent says that a packet of this sequence was sent: no Final before that can end it.
	pollSent bool
	// anotherNeeded says that something changed since the sequence began, so that another has to follow.
	anotherNeeded bool
}

// New returns a session in the state Down that has not sent anything; its first packet is due at once. The discriminator
// is not 0 and unique among the sessions of the system.
func New(discriminator uint32, c Config, random *rand.Rand, now time.Time) *Machine {
	m := &Machine{config: c, random: random, discriminator: discriminator, now: now, stateSince: now, state: Down}
	m.remote = unknownRemote
	m.updateIntervals()
	m.nextSendAt = now
	return m
}

// Step takes in one fact and returns what follows from it. A packet that was waiting to be read has to be stepped before
// the Tick that follows it, since only a Tick lets the Detection Time expire.
func (m *Machine) Step(now time.Time, in Input) Output {
	m.now, m.output = now, Output{}
	switch in := in.(type) {
	case Received:
		m.receivePacket(in.Packet)
	case Configure:
		m.config = in.Config
	case Stop:
		m.shutDown()
	case Start:
		m.restartSession()
	case EchoReturned:
		m.echo.recordReturn(now)
	case Tick:
		m.expireDetection()
	}
	m.updateIntervals()
	m.transmitDue()
	m.sendDueEcho()
	return m.output
}

// receivePacket applies RFC 5880 section 6.8.6 from the point where the session is known.
func (m *Machine) receivePacket(p Packet) {
	if p.Authenticated {
		m.output.Discard = NotAuthenticated
		return
	}
	m.remote = remoteState{
		discriminator: p.MyDiscriminator, state: p.State, diagnostic: p.Diagnostic, demand: p.Demand, detectMultiplier: p.DetectMultiplier,
		desiredMinTxInterval: p.DesiredMinTxInterval, requiredMinRxInterval: p.RequiredMinRxInterval, requiredMinEchoRxInterval: p.RequiredMinEchoRxInterval,
	}
	if p.Final && m.poll.active && m.poll.pollSent {
		m.poll = pollSequence{active: m.poll.anotherNeeded}
	}
	if m.state == AdminDown {
		m.output.Discard = StoppedSession
		return
	}
	m.lastHeard = m.now
	m.updateState(p)
	if p.Poll {
		m.updateIntervals() // the answer carries what the change of state brings (section 6.8.3)
		final := m.currentPacket()
		m.lastSent, final.Final = final, true
		m.output.Packets = append(m.output.Packets, final)
	}
}

// updateState is the state machine of RFC 5880 section 6.8.6.
func (m *Machine) updateState(p Packet) {
	if p.State == AdminDown {
		if m.state != Down {
			m.enterState(Down, NeighbourDown, CauseNeighbourAdminDown)
		}
		return
	}
	switch m.state {
	case Down:
		switch p.State {
		case Down:
			m.enterState(Init, m.diagnostic, CauseNeighbourAnswers)
		case Init:
			m.enterState(Up, NoDiagnostic, CauseNeighbourAnswers)
		}
	case Init:
		if p.State == Init || p.State == Up {
			m.enterState(Up, NoDiagnostic, CauseNeighbourAnswers)
		}
	case Up:
		if p.State == Down {
			m.enterState(Down, NeighbourDown, CauseNeighbourDown)
		}
	}
}

// enterState changes the state.
func (m *Machine) enterState(s State, d Diagnostic, c Cause) {
	m.output.Change = &Change{From: m.state, To: s, Cause: c, RemoteDiagnostic: m.remote.diagnostic}
	m.state, m.diagnostic, m.stateSince = s, d, m.now
	m.echo = echoFunction{}
}

// expireDetection acts when the Detection Time has passed without a packet, or the echo's (RFC 5880 sections 6.8.4 and 6.8.5).
func (m *Machine) expireDetection() {
	if at := m.detectionDeadline(); !at.IsZero() && !m.now.Before(at) {
		m.lastHeard = time.Time{}
		if m.state == Init || m.state == Up {
			m.enterState(Down, DetectionExpired, CauseDetectionExpired)
		}
		// Section 6.8.1: the discriminator is forgotten. So is the rest: who comes back says it anew.
		m.remote, m.poll = unknownRemote, pollSequence{}
	}
	if at := m.echo.detectionDeadline(m.config.DetectMultiplier); !at.IsZero() && !m.now.Before(at) && m.state == Up {
		m.enterState(Down, EchoFailed, CauseEchoFailed)
	}
}

// detectionTime returns the Detection Time (RFC 5880 section 6.8.4), or 0 while nothing is known of the neighbour.
func (m *Machine) detectionTime() time.Duration {
	return time.Duration(m.remote.detectMultiplier) * max(m.usedRxInterval, m.remote.desiredMinTxInterval)
}

// detectionDeadline returns when the Detection Time expires, zero if it does not run.
func (m *Machine) detectionDeadline() time.Time {
	if m.lastHeard.IsZero() {
		return time.Time{}
	}
	return m.lastHeard.Add(m.detectionTime())
}

// updateIntervals applies a change of the intervals (RFC 5880 section 6.8.3).
func (m *Machine) updateIntervals() {
	tx, rx := m.config.DesiredMinTxInterval, m.config.RequiredMinRxInterval
	if m.state != Up {
		tx = max(tx, slowTxInterval)
	}
	if tx != m.desiredMinTxInterval || rx != m.requiredMinRxInterval {
		m.desiredMinTxInterval, m.requiredMinRxInterval = tx, rx
		switch {
		case m.remote.discriminator == 0 || m.state == AdminDown: // nobody to ask
		case m.poll.active:
			m.poll.anotherNeeded = true
		default:
			m.poll = pollSequence{active: true}
		}
	}
	// Until the neighbour has answered, it may not know: we go on sending as often as it expects, and waiting as long
	// as it may take.
	unsure := m.state == Up && m.poll.active
	if !unsure || m.desiredMinTxInterval < m.usedTxInterval {
		m.usedTxInterval = m.desiredMinTxInterval
	}
	if !unsure || m.requiredMinRxInterval > m.usedRxInterval {
		m.usedRxInterval = m.requiredMinRxInterval
	}
}

// shutDown begins the administrative end (RFC 5880 section 6.8.16).
func (m *Machine) shutDown() {
	if m.state == AdminDown {
		return
	}
	m.adminDownLeft = 0
	if m.remote.discriminator != 0 {
		m.adminDownLeft = adminDownPackets
	}
	m.poll, m.lastHeard = pollSequence{}, time.Time{}
	m.enterState(AdminDown, AdministrativelyDown, CauseStopped)
}

// restartSession begins anew. What is known of the neighbour may be old.
func (m *Machine) restartSession() {
	if m.state != AdminDown {
		return
	}
	m.remote = unknownRemote
	m.enterState(Down, NoDiagnostic, CauseStarted)
}

// IsStopped says that the session has ended and the neighbour was told.
func (m *Machine) IsStopped() bool { return m.state == AdminDown && m.adminDownLeft == 0 }

// NextTick returns when the Machine wants to be stepped with Tick, at the latest; zero is never.
func (m *Machine) NextTick() time.Time {
	next := m.nextSendAt
	for _, t := range [...]time.Time{m.detectionDeadline(), m.echo.nextAt, m.echo.detectionDeadline(m.config.DetectMultiplier)} {
		if !t.IsZero() && (next.IsZero() || t.Before(next)) {
			next = t
		}
	}
	return next
}
