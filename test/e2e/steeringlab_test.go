package e2e

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/test/cluster"
	"github.com/gantry-lb/gantry/test/lab"
	"github.com/gantry-lb/gantry/test/lab/router"
)

// steeringLabNodes is the number of nodes of a steeringLab.
const steeringLabNodes = 4

// steeringLab is a cluster in which nodes die, with Services that have a Pod on each node.
type steeringLab struct {
	*cluster.Cluster
	// clients are those that all nodes serve.
	clients []cluster.ConnectingClient
	// restrictedURLs are those of a Service that only the client behind the router may use, and
	// affineURLs those of a Service with client affinity.
	restrictedURLs, affineURLs []string
	// holder holds all addresses that are announced by ARP and NDP, as long as it lives. victim
	// holds none. They and no other node die.
	holder, victim string
}

// restrictedAndAffineServicesManifest has two more Services for the Pods of PodOnEachNodeManifest.
const restrictedAndAffineServicesManifest = `apiVersion: v1
kind: Service
metadata: {name: restricted-everywhere}
spec:
  type: LoadBalancer
  ipFamilyPolicy: RequireDualStack
  allocateLoadBalancerNodePorts: false
  loadBalancerSourceRanges: [10.99.0.0/24, "fd00:99::/64"]
  selector: {app: everywhere}
  ports: [{name: http, port: 80, targetPort: web}]
---
apiVersion: v1
kind: Service
metadata: {name: affine-everywhere}
spec:
  type: LoadBalancer
  ipFamilyPolicy: RequireDualStack
  allocateLoadBalancerNodePorts: false
  sessionAffinity: ClientIP
  selector: {app: everywhere}
  ports: [{name: http, port: 80, targetPort: web}]
`

// routedServiceManifest is one more Service. Only node3 announces it to the router, so that the
// router never sends to a node that dies.
var routedServiceManifest = `apiVersion: metallb.io/v1beta2
kind: BGPPeer
metadata: {name: tor, namespace: metallb-system}
spec:
  myASN: 64512
  peerASN: 65000
  peerAddress: 192.168.0.1
  nodeSelectors: [{matchLabels: {kubernetes.io/hostname: node3}}]
---
` + poolWithoutAutoAssignManifest("routed", "198.51.100.0/24", "") + bgpAdvertisementManifest("routed", "ipAddressPools: [routed]") + `apiVersion: v1
kind: Service
metadata:
  name: routed-everywhere
  annotations: {metallb.io/address-pool: routed}
spec:
  type: LoadBalancer
  allocateLoadBalancerNodePorts: false
  selector: {app: everywhere}
  ports: [{name: http, port: 80, targetPort: web}]
`

// operatorRules are rules of another program.
const operatorRules = "table inet operator { chain input { type filter hook input priority 0; tcp dport 9999 drop; }; }"

func startSteeringLab(t *testing.T, mode string) (context.Context, *steeringLab) {
	t.Helper()
	if m := router.DescribeMissingPrerequisite(router.FRR); m != "" {
		t.Skip(m)
	}
	ctx, s := startLabWithoutGantry(t, lab.Options{Nodes: steeringLabNodes, ProxyMode: mode, Families: lab.DualStack})
	l := &steeringLab{Cluster: s, holder: "node1", victim: "node2"}
	failOnError(t, s.RouterOnHost("router", router.FRR).StartWithConfig(ctx, readFRRConfigFromDocs(t)))
	failOnError(t, s.InstallGantryOverlay(ctx, "continuity"))
	failOnError(t, s.ApplyManifests(ctx, dualStackPoolAndL2AdvertisementManifest))
	failOnError(t, s.ApplyManifests(ctx, cluster.PodOnEachNodeManifest+"  ipFamilyPolicy: RequireDualStack\n---\n"+restrictedAndAffineServicesManifest))
	failOnError(t, s.ApplyManifests(ctx, routedServiceManifest))
	_, err := s.RunKubectl(ctx, "", "annotate", "service", "everywhere", "restricted-everywhere", "affine-everywhere", names.AnnotationRequestedHolder+"="+l.holder)
	failOnError(t, err)
	urls, err := s.AwaitURLsOfPodOnEachNode(ctx, 2)
	failOnError(t, err)
	l.restrictedURLs, l.affineURLs = l.awaitURLs(ctx, t, "restricted-everywhere", 2), l.awaitURLs(ctx, t, "affine-everywhere", 2)
	l.clients = cluster.ClientsOnLAN(urls)
	for _, u := range append(l.restrictedURLs, l.awaitURLs(ctx, t, "routed-everywhere", 1)...) {
		l.clients = append(l.clients, cluster.ConnectingClient{Host: "far", URL: u, ConnectionsPerSecond: farConnectionsPerSecond})
		_, err := s.FetchURLUntilSuccess(ctx, "far", u)
		failOnError(t, err)
	}
	awaitAllHeldBy(ctx, t, s, l.holder)
	for _, node := range l.nodesThatNeverDie() {
		failOnError(t, s.RunOnHost(node, "nft", operatorRules))
	}
	for _, a := range affineClientAddresses() {
		bits := "/24"
		if a.Is6() {
			bits = "/64"
		}
		failOnError(t, s.RunOnHost("client", "ip", "address", "add", a.String()+bits, "dev", "eth0", "nodad"))
	}
	return ctx, l
}

// awaitURLs waits until a Service has n addresses, and returns their URLs.
func (l *steeringLab) awaitURLs(ctx context.Context, t *testing.T, service string, n int) []string {
	t.Helper()
	addresses, err := l.AwaitServiceAddressCount(ctx, "default", service, n)
	failOnError(t, err)
	var urls []string
	for _, a := range addresses {
		urls = append(urls, "http://"+net.JoinHostPort(a.String(), "80")+"/")
	}
	return urls
}

