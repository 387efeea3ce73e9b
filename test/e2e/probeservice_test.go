package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/gantry-lb/gantry/test/cluster"
	"github.com/gantry-lb/gantry/test/lab"
)

// probeCase asks one Service, whose name is the name of the case after "operated-".
type probeCase struct {
	name string
	// ports are those of the Service in YAML; empty if another manifest has the Service.
	ports string
	// cause makes the fault for the address of the Service, and end removes it; nil for none.
	cause, end func(ctx context.Context, s *cluster.Cluster, address netip.Addr) error
	// host is where the command runs: client by default, or far, which is behind a router.
	host string
	// from is the node whose speaker is asked too; empty for none.
	from string
	// as is the user; empty for the administrator.
	as         string
	wantStatus int
	// wantTexts are in the first line, and wantDetails in any line.
	wantTexts, wantDetails []string
}

const webPort = "[{port: 80, targetPort: 8080}]"

// runForAddress returns a function that runs programs on hosts. ADDRESS stands for the address, and
// the first word of each line is the host.
func runForAddress(commands ...string) func(context.Context, *cluster.Cluster, netip.Addr) error {
	return func(_ context.Context, s *cluster.Cluster, a netip.Addr) error {
		for _, c := range commands {
			words := strings.Fields(strings.ReplaceAll(c, "ADDRESS", a.String()))
			if err := s.RunOnHost(words[0], words[1], words[2:]...); err != nil {
				return err
			}
		}
		return nil
	}
}

// dropByRules returns functions that drop packets on hosts by a rule, and remove it. Each rule
// needs a table of its own.
func dropByRules(table, chain, rule string, hosts ...string) (cause, end func(context.Context, *cluster.Cluster, netip.Addr) error) {
	var add, remove []string
	for _, h := range hosts {
		add = append(add, h+" nft add table "+table, h+" nft add chain "+table+" check { "+chain+" ; }", h+" nft add rule "+table+" check "+rule+" drop")
		remove = append(remove, h+" nft delete table "+table)
	}
	return runForAddress(add...), runForAddress(remove...)
}

