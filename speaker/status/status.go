// Package status decides what a speaker writes about itself. BuildHeldServices turns the Plan and
// the held addresses into the ServiceL2Status entries of this node. DiffServiceL2Statuses returns
// those to write and to remove. BuildSpeakerStatus describes the node. The package is pure; package
// reconcile writes the objects.
package status

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/intent"
	"github.com/gantry-lb/gantry/speaker/plan"
)

// ServiceL2StatusKey means that a node announces a Service by layer 2.
type ServiceL2StatusKey struct {
	Service view.ObjectKey
	Node    string
}

// ObjectName returns the name of the entry's object. It depends only on the node and the Service.
func (e ServiceL2StatusKey) ObjectName() string {
	return joinObjectName(e.Service.Namespace, e.Service.Name, e.Node)
}

// Compare orders entries by Service, then node.
func (e ServiceL2StatusKey) Compare(o ServiceL2StatusKey) int {
	if c := e.Service.Compare(o.Service); c != 0 {
		return c
	}
	return strings.Compare(e.Node, o.Node)
}

// HeldService is a ServiceL2StatusKey with its content.
type HeldService struct {
	ServiceL2StatusKey
	// Addresses are the addresses of the Service that the node holds, sorted.
	Addresses []netip.Addr
	// HoldsAllAddresses means that these are all addresses of the Service.
	HoldsAllAddresses bool
	// InterfaceNamesOrEmptyForAll are the names of the links on which the Service is announced,
	// sorted. It is empty if these are all links of the node.
	InterfaceNamesOrEmptyForAll []string
	Conflicts                   []AddressConflict
	// ReservedAddresses are those of the Addresses that a subnet of the node reserves.
	ReservedAddresses []ReservedAddress
}

// ReservedAddress is the network or the broadcast address of a subnet of the node.
type ReservedAddress struct {
	Address netip.Addr
	Subnet  netip.Prefix
}

// StatusInputs is what a speaker's status is based on.
type StatusInputs struct {
	// Self is the name of this node, Version that of the speaker.
	Self, Version string
	Plan          plan.Plan
	// HeldBindings are the addresses for which this node answers.
	HeldBindings []intent.Binding
	// UsableLinks are the usable links of the node, SkippedLinks the others. DownLinks are those of
	// the others that only are down or without carrier.
	UsableLinks, DownLinks facts.LinkSet
	SkippedLinks           []facts.SkippedLink
	// SendFaultByLinkIndex has what cannot be sent on a link and why, by the index of the link.
	SendFaultByLinkIndex map[int]string
	GossipFaults         GossipFaults
	// ServicesAwaitingProxy are the Services with endpoints here that kube-proxy does not know yet,
	// sorted.
	ServicesAwaitingProxy []view.ObjectKey
	// SteeringFault is why new connections would not be steered around a dead node; nil if this is
	// switched off.
	SteeringFault *names.Explanation
	// ForwardingFault is why open connections would not be kept; nil if this is switched off.
	ForwardingFault *names.Explanation
	// RawSocketDenialText is why raw sockets are not permitted; empty if they are.
	RawSocketDenialText string
	// HeldAddressConflicts are the claims of foreign hosts to held addresses. AcquireConflicts are
	// those to addresses that this node wants to take.
	HeldAddressConflicts, AcquireConflicts *Conflicts
}

// BuildHeldServices returns what this node announces: one entry for each Service of
// which it holds an address, sorted.
func BuildHeldServices(in StatusInputs) []HeldService {
	held := make(map[netip.Addr][]int, len(in.HeldBindings))
	for _, c := range in.HeldBindings {
		held[c.Address] = c.LinkIndexes
	}
	var out []HeldService
	for v := range in.Plan.Layer2Verdicts.All() {
		a := HeldService{ServiceL2StatusKey: ServiceL2StatusKey{Service: v.Service, Node: in.Self}, HoldsAllAddresses: true}
		var links []int
		for _, ip := range v.Addresses {
			on, ok := held[ip]
			if !ok {
				a.HoldsAllAddresses = false
				continue
			}
			a.Addresses = append(a.Addresses, ip)
			a.Conflicts = append(a.Conflicts, in.HeldAddressConflicts.OfAddress(ip)...)
			a.ReservedAddresses = appendIfReserved(a.ReservedAddresses, ip, in.UsableLinks, on)
			links = append(links, on...)
		}
		if len(a.Addresses) == 0 {
			continue
		}
		slices.SortFunc(a.Addresses, netip.Addr.Compare)
		slices.SortFunc(a.ReservedAddresses, func(x, y ReservedAddress) int { return x.Address.Compare(y.Address) })
		a.InterfaceNamesOrEmptyForAll = interfaceNamesUnlessAllLinks(in.UsableLinks, links)
		out = append(out, a)
	}
	slices.SortFunc(out, func(x, y HeldService) int { return x.Compare(y.ServiceL2StatusKey) })
	return out
}

