package explain

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/clustertest"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/report"
)

// routerManifests are a BGPPeer with an established session from node1, and a pool for it.
const routerManifests = `
apiVersion: metallb.io/v1beta2
kind: BGPPeer
metadata: {name: tor, namespace: metallb-system}
spec: {myASN: 64512, peerASN: 65000, peerAddress: 192.168.0.1, nodeSelectors: [{matchLabels: {kubernetes.io/hostname: node1}}]}
---
apiVersion: metallb.io/v1beta1
kind: BGPAdvertisement
metadata: {name: routed, namespace: metallb-system}
spec: {ipAddressPools: [first-pool]}
---
apiVersion: gantry.dev/v1alpha1
kind: BGPSession
metadata: {name: tor.node1, namespace: metallb-system, labels: {gantry.dev/peer: tor}}
status:
  node: node1
  peer: tor
  address: 192.168.0.1:179
  state: Established
  families: [ipv4-unicast]
  prefixes: 1
  conditions: [{type: gantry.dev/Established, status: "True", reason: Established, message: "", lastTransitionTime: "2026-03-01T11:00:00Z"}]
---
apiVersion: metallb.io/v1beta1
kind: ServiceBGPStatus
metadata: {name: default.web.node1, namespace: metallb-system, labels: {metallb.io/node: node1, metallb.io/service-name: web, metallb.io/service-namespace: default}}
status: {node: node1, serviceName: web, serviceNamespace: default, peers: [tor]}
---
`

const lostSessionConditionText = `status: "False", reason: NoAnswer, message: the router does not answer`

// explainNonServiceCase asks about something, and says what the first line has to be.
type explainNonServiceCase struct {
	name           string
	explainFunc    func(*Explainer, context.Context) (*report.Report, error)
	edits          []manifestEdit
	wantResult     report.Result
	wantAnswerPart string
}

func explainFuncForObject(ask func(*Explainer, context.Context, string) (*report.Report, error), name string) func(*Explainer, context.Context) (*report.Report, error) {
	return func(e *Explainer, ctx context.Context) (*report.Report, error) { return ask(e, ctx, name) }
}

