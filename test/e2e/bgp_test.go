package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/gantry-lb/gantry/test/cluster"
	"github.com/gantry-lb/gantry/test/lab"
	"github.com/gantry-lb/gantry/test/lab/router"
)

// readFRRConfigFromDocs returns the FRR configuration in the docs: a top-of-rack router in AS 65000
// that accepts routes from three nodes in AS 64512.
func readFRRConfigFromDocs(t *testing.T) string {
	t.Helper()
	text, err := router.ReadDocumentedConfig(filepath.Join(lab.RepositoryRoot(), "docs", "bgp.md"), "FRR")
	failOnError(t, err)
	return text
}

// bgpPeerPoolAndAdManifest configures the cluster for the FRR in the docs.
const bgpPeerPoolAndAdManifest = `apiVersion: metallb.io/v1beta2
kind: BGPPeer
metadata: {name: tor, namespace: metallb-system}
spec: {myASN: 64512, peerASN: 65000, peerAddress: 192.168.0.1}
---
apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata: {name: routed, namespace: metallb-system}
spec: {addresses: [198.51.100.0/24]}
---
apiVersion: metallb.io/v1beta1
kind: BGPAdvertisement
metadata: {name: routed, namespace: metallb-system}
spec: {ipAddressPools: [routed]}
`

// defaultGatewayPeerManifest is a BGPPeer without the address of a router: each node uses its
// default gateway.
const defaultGatewayPeerManifest = `apiVersion: metallb.io/v1beta2
kind: BGPPeer
metadata: {name: racks, namespace: metallb-system}
spec:
  myASN: 64512
  enableGracefulRestart: true
  passwordSecret: {name: router}
  gantry: {defaultGateway: IPv4, peerASNLabel: example.com/asn}
`

const peerPasswordManifest = `apiVersion: v1
kind: Secret
metadata: {name: router, namespace: metallb-system}
type: kubernetes.io/basic-auth
stringData: {username: "", password: s3cret}
`

// bgpTestCluster is a cluster whose nodes have sessions with a router, and a Service that they
// announce.
type bgpTestCluster struct {
	*cluster.Cluster
	tor *lab.Router
	// serviceRoute is the route to the Service.
	serviceRoute netip.Prefix
	// nodeAddresses are the next hops when every node announces the route.
	nodeAddresses []string
}

func startBGPTestCluster(t *testing.T) (context.Context, *bgpTestCluster) {
	t.Helper()
	if m := router.DescribeMissingPrerequisite(router.FRR); m != "" {
		t.Skip(m)
	}
	ctx, s := startLabWithGantry(t, lab.Options{Nodes: 3})
	b := &bgpTestCluster{Cluster: s, tor: s.RouterOnHost("router", router.FRR), nodeAddresses: []string{"192.168.0.11", "192.168.0.12", "192.168.0.13"}}
	failOnError(t, b.tor.StartWithConfig(ctx, readFRRConfigFromDocs(t)))
	failOnError(t, s.ApplyManifests(ctx, bgpPeerPoolAndAdManifest))
	failOnError(t, s.ApplyManifests(ctx, cluster.UDPEchoServiceManifest("echo", "node3")))
	address, err := s.AwaitFirstAddressOfService(ctx, "default", "echo")
	failOnError(t, err)
	b.serviceRoute = netip.PrefixFrom(address, 32)
	t.Cleanup(func() {
		if t.Failed() {
			out, err := b.tor.RunShowCommand(context.WithoutCancel(ctx), "show bgp ipv4 unicast "+b.serviceRoute.String())
			t.Logf("the router knows (%v):\n%s", err, out)
			out, err = b.tor.RunShowCommand(context.WithoutCancel(ctx), "show bgp summary")
			t.Logf("the router's sessions (%v):\n%s", err, out)
		}
	})
	awaitNextHopsInRouterKernel(ctx, t, s, b.serviceRoute, b.nodeAddresses...)
	return ctx, b
}

// startStreamBehindRouter sends requests from a client behind the router.
func (b *bgpTestCluster) startStreamBehindRouter(ctx context.Context, t *testing.T) *cluster.RequestStream {
	t.Helper()
	stream, err := b.StartUDPStream(ctx, "far", netip.AddrPortFrom(b.serviceRoute.Addr(), 7000).String(), 200)
	failOnError(t, err)
	failOnError(t, stream.AwaitMoreAnswers(ctx, 50))
	return stream
}

