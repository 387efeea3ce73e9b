package ipfamily_test

import (
	"net/netip"
	"testing"

	"github.com/gantry-lb/gantry/internal/ipfamily"
)

func TestFamilyOf(t *testing.T) {
	for address, want := range map[string]string{
		"192.0.2.1": "IPv4", "::ffff:192.0.2.1": "IPv4", "2001:db8::1": "IPv6", "fe80::1%eth0": "IPv6", "::": "IPv6",
	} {
		if got := ipfamily.FamilyOf(netip.MustParseAddr(address)); got.String() != want {
			t.Errorf("the family of %s is %s, want %s", address, got, want)
		}
	}
}