var explainNonServiceCases = []explainNonServiceCase{
	{name: "all is well", explainFunc: (*Explainer).ExplainInstallation, wantResult: report.ResultWell, wantAnswerPart: "Gantry is well: 2 speakers, 1 pool, 1 announced Service"},
	{name: "no controller", explainFunc: (*Explainer).ExplainInstallation, edits: []manifestEdit{{"11:59:59.000000Z", "11:58:00.000000Z"}}, wantResult: report.ResultNotWell, wantAnswerPart: "Gantry is not well: controller: no controller leads"},
	{name: "a lost session", explainFunc: (*Explainer).ExplainInstallation, edits: []manifestEdit{{`status: "True", reason: Established, message: ""`, lostSessionConditionText}}, wantResult: report.ResultNotWell, wantAnswerPart: "session of node1 with tor: the router does not answer [NoAnswer]"},
	{name: "a full pool", explainFunc: (*Explainer).ExplainInstallation, edits: []manifestEdit{{"availableIPv4: 1", "availableIPv4: 0"}}, wantResult: report.ResultNotWell, wantAnswerPart: "pool first-pool: it is full"},
	{name: "a Service without address", explainFunc: (*Explainer).ExplainInstallation, edits: noAddressEdits("PoolExhausted", "x"), wantResult: report.ResultNotWell, wantAnswerPart: "kubectl gantry explain service default/web [PoolExhausted]"},
	{name: "a node", explainFunc: explainFuncForObject((*Explainer).ExplainNode, "node1"), wantResult: report.ResultWell, wantAnswerPart: "node1: its speaker runs, and it can announce on eth0"},
	{name: "a misspelt node", explainFunc: explainFuncForObject((*Explainer).ExplainNode, "nod1"), wantResult: report.ResultUnknown, wantAnswerPart: "there is no Node nod1: did you mean node1?"},
	{name: "an excluded node", explainFunc: explainFuncForObject((*Explainer).ExplainNode, "node1"), edits: []manifestEdit{{"kubernetes.io/hostname: node1}", "kubernetes.io/hostname: node1, node.kubernetes.io/exclude-from-external-load-balancers: x}"}}, wantResult: report.ResultNotWell, wantAnswerPart: "[NodeExcluded]"},
	{name: "a node without speaker", explainFunc: explainFuncForObject((*Explainer).ExplainNode, "node1"), edits: []manifestEdit{{"kind: SpeakerStatus\nmetadata: {name: node1", "kind: SpeakerStatus\nmetadata: {name: node3"}}, wantResult: report.ResultNotWell, wantAnswerPart: "node1: speaker: no speaker runs there"},
	{name: "a pool", explainFunc: explainFuncForObject((*Explainer).ExplainPool, "first-pool"), wantResult: report.ResultWell, wantAnswerPart: "first-pool: 1 address in use, 1 free"},
	{name: "a misspelt pool", explainFunc: explainFuncForObject((*Explainer).ExplainPool, "frist-pool"), wantResult: report.ResultUnknown, wantAnswerPart: "did you mean first-pool?"},
	{name: "a pool that is full", explainFunc: explainFuncForObject((*Explainer).ExplainPool, "first-pool"), edits: []manifestEdit{{"availableIPv4: 1", "availableIPv4: 0"}}, wantResult: report.ResultNotWell, wantAnswerPart: "it is full: 1 address in use"},
	{name: "a peer", explainFunc: explainFuncForObject((*Explainer).ExplainPeer, "tor"), wantResult: report.ResultWell, wantAnswerPart: "tor: 1 of 1 sessions are established"},
	{name: "a silent peer", explainFunc: explainFuncForObject((*Explainer).ExplainPeer, "tor"), edits: []manifestEdit{{`status: "True", reason: Established, message: ""`, lostSessionConditionText}}, wantResult: report.ResultNotWell, wantAnswerPart: "tor: session of node1: the router does not answer [NoAnswer]"},
	{name: "an advertisement", explainFunc: explainFuncForObject((*Explainer).ExplainAdvertisement, "example"), wantResult: report.ResultWell, wantAnswerPart: "example: the L2Advertisement advertises first-pool"},
	{name: "an advertisement by BGP", explainFunc: explainFuncForObject((*Explainer).ExplainAdvertisement, "routed"), wantResult: report.ResultWell, wantAnswerPart: "routed: the BGPAdvertisement advertises first-pool"},
	{name: "an advertisement on an interface that no node has", explainFunc: explainFuncForObject((*Explainer).ExplainAdvertisement, "example"), edits: []manifestEdit{{"spec: {ipAddressPools: [first-pool]}", "spec: {ipAddressPools: [first-pool], interfaces: [eth77]}"}}, wantResult: report.ResultNotWell, wantAnswerPart: "example: nodes: none of its interfaces (eth77) is a usable link of node1, node2: correct spec.interfaces [NoLinks]"},
	{name: "an advertisement for no node", explainFunc: explainFuncForObject((*Explainer).ExplainAdvertisement, "routed"), edits: []manifestEdit{{"metadata: {name: routed, namespace: metallb-system}\nspec: {ipAddressPools: [first-pool]}", "metadata: {name: routed, namespace: metallb-system}\nspec: {ipAddressPools: [first-pool], nodeSelectors: [{matchLabels: {rack: a}}]}"}}, wantResult: report.ResultNotWell, wantAnswerPart: "routed: nodes: its nodeSelectors match no node"},
	{name: "an address in use", explainFunc: explainFuncForObject((*Explainer).ExplainAddress, "192.168.0.201"), wantResult: report.ResultWell, wantAnswerPart: "192.168.0.201: default/web has it, from pool first-pool"},
	{name: "a free address", explainFunc: explainFuncForObject((*Explainer).ExplainAddress, "192.168.0.202"), wantResult: report.ResultWell, wantAnswerPart: "192.168.0.202: no Service has it, and one may get it, from pool first-pool"},
	{name: "an address outside of the pools", explainFunc: explainFuncForObject((*Explainer).ExplainAddress, "192.168.0.9"), wantResult: report.ResultNotWell, wantAnswerPart: "no pool contains 192.168.0.9"},
	{name: "no address", explainFunc: explainFuncForObject((*Explainer).ExplainAddress, "192.168.0.900"), wantResult: report.ResultUnknown, wantAnswerPart: "is no address"},
}

