package preflight

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/report"
	"github.com/gantry-lb/gantry/internal/nodefacts"
)

var succeeded = nodefacts.Attempt{Succeeded: true}

// healthyFacts are three nodes before an installation, on which nothing is wrong.
func healthyFacts() *Facts {
	f := &Facts{Namespace: "metallb-system"}
	for i := range 3 {
		n := Node{Name: fmt.Sprintf("node%d", i+1), ClockAhead: new(time.Duration)}
		n.Asked = &nodefacts.Facts{
			Node: n.Name, HasIPv6: true, RawSockets: succeeded, TCPMD5: succeeded, PacketRules: succeeded, Proxy: nodefacts.ServiceProxy{Mode: "iptables", Health: succeeded},
			Links: []nodefacts.Link{
				{Name: "eth0", MTU: 1500, HasCarrier: true, HasIPv6: true, Subnets: []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("192.0.2.%d/24", i+1))}, ReversePathFilter: 1},
				{Name: "cni0", MTU: 1450, HasCarrier: true, IsExcluded: true, Subnets: []netip.Prefix{netip.MustParsePrefix("10.244.0.1/24")}},
			},
		}
		f.Nodes = append(f.Nodes, n)
		for j := range 3 {
			if i != j {
				f.Paths = append(f.Paths, PathBetweenNodes{From: n.Name, To: fmt.Sprintf("node%d", j+1), TCP: succeeded, UDP: succeeded})
			}
		}
	}
	return f
}

// installedFacts are three nodes with speakers, which were not asked themselves.
func installedFacts() *Facts {
	f := &Facts{Namespace: "metallb-system", IsInstalled: true, HasNamespace: true, PodSecurityLevel: privilegedLevel}
	for i := range 3 {
		f.Nodes = append(f.Nodes, Node{Name: fmt.Sprintf("node%d", i+1), Speaker: &Speaker{
			IsReady: true, UsableLinks: []string{"eth0"}, Links: []SpeakerLink{{Name: "eth0", HasIPv6: true, Subnets: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}},
		}})
	}
	return f
}

// faultCase is a fault, and the check that has to find it.
type faultCase struct {
	name  string
	base  func() *Facts
	fault func(*Facts)
	// check is the name of the only check that fails. Texts are in its text, and mend is in what to
	// do.
	check string
	texts []string
	mend  string
}

// link returns the first link of a node.
func link(f *Facts, node int) *nodefacts.Link { return &f.Nodes[node].Asked.Links[0] }

// addSecondLink gives a node a second link.
func addSecondLink(f *Facts, node int, address string) *nodefacts.Link {
	of := f.Nodes[node].Asked
	of.Links = append(of.Links, nodefacts.Link{Name: "eth1", MTU: 1500, HasCarrier: true, HasIPv6: true, Subnets: []netip.Prefix{netip.MustParsePrefix(address)}})
	return &of.Links[len(of.Links)-1]
}

func addPodSecurity(f *Facts) { f.HasNamespace, f.PodSecurityLevel = true, "baseline" }

func failPath(f *Facts, from, to, protocol string) {
	for i := range f.Paths {
		if p := &f.Paths[i]; p.From == from && p.To == to {
			failed := nodefacts.Attempt{Failure: "no answer within 2s"}
			if protocol == "TCP" {
				p.TCP = failed
			} else {
				p.UDP = failed
			}
		}
	}
}

