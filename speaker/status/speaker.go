package status

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/internal/ipfamily"
	"github.com/gantry-lb/gantry/speaker/facts"
)

// reasonBySkipReason has the Reason for each way to be no usable link.
var reasonBySkipReason = map[facts.SkipReason]names.Reason{
	facts.SkippedExcludedByName:       names.ReasonLinkExcluded,
	facts.SkippedDownOrNoCarrier:      names.ReasonLinkDown,
	facts.SkippedMemberOfMaster:       names.ReasonLinkMember,
	facts.SkippedNotBroadcastEthernet: names.ReasonLinkNoEthernet,
}

// BuildSpeakerStatus describes the node. Its conditions have no times yet, because these depend on
// what was written before.
func BuildSpeakerStatus(in StatusInputs) v1alpha1.SpeakerStatusStatus {
	routes := len(in.Plan.Routes)
	if in.Plan.NodeLeaving { // the routes are being withdrawn
		routes = 0
	}
	out := v1alpha1.SpeakerStatusStatus{
		Node: in.Self, Version: in.Version, Routes: int32(routes), Held: int32(len(in.HeldBindings)), Links: listSpeakerLinks(in),
		Unavailable: string(in.Plan.NodeUnavailableReason), Unreachable: in.GossipFaults.UnreachableNodes[:min(len(in.GossipFaults.UnreachableNodes), maxUnreachableNodesInSpeakerStatus)],
		Conditions: []metav1.Condition{buildReadyCondition(), buildLayer2UsableCondition(in), buildUncontestedCondition(in), buildGossipCondition(&in.GossipFaults), buildFitCondition(in)},
	}
	if in.SteeringFault != nil {
		out.Conditions = append(out.Conditions, buildSteeringCondition(*in.SteeringFault))
	}
	if in.ForwardingFault != nil {
		out.Conditions = append(out.Conditions, buildForwardingCondition(*in.ForwardingFault))
	}
	for _, l := range out.Links {
		if l.Usable {
			out.UsableLinks = append(out.UsableLinks, l.Name)
		}
	}
	awaiting, omitted := cutList(in.ServicesAwaitingProxy)
	out.AwaitingProxyOmitted = omitted
	for _, k := range awaiting {
		out.AwaitingProxy = append(out.AwaitingProxy, k.String())
	}
	// A host that forges Ethernet addresses must not keep the conflicts of other addresses out.
	isSameAddress := func(x, y AddressConflict) bool { return x.Address == y.Address }
	conflicts, omitted := cutList(slices.CompactFunc(slices.Concat(in.HeldAddressConflicts.All(), in.AcquireConflicts.All()), isSameAddress))
	out.ConflictsOmitted = omitted
	for _, c := range conflicts {
		out.Conflicts = append(out.Conflicts, v1alpha1.SpeakerConflict{Address: c.Address.String(), MAC: c.ForeignMAC.String(), Since: metav1.NewTime(c.FirstSeenAt.Truncate(time.Second).UTC())})
	}
	return out
}

const (
	// maxUnreachableNodesInSpeakerStatus bounds the list of unreachable nodes, which only people
	// read.
	maxUnreachableNodesInSpeakerStatus = 16
	// maxListEntriesInSpeakerStatus bounds the lists of a SpeakerStatus by which the controller
	// explains Services. It is so high that nearly no list is cut. The lists then have about 20 kB.
	maxListEntriesInSpeakerStatus = 512
)

// cutList returns the first elements of a list, and how many more there are.
func cutList[T any](all []T) (first []T, omitted int32) {
	n := min(len(all), maxListEntriesInSpeakerStatus)
	return all[:n], int32(len(all) - n)
}

// buildReadyCondition says that this speaker lives. Another speaker replaces it when this one is
// dead.
func buildReadyCondition() metav1.Condition {
	return metav1.Condition{Type: names.ConditionSpeakerReady, Status: metav1.ConditionTrue, Reason: string(names.ReasonSpeakerRuns), Message: "the speaker runs"}
}

// DeadSpeakerText says that the speaker of a node is dead, and who found it so.
func DeadSpeakerText(node, witness string) string {
	return fmt.Sprintf("the speaker of node %s has left, or is silent, as the speaker of node %s sees it: look at its Pod and at the node", node, witness)
}

// DeadSpeakerStatus is what a living speaker writes about a dead one: it holds nothing and
// announces nothing.
func DeadSpeakerStatus(node, witness string, now time.Time) v1alpha1.SpeakerStatusStatus {
	return v1alpha1.SpeakerStatusStatus{Conditions: []metav1.Condition{{
		Type: names.ConditionSpeakerReady, Status: metav1.ConditionFalse, Reason: string(names.ReasonNoSpeaker), LastTransitionTime: metav1.NewTime(now),
		Message: DeadSpeakerText(node, witness),
	}}}
}

