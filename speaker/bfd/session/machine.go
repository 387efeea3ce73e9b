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
	// Transmit and Receive are the Desired Min TX and Required Min RX Intervals while Up, from 10 ms to 60 s.
	Transmit, Receive time.Duration
	// Multiplier is how many of our intervals the neighbour waits for a packet, 2 to 255.
	Multiplier uint8
	// Passive waits for the neighbour's first packet (RFC 5880 section 6.1).
	Passive bool
	// Echo is how often echo packets are sent while the neighbour takes them, and how often they may be sent to us; 0
	// means neither (RFC 5880 section 6.4).
	Echo time.Duration
}

const (
	// slow is the least interval of a session that is not Up (RFC 5880 section 6.8.3).
	slow = time.Second
	// farewells is how many packets tell the neighbour of an administrative end: one or two may be lost.
	farewells = 3
	// farewellSpacing is the most that lies between them, so that a planned stop does not wait for a slow session.
	farewellSpacing = 50 * time.Millisecond
)

// Machine is a session. Make it with New.
type Machine struct {
	config Config
	random *rand.Rand
	local  uint32
	now    time.Time // of the step under way
	out    Output

	state      State
	diagnostic Diagnostic
	since      time.Time
	remote     remote
	heard      time.Time // of the last packet, zero when the Detection Time has passed without one

	// tx and rx are what we tell (bfd.DesiredMinTxInterval, bfd.RequiredMinRxInterval), usedTx and usedRx what we
	// act by. They differ while a Poll Sequence is under way (RFC 5880 section 6.8.3).
	tx, rx, usedTx, usedRx time.Duration
	poll                   poll

	sent     Packet    // the last one, without P and F; its zero value is no packet's
	sentAt   time.Time // of the last periodic one
	nextSend time.Time // zero when there is none
	paced    time.Duration
	left     int // of the farewells
	echo     echo
}

// remote is what the neighbour's last packet said.
type remote struct {
	discriminator                 uint32
	state                         State
	diagnostic                    Diagnostic
	demand                        bool
	multiplier                    uint8
	desiredTx, requiredRx, echoRx time.Duration
}

// unknown is what is known of a neighbour that was not heard (RFC 5880 section 6.8.1).
var unknown = remote{state: Down, requiredRx: time.Microsecond}

// poll is the state of Poll Sequences (RFC 5880 section 6.5).
type poll struct {
	active bool
	// asked says that a packet of this sequence was sent: no Final before that can end it.
	asked bool
	// again says that something changed since the sequence began, so that another has to follow.
	again bool
}

// New returns a session in the state Down that has not sent anything; its first packet is due at once. The discriminator
// is not 0 and unique among the sessions of the system.
func New(discriminator uint32, c Config, random *rand.Rand, now time.Time) *Machine {
	m := &Machine{config: c, random: random, local: discriminator, now: now, since: now, state: Down}
	m.remote = unknown
	m.retime()
	m.nextSend = now
	return m
}

// Step takes in one fact and returns what follows from it. A packet that was waiting to be read has to be stepped before
// the Tick that follows it, since only a Tick lets the Detection Time expire.
func (m *Machine) Step(now time.Time, in Input) Output {
	m.now, m.out = now, Output{}
	switch in := in.(type) {
	case Received:
		m.receive(in.Packet)
	case Configure:
		m.config = in.Config
	case Stop:
		m.stop()
	case Start:
		m.start()
	case EchoReturned:
		m.echo.returned(now)
	case Tick:
		m.expire()
	}
	m.retime()
	m.transmit()
	m.echoes()
	return m.out
}

// receive applies RFC 5880 section 6.8.6 from the point where the session is known.
func (m *Machine) receive(p Packet) {
	if p.Authenticated {
		m.out.Discard = NotAuthenticated
		return
	}
	m.remote = remote{
		discriminator: p.Mine, state: p.State, diagnostic: p.Diagnostic, demand: p.Demand, multiplier: p.Multiplier,
		desiredTx: p.DesiredTx, requiredRx: p.RequiredRx, echoRx: p.RequiredEchoRx,
	}
	if p.Final && m.poll.active && m.poll.asked {
		m.poll = poll{active: m.poll.again}
	}
	if m.state == AdminDown {
		m.out.Discard = AdministrativeStop
		return
	}
	m.heard = m.now
	m.follow(p)
	if p.Poll {
		m.retime() // the answer carries what the change of state brings (section 6.8.3)
		final := m.packet()
		m.sent, final.Final = final, true
		m.out.Send = append(m.out.Send, final)
	}
}

