package explain

import (
	"context"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/clustertest"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/report"
)

// goneControllerEdits let no controller lead.
var goneControllerEdits = []manifestEdit{{"11:59:59.000000Z", "11:58:00.000000Z"}, {"replicas: 2, readyReplicas: 2", "replicas: 2"}}

// TestGoneControllerComesBeforeItsLastDecision has decisions whose cause may be gone: nobody
// decides again.
func TestGoneControllerComesBeforeItsLastDecision(t *testing.T) {
	for _, edits := range [][]manifestEdit{
		noAddressEdits(names.ReasonPoolNotFound, `no IPAddressPool "frist-pool" exists`),
		noAddressEdits(names.ReasonPoolExhausted, "no free address in (first-pool)"),
	} {
		r := explainTestService(t, applyManifestEdits(t, installationManifests+workingServiceManifests, slices.Concat(edits, goneControllerEdits)))
		if want := "no address yet: no controller leads: Deployment gantry-controller has 0 of 2 Pods ready"; r.Reason != names.ReasonNoController || !strings.Contains(r.Answer, want) || !strings.Contains(r.Answer, "before it stopped, it wrote: no ") {
			t.Errorf("%s, want %s", r.AnswerWithReason(), want)
		}
	}
}

// TestNodeThatIsNotReadyComesBeforeItsSpeaker has nodes that take their speakers with them.
func TestNodeThatIsNotReadyComesBeforeItsSpeaker(t *testing.T) {
	deadSpeaker := manifestEdit{`status: "True", reason: SpeakerRuns`, `status: "False", reason: NoSpeaker`}
	silentSpeaker := manifestEdit{"11:59:30Z", "11:40:30Z"}
	withNodeStatus := func(node, ready, message string) manifestEdit {
		labels := "labels: {kubernetes.io/hostname: " + node + "}}"
		return manifestEdit{labels, labels + "\nstatus: {conditions: [{type: MemoryPressure, status: \"False\"}, {type: Ready, status: \"" + ready + "\", reason: X, message: " + message + ", lastTransitionTime: \"2026-03-01T11:45:00Z\"}]}"}
	}
	for name, c := range map[string]struct {
		edits     []manifestEdit
		want, not string
	}{
		"one is unreachable":   {[]manifestEdit{deadSpeaker, deadSpeaker, withNodeStatus("node1", "Unknown", "x"), withNodeStatus("node2", "True", "x")}, "192.168.0.201 is not announced: Node node1 is unreachable since 2026-03-01 11:45:00 UTC, so that its kubelet reports nothing: look at the machine first; ", "Node node2"},
		"both are not ready":   {[]manifestEdit{deadSpeaker, deadSpeaker, withNodeStatus("node1", "False", "no CNI"), withNodeStatus("node2", "False", "no CNI")}, "Node node1 is not ready since 2026-03-01 11:45:00 UTC (no CNI), Node node2 is not ready", "unreachable"},
		"silent and not ready": {[]manifestEdit{silentSpeaker, silentSpeaker, withNodeStatus("node1", "Unknown", "x")}, "Node node1 is unreachable since 2026-03-01 11:45:00 UTC, so that its kubelet reports nothing: look at the machine first; the speakers of node1, node2 are silent", "Node node2"},
		"ready":                {[]manifestEdit{deadSpeaker, deadSpeaker, withNodeStatus("node1", "True", "x")}, "192.168.0.201 is not announced: no node announces it", "Node node"},
	} {
		manifests := applyManifestEdits(t, installationManifests+workingServiceManifests, c.edits)
		r := explainTestService(t, manifests)
		if r.Reason != names.ReasonNoSpeaker || !strings.Contains(r.Answer, c.want) || strings.Contains(r.Answer, c.not) {
			t.Errorf("%s: %s, want %s", name, r.AnswerWithReason(), c.want)
		}
		if name != "one is unreachable" {
			continue
		}
		for _, ask := range []func(*Explainer, context.Context) (*report.Report, error){(*Explainer).ExplainInstallation, explainFuncForObject((*Explainer).ExplainNode, "node1")} {
			r, err := ask(newTestExplainer(clustertest.NewAPIBuilder(t, manifests).Build()), t.Context())
			if err != nil || !slices.ContainsFunc(r.Checks, func(g report.Check) bool { return strings.Contains(g.Text, "Node node1 is unreachable") }) {
				t.Errorf("%v, %+v", err, r)
			}
		}
	}
}

// TestPoolThatRefusedServiceIsNotOpen has decisions that depend on other Services: the pool lines
// repeat them.
func TestPoolThatRefusedServiceIsNotOpen(t *testing.T) {
	const otherPool = "apiVersion: metallb.io/v1beta1\nkind: IPAddressPool\nmetadata: {name: default, namespace: metallb-system}\nspec: {addresses: [10.7.0.0/24]}\nstatus: {assignedIPv4: 0, assignedIPv6: 0, availableIPv4: 256, availableIPv6: 0}\n---\n"
	for reason, c := range map[names.Reason]struct {
		text  string
		edits []manifestEdit
	}{
		names.ReasonQuotaExceeded:  {text: "namespace default has reached its quota in the pools open to this Service (first-pool): raise the quota or release addresses"},
		names.ReasonPoolExhausted:  {text: "no free address of the needed family in the pools open to this Service (another, first-pool and 3 more): add addresses or release some"},
		names.ReasonPoolNotAllowed: {text: `pool "first-pool" does not admit this Service`},
		names.ReasonAddressInUse:   {"the requested 192.168.0.202 is held by Service shop/till and cannot be shared: x", []manifestEdit{requestSecondAddressEdit}},
	} {
		r := explainTestService(t, applyManifestEdits(t, installationManifests+workingServiceManifests, append(noAddressEdits(reason, c.text), c.edits...))+otherPool)
		want := report.Check{Name: "pool first-pool", Result: report.ResultNotWell, Reason: reason, Text: c.text, IsWideOnly: true}
		if !slices.Contains(r.Checks, want) {
			t.Errorf("%+v, want %+v", r.Checks, want)
		}
		if !slices.ContainsFunc(r.Checks, func(g report.Check) bool { return g.Name == "pool default" && g.Result == report.ResultWell }) {
			t.Errorf("%+v refuses the pool default, which no decision names", r.Checks)
		}
	}
}

// TestEachNodeIsReadOnce has Nodes whose speakers are dead: several texts need what is known of
// each Node.
func TestEachNodeIsReadOnce(t *testing.T) {
	dead := manifestEdit{`status: "True", reason: SpeakerRuns`, `status: "False", reason: NoSpeaker`}
	reads := map[string]int{}
	api := clustertest.NewAPIBuilder(t, applyManifestEdits(t, installationManifests+workingServiceManifests, []manifestEdit{dead, dead})).WithInterceptorFuncs(interceptor.Funcs{
		Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, o client.Object, opts ...client.GetOption) error {
			if _, isNode := o.(*corev1.Node); isNode {
				reads[key.Name]++
			}
			return c.Get(ctx, key, o, opts...)
		},
	}).Build()
	r, err := newTestExplainer(api).ExplainService(t.Context(), client.ObjectKey{Namespace: "default", Name: "web"})
	if err != nil || r.Reason != names.ReasonNoSpeaker || reads["node1"] != 1 || reads["node2"] != 1 {
		t.Errorf("%v, %+v: the Nodes were read %v times", err, r, reads)
	}
}
