package explain

import (
	"slices"
	"testing"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/clustertest"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/report"
)

// expectChecks fails the test if a report lacks one of the checks.
func expectChecks(t *testing.T, name string, r *report.Report, want ...report.Check) {
	t.Helper()
	for _, w := range want {
		if !slices.Contains(r.Checks, w) {
			t.Errorf("%s: %s has no check %+v:\n%+v", name, r.AnswerWithReason(), w, r.Checks)
		}
	}
}

// TestQuotasReservationsAndSharingAreGates has Services to which a quota, a reservation or a
// sharing key applies, with and without a refusal.
func TestQuotasReservationsAndSharingAreGates(t *testing.T) {
	quota := poolSpecEdit(firstPoolSpec + ", gantry: {quota: {perNamespace: 1}}")
	reservation := func(service string) string {
		return "apiVersion: gantry.dev/v1alpha1\nkind: AddressReservation\nmetadata: {name: kept, namespace: metallb-system}\nspec: {addresses: [192.168.0.202], service: {namespace: default, name: " + service + "}}\n---\n"
	}
	const quotaText = "namespace default may have at most 1 of its addresses of each family"
	for name, c := range map[string]struct {
		edits []manifestEdit
		more  string
		want  report.Check
	}{
		"a quota":                   {edits: []manifestEdit{quota}, want: report.Check{Name: "quota of pool first-pool", Result: report.ResultWell, Text: quotaText}},
		"a quota that is used up":   {edits: append(noAddressEdits(names.ReasonQuotaExceeded, "namespace default has reached its quota"), quota), want: report.Check{Name: "quota of pool first-pool", Result: report.ResultNotWell, Reason: names.ReasonQuotaExceeded, Text: quotaText}},
		"a reservation for it":      {more: reservation("web"), want: report.Check{Name: "reservation kept", Result: report.ResultWell, Text: "keeps 192.168.0.202 for the Service"}},
		"a reservation for others":  {edits: undecidedServiceEditsWith(requestSecondAddressEdit), more: reservation("till"), want: report.Check{Name: "reservation kept", Result: report.ResultNotWell, Reason: names.ReasonAddressReserved, Text: "keeps a requested address for Service default/till"}},
		"a sharing key":             {edits: []manifestEdit{serviceAnnotationEdit(names.AnnotationSharingKey, "k")}, want: report.Check{Name: "sharing", Result: report.ResultWell, Text: "may share its addresses with Services that have the sharing key k"}},
		"a port of another Service": {edits: noAddressEdits(names.ReasonPortConflict, "both use TCP/80"), want: report.Check{Name: "sharing", Result: report.ResultNotWell, Reason: names.ReasonPortConflict, Text: "both use TCP/80"}},
	} {
		expectChecks(t, name, explainTestService(t, applyManifestEdits(t, installationManifests+workingServiceManifests, c.edits)+c.more), c.want)
	}
}

// TestNodesHaveVerdictForEachAddressAndProtocol has a Service with two addresses, of which node1
// answers for one, and that BGP announces too.
func TestNodesHaveVerdictForEachAddressAndProtocol(t *testing.T) {
	r := explainTestService(t, applyManifestEdits(t, installationManifests+workingServiceManifests+routerManifests, bothFamiliesEdits)+ipv6EndpointSliceManifest)
	expectChecks(t, "both families", r,
		report.Check{Name: "node node1 for 192.168.0.201", Result: report.ResultWell, Text: "answers for 192.168.0.201 on eth0 since 2026-03-01 11:00:05 UTC"},
		report.Check{Name: "node node1 for 192.168.0.201 by BGP", Result: report.ResultWell, Text: "routes to tor", IsWideOnly: true},
		report.Check{Name: "node node2 for 192.168.0.201", Result: report.ResultWell, Text: "may answer ARP and NDP on eth0; another node holds the address", IsWideOnly: true},
	)
	for _, node := range []string{"node1", "node2"} {
		isVerdict := func(g report.Check) bool {
			return g.Result == report.ResultNotWell && g.Reason == names.ReasonNoAddressFamily && (g.Name == "node "+node+" for 2001:db8::1" || g.Name == "node node1, node2 for 2001:db8::1")
		}
		if !slices.ContainsFunc(r.Checks, isVerdict) {
			t.Errorf("%s has no verdict for 2001:db8::1: %+v", node, r.Checks)
		}
	}
}

// TestExcludedNodesMayAnnounceIfFlagSaysSo has a cluster of nodes with the label that excludes
// them, and a flag that ignores it.
func TestExcludedNodesMayAnnounceIfFlagSaysSo(t *testing.T) {
	excluded := []manifestEdit{{"kubernetes.io/hostname: node1", names.LabelExcludeNode + `: ""`}, {"kubernetes.io/hostname: node2", names.LabelExcludeNode + `: ""`}}
	for _, flag := range []string{"command: [/controller, --ignore-exclude-lb]", "command: [/controller, --ignore-exclude-lb=true]", "command: [/controller], env: [{name: GANTRY_IGNORE_EXCLUDE_LB, value: 'true'}]"} {
		manifests := applyManifestEdits(t, installationManifests+workingServiceManifests, append(excluded, manifestEdit{"command: [/controller]", flag}))
		if r := explainTestService(t, manifests); r.Result != report.ResultWell {
			t.Errorf("%s: %s", flag, r.AnswerWithReason())
		}
		r, err := newTestExplainer(clustertest.NewAPIBuilder(t, manifests).Build()).ExplainNode(t.Context(), "node1")
		if err != nil || r.Result != report.ResultWell {
			t.Errorf("%s: %v, %s", flag, err, r.AnswerWithReason())
		}
	}
}
