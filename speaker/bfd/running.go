package bfd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/priorityqueue"
	"github.com/gantry-lb/gantry/speaker/bfd/session"
)

// runningSession is a session that runs. Only the Engine's goroutine uses it.
type runningSession struct {
	key            SessionKey
	profile        Profile
	discriminator  uint32 // ours
	echoSecret     uint64 // proves that an echo packet is ours
	machine        *session.Machine
	sender         Sender
	publishedState *publishedSessionState
	// queuedDeadline and queuePosition are the place in the Engine's queue.
	queuedDeadline time.Time
	queuePosition  priorityqueue.Position
	// isDesired is false once the session was removed, while AdminDown is signalled to the
	// neighbour.
	isDesired bool
	// lastControlSendError is why the last control packet was not sent; nil if it was.
	lastControlSendError error
	// lastEchoSendError is why the last echo packet was not sent; nil if it was.
	lastEchoSendError error
	// lastPacketWasAuthenticated is true if the neighbour's last packet was authenticated.
	lastPacketWasAuthenticated bool
	// lastRejectedTTL is the TTL of the neighbour's last packet if it was too low, else 0.
	lastRejectedTTL uint8
}

// stepStateMachine steps the state machine, sends its packets and reports its change of state.
func (s *runningSession) stepStateMachine(e *Engine, now time.Time, in session.Input) session.Output {
	out := s.machine.Step(now, in)
	for _, p := range out.PacketsToSend {
		e.sendBuffer = p.AppendEncoded(e.sendBuffer[:0])
		s.recordControlSendResult(s.sender.SendControl(e.sendBuffer))
	}
	if out.MustSendEcho {
		s.sendEcho(e)
	}
	if c := out.StateChange; c != nil {
		s.reportUpOrDown(e, Event{Key: s.key, Up: c.To == session.Up, Cause: c.Cause, CauseText: describeCauseOfStateChange(*c), ChangedAt: now}, *c)
	}
	s.publishStateAndFault()
	s.updateDeadline(e.sessionDeadlineQueue)
	if s.machine.IsStopped() && !s.isDesired {
		e.stoppedSessions = append(e.stoppedSessions, s)
	}
	return out
}

// recordReceivedDatagram records whether a packet was accepted, and the faults that a rejected one
// shows.
func (s *runningSession) recordReceivedDatagram(d ReceivedDatagram, discarded session.DiscardReason) {
	isAuthenticated, rejectedTTL := discarded == session.DiscardUnexpectedAuthentication, uint8(0)
	switch discarded {
	case session.NotDiscarded, session.DiscardSessionAdminDown:
		s.publishedState.counters.controlReceived.Add(1)
	case session.DiscardLowTTL:
		rejectedTTL = d.TTL
	}
	if isAuthenticated == s.lastPacketWasAuthenticated && rejectedTTL == s.lastRejectedTTL {
		return
	}
	s.lastPacketWasAuthenticated, s.lastRejectedTTL = isAuthenticated, rejectedTTL
	s.publishStateAndFault()
}

// recordControlSendResult counts a sent control packet, or stores the error.
func (s *runningSession) recordControlSendResult(err error) {
	if s.lastControlSendError = err; err == nil {
		s.publishedState.counters.controlSent.Add(1)
	}
}

// reportUpOrDown reports that the session came Up or left the state Up.
func (s *runningSession) reportUpOrDown(e *Engine, v Event, c session.StateChange) {
	switch {
	case c.To == session.Up:
		s.publishedState.counters.upEvents.Add(1)
	case c.From == session.Up:
		s.publishedState.counters.downEvents.Add(1)
	default:
		return
	}
	if c.Cause != session.CauseStoppedLocally {
		s.publishedState.counters.reportedEvents.Add(1)
		e.events.PutDroppingOldest(v)
	}
}

// describeCauseOfStateChange says why a session changed, with the neighbour's diagnostic if there
// is one.
func describeCauseOfStateChange(c session.StateChange) string {
	if c.Cause == session.CauseNeighbourSignalledDown && c.RemoteDiagnostic != session.DiagnosticNone {
		return fmt.Sprintf("%s: %s", c.Cause, c.RemoteDiagnostic)
	}
	return c.Cause.String()
}

// reopenLostSockets opens lost sockets again.
func (s *runningSession) reopenLostSockets() {
	if err := s.sender.ReopenLostSockets(); err != nil {
		s.lastControlSendError = err
	}
	s.publishStateAndFault()
}

// publishStateAndFault publishes the state and the fault.
func (s *runningSession) publishStateAndFault() {
	v := s.machine.Status()
	s.publishedState.publishMachineStatus(v)
	s.publishedState.publishFault(s.currentFault(v))
}

// currentFault returns the most serious fault of the session in a state, or none.
func (s *runningSession) currentFault(v session.MachineStatus) names.Explanation {
	switch {
	case errors.Is(s.lastControlSendError, ErrPortInUse):
		return names.Explanation{Reason: names.ReasonBFDPortInUse, Text: s.lastControlSendError.Error()}
	case s.lastControlSendError != nil:
		return names.NewExplanation(names.ReasonBFDUnsent, "BFD packets to %s are not sent: %v", s.key, s.lastControlSendError)
	case s.lastPacketWasAuthenticated:
		return names.NewExplanation(names.ReasonBFDAuthentication, "%s authenticates its BFD packets, which is not supported: disable authentication there", s.key)
	case s.lastRejectedTTL != 0:
		return names.NewExplanation(names.ReasonBFDTTLTooLow, "packets of %s arrive with a TTL of %d, less than minimumTtl %d: raise the TTL that the router sends with, or lower minimumTtl", s.key, s.lastRejectedTTL, s.profile.MinimumTTL)
	case s.lastEchoSendError != nil:
		return names.NewExplanation(names.ReasonEchoUnsupported, "echo mode does not work with %s: %v", s.key, s.lastEchoSendError)
	case v.NeighbourRefusesEcho:
		return names.NewExplanation(names.ReasonEchoUnsupported, "%s does not accept echo packets: only control packets watch the path; enable echo mode there too, or disable it here", s.key)
	case v.NoEchoReturned:
		return names.NewExplanation(names.ReasonEchoUnsupported, "%s offers to return echo packets but does not: only control packets watch the path", s.key)
	}
	return SessionConfig{s.key, s.profile}.explainEchoFault()
}

// echoPayloadBytes is the length of an echo packet's payload, in bytes: discriminator and secret.
const echoPayloadBytes = 12

// sendEcho sends one echo packet.
func (s *runningSession) sendEcho(e *Engine) {
	e.sendBuffer = binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint32(e.sendBuffer[:0], s.discriminator), s.echoSecret)
	if s.lastEchoSendError = s.sender.SendEcho(e.sendBuffer); s.lastEchoSendError == nil {
		s.publishedState.counters.echoSent.Add(1)
	}
}

// handleReturnedEcho handles an echo packet that returned.
func (e *Engine) handleReturnedEcho(d ReceivedDatagram) {
	if len(d.Payload) < echoPayloadBytes {
		e.discardCounters.countDiscard(session.DiscardBadLength)
		return
	}
	s := e.sessionsByDiscriminator[binary.BigEndian.Uint32(d.Payload)]
	if s == nil || s.echoSecret != binary.BigEndian.Uint64(d.Payload[4:]) {
		e.discardCounters.countDiscard(session.DiscardUnknownSession)
		return
	}
	s.publishedState.counters.echoReturned.Add(1)
	s.stepStateMachine(e, e.now(), session.EchoReturned{})
}
