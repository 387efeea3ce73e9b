package packetrules

import (
	"encoding/binary"
	"fmt"
	"math"
	"net/netip"
	"time"

	"github.com/google/nftables"

	"github.com/gantry-lb/gantry/speaker/intent"
)

// role is what a set of the table is for.
type role uint8

const (
	// announcedLinks are the links on which steered addresses are announced. elsewhere has the
	// links of them with the addresses that are not announced there: nearly always none.
	announcedLinks role = iota
	elsewhere
	// allowedClients are the ports with source ranges, with the ranges.
	allowedClients
	// steeredPorts are all steered ports.
	steeredPorts
	// affinePorts are the ports with client affinity. deadEndpoints are theirs. retryingClients are
	// the clients that kube-proxy sent to a dead endpoint; the kernel itself adds them.
	affinePorts
	deadEndpoints
	retryingClients
	// The maps give an endpoint for a port and a number below endpointCount: for all clients, for
	// those in allowedClients, or for those in retryingClients.
	mapForAll
	mapForAllowed
	mapForRetrying
)

// nameByRole are the names of the sets, without family and number.
var nameByRole = map[role]string{
	announcedLinks: "announced-links", elsewhere: "elsewhere", allowedClients: "allowed-clients", steeredPorts: "steered-ports", affinePorts: "affine-ports",
	deadEndpoints: "dead-endpoints", retryingClients: "retrying-clients", mapForAll: "to", mapForAllowed: "allowed-to", mapForRetrying: "retrying-to",
}

// setID identifies a set or a map of the table.
type setID struct {
	role   role
	family family
	// endpointCount is how many endpoints each port in a map has; 0 for sets. The kernel chooses a
	// random number below a constant, so that ports with another number need another map.
	endpointCount int
}

// family is an address family, and what the header of its packets looks like.
type family struct {
	nfproto                            byte
	sourceOffset, targetOffset, length uint32
}

// families are the two address families.
var families = [2]family{{2, 12, 16, 4}, {10, 8, 24, 16}}

func headerFamily(a netip.Addr) family {
	if a.Is4() {
		return families[0]
	}
	return families[1]
}

// registers is how many 32-bit registers an address needs.
func (f family) registers() uint32 { return f.length / 4 }

// String returns "4" or "6".
func (f family) String() string {
	if f.length == 4 {
		return "4"
	}
	return "6"
}

func (id setID) isMap() bool { return id.role >= mapForAll }

// String returns the name of the set in the table.
func (id setID) String() string {
	switch {
	case id.role == announcedLinks:
		return nameByRole[id.role]
	case id.isMap():
		return fmt.Sprintf("%s-%d-ipv%s", nameByRole[id.role], id.endpointCount, id.family)
	}
	return nameByRole[id.role] + "-ipv" + id.family.String()
}

// element is an element of a set. value is for maps, keyEnd for ranges.
type element struct {
	key, keyEnd, value string
	until              time.Time
}

func (e element) toSetElement(now time.Time) nftables.SetElement {
	out := nftables.SetElement{Key: []byte(e.key), Timeout: max(e.until.Sub(now).Truncate(time.Millisecond), time.Millisecond)}
	if e.keyEnd != "" {
		out.KeyEnd = []byte(e.keyEnd)
	}
	if e.value != "" {
		out.Val = []byte(e.value)
	}
	return out
}

// elementKey identifies an element in its set.
type elementKey struct{ key, keyEnd string }

// tableContent are the elements of all sets.
type tableContent map[setID]map[elementKey]element

func (c tableContent) addElement(id setID, e element) {
	if c[id] == nil {
		c[id] = map[elementKey]element{}
	}
	k := elementKey{e.key, e.keyEnd}
	if known, ok := c[id][k]; !ok || e.until.After(known.until) {
		c[id][k] = e
	}
}

// linksLeadInterval is how much earlier than everything else the links expire. Without them nothing
// is steered, so that no rule acts on the half of what it needs.
const linksLeadInterval = 100 * time.Millisecond

// newTableContent returns the elements for the steering.
func newTableContent(s intent.Steering) tableContent {
	c := tableContent{}
	for i := range s {
		for _, l := range s[i].LinkIndexes {
			c.addElement(setID{role: announcedLinks}, element{key: encodeNumber(l), until: s[i].Until.Add(-linksLeadInterval)})
		}
	}
	links := c[setID{role: announcedLinks}]
	for i := range s {
		p := &s[i]
		if f := headerFamily(p.Address); len(p.LinkIndexes) < len(links) {
			known := map[string]bool{}
			for _, l := range p.LinkIndexes {
				known[encodeNumber(l)] = true
			}
			for k := range links {
				if !known[k.key] {
					c.addElement(setID{role: elsewhere, family: f}, element{key: k.key + string(p.Address.AsSlice()), until: p.Until})
				}
			}
		}
		c.addPort(p)
	}
	return c
}

// addPort adds the elements of one port.
func (c tableContent) addPort(p *intent.SteeredPort) {
	f, key := headerFamily(p.Address), encodePort(p.Address, p.Protocol, p.Port)
	c.addElement(setID{role: steeredPorts, family: f}, element{key: key, until: p.Until})
	to := setID{role: mapForAll, family: f, endpointCount: len(p.LivingEndpoints)}
	switch {
	case p.HasClientAffinity: // kube-proxy has refused those outside of the source ranges
		to.role = mapForRetrying
		c.addElement(setID{role: affinePorts, family: f}, element{key: key, until: p.Until})
		for _, d := range p.DeadEndpoints {
			c.addElement(setID{role: deadEndpoints, family: f}, element{key: encodePort(d.Addr(), p.Protocol, d.Port()), until: p.Until})
		}
	case len(p.SourceRanges) > 0:
		to.role = mapForAllowed
		for _, r := range p.SourceRanges {
			first, last := r.Masked().Addr().AsSlice(), lastAddressOf(r)
			c.addElement(setID{role: allowedClients, family: f}, element{key: key + string(first), keyEnd: key + string(last), until: p.Until})
		}
	}
	for i, e := range p.LivingEndpoints {
		c.addElement(to, element{key: key + encodeNumber(i), value: string(e.Addr().AsSlice()) + encodeBytes(e.Port()), until: p.Until})
	}
}

// lastAddressOf returns the last address of a prefix.
func lastAddressOf(p netip.Prefix) []byte {
	out := p.Masked().Addr().AsSlice()
	for bit := p.Bits(); bit < 8*len(out); bit++ {
		out[bit/8] |= 0x80 >> (bit % 8)
	}
	return out
}

// encodePort returns an address, protocol and port as they are in registers.
func encodePort(a netip.Addr, protocol intent.TransportProtocol, port uint16) string {
	return string(append(a.AsSlice(), byte(protocol), 0, 0, 0)) + encodeBytes(port)
}

// encodeBytes returns a port in a register: in the order of the network.
func encodeBytes(port uint16) string { return string([]byte{byte(port >> 8), byte(port), 0, 0}) }

// encodeNumber returns a number of the kernel in a register: in the order of this machine.
func encodeNumber(n int) string {
	return string(binary.NativeEndian.AppendUint32(nil, uint32(min(max(n, 0), math.MaxInt32))))
}
