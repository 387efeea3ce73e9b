package announcedcondition

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/controller/configurationreader"
	"github.com/gantry-lb/gantry/internal/advertise"
	"github.com/gantry-lb/gantry/internal/configuration"
	"github.com/gantry-lb/gantry/internal/ipfamily"
	"github.com/gantry-lb/gantry/internal/view"
)

// readEndpointsAndReports reads the endpoints of a Service and what speakers report about it.
func (r *announcementStateReader) readEndpointsAndReports(ctx context.Context, config *configurationreader.Configuration, v *view.Service) (*view.Endpoints, *speakerReports, error) {
	endpoints, err := r.readEndpoints(ctx, v.Key)
	if err != nil {
		return nil, nil, err
	}
	reports, err := r.readReports(ctx, v, sessionsToCarry(config, v, &endpoints))
	return &endpoints, reports, err
}

// sessionsToCarry returns the sessions that should carry a Service with these endpoints.
func sessionsToCarry(config *configurationreader.Configuration, v *view.Service, endpoints *view.Endpoints) []advertise.SessionToCarryService {
	svc := advertise.ServiceFromView(v)
	return advertise.SessionsToCarryService(config.Snapshot, &svc, config.Nodes, func(node string, a netip.Addr) bool {
		return endpoints.ServesFamilyOf(a) && (!v.HasLocalTrafficPolicy || endpoints.RestrictToFamilyOf(a).CanServeOn(node))
	})
}

// explainUnannounced says why nobody announces the addresses of v that are missing. isByEveryNode
// means that each node has a fault that keeps it from announcing them. endpoints and reports are
// those of the whole Service.
func (r *announcementStateReader) explainUnannounced(ctx context.Context, config *configurationreader.Configuration, v *view.Service, found *announcementSummary, endpoints *view.Endpoints, reports *speakerReports) (why names.Explanation, isByEveryNode bool, err error) {
	sessions := reports.sessions
	if len(found.announcedAddresses) > 0 {
		// A session may carry another address: its fault is that of the missing ones alone.
		missing := *v
		missing.AssignedAddresses, v = found.unannouncedAddresses, &missing
		sessions = restrictSessionsToAddresses(sessions, found.unannouncedAddresses)
	}
	svc := advertise.ServiceFromView(v)
	if why := advertise.ExplainUnannouncedService(config.Snapshot, &svc, config.Nodes); why.IsSet() {
		return why, false, nil
	}
	if !endpoints.AnyServing {
		return explainNoEndpoints(), false, nil
	}
	if !slices.ContainsFunc(v.AssignedAddresses, endpoints.ServesFamilyOf) {
		return explainNoEndpointsOfFamily(v.AssignedAddresses[0]), false, nil
	}
	if one := v.AssignedAddresses[0]; !slices.ContainsFunc(v.AssignedAddresses, func(a netip.Addr) bool { return a.Is4() != one.Is4() }) {
		served := endpoints.RestrictToFamilyOf(one)
		endpoints = &served
	}
	speakers, err := r.readSpeakerStatusByNode(ctx)
	if err != nil {
		return names.Explanation{}, false, err
	}
	silence := r.readAllSpeakersAbsence(ctx)
	if silence.IsSet() {
		return silence.Explanation, false, nil
	}
	if why := explainForeignHost(speakers, v.AssignedAddresses); why.IsSet() {
		return why, false, nil
	}
	nodes := newNodeStates(config, v, endpoints, speakers, sessions)
	if why := advertise.ExplainNodesNotAnnouncing(config.Snapshot, &svc, nodes, advertise.LocalTrafficPolicy(v.HasLocalTrafficPolicy)); why.IsSet() {
		return why, true, nil
	}
	if silence.hasNoPods {
		return names.NewExplanation(names.ReasonNoSpeaker, "nodes may announce the Service, and none reports that it does: there is no Pod of a speaker in namespace %s: look at the DaemonSet gantry-speaker", r.namespace), false, nil
	}
	return names.NewExplanation(names.ReasonNotAnnounced, "nodes may announce the Service, and none reports that it does: look at the logs of the speakers (kubectl -n %s logs daemonset/gantry-speaker)%s", r.namespace, describeCutLists(speakers)), false, nil
}

