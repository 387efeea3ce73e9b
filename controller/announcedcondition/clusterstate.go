package announcedcondition

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/controller/configurationreader"
	"github.com/gantry-lb/gantry/internal/advertise"
	"github.com/gantry-lb/gantry/internal/ethernet"
	"github.com/gantry-lb/gantry/internal/ipfamily"
	"github.com/gantry-lb/gantry/internal/view"
)

// announcementStateReader reads from the cache what is known of a Service's nodes, sessions and
// endpoints.
type announcementStateReader struct {
	client                 client.Reader
	namespace              string
	withoutBGPKinds        bool
	readAllSpeakersAbsence func(context.Context) allSpeakersAbsence
}

// The names of the indexes by which Services are explained: see RegisterIndexes.
const (
	ReportsByServiceIndex        = "service"
	ReportsByNodeIndex           = "node"
	EndpointSlicesByServiceIndex = "endpoints"
	SessionsByNodeAndPeerIndex   = "session"
)

// readReports reads what living speakers report about the Service. wanted are the sessions that
// should carry it.
func (r *announcementStateReader) readReports(ctx context.Context, v *view.Service, wanted []advertise.SessionToCarryService) (*speakerReports, error) {
	match := []client.ListOption{client.InNamespace(r.namespace), client.MatchingFields{ReportsByServiceIndex: v.Key.String()}}
	var l2 v1beta1.ServiceL2StatusList
	if err := r.client.List(ctx, &l2, match...); err != nil {
		return nil, fmt.Errorf("reading the speakers' reports about Service %s: %w", v.Key, err)
	}
	out := &speakerReports{}
	for i := range l2.Items {
		// without a node, the status is not written yet: it comes after the object
		switch node := l2.Items[i].Status.Node; {
		case node == "":
		case r.readSpeakerStatus(ctx, node).WasFoundDead():
			out.deadLayer2Nodes++
		default:
			out.layer2Statuses = append(out.layer2Statuses, l2.Items[i])
		}
	}
	if r.withoutBGPKinds {
		return out, nil
	}
	var bgp v1beta1.ServiceBGPStatusList
	if err := r.client.List(ctx, &bgp, match...); err != nil {
		return nil, fmt.Errorf("reading the speakers' reports about Service %s: %w", v.Key, err)
	}
	peersByNode := map[string][]string{}
	for i := range bgp.Items {
		s := &bgp.Items[i].Status
		peersByNode[s.Node] = s.Peers
		for _, p := range s.Peers { // the configuration that was read may be older than the report
			isSame := func(w advertise.SessionToCarryService) bool { return w.Node == s.Node && w.Peer == p }
			if !slices.ContainsFunc(wanted, isSame) {
				wanted = append(wanted, advertise.SessionToCarryService{Node: s.Node, Peer: p, Addresses: v.AssignedAddresses})
			}
		}
	}
	for _, w := range wanted {
		s, err := r.readSessionReport(ctx, v, w, slices.Contains(peersByNode[w.Node], w.Peer))
		if err != nil {
			return nil, err
		}
		out.sessions = append(out.sessions, s)
	}
	return out, nil
}

