package links

import (
	"net"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"github.com/gantry-lb/gantry/speaker/facts"
)

// The ports of a bond, and no others, are known to belong to it.
func TestPortsOfBondsAreFound(t *testing.T) {
	attributes := func(index, master int, last byte) netlink.LinkAttrs {
		a := netlink.NewLinkAttrs()
		a.Index, a.MasterIndex, a.HardwareAddr = index, master, net.HardwareAddr{2, 0, 0, 0, 0, last}
		return a
	}
	all := []netlink.Link{
		netlink.NewLinkBond(attributes(10, 0, 1)), &netlink.Bridge{LinkAttrs: attributes(11, 0, 9)},
		&netlink.Device{LinkAttrs: attributes(3, 10, 2)}, &netlink.Device{LinkAttrs: attributes(2, 10, 1)},
		&netlink.Device{LinkAttrs: attributes(4, 11, 3)}, &netlink.Device{LinkAttrs: attributes(5, 0, 4)},
	}
	want := map[int][]facts.MAC{10: {{2, 0, 0, 0, 0, 1}, {2, 0, 0, 0, 0, 2}}}
	if d := cmp.Diff(want, portMACsByBond(all)); d != "" {
		t.Errorf("the ports of the bonds (-want +got):\n%s", d)
	}
}
