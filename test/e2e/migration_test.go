package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/test/cluster"
	"github.com/gantry-lb/gantry/test/lab"
	"github.com/gantry-lb/gantry/test/lab/router"
	"github.com/gantry-lb/gantry/test/packages"
)

// The Services of the clients' streams and their addresses: one by ARP, and one by BGP.
const (
	migrationStreamService       = "migrated-stream"
	migrationStreamAddress       = "192.168.0.111"
	migrationRoutedStreamService = "routed-stream"
	migrationRoutedStreamAddress = "198.51.100.1"
	firstMigrationAddress        = 111
	migrationNodeCount           = 3
)

// migrationRun walks docs/from-metallb.md.
type migrationRun struct {
	*quickstartStepRunner
	standIn   cluster.MetalLBStandIn
	addresses map[string][]string // of each Service, as MetalLB gave them
	// stream is that of a client in the LAN, routedStream that of one behind the router.
	stream, routedStream *cluster.RequestStream
}

// TestMovingFromMetalLBAndBackChangesNoAddress follows docs/from-metallb.md literally: with Helm
// to Gantry and back, and with manifests to Gantry and back. 40 Services of all kinds keep their
// addresses, by ARP, NDP and BGP. Each is answered after each walk, and a client's stream in the
// LAN sees no more than failovers.
func TestMovingFromMetalLBAndBackChangesNoAddress(t *testing.T) {
	if m := packages.DescribeUnbuiltHelmOrKustomize(); m != "" {
		t.Skip(m)
	}
	if m := router.DescribeMissingPrerequisite(router.FRR); m != "" {
		t.Skip(m)
	}
	ctx, s := startLabWithoutGantry(t, lab.Options{Nodes: migrationNodeCount, Families: lab.DualStack})
	failOnError(t, s.RouterOnHost("router", router.FRR).StartWithConfig(ctx, readFRRConfigFromDocs(t)))
	w := newMigrationRun(ctx, t, s)
	w.carryOutText(ctx, t, "helm install metallb "+filepath.Join(w.cloneDir, "metallb")+" --namespace metallb-system --wait")
	w.applyConfigurationAndServices(ctx, t)
	for _, section := range []string{"Helm", "Back with Helm", "Manifests and kustomize", "Back with manifests"} {
		t.Run(section, func(t *testing.T) {
			w.startStreams(ctx, t)
			if section == "Manifests and kustomize" {
				w.replaceHelmReleaseByManifests(ctx, t)
			}
			w.followSection(ctx, t, section)
			w.checkServices(ctx, t)
			if !strings.HasPrefix(section, "Back ") {
				w.awaitGantryWell(ctx, t)
			}
			w.stopStreams(t)
		})
	}
}

// migrationOutageLimit is well above one failover on a busy machine, and well below the start of a
// program. `make bench` measures failovers.
const migrationOutageLimit = 5 * time.Second

// migrationRoutedOutageLimit is well above the longest wait of a speaker between two attempts to
// connect to a router that has no graceful restart.
const migrationRoutedOutageLimit = 20 * time.Second

func newMigrationRun(ctx context.Context, t *testing.T, s *cluster.Cluster) *migrationRun {
	t.Helper()
	w := &migrationRun{quickstartStepRunner: newQuickstartStepRunner(t, s), addresses: map[string][]string{}}
	w.standIn.GossipPort = 7946
	for i := 1; i <= migrationNodeCount; i++ {
		w.standIn.Nodes = append(w.standIn.Nodes, fmt.Sprintf("node%d", i))
	}
	for i := range 35 {
		w.standIn.Addresses = append(w.standIn.Addresses, fmt.Sprintf("192.168.0.%d", firstMigrationAddress+i))
	}
	for i := range 4 {
		w.standIn.Addresses = append(w.standIn.Addresses, fmt.Sprintf("fd00:a8::%d", firstMigrationAddress+i))
		w.standIn.Routes = append(w.standIn.Routes, fmt.Sprintf("198.51.100.%d/32", i+1))
	}
	w.standIn.Routes = append(w.standIn.Routes, "2001:db8:51::4/128")
	failOnError(t, w.standIn.WriteChart(filepath.Join(w.cloneDir, "metallb")))
	failOnError(t, os.WriteFile(filepath.Join(w.cloneDir, "metallb-native.yaml"), []byte(w.standIn.Manifests()), 0o600))
	runKubectl(ctx, t, s, "", "create", "namespace", "metallb-system")
	return w
}