// TestClientReachesServicesByBGPRoutes checks that a client behind a real router reaches Services
// by routes only. The scenarios run in this order on one cluster; each leaves the route on all
// nodes.
func TestClientReachesServicesByBGPRoutes(t *testing.T) {
	ctx, b := startBGPTestCluster(t)
	t.Run("the API reports announcements and sessions", func(t *testing.T) { b.testStatusObjectsReportBGPSessions(ctx, t) })
	t.Run("the routes page is read through port-forward", func(t *testing.T) { b.testRoutesPageThroughPortForward(ctx, t) })
	t.Run("a speaker that stops loses no request", func(t *testing.T) { b.testSpeakerStopLosesNoRequest(ctx, t) })
	t.Run("a drained node loses no request, and returns afterwards", func(t *testing.T) { b.testDrainedNodeLosesNoRequest(ctx, t) })
	t.Run("with externalTrafficPolicy Local the Pod's node is the only next hop", func(t *testing.T) { b.testLocalTrafficPolicyRoutesToPodNode(ctx, t) })
	t.Run("a rollout of a Deployment with externalTrafficPolicy Local loses no request", func(t *testing.T) { b.testLocalRolloutLosesNoRequest(ctx, t) })
	t.Run("no edit of an advertisement resets a session", func(t *testing.T) { b.testAdvertisementEditsResetNoSession(ctx, t) })
	t.Run("one BGPPeer for all racks: the node's gateway, the AS number in its label, and a password from a Secret", func(t *testing.T) { b.testDefaultGatewayPeerNeedsSecretAndLabel(ctx, t) })
	t.Run("with graceful restart a restarted speaker keeps its routes at the router", func(t *testing.T) { b.testGracefulRestartKeepsRoutes(ctx, t) })
	t.Run("the router connects to the nodes", func(t *testing.T) { b.testPassivePeerAcceptsRouterConnection(ctx, t) })
	t.Run("deleting a Service removes its route", func(t *testing.T) { b.testServiceDeletionRemovesRoute(ctx, t) })
}

func (b *bgpTestCluster) testStatusObjectsReportBGPSessions(ctx context.Context, t *testing.T) {
	failOnError(t, cluster.AwaitNoError(ctx, "the status objects", func(ctx context.Context) error {
		announced, err := b.RunKubectl(ctx, "", "-n", "metallb-system", "get", "servicebgpstatuses", "-o", `jsonpath={range .items[*]}{.status.node} {.status.serviceName} {.status.peers}{"\n"}{end}`)
		if err != nil {
			return err
		}
		sessions, err := b.RunKubectl(ctx, "", "-n", "metallb-system", "get", "bgpsessions", "-o", `jsonpath={range .items[*]}{.status.node} {.status.peer} {.status.address} {.status.state} {.status.prefixes} {.status.families}{"\n"}{end}`)
		if err != nil {
			return err
		}
		for _, node := range []string{"node1", "node2", "node3"} {
			if !strings.Contains(announced, node+` echo ["tor"]`) || !strings.Contains(sessions, node+` tor 192.168.0.1:179 Established 1 ["ipv4-unicast"]`) {
				return fmt.Errorf("they are:\n%s%s", announced, sessions)
			}
		}
		return nil
	}))
}

func (b *bgpTestCluster) testSpeakerStopLosesNoRequest(ctx context.Context, t *testing.T) {
	stream := b.startStreamBehindRouter(ctx, t)
	failOnError(t, b.SignalProgramOrPod(ctx, "node1", "gantry-speaker", syscall.SIGTERM))
	failOnError(t, stream.AwaitMoreAnswers(ctx, 400))
	// the new speaker is ready
	awaitNextHopsInRouterKernel(ctx, t, b.Cluster, b.serviceRoute, b.nodeAddresses...)
	if o := stream.StopAndAwaitLateAnswers(); o.LostCount > 0 {
		t.Errorf("%d of %d requests were lost", o.LostCount, o.SentCount)
	}
}

func (b *bgpTestCluster) testDrainedNodeLosesNoRequest(ctx context.Context, t *testing.T) {
	stream := b.startStreamBehindRouter(ctx, t)
	_, err := b.RunKubectl(ctx, "", "annotate", "node", "node2", "gantry.dev/drain=maintenance")
	failOnError(t, err)
	awaitNextHopsInRouterKernel(ctx, t, b.Cluster, b.serviceRoute, "192.168.0.11", "192.168.0.13")
	failOnError(t, stream.AwaitMoreAnswers(ctx, 100))
	_, err = b.RunKubectl(ctx, "", "annotate", "node", "node2", "gantry.dev/drain-")
	failOnError(t, err)
	awaitNextHopsInRouterKernel(ctx, t, b.Cluster, b.serviceRoute, b.nodeAddresses...)
	if o := stream.StopAndAwaitLateAnswers(); o.LostCount > 0 {
		t.Errorf("%d of %d requests were lost", o.LostCount, o.SentCount)
	}
}

