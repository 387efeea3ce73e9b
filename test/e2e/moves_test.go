package e2e

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/test/cluster"
	"github.com/gantry-lb/gantry/test/lab"
)

// TestPlannedMovesLoseNoRequest moves the addresses of a Service in each planned way. Meanwhile a
// client sends requests to both addresses, 500 per second over UDP and 50 per second over TCP. None
// may be lost.
func TestPlannedMovesLoseNoRequest(t *testing.T) {
	for _, mode := range []string{lab.KubeProxyNFTables, lab.KubeProxyIPTables} {
		t.Run(mode, func(t *testing.T) { testPlannedMovesLoseNoRequestInMode(t, mode) })
	}
}

// dualStackUDPAndTCPEchoManifest returns a dual-stack Service with UDP and TCP on the same port,
// whose only Pod runs on node4.
func dualStackUDPAndTCPEchoManifest(name string) string {
	return withRequiredDualStack(strings.NewReplacer(
		"    - {containerPort: 7000, protocol: UDP}\n", "    - {containerPort: 7000, protocol: UDP}\n    - {containerPort: 7000, protocol: TCP}\n",
		"  - {port: 7000, protocol: UDP}\n", "  - {name: datagrams, port: 7000, protocol: UDP}\n  - {name: connections, port: 7000, protocol: TCP}\n",
	).Replace(cluster.UDPEchoServiceManifest(name, "node4")))
}

func testPlannedMovesLoseNoRequestInMode(t *testing.T, mode string) {
	ctx, s := startLabWithGantry(t, lab.Options{Nodes: 4, ProxyMode: mode, Families: lab.DualStack})
	failOnError(t, s.ApplyManifests(ctx, dualStackPoolAndL2AdvertisementManifest))
	failOnError(t, s.ApplyManifests(ctx, dualStackUDPAndTCPEchoManifest("echo")))
	_, err := s.RunKubectl(ctx, "", "label", "node", "node4", "node.kubernetes.io/exclude-from-external-load-balancers=true")
	failOnError(t, err)
	_, err = s.RunKubectl(ctx, "", "label", "node", "node1", "node2", "node3", "holds=yes")
	failOnError(t, err)
	addresses, err := s.AwaitServiceAddressCount(ctx, "default", "echo", 2)
	failOnError(t, err)

	m := &moveTestCluster{Cluster: s, t: t, addresses: addresses}
	for name, c := range m.candidacyLossCases(ctx) {
		t.Run(name, func(t *testing.T) { m.testLeavingNodeHandsOverAddresses(ctx, t, c) })
	}
	requireNoPingAnswer(t, s, addresses...)
	t.Run("a rollout of the speakers", func(t *testing.T) {
		replace := []string{"set", "env", "daemonset/gantry-speaker", enablePingAnswersEnvironment}
		repeatCheckIfMachineWasBusy(t, func() []string {
			f := startRequestStreams(ctx, t, s, 500, addresses...)
			m.kubectl(ctx, append([]string{"-n", "metallb-system"}, replace...)...)
			m.kubectl(ctx, "-n", "metallb-system", "rollout", "status", "--timeout=5m", "daemonset/gantry-speaker")
			f.awaitMoreAnswers(ctx, t)
			// a further round
			replace = []string{"rollout", "restart", "daemonset/gantry-speaker"}
			return f.stopAndFindLostRequests(t, 4, "every speaker was replaced")
		})
	})
	t.Run("the new speakers answer pings", func(t *testing.T) { requirePingAnswers(ctx, t, s, addresses...) })
	t.Run("the endpoints of a Service with policy Local move", func(t *testing.T) { testAddressFollowsPodOfLocalService(ctx, t, s) })
	// after the rollout, because a rebalance waits until no member has changed for ten seconds
	t.Run("a rebalance", func(t *testing.T) {
		testRebalanceSpreadsAddresses(ctx, t, s, addresses, func(extra string) { m.applyAdvertisement(ctx, extra) })
	})
	if mode == lab.KubeProxyIPTables { // TestLayer2BesideOtherHostsOnLAN does this with nftables
		t.Run("one node answers after a link has flapped", func(t *testing.T) { testOneNodeAnswersAfterShortCableCuts(ctx, t, s, addresses[0]) })
	}
}

// moveTestCluster is a cluster with a Service whose addresses move.
type moveTestCluster struct {
	*cluster.Cluster
	t         *testing.T
	addresses []netip.Addr
}