// readSessionReport reads whether a session carries the Service. isReported says that the speaker
// reports so.
func (r *announcementStateReader) readSessionReport(ctx context.Context, v *view.Service, w advertise.SessionToCarryService, isReported bool) (sessionReport, error) {
	out := sessionReport{node: w.Node, peer: w.Peer, wantedAddresses: w.Addresses}
	var list v1alpha1.BGPSessionList
	match := client.MatchingFields{SessionsByNodeAndPeerIndex: sessionIndexValue(w.Node, w.Peer)}
	if err := r.client.List(ctx, &list, client.InNamespace(r.namespace), match); err != nil {
		return out, fmt.Errorf("reading the session of %s on node %s: %w", w.Peer, w.Node, err)
	}
	speaker := r.readSpeakerStatus(ctx, w.Node)
	switch {
	case speaker.WasFoundDead():
		out.fault = names.NewExplanation(names.ReasonNoSpeaker, "no speaker runs there")
		return out, nil
	case len(list.Items) == 0:
		out.fault = names.NewExplanation(names.ReasonNoSession, "its speaker has not reported the session yet")
		return out, nil
	}
	s := &list.Items[0].Status
	out.carriesIPv4, out.carriesIPv6 = slices.Contains(s.Families, ipv4Unicast), slices.Contains(s.Families, ipv6Unicast)
	c := meta.FindStatusCondition(s.Conditions, names.ConditionEstablished)
	if c != nil && (c.Status != metav1.ConditionTrue || c.Reason == string(names.ReasonFlapping)) {
		out.carriesIPv4, out.carriesIPv6 = false, false
		out.fault = names.Explanation{Reason: names.Reason(c.Reason), Text: c.Message}
		return out, nil
	}
	out.familyFault = explainFamilyNotCarried(s, speaker)
	if !slices.ContainsFunc(out.wantedAddresses, out.carriesAddress) {
		out.fault = out.familyFault
	}
	if isReported || out.fault.IsSet() {
		return out, nil
	}
	out.fault = explainAwaitedProxy(v, speaker)
	if !out.fault.IsSet() && r.doesNodeReportBGPServices(ctx, w.Node, speaker) {
		out.fault = explainUnreportedRoute(speaker)
	}
	if out.fault.IsSet() {
		out.carriesIPv4, out.carriesIPv6 = false, false
	}
	return out, nil
}

// explainAwaitedProxy says that the node withholds the routes of the Service until kube-proxy there
// knows its endpoints. Nothing is set if it does not.
func explainAwaitedProxy(v *view.Service, speaker *v1alpha1.SpeakerStatusStatus) names.Explanation {
	if speaker == nil || !v.HasLocalTrafficPolicy || !slices.Contains(speaker.AwaitingProxy, v.Key.String()) {
		return names.Explanation{}
	}
	return names.NewExplanation(names.ReasonServiceProxyNotReady, "kube-proxy there does not know the endpoints of the Service yet: look at kube-proxy")
}

// explainUnreportedRoute says why an established session does not carry a Service that the node
// does not report: the node is unfit, or the route is on its way.
func explainUnreportedRoute(speaker *v1alpha1.SpeakerStatusStatus) names.Explanation {
	if speaker != nil {
		c := meta.FindStatusCondition(speaker.Conditions, names.ConditionNodeFit)
		// A silent link withdraws no routes.
		if c != nil && c.Status == metav1.ConditionFalse && c.Reason != string(names.ReasonLinkSilent) {
			return names.Explanation{Reason: names.Reason(c.Reason), Text: c.Message}
		}
	}
	return names.NewExplanation(names.ReasonNoSession, "the session is established, and the router does not have the route yet")
}

// The names of the families in a BGPSession.
const ipv4Unicast, ipv6Unicast = "ipv4-unicast", "ipv6-unicast"

// explainFamilyNotCarried returns why an established session does not carry a family that it does
// not carry.
func explainFamilyNotCarried(s *v1alpha1.BGPSessionStatus, speaker *v1alpha1.SpeakerStatusStatus) names.Explanation {
	if why := faultOfSpeaker(speaker); speaker != nil && why.IsSet() {
		return why // the node has withdrawn its routes
	}
	if c := meta.FindStatusCondition(s.Conditions, names.ConditionRoutesAnnounced); c != nil && c.Status != metav1.ConditionTrue {
		return names.Explanation{Reason: names.Reason(c.Reason), Text: c.Message}
	}
	return names.NewExplanation(names.ReasonFamilyNotCarried, "the session carries only routes of %s: activate the other address family for this neighbour on the router, and set dualStackAddressFamily", strings.Join(s.Families, ", "))
}

