package explain

import (
	"strings"
	"testing"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/report"
)

// leaseWriteTimeEdit is when the API server recorded the last write of the Lease, which an edit by
// a user may precede.
func leaseWriteTimeEdit(at string) manifestEdit {
	const lease = "kind: Lease\nmetadata: {name: gantry-controller, namespace: metallb-system"
	return manifestEdit{lease + "}", lease + `, managedFields: [{manager: kubectl-edit, operation: Update, apiVersion: coordination.k8s.io/v1, time: "2026-03-01T10:00:00Z", fieldsType: FieldsV1, fieldsV1: {"f:metadata": {}}}, ` +
		`{manager: controller, operation: Update, apiVersion: coordination.k8s.io/v1, time: "` + at + `", fieldsType: FieldsV1, fieldsV1: {"f:spec": {"f:renewTime": {}}}}]}`}
}

func speakerWriteTimeEdit(node, at string) manifestEdit {
	speaker := "kind: SpeakerStatus\nmetadata: {name: " + node + ", namespace: metallb-system"
	return manifestEdit{speaker + "}", speaker + `, managedFields: [{manager: speaker, operation: Apply, apiVersion: gantry.dev/v1alpha1, subresource: status, time: "` + at + `", fieldsType: FieldsV1, fieldsV1: {"f:status": {"f:lastSeen": {}}}}]}`}
}

// TestWrongClocksOfNodesDoNotMatter has writers whose clocks differ from that of the API server.
func TestWrongClocksOfNodesDoNotMatter(t *testing.T) {
	lateRenewal, earlyRenewal := manifestEdit{"11:59:59.000000Z", "11:59:50.000000Z"}, manifestEdit{"11:59:59.000000Z", "12:05:00.000000Z"}
	oldLastSeen := manifestEdit{"11:59:30Z", "11:40:30Z"}
	for name, c := range map[string]struct {
		edits []manifestEdit
		want  names.Reason
	}{
		"the clock of the controller is late":          {[]manifestEdit{lateRenewal, leaseWriteTimeEdit("2026-03-01T11:59:59Z")}, names.ReasonAnnounced},
		"the same, and the API server recorded none":   {[]manifestEdit{lateRenewal}, names.ReasonNoController},
		"the clock of a dead controller is early":      {[]manifestEdit{earlyRenewal, leaseWriteTimeEdit("2026-03-01T11:59:50Z")}, names.ReasonNoController},
		"the clocks of the speakers are late":          {[]manifestEdit{oldLastSeen, oldLastSeen, speakerWriteTimeEdit("node1", "2026-03-01T11:59:30Z"), speakerWriteTimeEdit("node2", "2026-03-01T11:59:30Z")}, names.ReasonAnnounced},
		"the speakers are silent, by their own clocks": {[]manifestEdit{oldLastSeen, oldLastSeen}, names.ReasonNoSpeaker},
		"the clocks of dead speakers are early":        {[]manifestEdit{speakerWriteTimeEdit("node1", "2026-03-01T11:40:30Z"), speakerWriteTimeEdit("node2", "2026-03-01T11:40:30Z")}, names.ReasonNoSpeaker},
	} {
		if r := explainTestService(t, applyManifestEdits(t, installationManifests+workingServiceManifests, c.edits)); r.Reason != c.want {
			t.Errorf("%s: %s, want %s", name, r.AnswerWithReason(), c.want)
		}
	}
}

// TestSpeakersThatStoppedJustNowMayReturn has a rollout that leaves no speaker ready for a moment.
func TestSpeakersThatStoppedJustNowMayReturn(t *testing.T) {
	noneReady := manifestEdit{"numberReady: 2", "numberReady: 0"}
	unreadySince := func(at string) string {
		return gantryPodManifest("speaker", `{phase: Running, conditions: [{type: Ready, status: "False", lastTransitionTime: "`+at+`"}]}`)
	}
	for name, c := range map[string]struct {
		edits        []manifestEdit
		unreadySince string
		want         names.Reason
	}{
		"a moment ago":                    {[]manifestEdit{noneReady}, "2026-03-01T11:59:57Z", names.ReasonAnnounced},
		"a moment ago, and unannounced":   {[]manifestEdit{noneReady, noAnsweringNodeEdit}, "2026-03-01T11:59:57Z", names.ReasonAnnounced},
		"for longer":                      {[]manifestEdit{noneReady}, "2026-03-01T11:59:50Z", names.ReasonNoSpeaker},
		"for longer, and unannounced":     {[]manifestEdit{noneReady, noAnsweringNodeEdit}, "2026-03-01T11:59:50Z", names.ReasonNoSpeaker},
		"ready speakers that say nothing": {[]manifestEdit{noAnsweringNodeEdit}, "2026-03-01T11:59:57Z", names.ReasonNotAnnounced},
	} {
		r := explainTestService(t, applyManifestEdits(t, installationManifests+workingServiceManifests, c.edits)+unreadySince(c.unreadySince))
		if r.Reason != c.want || (r.Result == report.ResultWell) != (c.want == names.ReasonAnnounced) || strings.Contains(r.Answer, "you may not read") {
			t.Errorf("%s: %s, want %s", name, r.AnswerWithReason(), c.want)
		}
	}
}
