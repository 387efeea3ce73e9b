package explain

import (
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/clustertest"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/report"
)

// manifestEdit replaces one text of the manifests by another.
type manifestEdit struct{ oldText, newText string }

// noAddressEdits is the Service before it has an address, with the decision of the controller.
func noAddressEdits(reason names.Reason, text string) []manifestEdit {
	return []manifestEdit{
		{"  loadBalancer: {ingress: [{ip: 192.168.0.201}]}\n", ""},
		{`status: "True", reason: Assigned, message: 'assigned 192.168.0.201 from pool "first-pool"'`, `status: "False", reason: ` + string(reason) + `, message: '` + text + `'`},
		{`  - {type: gantry.dev/AllocatedFromPool, status: "True", reason: Assigned, message: first-pool, lastTransitionTime: "2026-03-01T11:00:00Z"}` + "\n", ""},
		{`  - {type: gantry.dev/Announced, status: "True", reason: Announced, message: announced by layer 2, lastTransitionTime: "2026-03-01T11:00:00Z"}` + "\n", ""},
	}
}

// undecidedServiceEdits is the Service before the controller has seen it.
var undecidedServiceEdits = append(noAddressEdits("X", "x"),
	manifestEdit{`  - {type: gantry.dev/AddressAssigned, status: "False", reason: X, message: 'x', lastTransitionTime: "2026-03-01T11:00:00Z"}` + "\n", ""},
	manifestEdit{"status:\n  conditions:\n---", "---"})

var noAnsweringNodeEdit = manifestEdit{"metallb.io/service-name: web, metallb.io", "metallb.io/service-name: other, metallb.io"}

func serviceAnnotationEdit(key, value string) manifestEdit {
	return manifestEdit{"metadata: {name: web, namespace: default,", "metadata: {name: web, namespace: default, annotations: {" + key + ": " + value + "},"}
}

// serviceFaultCase is a fault of the Service default/web, and what the first line says about it.
type serviceFaultCase struct {
	name           string
	edits          []manifestEdit
	moreManifests  string // manifests
	wantReason     names.Reason
	answerContains string
	wantRepairPart string // a part of the commands that mend it; optional
}

