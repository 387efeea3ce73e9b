package configuration

import (
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestSummaryFitsIntoAStatus(t *testing.T) {
	var many []string
	for i := range 512 {
		many = append(many, fmt.Sprintf("spec.addresses[%d]: %s", i, strings.Repeat("x", 90)))
	}
	for name, tc := range map[string]struct {
		in          []string
		first, last string
	}{
		"none":             {},
		"one":              {in: many[:1], first: many[0], last: many[0]},
		"few":              {in: many[:2], first: many[0] + "; " + many[1], last: many[1]},
		"many":             {in: many, first: many[0] + "; " + many[1], last: " more: look there"},
		"one that is long": {in: []string{strings.Repeat("é", 40000), many[0]}, first: "éé", last: "…; and 1 more: look there"},
	} {
		t.Run(name, func(t *testing.T) {
			got := JoinTextsWithinStatusLimit(tc.in, "; ", "look there")
			if len(got) > maxSummaryBytesInStatus+100 || !utf8.ValidString(got) || !strings.HasPrefix(got, tc.first) || !strings.HasSuffix(got, tc.last) {
				t.Errorf("%d bytes, %.80q to %q; want %.80q to %q", len(got), got, got[max(0, len(got)-80):], tc.first, tc.last)
			}
		})
	}
	if got, said := JoinTextsWithinStatusLimit(many, "; ", "look there"), strings.Count(JoinTextsWithinStatusLimit(many, "; ", ""), "spec.addresses"); !strings.Contains(got, fmt.Sprintf("; and %d more", 512-said)) {
		t.Errorf("%d are listed, and it ends with %q", said, got[len(got)-80:])
	}
}