func (b *bgpTestCluster) testLocalTrafficPolicyRoutesToPodNode(ctx context.Context, t *testing.T) {
	_, err := b.RunKubectl(ctx, "", "patch", "service", "echo", "-p", `{"spec":{"externalTrafficPolicy":"Local"}}`)
	failOnError(t, err)
	awaitNextHopsInRouterKernel(ctx, t, b.Cluster, b.serviceRoute, "192.168.0.13")
	b.startStreamBehindRouter(ctx, t).StopSending()
	_, err = b.RunKubectl(ctx, "", "patch", "service", "echo", "-p", `{"spec":{"externalTrafficPolicy":"Cluster"}}`)
	failOnError(t, err)
	awaitNextHopsInRouterKernel(ctx, t, b.Cluster, b.serviceRoute, b.nodeAddresses...)
}

// testLocalRolloutLosesNoRequest moves the only Pod of a Service from node to node. The old Pod
// still serves for some seconds after SIGTERM, and the router has the routes of both nodes
// meanwhile: that of the old node with GRACEFUL_SHUTDOWN.
func (b *bgpTestCluster) testLocalRolloutLosesNoRequest(ctx context.Context, t *testing.T) {
	failOnError(t, b.ApplyManifests(ctx, localTrafficPodAndServiceManifest))
	address, err := b.AwaitFirstAddressOfService(ctx, "default", "local")
	failOnError(t, err)
	vip := netip.PrefixFrom(address, 32)
	awaitNextHopsInRouterKernel(ctx, t, b.Cluster, vip, b.nodeAddresses[0])
	stream, err := b.StartUDPStream(ctx, "far", netip.AddrPortFrom(address, 7000).String(), 500)
	failOnError(t, err)
	failOnError(t, stream.AwaitMoreAnswers(ctx, 100))
	stream.StopSending() // requests before the Service works for the first time may be lost
	stream, err = b.StartUDPStream(ctx, "far", netip.AddrPortFrom(address, 7000).String(), 500)
	failOnError(t, err)
	for _, node := range []string{"node2", "node1"} {
		failOnError(t, b.ApplyManifests(ctx, strings.Replace(localTrafficPodAndServiceManifest, "nodeName: node1", "nodeName: "+node, 1)))
		awaitNextHopsInRouterKernel(ctx, t, b.Cluster, vip, map[string]string{"node1": b.nodeAddresses[0], "node2": b.nodeAddresses[1]}[node])
		failOnError(t, awaitOnlyPodOnNode(ctx, b.Cluster, "local", node))
		failOnError(t, stream.AwaitMoreAnswers(ctx, 250))
	}
	if o := stream.StopAndAwaitLateAnswers(); o.LostCount > 0 {
		t.Errorf("%d of %d requests were lost", o.LostCount, o.SentCount)
	}
	_, err = b.RunKubectl(ctx, "", "delete", "deployment/local", "service/local")
	failOnError(t, err)
	awaitNextHopsInRouterKernel(ctx, t, b.Cluster, vip)
}

func (b *bgpTestCluster) testAdvertisementEditsResetNoSession(ctx context.Context, t *testing.T) {
	before := describeBGPSessionEstablishments(ctx, t, b.tor)
	failOnError(t, b.ApplyManifests(ctx, strings.Replace(bgpPeerPoolAndAdManifest, "{ipAddressPools: [routed]}", `{ipAddressPools: [routed], communities: ["64512:7"], aggregationLength: 24}`, 1)))
	wide := netip.MustParsePrefix("198.51.100.0/24")
	awaitNextHopsInRouterKernel(ctx, t, b.Cluster, wide, b.nodeAddresses...)
	awaitNextHopsInRouterKernel(ctx, t, b.Cluster, b.serviceRoute)
	failOnError(t, b.ApplyManifests(ctx, bgpPeerPoolAndAdManifest))
	awaitNextHopsInRouterKernel(ctx, t, b.Cluster, b.serviceRoute, b.nodeAddresses...)
	if after := describeBGPSessionEstablishments(ctx, t, b.tor); after != before {
		t.Errorf("the sessions were established %s times before the edits and %s after", before, after)
	}
}