func (m *moveTestCluster) kubectl(ctx context.Context, args ...string) {
	m.t.Helper()
	_, err := m.RunKubectl(ctx, "", args...)
	failOnError(m.t, err)
}

// applyAdvertisement applies the L2Advertisement with extra lines in its spec.
func (m *moveTestCluster) applyAdvertisement(ctx context.Context, extra string) {
	m.t.Helper()
	_, doc, _ := strings.Cut(cluster.FirstPoolAndL2AdvertisementManifest, "---")
	failOnError(m.t, m.ApplyManifests(ctx, doc+extra))
}

// candidacyLossCase is a way in which a node stops being a candidate, and the way back.
type candidacyLossCase struct{ removeFromCandidates, makeCandidateAgain func(node string) }

func (m *moveTestCluster) candidacyLossCases(ctx context.Context) map[string]candidacyLossCase {
	kubectl := func(args ...string) {
		m.t.Helper()
		m.kubectl(ctx, args...)
	}
	return map[string]candidacyLossCase{
		"the exclude label": {
			func(n string) {
				kubectl("label", "node", n, "node.kubernetes.io/exclude-from-external-load-balancers=")
			},
			func(n string) {
				kubectl("label", "node", n, "node.kubernetes.io/exclude-from-external-load-balancers-")
			},
		},
		"the out-of-service taint": {
			func(n string) {
				kubectl("taint", "node", n, "node.kubernetes.io/out-of-service=nodeshutdown:NoSchedule")
			},
			func(n string) { kubectl("taint", "node", n, "node.kubernetes.io/out-of-service-") },
		},
		"a shutdown of the kubelet": {
			func(n string) {
				failOnError(m.t, m.SetNodeReadyCondition(ctx, n, corev1.ConditionFalse, "node is shutting down"))
			},
			func(n string) { failOnError(m.t, m.SetNodeReadyCondition(ctx, n, corev1.ConditionTrue, "")) },
		},
		"the drain annotation": {
			func(n string) { kubectl("annotate", "node", n, "gantry.dev/drain=") },
			func(n string) { kubectl("annotate", "node", n, "gantry.dev/drain-") },
		},
		"a node selector without the node": {
			func(n string) {
				kubectl("label", "node", n, "holds-")
				m.applyAdvertisement(ctx, "  nodeSelectors:\n  - matchLabels: {holds: \"yes\"}\n")
			},
			func(n string) {
				kubectl("label", "node", n, "holds=yes")
				m.applyAdvertisement(ctx, "")
			},
		},
		"the speaker is deleted": {
			func(n string) {
				kubectl("-n", "metallb-system", "delete", "pod", "--wait=false", "-l", "app.kubernetes.io/component=speaker", "--field-selector", "spec.nodeName="+n)
			},
			func(string) {
				kubectl("-n", "metallb-system", "rollout", "status", "--timeout=5m", "daemonset/gantry-speaker")
			},
		},
	}
}

func (m *moveTestCluster) testLeavingNodeHandsOverAddresses(ctx context.Context, t *testing.T, c candidacyLossCase) {
	repeatCheckIfMachineWasBusy(t, func() []string { return m.moveFromHoldersAndBack(ctx, t, c) })
}

// moveFromHoldersAndBack lets the holders leave and come back. It returns what the speakers did
// wrong, and which requests were lost.
func (m *moveTestCluster) moveFromHoldersAndBack(ctx context.Context, t *testing.T, c candidacyLossCase) (faults []string) {
	t.Helper()
	holders := awaitHoldersByAddress(ctx, t, m.Cluster, m.addresses, nil)
	before := readMoveCounts(ctx, t, m.Cluster)
	f := startRequestStreams(ctx, t, m.Cluster, 500, m.addresses...)
	leaving := slices.Compact(slices.Sorted(maps.Values(holders)))
	for _, n := range leaving { // both holders at once, if there are two
		c.removeFromCandidates(n)
	}
	next := awaitHoldersByAddress(ctx, t, m.Cluster, m.addresses, leaving)
	f.awaitMoreAnswers(ctx, t)
	now := readMoveCounts(ctx, t, m.Cluster)
	for _, n := range leaving {
		c.makeCandidateAgain(n)
	}
	f.awaitMoreAnswers(ctx, t)
	faults = f.stopAndFindLostRequests(t, 1, fmt.Sprintf("%v handed the addresses over to %v", holders, next))
	faults = append(faults, findMovesNotHandedOver(before, now, leaving)...)
	if still := awaitHoldersByAddress(ctx, t, m.Cluster, m.addresses, nil); !maps.Equal(still, next) {
		faults = append(faults, fmt.Sprintf("%v are back, and the addresses moved from %v to %v", leaving, next, still))
	}
	return faults
}

