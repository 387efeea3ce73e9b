package ethernet_test

import (
	"net"
	"testing"

	"github.com/gantry-lb/gantry/internal/ethernet"
)

func TestVirtualRouterAddressesAreRecognized(t *testing.T) {
	for text, want := range map[string]bool{
		"00:00:5e:00:01:0a":       true,  // VRRP for IPv4
		"00:00:5e:00:02:ff":       true,  // VRRP for IPv6
		"00:00:5e:00:03:01":       false, // of IANA, for other uses
		"02:00:5e:00:01:0a":       false,
		"00:00:5e:90:01:0a":       false,
		"00:00:5e:00:01:0a:00:00": false, // EUI-64
	} {
		mac, err := net.ParseMAC(text)
		if err != nil {
			t.Fatal(err)
		}
		if got := ethernet.IsVirtualRouterAddress(mac); got != want {
			t.Errorf("%s belongs to a virtual router: %v, want %v", text, got, want)
		}
	}
	if ethernet.IsVirtualRouterAddress(nil) {
		t.Error("no address belongs to a virtual router")
	}
}
