package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/test/cluster"
	"github.com/gantry-lb/gantry/test/lab"
)

// keptConnectionsPerURL is how many connections each step opens to each address.
const keptConnectionsPerURL = 5

// TestOpenConnectionsSurvivePlannedMoves moves addresses of both families from node to node and
// back. Before each move clients open connections, and all of them stay open to the end.
func TestOpenConnectionsSurvivePlannedMoves(t *testing.T) {
	for _, mode := range []string{lab.KubeProxyNFTables, lab.KubeProxyIPTables} {
		t.Run(mode, func(t *testing.T) {
			ctx, s := startLabWithoutGantry(t, lab.Options{Nodes: 3, ProxyMode: mode, Families: lab.DualStack})
			failOnError(t, s.InstallGantryOverlay(ctx, "continuity"))
			failOnError(t, s.ApplyManifests(ctx, dualStackPoolAndL2AdvertisementManifest))
			failOnError(t, s.ApplyManifests(ctx, cluster.PodOnEachNodeManifest+"  ipFamilyPolicy: RequireDualStack\n"))
			urls, err := s.AwaitURLsOfPodOnEachNode(ctx, 2)
			failOnError(t, err)

			m := &keptMoves{s: s, urls: urls}
			first := awaitHolders(ctx, t, s)
			m.move(ctx, t, "SIGTERM of the holders' speakers", "", func() error {
				for _, node := range slices.Compact(slices.Sorted(slices.Values(first))) {
					if err := s.SignalProgramOrPod(ctx, node, "gantry-speaker", syscall.SIGTERM); err != nil {
						return err
					}
				}
				return nil
			})
			failOnError(t, s.AwaitGantryRollout(ctx))
			second := awaitHolders(ctx, t, s)
			m.move(ctx, t, "drain of a holder", "", func() error {
				return m.kubectl(ctx, "annotate", "node", second[0], names.AnnotationDrainNode+"=true")
			})
			failOnError(t, m.kubectl(ctx, "annotate", "node", second[0], names.AnnotationDrainNode+"-"))
			for _, node := range []string{"node1", "node2", "node3", "node2", "node1"} {
				if slices.Equal(slices.Compact(awaitHolders(ctx, t, s)), []string{node}) {
					continue
				}
				m.move(ctx, t, "move by hand to "+node, node, func() error {
					return m.kubectl(ctx, "annotate", "--overwrite", "service", "everywhere", names.AnnotationRequestedHolder+"="+node)
				})
			}
			for _, node := range []string{"node1", "node2", "node3"} {
				failOnError(t, s.RestartKubeProxy(ctx, node))
			}
			m.awaitMoreAnswers(ctx, t)
			if mode == lab.KubeProxyNFTables { // kube-proxy has no part in these
				m.testFlapsOfFormerHolders(ctx, t, "node1", "node2", "node3")
				m.testSelectorEditAndRebalance(ctx, t)
			}
			m.move(ctx, t, "rollout of all speakers", "", func() error {
				return m.kubectl(ctx, "-n", "metallb-system", "rollout", "restart", "daemonset/gantry-speaker")
			})
			failOnError(t, s.AwaitGantryRollout(ctx))
			m.requireAllAlive(ctx, t)
		})
	}
}

// keptMoves are open connections and the moves that they lived through.
type keptMoves struct {
	s    *cluster.Cluster
	urls []string
	// opened are the connections of each step, by the name of the step.
	opened []*cluster.KeptConnections
	names  []string
}

func (m *keptMoves) kubectl(ctx context.Context, args ...string) error {
	_, err := m.s.RunKubectl(ctx, "", args...)
	return err
}

// applyAdvertisement applies the L2Advertisement with extra lines in its spec.
func (m *keptMoves) applyAdvertisement(ctx context.Context, extra string) error {
	_, doc, _ := strings.Cut(cluster.FirstPoolAndL2AdvertisementManifest, "---")
	return m.s.ApplyManifests(ctx, doc+extra)
}

// testFlapsOfFormerHolders cuts the cable of each former holder until the holder calls it dead.
func (m *keptMoves) testFlapsOfFormerHolders(ctx context.Context, t *testing.T, holder string, former ...string) {
	for _, node := range former {
		failOnError(t, m.s.CutCableKeepingCarrier(ctx, node))
		failOnError(t, awaitTable(ctx, m.s, holder)) // the node has a Pod, which gets nothing more
		failOnError(t, m.s.PlugCable(ctx, node))
		m.awaitMoreAnswers(ctx, t)
		failOnError(t, awaitNoTableOn(ctx, m.s, holder))
	}
	awaitAllHeldBy(ctx, t, m.s, holder)
}

// testSelectorEditAndRebalance lets a selector admit another node only, and then spreads the two
// addresses.
func (m *keptMoves) testSelectorEditAndRebalance(ctx context.Context, t *testing.T) {
	failOnError(t, m.kubectl(ctx, "annotate", "service", "everywhere", names.AnnotationRequestedHolder+"-"))
	m.move(ctx, t, "edit of a selector", "node3", func() error {
		return m.applyAdvertisement(ctx, "  nodeSelectors:\n  - matchLabels: {kubernetes.io/hostname: node3}\n")
	})
	m.move(ctx, t, "rebalance", "", func() error {
		return m.applyAdvertisement(ctx, "  gantry: {rebalance: Paced}\n")
	})
	failOnError(t, m.applyAdvertisement(ctx, ""))
}

// move opens connections, causes a move, and waits until all connections have further answers. If
// to is not empty, all addresses have to move to this node.
func (m *keptMoves) move(ctx context.Context, t *testing.T, name, to string, cause func() error) {
	t.Helper()
	before := awaitHolders(ctx, t, m.s)
	k, err := m.s.OpenKeptConnections(ctx, "client", m.urls, keptConnectionsPerURL)
	failOnError(t, err)
	m.opened, m.names = append(m.opened, k), append(m.names, name)
	failOnError(t, cause())
	failOnError(t, cluster.AwaitNoError(ctx, "other holders", func(context.Context) error {
		now := awaitHolders(ctx, t, m.s)
		isElsewhere := slices.ContainsFunc(now, func(node string) bool { return node != to })
		if slices.Equal(now, before) || to != "" && isElsewhere {
			return fmt.Errorf("they are %v, and were %v", now, before)
		}
		return nil
	}))
	m.awaitMoreAnswers(ctx, t)
	t.Logf("%s: %s, then %s", name, strings.Join(before, " "), strings.Join(awaitHolders(ctx, t, m.s), " "))
}

// awaitMoreAnswers waits until all connections have further answers.
func (m *keptMoves) awaitMoreAnswers(ctx context.Context, t *testing.T) {
	t.Helper()
	for _, k := range m.opened {
		failOnError(t, k.AwaitMoreAnswersOnEach(ctx))
	}
}

// requireAllAlive closes all connections. It fails if one ended before.
func (m *keptMoves) requireAllAlive(ctx context.Context, t *testing.T) {
	t.Helper()
	for i, k := range m.opened {
		failOnError(t, k.AwaitMoreAnswersOnEach(ctx))
		failures, longest := k.CloseAndListFailures()
		t.Logf("opened before %s: the longest time between two answers is %v", m.names[i], longest.Round(time.Millisecond))
		for _, err := range failures {
			t.Errorf("opened before %s: %v", m.names[i], err)
		}
	}
}
