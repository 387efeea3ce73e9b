package bfd

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/speaker/bfd/session"
)

// runningSession is a session that runs. Only the Engine's goroutine uses it.
type runningSession struct {
	key           Key
	profile       Profile
	discriminator uint32 // our discriminator
	echoSecret    uint64 // proves that an echo packet is ours
	machine       *session.Machine
	sender        Sender
	record        *sessionRecord
	// wanted is false once the session was removed, while AdminDown is signalled to the neighbour.
	wanted bool
	// sendError and echoError are why the last control or echo packet was not sent.
	sendError, echoError error
	peerAuthenticates    bool
	// lowTTL is the TTL of the neighbour's last packet if it was too low, else 0.
	lowTTL uint8
}

// stepMachine steps the state machine, sends its packets and reports its change of state.
func (l *runningSession) stepMachine(e *Engine, in session.Input) session.Output {
	now := e.now()
	out := l.machine.Step(now, in)
	for _, p := range out.Packets {
		e.sendBuffer = p.Append(e.sendBuffer[:0])
		l.recordSend(l.sender.SendControl(e.sendBuffer))
	}
	if out.SendEcho {
		l.sendEcho(e)
	}
	if c := out.Change; c != nil {
		l.reportChange(e, Event{Key: l.key, Up: c.To == session.Up, Cause: c.Cause, Text: describeChange(*c), At: now}, *c)
	}
	l.publishState()
	return out
}

// recordDatagram records whether a packet was accepted, and the faults that a rejected one shows.
func (l *runningSession) recordDatagram(d Datagram, why session.DiscardReason) {
	l.peerAuthenticates, l.lowTTL = why == session.NotAuthenticated, 0
	switch why {
	case session.Accepted, session.StoppedSession:
		l.record.counters.controlReceived.Add(1)
	case session.LowTTL:
		l.lowTTL = d.TTL
	}
	l.record.setFault(l.currentFault())
}

// recordSend counts a sent control packet, or stores the error.
func (l *runningSession) recordSend(err error) {
	if l.sendError = err; err == nil {
		l.record.counters.controlSent.Add(1)
	}
}

// reportChange reports that the session came Up or left the state Up.
func (l *runningSession) reportChange(e *Engine, v Event, c session.Change) {
	switch {
	case c.To == session.Up:
		l.record.counters.upEvents.Add(1)
	case c.From == session.Up:
		l.record.counters.downEvents.Add(1)
	default:
		return
	}
	if c.Cause != session.CauseStopped {
		l.record.counters.reportedEvents.Add(1)
		e.queueEvent(v)
	}
}

// describeChange says why a session changed, with the neighbour's diagnostic if there is one.
func describeChange(c session.Change) string {
	if c.Cause == session.CauseNeighbourDown && c.RemoteDiagnostic != session.NoDiagnostic {
		return fmt.Sprintf("%s: %s", c.Cause, c.RemoteDiagnostic)
	}
	return c.Cause.String()
}

// ensureOpen opens lost sockets again.
func (l *runningSession) ensureOpen() {
	if err := l.sender.EnsureOpen(); err != nil {
		l.sendError = err
	}
	l.record.setFault(l.currentFault())
}

// publishState publishes the state and the fault.
func (l *runningSession) publishState() {
	l.record.setView(l.machine.View())
	l.record.setFault(l.currentFault())
}

// currentFault returns the most serious fault of the session, or none.
func (l *runningSession) currentFault() Fault {
	switch {
	case errors.Is(l.sendError, ErrPortInUse):
		return Fault{names.ReasonBFDPortInUse, l.sendError.Error()}
	case l.sendError != nil:
		return Fault{names.ReasonBFDUnsent, fmt.Sprintf("BFD packets to %s are not sent: %v", l.key, l.sendError)}
	case l.peerAuthenticates:
		return Fault{names.ReasonBFDAuthentication, fmt.Sprintf("%s authenticates its BFD packets, which is not supported: disable authentication there", l.key)}
	case l.lowTTL != 0:
		return Fault{names.ReasonBFDTTLTooLow, fmt.Sprintf("packets of %s arrive with a TTL of %d, less than minimumTtl %d: raise the TTL that the router sends with, or lower minimumTtl", l.key, l.lowTTL, l.profile.MinimumTTL)}
	case l.echoError != nil:
		return Fault{names.ReasonEchoUnsupported, fmt.Sprintf("echo mode does not work with %s: %v", l.key, l.echoError)}
	case l.machine.View().EchoRefused:
		return Fault{names.ReasonEchoUnsupported, fmt.Sprintf("%s does not accept echo packets: only control packets watch the path; enable echo mode there too, or disable it here", l.key)}
	case l.machine.View().EchoLost:
		return Fault{names.ReasonEchoUnsupported, fmt.Sprintf("%s offers to return echo packets but does not: only control packets watch the path", l.key)}
	}
	return Session{l.key, l.profile}.echoFault()
}

// echoPayloadLength is the length of an echo packet's payload, in bytes: discriminator and secret.
const echoPayloadLength = 12

// sendEcho sends one echo packet.
func (l *runningSession) sendEcho(e *Engine) {
	e.sendBuffer = binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint32(e.sendBuffer[:0], l.discriminator), l.echoSecret)
	if l.echoError = l.sender.SendEcho(e.sendBuffer); l.echoError == nil {
		l.record.counters.echoSent.Add(1)
	}
}

// receiveEcho handles an echo packet that returned.
func (e *Engine) receiveEcho(d Datagram) {
	if len(d.Payload) < echoPayloadLength {
		e.discards.countDiscard(session.BadLength)
		return
	}
	l := e.sessionsByDiscriminator[binary.BigEndian.Uint32(d.Payload)]
	if l == nil || l.echoSecret != binary.BigEndian.Uint64(d.Payload[4:]) {
		e.discards.countDiscard(session.UnknownSession)
		return
	}
	l.record.counters.echoReturned.Add(1)
	l.stepMachine(e, session.EchoReturned{})
}
