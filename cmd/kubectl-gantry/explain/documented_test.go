package explain

import (
	"os"
	"strings"
	"testing"

	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/report"
)

const readmePath = "../../../README.md"

// TestReadmeShowsWhatTheCommandsPrint makes the two examples of the README: a Service whose Pods
// are gone. With GANTRY_UPDATE_README=1 it writes them.
func TestReadmeShowsWhatTheCommandsPrint(t *testing.T) {
	manifests := installationManifests + workingServiceManifests
	for _, e := range []manifestEdit{noAnsweringNodeEdit, {"conditions: {ready: true}", "conditions: {ready: false}"},
		{`status: "True", reason: Announced, message: announced by layer 2`, `status: "False", reason: NoEndpoints, message: "no endpoint of the Service can serve: check its selector and whether its Pods are ready"`}} {
		manifests = replaceManifestText(t, manifests, e.oldText, e.newText)
	}
	explained := explainTestService(t, manifests)
	status, err := newTestExplainer(newFakeAPIBuilder(t, manifests).Build()).ExplainInstallation(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(readmePath)
	if err != nil {
		t.Fatal(err)
	}
	now := string(text)
	for command, r := range map[string]*report.Report{"explain service web": explained, "status": status} {
		var out strings.Builder
		p := report.Printer{Out: &out, Format: report.FormatTable}
		if err := p.PrintReport(r); err != nil {
			t.Fatal(err)
		}
		before, after, found := strings.Cut(now, "```text\n$ kubectl gantry "+command+"\n")
		shown, rest, _ := strings.Cut(after, "```\n")
		if !found || shown != out.String() {
			t.Errorf("the README shows for %s (found: %v; GANTRY_UPDATE_README=1 writes it)\n%s\nand the command prints\n%s", command, found, shown, out.String())
		}
		now = before + "```text\n$ kubectl gantry " + command + "\n" + out.String() + "```\n" + rest
	}
	if os.Getenv("GANTRY_UPDATE_README") != "" && now != string(text) {
		if err := os.WriteFile(readmePath, []byte(now), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