// probeCases are the ways in which a Service answers or does not, each with the step and who has to
// act.
func probeCases() []probeCase {
	dropOnNodes, allowOnNodes := dropByRules("ip probe-nodes", "type filter hook prerouting priority -300", "ip daddr ADDRESS tcp dport 80", "node1", "node2", "node3")
	dropOnRouter, allowOnRouter := dropByRules("ip probe-router", "type filter hook forward priority 0", "ip daddr ADDRESS tcp dport 80", "router")
	dropARP, allowARP := dropByRules("arp probe-client", "type filter hook input priority 0", "arp saddr ip ADDRESS", "client")
	freeze := func(ctx context.Context, s *cluster.Cluster, a netip.Addr) error {
		mac, err := s.HostMAC("router")
		if err != nil {
			return err
		}
		return runForAddress("client ip neighbour replace ADDRESS lladdr "+mac+" dev eth0 nud permanent")(ctx, s, a)
	}
	return []probeCase{
		{name: "answering", ports: webPort, wantTexts: []string{"1 of 1 ports answer"}, wantDetails: []string{"the neighbour table has "}},
		{name: "udp", ports: "[{port: 7000, protocol: UDP}]", wantTexts: []string{"1 of 1 ports answer"}},
		{name: "unadvertised", wantStatus: 1, wantTexts: []string{"fails at the step neighbour, which is up to the node that holds the address"}},
		{name: "misspelt", wantStatus: 1, wantTexts: []string{"[PoolNotFound]"}},
		{name: "ranges", wantStatus: 1, wantTexts: []string{"fails at the step connection, which is up to the Service: its loadBalancerSourceRanges do not have 192.168.0.100"}},
		{name: "without-pods", wantStatus: 1, wantTexts: []string{"fails at the step neighbour, which is up to the Pods"}},
		{name: "wrong-port", ports: "[{port: 80, targetPort: 9999}]", wantStatus: 1, wantTexts: []string{"fails at the step connection, which is up to kube-proxy of the node, or the program in the Pods"}},
		{name: "without-tls", ports: "[{name: https, port: 443, targetPort: 8080}]", wantStatus: 1, wantTexts: []string{"fails at the step answer, which is up to the program in the Pods"}},
		{name: "unrouted", ports: webPort, cause: runForAddress("client ip route add throw ADDRESS/32"), end: runForAddress("client ip route del throw ADDRESS/32"),
			wantStatus: 1, wantTexts: []string{"fails at the step route, which is up to this machine"}},
		{name: "prohibited", ports: webPort, cause: runForAddress("client ip route add prohibit ADDRESS/32"), end: runForAddress("client ip route del prohibit ADDRESS/32"),
			wantStatus: 1, wantTexts: []string{"fails at the step connection, which is up to a firewall on the way"}},
		{name: "stranger", ports: webPort, cause: freeze, end: runForAddress("client ip neighbour del ADDRESS dev eth0"), wantStatus: 1, wantTexts: []string{"fails at the step neighbour, which is up to another host on the segment"}},
		{name: "firewall", ports: webPort, cause: dropOnNodes, end: allowOnNodes, wantStatus: 1, wantTexts: []string{"fails at the step connection, which is up to kube-proxy or a firewall of the node"}},
		{name: "behind-router", ports: webPort, host: "far", cause: dropOnRouter, end: allowOnRouter, wantStatus: 1, wantTexts: []string{"fails at the step connection, which is up to the network between this machine and the node"}},
		{name: "deaf-client", ports: webPort, cause: dropARP, end: allowARP, from: "NOT HOLDER", wantStatus: 1, wantTexts: []string{"port 80/TCP fails at the step neighbour, which is up to this machine, or the network between it and node"},
			wantDetails: []string{"✓", "answers ARP with "}},
		{name: "from-holder", ports: webPort, from: "HOLDER", wantTexts: []string{"1 of 1 ports answer"}, wantDetails: []string{"holds the address itself, and no other host answers ARP"}},
		{name: "from-other-node", ports: webPort, from: "NOT HOLDER", as: "operator", wantTexts: []string{"1 of 1 ports answer"}, wantDetails: []string{"answers ARP with ", "and it holds the address"}},
		{name: "unadvertised", from: "node1", wantStatus: 1, wantTexts: []string{"ARP from node1 fails at the step neighbour, which is up to the configuration"}},
		{name: "used-by-host", cause: runForAddress("router ip address add ADDRESS/32 dev eth0"), end: runForAddress("router ip address del ADDRESS/32 dev eth0"), from: "node/node2",
			wantStatus: 1, wantTexts: []string{"ARP from node2 fails at the step neighbour, which is up to another host on the segment", "and no node holds the address"}},
		{name: "from-nowhere", ports: webPort, from: "node9", wantStatus: 1, wantTexts: []string{"ARP from node9 fails at the step speaker, which is up to the speaker of node9"}, wantDetails: []string{"port 80/TCP: it answers"}},
	}
}

// probedServiceManifests are the Services of the cases, and the rights that the documents give to
// the user "operator".
func probedServiceManifests() string {
	var out strings.Builder
	for _, c := range probeCases() {
		if c.ports != "" {
			fmt.Fprintf(&out, "apiVersion: v1\nkind: Service\nmetadata: {name: operated-%s, namespace: default}\nspec: {type: LoadBalancer, selector: {app: operated}, ports: %s}\n---\n", c.name, c.ports)
		}
	}
	out.WriteString(`apiVersion: v1
kind: Service
metadata: {name: operated-used-by-host, namespace: default, annotations: {metallb.io/address-pool: unadvertised}}
spec: {type: LoadBalancer, selector: {app: operated}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: operator}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: gantry-operator}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: operator}]
---
`)
	return out.String()
}

