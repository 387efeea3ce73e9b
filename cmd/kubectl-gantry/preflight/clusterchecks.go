package preflight

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/gantry-lb/gantry/api/names"
)

// rawSocketDenied is the reason of a link on which the kernel refuses raw sockets.
const rawSocketDenied = string(names.ReasonRawSocketDenied)

// podSecurityLabel is the label of a namespace that says which Pods it admits, privilegedLevel its
// value that admits all.
const (
	podSecurityLabel = "pod-security.kubernetes.io/enforce"
	privilegedLevel  = "privileged"
)

// findPodSecurity finds that the namespace of Gantry refuses Pods on the network of the node.
func findPodSecurity(f *Facts) []finding {
	if !f.HasNamespace || f.PodSecurityLevel == "" || f.PodSecurityLevel == privilegedLevel {
		return nil
	}
	return []finding{{nil, fmt.Sprintf("namespace %s enforces the level %s of PodSecurity, which forbids hostNetwork and NET_RAW", f.Namespace, f.PodSecurityLevel),
		fmt.Sprintf("kubectl label namespace %s --overwrite %s=%s", f.Namespace, podSecurityLabel, privilegedLevel)}}
}

// findRivals finds other programs for Services of type LoadBalancer.
func findRivals(f *Facts) []finding {
	var out []finding
	for _, r := range f.Rivals {
		out = append(out, finding{nil, fmt.Sprintf("%s (%s in namespace %s) serves Services of type LoadBalancer", r.Program, r.Workload, r.Namespace),
			r.Mend + "; or give Gantry a class of its own by --load-balancer-class"})
	}
	for _, w := range f.StatusWriters {
		out = append(out, finding{nil, fmt.Sprintf("another program (%s) gave, and perhaps still gives, addresses to %s", w.Program, joinNames(w.Services)),
			"if the other program still runs, stop it, or let it serve other Services; or give Gantry a class of its own by --load-balancer-class"})
	}
	return out
}

// findGossip finds pairs of nodes that do not reach each other, and in which direction. If the
// nodes were asked themselves, their answers count; speakers only say that it fails.
func findGossip(f *Facts) []finding {
	var out []finding
	for _, protocol := range []string{"TCP", "UDP"} {
		targetsByNode := map[string][]string{}
		failure := ""
		for _, p := range f.Paths {
			attempt := p.TCP
			if protocol == "UDP" {
				attempt = p.UDP
			}
			if !attempt.Succeeded {
				targetsByNode[p.From] = append(targetsByNode[p.From], p.To)
				failure = attempt.Failure
			}
		}
		for _, from := range slices.Sorted(maps.Keys(targetsByNode)) {
			out = append(out, finding{[]string{from}, fmt.Sprintf("by %s it does not reach port 7946 of %s: %s", protocol, joinNames(targetsByNode[from]), failure),
				fmt.Sprintf("let firewalls between the nodes pass %s port 7946 from %s to %s", protocol, from, joinNames(targetsByNode[from]))})
		}
	}
	for i := range f.Nodes {
		n := &f.Nodes[i]
		if n.Speaker == nil || !n.Speaker.IsReady || len(n.Speaker.Unreachable) == 0 && n.Speaker.GossipText == "" {
			continue
		}
		text := "its speaker exchanges no gossip with " + joinNames(n.Speaker.Unreachable)
		if n.Speaker.GossipText != "" {
			text = n.Speaker.GossipText
		}
		out = append(out, finding{[]string{n.Name}, text, "let firewalls between the nodes pass TCP and UDP port 7946, in both directions"})
	}
	return out
}

// findSubnets finds nodes that share no subnet with any other node, and subnets that nodes write
// with different lengths.
func findSubnets(f *Facts) []finding {
	nodesBySubnet := map[netip.Prefix][]string{}
	known := 0
	for i := range f.Nodes {
		subnets := f.Nodes[i].subnetsByLink()
		if len(subnets) > 0 {
			known++
		}
		for _, of := range subnets {
			for _, p := range of {
				if !slices.Contains(nodesBySubnet[p.Masked()], f.Nodes[i].Name) {
					nodesBySubnet[p.Masked()] = append(nodesBySubnet[p.Masked()], f.Nodes[i].Name)
				}
			}
		}
	}
	if known < 2 {
		return nil
	}
	var out []finding
	all := slices.SortedFunc(maps.Keys(nodesBySubnet), comparePrefixes)
	for _, small := range all {
		for _, large := range all {
			if small.Bits() > large.Bits() && small.Overlaps(large) && !sharesNode(nodesBySubnet[small], nodesBySubnet[large]) {
				out = append(out, finding{nodesBySubnet[small], fmt.Sprintf("the link is in %s, and that of %s in %s: one of the lengths is wrong", small, joinNames(nodesBySubnet[large]), large),
					"give the address of the link the same length of the prefix on all nodes"})
			}
		}
	}
	if len(out) > 0 {
		return out
	}
	for i := range f.Nodes {
		if alone := listSubnetsOfOneNode(&f.Nodes[i], nodesBySubnet); len(alone) > 0 {
			out = append(out, finding{[]string{f.Nodes[i].Name}, "no other node is in its subnet " + strings.Join(alone, ", "), "connect the nodes to one segment, or limit each L2Advertisement to the nodes of one segment by nodeSelectors"})
		}
	}
	return out
}

// sharesNode reports whether a node is in both lists.
func sharesNode(x, y []string) bool {
	return slices.ContainsFunc(x, func(n string) bool { return slices.Contains(y, n) })
}

// listSubnetsOfOneNode returns the subnets of a node if no other node is in any of them.
func listSubnetsOfOneNode(n *Node, nodesBySubnet map[netip.Prefix][]string) []string {
	var out []string
	for _, of := range n.subnetsByLink() {
		for _, p := range of {
			if len(nodesBySubnet[p.Masked()]) > 1 {
				return nil
			}
			out = append(out, p.Masked().String())
		}
	}
	slices.Sort(out)
	return out
}
