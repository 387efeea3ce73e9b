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

// maxFailedConnections is how many connections of one client may fail in the 15 s after that. Of 15
// in a second, 56 fail without rules.
const maxFailedConnections = 3

// minConnectionsPerRate times its rate is how many connections a client has opened at least.
const minConnectionsPerRate = 13

// TestNewConnectionsGoAroundDeadNodes kills nodes with Pods while clients of both families open
// connections: first one that does not hold the addresses, then a holder.
func TestNewConnectionsGoAroundDeadNodes(t *testing.T) {
	for _, mode := range []string{lab.KubeProxyNFTables, lab.KubeProxyIPTables} {
		t.Run(mode, func(t *testing.T) {
			ctx, l := startSteeringLab(t, mode)
			before := l.listRulesOfOthersOnLivingNodes(t)
			t.Run("the dead node holds no address", func(t *testing.T) {
				l.testDeathOfNodeWithoutAddress(ctx, t)
			})
			t.Run("the dead node holds an address, and kube-proxy restarts", func(t *testing.T) {
				l.testDeathOfHolder(ctx, t)
			})
			if mode == lab.KubeProxyNFTables {
				l.testFaultsWhileSteering(ctx, t)
			}
			if after := l.listRulesOfOthersOnLivingNodes(t); after != before {
				t.Errorf("the rules that are neither ours nor kube-proxy's were\n%s\nand are\n%s", before, after)
			}
		})
	}
}

// testDeathOfNodeWithoutAddress kills the node that holds no address.
func (l *steeringLab) testDeathOfNodeWithoutAddress(ctx context.Context, t *testing.T) {
	nodesBefore := l.awaitNodesOfAffineClients(ctx, t, nil)
	stopRefused := l.startRefusedClients(ctx, t)
	l.killNode(ctx, t, l.victim, func() error {
		if err := awaitTable(ctx, l.Cluster, l.holder); err != nil {
			return err
		}
		l.checkSteeredLinks(t)
		l.checkAffineClients(ctx, t, nodesBefore)
		return nil
	})
	stopRefused()
	l.reviveNode(ctx, t, l.victim)
}

// testDeathOfHolder kills the node that holds the addresses. Afterwards kube-proxy restarts on all
// other nodes.
func (l *steeringLab) testDeathOfHolder(ctx context.Context, t *testing.T) {
	stopRefused := l.startRefusedClients(ctx, t)
	l.killNode(ctx, t, l.holder, func() error {
		if err := awaitTableOnAnyNode(ctx, l.Cluster); err != nil {
			return err
		}
		for i := 1; i <= steeringLabNodes; i++ {
			if node := fmt.Sprintf("node%d", i); node != l.holder {
				if err := l.RestartKubeProxy(ctx, node); err != nil {
					return err
				}
			}
		}
		return nil
	})
	stopRefused()
	l.reviveNode(ctx, t, l.holder)
}

// killNode kills a node and does something else, while the clients open connections.
func (l *steeringLab) killNode(ctx context.Context, t *testing.T, node string, meanwhile func() error) {
	t.Helper()
	l.causeFault(ctx, t, maxFailedConnections, func() error {
		if err := l.KillNode(ctx, node); err != nil {
			return err
		}
		return meanwhile()
	})
}

// causeFault causes a fault while the clients open connections. At most limit connections of each
// client may fail after deathNoticeInterval.
func (l *steeringLab) causeFault(ctx context.Context, t *testing.T, limit int, causeFault func() error) {
	t.Helper()
	outcomes, err := l.CauseFaultWhileClientsConnect(ctx, l.clients, deathNoticeInterval, causeFault)
	failOnError(t, err)
	for _, o := range outcomes {
		atLeast := o.Client.ConnectionsPerSecond * minConnectionsPerRate
		if t.Log(o); o.Failed > limit || o.Count < atLeast {
			t.Errorf("after %v %d of %d connections failed, want at most %d of at least %d", deathNoticeInterval, o.Failed, o.Count, limit, atLeast)
		}
	}
}

// reviveNode starts a killed node, and waits until the cluster is as before.
func (l *steeringLab) reviveNode(ctx context.Context, t *testing.T, node string) {
	t.Helper()
	failOnError(t, l.ReviveNode(ctx, node))
	failOnError(t, l.AwaitGantryRollout(ctx))
	l.awaitSteeringEnd(ctx, t)
}

// awaitSteeringEnd waits until nothing is steered, and until the usual node holds the addresses.
func (l *steeringLab) awaitSteeringEnd(ctx context.Context, t *testing.T) {
	t.Helper()
	failOnError(t, awaitNoTableOnNodes(ctx, l.Cluster))
	awaitAllHeldBy(ctx, t, l.Cluster, l.holder)
}

// testFaultsWhileSteering causes faults of programs. No connection may fail for long.
func (l *steeringLab) testFaultsWhileSteering(ctx context.Context, t *testing.T) {
	t.Run("a node that seems dead lives", func(t *testing.T) {
		l.causeFault(ctx, t, 0, func() error { return l.SignalProgramOrPod(ctx, l.victim, "gantry-speaker", syscall.SIGSTOP) })
		l.causeFault(ctx, t, 0, func() error { return l.SignalProgramOrPod(ctx, l.victim, "gantry-speaker", syscall.SIGCONT) })
		l.awaitSteeringEnd(ctx, t)
	})
	t.Run("the holder's speaker is killed while a node is dead", func(t *testing.T) {
		l.killNode(ctx, t, l.victim, func() error {
			if err := awaitTable(ctx, l.Cluster, l.holder); err != nil {
				return err
			}
			return l.SignalProgramOrPod(ctx, l.holder, "gantry-speaker", syscall.SIGKILL)
		})
		l.reviveNode(ctx, t, l.victim)
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

// awaitTableOnAnyNode waits until a node has the table with the rules that steer.
func awaitTableOnAnyNode(ctx context.Context, s *cluster.Cluster) error {
	return cluster.AwaitNoError(ctx, "the rules on any node", func(context.Context) error {
		for i := 1; i <= steeringLabNodes; i++ {
			if tables, err := listTables(s, fmt.Sprintf("node%d", i)); err != nil || strings.Contains(tables, steeringTable) {
				return err
			}
		}
		return fmt.Errorf("no node has them")
	})
}

// awaitAllHeldBy waits until one node holds all addresses.
func awaitAllHeldBy(ctx context.Context, t *testing.T, s *cluster.Cluster, node string) {
	t.Helper()
	failOnError(t, cluster.AwaitNoError(ctx, "all addresses on "+node, func(context.Context) error {
		if all := awaitHolders(ctx, t, s); slices.ContainsFunc(all, func(n string) bool { return n != node }) {
			return fmt.Errorf("they are on %v", all)
		}
		return nil
	}))
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

// awaitNoTableOnNodes waits until no node of a steeringLab has the table with the rules that steer.
func awaitNoTableOnNodes(ctx context.Context, s *cluster.Cluster) error {
	for i := 1; i <= steeringLabNodes; i++ {
		if err := awaitNoTableOn(ctx, s, fmt.Sprintf("node%d", i)); err != nil {
			return err
		}
	}
	return nil
}

// awaitNoTableOn waits until a node does not have it.
func awaitNoTableOn(ctx context.Context, s *cluster.Cluster, node string) error {
	return cluster.AwaitNoError(ctx, "the end of the steering on "+node, func(context.Context) error {
		out, err := listTables(s, node)
		if err == nil && strings.Contains(out, steeringTable+"\n") {
			err = fmt.Errorf("it has the tables %s", out)
		}
		return err
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
