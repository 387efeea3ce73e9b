package explain

import (
	"context"
	"errors"
	"strings"
	"testing"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/objects"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/report"
	"github.com/gantry-lb/gantry/internal/rib"
)

// routesPage is what a speaker says about a router that gets one route of two.
const routesPage = `[{"peer": "tor", "router": "192.168.0.1:179", "state": "Established", "routes": [
	{"prefix": "192.168.0.201/32", "advertisements": ["routed"], "announced": true, "attributes": {"nextHop": "2001:db8::11", "linkLocalNextHop": "fe80::11", "localPref": 200, "med": 7, "asPathPrepend": 2, "communities": ["64512:1"], "largeCommunities": ["64512:1:2"]}},
	{"prefix": "192.168.0.202/32", "advertisements": ["routed"], "announced": false, "withheldReason": "FamilyNotCarried", "withheldText": "the router takes no IPv4"}]}]`

const runningSpeaker = "{phase: Running}"

// newExplainerWithSpeakerPages returns an Explainer whose speakers answer with a page or an error.
func newExplainerWithSpeakerPages(t *testing.T, manifests, page string, err error) *Explainer {
	t.Helper()
	e := newTestExplainer(newTestAPI(t, manifests).Build())
	e.fetchPage = func(_ context.Context, pod, path string) ([]byte, error) {
		if pod != "gantry-speaker-x" || path != rib.PagePath {
			t.Errorf("the page %s of Pod %s is fetched", path, pod)
		}
		return []byte(page), err
	}
	return e
}

func TestListRoutes(t *testing.T) {
	manifests := installationManifests + workingServiceManifests + routerManifests
	speaker := podManifest("speaker", runningSpeaker)
	for name, c := range map[string]struct {
		manifests, page, node string
		err                   error
		result                report.Result
		want                  string
	}{
		"one route of two":  {manifests + speaker, routesPage, "node1", nil, report.NotWell, "tor|192.168.0.201/32|yes|routed|next hop 2001:db8::11 and fe80::11, localPref 200, med 7, prepend 2, communities 64512:1 64512:1:2\ntor|192.168.0.202/32|FamilyNotCarried|routed|the router takes no IPv4"},
		"no route":          {manifests + speaker, "[]", "node1", nil, report.Well, "node node1 announces no route"},
		"no speaker":        {manifests + speaker, routesPage, "node2", nil, report.Unknown, "no speaker runs on node node2"},
		"a misspelt node":   {manifests + speaker, routesPage, "nod1", nil, report.Unknown, "no speaker has ever run on a node nod1: did you mean node1"},
		"no right":          {manifests + speaker, "", "node1", errors.New("error upgrading connection: pods \"gantry-speaker-x\" is forbidden: User \"u\" cannot create"), report.Unknown, "you have no right to create pods/portforward in namespace metallb-system"},
		"a broken page":     {manifests + speaker, "<html>", "node1", nil, report.Unknown, "reading the routes of node node1"},
		"a speaker is lost": {manifests + speaker, "", "node1", errors.New("lost connection to pod"), report.Unknown, "lost connection to pod"},
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
	routed := installationManifests + workingServiceManifests + routerManifests + podManifest("speaker", runningSpeaker)
	for name, c := range map[string]struct {
		manifests string
		err       error
		want      report.Gate
	}{
		"a route":   {routed, nil, report.Gate{Name: "live routes of node1 to tor", Result: report.Well, Text: "192.168.0.201/32, next hop 2001:db8::11 and fe80::11, localPref 200, med 7, prepend 2, communities 64512:1 64512:1:2, by routed"}},
		"no right":  {routed, errors.New("pods is forbidden"), report.Gate{Name: "live routes of node1", Result: report.Unknown, Text: "you have no right to create pods/portforward in namespace metallb-system"}},
		"no router": {installationManifests + workingServiceManifests, nil, report.Gate{Name: "live routes", Result: report.Well, Text: "no BGP session should carry the Service, so no speaker is asked"}},
	} {
		r, err := newExplainerWithSpeakerPages(t, c.manifests, routesPage, c.err).ExplainService(t.Context(), client.ObjectKey{Namespace: "default", Name: "web"})
		if err != nil || r.Result != report.Well {
			t.Errorf("%s: %v, %+v", name, err, r)
			continue
		}
		found := false
		for _, g := range r.Gates {
			found = found || g == c.want
		}
		if !found {
			t.Errorf("%s: the gates are %+v, want %+v", name, r.Gates, c.want)
		}
	}
}

// TestRoutesFromSpeakersNeedRightsOnPods refuses to list Pods.
func TestRoutesFromSpeakersNeedRightsOnPods(t *testing.T) {
	api := refuseLists(t, installationManifests+workingServiceManifests+routerManifests, func(kind string) error {
		if kind == "Pod" {
			return refuseAllBut()(kind)
		}
		return nil
	})
	e := NewExplainer(Options{Objects: objects.NewReader(api, LabelsByIndex), Namespace: "metallb-system", Now: newTestExplainer(api).now, ShowProgress: func(string) {},
		FetchPage: func(context.Context, string, string) ([]byte, error) { return nil, errors.New("not asked") }})
	l, err := e.ListRoutes(t.Context(), "node1")
	if err != nil || l.Result != report.Unknown || l.Title != "you have no right to list pods in namespace metallb-system" {
		t.Errorf("%v, %+v", err, l)
	}
}