// awaitHoldersByAddress waits until each address has one holder that is not in not, and returns the
// holders by address.
func awaitHoldersByAddress(ctx context.Context, t *testing.T, s *cluster.Cluster, addresses []netip.Addr, not []string) map[netip.Addr]string {
	t.Helper()
	out := map[netip.Addr]string{}
	for _, a := range addresses {
		failOnError(t, cluster.AwaitNoError(ctx, "another holder of "+a.String(), func(context.Context) error {
			if out[a] = awaitHolderOfAddress(ctx, t, s, a).Status.Node; slices.Contains(not, out[a]) {
				return fmt.Errorf("it is %s", out[a])
			}
			return nil
		}))
	}
	return out
}

// readMoveCounts returns how often each node took or released an address, by node, and then by
// event and reason.
func readMoveCounts(ctx context.Context, t *testing.T, s *cluster.Cluster) map[string]map[string]int {
	t.Helper()
	out := map[string]map[string]int{}
	for _, node := range []string{"node1", "node2", "node3", "node4"} {
		body, err := s.FetchSpeakerMetricsUntilSuccess(ctx, node)
		failOnError(t, err)
		out[node] = map[string]int{}
		for line := range strings.Lines(body) {
			var n int
			var event, reason string
			line = strings.NewReplacer(`"`, " ", "}", " ").Replace(line)
			if _, err := fmt.Sscanf(line, "gantry_speaker_moves_total{event= %s ,reason= %s   %d", &event, &reason, &n); err == nil {
				out[node][event+" "+reason] = n
			}
		}
	}
	return out
}

// findMovesNotHandedOver returns what is wrong with the metrics of the moves between two times:
// both addresses should be handed over, and no node declared dead. It ignores the nodes in left,
// whose speakers may have been restarted.
func findMovesNotHandedOver(before, after map[string]map[string]int, left []string) (faults []string) {
	handed := 0
	for node, now := range after {
		if slices.Contains(left, node) {
			continue
		}
		handed += now["Taken HandedOver"] - before[node]["Taken HandedOver"]
		for _, reason := range []string{"Taken HolderGone", "Taken Unheld"} {
			if n := now[reason] - before[node][reason]; n > 0 {
				faults = append(faults, fmt.Sprintf("%s counts %d moves as %q", node, n, reason))
			}
		}
	}
	if handed < 2 {
		faults = append(faults, fmt.Sprintf("%d moves are counted as Taken HandedOver, want both addresses", handed))
	}
	return faults
}

// requestStreams are the requests of a client to addresses, over UDP and TCP to each.
type requestStreams map[string]*cluster.RequestStream

// startRequestStreams starts requests to each of the addresses, rate per second over UDP and a
// tenth of that over TCP.
func startRequestStreams(ctx context.Context, t *testing.T, s *cluster.Cluster, rate int, addresses ...netip.Addr) requestStreams {
	t.Helper()
	f := requestStreams{}
	for _, a := range addresses {
		target := netip.AddrPortFrom(a, 7000).String()
		udp, err := s.StartUDPStream(ctx, "client", target, rate)
		failOnError(t, err)
		f["over UDP to "+target], f["over TCP to "+target] = udp, s.StartTCPStream(ctx, "client", target, rate/10)
	}
	f.awaitMoreAnswers(ctx, t)
	return f
}

// awaitMoreAnswers waits until each stream has the answers of about half a second more.
func (f requestStreams) awaitMoreAnswers(ctx context.Context, t *testing.T) {
	t.Helper()
	var more errgroup.Group
	for name, stream := range f {
		n := 250
		if strings.HasPrefix(name, "over TCP") {
			n = 25
		}
		more.Go(func() error { return stream.AwaitMoreAnswers(ctx, n) })
	}
	failOnError(t, more.Wait())
}

// stopAndFindLostRequests returns which requests were lost while each address moved this number of
// times.
func (f requestStreams) stopAndFindLostRequests(t *testing.T, moves int, event string) (faults []string) {
	t.Helper()
	for name, stream := range f {
		o := stream.StopAndAwaitLateAnswers()
		n := countConnectionsResetByMoves(o.Failures, moves)
		if o.LostCount > n {
			faults = append(faults, fmt.Sprintf("%d of %d requests %s were lost when %s: %v", o.LostCount-n, o.SentCount, name, event, o.Failures))
		}
		if n > 0 {
			t.Logf("%d of %d requests %s were under way at the instant of a move", n, o.SentCount, name)
		}
	}
	return faults
}

