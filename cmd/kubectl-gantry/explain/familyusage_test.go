package explain

import (
	"context"
	"math"
	"strings"
	"testing"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/clustertest"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/report"
)

const testPoolUseText = "assignedIPv4: 1, assignedIPv6: 0, availableIPv4: 1, availableIPv6: 0"

// TestPoolsWithTwoFamiliesAreCountedByFamily has a pool whose IPv4 addresses are used up, and more
// IPv6 addresses than can be counted.
func TestPoolsWithTwoFamiliesAreCountedByFamily(t *testing.T) {
	manifests := applyManifestEdits(t, installationManifests+workingServiceManifests, dualStackPoolEdits("assignedIPv4: 2, assignedIPv6: 100, availableIPv4: 0, availableIPv6: 9223372036854775807"))
	for _, c := range []struct {
		name string
		ask  func(*Explainer, context.Context) (*report.Report, error)
		want string
	}{
		{"the pool", explainFuncForObject((*Explainer).ExplainPool, "first-pool"), "first-pool: addresses: it is full for IPv4: 2 IPv4 addresses in use, 0 free; 100 IPv6 addresses in use, 9223372036854775807 free: add a range to spec.addresses [PoolExhausted]"},
		{"the installation", (*Explainer).ExplainInstallation, "Gantry is not well: pool first-pool: it is full for IPv4: all of its 2 addresses are in use [PoolExhausted]"},
	} {
		r, err := c.ask(newTestExplainer(clustertest.NewAPIBuilder(t, manifests).Build()), t.Context())
		if err != nil || r.Result != report.ResultNotWell || r.AnswerWithReason() != c.want {
			t.Errorf("%s: %v, %+v, want %s", c.name, err, r, c.want)
		}
	}
	l, err := newTestExplainer(clustertest.NewAPIBuilder(t, manifests).Build()).ListPools(t.Context())
	if err != nil || l.Result != report.ResultNotWell || len(l.Rows) != 1 || strings.Contains(strings.Join(l.Rows[0], " "), " -") || !strings.HasPrefix(l.Rows[0][1], "████████████████████") {
		t.Errorf("%v, %+v, want a full bar and no negative number", err, l)
	}
}

func dualStackPoolEdits(use string) []manifestEdit {
	return []manifestEdit{{"addresses: [192.168.0.201-192.168.0.202]", "addresses: [192.168.0.201-192.168.0.202, 'fd00::/64']"}, {testPoolUseText, use}}
}

// TestPoolWithOneFreeFamilyServesNoServiceThatNeedsBoth explains a Service that requires both.
func TestPoolWithOneFreeFamilyServesNoServiceThatNeedsBoth(t *testing.T) {
	for policy, want := range map[string]report.Result{"RequireDualStack": report.ResultNotWell, "PreferDualStack": report.ResultWell} {
		edits := append(dualStackPoolEdits("assignedIPv4: 2, assignedIPv6: 0, availableIPv4: 0, availableIPv6: 5"), noAddressEdits("PoolExhausted", "x")...)
		edits = append(edits, manifestEdit{"clusterIPs: [10.96.0.10]", "clusterIPs: [10.96.0.10, 'fd00:96::a'], ipFamilies: [IPv4, IPv6], ipFamilyPolicy: " + policy})
		r, err := newTestExplainer(clustertest.NewAPIBuilder(t, applyManifestEdits(t, installationManifests+workingServiceManifests, edits)).Build()).ExplainService(t.Context(), client.ObjectKey{Namespace: "default", Name: "web"})
		if err != nil {
			t.Fatal(err)
		}
		for _, g := range r.Checks {
			if g.Name == "pool first-pool" && g.Result != want {
				t.Errorf("%s: %+v, want %s", policy, g, want)
			}
		}
	}
}

func TestAddSaturating(t *testing.T) {
	if got := addSaturating(math.MaxInt64, 100); got != math.MaxInt64 {
		t.Errorf("the sum is %d", got)
	}
	if got := addSaturating(2, 3, 4); got != 9 {
		t.Errorf("the sum is %d, want 9", got)
	}
}
