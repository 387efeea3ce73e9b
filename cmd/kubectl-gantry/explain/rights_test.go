package explain

import (
	"context"
	"fmt"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/clustertest"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/report"
)

// newAPIRefusingLists returns an API server that refuses to list the kinds that refused selects.
func newAPIRefusingLists(t *testing.T, manifests string, refused func(kind string) error) client.WithWatch {
	t.Helper()
	return clustertest.NewAPIBuilder(t, manifests).WithInterceptorFuncs(interceptor.Funcs{
		List: func(ctx context.Context, c client.WithWatch, list client.ObjectList, opts ...client.ListOption) error {
			gvk, err := c.GroupVersionKindFor(list)
			if err != nil {
				return err
			}
			if err := refused(strings.TrimSuffix(gvk.Kind, "List")); err != nil {
				return err
			}
			return c.List(ctx, list, opts...)
		},
	}).Build()
}

// refuseKindsExcept refuses every kind but these, as RBAC does.
func refuseKindsExcept(allowed ...string) func(string) error {
	return func(kind string) error {
		for _, a := range allowed {
			if a == kind {
				return nil
			}
		}
		return apierrors.NewForbidden(schema.GroupResource{Resource: kind}, "", fmt.Errorf("not allowed"))
	}
}

// TestExplainServiceWithoutRights lets a user see a Service and nothing else: the conditions of the
// Service answer.
func TestExplainServiceWithoutRights(t *testing.T) {
	manifests := installationManifests + workingServiceManifests
	broken := manifests
	for _, e := range noAddressEdits(names.ReasonPoolExhausted, "no free address in (first-pool)") {
		broken = replaceManifestText(t, broken, e.oldText, e.newText)
	}
	for manifests, want := range map[string]string{
		manifests: "default/web: 192.168.0.201 is announced by layer 2 [Announced]",
		broken:    "default/web: no address: no free address in (first-pool) [PoolExhausted]",
	} {
		r, err := newTestExplainer(newAPIRefusingLists(t, manifests, refuseKindsExcept())).ExplainService(t.Context(), client.ObjectKey{Namespace: "default", Name: "web"})
		if err != nil || r.AnswerWithReason() != want {
			t.Errorf("%v, %v, want %s", r, err, want)
			continue
		}
		if rights := strings.Join(r.MissingRights, "; "); !strings.Contains(rights, "list ipaddresspools.metallb.io in namespace metallb-system") || !strings.Contains(rights, "list nodes") {
			t.Errorf("the missing rights are %s", rights)
		}
	}
}

func TestClusterWithoutGantryIsRecognized(t *testing.T) {
	absent := func(groups ...string) func(string) error {
		return func(kind string) error {
			for _, g := range groups {
				isOwn := kind == "SpeakerStatus" || kind == "BGPSession" || kind == "AddressReservation"
				isMetalLB := strings.HasPrefix(kind, "IPAddress") || strings.HasPrefix(kind, "L2Adv") || strings.HasPrefix(kind, "BGPAdv") || strings.HasPrefix(kind, "BGPPeer")
				if g == "own" && isOwn || g == "metallb" && isMetalLB {
					return &meta.NoKindMatchError{}
				}
			}
			return nil
		}
	}
	metalLB := "apiVersion: apps/v1\nkind: DaemonSet\nmetadata: {name: speaker, namespace: metallb-system, labels: {app: metallb, component: speaker}}\n---\n"
	for _, c := range []struct {
		name, manifests, want string
		refused               func(string) error
	}{
		{"nothing", workingServiceManifests, "Gantry is not installed", absent("own", "metallb")},
		{"MetalLB", workingServiceManifests + metalLB, "MetalLB runs in this cluster, and not Gantry", absent("own")},
		{"MetalLB in another namespace", workingServiceManifests + metalLBChartManifest(""), "MetalLB runs in this cluster, and not Gantry", absent("own")},
		{"left kinds", workingServiceManifests, "its kinds (gantry.dev) are missing", absent("own")},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := newTestExplainer(newAPIRefusingLists(t, c.manifests, c.refused))
			r, err := e.ExplainService(t.Context(), client.ObjectKey{Namespace: "default", Name: "web"})
			if err != nil || r.Result != report.ResultNotWell || r.Reason != names.ReasonNotInstalled || !strings.Contains(r.AnswerWithReason(), c.want) {
				t.Errorf("%v, %v, want %s", r, err, c.want)
			}
			status, err := e.ExplainInstallation(t.Context())
			if err != nil || status.Reason != names.ReasonNotInstalled {
				t.Errorf("status says %v, %v", status, err)
			}
		})
	}
}

// TestAllServicesAreListedOnlyIfNeeded explains Services with a condition, and one without: only
// what every other Service has tells whether that one can get an address.
func TestAllServicesAreListedOnlyIfNeeded(t *testing.T) {
	for name, c := range map[string]struct {
		manifests string
		want      int
	}{
		"announced":   {installationManifests + workingServiceManifests, 0},
		"unannounced": {applyManifestEdits(t, installationManifests+workingServiceManifests, []manifestEdit{noAnsweringNodeEdit}), 0},
		"refused":     {applyManifestEdits(t, installationManifests+workingServiceManifests, noAddressEdits(names.ReasonPoolExhausted, "no free address in (first-pool)")), 0},
		"undecided":   {applyManifestEdits(t, installationManifests+workingServiceManifests, undecidedServiceEdits), 1},
	} {
		listed := 0
		e := newTestExplainer(newAPIRefusingLists(t, c.manifests, func(kind string) error {
			if kind == "Service" {
				listed++
			}
			return nil
		}))
		progress := 0
		e.showProgress = func(string) { progress++ }
		if _, err := e.ExplainService(t.Context(), client.ObjectKey{Namespace: "default", Name: "web"}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if listed != c.want || min(progress, 1) != c.want {
			t.Errorf("%s: all Services are listed %d times, with %d lines of progress, want %d", name, listed, progress, c.want)
		}
	}
}

// TestServicesOfOneNamespaceAreListed has a user with rights in one namespace.
func TestServicesOfOneNamespaceAreListed(t *testing.T) {
	manifests := installationManifests + workingServiceManifests + strings.ReplaceAll(workingServiceManifests, "default", "shop")
	api := clustertest.NewAPIBuilder(t, manifests).WithInterceptorFuncs(interceptor.Funcs{
		List: func(ctx context.Context, c client.WithWatch, list client.ObjectList, opts ...client.ListOption) error {
			var o client.ListOptions
			if o.ApplyOptions(opts); o.Namespace != "shop" {
				return apierrors.NewForbidden(schema.GroupResource{}, "", fmt.Errorf("not allowed"))
			}
			return c.List(ctx, list, opts...)
		},
	}).Build()
	for namespace, want := range map[string]int{"shop": 1, "": 0} {
		l, err := newTestExplainer(api).ListServices(t.Context(), namespace)
		if err != nil || len(l.Rows) != want || l.Result != report.ResultUnknown {
			t.Errorf("%q: %v, %+v, want %d rows", namespace, err, l, want)
		}
		isRefused := strings.Contains(strings.Join(l.MissingRights, "; "), "list services")
		if isRefused != (want == 0) {
			t.Errorf("%q: the missing rights are %q", namespace, l.MissingRights)
		}
	}
}
