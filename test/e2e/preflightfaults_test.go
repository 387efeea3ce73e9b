package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/report"
	"github.com/gantry-lb/gantry/test/cluster"
)

// preflightFault is a fault of a node or of the cluster.
type preflightFault struct {
	name string
	// node is the one that has the fault; empty for the cluster.
	node  string
	cause func(ctx context.Context, s *cluster.Cluster) error
	// check is the name of the check that finds it. Its text has text, and mend is all that it says
	// to do.
	check, text, mend string
	// repair ends what the command in mend does not; nil if that is enough. If isMendManual is set,
	// mend is nothing that can be done in the lab.
	repair       func(ctx context.Context, s *cluster.Cluster) error
	isMendManual bool
	// mendedLink is the link that the command in mend is about.
	mendedLink string
}

// runOnNode returns a function that runs programs on a node, each with its arguments in one line.
func runOnNode(node string, commands ...string) func(context.Context, *cluster.Cluster) error {
	return func(_ context.Context, s *cluster.Cluster) error {
		for _, c := range commands {
			words := strings.Fields(c)
			if err := s.RunOnHost(node, words[0], words[1:]...); err != nil {
				return err
			}
		}
		return nil
	}
}

// signalOnNode returns a function that sends a signal to a program or a Pod of a node.
func signalOnNode(node, program string, s syscall.Signal) func(context.Context, *cluster.Cluster) error {
	return func(ctx context.Context, c *cluster.Cluster) error {
		return c.SignalProgramOrPod(ctx, node, program, s)
	}
}

// blockGossip returns a function that drops a protocol of the gossip in one direction.
func blockGossip(from, to string, protocols ...string) func(context.Context, *cluster.Cluster) error {
	return func(ctx context.Context, s *cluster.Cluster) error {
		return s.BlockGossipOneWay(ctx, []string{from}, []string{to}, protocols...)
	}
}

func unblockGossip(node string) func(context.Context, *cluster.Cluster) error {
	return func(ctx context.Context, s *cluster.Cluster) error { return s.UnblockPorts(ctx, node) }
}

// applyFaultManifest returns a function that applies a manifest.
func applyFaultManifest(manifest string) func(context.Context, *cluster.Cluster) error {
	return func(ctx context.Context, s *cluster.Cluster) error { return s.ApplyManifests(ctx, manifest) }
}

// otherProgramOnPort waits on a port, as a program does that is not Gantry.
type otherProgramOnPort struct {
	node, network, port string
	stop                func() error
}

func (o *otherProgramOnPort) start(_ context.Context, s *cluster.Cluster) error {
	if o.network == "udp" {
		c, err := s.NamespaceOfHost(o.node).ListenPacket(o.network, net.JoinHostPort("", o.port))
		if err == nil {
			o.stop = c.Close
		}
		return err
	}
	l, err := s.NamespaceOfHost(o.node).Listen(o.network, net.JoinHostPort("", o.port))
	if err == nil {
		o.stop = l.Close
	}
	return err
}

func (o *otherProgramOnPort) end(context.Context, *cluster.Cluster) error { return o.stop() }

const (
	// ipvsWithoutStrictARPManifest is how kubeadm writes the configuration of kube-proxy.
	ipvsWithoutStrictARPManifest = `apiVersion: v1
kind: ConfigMap
metadata: {name: kube-proxy, namespace: kube-system}
data:
  config.conf: |
    kind: KubeProxyConfiguration
    mode: ipvs
    ipvs: {}
`
	// kubeVIPManifest is kube-vip for Services, on no node.
	kubeVIPManifest = `apiVersion: apps/v1
kind: DaemonSet
metadata: {name: kube-vip-ds, namespace: kube-system}
spec:
  selector: {matchLabels: {name: kube-vip-ds}}
  template:
    metadata: {labels: {name: kube-vip-ds}}
    spec:
      nodeSelector: {none: "true"}
      containers: [{name: kube-vip, image: registry.invalid/kube-vip, env: [{name: svc_enable, value: "true"}]}]
`
	baselineNamespaceManifest = `apiVersion: v1
kind: Namespace
metadata: {name: metallb-system, labels: {pod-security.kubernetes.io/enforce: baseline}}
`
	mendOfUsedPorts = "on the node: ss -lntup; stop the program, or give Gantry other ports by its flags"
)