var nodeFaults = []faultCase{
	{"kube-proxy is dead", healthyFacts, func(f *Facts) { f.Nodes[1].Asked.Proxy.Health = nodefacts.Attempt{Failure: "connection refused"} }, "kube-proxy", []string{"node2: its health check", "connection refused"}, "rollout restart"},
	{"kube-proxy has two modes", healthyFacts, func(f *Facts) { f.Nodes[2].Asked.Proxy.Mode = "nftables" }, "kube-proxy mode", []string{"node3: kube-proxy runs in mode nftables there, and in mode iptables on most nodes"}, "rollout restart"},
	{"ipvs without strictARP", healthyFacts, func(f *Facts) { f.Proxy.Mode = "ipvs" }, "strictARP", []string{"configured for mode ipvs without strictARP"}, "edit configmap kube-proxy"},
	{"ipvs was started without strictARP", healthyFacts, func(f *Facts) {
		for i := range f.Nodes {
			f.Nodes[i].Asked.Proxy.Mode = "ipvs"
			link(f, i).ARPIgnore, link(f, i).ARPAnnounce = 1, 2
		}
		link(f, 0).ARPIgnore = 0
	}, "strictARP", []string{"node1: ", "arp_ignore of eth0 is 0"}, "edit configmap kube-proxy"},
	{"raw sockets are refused", healthyFacts, func(f *Facts) { f.Nodes[0].Asked.RawSockets = nodefacts.Attempt{Failure: "operation not permitted"} }, "raw sockets", []string{"node1: the kernel refuses raw sockets: operation not permitted"}, "NET_RAW"},
	{"no carrier", healthyFacts, func(f *Facts) { link(f, 2).HasCarrier = false }, "carrier", []string{"node3: its links have no carrier: eth0"}, "ip link"},
	{"no link", healthyFacts, func(f *Facts) { link(f, 2).IsExcluded = true }, "carrier", []string{"node3: it has no link with an address"}, "ip link"},
	{"the gossip port is used", healthyFacts, func(f *Facts) { f.Nodes[1].Asked.UsedPorts = []nodefacts.UsedPort{{Protocol: "UDP", Port: 7946}} }, "ports", []string{"node2: another program waits on UDP port 7946"}, "ss -lntup"},
	{"the metrics port is used", healthyFacts, func(f *Facts) { f.Nodes[1].Asked.UsedPorts = []nodefacts.UsedPort{{Protocol: "TCP", Port: 7473}} }, "ports", []string{"TCP port 7473"}, "ss -lntup"},
	{"the BFD port is used", healthyFacts, func(f *Facts) {
		f.Needs.BFD = true
		f.Nodes[1].Asked.UsedPorts = []nodefacts.UsedPort{{Protocol: "UDP", Port: 3784}}
	}, "ports", []string{"UDP port 3784"}, "ss -lntup"},
	{"another MTU", healthyFacts, func(f *Facts) { link(f, 1).MTU = 9000 }, "MTU", []string{"node2: the MTU of the link in 192.0.2.0/24 is 9000, and 1500 on most nodes"}, "mtu 1500"},
	{"another length of the prefix", healthyFacts, func(f *Facts) { link(f, 1).Subnets = []netip.Prefix{netip.MustParsePrefix("192.0.2.2/25")} }, "subnets", []string{"node2: the link is in 192.0.2.0/25, and that of node1, node3 in 192.0.2.0/24"}, "same length"},
	{"another subnet", healthyFacts, func(f *Facts) { link(f, 1).Subnets = []netip.Prefix{netip.MustParsePrefix("198.51.100.2/24")} }, "subnets", []string{"node2: no other node is in its subnet 198.51.100.0/24"}, "nodeSelectors"},
	{"the node does not forward", healthyFacts, func(f *Facts) { f.Nodes[0].Asked.DoesNotForward = true }, "forwarding", []string{"node1: net.ipv4.ip_forward is 0"}, "sysctl -w net.ipv4.ip_forward=1"},
	{"strict rp_filter with two links", healthyFacts, func(f *Facts) {
		for i := range f.Nodes {
			addSecondLink(f, i, fmt.Sprintf("198.51.100.%d/24", i+1))
			link(f, i).ReversePathFilter = 2
		}
		f.Nodes[0].Asked.Links[2].ReversePathFilter = 1
	}, "rp_filter", []string{"node1: it has 2 links, and rp_filter of eth1 is strict (1)"}, "rp_filter=2"},
	{"two links in one subnet", healthyFacts, func(f *Facts) {
		link(f, 0).ReversePathFilter = 2
		addSecondLink(f, 0, "192.0.2.9/24")
	}, "arp_ignore and arp_announce", []string{"node1: several links are in 192.0.2.0/24"}, "arp_ignore=1"},
	{"proxy ARP", healthyFacts, func(f *Facts) { link(f, 1).HasProxyARP = true }, "proxy ARP", []string{"node2: proxy_arp of eth0 is on"}, "proxy_arp=0"},
	{"IPv6 is off on one node", healthyFacts, func(f *Facts) { f.Nodes[0].Asked.HasIPv6 = false }, "IPv6", []string{"node1: no link there has IPv6, and other nodes have it"}, "disable_ipv6=0"},
	{"a clock is behind", healthyFacts, func(f *Facts) { *f.Nodes[2].ClockAhead = -90 * time.Second }, "clocks", []string{"node3: its clock is 1m30s behind the API server's"}, "time server"},
	{"no TCP MD5", healthyFacts, func(f *Facts) {
		f.Needs.Passwords, f.Nodes[0].Asked.TCPMD5 = true, nodefacts.Attempt{Failure: "protocol not available"}
	}, "TCP MD5", []string{"node1: the kernel refuses a password for TCP: protocol not available"}, "CONFIG_TCP_MD5SIG"},
	{"no NET_ADMIN for continuity", healthyFacts, func(f *Facts) {
		f.Needs.AroundDeadNodes, f.Nodes[0].Asked.PacketRules = true, nodefacts.Attempt{Failure: "operation not permitted"}
	}, "packet rules", []string{"node1: the kernel refuses packet rules: operation not permitted"}, "NET_ADMIN"},
	{"no module for kept connections", healthyFacts, func(f *Facts) {
		f.Needs.KeepConnections, f.Nodes[0].Asked.ForwardingRules = true, nodefacts.Attempt{Failure: "no such file"}
	}, "packet rules", []string{"node1: the kernel refuses packet rules that keep connections: no such file"}, "nft_dup_ipv4"},
	{"a node says nothing", healthyFacts, func(f *Facts) { f.Nodes[1].Asked, f.Nodes[1].NotAsked = nil, "it has no Pod" }, "nodes", []string{"node2: the Pod of the preflight says nothing: it has no Pod"}, "kubectl get pods"},
}

