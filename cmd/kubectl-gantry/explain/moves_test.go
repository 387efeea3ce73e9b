package explain

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/clustertest"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/report"
)

// movedAddressManifests are a Service whose address node1 took from node2, which had taken it
// first.
func movedAddressManifests(t *testing.T) string {
	t.Helper()
	return applyManifestEdits(t, installationManifests+workingServiceManifests, []manifestEdit{
		{"  node: node1\n", `  node: node1
  moves: [{at: "2026-03-01T11:30:00Z", address: 192.168.0.201, service: default/web, from: node2, to: node1, cause: HolderGone, duration: 212ms}, {at: "2026-03-01T11:10:00Z", address: 192.168.0.202, from: node1, cause: NobodyServes}]
`},
		{"  node: node2\n", "  node: node2\n  moves: [{at: \"2026-03-01T11:20:00Z\", address: 192.168.0.201, service: default/web, to: node2, cause: Unheld}]\n"},
	})
}

// fillMovesOfNode2 fills what node2 remembers.
func fillMovesOfNode2(t *testing.T, manifests string) string {
	var all []string
	for i := range 31 {
		all = append(all, fmt.Sprintf(`{at: "2026-03-01T11:1%d:00Z", address: 192.168.0.99, to: node2, cause: Unheld}`, 9-i%10))
	}
	return replaceManifestText(t, manifests, "to: node2, cause: Unheld}", "to: node2, cause: Unheld}, "+strings.Join(all, ", "))
}

func TestListMoves(t *testing.T) {
	l, err := newTestExplainer(clustertest.NewAPIBuilder(t, movedAddressManifests(t)).Build()).ListMoves(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := [][]string{
		{"2026-03-01 11:30:00 UTC", "192.168.0.201", "default/web", "node2", "node1", "HolderGone", "212ms"},
		{"2026-03-01 11:20:00 UTC", "192.168.0.201", "default/web", "none", "node2", "Unheld", "unknown"},
		{"2026-03-01 11:10:00 UTC", "192.168.0.202", "none", "node1", "none", "NobodyServes", "unknown"},
	}
	if !slices.EqualFunc(l.Rows, want, slices.Equal) || l.Title != "" || l.Result != report.ResultWell {
		t.Errorf("%+v, want %q", l, want)
	}
	for manifests, want := range map[string]string{
		fillMovesOfNode2(t, movedAddressManifests(t)):   "each speaker remembers its last 32 moves: of those before ",
		installationManifests + workingServiceManifests: "no speaker remembers that an address moved",
	} {
		l, err := newTestExplainer(clustertest.NewAPIBuilder(t, manifests).Build()).ListMoves(t.Context())
		if err != nil || !strings.HasPrefix(l.Title, want) {
			t.Errorf("%v, %q, want %q", err, l.Title, want)
		}
	}
}

func TestExplainAddressShowsItsMoves(t *testing.T) {
	for name, c := range map[string]struct {
		manifests string
		want      []string
	}{
		"two moves":       {movedAddressManifests(t), []string{"from node2 to node1 at 2026-03-01 11:30:00 UTC, HolderGone, after nobody had answered for 212ms", "node2 took it at 2026-03-01 11:20:00 UTC, Unheld"}},
		"no move":         {installationManifests + workingServiceManifests, []string{"none is known"}},
		"forgotten moves": {fillMovesOfNode2(t, movedAddressManifests(t)), []string{"from node2 to node1 at 2026-03-01 11:30:00 UTC, HolderGone, after nobody had answered for 212ms", "node2 took it at 2026-03-01 11:20:00 UTC, Unheld", "earlier ones are unknown: each speaker remembers its last 32"}},
	} {
		r, err := newTestExplainer(clustertest.NewAPIBuilder(t, c.manifests).Build()).ExplainAddress(t.Context(), "192.168.0.201")
		if err != nil || r.Result != report.ResultWell {
			t.Errorf("%s: %v, %+v", name, err, r)
			continue
		}
		var got []string
		for _, g := range r.Checks {
			if g.Name == "move" {
				got = append(got, g.Text)
			}
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}
