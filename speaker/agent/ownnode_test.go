package agent

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/gantry-lb/gantry/speaker/facts"
)

// A node with many container links publishes the addresses of the links that clients use first, as
// there is no room for all. A bond may answer with the address of each of its ports.
func TestMACsOfUsedLinksAndBondPortsArePublishedFirst(t *testing.T) {
	container, storage := facts.Link{Index: 2, MAC: facts.MAC{2, 1}}, facts.Link{Index: 3, MAC: facts.MAC{0x3c, 1}}
	storage.AddressesWithPrefixLength = []netip.Prefix{netip.MustParsePrefix("10.0.0.5/24")}
	bond := facts.Link{Index: 4, MAC: facts.MAC{0xb4, 1}, PortMACs: []facts.MAC{{0xb4, 1}, {0xb4, 2}}}
	bond.DefaultGateways = []netip.Addr{netip.MustParseAddr("192.168.0.1")}
	got := gatewayLinkMACsFirst(facts.LinkSet{container, storage, bond})
	if d := cmp.Diff([]facts.MAC{{0xb4, 1}, {0xb4, 2}, {0x3c, 1}, {2, 1}}, got); d != "" {
		t.Errorf("the published addresses (-want +got):\n%s", d)
	}
}