func (b *bgpTestCluster) testDefaultGatewayPeerNeedsSecretAndLabel(ctx context.Context, t *testing.T) {
	_, err := b.RunKubectl(ctx, "", "-n", "metallb-system", "delete", "bgppeer", "tor")
	failOnError(t, err)
	awaitNextHopsInRouterKernel(ctx, t, b.Cluster, b.serviceRoute)
	failOnError(t, b.tor.ChangeRunningConfig(ctx, "router bgp 65000\n neighbor nodes password s3cret\n"))
	failOnError(t, b.ApplyManifests(ctx, defaultGatewayPeerManifest))
	failOnError(t, cluster.AwaitNoError(ctx, "the condition that the Secret is missing", func(ctx context.Context) error {
		out, err := b.RunKubectl(ctx, "", "-n", "metallb-system", "get", "bgppeer", "racks", "-o", "jsonpath={.status.gantry.conditions}")
		if err == nil && !strings.Contains(out, "no Secret") {
			err = fmt.Errorf("the conditions are %s", out)
		}
		return err
	}))
	awaitBGPSessionEstablishedReasons(ctx, t, b.Cluster, "node1 racks UnknownSecret", "node2 racks UnknownSecret", "node3 racks UnknownSecret")
	table, err := b.RunKubectl(ctx, "", "-n", "metallb-system", "get", "bgpsessions")
	failOnError(t, err)
	if n := strings.Count(table, "UnknownSecret"); n != 3 {
		t.Errorf("kubectl shows the reason %d times, want 3 sessions with it:\n%s", n, table)
	}
	awaitNextHopsInRouterKernel(ctx, t, b.Cluster, b.serviceRoute)
	failOnError(t, b.ApplyManifests(ctx, peerPasswordManifest))
	for _, node := range []string{"node1", "node2"} {
		_, err := b.RunKubectl(ctx, "", "label", "node", node, "example.com/asn=65000")
		failOnError(t, err)
	}
	awaitNextHopsInRouterKernel(ctx, t, b.Cluster, b.serviceRoute, b.nodeAddresses[:2]...)
	awaitBGPSessionEstablishedReasons(ctx, t, b.Cluster, "node1 racks Established", "node2 racks Established", "node3 racks NodeLabel")
	failOnError(t, cluster.AwaitNoError(ctx, "the error of the session on the node without the label", func(ctx context.Context) error {
		out, err := b.RunKubectl(ctx, "", "-n", "metallb-system", "get", "bgpsessions", "-l", "metallb.io/node=node3", "-o", "jsonpath={.items[*].status.lastError}")
		if err == nil && !strings.Contains(out, `no label "example.com/asn"`) {
			err = fmt.Errorf("it is %q", out)
		}
		return err
	}))
	_, err = b.RunKubectl(ctx, "", "label", "node", "node3", "example.com/asn=65000")
	failOnError(t, err)
	awaitNextHopsInRouterKernel(ctx, t, b.Cluster, b.serviceRoute, b.nodeAddresses...)
}

func (b *bgpTestCluster) testGracefulRestartKeepsRoutes(ctx context.Context, t *testing.T) {
	stream := b.startStreamBehindRouter(ctx, t)
	begun := countBGPSessionEstablishments(ctx, t, b.Cluster, "node1")
	failOnError(t, b.SignalProgramOrPod(ctx, "node1", "gantry-speaker", syscall.SIGTERM))
	failOnError(t, cluster.AwaitNoError(ctx, "the session of the new speaker", func(ctx context.Context) error {
		r, _, err := b.NamespaceOfHost("router").FindRouteToExactPrefix(b.serviceRoute)
		if err != nil {
			return err
		}
		if len(r.NextHops) != 3 {
			t.Fatalf("the router has removed the routes of the speaker: %v", r.NextHops)
		}
		if countBGPSessionEstablishments(ctx, t, b.Cluster, "node1") == begun {
			return fmt.Errorf("the session was established %d times, as before", begun)
		}
		return nil
	}))
	if o := stream.StopAndAwaitLateAnswers(); o.LostCount > 0 {
		t.Errorf("%d of %d requests were lost", o.LostCount, o.SentCount)
	}
}