// documentedClusterRole returns the ClusterRole that the page about the commands shows.
func documentedClusterRole(t *testing.T) string {
	t.Helper()
	page, err := os.ReadFile(filepath.Join(lab.RepositoryRoot(), "docs", "operator-commands.md"))
	failOnError(t, err)
	found := regexp.MustCompile("(?s)```yaml\n(apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\n.*?)```").FindSubmatch(page)
	if found == nil {
		t.Fatal("docs/operator-commands.md shows no ClusterRole")
	}
	return string(found[1])
}

// testProbeNamesStep asks the Services of all cases at the same time: each fault is one of its
// address alone.
func testProbeNamesStep(ctx context.Context, t *testing.T, s *cluster.Cluster) {
	failOnError(t, s.ApplyManifests(ctx, documentedClusterRole(t)))
	for _, c := range probeCases() {
		t.Run(c.name+c.from, func(t *testing.T) {
			t.Parallel()
			testProbeCase(ctx, t, s, c)
		})
	}
}

// testProbeCase makes the fault, and probes until the answer is right.
func testProbeCase(ctx context.Context, t *testing.T, s *cluster.Cluster, c probeCase) {
	service := "operated-" + c.name
	args := []string{"probe", "service", service}
	if c.cause != nil || c.from != "" {
		address, err := s.AwaitFirstAddressOfService(ctx, "default", service)
		failOnError(t, err)
		if c.from != "" {
			args = append(args, fromArguments(ctx, t, s, service, c.from)...)
		}
		if c.cause != nil {
			failOnError(t, c.cause(ctx, s, address))
			defer func() { failOnError(t, c.end(context.WithoutCancel(ctx), s, address)) }()
		}
	}
	if c.as != "" {
		args = append(args, "--as", c.as)
	}
	host := "client"
	if c.host != "" {
		host = c.host
	}
	failOnError(t, cluster.AwaitNoError(ctx, "the answer about "+service, func(ctx context.Context) error {
		out, status, err := runKubectlGantryOnHost(ctx, s, host, args...)
		first, _, _ := strings.Cut(out, "\n")
		hasAll := !slices.ContainsFunc(c.wantTexts, func(w string) bool { return !strings.Contains(first, w) }) &&
			!slices.ContainsFunc(c.wantDetails, func(w string) bool { return !strings.Contains(out, w) })
		isRefused := strings.Contains(out, "you have no right")
		if err != nil || status != c.wantStatus || !hasAll || isRefused {
			return fmt.Errorf("%v: it exits with %d, want %d, %q and %q:\n%s", err, status, c.wantStatus, c.wantTexts, c.wantDetails, out)
		}
		return nil
	}))
}

// fromArguments returns the flag --from. The holder of the address, and a node that is not the
// holder, are found as soon as a node announces the Service.
func fromArguments(ctx context.Context, t *testing.T, s *cluster.Cluster, service, from string) []string {
	t.Helper()
	switch from {
	case "HOLDER", "NOT HOLDER":
		holder, err := s.AwaitSingleAnnouncingNode(ctx, service, "")
		failOnError(t, err)
		if from == "HOLDER" {
			return []string{"--from", "node", holder}
		}
		other := "node1"
		if holder == other {
			other = "node2"
		}
		return []string{"--from", "node", other}
	}
	if strings.Contains(from, "/") {
		return []string{"--from", from}
	}
	return []string{"--from", "node", from}
}

// runKubectlGantryOnHost runs kubectl gantry on a host of the LAN or behind the router, which
// reaches the API server by its own address.
func runKubectlGantryOnHost(ctx context.Context, s *cluster.Cluster, host string, args ...string) (string, int, error) {
	kubeconfig := filepath.Join(s.Dir(), "credentials", "admin.kubeconfig")
	cmd := exec.CommandContext(ctx, filepath.Join(lab.RepositoryRoot(), "bin", "kubectl-gantry"), append([]string{"--kubeconfig", kubeconfig}, args...)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := s.NamespaceOfHost(host).RunInside(cmd.Run)
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return out.String(), exit.ExitCode(), nil
	}
	return out.String(), 0, err
}
