package bgp

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/gantry-lb/gantry/speaker/bgp/message"
)

// refusedCapabilityRetryDelay is how long OPENs leave out the capabilities that a router refused.
const refusedCapabilityRetryDelay = time.Hour

// capabilityFallback is what OPENs leave out for a router that refuses capabilities (RFC 5492
// section 3). The zero value leaves out nothing.
type capabilityFallback struct {
	omitted []message.CapabilityCode // sorted
	until   time.Time
}

// omittedAt returns what an OPEN leaves out now.
func (f *capabilityFallback) omittedAt(now time.Time) []message.CapabilityCode {
	if !now.Before(f.until) {
		return nil
	}
	return f.omitted
}

// afterRefusal returns what the next OPEN leaves out after a router's NOTIFICATION. If nothing else
// can be left out, the next OPEN has all capabilities again.
func (f *capabilityFallback) afterRefusal(n *receivedNotification, now time.Time) capabilityFallback {
	refused := n.refusedCapabilities()
	if len(refused) == 0 {
		return capabilityFallback{}
	}
	omitted := slices.Concat(f.omittedAt(now), refused)
	slices.Sort(omitted)
	return capabilityFallback{omitted: slices.Compact(omitted), until: now.Add(refusedCapabilityRetryDelay)}
}

// refusedCapabilities returns the optional capabilities of our OPEN that the router refused.
func (n *receivedNotification) refusedCapabilities() []message.CapabilityCode {
	if n.notification.Code != message.CodeOpenMessageError {
		return nil
	}
	optional := n.sentOpen.OptionalCapabilities()
	switch n.notification.Subcode {
	case 0, message.OpenUnsupportedParameter: // it knows no capabilities
		return optional
	case message.OpenUnsupportedCapability:
		named := message.DecodeCapabilityCodes(n.notification.Data)
		if len(named) == 0 { // it does not say which
			return optional
		}
		return slices.DeleteFunc(optional, func(c message.CapabilityCode) bool { return !slices.Contains(named, c) })
	}
	return nil
}

// requiredCapabilities returns the capabilities that the router names and that our OPEN lacked.
func (n *receivedNotification) requiredCapabilities() []message.CapabilityCode {
	if n.notification.Code != message.CodeOpenMessageError || n.notification.Subcode != message.OpenUnsupportedCapability {
		return nil
	}
	sent := n.sentOpen.Capabilities()
	return slices.DeleteFunc(message.DecodeCapabilityCodes(n.notification.Data), func(c message.CapabilityCode) bool { return slices.Contains(sent, c) })
}

// joinCapabilityNames names capabilities.
func joinCapabilityNames(all []message.CapabilityCode) string {
	var texts []string
	for _, c := range all {
		texts = append(texts, c.String())
	}
	return strings.Join(texts, ", ")
}

// describeOmitted says what is left out; empty if nothing is.
func (f *capabilityFallback) describeOmitted(now time.Time) string {
	omitted := f.omittedAt(now)
	if len(omitted) == 0 {
		return ""
	}
	return fmt.Sprintf("the speaker connects again without these capabilities for an hour, or until the BGPPeer changes: %s", joinCapabilityNames(omitted))
}