// describeCutLists says which lists of the speakers are cut, as the end of a sentence: the Service
// may be among those that are left out.
func describeCutLists(speakers map[string]*v1alpha1.SpeakerStatusStatus) string {
	var out string
	for _, node := range slices.Sorted(maps.Keys(speakers)) {
		s := speakers[node]
		if s.AwaitingProxyOmitted > 0 {
			out += fmt.Sprintf("; on %s, kube-proxy does not know the endpoints of %d Services, of which the SpeakerStatus names %d", node, len(s.AwaitingProxy)+int(s.AwaitingProxyOmitted), len(s.AwaitingProxy))
		}
		if s.ConflictsOmitted > 0 {
			out += fmt.Sprintf("; %s hears foreign hosts for %d addresses, of which the SpeakerStatus names %d", node, len(s.Conflicts)+int(s.ConflictsOmitted), len(s.Conflicts))
		}
	}
	return out
}

func explainNoEndpoints() names.Explanation {
	return names.NewExplanation(names.ReasonNoEndpoints, "no endpoint of the Service can serve: check its selector and whether its Pods are ready")
}

// explainNoEndpointsOfFamily is about addresses of one family, while another family has endpoints.
func explainNoEndpointsOfFamily(a netip.Addr) names.Explanation {
	return names.NewExplanation(names.ReasonNoEndpoints, "no endpoint of the Service has an %s address: check spec.ipFamilies and the families of its Pods", ipfamily.FamilyOf(a))
}

// Explainer says how a Service is announced, in the words of the condition, and what each node and
// each session has to do with it. It writes nothing. Use NewExplainer to create it.
type Explainer struct{ announcementStateReader announcementStateReader }

// NewExplainer returns an Explainer. The reader has the indexes of RegisterIndexes. It reads no
// Pods: the caller knows whether speakers run.
func NewExplainer(reader client.Reader, scope configuration.ConfigurationScope) *Explainer {
	readSilence := func(context.Context) allSpeakersAbsence { return allSpeakersAbsence{} }
	return &Explainer{announcementStateReader{client: reader, namespace: scope.Namespace, withoutBGPKinds: scope.WithoutBGPKinds, readAllSpeakersAbsence: readSilence}}
}

// AnnouncementFinding is what an Explainer found out about a Service.
type AnnouncementFinding struct {
	// Explanation is the Reason and the text of the condition gantry.dev/Announced.
	names.Explanation
	// AnnouncedAddresses and MissingAddresses are the addresses that somebody announces, and those
	// that nobody does.
	AnnouncedAddresses, MissingAddresses []netip.Addr
	Endpoints                            view.Endpoints
	NodeExplanations                     []advertise.NodeExplanation
	// Layer2Reports are those of living speakers.
	Layer2Reports []v1beta1.ServiceL2Status
	Sessions      []SessionFinding
}

// SessionFinding is a BGP session that should carry a Service. Fault is zero if it carries all.
type SessionFinding struct {
	Node, Peer string
	Fault      names.Explanation
}

// ExplainService says how the addresses of a Service are announced. Only the fields Snapshot and
// Nodes of the configuration count.
func (e *Explainer) ExplainService(ctx context.Context, config *configurationreader.Configuration, v *view.Service) (*AnnouncementFinding, error) {
	endpoints, reports, err := e.announcementStateReader.readEndpointsAndReports(ctx, config, v)
	if err != nil {
		return nil, err
	}
	speakers, err := e.announcementStateReader.readSpeakerStatusByNode(ctx)
	if err != nil {
		return nil, err
	}
	found := reports.summarizeAnnouncement(v.AssignedAddresses)
	out := &AnnouncementFinding{AnnouncedAddresses: found.announcedAddresses, MissingAddresses: found.unannouncedAddresses, Endpoints: *endpoints, Layer2Reports: reports.layer2Statuses}
	for _, s := range reports.sessions {
		out.Sessions = append(out.Sessions, SessionFinding{s.node, s.peer, s.fault})
	}
	svc := advertise.ServiceFromView(v)
	states := newNodeStates(config, v, endpoints, speakers, reports.sessions)
	out.NodeExplanations = advertise.ExplainAnnouncementPerNode(config.Snapshot, &svc, states, advertise.LocalTrafficPolicy(v.HasLocalTrafficPolicy))
	if len(found.unannouncedAddresses) == 0 {
		out.Reason, out.Text = reports.describeAnnouncement(&found, true)
		return out, nil
	}
	why, _, err := e.announcementStateReader.explainUnannounced(ctx, config, v, &found, endpoints, reports)
	out.Explanation = names.Explanation{Reason: why.Reason, Text: describeUnannouncedAddresses(&found, why)}
	return out, err
}

// ExplainSpeakerFault says why the node of a speaker announces nothing at all; nothing is set if it
// may. A nil status stands for a node without speaker.
func ExplainSpeakerFault(s *v1alpha1.SpeakerStatusStatus) names.Explanation { return faultOfSpeaker(s) }
