package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/test/cluster"
	"github.com/gantry-lb/gantry/test/lab"
	"github.com/gantry-lb/gantry/test/lab/router"
)

// routeAttributesManifest is a dual-stack Service with three endpoints on node1 and one on node2,
// and two advertisements for its pool: one with all attributes that a route can have, and one for
// aggregated prefixes.
const routeAttributesManifest = `apiVersion: metallb.io/v1beta2
kind: BGPPeer
metadata: {name: tor, namespace: metallb-system}
spec: {myASN: 64512, peerASN: 65000, peerAddress: 192.168.0.1, dualStackAddressFamily: true}
---
apiVersion: metallb.io/v1beta2
kind: BGPPeer
metadata: {name: spine, namespace: metallb-system}
spec: {myASN: 64512, peerASN: 65000, peerAddress: 192.168.0.2, dualStackAddressFamily: true}
---
apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata: {name: routed, namespace: metallb-system}
spec: {addresses: [198.51.100.0/24, "2001:db8:99::/64"]}
---
apiVersion: metallb.io/v1beta1
kind: Community
metadata: {name: ours, namespace: metallb-system}
spec:
  communities: [{name: far, value: "64512:7"}, {name: big, value: "large:64512:1:4294967295"}]
---
apiVersion: metallb.io/v1beta1
kind: BGPAdvertisement
metadata: {name: each, namespace: metallb-system}
spec:
  ipAddressPools: [routed]
  communities: [far, big, "65535:65281"]
  gantry: {med: 42, asPathPrepend: 2, extendedCommunities: ["rt:64512:100"], linkBandwidthPerEndpoint: 1000}
---
apiVersion: metallb.io/v1beta1
kind: BGPAdvertisement
metadata: {name: wide, namespace: metallb-system}
spec: {ipAddressPools: [routed], aggregationLength: 26, aggregationLengthV6: 80, communities: ["64512:8"]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: LoadBalancer
  externalTrafficPolicy: Local
  ipFamilyPolicy: RequireDualStack
  selector: {part: web}
  ports: [{port: 7000, protocol: UDP}]
`

// routeAttributesEndpointPodManifest is an endpoint of the Service.
const routeAttributesEndpointPodManifest = `---
apiVersion: v1
kind: Pod
metadata: {name: %s, labels: {part: web}}
spec:
  nodeName: %s
  terminationGracePeriodSeconds: 1
  containers: [{name: echo, image: echo, ports: [{containerPort: 7000, protocol: UDP}]}]
`

const routeAttributesBIRDConfig = `router id 192.168.0.2;
protocol device {}
protocol kernel { merge paths on; ipv4 { export all; import none; }; }
protocol kernel { merge paths on; ipv6 { export all; import none; }; }
template bgp node { local as 65000; ipv4 { import all; export none; }; ipv6 { import all; export none; }; }
protocol bgp node1 from node { neighbor 192.168.0.11 as 64512; }
protocol bgp node2 from node { neighbor 192.168.0.12 as 64512; }
`

// routeAttributesTestCluster is a cluster with two routers that have the routes of one dual-stack
// Service.
type routeAttributesTestCluster struct {
	*cluster.Cluster
	tor, spine *lab.Router
	addresses  []netip.Addr
	// expectedHostRouteAttributes are the attributes of the Service's host routes.
	expectedHostRouteAttributes routeAttributes
}

func startRouteAttributesTestCluster(t *testing.T) (context.Context, *routeAttributesTestCluster) {
	t.Helper()
	for _, k := range []router.Kind{router.FRR, router.BIRD} {
		if m := router.DescribeMissingPrerequisite(k); m != "" {
			t.Skip(m)
		}
	}
	ctx, s := startLabWithGantry(t, lab.Options{Nodes: 2, Routers: 2, Families: lab.DualStack})
	tor, spine := s.RouterOnHost("router", router.FRR), s.RouterOnHost("router2", router.BIRD)
	failOnError(t, tor.StartWithConfig(ctx, readFRRConfigFromDocs(t)))
	failOnError(t, spine.StartWithConfig(ctx, routeAttributesBIRDConfig))
	failOnError(t, s.ApplyManifests(ctx, routeAttributesManifest+fmt.Sprintf(routeAttributesEndpointPodManifest, "a", "node1")+fmt.Sprintf(routeAttributesEndpointPodManifest, "b", "node1")+fmt.Sprintf(routeAttributesEndpointPodManifest, "d", "node1")+fmt.Sprintf(routeAttributesEndpointPodManifest, "c", "node2")))
	first, err := s.AwaitFirstAddressOfService(ctx, "default", "web")
	failOnError(t, err)
	svc, err := s.GetService(ctx, "default", "web")
	failOnError(t, err)
	addresses := []netip.Addr{first, netip.MustParseAddr(svc.Status.LoadBalancer.Ingress[1].IP)}
	t.Cleanup(func() {
		if t.Failed() {
			out, err := tor.RunShowCommand(context.WithoutCancel(ctx), "show bgp ipv4 unicast "+first.String())
			t.Logf("FRR shows (%v):\n%s", err, out)
			out, err = spine.RunShowCommand(context.WithoutCancel(ctx), "show route all")
			t.Logf("BIRD shows (%v):\n%s", err, out)
		}
	})
	carried := routeAttributes{
		asPath: "64512 64512 64512", med: 42, communities: "64512:7 no-export", largeCommunities: "64512:1:4294967295",
		linkBandwidthByNodeAddress: map[string]string{"192.168.0.11": "LB:64512:375000000 (3.000 Gbps)", "192.168.0.12": "LB:64512:125000000 (1.000 Gbps)"},
	}
	return ctx, &routeAttributesTestCluster{Cluster: s, tor: tor, spine: spine, addresses: addresses, expectedHostRouteAttributes: carried}
}

