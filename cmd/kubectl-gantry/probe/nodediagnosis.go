package probe

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/report"
)

// NodeObservation is what a node hears by ARP or NDP about an address, with what the cluster says
// of it.
type NodeObservation struct {
	NodeAnswer
	Node    string
	Address netip.Addr
	// Holder is the node that answers for the address; empty if none does.
	Holder string
	// NodeByMAC has the Ethernet addresses of all links of the nodes.
	NodeByMAC map[string]string
	// HasReadyEndpoints is set if a Pod of the Service is ready.
	HasReadyEndpoints bool
	// IsAnnounced is set if the Service is announced, by whatever protocol.
	IsAnnounced bool
}

// DiagnoseNode says what a NodeObservation means.
func DiagnoseNode(o *NodeObservation) Diagnosis {
	protocol := neighbourProtocol(o.Address)
	switch o.Outcome {
	case NodeOutcomeNotAsked:
		return Diagnosis{Result: report.ResultUnknown, Step: StepSpeaker, Text: "not asked: " + o.Detail}
	case NodeOutcomeOldSpeaker:
		return Diagnosis{Result: report.ResultUnknown, Step: StepSpeaker, Text: "not known: " + o.Detail + ": update the speakers first"}
	case NodeOutcomeNoSpeaker:
		return failedAt(StepSpeaker, "the speaker of "+o.Node, "nobody asks there: %s", o.Detail)
	case NodeOutcomeNotSent:
		return failedAt(StepLink, "node "+o.Node, "its speaker has no link on which it can ask by %s: the link is down, has no address of the family, or is excluded", protocol)
	case NodeOutcomeAnswered:
		return diagnoseNeighbourOfNode(o, protocol)
	case NodeOutcomeSilent:
	}
	switch {
	case o.Holder == o.Node && o.Holder != "":
		return diagnoseHolderItself(o, protocol)
	case o.Holder != "":
		return failedAt(StepNeighbour, fmt.Sprintf("%s, which holds the address, or the network between it and %s", o.Holder, o.Node), "no host answers %s", protocol)
	case !o.HasReadyEndpoints:
		return failedAt(StepNeighbour, "the Pods", "no host answers %s, since no Pod of the Service is ready: then no node announces it", protocol)
	case o.IsAnnounced:
		return wellAt(StepNeighbour, "no host answers %s, as it should be: only routers learn of the address", protocol)
	}
	return failedAt(StepNeighbour, "the configuration", "no host answers %s, since no node holds the address: the last line says why", protocol)
}

// diagnoseHolderItself says that the holder hears no other host.
func diagnoseHolderItself(o *NodeObservation, protocol string) Diagnosis {
	return wellAt(StepNeighbour, "%s holds the address itself, and no other host answers %s for it", o.Node, protocol)
}

// diagnoseNeighbourOfNode looks at who answered.
func diagnoseNeighbourOfNode(o *NodeObservation, protocol string) Diagnosis {
	var strangers []string
	for _, mac := range o.MACs {
		node := o.NodeByMAC[strings.ToLower(mac)]
		switch {
		case node == "":
			strangers = append(strangers, mac)
		case node != o.Holder: // a holder with two links in a segment may hear itself
			strangers = append(strangers, mac+" of node "+node)
		}
	}
	slices.Sort(strangers)
	all := strings.Join(strangers, ", ")
	switch {
	case len(strangers) == 0 && o.Holder == o.Node:
		return diagnoseHolderItself(o, protocol)
	case len(strangers) == 0:
		return wellAt(StepNeighbour, "%s answers %s with %s, and it holds the address", o.Holder, protocol, strings.Join(o.MACs, ", "))
	case o.Holder != "" && !slices.Contains(slices.Collect(maps.Values(o.NodeByMAC)), o.Holder):
		return Diagnosis{Result: report.ResultUnknown, Step: StepNeighbour, Text: fmt.Sprintf("%s answers %s; the Ethernet address of %s, which holds the address, is not known", all, protocol, o.Holder)}
	case o.Holder != "":
		return failedAt(StepNeighbour, "another host on the segment", "%s answers %s, and %s holds the address", all, protocol, o.Holder)
	}
	return failedAt(StepNeighbour, "another host on the segment", "%s answers %s, and no node holds the address", all, protocol)
}

func wellAt(step Step, format string, args ...any) Diagnosis {
	return Diagnosis{Result: report.ResultWell, Step: step, Text: fmt.Sprintf(format, args...)}
}

// hearsHolder reports whether the node hears the holder, or is it.
func (o *NodeObservation) hearsHolder() bool {
	return o != nil && o.Holder != "" && DiagnoseNode(o).Result == report.ResultWell
}

// hearsNobody reports whether the node asked, and no host answered.
func (o *NodeObservation) hearsNobody() bool {
	return o != nil && o.Outcome == NodeOutcomeSilent && o.Holder != o.Node
}