var clusterFaults = []faultCase{
	{"UDP is blocked in one direction", healthyFacts, func(f *Facts) { failPath(f, "node1", "node3", "UDP") }, "gossip", []string{"node1: by UDP it does not reach port 7946 of node3: no answer"}, "UDP port 7946 from node1 to node3"},
	{"TCP is blocked to one node", healthyFacts, func(f *Facts) { failPath(f, "node1", "node3", "TCP"); failPath(f, "node1", "node2", "TCP") }, "gossip", []string{"node1: by TCP it does not reach port 7946 of node2, node3"}, "TCP port 7946"},
	{"PodSecurity", healthyFacts, addPodSecurity, "PodSecurity", []string{"namespace metallb-system enforces the level baseline"}, "kubectl label namespace metallb-system --overwrite pod-security.kubernetes.io/enforce=privileged"},
	{"MetalLB", healthyFacts, func(f *Facts) {
		f.Rivals = []Rival{{"MetalLB", "daemonset/speaker", "metallb-system", "kubectl -n metallb-system delete daemonset/speaker"}}
	}, "other controllers", []string{"MetalLB (daemonset/speaker in namespace metallb-system)"}, "delete daemonset/speaker; or give"},
	{"Cilium's LB-IPAM", healthyFacts, func(f *Facts) {
		f.StatusWriters = []StatusWriter{{"cilium-operator, which is Cilium's LB-IPAM", []string{"shop/web"}}}
	}, "other controllers", []string{"another program (cilium-operator, which is Cilium's LB-IPAM) gave, and perhaps still gives, addresses to shop/web"}, "if the other program still runs, stop it"},
	{"a speaker is missing", installedFacts, func(f *Facts) { f.Nodes[1].Speaker = nil }, "nodes", []string{"node2: no speaker runs there"}, "explain node"},
	{"a speaker is dead", installedFacts, func(f *Facts) { f.Nodes[1].Speaker.IsReady = false }, "nodes", []string{"node2: its speaker is dead"}, "explain node"},
	{"speakers hear each other no more", installedFacts, func(f *Facts) { f.Nodes[0].Speaker.Unreachable = []string{"node2"} }, "gossip", []string{"node1: its speaker exchanges no gossip with node2"}, "port 7946"},
	{"a speaker says that kube-proxy is silent", installedFacts, func(f *Facts) { f.Nodes[0].Speaker.FitText = "kube-proxy does not answer" }, "kube-proxy", []string{"node1: kube-proxy does not answer"}, "rollout restart"},
	{"a speaker has no raw sockets", installedFacts, func(f *Facts) { f.Nodes[0].Speaker.Links[0].Reason = rawSocketDenied }, "raw sockets", []string{"node1: the kernel refuses raw sockets to its speaker"}, "NET_RAW"},
	{"a speaker has no link", installedFacts, func(f *Facts) { f.Nodes[0].Speaker.Layer2Text = "eth0 is down" }, "carrier", []string{"node1: eth0 is down"}, "ip link"},
	{"pools have IPv6 and a node has none", installedFacts, func(f *Facts) { f.Needs.IPv6, f.Nodes[0].Speaker.Links[0].HasIPv6 = true, false }, "IPv6", []string{"node1: pools have IPv6 addresses"}, "disable_ipv6=0"},
	{"a speaker cannot steer", installedFacts, func(f *Facts) {
		f.Needs.AroundDeadNodes, f.Nodes[0].Speaker.SteeringText = true, "the kernel refuses"
	}, "packet rules", []string{"node1: the kernel refuses"}, "NET_ADMIN"},
	{"a speaker cannot keep connections", installedFacts, func(f *Facts) {
		f.Needs.KeepConnections, f.Nodes[0].Speaker.ForwardingText = true, "the kernel lacks a module"
	}, "packet rules", []string{"node1: the kernel lacks a module"}, "nft_dup_ipv4"},
	{"a speaker is in another subnet", installedFacts, func(f *Facts) {
		f.Nodes[2].Speaker.Links[0].Subnets = []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}
	}, "subnets", []string{"node3: no other node is in its subnet"}, "nodeSelectors"},
}

