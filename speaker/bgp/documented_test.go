package bgp_test

import (
	"testing"

	"github.com/gantry-lb/gantry/test/lab/router"
)

// documented returns the configuration of that name from docs/bgp.md.
func documented(t *testing.T, name string) string {
	t.Helper()
	text, err := router.Documented("../../docs/bgp.md", name)
	if err != nil {
		t.Fatal(err)
	}
	return text
}