// countConnectionsResetByMoves counts the connections that a move of their address has reset:
// kube-proxy of the new holder does not know the connections of the old one. All connections that
// one move resets were open at the same instant. Any other failure counts as lost.
func countConnectionsResetByMoves(failures []cluster.RequestFailure, moves int) (n int) {
	left := slices.DeleteFunc(slices.Clone(failures), func(f cluster.RequestFailure) bool {
		return !errors.Is(f.Err, syscall.ECONNRESET) && !errors.Is(f.Err, syscall.EPIPE)
	})
	slices.SortFunc(left, func(x, y cluster.RequestFailure) int { return x.EndedAt.Compare(y.EndedAt) })
	for all := len(left); moves > 0 && len(left) > 0; moves-- {
		instant := left[0].EndedAt
		left = slices.DeleteFunc(left, func(f cluster.RequestFailure) bool { return !f.StartedAt.After(instant) })
		n = all - len(left)
	}
	return n
}

// TestCountConnectionsResetByMoves checks that only connections are excused that were
// open at the instant of a move.
func TestCountConnectionsResetByMoves(t *testing.T) {
	at := func(ms int) time.Time { return time.Unix(0, 0).Add(time.Duration(ms) * time.Millisecond) }
	reset := func(begun, ended int) cluster.RequestFailure {
		return cluster.RequestFailure{StartedAt: at(begun), EndedAt: at(ended), Err: fmt.Errorf("reading: %w", syscall.ECONNRESET)}
	}
	for name, tt := range map[string]struct {
		failures []cluster.RequestFailure
		moves    int
		want     int
	}{
		"none":                          {nil, 1, 0},
		"two at one instant":            {[]cluster.RequestFailure{reset(0, 5), reset(3, 9)}, 1, 2},
		"two one after the other":       {[]cluster.RequestFailure{reset(0, 5), reset(6, 9)}, 1, 1},
		"each at a move":                {[]cluster.RequestFailure{reset(6, 9), reset(0, 5)}, 2, 2},
		"an address that did not move":  {[]cluster.RequestFailure{reset(0, 5)}, 0, 0},
		"a connection that was refused": {[]cluster.RequestFailure{{StartedAt: at(0), EndedAt: at(5), Err: syscall.ECONNREFUSED}}, 1, 0},
		"silence":                       {[]cluster.RequestFailure{{StartedAt: at(0), EndedAt: at(5000), Err: context.DeadlineExceeded}}, 1, 0},
	} {
		if got := countConnectionsResetByMoves(tt.failures, tt.moves); got != tt.want {
			t.Errorf("%s: %d are excused, want %d", name, got, tt.want)
		}
	}
}

// testRebalanceSpreadsAddresses lets one node hold all addresses, and then checks that they are
// spread over all nodes.
func testRebalanceSpreadsAddresses(ctx context.Context, t *testing.T, s *cluster.Cluster, addresses []netip.Addr, ad func(string)) {
	failOnError(t, s.ApplyManifests(ctx, dualStackUDPAndTCPEchoManifest("more0")+"---\n"+dualStackUDPAndTCPEchoManifest("more1")))
	for _, name := range []string{"more0", "more1"} {
		more, err := s.AwaitServiceAddressCount(ctx, "default", name, 2)
		failOnError(t, err)
		addresses = append(addresses, more...)
	}
	spread := func(what string, check func(held map[string]int) error) {
		t.Helper()
		failOnError(t, cluster.AwaitNoError(ctx, what, func(ctx context.Context) error {
			var list v1beta1.ServiceL2StatusList
			if err := s.API.List(ctx, &list, client.InNamespace(names.DefaultNamespace)); err != nil {
				return err
			}
			held, all := map[string]int{}, 0
			for _, o := range list.Items {
				if g := o.Status.Gantry; g != nil { // the status is written after the object
					held[o.Status.Node] += len(g.Addresses)
					all += len(g.Addresses)
				}
			}
			if all != len(addresses) {
				return fmt.Errorf("%v hold %d addresses, want %d", held, all, len(addresses))
			}
			return check(held)
		}))
	}
	ad("  nodeSelectors:\n  - matchLabels: {kubernetes.io/hostname: node1}\n")
	spread("all addresses on node1", func(held map[string]int) error {
		if len(held) != 1 {
			return fmt.Errorf("the numbers of held addresses are %v", held)
		}
		return nil
	})
	f := startRequestStreams(ctx, t, s, 100, addresses...)
	ad("  gantry: {rebalance: Paced}\n")
	most := (len(addresses)*11 + 29) / 30 // ceil(1.1 x share) of three nodes
	spread("an even spread", func(held map[string]int) error {
		for _, n := range []string{"node1", "node2", "node3"} {
			if held[n] > most || held[n] == 0 {
				return fmt.Errorf("the numbers of held addresses are %v", held)
			}
		}
		return nil
	})
	for _, fault := range f.stopAndFindLostRequests(t, 1, "addresses were rebalanced") {
		t.Error(fault)
	}
}