// listSpeakerLinks lists the node's links except those of container networks, which come
// and go with each Pod.
func listSpeakerLinks(in StatusInputs) []v1alpha1.SpeakerLink {
	var out []v1alpha1.SpeakerLink
	all := facts.NewPublishedLinks(in.UsableLinks, in.DownLinks)
	for _, l := range in.UsableLinks {
		link := buildSpeakerLink(l, all, in.Plan.NodeInternalIPs)
		link.Usable = !l.CannotSendIPv4 && !l.CannotSendIPv6
		if !link.Usable {
			link.Reason, link.Message = string(names.ReasonPortFailed), in.SendFaultByLinkIndex[l.Index]
			if in.RawSocketDenialText != "" {
				link.Reason = string(names.ReasonRawSocketDenied)
			}
		}
		out = append(out, link)
	}
	for _, s := range in.SkippedLinks {
		why, ok := reasonBySkipReason[s.Reason]
		if !ok {
			continue
		}
		link := v1alpha1.SpeakerLink{Name: s.Name}
		if i := slices.IndexFunc(in.DownLinks, func(l facts.Link) bool { return l.Name == s.Name }); i >= 0 {
			link = buildSpeakerLink(in.DownLinks[i], all, in.Plan.NodeInternalIPs)
		}
		link.Reason = string(why)
		out = append(out, link)
	}
	slices.SortFunc(out, func(x, y v1alpha1.SpeakerLink) int { return strings.Compare(x.Name, y.Name) })
	// the two lists may be of different times
	return slices.CompactFunc(out, func(x, y v1alpha1.SpeakerLink) bool { return x.Name == y.Name })
}

// buildSpeakerLink says for which addresses the node could answer on the link. nodeAddresses are
// those of the node that Kubernetes knows of.
func buildSpeakerLink(l facts.Link, all *facts.PublishedLinks, nodeAddresses []netip.Addr) v1alpha1.SpeakerLink {
	out := v1alpha1.SpeakerLink{Name: l.Name, MAC: l.MAC.String()}
	for _, a := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		if l.CanSendFamilyOf(a) && all.HasFamilyOf(a, nodeAddresses) {
			out.Families = append(out.Families, ipfamily.FamilyOf(a).String())
		}
	}
	subnets, _ := cutList(l.Subnets())
	for _, p := range subnets {
		out.Subnets = append(out.Subnets, p.String())
	}
	return out
}

func buildLayer2UsableCondition(in StatusInputs) metav1.Condition {
	c := metav1.Condition{Type: names.ConditionLayer2Usable, Status: metav1.ConditionFalse}
	n := 0
	for _, l := range in.UsableLinks {
		if !l.CannotSendIPv4 || !l.CannotSendIPv6 {
			n++
		}
	}
	switch {
	case in.RawSocketDenialText != "":
		c.Reason, c.Message = string(names.ReasonRawSocketDenied), in.RawSocketDenialText
	case n == 0:
		c.Reason, c.Message = string(names.ReasonNoLinks), "no link of this node is usable: status.links has the reasons"
	default:
		c.Status, c.Reason, c.Message = metav1.ConditionTrue, string(names.ReasonUsable), fmt.Sprintf("addresses can be announced on %d links", n)
	}
	return c
}

// buildSteeringCondition says whether new connections would be steered around a dead node.
func buildSteeringCondition(fault names.Explanation) metav1.Condition {
	if fault.IsSet() {
		return metav1.Condition{Type: names.ConditionSteersAroundDeadNodes, Status: metav1.ConditionFalse, Reason: string(fault.Reason), Message: fault.Text}
	}
	return metav1.Condition{
		Type: names.ConditionSteersAroundDeadNodes, Status: metav1.ConditionTrue, Reason: string(names.ReasonSteeringPossible),
		Message: "if a node dies, this node sends new connections to the living endpoints",
	}
}

// buildForwardingCondition says whether open connections would be kept.
func buildForwardingCondition(fault names.Explanation) metav1.Condition {
	if fault.IsSet() {
		return metav1.Condition{Type: names.ConditionKeepsConnections, Status: metav1.ConditionFalse, Reason: string(fault.Reason), Message: fault.Text}
	}
	return metav1.Condition{
		Type: names.ConditionKeepsConnections, Status: metav1.ConditionTrue, Reason: string(names.ReasonForwardingPossible),
		Message: "when an address moves here as planned, this node forwards packets of open connections to the node that held it before",
	}
}

// maxConflictsNamedInMessage is how many conflicts a message names.
const maxConflictsNamedInMessage = 5

func buildUncontestedCondition(in StatusInputs) metav1.Condition {
	all := in.HeldAddressConflicts.All()
	if len(all) == 0 {
		return metav1.Condition{
			Type: names.ConditionHeldAddressesUncontested, Status: metav1.ConditionTrue, Reason: string(names.ReasonUncontested),
			Message: "no foreign host claims an address that this node holds",
		}
	}
	var claims []string
	for _, c := range all[:min(len(all), maxConflictsNamedInMessage)] {
		claims = append(claims, fmt.Sprintf("%s by %s", c.Address, c.ForeignMAC))
	}
	if len(all) > maxConflictsNamedInMessage {
		claims = append(claims, fmt.Sprintf("and %d more", len(all)-maxConflictsNamedInMessage))
	}
	return metav1.Condition{
		Type: names.ConditionHeldAddressesUncontested, Status: metav1.ConditionFalse, Reason: string(names.ReasonForeignClaim),
		Message: "foreign hosts claim addresses that this node holds: " + strings.Join(claims, ", ") + ": remove the addresses from these hosts, or from the pools",
	}
}
