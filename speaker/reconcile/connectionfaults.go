package reconcile

import (
	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/speaker/status"
)

// ConnectionFaults say what is wrong with the packet rules of this node.
type ConnectionFaults struct {
	// SteeringFault and ForwardingFault return zero if nothing is wrong. Each may be nil if it is
	// switched off.
	SteeringFault, ForwardingFault func() names.Explanation
	// SteersAroundDeadNodes and KeepsConnections are set for what is switched on.
	SteersAroundDeadNodes, KeepsConnections bool
}

// addTo adds the faults to the inputs of a status, for what is switched on.
func (c ConnectionFaults) addTo(in *status.StatusInputs) {
	if c.SteersAroundDeadNodes {
		f := c.SteeringFault()
		in.SteeringFault = &f
	}
	if c.KeepsConnections {
		f := c.ForwardingFault()
		in.ForwardingFault = &f
	}
}
