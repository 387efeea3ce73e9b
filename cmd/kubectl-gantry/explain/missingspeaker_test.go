package explain

import (
	"strings"
	"testing"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/clustertest"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/report"
)

// node2HasNoSpeakerEdit takes the SpeakerStatus of node2 away.
var node2HasNoSpeakerEdit = manifestEdit{"kind: SpeakerStatus\nmetadata: {name: node2", "kind: SpeakerStatus\nmetadata: {name: gone"}

const readyOnNode2 = `  usableLinks: [eth0]
  conditions: [{type: gantry.dev/Ready, status: "True", reason: SpeakerRuns, message: "", lastTransitionTime: "2026-03-01T11:00:00Z"}]
---
apiVersion: metallb.io`

// TestFirstLineNamesNodesWithoutSpeaker explains a Service that node1 announces.
func TestFirstLineNamesNodesWithoutSpeaker(t *testing.T) {
	deadOnNode2 := manifestEdit{readyOnNode2, strings.Replace(readyOnNode2, `"True", reason: SpeakerRuns`, `"False", reason: NoSpeaker`, 1)}
	for _, c := range []struct {
		name       string
		edits      []manifestEdit
		wantResult report.Result
		want       string
	}{
		{"its image does not exist", []manifestEdit{deadOnNode2, {"desiredNumberScheduled: 2, numberReady: 2", "desiredNumberScheduled: 2, numberReady: 1"}}, report.ResultNotWell, "default/web: 192.168.0.201 is announced, but node2 cannot take it over: its speaker is gone or silent: look at its Pod, and whether the DaemonSet gantry-speaker covers the node; DaemonSet gantry-speaker has 1 of 2 Pods ready: Pod gantry-speaker-x on node1 does not start: ImagePullBackOff: x"},
		{"the speaker is dead", []manifestEdit{{readyOnNode2, strings.Replace(readyOnNode2, `"True", reason: SpeakerRuns`, `"False", reason: NoSpeaker`, 1)}}, report.ResultNotWell, "default/web: 192.168.0.201 is announced, but node2 cannot take it over: its speaker is gone or silent"},
		{"the speaker never ran", []manifestEdit{node2HasNoSpeakerEdit, {"numberReady: 2", "numberReady: 1"}}, report.ResultNotWell, "default/web: 192.168.0.201 is announced, but node2 cannot take it over: no speaker runs there"},
		{"the DaemonSet does not cover the node", []manifestEdit{node2HasNoSpeakerEdit, {"desiredNumberScheduled: 2, numberReady: 2", "desiredNumberScheduled: 1, numberReady: 1"}}, report.ResultWell, "default/web: 192.168.0.201 from pool first-pool is announced by layer 2; node1 answers; no speaker runs on node2 [Announced]"},
	} {
		r := explainTestService(t, applyManifestEdits(t, installationManifests+workingServiceManifests+gantryPodManifest("speaker", `{phase: Pending, containerStatuses: [{name: speaker, image: x, imageID: "", ready: false, restartCount: 0, state: {waiting: {reason: ImagePullBackOff, message: x}}}]}`), c.edits))
		if r.Result != c.wantResult || !strings.HasPrefix(r.AnswerWithReason(), c.want) || (r.Result == report.ResultNotWell) != (r.Reason == names.ReasonNoSpeaker) {
			t.Errorf("%s: %s: %s, want %s", c.name, r.Result, r.AnswerWithReason(), c.want)
		}
	}
}

// TestDeadSpeakersDoNotAnswer asks for the holders while the speaker of node1 is dead or silent.
func TestDeadSpeakersDoNotAnswer(t *testing.T) {
	dead := manifestEdit{`status: "True", reason: SpeakerRuns`, `status: "False", reason: NoSpeaker`}
	silent := manifestEdit{"11:59:30Z", "11:40:30Z"}
	for _, c := range []struct {
		name       string
		edit       manifestEdit
		wantResult report.Result
		wantTitle  string
		wantRows   int
	}{
		{"alive", manifestEdit{}, report.ResultWell, "node1 answers for 1, node2 answers for 0", 1},
		{"dead", dead, report.ResultWell, "node1 answers for 0, node2 answers for 0", 0},
		{"silent", silent, report.ResultNotWell, "node1 answered for 1 and is silent since 2026-03-01 11:40:30 UTC, node2 answers for 0", 1},
	} {
		manifests := applyManifestEdits(t, installationManifests+workingServiceManifests, []manifestEdit{c.edit})
		l, err := newTestExplainer(clustertest.NewAPIBuilder(t, manifests).Build()).ListHolders(t.Context())
		if err != nil || l.Result != c.wantResult || l.Title != c.wantTitle || len(l.Rows) != c.wantRows {
			t.Errorf("%s: %v, %+v, want %s: %s", c.name, err, l, c.wantResult, c.wantTitle)
		}
		r, err := newTestExplainer(clustertest.NewAPIBuilder(t, manifests).Build()).ExplainAddress(t.Context(), "192.168.0.201")
		if err != nil {
			t.Fatal(err)
		}
		answers := false
		for _, g := range r.Checks {
			answers = answers || strings.Contains(g.Text, "node1 answers for it")
		}
		if answers != (c.name == "alive") || (r.Result == report.ResultNotWell) != (c.name == "silent") {
			t.Errorf("%s: %s: %+v", c.name, r.Result, r.Checks)
		}
	}
}
