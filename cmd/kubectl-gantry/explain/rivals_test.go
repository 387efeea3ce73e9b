package explain

import (
	"context"
	"slices"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/clustertest"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/report"
)

// speakerStatusElsewhereManifest is a SpeakerStatus in the namespace network.
const speakerStatusElsewhereManifest = "apiVersion: gantry.dev/v1alpha1\nkind: SpeakerStatus\nmetadata: {name: node1, namespace: network}\n---\n"

// secondControllerManifest is the controller of a Gantry in the namespace network, with arguments.
func secondControllerManifest(replicas, arguments string) string {
	return "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: gantry-controller, namespace: network, labels: {app.kubernetes.io/name: gantry, app.kubernetes.io/component: controller}}\n" +
		"spec: {template: {spec: {containers: [{name: controller, command: [/controller], args: [" + arguments + "]}]}}}\nstatus: {replicas: " + replicas + "}\n---\n"
}

// metalLBChartManifest is a controller of MetalLB in the namespace network, as MetalLB's chart
// labels it, with arguments.
func metalLBChartManifest(arguments string) string {
	return "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: metallb-controller, namespace: network, labels: {app.kubernetes.io/name: metallb, app.kubernetes.io/component: controller}}\n" +
		"spec: {template: {spec: {containers: [{name: controller, args: [" + arguments + "]}]}}}\nstatus: {replicas: 1}\n---\n"
}

// TestRivalsServeTheSameClass has other controllers, which write under the same name as Gantry's.
func TestRivalsServeTheSameClass(t *testing.T) {
	metalLBWithClass := strings.Replace(metalLBManifest, "status:", "spec: {template: {spec: {containers: [{name: speaker, args: [--lb-class=example.com/metallb]}]}}}\nstatus:", 1)
	for name, c := range map[string]struct {
		more                   string
		isServiceWell, allWell bool
		want                   string // in the first line about the Service
	}{
		"a second Gantry":                          {more: speakerStatusElsewhereManifest + secondControllerManifest("1", ""), want: "another Gantry is in namespace network, and its Deployment gantry-controller serves the same Services"},
		"a second controller":                      {more: secondControllerManifest("1", ""), want: "another Gantry is in namespace network"},
		"a second Gantry of another class":         {more: speakerStatusElsewhereManifest + secondControllerManifest("1", "--load-balancer-class=example.com/other"), isServiceWell: true, allWell: true},
		"what a Gantry left":                       {more: speakerStatusElsewhereManifest + secondControllerManifest("0", ""), isServiceWell: true},
		"MetalLB":                                  {more: metalLBManifest, want: "MetalLB (DaemonSet speaker) runs beside Gantry"},
		"MetalLB of another class":                 {more: metalLBWithClass, isServiceWell: true, allWell: true},
		"MetalLB elsewhere":                        {more: metalLBChartManifest(""), want: "MetalLB (Deployment metallb-controller in namespace network) runs beside Gantry, and both serve the same Services: uninstall one of them"},
		"MetalLB of another class elsewhere":       {more: metalLBChartManifest("--lb-class=example.com/metallb"), isServiceWell: true, allWell: true},
		"MetalLB from its manifests elsewhere":     {more: strings.Replace(metalLBManifest, "namespace: metallb-system", "namespace: network", 1), want: "MetalLB (DaemonSet speaker in namespace network)"},
		"MetalLB elsewhere that is scaled to zero": {more: strings.Replace(metalLBChartManifest(""), "replicas: 1", "replicas: 0", 1), isServiceWell: true, allWell: true},
	} {
		manifests := installationManifests + workingServiceManifests + c.more
		r := explainTestService(t, manifests)
		if (r.Result == report.ResultWell) != c.isServiceWell || !c.isServiceWell && r.Reason != names.ReasonOtherController || !strings.Contains(r.Answer, c.want) {
			t.Errorf("%s: %s", name, r.AnswerWithReason())
		}
		if !c.isServiceWell && !strings.Contains(strings.Join(r.Repair, "\n"), "kubectl -n ") {
			t.Errorf("%s: the repair %q names no workload", name, r.Repair)
		}
		r, err := newTestExplainer(clustertest.NewAPIBuilder(t, manifests).Build()).ExplainInstallation(t.Context())
		if err != nil || (r.Result == report.ResultWell) != c.allWell || !c.allWell && r.Reason != names.ReasonOtherController {
			t.Errorf("%s: %v, %s", name, err, r.AnswerWithReason())
		}
	}
}

// TestUserWithoutRightsIsToldThatRivalsAreNotSeen has a user who may list workloads in Gantry's
// namespace only. The check of the controller does not depend on that.
func TestUserWithoutRightsIsToldThatRivalsAreNotSeen(t *testing.T) {
	want := report.Check{Name: "other controllers", Result: report.ResultUnknown, Text: "you may not list Deployments and DaemonSets in all namespaces: MetalLB or a second Gantry in another namespace would not be seen"}
	api := clustertest.NewAPIBuilder(t, installationManifests+workingServiceManifests+metalLBChartManifest("")).WithInterceptorFuncs(interceptor.Funcs{
		List: func(ctx context.Context, c client.WithWatch, list client.ObjectList, opts ...client.ListOption) error {
			var o client.ListOptions
			gvk, err := c.GroupVersionKindFor(list)
			if o.ApplyOptions(opts); err == nil && gvk.Group == "apps" && o.Namespace == "" {
				return apierrors.NewForbidden(schema.GroupResource{}, "", context.Canceled)
			}
			return c.List(ctx, list, opts...)
		},
	}).Build()
	r, err := newTestExplainer(api).ExplainService(t.Context(), client.ObjectKey{Namespace: "default", Name: "web"})
	if err != nil || r.Result != report.ResultWell || !slices.Contains(r.Checks, want) || !slices.Contains(r.MissingRights, "list deployments.apps") {
		t.Errorf("%v, %+v", err, r)
	}
	if leads := (report.Check{Name: "controller", Result: report.ResultWell, Text: "Pod gantry-controller-1 leads"}); !slices.Contains(r.Checks, leads) {
		t.Errorf("%+v has no %+v", r.Checks, leads)
	}
	r, err = newTestExplainer(api).ExplainInstallation(t.Context())
	if err != nil || r.Result != report.ResultUnknown || !slices.Contains(r.Checks, want) {
		t.Errorf("%v, %+v", err, r)
	}
}

// TestAnnouncedServiceShowsUnansweredWebhook has a webhook without endpoints: nothing that the
// Service needs can be changed.
func TestAnnouncedServiceShowsUnansweredWebhook(t *testing.T) {
	r := explainTestService(t, installationManifests+workingServiceManifests+webhookManifest)
	if want := "192.168.0.201 is announced, but the API server refuses changes of the configuration: "; r.Reason != names.ReasonWebhookDown || !strings.Contains(r.Answer, want) {
		t.Errorf("%s, want %s", r.AnswerWithReason(), want)
	}
	if r := explainTestService(t, installationManifests+workingServiceManifests+webhookManifest+webhookEndpointManifest); r.Result != report.ResultWell {
		t.Errorf("%s with a webhook that works", r.AnswerWithReason())
	}
}
