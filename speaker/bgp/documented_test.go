package bgp_test

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// documented returns the configuration of that name from docs/bgp.md, so that what people copy from there is what the tests run.
func documented(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile("../../docs/bgp.md")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile("(?s)<!-- " + regexp.QuoteMeta(name) + " -->\n+```[a-z]*\n(.*?)\n```").FindSubmatch(text)
	if m == nil {
		t.Fatalf("docs/bgp.md has no configuration that is named %q", name)
	}
	return strings.TrimRight(string(m[1]), "\n") + "\n"
}
