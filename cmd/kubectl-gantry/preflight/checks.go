package preflight

import (
	"fmt"
	"slices"
	"strings"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/report"
)

// check is one thing that Gantry needs.
type check struct {
	name string
	// breaks says what does not work without it.
	breaks string
	// page is the place in the documents, below docs.
	page   string
	reason names.Reason
	// canAnswer reports whether the Facts have what the check needs; nil if they always have.
	canAnswer func(*Facts) bool
	find      func(*Facts) []finding
}

// finding is one fault.
type finding struct {
	// nodes have the fault; none if it is one of the cluster.
	nodes []string
	text  string
	// mend is a command, or what to do in one sentence.
	mend string
}

// hasAskedNodes reports whether nodes were asked themselves.
func hasAskedNodes(f *Facts) bool { return len(f.asked()) > 0 }

// hasKnownNodes reports whether nodes were asked, or have a speaker.
func hasKnownNodes(f *Facts) bool {
	return slices.ContainsFunc(f.Nodes, func(n Node) bool { return n.isKnown() })
}

// checks returns all checks, the most important first.
func checks() []check {
	return []check{
		{name: "nodes", breaks: "a node without the program of Gantry announces nothing", page: "operator-commands.md#preflight", reason: names.ReasonNoSpeaker, find: findSilentNodes},
		{name: "PodSecurity", breaks: "the API server refuses the Pods of the speakers", page: "security.md#what-the-containers-may-do", reason: names.ReasonNotInstalled, find: findPodSecurity},
		{name: "other controllers", breaks: "two programs write the addresses of the same Services, again and again", page: "reasons.md#what-only-kubectl-gantry-says", reason: names.ReasonOtherController, find: findRivals},
		{name: "kube-proxy", breaks: "traffic that arrives at the node goes nowhere", page: "holders.md#how-the-speaker-asks-kube-proxy", reason: names.ReasonServiceProxySilent, canAnswer: hasKnownNodes, find: findProxyHealth},
		{name: "kube-proxy mode", breaks: "connections depend on which node they arrive at", page: "operator-commands.md#preflight", reason: names.ReasonNodeSetting, canAnswer: hasAskedNodes, find: findProxyModes},
		{name: "strictARP", breaks: "the kernel of every node answers for every address", page: "layer2.md#hosts-that-answer-for-an-address", reason: names.ReasonStrayAnswer, find: findStrictARP},
		{name: "raw sockets", breaks: "no node can answer ARP and NDP", page: "security.md#what-the-containers-may-do", reason: names.ReasonRawSocketDenied, canAnswer: hasKnownNodes, find: findRawSockets},
		{name: "carrier", breaks: "the node can announce nothing by ARP and NDP", page: "layer2.md#usable-interfaces", reason: names.ReasonNoLinks, canAnswer: hasKnownNodes, find: findCarrier},
		{name: "gossip", breaks: "two nodes may answer for one address, and a dead node is noticed late", page: "holders.md#when-gossip-is-blocked", reason: names.ReasonGossipBlocked, canAnswer: func(f *Facts) bool { return len(f.Paths) > 0 || f.IsInstalled }, find: findGossip},
		{name: "ports", breaks: "the speaker or the controller cannot start, or does without this part", page: "operator-commands.md#preflight", reason: names.ReasonPortUnavailable, canAnswer: hasAskedNodes, find: findUsedPorts},
		{name: "subnets", breaks: "an address moves to a node on which no client finds it", page: "layer2.md#what-speakers-know-of-each-others-interfaces", reason: names.ReasonLinksDiffer, canAnswer: hasKnownNodes, find: findSubnets},
		{name: "MTU", breaks: "large packets are lost after an address has moved to another node", page: "operator-commands.md#preflight", reason: names.ReasonLinksDiffer, canAnswer: hasAskedNodes, find: findMTU},
		{name: "forwarding", breaks: "traffic that arrives at the node does not reach Pods", page: "operator-commands.md#preflight", reason: names.ReasonNodeSetting, canAnswer: hasAskedNodes, find: findForwarding},
		{name: "rp_filter", breaks: "the kernel drops requests of clients that it would answer over another link", page: "operator-commands.md#preflight", reason: names.ReasonNodeSetting, canAnswer: hasAskedNodes, find: findReversePathFilter},
		{name: "arp_ignore and arp_announce", breaks: "the node answers ARP for addresses of its other links", page: "operator-commands.md#preflight", reason: names.ReasonNodeSetting, canAnswer: hasAskedNodes, find: findARPSettings},
		{name: "proxy ARP", breaks: "the kernel of the node answers for addresses that others hold", page: "layer2.md#hosts-that-answer-for-an-address", reason: names.ReasonStrayAnswer, canAnswer: hasAskedNodes, find: findProxyARP},
		{name: "IPv6", breaks: "IPv6 addresses are announced by some nodes only, or by none", page: "operator-commands.md#preflight", reason: names.ReasonNoAddressFamily, canAnswer: hasKnownNodes, find: findIPv6},
		{name: "clocks", breaks: "certificates and times in objects are wrong", page: "operator-commands.md#preflight", reason: names.ReasonNodeSetting, canAnswer: func(f *Facts) bool {
			return slices.ContainsFunc(f.Nodes, func(n Node) bool { return n.ClockAhead != nil })
		}, find: findClocks},
		{name: "TCP MD5", breaks: "BGP sessions with a password are not established", page: "bgp.md#a-peer", reason: names.ReasonNodeSetting, canAnswer: hasAskedNodes, find: findTCPMD5},
		{name: "packet rules", breaks: "new connections go to a dead node until Kubernetes notices, or open ones break when their address moves", page: "continuity.md#switch-it-on", reason: names.ReasonPacketRulesRefused, canAnswer: hasKnownNodes, find: findPacketRules},
	}
}

