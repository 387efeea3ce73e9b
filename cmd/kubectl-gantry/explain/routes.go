package explain

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/report"
	"github.com/gantry-lb/gantry/internal/rib"
)

// PodPageFetcher fetches a page from the local port of a Pod in Gantry's namespace.
type PodPageFetcher func(ctx context.Context, pod, path string) ([]byte, error)

// describeRouteAttributes lists the attributes that are set.
func describeRouteAttributes(a *rib.Attributes) string {
	if a == nil {
		return ""
	}
	out := []string{"next hop " + a.NextHop}
	if a.LinkLocalNextHop != "" {
		out[0] += " and " + a.LinkLocalNextHop
	}
	if a.LocalPref != 0 {
		out = append(out, fmt.Sprintf("localPref %d", a.LocalPref))
	}
	if a.MED != nil {
		out = append(out, fmt.Sprintf("med %d", *a.MED))
	}
	if a.ASPathPrependCount > 0 {
		out = append(out, fmt.Sprintf("prepend %d", a.ASPathPrependCount))
	}
	if all := slices.Concat(a.Communities, a.LargeCommunities, a.ExtendedCommunities); len(all) > 0 {
		out = append(out, "communities "+strings.Join(all, " "))
	}
	return strings.Join(out, ", ")
}

// errNoRightToPortForward says that the user may not read what only a speaker knows.
var errNoRightToPortForward = errors.New("you have no right to create pods/portforward")

// readRoutes reads from the speaker of a node what each router gets.
func (e *Explainer) readRoutes(ctx context.Context, node string) ([]rib.PeerRIB, error) {
	var pods corev1.PodList
	selector := client.MatchingLabels{names.LabelAppName: names.AppName, names.LabelComponent: names.ComponentSpeaker}
	if err := e.objectReader.List(ctx, &pods, client.InNamespace(e.gantryNamespace), selector); err != nil {
		return nil, err
	}
	if e.objectReader.LacksRightToRead("pods") {
		return nil, fmt.Errorf("you have no right to list pods in namespace %s", e.gantryNamespace)
	}
	if known := slices.Sorted(maps.Keys(e.installation.speakerStatusByNode)); len(known) > 0 && !slices.Contains(known, node) {
		if near := findSimilarNames(node, known); len(near) > 0 {
			return nil, fmt.Errorf("no speaker has ever run on a node %s: did you mean %s?", node, strings.Join(near, " or "))
		}
	}
	at := slices.IndexFunc(pods.Items, func(p corev1.Pod) bool { return p.Spec.NodeName == node && p.Status.Phase == corev1.PodRunning })
	if at < 0 {
		return nil, fmt.Errorf("no speaker runs on node %s", node)
	}
	text, err := e.fetchSpeakerPage(ctx, pods.Items[at].Name, rib.RoutesPagePath)
	if err != nil {
		if apierrors.IsForbidden(err) || strings.Contains(err.Error(), "forbidden") {
			return nil, fmt.Errorf("%w in namespace %s", errNoRightToPortForward, e.gantryNamespace)
		}
		return nil, err
	}
	var out []rib.PeerRIB
	if err := json.Unmarshal(text, &out); err != nil {
		return nil, fmt.Errorf("reading the routes of node %s: %w", node, err)
	}
	return out, nil
}

// ListRoutes lists what each router gets from a node, with the attributes.
func (e *Explainer) ListRoutes(ctx context.Context, node string) (*report.Listing, error) {
	l, o, err := e.newListingWithOverview(ctx, withoutServices, "peer", "prefix", "announced", "advertisements", "attributes")
	if err != nil || o == nil {
		return l, err
	}
	all, err := e.readRoutes(ctx, node)
	if err != nil {
		l.Result, l.Title = report.ResultUnknown, err.Error()
		return l, nil
	}
	for _, p := range all {
		for _, r := range p.Routes {
			announced, detail := "yes", describeRouteAttributes(r.Attributes)
			if !r.Announced {
				l.Result, announced, detail = report.ResultNotWell, string(r.WithheldReason), r.WithheldText
			}
			l.Rows = append(l.Rows, []string{p.PeerName, r.Prefix.String(), announced, strings.Join(r.AdvertisementNames, ","), detail})
		}
	}
	if len(l.Rows) == 0 {
		l.Title = fmt.Sprintf("node %s announces no route", node)
	}
	return l, nil
}

// maxSpeakersAskedPerService bounds how many speakers are asked about one Service.
const maxSpeakersAskedPerService = 16

// addRouteChecksFromSpeakers says what the speakers themselves say about the routes of the Service.
func (c *serviceDiagnosis) addRouteChecksFromSpeakers(ctx context.Context) {
	if c.fetchSpeakerPage == nil || c.announcementFinding == nil {
		return
	}
	if len(c.announcementFinding.Sessions) == 0 {
		c.addCheck("live routes", report.ResultWell, names.Explanation{Text: "no BGP session should carry the Service, so no speaker is asked"})
		return
	}
	var asked []string
	for _, s := range c.announcementFinding.Sessions {
		if slices.Contains(asked, s.Node) || len(asked) == maxSpeakersAskedPerService {
			continue
		}
		asked = append(asked, s.Node)
		all, err := c.readRoutes(ctx, s.Node)
		if err != nil {
			c.addCheck("live routes of "+s.Node, report.ResultUnknown, names.Explanation{Text: err.Error()})
			if errors.Is(err, errNoRightToPortForward) {
				return
			}
			continue
		}
		for _, p := range all {
			c.addRouteCheckOfRouter(s.Node, &p)
		}
	}
}

// addRouteCheckOfRouter says which routes of the Service a router gets.
func (c *serviceDiagnosis) addRouteCheckOfRouter(node string, p *rib.PeerRIB) {
	name := fmt.Sprintf("live routes of %s to %s", node, p.PeerName)
	for _, r := range p.Routes {
		if !slices.ContainsFunc(c.view.AssignedAddresses, r.Prefix.Contains) {
			continue
		}
		if !r.Announced {
			c.addCheck(name, report.ResultNotWell, names.Explanation{Reason: r.WithheldReason, Text: r.Prefix.String() + ": " + r.WithheldText})
			continue
		}
		c.addCheck(name, report.ResultWell, names.Explanation{Text: fmt.Sprintf("%s, %s, by %s", r.Prefix, describeRouteAttributes(r.Attributes), strings.Join(r.AdvertisementNames, ", "))})
	}
}
