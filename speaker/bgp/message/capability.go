package message

import (
	"fmt"
	"slices"
)

// CapabilityCode is the code of a capability (RFC 5492 section 4).
type CapabilityCode uint8

// The codes of the supported capabilities.
const (
	capMultiprotocol    CapabilityCode = 1
	capRouteRefresh     CapabilityCode = 2
	capExtendedNextHop  CapabilityCode = 5
	capGracefulRestart  CapabilityCode = 64
	capFourOctetASN     CapabilityCode = 65
	capLinkLocalNextHop CapabilityCode = 77
)

var capabilityNames = map[CapabilityCode]string{
	capMultiprotocol: "multiprotocol", capRouteRefresh: "route refresh", capExtendedNextHop: "extended next hop", 6: "extended messages",
	9: "BGP role", capGracefulRestart: "graceful restart", capFourOctetASN: "AS numbers of four octets", 67: "dynamic capability", 69: "ADD-PATH",
	70: "enhanced route refresh", 71: "long-lived graceful restart", 73: "FQDN", 74: "BFD strict mode", capLinkLocalNextHop: "link-local next hop",
}

// String returns the name of the capability with its code.
func (c CapabilityCode) String() string {
	if name, ok := capabilityNames[c]; ok {
		return fmt.Sprintf("%s (%d)", name, uint8(c))
	}
	return fmt.Sprintf("capability %d", uint8(c))
}

// Capabilities returns the capabilities of the OPEN, sorted.
func (o *OpenMessage) Capabilities() []CapabilityCode {
	var out []CapabilityCode
	for c, has := range map[CapabilityCode]bool{
		capMultiprotocol: len(o.Families) > 0, capRouteRefresh: o.SupportsRouteRefresh, capExtendedNextHop: o.SupportsExtendedNextHop,
		capGracefulRestart: o.GracefulRestart != nil, capFourOctetASN: o.SupportsFourOctetASN, capLinkLocalNextHop: o.SupportsLinkLocalNextHop,
	} {
		if has {
			out = append(out, c)
		}
	}
	slices.Sort(out)
	return out
}

// OptionalCapabilities returns the capabilities without which the session can still carry its
// routes, sorted. The address families are needed unless IPv4 is the only one, and AS numbers of
// four octets if ours does not fit into two.
func (o *OpenMessage) OptionalCapabilities() []CapabilityCode {
	return slices.DeleteFunc(o.Capabilities(), func(c CapabilityCode) bool {
		return c == capMultiprotocol && !slices.Equal(o.Families, []AFI{FamilyIPv4}) || c == capFourOctetASN && o.ASN > 0xffff
	})
}

// WithoutCapabilities returns the OPEN without some capabilities.
func (o OpenMessage) WithoutCapabilities(omitted []CapabilityCode) OpenMessage {
	for _, c := range omitted {
		switch c {
		case capMultiprotocol:
			o.Families = nil
		case capRouteRefresh:
			o.SupportsRouteRefresh = false
		case capExtendedNextHop:
			o.SupportsExtendedNextHop = false
		case capGracefulRestart:
			o.GracefulRestart = nil
		case capFourOctetASN:
			o.SupportsFourOctetASN = false
		case capLinkLocalNextHop:
			o.SupportsLinkLocalNextHop = false
		}
	}
	return o
}

// DecodeCapabilityCodes returns the codes of a list of capabilities, such as the data of a
// NOTIFICATION. It stops at a malformed one.
func DecodeCapabilityCodes(b []byte) []CapabilityCode {
	var out []CapabilityCode
	for len(b) >= 2 && len(b) >= 2+int(b[1]) {
		out = append(out, CapabilityCode(b[0]))
		b = b[2+int(b[1]):]
	}
	return out
}