func (b *bgpTestCluster) testPassivePeerAcceptsRouterConnection(ctx context.Context, t *testing.T) {
	failOnError(t, b.tor.ChangeRunningConfig(ctx, "router bgp 65000\n neighbor nodes timers connect 1\n"))
	begun := map[string]int{"node1": countBGPSessionEstablishments(ctx, t, b.Cluster, "node1"), "node2": countBGPSessionEstablishments(ctx, t, b.Cluster, "node2"), "node3": countBGPSessionEstablishments(ctx, t, b.Cluster, "node3")}
	failOnError(t, b.ApplyManifests(ctx, strings.Replace(defaultGatewayPeerManifest, "defaultGateway:", "passive: true, defaultGateway:", 1)))
	failOnError(t, cluster.AwaitNoError(ctx, "sessions that the router has opened", func(ctx context.Context) error {
		for node, n := range begun {
			if countBGPSessionEstablishments(ctx, t, b.Cluster, node) == n {
				return fmt.Errorf("the session with %s is still the one that the node has opened", node)
			}
		}
		return nil
	}))
	awaitNextHopsInRouterKernel(ctx, t, b.Cluster, b.serviceRoute, b.nodeAddresses...)
	awaitBGPSessionEstablishedReasons(ctx, t, b.Cluster, "node1 racks Established", "node2 racks Established", "node3 racks Established")
}

func (b *bgpTestCluster) testServiceDeletionRemovesRoute(ctx context.Context, t *testing.T) {
	_, err := b.RunKubectl(ctx, "", "delete", "service", "echo")
	failOnError(t, err)
	awaitNextHopsInRouterKernel(ctx, t, b.Cluster, b.serviceRoute)
}

// awaitBGPSessionEstablishedReasons waits until the BGPSessions are exactly these, sorted by node:
// each has its node, its peer and the reason of its condition Established.
func awaitBGPSessionEstablishedReasons(ctx context.Context, t *testing.T, s *cluster.Cluster, want ...string) {
	t.Helper()
	failOnError(t, cluster.AwaitNoError(ctx, "the reasons of the BGPSessions", func(ctx context.Context) error {
		out, err := s.RunKubectl(ctx, "", "-n", "metallb-system", "get", "bgpsessions", "--sort-by={.status.node}", "-o",
			`jsonpath={range .items[*]}{.status.node} {.status.peer} {.status.conditions[?(@.type=="gantry.dev/Established")].reason}{"\n"}{end}`)
		if err == nil && out != strings.Join(want, "\n")+"\n" {
			err = fmt.Errorf("they say\n%s", out)
		}
		return err
	}))
}

// awaitNextHopsInRouterKernel waits until the router's kernel has exactly these next hops for a
// prefix.
func awaitNextHopsInRouterKernel(ctx context.Context, t *testing.T, s *cluster.Cluster, p netip.Prefix, want ...string) {
	t.Helper()
	awaitNextHopsInKernelOf(ctx, t, s, "router", p, want...)
}

// awaitNextHopsInKernelOf does the same for any router.
func awaitNextHopsInKernelOf(ctx context.Context, t *testing.T, s *cluster.Cluster, at string, p netip.Prefix, want ...string) {
	t.Helper()
	failOnError(t, cluster.AwaitNoError(ctx, fmt.Sprintf("the next hops in the kernel of %s: %s via %v", at, p, want), func(context.Context) error {
		r, _, err := s.NamespaceOfHost(at).FindRouteToExactPrefix(p)
		if err != nil {
			return err
		}
		var got []string
		for _, a := range r.NextHops {
			got = append(got, a.String())
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			return fmt.Errorf("they are %v", got)
		}
		return nil
	}))
}

// countBGPSessionEstablishments returns how often the router's session with a node has been
// established.
func countBGPSessionEstablishments(ctx context.Context, t *testing.T, s *cluster.Cluster, node string) int {
	t.Helper()
	address := map[string]string{"node1": "192.168.0.11", "node2": "192.168.0.12", "node3": "192.168.0.13"}[node]
	out, err := s.RouterOnHost("router", router.FRR).RunShowCommand(ctx, "show bgp neighbors "+address+" json")
	failOnError(t, err)
	var all map[string]struct{ ConnectionsEstablished int }
	failOnError(t, json.Unmarshal(out, &all))
	return all[address].ConnectionsEstablished
}

// describeBGPSessionEstablishments returns FRR's lines on how often each session has been
// established.
func describeBGPSessionEstablishments(ctx context.Context, t *testing.T, tor *lab.Router) string {
	t.Helper()
	out, err := tor.RunShowCommand(ctx, "show bgp neighbors")
	failOnError(t, err)
	var lines []string
	for _, l := range strings.Split(string(out), "\n") {
		if strings.Contains(l, "Connections established") {
			lines = append(lines, strings.TrimSpace(l))
		}
	}
	return strings.Join(lines, ", ")
}
