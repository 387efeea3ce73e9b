package intent

import (
	"cmp"
	"net/netip"
	"slices"
	"time"
)

// Steering has the ports of Services for which this node itself distributes new connections over
// endpoints, sorted. For all others kube-proxy does.
type Steering []SteeredPort

// SteeredPort is one port of a Service at one of its addresses. Some of its endpoints are on dead
// nodes, and others are alive.
type SteeredPort struct {
	ServiceAddressPort
	// LinkIndexes are the links of this node on which the address is announced, sorted. Only what
	// arrives on them is steered.
	LinkIndexes []int
	// LivingEndpoints get the new connections. DeadEndpoints get none. Both are sorted.
	LivingEndpoints, DeadEndpoints []netip.AddrPort
	// LongDeadEndpoints are those of DeadEndpoints that lose also the flows that they answered, if
	// the protocol is UDP.
	LongDeadEndpoints []netip.AddrPort
	// SourceRanges are the clients that may connect; without any, all may.
	SourceRanges []netip.Prefix
	// HasClientAffinity is set when each client stays at one endpoint. Only clients of a dead
	// endpoint are steered then.
	HasClientAffinity bool
	// Until is when the steering ends at the latest.
	Until time.Time
}

// ServiceAddressPort is a port at an address of a Service.
type ServiceAddressPort struct {
	Address  netip.Addr
	Protocol TransportProtocol
	Port     uint16
}

// TransportProtocol is the number of a transport protocol in the header of a packet.
type TransportProtocol uint8

// The transport protocols that a port of a Service may have.
const (
	TCP  TransportProtocol = 6
	UDP  TransportProtocol = 17
	SCTP TransportProtocol = 132
)

// Compare orders by address, protocol and port.
func (p ServiceAddressPort) Compare(o ServiceAddressPort) int {
	return cmp.Or(p.Address.Compare(o.Address), cmp.Compare(p.Protocol, o.Protocol), cmp.Compare(p.Port, o.Port))
}

// IsSameAs reports whether both steer the same connections in the same way.
func (s Steering) IsSameAs(o Steering) bool { return slices.EqualFunc(s, o, SteeredPort.isSameAs) }

// isSameAs reports whether two ports are steered in the same way.
func (p SteeredPort) isSameAs(o SteeredPort) bool {
	return p.ServiceAddressPort == o.ServiceAddressPort && p.HasClientAffinity == o.HasClientAffinity && p.Until.Equal(o.Until) &&
		slices.Equal(p.LinkIndexes, o.LinkIndexes) && slices.Equal(p.LivingEndpoints, o.LivingEndpoints) &&
		slices.Equal(p.DeadEndpoints, o.DeadEndpoints) && slices.Equal(p.LongDeadEndpoints, o.LongDeadEndpoints) && slices.Equal(p.SourceRanges, o.SourceRanges)
}
