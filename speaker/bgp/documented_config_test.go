package bgp_test

import (
	"testing"

	"github.com/gantry-lb/gantry/test/lab/router"
)

// readDocumentedConfig returns a configuration from docs/bgp.md by its name.
func readDocumentedConfig(t *testing.T, name string) string {
	t.Helper()
	text, err := router.ReadDocumentedConfig("../../docs/bgp.md", name)
	if err != nil {
		t.Fatal(err)
	}
	return text
}