// TestEachFaultIsFoundByItsCheckAlone makes one fault after the other.
func TestEachFaultIsFoundByItsCheckAlone(t *testing.T) {
	for _, c := range slices.Concat(nodeFaults, clusterFaults) {
		t.Run(c.name, func(t *testing.T) {
			f := c.base()
			c.fault(f)
			r := RunChecks(f)
			if r.Result != report.ResultNotWell || r.Reason == "" || !strings.HasPrefix(r.Answer, "1 of ") || !strings.HasSuffix(r.Answer, " checks fail: "+c.check) {
				t.Errorf("the first line is %q (%s), want that only %s fails", r.AnswerWithReason(), r.Result, c.check)
			}
			worst := r.Checks[0]
			for _, text := range c.texts {
				if !strings.Contains(worst.Text, text) {
					t.Errorf("%s says %q, want %q", worst.Name, worst.Text, text)
				}
			}
			if !strings.Contains(worst.Mend, c.mend) || worst.Breaks == "" || !strings.HasPrefix(worst.Documentation, documentationURL) {
				t.Errorf("%s is %+v, want what it breaks, %q and a page", worst.Name, worst, c.mend)
			}
		})
	}
}

// TestHealthyClusterPassesAllChecks has no fault, and settings that do not matter.
func TestHealthyClusterPassesAllChecks(t *testing.T) {
	for name, f := range map[string]*Facts{"before an installation": healthyFacts(), "after an installation": installedFacts()} {
		if r := RunChecks(f); r.Result != report.ResultWell || !strings.Contains(r.Answer, "checks pass on 3 nodes") {
			t.Errorf("%s: %+v", name, r)
		}
	}
	harmless := healthyFacts()
	harmless.Nodes[0].Asked.UsedPorts = []nodefacts.UsedPort{{Protocol: "TCP", Port: 179}}
	harmless.Nodes[0].Asked.TCPMD5, harmless.Nodes[0].Asked.PacketRules = nodefacts.Attempt{}, nodefacts.Attempt{}
	harmless.Nodes[0].Asked.ForwardingRules = nodefacts.Attempt{Failure: "no such file"}
	harmless.HasNamespace, harmless.PodSecurityLevel = true, privilegedLevel
	if r := RunChecks(harmless); r.Result != report.ResultWell {
		t.Errorf("what nobody needs is a fault: %+v", r)
	}
}

// TestLargeClusterSaysThatNotEachPairWasAsked has more nodes than ask each other.
func TestLargeClusterSaysThatNotEachPairWasAsked(t *testing.T) {
	f := healthyFacts()
	f.IsOnePartOfPathsChecked = true
	if r := RunChecks(f); !strings.HasSuffix(r.Answer, "; each node asked only 50 others for the gossip") {
		t.Errorf("it says %q", r.Answer)
	}
}

// TestNothingIsSaidOfNodesThatNobodyAsked has neither speakers nor answers.
func TestNothingIsSaidOfNodesThatNobodyAsked(t *testing.T) {
	f := &Facts{Namespace: "metallb-system", Nodes: []Node{{Name: "node1"}}}
	r := RunChecks(f)
	if r.Result != report.ResultUnknown || !strings.Contains(r.Answer, "--image") {
		t.Errorf("it says %+v", r)
	}
}

// TestPagesOfChecksExist follows the link of each check to the heading in the documents.
func TestPagesOfChecksExist(t *testing.T) {
	for _, c := range checks() {
		file, anchor, _ := strings.Cut(c.page, "#")
		text, err := os.ReadFile(filepath.Join("../../../docs", file))
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		isFound := false
		for line := range strings.Lines(string(text)) {
			heading, isHeading := strings.CutPrefix(strings.TrimLeft(line, "#"), " ")
			isFound = isFound || isHeading && strings.HasPrefix(line, "#") && anchorOfHeading(heading) == anchor
		}
		if !isFound {
			t.Errorf("%s: %s has no heading with the anchor #%s", c.name, file, anchor)
		}
	}
}

// anchorOfHeading returns the anchor of a heading, as forges make it.
func anchorOfHeading(heading string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == ' ':
			return '-'
		case unicode.IsLetter(r), unicode.IsDigit(r), r == '-', r == '_':
			return unicode.ToLower(r)
		}
		return -1
	}, strings.TrimSpace(heading))
}