// TestRouteAttributesReachRouters checks every attribute of the user's objects in FRR and BIRD, in
// both families.
func TestRouteAttributesReachRouters(t *testing.T) {
	t.Parallel()
	ctx, h := startRouteAttributesTestCluster(t)
	t.Run("ipv4", func(t *testing.T) { h.testRouteAttributesOfFamily(ctx, t, h.addresses[0], 26) })
	t.Run("ipv6", func(t *testing.T) { h.testRouteAttributesOfFamily(ctx, t, h.addresses[1], 80) })
	t.Run("edits reset no session", func(t *testing.T) { h.testAttributeEditsResetNoSession(ctx, t) })
	t.Run("conflicting advertisements announce nothing, and the Service reports it", func(t *testing.T) { h.testConflictingAdvertisementsAnnounceNothing(ctx, t) })
}

// testRouteAttributesOfFamily checks the host route of an address, and the route of the aggregated
// prefix.
func (h *routeAttributesTestCluster) testRouteAttributesOfFamily(ctx context.Context, t *testing.T, a netip.Addr, aggregationLength int) {
	host, network := netip.PrefixFrom(a, a.BitLen()), netip.PrefixFrom(a, aggregationLength).Masked()
	awaitRouteAttributes(ctx, t, h.tor, host, h.expectedHostRouteAttributes)
	awaitRouteAttributes(ctx, t, h.tor, network, routeAttributes{asPath: "64512", communities: "64512:8"})
	awaitTrafficRatioOfNextHops(ctx, t, h.Cluster, host, 3)
	failOnError(t, cluster.AwaitNoError(ctx, "the same attributes in BIRD", func(ctx context.Context) error {
		out, err := h.spine.RunShowCommand(ctx, "show route all "+host.String())
		if err != nil {
			return err
		}
		for _, part := range []string{
			"BGP.as_path: 64512 64512 64512", "BGP.med: 42", "BGP.community: (64512,7) (65535,65281)", "BGP.large_community: (64512, 1, 4294967295)",
			// 3.75e8 and 1.25e8 as IEEE floats
			"(rt, 64512, 100)", "(unknown 0x4004, 64512, 1303564382)", "(unknown 0x4004, 64512, 1290693416)",
		} {
			if !strings.Contains(string(out), part) {
				return fmt.Errorf("%s is not in\n%s", part, out)
			}
		}
		if out, err = h.spine.RunShowCommand(ctx, "show route all "+network.String()); err == nil && !strings.Contains(string(out), "BGP.community: (64512,8)") {
			err = fmt.Errorf("the route of the aggregated prefix is\n%s", out)
		}
		return err
	}))
}

func (h *routeAttributesTestCluster) testAttributeEditsResetNoSession(ctx context.Context, t *testing.T) {
	before := describeBGPSessionEstablishments(ctx, t, h.tor)
	_, err := h.RunKubectl(ctx, "", "delete", "pod", "b", "d")
	failOnError(t, err)
	h.expectedHostRouteAttributes.linkBandwidthByNodeAddress["192.168.0.11"] = h.expectedHostRouteAttributes.linkBandwidthByNodeAddress["192.168.0.12"]
	awaitRouteAttributes(ctx, t, h.tor, netip.PrefixFrom(h.addresses[0], 32), h.expectedHostRouteAttributes)
	awaitTrafficRatioOfNextHops(ctx, t, h.Cluster, netip.PrefixFrom(h.addresses[0], 32), 1)
	_, err = h.RunKubectl(ctx, "", "-n", "metallb-system", "delete", "bgpadvertisement", "wide")
	failOnError(t, err)
	awaitNextHopsInRouterKernel(ctx, t, h.Cluster, netip.PrefixFrom(h.addresses[0], 26).Masked())
	_, err = h.RunKubectl(ctx, "", "-n", "metallb-system", "patch", "bgpadvertisement", "each", "--type=merge", "-p", `{"spec":{"communities":null,"gantry":null}}`)
	failOnError(t, err)
	awaitRouteAttributes(ctx, t, h.tor, netip.PrefixFrom(h.addresses[0], 32), routeAttributes{asPath: "64512"})
	if after := describeBGPSessionEstablishments(ctx, t, h.tor); after != before {
		t.Errorf("the sessions were established %s times before the edits and %s after", before, after)
	}
}