// follow is the state machine of RFC 5880 section 6.8.6.
func (m *Machine) follow(p Packet) {
	if p.State == AdminDown {
		if m.state != Down {
			m.enter(Down, NeighbourDown, CauseNeighbourAdminDown)
		}
		return
	}
	switch m.state {
	case Down:
		switch p.State {
		case Down:
			m.enter(Init, m.diagnostic, CauseNeighbour)
		case Init:
			m.enter(Up, NoDiagnostic, CauseNeighbour)
		}
	case Init:
		if p.State == Init || p.State == Up {
			m.enter(Up, NoDiagnostic, CauseNeighbour)
		}
	case Up:
		if p.State == Down {
			m.enter(Down, NeighbourDown, CauseNeighbourDown)
		}
	}
}

// enter changes the state.
func (m *Machine) enter(s State, d Diagnostic, c Cause) {
	m.out.Change = &Change{From: m.state, To: s, Cause: c, Remote: m.remote.diagnostic}
	m.state, m.diagnostic, m.since = s, d, m.now
	m.echo = echo{}
}

// expire acts when the Detection Time has passed without a packet, or the echo's (RFC 5880 sections 6.8.4 and 6.8.5).
func (m *Machine) expire() {
	if at := m.deadline(); !at.IsZero() && !m.now.Before(at) {
		m.heard = time.Time{}
		if m.state == Init || m.state == Up {
			m.enter(Down, DetectionExpired, CauseDetectionExpired)
		}
		// Section 6.8.1: the discriminator is forgotten. So is the rest: who comes back says it anew.
		m.remote, m.poll = unknown, poll{}
	}
	if at := m.echo.deadline(m.config.Multiplier); !at.IsZero() && !m.now.Before(at) && m.state == Up {
		m.enter(Down, EchoFailed, CauseEchoFailed)
	}
}

// detection returns the Detection Time (RFC 5880 section 6.8.4), or 0 while nothing is known of the neighbour.
func (m *Machine) detection() time.Duration {
	return time.Duration(m.remote.multiplier) * max(m.usedRx, m.remote.desiredTx)
}

// deadline returns when the Detection Time expires, zero if it does not run.
func (m *Machine) deadline() time.Time {
	if m.heard.IsZero() {
		return time.Time{}
	}
	return m.heard.Add(m.detection())
}

// retime applies a change of the intervals (RFC 5880 section 6.8.3).
func (m *Machine) retime() {
	tx, rx := m.config.Transmit, m.config.Receive
	if m.state != Up {
		tx = max(tx, slow)
	}
	if tx != m.tx || rx != m.rx {
		m.tx, m.rx = tx, rx
		switch {
		case m.remote.discriminator == 0 || m.state == AdminDown: // nobody to ask
		case m.poll.active:
			m.poll.again = true
		default:
			m.poll = poll{active: true}
		}
	}
	// Until the neighbour has answered, it may not know: we go on sending as often as it expects, and waiting as long
	// as it may take.
	unsure := m.state == Up && m.poll.active
	if !unsure || m.tx < m.usedTx {
		m.usedTx = m.tx
	}
	if !unsure || m.rx > m.usedRx {
		m.usedRx = m.rx
	}
}

// stop begins the administrative end (RFC 5880 section 6.8.16).
func (m *Machine) stop() {
	if m.state == AdminDown {
		return
	}
	m.left = 0
	if m.remote.discriminator != 0 {
		m.left = farewells
	}
	m.poll, m.heard = poll{}, time.Time{}
	m.enter(AdminDown, AdministrativelyDown, CauseStopped)
}

// start begins anew. What is known of the neighbour may be old.
func (m *Machine) start() {
	if m.state != AdminDown {
		return
	}
	m.remote = unknown
	m.enter(Down, NoDiagnostic, CauseStarted)
}

// Stopped says that the session has ended and the neighbour was told.
func (m *Machine) Stopped() bool { return m.state == AdminDown && m.left == 0 }

// Next returns when the Machine wants to be stepped with Tick, at the latest; zero is never.
func (m *Machine) Next() time.Time {
	next := m.nextSend
	for _, t := range [...]time.Time{m.deadline(), m.echo.next, m.echo.deadline(m.config.Multiplier)} {
		if !t.IsZero() && (next.IsZero() || t.Before(next)) {
			next = t
		}
	}
	return next
}