var serviceFaults = []serviceFaultCase{
	{name: "a full pool", edits: append(noAddressEdits(names.ReasonPoolExhausted, "no free address in (first-pool)"), manifestEdit{"assignedIPv4: 1, assignedIPv6: 0, availableIPv4: 1", "assignedIPv4: 2, assignedIPv6: 0, availableIPv4: 0"}),
		wantReason: names.ReasonPoolExhausted, answerContains: "first-pool has 2 of 2 IPv4 addresses in use"},
	{name: "a misspelt pool", edits: append(noAddressEdits(names.ReasonPoolNotFound, `no IPAddressPool "frist-pool" exists`), serviceAnnotationEdit(names.AnnotationRequestedPool, "frist-pool")),
		wantReason: names.ReasonPoolNotFound, answerContains: "did you mean first-pool?"},
	{name: "a pool in another namespace", edits: append(noAddressEdits(names.ReasonPoolNotFound, `no IPAddressPool "dmz" exists`), serviceAnnotationEdit(names.AnnotationRequestedPool, "dmz")),
		moreManifests: "apiVersion: metallb.io/v1beta1\nkind: IPAddressPool\nmetadata: {name: dmz, namespace: default}\nspec: {addresses: [192.168.9.0/24]}\n---\n",
		wantReason:    names.ReasonPoolElsewhere, answerContains: "IPAddressPool dmz is in namespace default"},
	{name: "a misspelt annotation", edits: append(noAddressEdits(names.ReasonNoEligiblePool, "no pool is open"), serviceAnnotationEdit("metallb.io/adress-pool", "first-pool")),
		wantReason: names.ReasonUnknownAnnotation, answerContains: "did you mean metallb.io/address-pool?"},
	{name: "a misspelt annotation of a Service that works", edits: []manifestEdit{serviceAnnotationEdit("metallb.io/adress-pool", "second")},
		wantReason: names.ReasonUnknownAnnotation, answerContains: "is announced, but the annotation metallb.io/adress-pool"},
	{name: "no controller", edits: append(undecidedServiceEdits[:len(undecidedServiceEdits):len(undecidedServiceEdits)], manifestEdit{"11:59:59.000000Z", "11:58:00.000000Z"}, manifestEdit{"replicas: 2, readyReplicas: 2", "replicas: 2"}),
		wantReason: names.ReasonNoController, answerContains: "Deployment gantry-controller has 0 of 2 Pods ready, and the Lease gantry-controller was last renewed at 11:58:00"},
	{name: "a controller that does nothing", edits: undecidedServiceEdits, wantReason: names.ReasonNoController, answerContains: "it should get 192.168.0.201, and the controller does not write it: look at the log of gantry-controller-1"},
	{name: "no decision, and a full pool", edits: append(undecidedServiceEdits[:len(undecidedServiceEdits):len(undecidedServiceEdits)], manifestEdit{"192.168.0.201-192.168.0.202", "192.168.0.201/32"}),
		moreManifests: `apiVersion: v1
kind: Service
metadata: {name: first, namespace: default}
spec: {type: LoadBalancer, clusterIP: 10.96.0.11, clusterIPs: [10.96.0.11], ports: [{port: 80}]}
status: {loadBalancer: {ingress: [{ip: 192.168.0.201}]}}
---
`, wantReason: names.ReasonPoolExhausted, answerContains: "first-pool"},
	{name: "another type", edits: []manifestEdit{{"type: LoadBalancer, clusterIP: 10.96.0.10", "type: ClusterIP, clusterIP: 10.96.0.10"}}, wantReason: names.ReasonNotLoadBalancer, answerContains: "its type is ClusterIP"},
	{name: "another class", edits: append(undecidedServiceEdits[:len(undecidedServiceEdits):len(undecidedServiceEdits)], manifestEdit{"type: LoadBalancer, clusterIP: 10.96.0.10", "type: LoadBalancer, loadBalancerClass: example.com/other, clusterIP: 10.96.0.10"}),
		wantReason: names.ReasonNotLoadBalancer, answerContains: `its loadBalancerClass is "example.com/other"`},
	{name: "no advertisement", edits: []manifestEdit{noAnsweringNodeEdit, {"spec: {ipAddressPools: [first-pool]}", "spec: {ipAddressPools: [other]}"}}, wantReason: names.ReasonNoAdvertisement, answerContains: `selects pool "first-pool"`},
	{name: "no endpoints", edits: []manifestEdit{noAnsweringNodeEdit, {"conditions: {ready: true}", "conditions: {ready: false}"}}, wantReason: names.ReasonNoEndpoints, answerContains: "192.168.0.201 is not announced: no endpoint"},
	{name: "every node excluded", edits: []manifestEdit{noAnsweringNodeEdit, {"kubernetes.io/hostname: node1", names.LabelExcludeNode + `: ""`}, {"kubernetes.io/hostname: node2", names.LabelExcludeNode + `: ""`}},
		wantReason: names.ReasonNodeExcluded, answerContains: names.LabelExcludeNode},
	{name: "dead speakers", edits: []manifestEdit{{`status: "True", reason: SpeakerRuns`, `status: "False", reason: NoSpeaker`}, {`status: "True", reason: SpeakerRuns`, `status: "False", reason: NoSpeaker`}, {"numberReady: 2", "numberReady: 0"}},
		wantReason: names.ReasonNoSpeaker, answerContains: "DaemonSet gantry-speaker has 0 of 2 Pods ready"},
	{name: "speakers that nobody found dead", edits: []manifestEdit{noAnsweringNodeEdit, {"11:59:30Z", "11:40:30Z"}, {"11:59:30Z", "11:40:30Z"}},
		wantReason: names.ReasonNoSpeaker, answerContains: "the speakers of node1, node2 are silent"},
	{name: "a report of speakers that do not run", edits: []manifestEdit{{"numberReady: 2", "numberReady: 0"}},
		wantReason: names.ReasonNoSpeaker, answerContains: "192.168.0.201 is not announced: the speakers of node1, node2 are silent: DaemonSet gantry-speaker has 0 of 2 Pods ready"},
	{name: "blocked gossip", edits: []manifestEdit{{"  conditions: [{type: gantry.dev/Ready", "  conditions: [{type: gantry.dev/GossipComplete, status: \"False\", reason: GossipBlocked, message: it does not hear node2, lastTransitionTime: \"2026-03-01T11:00:00Z\"}, {type: gantry.dev/Ready"}},
		wantReason: names.ReasonGossipBlocked, answerContains: "it does not hear node2"},
	{name: "a foreign host", edits: []manifestEdit{{"gantry: {addresses: [192.168.0.201]}", `gantry: {addresses: [192.168.0.201], conflicts: [{address: 192.168.0.201, mac: "02:00:00:00:00:01", since: "2026-03-01T11:00:00Z"}]}`}},
		wantReason: names.ReasonForeignClaim, answerContains: "02:00:00:00:00:01"},
	{name: "a retired address", edits: []manifestEdit{{`status: "True", reason: Assigned, message: 'assigned 192.168.0.201 from pool "first-pool"'`, `status: "True", reason: AddressRetired, message: 'pool first-pool retires 192.168.0.201'`}},
		wantReason: names.ReasonAddressRetired, answerContains: "pool first-pool retires"},
	{name: "a faulty pool", edits: []manifestEdit{{"addresses: [192.168.0.201-192.168.0.202]", "addresses: [192.168.0.201-192.168.0.202, 10.0.0.300]"}}, wantReason: names.ReasonInvalidAddress, answerContains: "10.0.0.300"},
}

