package bgp

import (
	"fmt"

	"github.com/gantry-lb/gantry/speaker/bgp/message"
)

// receivedNotification is the error of a session that the router ended by a NOTIFICATION.
type receivedNotification struct {
	routerActionText string // such as "the router ended the session"
	notification     *message.Notification
	sentOpen         message.OpenMessage // which the router may have rejected
}

// Error says what happened, in the router's words, and what to do.
func (n receivedNotification) Error() string {
	out := n.routerActionText + ": " + n.notification.Description()
	if a := n.configurationAdvice(); a != "" {
		out += ": " + a
	}
	return out
}

// configurationAdvice says what to do if a configuration is the cause.
func (n receivedNotification) configurationAdvice() string {
	switch k := [2]uint8{n.notification.Code, n.notification.Subcode}; k {
	case [2]uint8{message.CodeOpenMessageError, 2}:
		advice := fmt.Sprintf("it expects another AS number than %d from this node: correct it there, or myASN here", n.sentOpen.ASN)
		if n.sentOpen.ASN > 0xffff {
			advice += fmt.Sprintf("; a router that supports only AS numbers of two octets expects %d", message.TwoOctetASN(n.sentOpen.ASN))
		}
		return advice
	case [2]uint8{message.CodeOpenMessageError, 3}:
		return fmt.Sprintf("it does not accept %s as this node's router ID, which another neighbour or the router itself may use: set another routerID", n.sentOpen.RouterID)
	case [2]uint8{message.CodeOpenMessageError, 6}:
		return fmt.Sprintf("it does not accept a hold time of %d s: set another holdTime", n.sentOpen.HoldSeconds)
	case [2]uint8{message.CodeOpenMessageError, message.OpenUnsupportedCapability}:
		if required := n.requiredCapabilities(); len(required) > 0 {
			return "it requires a capability that this speaker did not offer: " + joinCapabilityNames(required)
		}
		return fmt.Sprintf("activate the address families of this peer, %v, for this neighbour there", n.sentOpen.Families)
	case [2]uint8{message.CodeCease, message.CeaseMaxPrefixes}:
		return "raise the limit for this neighbour there, or announce fewer prefixes by a shorter aggregationLength"
	case [2]uint8{message.CodeCease, message.CeaseCollision}:
		return "it has another session with this node: from a second BGPPeer with its address, or an old one whose end it has not noticed yet"
	case [2]uint8{message.CodeCease, message.CeaseBFDDown}:
		return "it watches the path by BFD: set bfdProfile here too, let UDP 3784 and 4784 pass, or turn BFD off for this neighbour there"
	case [2]uint8{message.CodeCease, message.CeaseDeconfigured}, [2]uint8{message.CodeCease, message.CeaseRejected}:
		return "is this node configured as a neighbour there, and not blocked by a limit or after an earlier error?"
	}
	return ""
}
