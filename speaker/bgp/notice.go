package bgp

import (
	"fmt"

	"github.com/gantry-lb/gantry/speaker/bgp/frame"
)

// notice is an error that a NOTIFICATION of the router told.
type notice struct {
	what  string // happened
	fault *frame.Fault
	self  frame.Open // our OPEN, which the router may object to
}

// Error says what happened, in the router's words, and what to do.
func (n notice) Error() string {
	out := n.what + ": " + n.fault.Words()
	if a := n.advice(); a != "" {
		out += ": " + a
	}
	return out
}

// advice says what to do about the faults that a configuration causes.
func (n notice) advice() string {
	switch k := [2]uint8{n.fault.Code, n.fault.Subcode}; k {
	case [2]uint8{frame.CodeOpen, 2}:
		return fmt.Sprintf("it knows this node by another AS number than %d: correct it there, or myASN here", n.self.ASN)
	case [2]uint8{frame.CodeOpen, 3}:
		return fmt.Sprintf("it does not take %s for this node's router ID, which another of its neighbours, or it itself, may have: write another routerID", n.self.ID)
	case [2]uint8{frame.CodeOpen, 6}:
		return fmt.Sprintf("it does not take a hold time of %d s: write another holdTime", n.self.Hold)
	case [2]uint8{frame.CodeOpen, 7}:
		return fmt.Sprintf("activate the address families of this peer, %v, for this neighbour there", n.self.Families)
	case [2]uint8{frame.CodeCease, frame.CeaseMaxPrefix}:
		return "raise the limit for this neighbour there, or announce fewer prefixes by a shorter aggregationLength"
	case [2]uint8{frame.CodeCease, frame.CeaseCollision}:
		return "it has another session with this node: of a second BGPPeer with its address, or one that it has not noticed the end of yet"
	case [2]uint8{frame.CodeCease, frame.CeaseDeconfigured}, [2]uint8{frame.CodeCease, frame.CeaseRejected}:
		return "is this node configured as a neighbour there, and not refused by a limit or a former fault?"
	}
	return ""
}