// documentationURL is where the documents are.
const documentationURL = "https://github.com/gantry-lb/gantry/blob/main/docs/"

// RunChecks runs all checks, and says the worst in one line.
func RunChecks(f *Facts) *report.Report {
	out := &report.Report{Subject: "preflight", Result: report.ResultWell}
	failed, passed := []string(nil), 0
	for _, c := range checks() {
		if c.canAnswer != nil && !c.canAnswer(f) {
			out.Checks = append(out.Checks, report.Check{Name: c.name, Result: report.ResultUnknown, Text: "not looked at: add --on-nodes", IsWideOnly: true})
			continue
		}
		found := c.find(f)
		if len(found) == 0 {
			passed++
			out.Checks = append(out.Checks, report.Check{Name: c.name, Result: report.ResultWell})
			continue
		}
		failed = append(failed, c.name)
		for _, fault := range found {
			text := fault.text
			if len(fault.nodes) > 0 {
				text = joinNames(fault.nodes) + ": " + text
			}
			out.Checks = append(out.Checks, report.Check{Name: c.name, Result: report.ResultNotWell, Reason: c.reason, Text: text, Breaks: c.breaks, Mend: fault.mend, Documentation: documentationURL + c.page})
		}
		if out.Reason == "" {
			out.Result, out.Reason = report.ResultNotWell, c.reason
		}
	}
	slices.SortStableFunc(out.Checks, func(x, y report.Check) int { return rankOf(x.Result) - rankOf(y.Result) })
	if len(failed) > 0 {
		out.Answer = fmt.Sprintf("%d of %d checks fail: %s", len(failed), len(failed)+passed, strings.Join(failed, ", "))
		return out
	}
	out.Answer = fmt.Sprintf("all %d checks pass on %d nodes", passed, len(f.Nodes))
	if f.IsOnePartOfPathsChecked {
		out.Answer += fmt.Sprintf("; each node asked only %d others for the gossip", maxNodesForAllPairs)
	}
	if !f.IsInstalled && !hasAskedNodes(f) {
		out.Result, out.Answer = report.ResultUnknown, "Gantry is not installed, and no node was asked: add --image IMAGE"
	}
	return out
}

// rankOf sorts faults first.
func rankOf(r report.Result) int {
	switch r {
	case report.ResultNotWell:
		return 0
	case report.ResultWell:
		return 2
	case report.ResultUnknown:
	}
	return 1
}
