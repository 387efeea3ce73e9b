package bfd

import (
	"sync/atomic"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/latest"
	"github.com/gantry-lb/gantry/speaker/bfd/session"
)

// SessionStatus describes a session.
type SessionStatus struct {
	SessionConfig
	session.MachineStatus
	Counters
	// Fault is why the session does not run as configured.
	Fault names.Explanation
}

// Counters are totals since the session was set.
type Counters struct {
	// ControlReceived and ControlSent count accepted and sent control packets.
	ControlReceived, ControlSent uint64
	// EchoReturned and EchoSent count returned and sent echo packets.
	EchoReturned, EchoSent uint64
	// UpEvents and DownEvents count how often the session came Up and left the state Up.
	UpEvents, DownEvents uint64
	// ReportedEvents counts how many of these were reported as an Event.
	ReportedEvents uint64
}

// publishedSessionState is the part of a session that other goroutines may read.
type publishedSessionState struct {
	desiredSession atomic.Pointer[SessionConfig]
	machineStatus  atomic.Pointer[session.MachineStatus]
	fault          atomic.Pointer[names.Explanation]
	counters       struct {
		controlReceived, controlSent, echoReturned, echoSent atomic.Uint64
		upEvents, downEvents, reportedEvents                 atomic.Uint64
	}
	statusChanged *latest.Wake // the Engine's
}

// newPublishedStateOfInvalidSession returns the record of a session that does not run because it is
// invalid.
func (e *Engine) newPublishedStateOfInvalidSession(s SessionConfig, f names.Explanation) *publishedSessionState {
	r := &publishedSessionState{statusChanged: e.statusChanged}
	r.desiredSession.Store(&s)
	r.publishMachineStatus(session.MachineStatus{State: session.Down})
	r.publishFault(f)
	return r
}

// publishMachineStatus publishes a view. It allocates only when the view changed.
func (r *publishedSessionState) publishMachineStatus(v session.MachineStatus) {
	if old := r.machineStatus.Load(); old == nil || *old != v {
		changed := v // &v would allocate in every call
		r.machineStatus.Store(&changed)
		r.statusChanged.Signal()
	}
}

// publishFault publishes a fault. It allocates only when the fault changed.
func (r *publishedSessionState) publishFault(f names.Explanation) {
	if old := r.fault.Load(); old == nil || *old != f {
		changed := f // as in publishMachineStatus
		r.fault.Store(&changed)
		r.statusChanged.Signal()
	}
}

// SessionStatuses returns every session of the last applied Set, in its order.
func (e *Engine) SessionStatuses() []SessionStatus {
	records := e.publishedSessionStates.Load()
	if records == nil {
		return nil
	}
	out := make([]SessionStatus, 0, len(*records))
	for _, r := range *records {
		c := &r.counters
		out = append(out, SessionStatus{
			SessionConfig: *r.desiredSession.Load(), MachineStatus: *r.machineStatus.Load(), Fault: *r.fault.Load(),
			Counters: Counters{
				ControlReceived: c.controlReceived.Load(),
				ControlSent:     c.controlSent.Load(),
				EchoReturned:    c.echoReturned.Load(),
				EchoSent:        c.echoSent.Load(),
				UpEvents:        c.upEvents.Load(),
				DownEvents:      c.downEvents.Load(),
				ReportedEvents:  c.reportedEvents.Load(),
			},
		})
	}
	return out
}
