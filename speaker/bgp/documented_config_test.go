package bgp_test

import (
	"testing"

	"github.com/gantry-lb/gantry/test/lab/router"
)

// documentedConfig returns a configuration from docs/bgp.md by its name.
func documentedConfig(t *testing.T, name string) string {
	t.Helper()
	text, err := router.DocumentedConfig("../../docs/bgp.md", name)
	if err != nil {
		t.Fatal(err)
	}
	return text
}
