package bfd

import (
	"sync/atomic"

	"github.com/gantry-lb/gantry/speaker/bfd/session"
)

// Status is a session as a person sees it.
type Status struct {
	Session
	session.View
	Counters
	// Fault is what keeps the session from running as asked for.
	Fault Fault
}

// Counters count what happened to a session since it was first Set.
type Counters struct {
	// ControlIn counts the packets that were taken, ControlOut those that were sent; EchoIn and EchoOut likewise.
	ControlIn, ControlOut, EchoIn, EchoOut uint64
	// Ups and Downs count how often the session came Up and left it, Events how many of these were told.
	Ups, Downs, Events uint64
}

// record is what others may read of a session while it runs.
type record struct {
	profile atomic.Pointer[Session]
	view    atomic.Pointer[session.View]
	fault   atomic.Pointer[Fault]
	count   struct{ input, output, echoInput, echoOutput, up, down, told atomic.Uint64 }
	changed chan<- struct{} // the Engine's
}

// refused is the record of a session that does not run.
func (e *Engine) refused(s Session, f Fault) *record {
	r := &record{changed: e.changed}
	r.profile.Store(&s)
	r.see(session.View{State: session.Down})
	r.tell(f)
	return r
}

// see publishes a view; nothing is allocated while nothing changes.
func (r *record) see(v session.View) {
	if old := r.view.Load(); old == nil || *old != v {
		r.view.Store(&v)
		poke(r.changed)
	}
}

// tell publishes a fault.
func (r *record) tell(f Fault) {
	if old := r.fault.Load(); old == nil || *old != f {
		r.fault.Store(&f)
		poke(r.changed)
	}
}

func poke(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Status returns every session of the last Set that was taken in, in its order.
func (e *Engine) Status() []Status {
	records := e.records.Load()
	if records == nil {
		return nil
	}
	out := make([]Status, 0, len(*records))
	for _, r := range *records {
		c := &r.count
		out = append(out, Status{
			Session: *r.profile.Load(), View: *r.view.Load(), Fault: *r.fault.Load(),
			Counters: Counters{
				ControlIn: c.input.Load(), ControlOut: c.output.Load(), EchoIn: c.echoInput.Load(), EchoOut: c.echoOutput.Load(),
				Ups: c.up.Load(), Downs: c.down.Load(), Events: c.told.Load(),
			},
		})
	}
	return out
}
