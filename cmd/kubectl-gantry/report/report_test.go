package report

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode"
)

var exampleReport = Report{
	Subject: "service default/web", Result: ResultNotWell, Reason: "NoEndpoints", Answer: "default/web: no endpoint can serve",
	Checks: []Check{
		{Name: "pool first-pool", Result: ResultWell, Text: "gave 192.0.2.1"},
		{Name: "node node1", Result: ResultWell, Text: "may answer", IsWideOnly: true},
		{Name: "endpoints", Result: ResultNotWell, Reason: "NoEndpoints", Text: "none can serve"},
		{Name: "controller", Result: ResultUnknown, Text: "not seen"},
	},
	Repair: []string{"kubectl get pods"}, Documentation: "https://example.com", MissingRights: []string{"list leases"},
}

func TestReportAsTable(t *testing.T) {
	const table = `default/web: no endpoint can serve [NoEndpoints]
  ✓ pool first-pool: gave 192.0.2.1
  ✗ endpoints: none can serve (NoEndpoints)
  ? controller: not seen
To mend it:
  kubectl get pods
See https://example.com
Not seen, because you have no right to: list leases
`
	wide := strings.Replace(table, "  ✗", "  ✓ node node1: may answer\n  ✗", 1)
	for format, want := range map[Format]string{FormatTable: table, FormatWide: wide} {
		var out strings.Builder
		p := Printer{Out: &out, Format: format}
		if err := p.PrintReport(&exampleReport); err != nil || out.String() != want {
			t.Errorf("%s: %v\n%s\nwant\n%s", format, err, out.String(), want)
		}
	}
	var out strings.Builder
	p := Printer{Out: &out, Format: FormatTable, HasColor: true}
	if err := p.PrintReport(&exampleReport); err != nil || !strings.Contains(out.String(), "\x1b[31m✗\x1b[0m endpoints") {
		t.Errorf("with colour: %v, %q", err, out.String())
	}
}

func TestReportAsJSONAndListingAsYAML(t *testing.T) {
	var out strings.Builder
	p := Printer{Out: &out, Format: FormatJSON}
	if err := p.PrintReport(&exampleReport); err != nil {
		t.Fatal(err)
	}
	var back Report
	if err := json.Unmarshal([]byte(out.String()), &back); err != nil || back.Result != ResultNotWell || back.Reason != "NoEndpoints" || len(back.Checks) != 4 {
		t.Errorf("%v: %s", err, out.String())
	}
	out.Reset()
	p.Format = FormatYAML
	if err := p.PrintListing(&Listing{Title: "x", Result: ResultWell, Columns: []string{"pool", "in use"}, Rows: [][]string{{"first", "2"}}}); err != nil || !strings.Contains(out.String(), "- inuse: \"2\"\n  pool: first\n") {
		t.Errorf("%v: %s", err, out.String())
	}
}

func TestListingAsTable(t *testing.T) {
	l := Listing{Columns: []string{"pool", "free", "addresses"}, WideColumnCount: 1, Rows: [][]string{{"first", "2", "192.0.2.1"}}}
	for format, want := range map[Format]string{FormatTable: "POOL    FREE\nfirst   2\n", FormatWide: "POOL    FREE   ADDRESSES\nfirst   2      192.0.2.1\n"} {
		var out strings.Builder
		p := Printer{Out: &out, Format: format}
		if err := p.PrintListing(&l); err != nil || out.String() != want {
			t.Errorf("%s: %v %q, want %q", format, err, out.String(), want)
		}
	}
}

func TestFormatUsageBar(t *testing.T) {
	for _, c := range []struct {
		used, whole int64
		want        int
	}{{0, 0, 0}, {0, 10, 0}, {1, 1000, 1}, {5, 10, 10}, {10, 10, 20}} {
		if got := strings.Count(FormatUsageBar(c.used, c.whole), "█"); got != c.want {
			t.Errorf("%d of %d: %d blocks, want %d", c.used, c.whole, got, c.want)
		}
	}
}

func TestExitStatusOfEachResult(t *testing.T) {
	for r, want := range map[Result]int{ResultWell: 0, ResultNotWell: 1, ResultUnknown: 2} {
		if got := r.ExitStatus(); got != want {
			t.Errorf("%s exits with %d, want %d", r, got, want)
		}
	}
}

// Texts quote what owners of Services wrote. A terminal must obey none of it.
func TestUnprintableCharactersAreEscaped(t *testing.T) {
	const hostile = "a\x1b[2Jb\rc\nd\u202ee\u200bf\u009bg\x7fh é…\U000e0001"
	const harmless = `a\x1b[2Jb\rc\nd\u202ee\u200bf\u009bg\x7fh é…\U000e0001`
	r := &Report{Answer: "answer " + hostile, Checks: []Check{{Name: "name " + hostile, Text: "text " + hostile}}, Repair: []string{"repair " + hostile}}
	var out strings.Builder
	p := Printer{Out: &out, Format: FormatTable}
	if err := p.PrintReport(r); err != nil {
		t.Fatal(err)
	}
	if err := p.PrintListing(&Listing{Title: "title " + hostile, Columns: []string{"x"}, Rows: [][]string{{"cell " + hostile}}}); err != nil {
		t.Fatal(err)
	}
	for _, what := range []string{"answer ", "name ", "text ", "repair ", "title ", "cell "} {
		if !strings.Contains(out.String(), what+harmless) {
			t.Errorf("the %sis not printed as %s: %q", what, harmless, out.String())
		}
	}
	for _, format := range []Format{FormatJSON, FormatYAML} {
		out.Reset()
		p.Format = format
		if err := p.PrintReport(r); err != nil || strings.ContainsFunc(out.String(), func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }) {
			t.Errorf("%s: %v, and the terminal obeys %q", format, err, out.String())
		}
	}
	out.Reset()
	p.Format = FormatJSON
	var back Report
	if err := p.PrintReport(r); err != nil || json.Unmarshal([]byte(out.String()), &back) != nil || back.Answer != r.Answer {
		t.Errorf("JSON gives %v and the answer %q, want %q", err, back.Answer, r.Answer)
	}
}