// migratedServicesManifest are the Services, with a Pod of each on each node.
func migratedServicesManifest() (manifests string, services []string) {
	var b strings.Builder
	b.WriteString(strings.Replace(cluster.PodOnEachNodeManifest, "type: LoadBalancer", "type: ClusterIP", 1))
	manifests = strings.Replace(b.String(), "  allocateLoadBalancerNodePorts: false\n", "", 1)
	b.Reset()
	add := func(name, annotations, more string, port int) {
		services = append(services, name)
		fmt.Fprintf(&b, "---\napiVersion: v1\nkind: Service\nmetadata: {name: %s, annotations: {%s}}\nspec: {type: LoadBalancer, selector: {app: everywhere}, ports: [{port: %d, targetPort: web}]%s}\n", name, annotations, port, more)
	}
	for i := range 11 {
		add(fmt.Sprintf("migrated-plain-%d", i), "", "", 80)
	}
	for i := range 5 {
		add(fmt.Sprintf("migrated-named-%d", i), fmt.Sprintf("metallb.universe.tf/loadBalancerIPs: 192.168.0.%d", firstMigrationAddress+12+i), "", 80)
	}
	for i := range 5 {
		add(fmt.Sprintf("migrated-local-%d", i), "metallb.io/address-pool: migrated", ", externalTrafficPolicy: Local", 80)
	}
	for i := range 10 {
		add(fmt.Sprintf("migrated-shared-%d", i), fmt.Sprintf("metallb.io/allow-shared-ip: pair-%d", i/2), "", 80+i%2)
	}
	for i := range 4 {
		add(fmt.Sprintf("migrated-dual-%d", i), "", ", ipFamilyPolicy: RequireDualStack", 80)
	}
	for i := range 2 {
		add(fmt.Sprintf("routed-%d", i), "metallb.universe.tf/address-pool: routed", "", 80)
	}
	add("routed-dual", "metallb.io/address-pool: routed", ", ipFamilyPolicy: RequireDualStack, externalTrafficPolicy: Local", 80)
	routedStream := strings.Replace(cluster.UDPEchoServiceManifest(migrationRoutedStreamService, "node2"), "kind: Service\nmetadata:\n", "kind: Service\nmetadata:\n  annotations: {metallb.io/address-pool: routed}\n", 1)
	return manifests + b.String() + "---\n" + cluster.UDPEchoServiceManifest(migrationStreamService, "node2") + "---\n" + routedStream, services
}

// migrationConfigurationManifest is the configuration of MetalLB: a pool for the LAN, and one for
// the router.
var migrationConfigurationManifest = `apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata: {name: migrated, namespace: metallb-system}
spec: {addresses: [192.168.0.111-192.168.0.149, "fd00:a8::111-fd00:a8::149"]}
---
apiVersion: metallb.io/v1beta1
kind: L2Advertisement
metadata: {name: migrated, namespace: metallb-system}
spec: {ipAddressPools: [migrated]}
---
` + poolWithoutAutoAssignManifest("routed", `198.51.100.0/28, "2001:db8:51::/124"`, "") + bgpAdvertisementManifest("routed", "ipAddressPools: [routed]") + `apiVersion: metallb.io/v1beta2
kind: BGPPeer
metadata: {name: tor, namespace: metallb-system}
spec: {myASN: 64512, peerASN: 65000, peerAddress: 192.168.0.1, dualStackAddressFamily: true}
`

