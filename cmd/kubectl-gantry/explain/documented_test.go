package explain

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/clustertest"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/report"
)

// documentedOutputPattern finds what a page says that a command prints. The comment before the
// block names the situation.
var documentedOutputPattern = regexp.MustCompile("(?s)<!-- prints: ([^>]*) -->\n```text\n(.*?)```\n")

// podsNotReadyEdits are a Service whose Pods are not ready, and the controller has seen it.
var podsNotReadyEdits = []manifestEdit{noAnsweringNodeEdit, {"conditions: {ready: true}", "conditions: {ready: false}"},
	{`status: "True", reason: Announced, message: announced by layer 2`, `status: "False", reason: NoEndpoints, message: "no endpoint of the Service can serve: check its selector and whether its Pods are ready"`}}

// documentedReport returns the answer to the command in a situation that the documents name.
func documentedReport(t *testing.T, situation string) (command string, answer *report.Report) {
	t.Helper()
	manifests := installationManifests + workingServiceManifests
	if situation == "status" {
		r, err := newTestExplainer(clustertest.NewAPIBuilder(t, applyManifestEdits(t, manifests, podsNotReadyEdits)).Build()).ExplainInstallation(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return "status", r
	}
	situations := append(slices.Concat(serviceFaults, newcomerMistakes), serviceFaultCase{name: "Pods that are not ready", edits: podsNotReadyEdits})
	at := slices.IndexFunc(situations, func(f serviceFaultCase) bool { return f.name == situation })
	if at < 0 {
		t.Fatalf("a document shows the situation %q, which no test has", situation)
	}
	return "explain service web", explainTestService(t, applyManifestEdits(t, manifests, situations[at].edits)+situations[at].moreManifests)
}

// TestDocumentsShowWhatCommandsPrint compares what the documents show of kubectl gantry with what
// it prints. With GANTRY_UPDATE_DOCS=1 it writes the documents.
func TestDocumentsShowWhatCommandsPrint(t *testing.T) {
	pages, err := filepath.Glob("../../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	count := 0
	for _, page := range append(pages, "../../../README.md") {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		now := documentedOutputPattern.ReplaceAllStringFunc(string(text), func(block string) string {
			count++
			parts := documentedOutputPattern.FindStringSubmatch(block)
			command, answer := documentedReport(t, parts[1])
			var out strings.Builder
			p := report.Printer{Out: &out, Format: report.FormatTable}
			if err := p.PrintReport(answer); err != nil {
				t.Fatal(err)
			}
			want := "$ kubectl gantry " + command + "\n" + out.String()
			if parts[2] != want {
				t.Errorf("%s shows for %q (GANTRY_UPDATE_DOCS=1 writes it)\n%s\nand the command prints\n%s", filepath.Base(page), parts[1], parts[2], want)
			}
			return "<!-- prints: " + parts[1] + " -->\n```text\n" + want + "```\n"
		})
		if os.Getenv("GANTRY_UPDATE_DOCS") != "" && now != string(text) {
			if err := os.WriteFile(page, []byte(now), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	if count < 5 {
		t.Errorf("the documents show %d outputs: this test looks in the wrong place", count)
	}
}
