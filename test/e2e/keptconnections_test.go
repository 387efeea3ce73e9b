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
			m.move(ctx, t, "SIGTERM of the holders' speakers", func() error {
				for _, node := range slices.Compact(slices.Sorted(slices.Values(first))) {
					if err := s.SignalProgramOrPod(ctx, node, "gantry-speaker", syscall.SIGTERM); err != nil {
						return err
					}
				}
				return nil
			})
			failOnError(t, s.AwaitGantryRollout(ctx))
			second := awaitHolders(ctx, t, s)
			m.move(ctx, t, "drain of a holder", func() error {
				_, err := s.RunKubectl(ctx, "", "annotate", "node", second[0], names.AnnotationDrainNode+"=true")
				return err
			})
			m.move(ctx, t, "move back to the first holder", func() error {
				if _, err := s.RunKubectl(ctx, "", "annotate", "node", second[0], names.AnnotationDrainNode+"-"); err != nil {
					return err
				}
				_, err := s.RunKubectl(ctx, "", "annotate", "service", "everywhere", names.AnnotationRequestedHolder+"="+first[0])
				return err
			})
			m.move(ctx, t, "rollout of all speakers", func() error {
				_, err := s.RunKubectl(ctx, "", "-n", "metallb-system", "rollout", "restart", "daemonset/gantry-speaker")
				return err
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

// move opens connections, causes a move, and waits until all connections have further answers.
func (m *keptMoves) move(ctx context.Context, t *testing.T, name string, cause func() error) {
	t.Helper()
	before := awaitHolders(ctx, t, m.s)
	k, err := m.s.OpenKeptConnections(ctx, "client", m.urls, keptConnectionsPerURL)
	failOnError(t, err)
	m.opened, m.names = append(m.opened, k), append(m.names, name)
	failOnError(t, cause())
	failOnError(t, cluster.AwaitNoError(ctx, "other holders", func(context.Context) error {
		if now := awaitHolders(ctx, t, m.s); slices.Equal(now, before) {
			return fmt.Errorf("they are still %v", now)
		}
		return nil
	}))
	for _, k := range m.opened {
		failOnError(t, k.AwaitMoreAnswersOnEach(ctx))
	}
	t.Logf("%s: %s, then %s", name, strings.Join(before, " "), strings.Join(awaitHolders(ctx, t, m.s), " "))
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
