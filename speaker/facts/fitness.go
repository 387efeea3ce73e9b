package facts

import (
	"net/netip"
	"slices"
)

// Fitness says why other nodes should serve addresses rather than this one. The zero value says
// that the node is fit. If no node is fit for an address, unfit nodes serve it.
type Fitness struct {
	// NodeFault is a Reason that concerns all addresses; empty if there is none.
	NodeFault string
	// SilentSubnets are the subnets of links on which the node hears none of its neighbours,
	// sorted.
	SilentSubnets []netip.Prefix
	// IsDoubtful is set while the node may be about to become unfit. It still serves, but is no
	// reason for another node to stop: otherwise a fault of all nodes would move addresses.
	IsDoubtful bool
}

// IsFit reports whether nothing speaks against the node, unless it is doubtful.
func (f Fitness) IsFit() bool { return f.NodeFault == "" && len(f.SilentSubnets) == 0 }

// Equal reports whether both say the same.
func (f Fitness) Equal(o Fitness) bool {
	return f.NodeFault == o.NodeFault && f.IsDoubtful == o.IsDoubtful && slices.Equal(f.SilentSubnets, o.SilentSubnets)
}

// IsAddressOnSilentSubnet reports whether the address is in one of the SilentSubnets.
func (f Fitness) IsAddressOnSilentSubnet(a netip.Addr) bool {
	return slices.ContainsFunc(f.SilentSubnets, func(p netip.Prefix) bool { return p.Contains(a) })
}
