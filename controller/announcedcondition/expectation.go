package announcedcondition

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/controller/configurationreader"
	"github.com/gantry-lb/gantry/internal/advertise"
	"github.com/gantry-lb/gantry/internal/ipfamily"
	"github.com/gantry-lb/gantry/internal/view"
)

// AnnouncementExpectation is how a Service should be announced by a configuration, whatever is
// announced now.
type AnnouncementExpectation struct {
	// Explanation has ReasonAnnounced if somebody should announce each address, and otherwise why
	// nobody does.
	names.Explanation
	NodeExplanations []advertise.NodeExplanation
	// Sessions are the BGP sessions that should carry the Service, from nodes that announce
	// something at all.
	Sessions []advertise.SessionToCarryService
}

// ExpectAnnouncement says how a Service should be announced by the configuration, by the rules of
// ExplainService. Of the reports it uses only those about nodes and about sessions that exist: a
// session that does not exist yet is expected to be established. Only the fields Snapshot and Nodes
// of the configuration count.
func (e *Explainer) ExpectAnnouncement(ctx context.Context, config *configurationreader.Configuration, v *view.Service) (*AnnouncementExpectation, error) {
	r := &e.announcementStateReader
	endpoints, err := r.readEndpoints(ctx, v.Key)
	if err != nil {
		return nil, err
	}
	speakers, err := r.readSpeakerStatusByNode(ctx)
	if err != nil {
		return nil, err
	}
	reports := &speakerReports{}
	out := &AnnouncementExpectation{}
	for _, w := range sessionsToCarry(config, v, &endpoints) {
		if !faultOfSpeaker(speakers[w.Node]).IsSet() {
			out.Sessions = append(out.Sessions, w)
		}
		s, err := r.expectSessionReport(ctx, config, v, w)
		if err != nil {
			return nil, err
		}
		reports.sessions = append(reports.sessions, s)
	}
	svc := advertise.ServiceFromView(v)
	states := newNodeStates(config, v, &endpoints, speakers, reports.sessions)
	out.NodeExplanations = advertise.ExplainAnnouncementPerNode(config.Snapshot, &svc, states, advertise.LocalTrafficPolicy(v.HasLocalTrafficPolicy))
	found := announcementSummary{unannouncedAddresses: v.AssignedAddresses}
	why, _, err := r.explainUnannounced(ctx, config, v, &found, &endpoints, reports)
	if err != nil {
		return nil, err
	}
	if why.Reason != names.ReasonNotAnnounced {
		out.Explanation = why
		return out, nil
	}
	return out, r.expectEachAddress(ctx, config, v, &endpoints, reports, out)
}

// expectEachAddress says whether nobody should announce one of several addresses, although somebody
// should announce the Service.
func (r *announcementStateReader) expectEachAddress(ctx context.Context, config *configurationreader.Configuration, v *view.Service, endpoints *view.Endpoints, reports *speakerReports, out *AnnouncementExpectation) error {
	out.Explanation = names.NewExplanation(names.ReasonAnnounced, "announced")
	for i, a := range v.AssignedAddresses {
		if len(v.AssignedAddresses) == 1 {
			break
		}
		others := slices.Concat(v.AssignedAddresses[:i], v.AssignedAddresses[i+1:])
		why, _, err := r.explainUnannounced(ctx, config, v, &announcementSummary{announcedAddresses: others, unannouncedAddresses: []netip.Addr{a}}, endpoints, reports)
		if err != nil {
			return err
		}
		if why.Reason != names.ReasonNotAnnounced {
			out.Explanation = why
		}
	}
	return nil
}

// expectSessionReport returns what is known of a session that should carry the Service. The router
// is expected to get the Service's routes over a session that is established, or new.
func (r *announcementStateReader) expectSessionReport(ctx context.Context, config *configurationreader.Configuration, v *view.Service, w advertise.SessionToCarryService) (sessionReport, error) {
	var list v1alpha1.BGPSessionList
	match := client.MatchingFields{SessionsByNodeAndPeerIndex: sessionIndexValue(w.Node, w.Peer)}
	if err := r.client.List(ctx, &list, client.InNamespace(r.namespace), match); err != nil {
		return sessionReport{}, fmt.Errorf("reading the session of %s on node %s: %w", w.Peer, w.Node, err)
	}
	if len(list.Items) > 0 {
		return r.readSessionReport(ctx, v, w, true)
	}
	out := sessionReport{node: w.Node, peer: w.Peer, wantedAddresses: w.Addresses}
	for _, p := range config.Snapshot.Peers {
		switch {
		case p.Name != w.Peer:
		case p.FirstProblem != nil:
			out.fault = names.Explanation{Reason: p.FirstProblem.Reason, Text: p.FirstProblem.Text}
		default:
			out.carriesIPv4, out.carriesIPv6 = p.CarriesFamily(ipfamily.IPv4), p.CarriesFamily(ipfamily.IPv6)
		}
	}
	return out, nil
}
