package bfd

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/speaker/bfd/session"
)

// live is a session that runs. The Engine's goroutine owns it.
type live struct {
	key     Key
	profile Profile
	local   uint32 // our discriminator
	secret  uint64 // what tells our echo packets from those of others
	machine *session.Machine
	port    Port
	record  *record
	// wanted is false once the session was removed and the neighbour is being told.
	wanted bool
	// sendError and echoError are why the last packet of the kind was not sent; authenticated says that packets of the
	// neighbour are.
	sendError, echoError error
	authenticated        bool
	// lowTTL is the TTL of the neighbour's last packet if that was too low, else 0.
	lowTTL uint8
}

// step steps the machine, sends what it has to send and tells its changes.
func (l *live) step(e *Engine, in session.Input) session.Output {
	now := e.now()
	out := l.machine.Step(now, in)
	for _, p := range out.Send {
		e.buffer = p.Append(e.buffer[:0])
		l.sent(l.port.Send(e.buffer))
	}
	if out.Echo {
		l.sendEcho(e)
	}
	if c := out.Change; c != nil {
		l.changed(e, Event{Key: l.key, Up: c.To == session.Up, Cause: c.Cause, Text: words(*c), At: now}, *c)
	}
	l.publish()
	return out
}

// heed notes what a packet of the neighbour says beside its contents.
func (l *live) heed(d Datagram, why session.Discard) {
	l.authenticated, l.lowTTL = why == session.NotAuthenticated, 0
	switch why {
	case session.Accepted, session.AdministrativeStop:
		l.record.count.input.Add(1)
	case session.LowTTL:
		l.lowTTL = d.TTL
	}
	l.record.tell(l.fault())
}

// sent counts a control packet, or keeps the error.
func (l *live) sent(err error) {
	if l.sendError = err; err == nil {
		l.record.count.output.Add(1)
	}
}

// changed tells that the session came Up or went Down.
func (l *live) changed(e *Engine, v Event, c session.Change) {
	switch {
	case c.To == session.Up:
		l.record.count.up.Add(1)
	case c.From == session.Up:
		l.record.count.down.Add(1)
	default:
		return
	}
	if c.Cause != session.CauseStopped {
		l.record.count.told.Add(1)
		e.queued(v)
	}
}

// words says why a session changed, with the neighbour's own reason where it gave one.
func words(c session.Change) string {
	if c.Cause == session.CauseNeighbourDown && c.Remote != session.NoDiagnostic {
		return fmt.Sprintf("%s: %s", c.Cause, c.Remote)
	}
	return c.Cause.String()
}

// check opens what was lost.
func (l *live) check() {
	if err := l.port.Check(); err != nil {
		l.sendError = err
	}
	l.record.tell(l.fault())
}

// publish makes the session's state visible.
func (l *live) publish() {
	l.record.see(l.machine.View())
	l.record.tell(l.fault())
}

// fault is what is wrong with the session now, the worst first.
func (l *live) fault() Fault {
	switch {
	case errors.Is(l.sendError, ErrPortInUse):
		return Fault{names.ReasonBFDPortInUse, l.sendError.Error()}
	case l.sendError != nil:
		return Fault{names.ReasonBFDUnsent, fmt.Sprintf("BFD packets to %s are not sent: %v", l.key, l.sendError)}
	case l.authenticated:
		return Fault{names.ReasonBFDAuthentication, fmt.Sprintf("%s authenticates its BFD packets, which is not supported: turn authentication off there", l.key)}
	case l.lowTTL != 0:
		return Fault{names.ReasonBFDTTLTooLow, fmt.Sprintf("packets of %s arrive with a TTL of %d, less than minimumTtl %d: raise what the router sends with, or lower minimumTtl", l.key, l.lowTTL, l.profile.MinimumTTL)}
	case l.echoError != nil:
		return Fault{names.ReasonEchoUnsupported, fmt.Sprintf("echo mode does not work with %s: %v", l.key, l.echoError)}
	case l.machine.View().EchoRefused:
		return Fault{names.ReasonEchoUnsupported, fmt.Sprintf("%s takes no echo packets, so that control packets alone watch the path: turn echo mode on there too, or off here", l.key)}
	case l.machine.View().EchoLost:
		return Fault{names.ReasonEchoUnsupported, fmt.Sprintf("%s offers to return echo packets but does not: control packets alone watch the path", l.key)}
	}
	return Session{l.key, l.profile}.echoFault()
}

// echoBytes is the length of an echo packet's payload: discriminator and secret.
const echoBytes = 12

// sendEcho sends one echo packet.
func (l *live) sendEcho(e *Engine) {
	e.buffer = binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint32(e.buffer[:0], l.local), l.secret)
	if l.echoError = l.port.SendEcho(e.buffer); l.echoError == nil {
		l.record.count.echoOutput.Add(1)
	}
}

// receiveEcho takes in an echo packet that came back.
func (e *Engine) receiveEcho(d Datagram) {
	if len(d.Payload) < echoBytes {
		e.counted.discard(session.BadLength)
		return
	}
	l := e.byLocal[binary.BigEndian.Uint32(d.Payload)]
	if l == nil || l.secret != binary.BigEndian.Uint64(d.Payload[4:]) {
		e.counted.discard(session.UnknownSession)
		return
	}
	l.record.count.echoInput.Add(1)
	l.step(e, session.EchoReturned{})
}
