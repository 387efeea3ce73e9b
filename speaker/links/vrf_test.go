package links

import (
	"log/slog"
	"net"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/gantry-lb/gantry/speaker/facts"
)

// The port of a VRF answers ARP and NDP itself, because the VRF has no ARP. The port of a bridge or
// bond does not.
func TestPortOfVRFIsUsable(t *testing.T) {
	const master = 7
	port := &netlink.LinkAttrs{
		Name: "eth1", MasterIndex: master, Flags: net.FlagUp | net.FlagBroadcast, RawFlags: unix.IFF_LOWER_UP, HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 1},
	}
	w := NewWatcher(func() ([]string, error) { return DefaultExcludePatterns, nil }, slog.New(slog.DiscardHandler))
	for name, c := range map[string]struct {
		master netlink.Link
		want   facts.SkipReason
	}{
		"a VRF":    {&netlink.Vrf{LinkAttrs: netlink.LinkAttrs{Index: master}}, facts.NotSkipped},
		"a bridge": {&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Index: master}}, facts.SkippedMemberOfMaster},
		"a bond":   {&netlink.Bond{LinkAttrs: netlink.LinkAttrs{Index: master}}, facts.SkippedMemberOfMaster},
	} {
		if got := w.skipReason(port, indexesOfVRFs([]netlink.Link{c.master})); got != c.want {
			t.Errorf("the port of %s: %v, want %v", name, got, c.want)
		}
	}
}
