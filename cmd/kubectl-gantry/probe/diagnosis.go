// Package probe asks the ports of a Service from the machine of the user, and says at which step
// that fails and whose fault it is. Asking and deciding are apart: diagnosis.go decides, and does
// no I/O.
package probe

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/report"
)

// Outcome is how an attempt at one port ended.
type Outcome string

// The outcomes.
const (
	// OutcomeAnswered: the program behind the port answered.
	OutcomeAnswered Outcome = "Answered"
	// OutcomeConnected: a TCP connection came about, and nothing else was asked.
	OutcomeConnected Outcome = "Connected"
	// OutcomeClosed: a TCP connection came about, and ended without an answer.
	OutcomeClosed Outcome = "Closed"
	// OutcomeNoTLS: a TCP connection came about, and no TLS on it.
	OutcomeNoTLS Outcome = "NoTLS"
	// OutcomeRefused: a host refuses the port, by a TCP reset or ICMP port unreachable.
	OutcomeRefused Outcome = "Refused"
	// OutcomeSilent: nothing came back.
	OutcomeSilent Outcome = "Silent"
	// OutcomeHostUnreachable: this machine, or a router, says that the host does not answer.
	OutcomeHostUnreachable Outcome = "HostUnreachable"
	// OutcomeNoRoute: this machine has no route to the address.
	OutcomeNoRoute Outcome = "NoRoute"
	// OutcomeProhibited: a firewall says that it forbids it.
	OutcomeProhibited Outcome = "Prohibited"
)

// Port is a port of a Service, with how to ask it.
type Port struct {
	Number int32
	// Protocol is TCP, UDP or SCTP.
	Protocol string
	// Scheme is http or https if a request of HTTP is sent too; else empty.
	Scheme string
}

// String writes the port as 80/TCP.
func (p Port) String() string { return fmt.Sprintf("%d/%s", p.Number, p.Protocol) }

// Observation is what was seen of one port at one address.
type Observation struct {
	Address netip.Addr
	Port    Port
	Outcome Outcome
	// Detail is the error, or the first line of the answer.
	Detail string
	// IsOnLink is set if the address is in a subnet of this machine, so that no router is between.
	IsOnLink bool
	// NeighbourMAC is the Ethernet address in the neighbour table of this machine; empty if none
	// has answered. IsNeighbourKnown is set if the table could be read.
	NeighbourMAC     string
	IsNeighbourKnown bool
	// HolderMAC is the Ethernet address of the node that answers for the address; empty if it is
	// not known. Holder is its name.
	HolderMAC, Holder string
	// HasReadyEndpoints is set if a Pod behind the port is ready.
	HasReadyEndpoints bool
	// SourceRanges limits who may connect; none for everybody.
	SourceRanges []netip.Prefix
	// LocalAddress is that by which this machine asked; not valid if it is not known.
	LocalAddress netip.Addr
	// FromNode is what a node hears that was asked too; nil if none was.
	FromNode *NodeObservation
}

// Step is a part of the way from this machine to the program behind a Service.
type Step string

// The steps, in the order of the way.
const (
	// StepSpeaker and StepLink are of a node that is asked.
	StepSpeaker    Step = "speaker"
	StepLink       Step = "link"
	StepRoute      Step = "route"
	StepNeighbour  Step = "neighbour"
	StepConnection Step = "connection"
	StepAnswer     Step = "answer"
)

// Diagnosis says at which step an attempt failed, and whose fault that is.
type Diagnosis struct {
	Result report.Result
	Step   Step
	// Blame names who has to act.
	Blame string
	Text  string
}

// ReasonOfFailure is the Reason of a port that cannot be reached.
const ReasonOfFailure = names.ReasonNoConnection

// Diagnose says what an Observation means.
func Diagnose(o *Observation) Diagnosis {
	switch o.Outcome {
	case OutcomeAnswered, OutcomeConnected:
		return diagnoseAnswer(o)
	case OutcomeNoRoute:
		return failedAt(StepRoute, "this machine", "it has no route to %s (%s)", o.Address, o.Detail)
	case OutcomeProhibited:
		return failedAt(StepConnection, "a firewall on the way", "it answers that this is forbidden (%s)", o.Detail)
	case OutcomeClosed:
		return failedAt(StepAnswer, "the program in the Pods", "the connection came about, and was closed without an answer (%s)", o.Detail)
	case OutcomeNoTLS:
		return failedAt(StepAnswer, "the program in the Pods", "the connection came about, and the program speaks no TLS there (%s)", o.Detail)
	case OutcomeRefused:
		return diagnoseRefusal(o)
	case OutcomeSilent, OutcomeHostUnreachable:
	}
	return diagnoseSilence(o)
}

func failedAt(step Step, blame, format string, args ...any) Diagnosis {
	return Diagnosis{report.ResultNotWell, step, blame, fmt.Sprintf(format, args...)}
}