func TestExplainServiceNamesTheCause(t *testing.T) {
	for _, f := range slices.Concat(serviceFaults, faultsOutsideGantry, otherServiceFaults, newcomerMistakes, mistakesOfRequests, mistakesOfAnnouncements, combinedRequestMistakes, combinedAnnouncementMistakes) {
		t.Run(f.name, func(t *testing.T) {
			manifests := installationManifests + workingServiceManifests
			for _, e := range f.edits {
				manifests = replaceManifestText(t, manifests, e.oldText, e.newText)
			}
			r := explainTestService(t, manifests+f.moreManifests)
			if r.Result != report.ResultNotWell || r.Reason != f.wantReason || !strings.Contains(r.AnswerWithReason(), f.answerContains) || !strings.HasPrefix(r.AnswerWithReason(), "default/web: ") {
				t.Errorf("%s: %s\n%+v\nwant %s: %s", r.Result, r.AnswerWithReason(), r.Checks, f.wantReason, f.answerContains)
			}
			if !strings.Contains(strings.Join(r.Repair, "\n"), f.wantRepairPart) {
				t.Errorf("the repair is %q, want %q", r.Repair, f.wantRepairPart)
			}
			if last := r.Answer[len(r.Answer)-1]; last == '.' || strings.Contains(r.AnswerWithReason(), "\n") {
				t.Errorf("%q is not one line without a full stop", r.AnswerWithReason())
			}
			if len(r.Repair) == 0 || r.Documentation == "" {
				t.Errorf("%s has no repair (%q) or no page (%q)", r.AnswerWithReason(), r.Repair, r.Documentation)
			}
		})
	}
}

func TestExplainServiceThatWorks(t *testing.T) {
	r := explainTestService(t, installationManifests+workingServiceManifests)
	if want := "default/web: 192.168.0.201 from pool first-pool is announced by layer 2; node1 answers [Announced]"; r.Result != report.ResultWell || r.AnswerWithReason() != want {
		t.Errorf("%s: %s, want %s", r.Result, r.AnswerWithReason(), want)
	}
	for _, g := range r.Checks {
		if g.Result != report.ResultWell {
			t.Errorf("the check %+v is not passed", g)
		}
	}
}

// TestExplainServiceOfOlderGantry reads objects that lack newer fields and conditions.
func TestExplainServiceOfOlderGantry(t *testing.T) {
	manifests := installationManifests + workingServiceManifests
	for _, e := range []manifestEdit{
		{`  - {type: gantry.dev/AllocatedFromPool, status: "True", reason: Assigned, message: first-pool, lastTransitionTime: "2026-03-01T11:00:00Z"}` + "\n", ""},
		{`  lastSeen: "2026-03-01T11:59:30Z"` + "\n", ""}, {`  lastSeen: "2026-03-01T11:59:30Z"` + "\n", ""},
		{`  conditions: [{type: gantry.dev/Ready, status: "True", reason: SpeakerRuns, message: "", lastTransitionTime: "2026-03-01T11:00:00Z"}]` + "\n", ""},
		{", gantry: {addresses: [192.168.0.201]}", ""},
	} {
		manifests = replaceManifestText(t, manifests, e.oldText, e.newText)
	}
	r := explainTestService(t, manifests)
	if want := "default/web: 192.168.0.201 is announced by layer 2; node1 answers [Announced]"; r.Result != report.ResultWell || r.AnswerWithReason() != want {
		t.Errorf("%s: %s, want %s", r.Result, r.AnswerWithReason(), want)
	}
}

func TestGantryInAnotherNamespaceIsFound(t *testing.T) {
	r := explainTestService(t, strings.ReplaceAll(installationManifests, "namespace: metallb-system", "namespace: network")+workingServiceManifests)
	if r.Result != report.ResultNotWell || r.Reason != names.ReasonNotInstalled || !strings.Contains(r.Answer, "add --gantry-namespace network") {
		t.Errorf("%s: %s", r.Result, r.AnswerWithReason())
	}
}

func TestListNamesForCompletion(t *testing.T) {
	e := newTestExplainer(clustertest.NewAPIBuilder(t, installationManifests+workingServiceManifests+routerManifests).Build())
	for kind, want := range map[string]string{"service": "web", "node": "node1 node2", "pool": "first-pool", "peer": "tor", "advertisement": "example routed", "address": ""} {
		if got := strings.Join(e.ListNamesForCompletion(t.Context(), kind, "default"), " "); got != want {
			t.Errorf("the names of the kind %s are %q, want %q", kind, got, want)
		}
	}
}

func TestExplainUnknownService(t *testing.T) {
	for name, want := range map[string]string{"wbe": "there is no Service default/wbe: did you mean web?", "unlike": "there is no Service default/unlike"} {
		r, err := newTestExplainer(clustertest.NewAPIBuilder(t, installationManifests+workingServiceManifests).Build()).ExplainService(t.Context(), client.ObjectKey{Namespace: "default", Name: name})
		if err != nil || r.Result != report.ResultUnknown || r.AnswerWithReason() != want {
			t.Errorf("%v, %v, want %s", r, err, want)
		}
	}
}
