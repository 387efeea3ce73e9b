package intent

import (
	"cmp"
	"net/netip"
	"slices"
)

// Forwarding says what this node does with packets of TCP connections that it does not know: they
// may belong to connections that a former holder of the address knows.
type Forwarding struct {
	// Addresses are sorted by address and link. What is not among them stays as it is.
	Addresses []ForwardedAddress
	// MemberMACs are the Ethernet addresses of the nodes with speakers, sorted.
	MemberMACs [][6]byte
}

// ForwardedAddress is an address of a Service on one link of this node.
type ForwardedAddress struct {
	Address   netip.Addr
	LinkIndex int
	// NextHop gets the packets. Without one, kube-proxy does.
	NextHop netip.Addr
	// NextHopOfMembers gets those of the packets that another node has forwarded. Without one they
	// are dropped, or at the end of the chain kube-proxy gets them: its Pods reset the connections.
	NextHopOfMembers netip.Addr
	// IsEndOfChain is set if nobody has the connections of packets that another node has forwarded
	// and that this node does not know.
	IsEndOfChain bool
	// IsStandby is set while another node holds the address, so that NextHop is ready when this
	// node takes it. On the holder, NextHop lasts only as long as packets use it.
	IsStandby bool
}

// Compare orders by address, then by link.
func (f ForwardedAddress) Compare(o ForwardedAddress) int {
	return cmp.Or(f.Address.Compare(o.Address), cmp.Compare(f.LinkIndex, o.LinkIndex))
}

// IsSameAs reports whether both forward the same packets in the same way.
func (f Forwarding) IsSameAs(o Forwarding) bool {
	return slices.Equal(f.Addresses, o.Addresses) && slices.Equal(f.MemberMACs, o.MemberMACs)
}