func (h *routeAttributesTestCluster) testConflictingAdvertisementsAnnounceNothing(ctx context.Context, t *testing.T) {
	failOnError(t, h.ApplyManifests(ctx, conflictingLocalPrefAdvertisementManifest))
	awaitNextHopsInRouterKernel(ctx, t, h.Cluster, netip.PrefixFrom(h.addresses[0], 32))
	failOnError(t, awaitAnnouncedCondition(ctx, h.Cluster, "web", "False", names.ReasonConflictingAdvertisements))
	_, err := h.RunKubectl(ctx, "", "-n", "metallb-system", "delete", "bgpadvertisement", "other")
	failOnError(t, err)
	awaitRouteAttributes(ctx, t, h.tor, netip.PrefixFrom(h.addresses[0], 32), routeAttributes{asPath: "64512"})
	failOnError(t, awaitAnnouncedCondition(ctx, h.Cluster, "web", "True", names.ReasonAnnounced))
}

// conflictingLocalPrefAdvertisementManifest is an advertisement for the same prefixes with another
// localPref. It selects Services, so the conflict is visible only on the Service and not on the
// pool.
const conflictingLocalPrefAdvertisementManifest = `apiVersion: metallb.io/v1beta1
kind: BGPAdvertisement
metadata: {name: other, namespace: metallb-system}
spec: {ipAddressPools: [routed], localPref: 200, serviceSelectors: [{}]}
`

// awaitTrafficRatioOfNextHops waits until the router's kernel sends node1 ratio times the traffic
// of node2.
func awaitTrafficRatioOfNextHops(ctx context.Context, t *testing.T, s *cluster.Cluster, p netip.Prefix, ratio int) {
	t.Helper()
	failOnError(t, cluster.AwaitNoError(ctx, fmt.Sprintf("%d times the weight of node2 on node1 for %s", ratio, p), func(context.Context) error {
		r, _, err := s.NamespaceOfHost("router").FindRouteToExactPrefix(p)
		if err == nil && (len(r.Weights) != 2 || r.Weights[0] != ratio*r.Weights[1]) {
			err = fmt.Errorf("%v have the weights %v", r.NextHops, r.Weights)
		}
		return err
	}))
}

// routeAttributes are the attributes of a route.
type routeAttributes struct {
	asPath, communities, largeCommunities string
	med                                   int
	// link bandwidth by the address of the node
	linkBandwidthByNodeAddress map[string]string
}

// awaitRouteAttributes waits until FRR has the prefix from both nodes with these attributes.
func awaitRouteAttributes(ctx context.Context, t *testing.T, tor *lab.Router, p netip.Prefix, want routeAttributes) {
	t.Helper()
	family := "ipv4"
	if p.Addr().Is6() {
		family = "ipv6"
	}
	failOnError(t, cluster.AwaitNoError(ctx, "the route of FRR to "+p.String()+" with the attributes", func(ctx context.Context) error {
		out, err := tor.RunShowCommand(ctx, fmt.Sprintf("show bgp %s unicast %s json", family, p))
		if err != nil {
			return err
		}
		var shown struct {
			Paths []struct {
				Path      struct{ String string } `json:"aspath"`
				Community struct{ String string }
				Large     struct{ String string } `json:"largeCommunity"`
				Extended  struct{ String string } `json:"extendedCommunity"`
				Metric    int
				Peer      struct{ PeerID string }
			}
		}
		if err := json.Unmarshal(out, &shown); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		if len(shown.Paths) != 2 {
			return fmt.Errorf("there are %d paths, not 2", len(shown.Paths))
		}
		for _, got := range shown.Paths {
			if got.Path.String != want.asPath || got.Community.String != want.communities || got.Large.String != want.largeCommunities || got.Metric != want.med {
				return fmt.Errorf("it shows %+v, not %+v", got, want)
			}
			bandwidth := want.linkBandwidthByNodeAddress[got.Peer.PeerID]
			if bandwidth == "" && got.Extended.String != "" || bandwidth != "" && got.Extended.String != "LB:"+strings.TrimPrefix(bandwidth, "LB:")+" RT:64512:100" && got.Extended.String != "RT:64512:100 "+bandwidth {
				return fmt.Errorf("it shows the extended communities %q from %s, not %q", got.Extended.String, got.Peer.PeerID, bandwidth)
			}
		}
		return nil
	}))
}