// applyConfigurationAndServices applies what users of MetalLB apply, and gives the addresses as
// its controller does. The webhook answers nothing here, so it is away meanwhile.
func (w *migrationRun) applyConfigurationAndServices(ctx context.Context, t *testing.T) {
	t.Helper()
	saved := runKubectl(ctx, t, w.Cluster, "", "get", "validatingwebhookconfiguration", "metallb-webhook-configuration", "-o", "yaml")
	runKubectl(ctx, t, w.Cluster, "", "delete", "validatingwebhookconfiguration", "metallb-webhook-configuration")
	failOnError(t, w.ApplyManifests(ctx, migrationConfigurationManifest))
	runKubectl(ctx, t, w.Cluster, saved, "create", "-f", "-")
	manifests, services := migratedServicesManifest()
	failOnError(t, w.ApplyManifests(ctx, manifests))
	next, nextIPv6, nextRouted := firstMigrationAddress+1, firstMigrationAddress, 2
	for _, name := range services {
		if strings.HasPrefix(name, "routed-") {
			addresses := []string{fmt.Sprintf("198.51.100.%d", nextRouted)}
			if name == "routed-dual" {
				addresses = append(addresses, fmt.Sprintf("2001:db8:51::%d", nextRouted))
			}
			nextRouted++
			w.giveAddresses(ctx, t, name, addresses...)
			continue
		}
		addresses := []string{fmt.Sprintf("192.168.0.%d", next)}
		if _, after, isShared := strings.Cut(name, "migrated-shared-"); !isShared || after[0]%2 == 1 {
			next++
		}
		if strings.HasPrefix(name, "migrated-dual-") {
			addresses = append(addresses, fmt.Sprintf("fd00:a8::%d", nextIPv6))
			nextIPv6++
		}
		w.giveAddresses(ctx, t, name, addresses...)
	}
	w.giveAddresses(ctx, t, migrationStreamService, migrationStreamAddress)
	w.giveAddresses(ctx, t, migrationRoutedStreamService, migrationRoutedStreamAddress)
	if len(w.addresses) != 40 {
		t.Fatalf("there are %d Services, want 40", len(w.addresses))
	}
	runKubectl(ctx, t, w.Cluster, "", "rollout", "status", "daemonset/everywhere", "--timeout=3m")
	w.checkServices(ctx, t)
}

// giveAddresses writes the status of a Service as MetalLB's controller does.
func (w *migrationRun) giveAddresses(ctx context.Context, t *testing.T, name string, addresses ...string) {
	t.Helper()
	o, err := w.GetService(ctx, "default", name)
	failOnError(t, err)
	o.Status.LoadBalancer.Ingress = nil
	for _, a := range addresses {
		o.Status.LoadBalancer.Ingress = append(o.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: a})
	}
	failOnError(t, w.API.Status().Update(ctx, o, client.FieldOwner("controller")))
	w.addresses[name] = addresses
}

// startStreams sends requests from a client in the LAN, and from one behind the router.
func (w *migrationRun) startStreams(ctx context.Context, t *testing.T) {
	t.Helper()
	start := func(host, address string) *cluster.RequestStream {
		failOnError(t, w.SendUDPUntilAnswered(ctx, host, address+":7000"))
		stream, err := w.StartUDPStream(ctx, host, address+":7000", 100)
		failOnError(t, err)
		failOnError(t, stream.AwaitMoreAnswers(ctx, 10))
		return stream
	}
	w.stream, w.routedStream = start("client", migrationStreamAddress), start("far", migrationRoutedStreamAddress)
}

// stopStreams ends the streams, and checks that the client in the LAN saw no more than failovers.
// The client behind the router sees no more if the speakers stop node by node.
func (w *migrationRun) stopStreams(t *testing.T) {
	t.Helper()
	for place, stream := range map[string]*cluster.RequestStream{"in the LAN": w.stream, "behind the router": w.routedStream} {
		result := stream.StopAndAwaitLateAnswers()
		t.Logf("the client %s lost %d of %d requests, and its longest time without an answer was %v", place, result.LostCount, result.SentCount, result.LongestTimeWithoutAnswer)
		limit := migrationOutageLimit
		if isNodeByNode := strings.HasSuffix(t.Name(), "/Helm"); stream == w.routedStream && !isNodeByNode {
			limit = migrationRoutedOutageLimit
		}
		if result.LongestTimeWithoutAnswer > limit {
			t.Errorf("the client %s had no answer for %v", place, result.LongestTimeWithoutAnswer)
		}
	}
	w.stream, w.routedStream = nil, nil
}

// replaceHelmReleaseByManifests leaves MetalLB as its manifests do: without Helm's marks.
func (w *migrationRun) replaceHelmReleaseByManifests(ctx context.Context, t *testing.T) {
	t.Helper()
	w.carryOutText(ctx, t, `kubectl apply --server-side --force-conflicts -f metallb-native.yaml
kubectl -n metallb-system delete secret -l owner=helm,name=metallb
kubectl -n metallb-system delete deployment/metallb-controller daemonset/metallb-speaker
kubectl -n metallb-system rollout status daemonset/speaker`)
}