// doesNodeReportBGPServices reports whether the node says which Services it announces by BGP:
// none, or those of its ServiceBGPStatus objects. A node with very many Services writes none of
// these: its sessions are then all that is known.
func (r *announcementStateReader) doesNodeReportBGPServices(ctx context.Context, node string, speaker *v1alpha1.SpeakerStatusStatus) bool {
	if speaker != nil && speaker.LastSeen != nil && speaker.Routes == 0 {
		return true
	}
	var list v1beta1.ServiceBGPStatusList
	err := r.client.List(ctx, &list, client.InNamespace(r.namespace), client.MatchingFields{ReportsByNodeIndex: node}, client.Limit(1))
	return err == nil && len(list.Items) > 0
}

// readSpeakerStatus reads the SpeakerStatus of a node; nil if there is none.
func (r *announcementStateReader) readSpeakerStatus(ctx context.Context, node string) *v1alpha1.SpeakerStatusStatus {
	var s v1alpha1.SpeakerStatus
	if err := r.client.Get(ctx, client.ObjectKey{Namespace: r.namespace, Name: node}, &s); err != nil {
		return nil
	}
	return &s.Status
}

// readEndpoints reads the endpoints of the Service.
func (r *announcementStateReader) readEndpoints(ctx context.Context, key view.ObjectKey) (view.Endpoints, error) {
	var slices discoveryv1.EndpointSliceList
	match := client.MatchingFields{EndpointSlicesByServiceIndex: key.Name}
	if err := r.client.List(ctx, &slices, client.InNamespace(key.Namespace), match); err != nil {
		return view.Endpoints{}, fmt.Errorf("reading the endpoints of Service %s: %w", key, err)
	}
	return view.FromEndpointSlices(key, slices.Items), nil
}

// readSpeakerStatusByNode reads the SpeakerStatus of every node.
func (r *announcementStateReader) readSpeakerStatusByNode(ctx context.Context) (map[string]*v1alpha1.SpeakerStatusStatus, error) {
	var list v1alpha1.SpeakerStatusList
	if err := r.client.List(ctx, &list, client.InNamespace(r.namespace)); err != nil {
		return nil, fmt.Errorf("reading the state of the speakers: %w", err)
	}
	out := make(map[string]*v1alpha1.SpeakerStatusStatus, len(list.Items))
	for i := range list.Items {
		out[list.Items[i].Name] = &list.Items[i].Status
	}
	return out, nil
}

// newNodeStates returns what is known of each node that may announce the Service.
func newNodeStates(config *configurationreader.Configuration, v *view.Service, e *view.Endpoints, speakers map[string]*v1alpha1.SpeakerStatusStatus, sessions []sessionReport) []advertise.NodeStateForService {
	out := make([]advertise.NodeStateForService, 0, len(config.Nodes))
	for _, labels := range config.Nodes {
		n := advertise.NodeStateForService{NodeLabels: labels, HasEndpoints: slices.Contains(e.ServingNodes, labels.Name), SessionFaultByPeer: map[string]names.Explanation{}}
		s := speakers[labels.Name]
		n.Fault = faultOfSpeaker(s)
		if s != nil {
			n.IsProxyBehind = slices.Contains(s.AwaitingProxy, v.Key.String())
			n.Layer2Fault = faultOfLayer2(s)
			n.Links = linkStatesOf(s)
		}
		for _, session := range sessions {
			if session.node == labels.Name && session.fault.IsSet() {
				n.SessionFaultByPeer[session.peer] = session.fault
			}
		}
		out = append(out, n)
	}
	return out
}

// faultOfSpeaker returns why the node of a speaker announces nothing at all.
func faultOfSpeaker(s *v1alpha1.SpeakerStatusStatus) names.Explanation {
	const look = "look at its Pod, and whether the DaemonSet gantry-speaker covers the node"
	switch {
	case s == nil:
		return names.NewExplanation(names.ReasonNoSpeaker, "no speaker runs there: %s", look)
	case s.WasFoundDead():
		return names.NewExplanation(names.ReasonNoSpeaker, "its speaker is gone or silent: %s", look)
	case s.Unavailable == string(names.ReasonNodeLeaving):
		return names.NewExplanation(names.ReasonNodeLeaving, "the node is being drained (annotation %s), shut down or taken out of service", names.AnnotationDrainNode)
	case s.Unavailable == string(names.ReasonNodeNetworkUnavailable):
		return names.NewExplanation(names.ReasonNodeNetworkUnavailable, "its condition NetworkUnavailable is True: repair the network of the node")
	case s.Unavailable == string(names.ReasonNodeExcluded):
		return names.NewExplanation(names.ReasonNodeExcluded, "it has the label %s: remove it", names.LabelExcludeNode)
	}
	return names.Explanation{}
}