// preflightFaultsBeforeInstallation are two rounds of faults. Those of a round do not hide each
// other.
func preflightFaultsBeforeInstallation() [][]preflightFault {
	metrics, bfd := &otherProgramOnPort{node: "node2", network: "tcp", port: "7473"}, &otherProgramOnPort{node: "node1", network: "udp", port: "3784"}
	return [][]preflightFault{{
		{name: "proxy ARP", node: "node1", cause: runOnNode("node1", "sysctl -w net.ipv4.conf.eth0.proxy_arp=1"), check: "proxy ARP", text: "node1: proxy_arp of eth0 is on",
			mend: "on the node: sysctl -w net.ipv4.conf.LINK.proxy_arp=0 net.ipv4.conf.all.proxy_arp=0, and the same in /etc/sysctl.d", mendedLink: "eth0"},
		{name: "MTU", node: "node2", cause: runOnNode("node2", "ip link set dev eth0 mtu 1400"), check: "MTU", text: "node2: the MTU of the link in 192.168.0.0/24 is 1400, and 1500 on most nodes",
			mend: "on the node: ip link set dev LINK mtu 1500, and the same in its configuration", mendedLink: "eth0"},
		{name: "forwarding", node: "node3", cause: runOnNode("node3", "sysctl -w net.ipv4.ip_forward=0"), check: "forwarding", text: "node3: net.ipv4.ip_forward is 0",
			mend: "on the node: sysctl -w net.ipv4.ip_forward=1, and the same in /etc/sysctl.d"},
		{name: "blocked UDP", cause: blockGossip("node1", "node3", "udp"), check: "gossip", text: "node1: by UDP it does not reach port 7946 of node3",
			mend: "let firewalls between the nodes pass UDP port 7946 from node1 to node3", isMendManual: true, repair: unblockGossip("node1")},
		{name: "the port of the metrics", cause: metrics.start, check: "ports", text: "node2: another program waits on TCP port 7473", mend: mendOfUsedPorts, isMendManual: true, repair: metrics.end},
		{name: "kube-proxy hangs", cause: signalOnNode("node1", "kube-proxy", syscall.SIGSTOP), check: "kube-proxy", text: "node1: its health check on 127.0.0.1:10256 does not answer",
			mend: "kubectl -n kube-system rollout restart daemonset kube-proxy", isMendManual: true, repair: signalOnNode("node1", "kube-proxy", syscall.SIGCONT)},
		{name: "strictARP", cause: applyFaultManifest(ipvsWithoutStrictARPManifest), check: "strictARP", text: "kube-proxy is configured for mode ipvs without strictARP",
			mend:         `kubectl -n kube-system edit configmap kube-proxy, set "strictARP: true", then: kubectl -n kube-system rollout restart daemonset kube-proxy`,
			isMendManual: true, repair: applyFaultManifest(strings.Replace(ipvsWithoutStrictARPManifest, "ipvs: {}", "ipvs:\n      strictARP: true", 1))},
		{name: "PodSecurity", cause: applyFaultManifest(baselineNamespaceManifest), check: "PodSecurity", text: "namespace metallb-system enforces the level baseline",
			mend: "kubectl label namespace metallb-system --overwrite pod-security.kubernetes.io/enforce=privileged"},
		{name: "another controller", cause: applyFaultManifest(kubeVIPManifest), check: "other controllers", text: "kube-vip (daemonset/kube-vip-ds in namespace kube-system) serves Services of type LoadBalancer",
			mend: "kubectl -n kube-system set env daemonset/kube-vip-ds svc_enable=false; or give Gantry a class of its own by --load-balancer-class"},
	}, {
		{name: "rp_filter", node: "node1", cause: runOnNode("node1", "ip link add eth1 type veth peer name eth1-peer", "ip address add 198.51.100.1/24 dev eth1", "ip link set eth1 up", "ip link set eth1-peer up", "sysctl -w net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.eth1.rp_filter=1"),
			check: "rp_filter", text: "node1: it has 2 links, and rp_filter of eth1 is strict (1)",
			mend: "on the node: sysctl -w net.ipv4.conf.all.rp_filter=2 net.ipv4.conf.LINK.rp_filter=2, and the same in /etc/sysctl.d", mendedLink: "eth1"},
		{name: "two links in one subnet", node: "node2", cause: runOnNode("node2", "ip link add eth1 type veth peer name eth1-peer", "ip address add 192.168.0.77/24 dev eth1 noprefixroute", "ip link set eth1 up", "ip link set eth1-peer up",
			"sysctl -w net.ipv4.conf.all.rp_filter=2 net.ipv4.conf.all.arp_ignore=0 net.ipv4.conf.eth0.arp_ignore=0 net.ipv4.conf.eth1.arp_ignore=0"),
			check: "arp_ignore and arp_announce", text: "node2: several links are in 192.168.0.0/24, and arp_ignore or arp_announce is 0",
			mend: "on the node: sysctl -w net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2, and the same in /etc/sysctl.d"},
		{name: "the length of a prefix", cause: runOnNode("node3", "ip address add 192.168.0.13/25 dev eth0", "ip address del 192.168.0.13/24 dev eth0"),
			check: "subnets", text: "node3: the link is in 192.168.0.0/25, and that of node1, node2 in 192.168.0.0/24: one of the lengths is wrong",
			mend: "give the address of the link the same length of the prefix on all nodes", isMendManual: true,
			repair: runOnNode("node3", "ip address add 192.168.0.13/24 dev eth0", "ip address del 192.168.0.13/25 dev eth0")},
		{name: "blocked TCP", cause: blockGossip("node2", "node1", "tcp"), check: "gossip", text: "node2: by TCP it does not reach port 7946 of node1",
			mend: "let firewalls between the nodes pass TCP port 7946 from node2 to node1", isMendManual: true, repair: unblockGossip("node2")},
		{name: "IPv6 is off", node: "node3", cause: runOnNode("node3", "sysctl -w net.ipv6.conf.eth0.disable_ipv6=1"), check: "IPv6", text: "node3: no link there has IPv6, and other nodes have it",
			mend: "on the node: sysctl -w net.ipv6.conf.all.disable_ipv6=0, and an IPv6 address for the link"},
		{name: "the port of BFD", cause: bfd.start, check: "ports", text: "node1: another program waits on UDP port 3784", mend: mendOfUsedPorts, isMendManual: true, repair: bfd.end},
	}}
}

