package announced

import (
	"context"
	"fmt"
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
	"github.com/gantry-lb/gantry/internal/view"
)

// stateReader reads from the cache what is known of a Service's nodes, sessions and endpoints.
type stateReader struct {
	client          client.Client
	namespace       string
	withoutBGPKinds bool
}

// The names of the indexes of the cache.
const (
	reportsByServiceIndex        = "service"
	reportsByNodeIndex           = "node"
	endpointSlicesByServiceIndex = "endpoints"
	sessionsByNodeAndPeerIndex   = "session"
)

// readReports reads what living speakers report about the Service. wanted are the sessions that
// should carry it.
func (r *stateReader) readReports(ctx context.Context, v *view.Service, wanted []advertise.WantedSession) (*speakerReports, error) {
	match := []client.ListOption{client.InNamespace(r.namespace), client.MatchingFields{reportsByServiceIndex: v.Key.String()}}
	var l2 v1beta1.ServiceL2StatusList
	if err := r.client.List(ctx, &l2, match...); err != nil {
		return nil, fmt.Errorf("reading the speakers' reports about Service %s: %w", v.Key, err)
	}
	out := &speakerReports{}
	for i := range l2.Items {
		node := l2.Items[i].Status.Node
		if node == "" { // the status is written after the object
			node = l2.Items[i].Labels[names.LabelServiceStatusNode]
		}
		if !r.isSpeakerDead(ctx, node) {
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
			if w := (advertise.WantedSession{Node: s.Node, Peer: p}); !slices.Contains(wanted, w) {
				wanted = append(wanted, w)
			}
		}
	}
	for _, w := range wanted {
		s, err := r.readSession(ctx, w, v.AssignedAddresses, peersByNode)
		if err != nil {
			return nil, err
		}
		out.sessions = append(out.sessions, s)
	}
	return out, nil
}

// readSession reads whether a session carries the Service.
func (r *stateReader) readSession(ctx context.Context, w advertise.WantedSession, addresses []netip.Addr, peersByNode map[string][]string) (sessionReport, error) {
	out := sessionReport{node: w.Node, peer: w.Peer}
	var list v1alpha1.BGPSessionList
	match := client.MatchingFields{sessionsByNodeAndPeerIndex: sessionIndexValue(w.Node, w.Peer)}
	if err := r.client.List(ctx, &list, client.InNamespace(r.namespace), match); err != nil {
		return out, fmt.Errorf("reading the session of %s on node %s: %w", w.Peer, w.Node, err)
	}
	switch {
	case r.isSpeakerDead(ctx, w.Node):
		out.fault = names.Explain(names.ReasonNoSpeaker, "no speaker runs there")
		return out, nil
	case len(list.Items) == 0:
		out.fault = names.Explain(names.ReasonNoSession, "its speaker has not reported the session yet")
		return out, nil
	}
	s := &list.Items[0].Status
	out.carriesIPv4, out.carriesIPv6 = slices.Contains(s.Families, ipv4Unicast), slices.Contains(s.Families, ipv6Unicast)
	if c := meta.FindStatusCondition(s.Conditions, names.ConditionEstablished); c != nil && c.Status != metav1.ConditionTrue {
		out.carriesIPv4, out.carriesIPv6 = false, false
		out.fault = names.Explanation{Reason: names.Reason(c.Reason), Text: c.Message}
		return out, nil
	}
	out.fault = faultOfEstablishedSession(&out, s, addresses)
	if reported := slices.Contains(peersByNode[w.Node], w.Peer); reported || out.fault.IsSet() || !r.reportsServices(ctx, w.Node) {
		return out, nil
	}
	out.carriesIPv4, out.carriesIPv6 = false, false
	out.fault = names.Explain(names.ReasonNoSession, "the session is established, and the router does not have the route yet")
	return out, nil
}

// The names of the families in a BGPSession.
const ipv4Unicast, ipv6Unicast = "ipv4-unicast", "ipv6-unicast"

// faultOfEstablishedSession returns why an established session carries none of the addresses.
func faultOfEstablishedSession(session *sessionReport, s *v1alpha1.BGPSessionStatus, addresses []netip.Addr) names.Explanation {
	if slices.ContainsFunc(addresses, session.carriesFamilyOf) {
		return names.Explanation{}
	}
	if c := meta.FindStatusCondition(s.Conditions, names.ConditionRoutesAnnounced); c != nil && c.Status != metav1.ConditionTrue {
		return names.Explanation{Reason: names.Reason(c.Reason), Text: c.Message}
	}
	return names.Explain(names.ReasonFamilyNotCarried, "the session carries only routes of %s: activate the other address family for this neighbour on the router, and set dualStackAddressFamily", strings.Join(s.Families, ", "))
}

