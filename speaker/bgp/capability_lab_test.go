package bgp_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/gantry-lb/gantry/speaker/bgp"
	"github.com/gantry-lb/gantry/speaker/intent"
	"github.com/gantry-lb/gantry/test/lab/router"
)

// TestFRRRefusingUnknownCapabilityGetsRoutes peers with an FRR that ends a session for a
// capability which it does not know, here the one for link-local next hops.
func TestFRRRefusingUnknownCapabilityGetsRoutes(t *testing.T) {
	t.Parallel()
	b := newLabNetwork(t, router.RoutedLANOptions{Nodes: 1})
	frr := startRouter(t, router.Config{Kind: router.FRR, NetNS: b.NamespaceOfHost("router"), ConfigText: buildFRRConfig(
		"neighbor fd00:a8::b remote-as 64512\n neighbor fd00:a8::b strict-capability-match",
		" address-family ipv6 unicast\n  neighbor fd00:a8::b activate\n exit-address-family")})
	s := startSpeaker(t, b.NamespaceOfHost("node1"))
	p := exampleExternalPeer()
	p.Address, p.CarriesIPv6Routes = netip.MustParseAddr("fd00:a8::1"), true
	s.SetDesiredState(bgp.DesiredState{Peers: []intent.Peer{p}, Routes: exampleRoutes(servicePrefix, servicePrefixIPv6)})
	for _, prefix := range []string{servicePrefix, servicePrefixIPv6} {
		waitForFRRRoute(t, frr, prefix)
	}
	const says = "without these capabilities for an hour, or until the BGPPeer changes: link-local next hop (77)"
	if st := s.peerStatus("tor"); !strings.Contains(st.LastError.Text, says) {
		t.Errorf("the status says %q, want %q", st.LastError.Text, says)
	}
}