// preflightFaultsAfterInstallation are what speakers report. Each one is a round of its own: a dead
// speaker is no witness of blocked gossip.
func preflightFaultsAfterInstallation() [][]preflightFault {
	return [][]preflightFault{{
		{name: "speakers hear each other no more", cause: blockGossip("node1", "node2", "tcp", "udp"), check: "gossip", text: "node1: ",
			mend: "let firewalls between the nodes pass TCP and UDP port 7946, in both directions", isMendManual: true, repair: unblockGossip("node1")},
	}, {
		{name: "a speaker hangs", cause: signalOnNode("node3", "gantry-speaker", syscall.SIGSTOP), check: "nodes", text: "node3: its speaker is dead",
			mend: "kubectl gantry explain node NAME", isMendManual: true, repair: signalOnNode("node3", "gantry-speaker", syscall.SIGCONT)},
	}}
}

// commandOfMend returns the command in what a check says to do.
func (f *preflightFault) commandOfMend() []string {
	text := strings.TrimPrefix(f.mend, "on the node: ")
	for _, end := range []string{", and ", "; or "} {
		text, _, _ = strings.Cut(text, end)
	}
	return strings.Fields(strings.ReplaceAll(text, "LINK", f.mendedLink))
}

// endFault does what the check says, and what is left.
func (f *preflightFault) endFault(ctx context.Context, s *cluster.Cluster) error {
	if command := f.commandOfMend(); !f.isMendManual {
		var err error
		if f.node == "" {
			_, err = s.RunKubectl(ctx, "", command[1:]...)
		} else {
			err = s.RunOnHost(f.node, command[0], command[1:]...)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", f.mend, err)
		}
	}
	if f.repair == nil {
		return nil
	}
	return f.repair(ctx, s)
}

