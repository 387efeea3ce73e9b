package reconcile

import (
	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/speaker/status"
)

// ConnectionFaults say what is wrong with the packet rules of this node.
type ConnectionFaults struct {
	// Fault is zero if nothing is wrong. It may be nil if both is switched off.
	Fault func() names.Explanation
	// SteersAroundDeadNodes and KeepsConnections are set for what is switched on.
	SteersAroundDeadNodes, KeepsConnections bool
}

// addTo adds the fault to the inputs of a status, for what is switched on.
func (c ConnectionFaults) addTo(in *status.StatusInputs) {
	if !c.SteersAroundDeadNodes && !c.KeepsConnections {
		return
	}
	f := c.Fault()
	if c.SteersAroundDeadNodes {
		in.SteeringFault = &f
	}
	if c.KeepsConnections {
		in.ForwardingFault = &f
	}
}
