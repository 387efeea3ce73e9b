package e2e

import (
	"context"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gantry-lb/gantry/test/cluster"
	"github.com/gantry-lb/gantry/test/lab"
)

// deathNoticeInterval is the time after a fault in which connections may fail. A speaker notices a
// death within a second, and later on a machine that is busy with other tests. Kubernetes takes 40
// s.
const deathNoticeInterval = 5 * time.Second

// maxFailedConnections is how many of the 750 connections of one client may fail after that,
// minConnections how many of them it has opened at least. Without rules about 180 fail.
const maxFailedConnections, minConnections = 3, 650

// TestNewConnectionsGoAroundDeadNodes kills nodes with Pods while clients of both families open
// connections: first one that does not hold the addresses, then a holder.
func TestNewConnectionsGoAroundDeadNodes(t *testing.T) {
	for _, mode := range []string{lab.KubeProxyNFTables, lab.KubeProxyIPTables} {
		t.Run(mode, func(t *testing.T) {
			ctx, s := startLabWithoutGantry(t, lab.Options{Nodes: 4, ProxyMode: mode, Families: lab.DualStack})
			failOnError(t, s.InstallGantryOverlay(ctx, "continuity"))
			failOnError(t, s.ApplyManifests(ctx, dualStackPoolAndL2AdvertisementManifest))
			failOnError(t, s.ApplyManifests(ctx, cluster.PodOnEachNodeManifest+"  ipFamilyPolicy: RequireDualStack\n"))
			urls, err := s.AwaitURLsOfPodOnEachNode(ctx, 2)
			failOnError(t, err)
			holders := awaitHolders(ctx, t, s)
			before := listRulesOfOthers(t, s, "node1")

			killAndRevive := func(t *testing.T, node string) {
				failed, count := countFailuresAfterDeath(ctx, t, s, urls, node)
				if failed > len(urls)*maxFailedConnections || count < len(urls)*minConnections {
					t.Errorf("after %v %d of %d connections failed, want at most %d", deathNoticeInterval, failed, count, len(urls)*maxFailedConnections)
				}
				failOnError(t, s.ReviveNode(ctx, node))
				failOnError(t, awaitNoTableOnNodes(ctx, s))
			}
			t.Run("the dead node holds no address", func(t *testing.T) {
				killAndRevive(t, nodeThatIsNot(holders))
			})
			t.Run("the dead node holds an address", func(t *testing.T) {
				failOnError(t, s.AwaitGantryRollout(ctx))
				killAndRevive(t, awaitHolders(ctx, t, s)[0])
			})
			if mode == lab.KubeProxyNFTables {
				failOnError(t, s.AwaitGantryRollout(ctx))
				checkFaultsWhileSteering(ctx, t, s, urls)
			}
			if after := listRulesOfOthers(t, s, "node1"); after != before {
				t.Errorf("the rules that are neither ours nor kube-proxy's were\n%s\nand are\n%s", before, after)
			}
		})
	}
}

// checkFaultsWhileSteering causes faults of programs. No connection may fail for long.
func checkFaultsWhileSteering(ctx context.Context, t *testing.T, s *cluster.Cluster, urls []string) {
	check := func(t *testing.T, limit int, causeFault func() error) {
		outcomes, err := s.CauseFaultWhileClientsConnect(ctx, urls, deathNoticeInterval, causeFault)
		failOnError(t, err)
		for _, o := range outcomes {
			if t.Log(o); o.Failed > limit {
				t.Errorf("after %v %d connections failed, want at most %d", deathNoticeInterval, o.Failed, limit)
			}
		}
	}
	node := nodeThatIsNot(awaitHolders(ctx, t, s))
	t.Run("a node that seems dead lives", func(t *testing.T) {
		check(t, 0, func() error { return s.SignalProgramOrPod(ctx, node, "gantry-speaker", syscall.SIGSTOP) })
		check(t, 0, func() error { return s.SignalProgramOrPod(ctx, node, "gantry-speaker", syscall.SIGCONT) })
		failOnError(t, awaitNoTableOnNodes(ctx, s))
	})
	t.Run("the holder's speaker is killed while a node is dead", func(t *testing.T) {
		holder := awaitHolders(ctx, t, s)[0]
		check(t, maxFailedConnections, func() error {
			if err := s.KillNode(ctx, node); err != nil {
				return err
			}
			if err := awaitTable(ctx, s, holder); err != nil {
				return err
			}
			return s.SignalProgramOrPod(ctx, holder, "gantry-speaker", syscall.SIGKILL)
		})
		failOnError(t, s.ReviveNode(ctx, node))
		failOnError(t, awaitNoTableOnNodes(ctx, s))
	})
}