// carryOutText runs commands. What the page leaves to the reader, such as a registry, is filled
// in.
func (w *migrationRun) carryOutText(ctx context.Context, t *testing.T, commands string) {
	t.Helper()
	commands = strings.ReplaceAll(commands, "kubectl gantry migrate\n", "kubectl gantry migrate --yes\n")
	commands = strings.ReplaceAll(commands, "kubectl gantry status\n", "") // see awaitGantryWell
	if strings.HasPrefix(commands, "kubectl patch service NAME") {
		return
	}
	commands = strings.ReplaceAll(commands, "metallb/metallb ", "./metallb ")
	w.carryOutCodeBlock(ctx, t, quickstartBlock{language: "sh", text: commands}, "client")
}

// followSection carries out the code blocks of a section of the page.
func (w *migrationRun) followSection(ctx context.Context, t *testing.T, title string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(lab.RepositoryRoot(), "docs", "from-metallb.md"))
	failOnError(t, err)
	_, section, found := strings.Cut(strings.ReplaceAll(string(text), "\n### ", "\n## "), "\n## "+title+"\n")
	if !found {
		t.Fatalf("the page has no section %q", title)
	}
	section, _, _ = strings.Cut(section, "\n## ")
	blocks := fencedBlockPattern.FindAllStringSubmatch(strings.ReplaceAll(section, "\n   ", "\n"), -1)
	if len(blocks) < 3 {
		t.Fatalf("the section %q has %d code blocks: this test looks in the wrong place", title, len(blocks))
	}
	for _, b := range blocks {
		if b[1] == "yaml" {
			failOnError(t, os.WriteFile(filepath.Join(w.cloneDir, "kustomization.yaml"), []byte(b[2]), 0o600))
			continue
		}
		w.carryOutText(ctx, t, b[2])
	}
}

// checkServices checks that each Service has its address, and that a client is answered there. The
// pools and the advertisement are there too.
func (w *migrationRun) checkServices(ctx context.Context, t *testing.T) {
	t.Helper()
	runKubectl(ctx, t, w.Cluster, "", "-n", "metallb-system", "get", "ipaddresspool/migrated", "ipaddresspool/routed", "l2advertisement/migrated", "bgpadvertisement/routed", "bgppeer/tor")
	for name, want := range w.addresses {
		o, err := w.GetService(ctx, "default", name)
		failOnError(t, err)
		var got []string
		for _, in := range o.Status.LoadBalancer.Ingress {
			got = append(got, in.IP)
		}
		if !slices.Equal(got, want) {
			t.Errorf("Service %s has %v, want %v", name, got, want)
		}
		host, stream := "client", w.stream
		if strings.HasPrefix(name, "routed-") {
			host, stream = "far", w.routedStream
			for _, a := range want {
				w.awaitRouteFromEachNode(ctx, t, netip.MustParseAddr(a))
			}
		}
		if name == migrationStreamService || name == migrationRoutedStreamService {
			failOnError(t, awaitStreamAnswers(ctx, stream))
			continue
		}
		for _, a := range want {
			_, err = w.FetchURLUntilSuccess(ctx, host, fmt.Sprintf("http://%s/", netip.AddrPortFrom(netip.MustParseAddr(a), uint16(o.Spec.Ports[0].Port))))
			failOnError(t, err)
		}
	}
}

// awaitRouteFromEachNode waits until the router has a route for the address through each node.
func (w *migrationRun) awaitRouteFromEachNode(ctx context.Context, t *testing.T, a netip.Addr) {
	t.Helper()
	var nextHops []string
	for i := range migrationNodeCount {
		if a.Is4() {
			nextHops = append(nextHops, fmt.Sprintf("192.168.0.%d", 11+i))
		} else {
			nextHops = append(nextHops, fmt.Sprintf("fd00:a8::%x", 11+i))
		}
	}
	awaitNextHopsInRouterKernel(ctx, t, w.Cluster, netip.PrefixFrom(a, a.BitLen()), nextHops...)
}

// awaitStreamAnswers waits for more answers of a stream, if it runs.
func awaitStreamAnswers(ctx context.Context, stream *cluster.RequestStream) error {
	if stream == nil {
		return nil
	}
	return stream.AwaitMoreAnswers(ctx, 10)
}

// awaitGantryWell waits until kubectl gantry status says that all is well.
func (w *migrationRun) awaitGantryWell(ctx context.Context, t *testing.T) {
	t.Helper()
	failOnError(t, cluster.AwaitNoError(ctx, "an installation that is well", func(ctx context.Context) error {
		cmd := exec.CommandContext(ctx, filepath.Join(lab.RepositoryRoot(), "bin", "kubectl-gantry"), "status")
		cmd.Env = w.environment
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}))
}