func TestExplainObjectsOtherThanServices(t *testing.T) {
	for _, q := range explainNonServiceCases {
		t.Run(q.name, func(t *testing.T) {
			manifests := installationManifests + workingServiceManifests + routerManifests
			for _, e := range q.edits {
				manifests = replaceManifestText(t, manifests, e.oldText, e.newText)
			}
			r, err := q.explainFunc(newTestExplainer(clustertest.NewAPIBuilder(t, manifests).Build()), t.Context())
			if err != nil || r.Result != q.wantResult || !strings.Contains(r.AnswerWithReason(), q.wantAnswerPart) {
				t.Errorf("%+v, %v, want %s: %s", r, err, q.wantResult, q.wantAnswerPart)
			}
		})
	}
}

func TestListPoolsHoldersPeersAndServices(t *testing.T) {
	for name, c := range map[string]struct {
		list ListingFunc
		want []string // texts of the first row
	}{
		"pools":    {(*Explainer).ListPools, []string{"first-pool", "1", "192.168.0.202-192.168.0.202", "yes"}},
		"holders":  {(*Explainer).ListHolders, []string{"node1", "192.168.0.201", "default/web"}},
		"peers":    {(*Explainer).ListPeers, []string{"tor", "node1", "Established"}},
		"services": {func(e *Explainer, ctx context.Context) (*report.Listing, error) { return e.ListServices(ctx, "") }, []string{"default", "web", "192.168.0.201", "Announced"}},
	} {
		l, err := c.list(newTestExplainer(clustertest.NewAPIBuilder(t, installationManifests+workingServiceManifests+routerManifests).Build()), t.Context())
		if err != nil || len(l.Rows) != 1 || l.Result != report.ResultWell {
			t.Errorf("%s: %+v, %v", name, l, err)
			continue
		}
		for _, want := range c.want {
			if !strings.Contains(strings.Join(l.Rows[0], "|"), want) {
				t.Errorf("%s: %q has no %q", name, l.Rows[0], want)
			}
		}
	}
}

// TestStatusFitsOnOneScreen has a hundred nodes whose sessions with two routers fail, and Services
// without address, which come first.
func TestStatusFitsOnOneScreen(t *testing.T) {
	manifests := applyManifestEdits(t, installationManifests+workingServiceManifests+routerManifests, append(noAddressEdits(names.ReasonPoolExhausted, "x"), gossipConditionEdits(2, "node1", names.ReasonGossipBlocked, "x")...))
	for i := range 100 {
		for _, peer := range []string{"tor-a", "tor-b"} {
			manifests += fmt.Sprintf("apiVersion: gantry.dev/v1alpha1\nkind: BGPSession\nmetadata: {name: %s.n%03d, namespace: metallb-system}\nstatus: {node: n%03d, peer: %s, conditions: [{type: gantry.dev/Established, status: \"False\", reason: NoAnswer, message: no answer to 10.0.0.%d, lastTransitionTime: \"2026-03-01T11:00:00Z\"}]}\n---\n", peer, i, i, peer, i)
		}
	}
	r, err := newTestExplainer(clustertest.NewAPIBuilder(t, manifests).Build()).ExplainInstallation(t.Context())
	if err != nil || len(r.Checks) > 24 || r.Checks[0].Name != "Services" || r.Checks[0].Reason != names.ReasonPoolExhausted || r.Reason != names.ReasonPoolExhausted {
		t.Errorf("%v, %d checks: %+v", err, len(r.Checks), r)
	}
	want := report.Check{Name: "session of n000, n001, n002, n003, n004, n005 and 94 more with tor-b", Result: report.ResultNotWell, Reason: names.ReasonNoAnswer, Text: "no answer to 10.0.0.0"}
	if !slices.Contains(r.Checks, want) {
		t.Errorf("%+v has no %+v", r.Checks, want)
	}
}
