package explain

import (
	"context"
	"errors"
	"strings"
	"testing"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/clustertest"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/objects"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/report"
	"github.com/gantry-lb/gantry/internal/rib"
)

// speakerRoutesPage is what a speaker says about a router that gets one route of two.
const speakerRoutesPage = `[{"peer": "tor", "router": "192.168.0.1:179", "state": "Established", "routes": [
	{"prefix": "192.168.0.201/32", "advertisements": ["routed"], "announced": true, "attributes": {"nextHop": "2001:db8::11", "linkLocalNextHop": "fe80::11", "localPref": 200, "med": 7, "asPathPrepend": 2, "communities": ["64512:1"], "largeCommunities": ["64512:1:2"]}},
	{"prefix": "192.168.0.202/32", "advertisements": ["routed"], "announced": false, "withheldReason": "FamilyNotCarried", "withheldText": "the router takes no IPv4"}]}]`

const runningPodStatus = "{phase: Running}"

// newExplainerWithSpeakerPages returns an Explainer whose speakers answer with a page or an error.
func newExplainerWithSpeakerPages(t *testing.T, manifests, page string, err error) *Explainer {
	t.Helper()
	e := newTestExplainer(clustertest.NewAPIBuilder(t, manifests).Build())
	e.fetchSpeakerPage = func(_ context.Context, pod, path string) ([]byte, error) {
		if pod != "gantry-speaker-x" || path != rib.RoutesPagePath {
			t.Errorf("the page %s of Pod %s is fetched", path, pod)
		}
		return []byte(page), err
	}
	return e
}

func TestListRoutes(t *testing.T) {
	manifests := installationManifests + workingServiceManifests + routerManifests
	speaker := gantryPodManifest("speaker", runningPodStatus)
	for name, c := range map[string]struct {
		manifests, page, node string
		err                   error
		result                report.Result
		want                  string
	}{
		"one route of two":  {manifests + speaker, speakerRoutesPage, "node1", nil, report.ResultNotWell, "tor|192.168.0.201/32|yes|routed|next hop 2001:db8::11 and fe80::11, localPref 200, med 7, prepend 2, communities 64512:1 64512:1:2\ntor|192.168.0.202/32|FamilyNotCarried|routed|the router takes no IPv4"},
		"no route":          {manifests + speaker, "[]", "node1", nil, report.ResultWell, "node node1 announces no route"},
		"no speaker":        {manifests + speaker, speakerRoutesPage, "node2", nil, report.ResultUnknown, "no speaker runs on node node2"},
		"a misspelt node":   {manifests + speaker, speakerRoutesPage, "nod1", nil, report.ResultUnknown, "no speaker has ever run on a node nod1: did you mean node1"},
		"no right":          {manifests + speaker, "", "node1", errors.New("error upgrading connection: pods \"gantry-speaker-x\" is forbidden: User \"u\" cannot create"), report.ResultUnknown, "you have no right to create pods/portforward in namespace metallb-system"},
		"a broken page":     {manifests + speaker, "<html>", "node1", nil, report.ResultUnknown, "reading the routes of node node1"},
		"a speaker is lost": {manifests + speaker, "", "node1", errors.New("lost connection to pod"), report.ResultUnknown, "lost connection to pod"},
	} {
		l, err := newExplainerWithSpeakerPages(t, c.manifests, c.page, c.err).ListRoutes(t.Context(), c.node)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var rows []string
		for _, r := range l.Rows {
			rows = append(rows, strings.Join(r, "|"))
		}
		if got := l.Title + strings.Join(rows, "\n"); l.Result != c.result || !strings.Contains(got, c.want) {
			t.Errorf("%s: %s: %s, want %s: %s", name, l.Result, got, c.result, c.want)
		}
	}
}

// TestExplainServiceShowsSpeakerRoutes asks the speakers about a Service. What they do not answer
// changes nothing in the first line.
func TestExplainServiceShowsSpeakerRoutes(t *testing.T) {
	routed := installationManifests + workingServiceManifests + routerManifests + gantryPodManifest("speaker", runningPodStatus)
	for name, c := range map[string]struct {
		manifests string
		err       error
		want      report.Check
	}{
		"a route":   {routed, nil, report.Check{Name: "live routes of node1 to tor", Result: report.ResultWell, Text: "192.168.0.201/32, next hop 2001:db8::11 and fe80::11, localPref 200, med 7, prepend 2, communities 64512:1 64512:1:2, by routed"}},
		"no right":  {routed, errors.New("pods is forbidden"), report.Check{Name: "live routes of node1", Result: report.ResultUnknown, Text: "you have no right to create pods/portforward in namespace metallb-system"}},
		"no router": {installationManifests + workingServiceManifests, nil, report.Check{Name: "live routes", Result: report.ResultWell, Text: "no BGP session should carry the Service, so no speaker is asked"}},
	} {
		r, err := newExplainerWithSpeakerPages(t, c.manifests, speakerRoutesPage, c.err).ExplainService(t.Context(), client.ObjectKey{Namespace: "default", Name: "web"})
		if err != nil || r.Result != report.ResultWell {
			t.Errorf("%s: %v, %+v", name, err, r)
			continue
		}
		found := false
		for _, g := range r.Checks {
			found = found || g == c.want
		}
		if !found {
			t.Errorf("%s: the checks are %+v, want %+v", name, r.Checks, c.want)
		}
	}
}

// TestRoutesFromSpeakersNeedRightsOnPods refuses to list Pods.
func TestRoutesFromSpeakersNeedRightsOnPods(t *testing.T) {
	api := newAPIRefusingLists(t, installationManifests+workingServiceManifests+routerManifests, func(kind string) error {
		if kind == "Pod" {
			return refuseKindsExcept()(kind)
		}
		return nil
	})
	e := NewExplainer(ExplainerOptions{ObjectReader: objects.NewReader(api, LabelsFuncByIndex), GantryNamespace: "metallb-system", Now: newTestExplainer(api).now, ShowProgress: func(string) {},
		FetchSpeakerPage: func(context.Context, string, string) ([]byte, error) { return nil, errors.New("not asked") }})
	l, err := e.ListRoutes(t.Context(), "node1")
	if err != nil || l.Result != report.ResultUnknown || l.Title != "you have no right to list pods in namespace metallb-system" {
		t.Errorf("%v, %+v", err, l)
	}
}