// steeringTable is the table with the rules that steer.
const steeringTable = "table inet gantry"

// awaitTable waits until a node has the table with the rules that steer.
func awaitTable(ctx context.Context, s *cluster.Cluster, node string) error {
	return cluster.AwaitNoError(ctx, "the rules on "+node, func(context.Context) error {
		tables, err := listTables(s, node)
		if err == nil && !strings.Contains(tables, steeringTable) {
			err = fmt.Errorf("it has the tables %s", tables)
		}
		return err
	})
}

// awaitHolders returns the nodes that announce the Service.
func awaitHolders(ctx context.Context, t *testing.T, s *cluster.Cluster) []string {
	t.Helper()
	var holders []string
	failOnError(t, cluster.AwaitNoError(ctx, "the holders", func(ctx context.Context) error {
		out, err := s.RunKubectl(ctx, "", "-n", "metallb-system", "get", "servicel2statuses", "-o", "jsonpath={.items[*].status.node}")
		if err != nil {
			return err
		}
		if holders = strings.Fields(out); len(holders) == 0 {
			return fmt.Errorf("no node announces the Service")
		}
		return nil
	}))
	return holders
}

func nodeThatIsNot(holders []string) string {
	for i := 1; ; i++ {
		if name := fmt.Sprintf("node%d", i); !strings.Contains(strings.Join(holders, " "), name) {
			return name
		}
	}
}

// countFailuresAfterDeath kills a node while clients open connections. It returns how many of those
// failed that began after deathNoticeInterval.
func countFailuresAfterDeath(ctx context.Context, t *testing.T, s *cluster.Cluster, urls []string, node string) (failed, count int) {
	t.Helper()
	outcomes, err := s.KillNodeWhileClientsConnect(ctx, urls, deathNoticeInterval, node)
	failOnError(t, err)
	for _, o := range outcomes {
		t.Log(o)
		failed, count = failed+o.Failed, count+o.Count
	}
	return failed, count
}

// awaitNoTableOnNodes waits until no node has the table with the rules that steer.
func awaitNoTableOnNodes(ctx context.Context, s *cluster.Cluster) error {
	return cluster.AwaitNoError(ctx, "the end of the steering", func(ctx context.Context) error {
		for i := 1; i <= 4; i++ {
			out, err := listTables(s, fmt.Sprintf("node%d", i))
			if err != nil {
				return err
			}
			if strings.Contains(out, steeringTable+"\n") {
				return fmt.Errorf("node%d has the tables %s", i, out)
			}
		}
		return nil
	})
}

// listTables lists the nftables tables of a node.
func listTables(s *cluster.Cluster, node string) (tables string, err error) {
	err = s.NamespaceOfHost(node).RunInside(func() error {
		out, err := exec.Command("nft", "list", "tables").CombinedOutput()
		tables = string(out)
		return err
	})
	return tables, err
}

// listRulesOfOthers returns the stateless rules of a node that are neither ours nor kube-proxy's.
func listRulesOfOthers(t *testing.T, s *cluster.Cluster, node string) string {
	t.Helper()
	tables, err := listTables(s, node)
	failOnError(t, err)
	var rules []string
	for _, table := range strings.Split(strings.TrimSpace(tables), "\n") {
		name := strings.TrimPrefix(table, "table ")
		if strings.Contains(name, "gantry") || strings.Contains(name, "kube-proxy") || name == "" {
			continue
		}
		failOnError(t, s.NamespaceOfHost(node).RunInside(func() error {
			out, err := exec.Command("nft", append([]string{"--stateless", "list", "table"}, strings.Fields(name)...)...).CombinedOutput()
			isOfProxy := false
			for _, line := range strings.Split(string(out), "\n") {
				if strings.HasPrefix(line, "\tchain ") {
					isOfProxy = strings.Contains(line, "KUBE-")
				}
				if !isOfProxy && !strings.Contains(line, "KUBE-") && strings.HasPrefix(line, "\t") {
					rules = append(rules, name+line)
				}
			}
			return err
		}))
	}
	slices.Sort(rules)
	return strings.Join(rules, "\n")
}
