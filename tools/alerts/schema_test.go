package alerts

import (
	"testing"

	"github.com/grafana/grafana-foundation-sdk/go/cog/plugins"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
)

// TestDashboardsFollowSchemaOfGrafana reads the dashboards strictly by the types that Grafana's
// developers generate from its schema: an unknown field or a value of another type is an error.
func TestDashboardsFollowSchemaOfGrafana(t *testing.T) {
	plugins.RegisterDefaultPlugins() // the types of panels and queries
	for path, text := range readDashboards(t) {
		var board dashboard.Dashboard
		// Without a fault, the error is an empty list, which is not nil.
		if err := board.UnmarshalJSONStrict(text); err != nil && err.Error() != "" {
			t.Errorf("%s: %v", path, err)
		}
		if err := board.Validate(); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
}