// faultOfLayer2 returns why the node of a speaker announces nothing by layer 2.
func faultOfLayer2(s *v1alpha1.SpeakerStatusStatus) names.Explanation {
	c := meta.FindStatusCondition(s.Conditions, names.ConditionLayer2Usable)
	if c == nil || c.Status != metav1.ConditionFalse {
		return names.Explanation{}
	}
	return names.Explanation{Reason: names.Reason(c.Reason), Text: c.Message}
}

// linkStatesOf returns the links of a node that are usable, or only down; nil if its speaker, which
// may be an older one, does not describe them.
func linkStatesOf(s *v1alpha1.SpeakerStatusStatus) []advertise.LinkState {
	if !slices.ContainsFunc(s.Links, func(l v1alpha1.SpeakerLink) bool { return len(l.Families)+len(l.Subnets) > 0 }) {
		return nil
	}
	out := []advertise.LinkState{}
	for _, l := range s.Links {
		switch names.Reason(l.Reason) {
		case names.ReasonLinkExcluded, names.ReasonLinkMember, names.ReasonLinkNoEthernet:
			continue
		}
		state := advertise.LinkState{Name: l.Name, IsDown: l.Reason == string(names.ReasonLinkDown), IsVirtualRouter: isVirtualRouterMAC(l.MAC)}
		for _, f := range []ipfamily.Family{ipfamily.IPv4, ipfamily.IPv6} {
			if slices.Contains(l.Families, f.String()) {
				state.Families = append(state.Families, f)
			}
		}
		for _, text := range l.Subnets {
			if p, err := netip.ParsePrefix(text); err == nil {
				state.Subnets = append(state.Subnets, p)
			}
		}
		out = append(out, state)
	}
	return out
}

// isVirtualRouterMAC reports whether an Ethernet address in a SpeakerStatus is that of a virtual
// router. A text that is no address is none.
func isVirtualRouterMAC(text string) bool {
	mac, err := net.ParseMAC(text)
	return err == nil && ethernet.IsVirtualRouterAddress(mac)
}

// FindReportedAddressConflicts returns what living speakers report about foreign hosts that answer
// for one of the addresses, sorted by address and Ethernet address. What a dead one reported last
// is not so any more.
func FindReportedAddressConflicts(speakers map[string]*v1alpha1.SpeakerStatusStatus, addresses []netip.Addr) []v1alpha1.SpeakerConflict {
	var out []v1alpha1.SpeakerConflict
	for _, s := range speakers {
		if s.WasFoundDead() {
			continue
		}
		for _, c := range s.Conflicts {
			if a, err := netip.ParseAddr(c.Address); err == nil && slices.Contains(addresses, a) {
				out = append(out, c)
			}
		}
	}
	slices.SortFunc(out, func(x, y v1alpha1.SpeakerConflict) int { return strings.Compare(x.Address+x.MAC, y.Address+y.MAC) })
	return out
}

// explainForeignHost says which foreign host answers for one of the addresses, so that no node
// takes it.
func explainForeignHost(speakers map[string]*v1alpha1.SpeakerStatusStatus, addresses []netip.Addr) names.Explanation {
	found := FindReportedAddressConflicts(speakers, addresses)
	if len(found) == 0 {
		return names.Explanation{}
	}
	return names.NewExplanation(names.ReasonForeignClaim, "no node takes %s, since a host outside of the cluster (%s) answers for it: remove the address from that host, or exclude it from the pool", found[0].Address, found[0].MAC)
}

func sessionIndexValue(node, peer string) string { return node + "/" + peer }