// reportsServices reports whether the node writes ServiceBGPStatus objects. A node with very many
// Services writes none: its sessions are then all that is known.
func (r *stateReader) reportsServices(ctx context.Context, node string) bool {
	var list v1beta1.ServiceBGPStatusList
	err := r.client.List(ctx, &list, client.InNamespace(r.namespace), client.MatchingFields{reportsByNodeIndex: node}, client.Limit(1))
	return err == nil && len(list.Items) > 0
}

// isSpeakerDead reports whether a living speaker has found the speaker of the node dead.
func (r *stateReader) isSpeakerDead(ctx context.Context, node string) bool {
	var s v1alpha1.SpeakerStatus
	if err := r.client.Get(ctx, client.ObjectKey{Namespace: r.namespace, Name: node}, &s); err != nil {
		return false
	}
	return meta.IsStatusConditionFalse(s.Status.Conditions, names.ConditionReady)
}

// readEndpoints reads the endpoints of the Service.
func (r *stateReader) readEndpoints(ctx context.Context, key view.ObjectKey) (view.Endpoints, error) {
	var slices discoveryv1.EndpointSliceList
	match := client.MatchingFields{endpointSlicesByServiceIndex: key.Name}
	if err := r.client.List(ctx, &slices, client.InNamespace(key.Namespace), match); err != nil {
		return view.Endpoints{}, fmt.Errorf("reading the endpoints of Service %s: %w", key, err)
	}
	return view.MergedEndpointsOfSlices(key, slices.Items), nil
}

// readSpeakers reads the SpeakerStatus of every node.
func (r *stateReader) readSpeakers(ctx context.Context) (map[string]*v1alpha1.SpeakerStatusStatus, error) {
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
func newNodeStates(config *configurationreader.Configuration, v *view.Service, e *view.Endpoints, speakers map[string]*v1alpha1.SpeakerStatusStatus, sessions []sessionReport) []advertise.NodeState {
	out := make([]advertise.NodeState, 0, len(config.Nodes))
	for _, labels := range config.Nodes {
		n := advertise.NodeState{NodeLabels: labels, HasEndpoints: slices.Contains(e.ServingNodes, labels.Name), SessionFaultByPeer: map[string]names.Explanation{}}
		s := speakers[labels.Name]
		n.Fault = faultOfSpeaker(s)
		if s != nil {
			n.IsProxyBehind = slices.Contains(s.AwaitingProxy, v.Key.String())
			n.Layer2Fault = faultOfLayer2(s)
			if s.LastSeen != nil { // an older speaker has no list of its usable links
				n.UsableInterfaces = append([]string{}, s.UsableLinks...)
			}
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
		return names.Explain(names.ReasonNoSpeaker, "no speaker runs there: %s", look)
	case meta.IsStatusConditionFalse(s.Conditions, names.ConditionReady):
		return names.Explain(names.ReasonNoSpeaker, "its speaker is gone or silent: %s", look)
	case s.Unavailable == string(names.ReasonNodeLeaving):
		return names.Explain(names.ReasonNodeLeaving, "the node is being drained (annotation %s), shut down or taken out of service", names.AnnotationDrainNodeAddresses)
	case s.Unavailable == string(names.ReasonNodeNetworkUnavailable):
		return names.Explain(names.ReasonNodeNetworkUnavailable, "its condition NetworkUnavailable is True: repair the network of the node")
	case s.Unavailable == string(names.ReasonNodeExcluded):
		return names.Explain(names.ReasonNodeExcluded, "it has the label %s: remove it", names.LabelExcludeNode)
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

// explainForeignHost says which foreign host answers for one of the addresses, so that no node
// takes it.
func explainForeignHost(speakers map[string]*v1alpha1.SpeakerStatusStatus, addresses []netip.Addr) names.Explanation {
	var found []v1alpha1.SpeakerConflict
	for _, s := range speakers {
		for _, c := range s.Conflicts {
			if a, err := netip.ParseAddr(c.Address); err == nil && slices.Contains(addresses, a) {
				found = append(found, c)
			}
		}
	}
	if len(found) == 0 {
		return names.Explanation{}
	}
	first := slices.MinFunc(found, func(x, y v1alpha1.SpeakerConflict) int { return strings.Compare(x.Address+x.MAC, y.Address+y.MAC) })
	return names.Explain(names.ReasonForeignClaim, "no node takes %s, since a host outside of the cluster (%s) answers for it: remove the address from that host, or exclude it from the pool", first.Address, first.MAC)
}

func sessionIndexValue(node, peer string) string { return node + "/" + peer }