// localTrafficPodAndServiceManifest is a Service with the traffic policy Local and its only Pod.
// The Pod still serves for six seconds after SIGTERM. By then every node and router must have
// learnt of the next Pod, which takes long if each program on the way waits for a processor.
const localTrafficPodAndServiceManifest = `apiVersion: apps/v1
kind: Deployment
metadata: {name: local}
spec:
  replicas: 1
  selector: {matchLabels: {app: local}}
  template:
    metadata:
      labels: {app: local}
      annotations: {lab.gantry.dev/shutdown-delay: 6s}
    spec:
      nodeName: node1
      terminationGracePeriodSeconds: 20
      containers:
      - name: echo
        image: echo
        ports:
        - {containerPort: 7000, protocol: UDP}
        - {containerPort: 7000, protocol: TCP}
---
apiVersion: v1
kind: Service
metadata: {name: local}
spec:
  type: LoadBalancer
  externalTrafficPolicy: Local
  selector: {app: local}
  ports:
  - {name: datagrams, port: 7000, protocol: UDP}
  - {name: connections, port: 7000, protocol: TCP}
`

// awaitOnlyPodOnNode waits until the only Pod with the label app runs on the node, and none is left
// that is being deleted.
func awaitOnlyPodOnNode(ctx context.Context, s *cluster.Cluster, app, node string) error {
	return cluster.AwaitNoError(ctx, "the end of the old Pod", func(ctx context.Context) error {
		var pods corev1.PodList
		if err := s.API.List(ctx, &pods, client.InNamespace("default"), client.MatchingLabels{"app": app}); err != nil {
			return err
		}
		for i := range pods.Items {
			if p := &pods.Items[i]; p.Spec.NodeName != node || p.DeletionTimestamp != nil {
				return fmt.Errorf("%s on %s is there", p.Name, p.Spec.NodeName)
			}
		}
		return nil
	})
}

// testAddressFollowsPodOfLocalService replaces the only Pod of a Service by one on another node.
func testAddressFollowsPodOfLocalService(ctx context.Context, t *testing.T, s *cluster.Cluster) {
	local := withRequiredDualStack(localTrafficPodAndServiceManifest)
	failOnError(t, s.ApplyManifests(ctx, local))
	addresses, err := s.AwaitServiceAddressCount(ctx, "default", "local", 2)
	failOnError(t, err)
	for _, stream := range startRequestStreams(ctx, t, s, 500, addresses...) {
		stream.StopSending() // requests before the Service works for the first time may be lost
	}
	// A speaker announces the address of a new Pod as soon as it knows the Pod. On a busy machine
	// the kube-proxy of that node may know it later.
	repeatCheckIfMachineWasBusy(t, func() []string {
		f := startRequestStreams(ctx, t, s, 500, addresses...)
		for _, node := range []string{"node2", "node3"} {
			failOnError(t, s.ApplyManifests(ctx, strings.Replace(local, "nodeName: node1", "nodeName: "+node, 1)))
			for _, a := range addresses {
				failOnError(t, cluster.AwaitNoError(ctx, a.String()+" on the Pod's node "+node, func(context.Context) error {
					if h := awaitHolderOfAddress(ctx, t, s, a).Status.Node; h != node {
						return fmt.Errorf("%s holds it", h)
					}
					return nil
				}))
			}
			failOnError(t, awaitOnlyPodOnNode(ctx, s, "local", node))
			f.awaitMoreAnswers(ctx, t)
		}
		return f.stopAndFindLostRequests(t, 2, "the Pod moved from node to node")
	})
	_, err = s.RunKubectl(ctx, "", "delete", "--wait=false", "deployment/local", "service/local")
	failOnError(t, err)
}