// findIn reports whether a report has the fault, with the command that mends it.
func (f *preflightFault) findIn(r *report.Report) bool {
	return slices.ContainsFunc(r.Checks, func(c report.Check) bool {
		return c.Name == f.check && c.Result == report.ResultNotWell && strings.Contains(c.Text, f.text) && c.Mend == f.mend && c.Breaks != "" && c.Documentation != ""
	})
}

// runPreflightRounds makes the faults of each round at once, and expects that each is found by its
// check and that no other check fails. It ends the faults as the checks say; the next round finds
// none of them.
func runPreflightRounds(ctx context.Context, t *testing.T, s *cluster.Cluster, args []string, rounds [][]preflightFault) {
	t.Helper()
	for _, faults := range rounds {
		var wantChecks []string
		for i := range faults {
			failOnError(t, faults[i].cause(ctx, s))
			wantChecks = append(wantChecks, faults[i].check)
		}
		slices.Sort(wantChecks)
		found := awaitPreflightFaults(ctx, t, s, args, faults, slices.Compact(wantChecks))
		for i := range faults {
			t.Run(faults[i].name, func(t *testing.T) {
				if !faults[i].findIn(found) {
					t.Errorf("%s does not say %q, and to do %q: %+v", faults[i].check, faults[i].text, faults[i].mend, found.Checks)
				}
				failOnError(t, faults[i].endFault(ctx, s))
			})
		}
	}
}

// awaitPreflightFaults runs the preflight until it finds all the faults, and only by these checks.
// It returns the last report.
func awaitPreflightFaults(ctx context.Context, t *testing.T, s *cluster.Cluster, args []string, faults []preflightFault, wantChecks []string) *report.Report {
	t.Helper()
	var last *report.Report
	err := cluster.AwaitNoError(ctx, "the preflight", func(ctx context.Context) error {
		out, status, err := runKubectlGantry(ctx, s, append([]string{"preflight", "-o", "json"}, args...)...)
		if err != nil || ctx.Err() != nil {
			return errors.Join(err, ctx.Err())
		}
		r := &report.Report{}
		if err := json.Unmarshal([]byte(out), r); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		last = r
		failed := []string{}
		for _, c := range r.Checks {
			if c.Result == report.ResultNotWell {
				failed = append(failed, c.Name)
			}
		}
		slices.Sort(failed)
		if failed = slices.Compact(failed); status != 1 || !slices.Equal(failed, wantChecks) {
			return fmt.Errorf("it exits with %d, and the checks %q fail, want 1 and %q:\n%s", status, failed, wantChecks, out)
		}
		for i := range faults {
			if !faults[i].findIn(r) {
				return fmt.Errorf("%s is not found: %s", faults[i].name, out)
			}
		}
		return nil
	})
	if err != nil && last == nil {
		t.Fatal(err)
	}
	if err != nil {
		t.Error(err)
	}
	return last
}

// removeObjectsOfFaults removes what the faults have left: objects and second links that do no harm
// any more.
func removeObjectsOfFaults(ctx context.Context, t *testing.T, s *cluster.Cluster) {
	t.Helper()
	for _, object := range []string{"configmap/kube-proxy", "daemonset/kube-vip-ds"} {
		_, err := s.RunKubectl(ctx, "", "-n", "kube-system", "delete", object)
		failOnError(t, err)
	}
	_, err := s.RunKubectl(ctx, "", "label", "namespace", names.DefaultNamespace, "pod-security.kubernetes.io/enforce-")
	failOnError(t, err)
	for _, node := range []string{"node1", "node2"} {
		failOnError(t, s.RunOnHost(node, "ip", "link", "delete", "eth1"))
	}
}