// diagnoseAnswer looks at who answered.
func diagnoseAnswer(o *Observation) Diagnosis {
	if stranger := describeStranger(o); stranger != "" {
		return failedAt(StepNeighbour, "another host on the segment", "it answers, but %s", stranger)
	}
	if o.Outcome == OutcomeConnected {
		return Diagnosis{Result: report.ResultWell, Step: StepConnection, Text: "it is connected"}
	}
	return Diagnosis{Result: report.ResultWell, Step: StepAnswer, Text: "it answers: " + o.Detail}
}

// describeStranger says that another host than the holder answers ARP or NDP; "" if not.
func describeStranger(o *Observation) string {
	if o.NeighbourMAC == "" || o.HolderMAC == "" || strings.EqualFold(o.NeighbourMAC, o.HolderMAC) {
		return ""
	}
	return fmt.Sprintf("the neighbour table has %s, and %s, which holds the address, has %s: another host uses the address, or the table is old", o.NeighbourMAC, o.Holder, o.HolderMAC)
}

// diagnoseRefusal looks for who refused.
func diagnoseRefusal(o *Observation) Diagnosis {
	switch stranger := describeStranger(o); {
	case stranger != "":
		return failedAt(StepNeighbour, "another host on the segment", "it is refused, and %s", stranger)
	case !o.HasReadyEndpoints:
		return failedAt(StepConnection, "the Pods", "the node refuses it, because no Pod behind the port is ready")
	}
	return failedAt(StepConnection, "kube-proxy of the node, or the program in the Pods", "it is refused, although a Pod is ready: the program does not listen on the targetPort, or kube-proxy of the node has no rule for the address")
}

// diagnoseSilence looks how far the question came.
func diagnoseSilence(o *Observation) Diagnosis {
	switch stranger := describeStranger(o); {
	case o.IsOnLink && o.IsNeighbourKnown && o.NeighbourMAC == "" && !o.HasReadyEndpoints:
		return failedAt(StepNeighbour, "the Pods", "no host answers %s for %s, since no Pod behind the port is ready: then no node announces it", neighbourProtocol(o.Address), o.Address)
	case o.IsOnLink && o.IsNeighbourKnown && o.NeighbourMAC == "" && o.FromNode.hearsHolder():
		return failedAt(StepNeighbour, "this machine, or the network between it and "+o.FromNode.Node, "no host answers %s for %s here, although %s does on the segment of %s: this machine is in another segment or VLAN, or drops the answers", neighbourProtocol(o.Address), o.Address, o.FromNode.Holder, o.FromNode.Node)
	case o.IsOnLink && o.IsNeighbourKnown && o.NeighbourMAC == "" && o.FromNode.hearsNobody():
		return failedAt(StepNeighbour, "the node that holds the address", "no host answers %s for %s, neither to this machine nor to %s", neighbourProtocol(o.Address), o.Address, o.FromNode.Node)
	case o.IsOnLink && o.IsNeighbourKnown && o.NeighbourMAC == "":
		return failedAt(StepNeighbour, "the node that holds the address, or the network between", "no host answers %s for %s on this segment: the holder is in another segment or VLAN, or does not answer", neighbourProtocol(o.Address), o.Address)
	case stranger != "":
		return failedAt(StepNeighbour, "another host on the segment", "nothing comes back, and %s", stranger)
	case o.Outcome == OutcomeHostUnreachable:
		return failedAt(StepNeighbour, "the last router on the way, or the node behind it", "a router says that no host has %s (%s)", o.Address, o.Detail)
	case isExcludedByService(o):
		return failedAt(StepConnection, "the Service", "its loadBalancerSourceRanges do not have %s, by which this machine asks", o.LocalAddress)
	case o.Port.Protocol == "UDP":
		return Diagnosis{Result: report.ResultUnknown, Step: StepAnswer, Text: "nothing comes back, and nothing refuses it: the program may not answer an empty datagram"}
	case !o.HasReadyEndpoints:
		return failedAt(StepConnection, "the Pods", "nothing comes back, and no Pod behind the port is ready")
	case o.IsOnLink:
		return failedAt(StepConnection, "kube-proxy or a firewall of the node, or the way to the Pods", "the node has the address and lets nothing come back: a firewall there, kube-proxy without rules, a route back that misses, or Pods that do not answer")
	}
	return failedAt(StepConnection, "the network between this machine and the node", "nothing comes back: the way to %s leads over routers, of which one does not have the route, or a firewall drops it", o.Address)
}

// neighbourProtocol is the protocol that asks for the Ethernet address.
func neighbourProtocol(a netip.Addr) string {
	if a.Unmap().Is4() {
		return "ARP"
	}
	return "NDP"
}

// isExcludedByService reports whether this machine may not connect. A family without source ranges
// is open to all.
func isExcludedByService(o *Observation) bool {
	isExcluded := false
	for _, p := range o.SourceRanges {
		if !o.LocalAddress.IsValid() || p.Addr().Is4() != o.LocalAddress.Is4() {
			continue
		}
		if p.Contains(o.LocalAddress) {
			return false
		}
		isExcluded = true
	}
	return isExcluded
}
