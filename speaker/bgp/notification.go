package bgp

import (
	"fmt"

	"github.com/gantry-lb/gantry/speaker/bgp/message"
)

// receivedNotification is an error that a NOTIFICATION of the router told.
type receivedNotification struct {
	context      string // happened
	notification *message.Notification
	localOpen    message.Open // our OPEN, which the router may object to
}

// Error says what happened, in the router's words, and what to do.
func (n receivedNotification) Error() string {
	out := n.context + ": " + n.notification.Description()
	if a := n.advice(); a != "" {
		out += ": " + a
	}
	return out
}

// advice says what to do about the faults that a configuration causes.
func (n receivedNotification) advice() string {
	switch k := [2]uint8{n.notification.Code, n.notification.Subcode}; k {
	case [2]uint8{message.CodeOpen, 2}:
		return fmt.Sprintf("it knows this node by another AS number than %d: correct it there, or myASN here", n.localOpen.ASN)
	case [2]uint8{message.CodeOpen, 3}:
		return fmt.Sprintf("it does not take %s for this node's router ID, which another of its neighbours, or it itself, may have: write another routerID", n.localOpen.RouterID)
	case [2]uint8{message.CodeOpen, 6}:
		return fmt.Sprintf("it does not take a hold time of %d s: write another holdTime", n.localOpen.HoldSeconds)
	case [2]uint8{message.CodeOpen, 7}:
		return fmt.Sprintf("activate the address families of this peer, %v, for this neighbour there", n.localOpen.Families)
	case [2]uint8{message.CodeCease, message.CeaseMaxPrefixes}:
		return "raise the limit for this neighbour there, or announce fewer prefixes by a shorter aggregationLength"
	case [2]uint8{message.CodeCease, message.CeaseCollision}:
		return "it has another session with this node: of a second BGPPeer with its address, or one that it has not noticed the end of yet"
	case [2]uint8{message.CodeCease, message.CeaseDeconfigured}, [2]uint8{message.CodeCease, message.CeaseRejected}:
		return "is this node configured as a neighbour there, and not refused by a limit or a former fault?"
	}
	return ""
}