func (l *steeringLab) nodesThatNeverDie() []string {
	var out []string
	for i := 1; i <= steeringLabNodes; i++ {
		if node := fmt.Sprintf("node%d", i); node != l.holder && node != l.victim {
			out = append(out, node)
		}
	}
	return out
}

// listRulesOfOthersOnLivingNodes returns the rules of other programs on all nodes that never die:
// the kernel of the others loses all rules.
func (l *steeringLab) listRulesOfOthersOnLivingNodes(t *testing.T) string {
	t.Helper()
	var all []string
	for _, node := range l.nodesThatNeverDie() {
		rules := listRulesOfOthers(t, l.Cluster, node)
		if !strings.Contains(rules, "dport 9999") {
			t.Errorf("%s lost the rules of another program:\n%s", node, rules)
		}
		all = append(all, node+"\n"+rules)
	}
	return strings.Join(all, "\n")
}

// farConnectionsPerSecond is the rate of each client behind the router.
const farConnectionsPerSecond = 15

// refusedConnectionsPerSecond is the rate of each client that is refused.
const refusedConnectionsPerSecond = 10

// startRefusedClients lets a client outside of the source ranges connect to the restricted Service.
// stop fails the test if one of its connections was answered.
func (l *steeringLab) startRefusedClients(ctx context.Context, t *testing.T) (stop func()) {
	streams := map[string]*cluster.ConnectionStream{}
	for _, u := range l.restrictedURLs {
		streams[u] = l.StartConnectionStream(ctx, "client", u, refusedConnectionsPerSecond)
	}
	return func() {
		t.Helper()
		for u, s := range streams {
			all := s.StopAndListOutcomes()
			refused, _, _ := cluster.CountFailedConnections(all, time.Time{}, time.Now())
			if refused != len(all) || refused < refusedConnectionsPerSecond {
				t.Errorf("%d of %d connections to %s from outside of the source ranges were refused", refused, len(all), u)
			}
		}
	}
}

var steeredLinkPattern = regexp.MustCompile(`"([^"]+)" timeout`)

// checkSteeredLinks checks that only what comes from the LAN is steered: nothing from Pods.
func (l *steeringLab) checkSteeredLinks(t *testing.T) {
	t.Helper()
	const nodeWithRoute = "node3"
	failOnError(t, awaitTable(t.Context(), l.Cluster, nodeWithRoute))
	for _, node := range []string{l.holder, nodeWithRoute} {
		failOnError(t, l.NamespaceOfHost(node).RunInside(func() error {
			out, err := exec.Command("nft", "list", "set", "inet", "gantry", "announced-links").CombinedOutput()
			if found := steeredLinkPattern.FindAllStringSubmatch(string(out), -1); err == nil && (len(found) != 1 || found[0][1] != "eth0") {
				t.Errorf("%s steers what comes over other links than eth0:\n%s", node, out)
			}
			return err
		}))
	}
}

// affineClientsPerFamily is how many clients with an address of their own use the Service with
// client affinity. About a quarter of them gets the Pod on the node that dies.
const affineClientsPerFamily = 12

// affineClientAddresses are further addresses of the host client.
func affineClientAddresses() []netip.Addr {
	var out []netip.Addr
	for i := range affineClientsPerFamily {
		out = append(out, netip.MustParseAddr(fmt.Sprintf("192.168.0.%d", 151+i)), netip.MustParseAddr(fmt.Sprintf("fd00:a8::%d", 151+i)))
	}
	return out
}

// awaitNodesOfAffineClients returns the nodes whose Pods answer the clients. If isWanted is not
// nil, only those ask for which it is true.
func (l *steeringLab) awaitNodesOfAffineClients(ctx context.Context, t *testing.T, isWanted func(netip.Addr) bool) map[netip.Addr]string {
	t.Helper()
	all := affineClientAddresses()
	nodes := make([]string, len(all))
	var g errgroup.Group
	for i, a := range all {
		if isWanted != nil && !isWanted(a) {
			continue
		}
		u := l.affineURLs[slices.IndexFunc(l.affineURLs, func(u string) bool { return strings.Contains(u, "[") == a.Is6() })]
		g.Go(func() error {
			return cluster.AwaitNoError(ctx, "an answer to "+a.String(), func(ctx context.Context) error {
				body, err := l.FetchURLFromSourceAddress(ctx, "client", a, u)
				_, after, _ := strings.Cut(body, "node: ")
				nodes[i], _, _ = strings.Cut(after, "\n")
				return err
			})
		})
	}
	failOnError(t, g.Wait())
	out := map[netip.Addr]string{}
	for i, a := range all {
		if nodes[i] != "" {
			out[a] = nodes[i]
		}
	}
	return out
}

// checkAffineClients checks that the clients of the dead node have another Pod and stay there, and
// that all others have the Pod that they had.
func (l *steeringLab) checkAffineClients(ctx context.Context, t *testing.T, before map[netip.Addr]string) {
	t.Helper()
	first := l.awaitNodesOfAffineClients(ctx, t, nil)
	moved := 0
	for a, node := range first {
		switch {
		case before[a] == l.victim && node != l.victim:
			moved++
		case before[a] != node:
			t.Errorf("the Pod on %s answered the client %s before, and the one on %s answers it now", before[a], a, node)
		}
	}
	t.Logf("%d of %d clients had the Pod on the dead node", moved, len(first))
	for a, node := range l.awaitNodesOfAffineClients(ctx, t, func(a netip.Addr) bool { return before[a] == l.victim }) {
		if node != first[a] {
			t.Errorf("the client %s moved from the Pod on %s to the one on %s", a, first[a], node)
		}
	}
}
