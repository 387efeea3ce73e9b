package explain

import (
	"strings"
	"testing"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/report"
)

// secondInstallationManifests are a Gantry in the namespace network, with arguments of its
// controller.
func secondInstallationManifests(replicas, arguments string) string {
	return "apiVersion: gantry.dev/v1alpha1\nkind: SpeakerStatus\nmetadata: {name: node1, namespace: network}\n---\n" +
		"apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: gantry-controller, namespace: network, labels: {app.kubernetes.io/name: gantry, app.kubernetes.io/component: controller}}\n" +
		"spec: {template: {spec: {containers: [{name: controller, command: [/controller], args: [" + arguments + "]}]}}}\nstatus: {replicas: " + replicas + "}\n---\n"
}

// TestRivalsServeTheSameClass has other controllers, which write under the same name as Gantry's.
func TestRivalsServeTheSameClass(t *testing.T) {
	metalLBWithClass := strings.Replace(metalLBManifest, "status:", "spec: {template: {spec: {containers: [{name: speaker, args: [--lb-class=example.com/metallb]}]}}}\nstatus:", 1)
	for name, c := range map[string]struct {
		more                   string
		isServiceWell, allWell bool
	}{
		"a second Gantry":                  {more: secondInstallationManifests("1", "")},
		"a second Gantry of another class": {secondInstallationManifests("1", "--load-balancer-class=example.com/other"), true, true},
		"what a Gantry left":               {more: secondInstallationManifests("0", ""), isServiceWell: true},
		"MetalLB":                          {more: metalLBManifest},
		"MetalLB of another class":         {metalLBWithClass, true, true},
	} {
		manifests := installationManifests + workingServiceManifests + c.more
		if r := explainTestService(t, manifests); (r.Result == report.ResultWell) != c.isServiceWell || !c.isServiceWell && r.Reason != names.ReasonOtherController {
			t.Errorf("%s: %s", name, r.AnswerWithReason())
		}
		r, err := newTestExplainer(newFakeAPIBuilder(t, manifests).Build()).ExplainInstallation(t.Context())
		if err != nil || (r.Result == report.ResultWell) != c.allWell || !c.allWell && r.Reason != names.ReasonOtherController {
			t.Errorf("%s: %v, %s", name, err, r.AnswerWithReason())
		}
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