// appendIfReserved appends the address if a subnet of one of the links reserves it.
func appendIfReserved(to []ReservedAddress, a netip.Addr, all facts.LinkSet, links []int) []ReservedAddress {
	for _, index := range links {
		if l, ok := all.FindByIndex(index); ok {
			if subnet, reserved := l.SubnetReservingAddress(a); reserved {
				return append(to, ReservedAddress{a, subnet})
			}
		}
	}
	return to
}

// interfaceNamesUnlessAllLinks returns the names of the links; none if these are all links.
func interfaceNamesUnlessAllLinks(all facts.LinkSet, links []int) []string {
	var out []string
	for _, l := range all {
		if slices.Contains(links, l.Index) {
			out = append(out, l.Name)
		}
	}
	if len(out) == len(all) {
		return nil
	}
	slices.Sort(out)
	return out
}

// ToServiceL2Status returns the status of the entry's object.
func (a HeldService) ToServiceL2Status() v1beta1.ServiceL2StatusStatus {
	s := v1beta1.ServiceL2StatusStatus{
		Node: a.Node, ServiceName: a.Service.Name, ServiceNamespace: a.Service.Namespace, Gantry: &v1beta1.ServiceL2StatusGantry{},
	}
	for _, name := range a.InterfaceNamesOrEmptyForAll {
		s.Interfaces = append(s.Interfaces, v1beta1.InterfaceInfo{Name: name})
	}
	for _, ip := range a.Addresses {
		s.Gantry.Addresses = append(s.Gantry.Addresses, ip.String())
	}
	for _, c := range a.Conflicts {
		s.Gantry.Conflicts = append(s.Gantry.Conflicts, c.toAPI())
	}
	for _, r := range a.ReservedAddresses {
		s.Gantry.ReservedAddresses = append(s.Gantry.ReservedAddresses, v1beta1.NetworkOrBroadcastAddress{Address: r.Address.String(), Subnet: r.Subnet.String()})
	}
	return s
}

// ExistingServiceL2Status is an existing object.
type ExistingServiceL2Status struct {
	ServiceL2StatusKey
	// ExistingObjectName is the name of the object.
	ExistingObjectName string
	Status             v1beta1.ServiceL2StatusStatus
}

// DiffServiceL2Statuses compares the wanted entries with the existing ones. It returns the entries
// to write and the names of the objects to remove. An object of this node is removed if it is no
// longer wanted or has another name. An object of another node is removed if this node holds every
// address that it lists: the holder cleans up after a node that died.
func DiffServiceL2Statuses(self string, want []HeldService, have []ExistingServiceL2Status) (write []HeldService, remove []string) {
	wanted := make(map[view.ObjectKey]HeldService, len(want))
	for _, a := range want {
		wanted[a.Service] = a
	}
	same := make(map[view.ObjectKey]bool, len(have))
	for _, w := range have {
		a, ok := wanted[w.Service]
		switch {
		case w.Node == self && ok && w.ExistingObjectName == a.ObjectName():
			same[w.Service] = equalServiceL2Status(w.Status, a.ToServiceL2Status())
		case w.Node == self, ok && (a.HoldsAllAddresses || a.holdsAllAddressesOfStatus(&w.Status)):
			remove = append(remove, w.ExistingObjectName)
		}
	}
	for _, a := range want {
		if !same[a.Service] {
			write = append(write, a)
		}
	}
	return write, remove
}

// holdsAllAddressesOfStatus reports whether the node holds every address that an object lists. An
// object of another program lists none, nor does one whose status is not written yet.
func (a HeldService) holdsAllAddressesOfStatus(s *v1beta1.ServiceL2StatusStatus) bool {
	if s.Gantry == nil || len(s.Gantry.Addresses) == 0 {
		return false
	}
	return !slices.ContainsFunc(s.Gantry.Addresses, func(text string) bool {
		ip, err := netip.ParseAddr(text)
		return err != nil || !slices.Contains(a.Addresses, ip)
	})
}

// equalServiceL2Status compares what users see. Times are compared to the second, the precision of
// the API.
func equalServiceL2Status(x, y v1beta1.ServiceL2StatusStatus) bool {
	if x.Node != y.Node || x.ServiceName != y.ServiceName || x.ServiceNamespace != y.ServiceNamespace ||
		!slices.Equal(x.Interfaces, y.Interfaces) || (x.Gantry == nil) != (y.Gantry == nil) {
		return false
	}
	return x.Gantry == nil || (slices.Equal(x.Gantry.Addresses, y.Gantry.Addresses) && slices.Equal(x.Gantry.ReservedAddresses, y.Gantry.ReservedAddresses) &&
		slices.EqualFunc(x.Gantry.Conflicts, y.Gantry.Conflicts, func(a, b v1beta1.AddressConflict) bool {
			return a.Address == b.Address && a.MAC == b.MAC && a.Since.Unix() == b.Since.Unix()
		}))
}
