package explain

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/clustertest"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/report"
)

// gantryPodManifest returns a Pod of one of the programs, with this status.
func gantryPodManifest(component, status string) string {
	return fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {name: gantry-%s-x, namespace: metallb-system, labels: {app.kubernetes.io/name: gantry, app.kubernetes.io/component: %s}}
spec: {nodeName: node1, containers: [{name: %s}]}
status: %s
---
`, component, component, component, status)
}

// refusedPodsManifest is the event about Pods of the DaemonSet that cannot be created.
const refusedPodsManifest = `apiVersion: v1
kind: Event
metadata: {name: refused, namespace: metallb-system}
involvedObject: {kind: DaemonSet, name: gantry-speaker, namespace: metallb-system}
reason: FailedCreate
message: 'Error creating: pods "gantry-speaker-" is forbidden: violates PodSecurity "baseline:latest": host namespaces (hostNetwork=true)'
lastTimestamp: "2026-03-01T11:50:00Z"
---
`

// metalLBManifest is a speaker of MetalLB that runs.
const metalLBManifest = `apiVersion: apps/v1
kind: DaemonSet
metadata: {name: speaker, namespace: metallb-system, labels: {app: metallb, component: speaker}}
status: {desiredNumberScheduled: 2, numberReady: 2}
---
`

// webhookManifest is a webhook for pools whose Service has no endpoint.
const webhookManifest = `apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {name: gantry-webhook}
webhooks:
- name: ipaddresspoolvalidationwebhook.metallb.io
  admissionReviewVersions: [v1]
  sideEffects: None
  failurePolicy: Fail
  clientConfig: {caBundle: eA==, service: {name: gantry-webhook, namespace: metallb-system, path: /validate}}
  rules: [{apiGroups: [metallb.io], apiVersions: [v1beta1], resources: [ipaddresspools], operations: [CREATE]}]
---
`

// webhookEndpointManifest is an endpoint of the webhook's Service.
const webhookEndpointManifest = `apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: gantry-webhook-1, namespace: metallb-system, labels: {kubernetes.io/service-name: gantry-webhook}}
addressType: IPv4
endpoints: [{addresses: [10.244.0.9], conditions: {ready: true}}]
---
`

// ipvsWithoutStrictARPManifest is the configuration of kube-proxy in mode ipvs without strictARP.
const ipvsWithoutStrictARPManifest = `apiVersion: v1
kind: ConfigMap
metadata: {name: kube-proxy, namespace: kube-system}
data:
  config.conf: |
    kind: KubeProxyConfiguration
    ipvs:
      strictARP: false
    mode: "ipvs"
---
`

const strayAnswererMAC = "02:00:00:00:00:02"

// newForeignAnswerEdits makes node1 report that the host with the Ethernet address answers for the
// Service's address.
func newForeignAnswerEdits(mac string) []manifestEdit {
	conflict := fmt.Sprintf(`conflicts: [{address: 192.168.0.201, mac: %q, since: "2026-03-01T11:00:00Z"}`, mac)
	return []manifestEdit{
		{"gantry: {addresses: [192.168.0.201]}", "gantry: {addresses: [192.168.0.201], " + conflict + "]}"},
		{"  held: 1\n", "  held: 1\n  " + conflict + "]\n"},
	}
}

// giveStrayMACToNode2Edit gives node2 a link with the Ethernet address strayAnswererMAC.
var giveStrayMACToNode2Edit = manifestEdit{"  node: node2\n", "  node: node2\n  links: [{name: eth0, usable: true, mac: \"" + strayAnswererMAC + "\"}]\n"}

// silentKubeProxyOnNode1Edit lets kube-proxy on node1 be silent.
var silentKubeProxyOnNode1Edit = manifestEdit{"  held: 1\n  lastSeen: \"2026-03-01T11:59:30Z\"\n  usableLinks: [eth0]\n  conditions: [",
	"  held: 1\n  lastSeen: \"2026-03-01T11:59:30Z\"\n  usableLinks: [eth0]\n  conditions: [{type: gantry.dev/Fit, status: \"False\", reason: ServiceProxySilent, message: \"kube-proxy on the node does not answer its health check any more: look at kube-proxy\", lastTransitionTime: \"2026-03-01T11:50:00Z\"}, "}

var noPoolsEdits = []manifestEdit{{"kind: IPAddressPool\nmetadata: {name: first-pool, namespace: metallb-system}\nspec: {addresses: [192.168.0.201-192.168.0.202]}\nstatus: {assignedIPv4: 1, assignedIPv6: 0, availableIPv4: 1, availableIPv6: 0}",
	"kind: Community\nmetadata: {name: first-pool, namespace: metallb-system}\nspec: {}"}}

// faultsOutsideGantry are faults of what Gantry needs and of what runs beside it.
var faultsOutsideGantry = []serviceFaultCase{
	{name: "PodSecurity refuses the speaker", edits: []manifestEdit{noAnsweringNodeEdit, {"numberReady: 2", "numberReady: 0"}, {"11:59:30Z", "11:40:30Z"}, {"11:59:30Z", "11:40:30Z"}}, moreManifests: refusedPodsManifest,
		wantReason: names.ReasonNoSpeaker, answerContains: `the API server refuses its Pods: violates PodSecurity "baseline:latest": host namespaces (hostNetwork=true): give namespace metallb-system the label`, wantRepairPart: "kubectl label namespace metallb-system --overwrite pod-security.kubernetes.io/enforce=privileged"},
	{name: "an image that does not exist", edits: []manifestEdit{noAnsweringNodeEdit, {"numberReady: 2", "numberReady: 0"}},
		moreManifests: gantryPodManifest("speaker", `{phase: Pending, containerStatuses: [{name: speaker, image: x, imageID: "", ready: false, restartCount: 0, state: {waiting: {reason: ImagePullBackOff, message: 'Back-off pulling image "gantry:wrong"'}}}]}`),
		wantReason:    names.ReasonNoSpeaker, answerContains: `Pod gantry-speaker-x on node1 does not start: ImagePullBackOff: Back-off pulling image "gantry:wrong"`},
	{name: "a speaker that ends again and again", edits: []manifestEdit{noAnsweringNodeEdit, {"numberReady: 2", "numberReady: 0"}},
		moreManifests: gantryPodManifest("speaker", `{phase: Running, containerStatuses: [{name: speaker, image: x, imageID: "", ready: false, restartCount: 7, lastState: {terminated: {exitCode: 2}}, state: {waiting: {reason: CrashLoopBackOff}}}]}`),
		wantReason:    names.ReasonNoSpeaker, answerContains: "ends again and again (CrashLoopBackOff), the last time with exit code 2: look at its log (kubectl -n metallb-system logs gantry-speaker-x --previous)"},
	{name: "a controller without a node", edits: []manifestEdit{{"11:59:59.000000Z", "11:58:00.000000Z"}, {"replicas: 2, readyReplicas: 2", "replicas: 2"}},
		moreManifests: gantryPodManifest("controller", `{phase: Pending, conditions: [{type: PodScheduled, status: "False", reason: Unschedulable, message: "0/2 nodes are available: 2 Insufficient memory."}]}`),
		wantReason:    names.ReasonNoController, answerContains: "gets no node: 0/2 nodes are available: 2 Insufficient memory"},
	{name: "MetalLB beside Gantry", moreManifests: metalLBManifest, wantReason: names.ReasonOtherController, answerContains: "MetalLB (DaemonSet speaker) runs beside Gantry", wantRepairPart: "kubectl get deployments,daemonsets -A"},
	{name: "a node that answers without holding the address", edits: append(newForeignAnswerEdits(strayAnswererMAC), giveStrayMACToNode2Edit), wantReason: names.ReasonStrayAnswer, answerContains: "is announced, but node2 (02:00:00:00:00:02) answers for it and does not hold it: look there for the address on an interface"},
	{name: "kube-proxy of the holder is dead", edits: []manifestEdit{silentKubeProxyOnNode1Edit}, wantReason: names.ReasonServiceProxySilent,
		answerContains: "is announced, but node1, which announces it, is not fit: kube-proxy on the node does not answer its health check", wantRepairPart: "kubectl -n kube-system get pods -o wide -l k8s-app=kube-proxy"},
	{name: "ipvs without strictARP", edits: append(newForeignAnswerEdits(strayAnswererMAC), giveStrayMACToNode2Edit), moreManifests: ipvsWithoutStrictARPManifest, wantReason: names.ReasonStrayAnswer, answerContains: "set ipvs.strictARP to true in ConfigMap kube-system/kube-proxy", wantRepairPart: "kubectl -n kube-system edit configmap kube-proxy"},
	{name: "proxy ARP", edits: append(newForeignAnswerEdits("02:00:00:00:00:09"), manifestEdit{`since: "2026-03-01T11:00:00Z"}]` + "\n", `since: "2026-03-01T11:00:00Z"}, {address: 192.168.0.7, mac: "02:00:00:00:00:09", since: "2026-03-01T11:00:00Z"}, {address: 192.168.0.8, mac: "02:00:00:00:00:09", since: "2026-03-01T11:00:00Z"}]` + "\n"}),
		wantReason: names.ReasonForeignClaim, answerContains: "a host outside of the cluster (02:00:00:00:00:09) answers for 3 addresses, as proxy ARP does"},
	{name: "no pool, since the webhook is down", edits: append(noAddressEdits(names.ReasonNoPools, "no IPAddressPool exists"), noPoolsEdits...), moreManifests: webhookManifest,
		wantReason: names.ReasonWebhookDown, answerContains: "no address: no IPAddressPool exists; and the API server refuses changes of the configuration: Service metallb-system/gantry-webhook of ValidatingWebhookConfiguration gantry-webhook has no endpoint", wantRepairPart: "kubectl delete validatingwebhookconfiguration"},
	{name: "no pool, and the webhook has no certificate", edits: append(noAddressEdits(names.ReasonNoPools, "no IPAddressPool exists"), noPoolsEdits...), moreManifests: strings.Replace(webhookManifest, "caBundle: eA==, ", "", 1) + webhookEndpointManifest,
		wantReason: names.ReasonWebhookDown, answerContains: "has no caBundle"},
	{name: "no pool, and a webhook that works", edits: append(noAddressEdits(names.ReasonNoPools, "no IPAddressPool exists"), noPoolsEdits...), moreManifests: webhookManifest + webhookEndpointManifest,
		wantReason: names.ReasonNoPools, answerContains: "no address: no IPAddressPool exists"},
	{name: "no advertisement, since the webhook is down", edits: []manifestEdit{noAnsweringNodeEdit, {"spec: {ipAddressPools: [first-pool]}", "spec: {ipAddressPools: [other]}"}}, moreManifests: webhookManifest, wantReason: names.ReasonWebhookDown, answerContains: "gantry-webhook has no endpoint"},
	{name: "a port without endpoints", edits: []manifestEdit{{`ports: [{name: "", port: 8080, protocol: TCP}]`, "ports: []"}, {"ports: [{port: 80, protocol: TCP}]", "ports: [{port: 80, protocol: TCP, targetPort: htpp}]"}},
		wantReason: names.ReasonNoEndpoints, answerContains: `is announced, but no endpoint serves its port 80: no Pod has a port named "htpp": correct targetPort`},
	{name: "Pods that are not ready", edits: []manifestEdit{noAnsweringNodeEdit, {"conditions: {ready: true}", "conditions: {ready: false}"}}, wantReason: names.ReasonNoEndpoints, answerContains: "the selector app=web matches 1 Pod, and none is ready"},
	{name: "a selector without Pods", edits: []manifestEdit{noAnsweringNodeEdit, {"endpoints: [{addresses: [10.244.0.5], nodeName: node1, conditions: {ready: true}}]", "endpoints: []"}}, wantReason: names.ReasonNoEndpoints, answerContains: "the selector app=web matches no Pod"},
	{name: "no selector", edits: []manifestEdit{noAnsweringNodeEdit, {"endpoints: [{addresses: [10.244.0.5], nodeName: node1, conditions: {ready: true}}]", "endpoints: []"}, {"selector: {app: web}, ", ""}}, wantReason: names.ReasonNoEndpoints, answerContains: "the Service has no selector"},
	{name: "a BGPAdvertisement without BGP", edits: []manifestEdit{noAnsweringNodeEdit, {"command: [/controller]", "command: [/controller, --bgp=disabled]"}, {"kind: L2Advertisement", "kind: BGPAdvertisement"}}, wantReason: names.ReasonNoAdvertisement, answerContains: "192.168.0.201 is not announced"},
	{name: "another program that writes the status", edits: []manifestEdit{kubeVIPWritesStatusEdit},
		wantReason: names.ReasonOtherController, answerContains: "another program writes its addresses too: kube-vip did at 2026-03-01 11:59:01 UTC"},
}

// TestExplainServiceThatIsBeingDeleted has a finalizer that nobody removes.
func TestExplainServiceThatIsBeingDeleted(t *testing.T) {
	r := explainTestService(t, replaceManifestText(t, installationManifests+workingServiceManifests, "metadata: {name: web, namespace: default,", `metadata: {name: web, namespace: default, deletionTimestamp: "2026-03-01T11:58:00Z", finalizers: [example.com/kept],`))
	if want := "default/web: it is being deleted since 2026-03-01 11:58:00 UTC: its finalizers (example.com/kept) have to be removed by those who set them"; r.Result != report.ResultNotWell || r.AnswerWithReason() != want {
		t.Errorf("%s: %s, want %s", r.Result, r.AnswerWithReason(), want)
	}
}

// TestSourceRangesOfServiceAreShown explains a Service with source ranges.
func TestSourceRangesOfServiceAreShown(t *testing.T) {
	r := explainTestService(t, replaceManifestText(t, installationManifests+workingServiceManifests, "type: LoadBalancer, ", "type: LoadBalancer, loadBalancerSourceRanges: [10.0.0.0/8], "))
	want := report.Check{Name: "clients", Result: report.ResultWell, Text: "only those of 10.0.0.0/8 (spec.loadBalancerSourceRanges)"}
	if r.Result != report.ResultWell || !slices.Contains(r.Checks, want) {
		t.Errorf("%s: %+v", r.AnswerWithReason(), r.Checks)
	}
}

// TestServiceFormerlyServedByOthersIsNoFault explains a Service that another program served before
// Gantry did.
func TestServiceFormerlyServedByOthersIsNoFault(t *testing.T) {
	f := faultsOutsideGantry[len(faultsOutsideGantry)-1]
	manifests := installationManifests + workingServiceManifests
	for _, e := range f.edits {
		manifests = replaceManifestText(t, manifests, e.oldText, e.newText)
	}
	before := replaceManifestText(t, manifests, `time: "2026-03-01T11:59:01Z"`, `time: "2026-03-01T11:00:01Z"`)
	once := replaceManifestText(t, before, `time: "2026-03-01T11:59:00Z"`, `time: "2026-03-01T11:00:00Z"`)
	for _, manifests := range []string{before, once} {
		if r := explainTestService(t, manifests); r.Result != report.ResultWell {
			t.Errorf("%s: %s", r.Result, r.AnswerWithReason())
		}
	}
}

func TestSlowAPIServerIsTheCause(t *testing.T) {
	for manifests, want := range map[string]string{
		installationManifests + workingServiceManifests:                                               "default/web: 192.168.0.201 is announced, but the API server is slow: its fastest answer took 1.5 s: look at its load and that of etcd [SlowAPIServer]",
		installationManifests + applyManifestEdits(t, workingServiceManifests, undecidedServiceEdits): "default/web: no address yet: the API server is slow: its fastest answer took 1.5 s: look at its load and that of etcd [SlowAPIServer]",
	} {
		e := newTestExplainer(clustertest.NewAPIBuilder(t, manifests).Build())
		e.fastestAPIAnswerDelay = func() time.Duration { return 1500 * time.Millisecond }
		r, err := e.ExplainService(t.Context(), client.ObjectKey{Namespace: "default", Name: "web"})
		if err != nil || r.Result != report.ResultNotWell || r.AnswerWithReason() != want {
			t.Errorf("%v, %+v, want %s", err, r, want)
		}
	}
}

func applyManifestEdits(t *testing.T, manifests string, edits []manifestEdit) string {
	t.Helper()
	for _, e := range edits {
		manifests = replaceManifestText(t, manifests, e.oldText, e.newText)
	}
	return manifests
}

// newAPIDenyingServiceAccounts returns an API server on which the ServiceAccounts lack one right.
func newAPIDenyingServiceAccounts(builder *fake.ClientBuilder, verb, resource string) client.WithWatch {
	return builder.WithInterceptorFuncs(interceptor.Funcs{
		Create: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.CreateOption) error {
			q, ok := o.(*authorizationv1.SubjectAccessReview)
			if !ok {
				return c.Create(ctx, o, opts...)
			}
			a := q.Spec.ResourceAttributes
			q.Status.Allowed = a.Verb != verb || a.Resource != resource
			return nil
		},
	}).Build()
}

// TestMissingRightsOfServiceAccountsAreTheCause explains a Service while the programs run, and RBAC
// lets them do nothing.
func TestMissingRightsOfServiceAccountsAreTheCause(t *testing.T) {
	const running = `{phase: Running, containerStatuses: [{name: x, image: x, imageID: "", ready: true, restartCount: 0, state: {running: {}}}]}`
	for _, c := range []struct {
		verb, resource string
		edits          []manifestEdit
		more, want     string
	}{
		{"update", "leases", append(undecidedServiceEdits[:len(undecidedServiceEdits):len(undecidedServiceEdits)], manifestEdit{"11:59:59.000000Z", "11:58:00.000000Z"}), gantryPodManifest("controller", running), "its ServiceAccount gantry-controller may not update leases: apply the RBAC of the installation again [NoController]"},
		{"list", "services", []manifestEdit{noAnsweringNodeEdit, {"11:59:30Z", "11:40:30Z"}, {"11:59:30Z", "11:40:30Z"}}, gantryPodManifest("speaker", running), "its ServiceAccount gantry-speaker may not list services: apply the RBAC of the installation again [NoSpeaker]"},
	} {
		manifests := applyManifestEdits(t, installationManifests+workingServiceManifests, c.edits)
		for _, p := range []string{"controller", "speaker"} {
			manifests = strings.Replace(manifests, "containers: [{name: "+p, "serviceAccountName: gantry-"+p+", containers: [{name: "+p, 1)
		}
		r, err := newTestExplainer(newAPIDenyingServiceAccounts(clustertest.NewAPIBuilder(t, manifests+c.more), c.verb, c.resource)).ExplainService(t.Context(), client.ObjectKey{Namespace: "default", Name: "web"})
		if err != nil || r.Result != report.ResultNotWell || !strings.Contains(r.AnswerWithReason(), c.want) || !strings.Contains(strings.Join(r.Repair, "\n"), "kubectl apply -f config/rbac") {
			t.Errorf("%v, %+v, want %s", err, r, c.want)
		}
	}
}

// TestInstallationReportNamesFaultsOutsideGantry asks about the whole installation.
func TestInstallationReportNamesFaultsOutsideGantry(t *testing.T) {
	for name, c := range map[string]struct {
		more, want string
		reason     names.Reason
	}{
		"a webhook without endpoints": {webhookManifest, "Gantry is not well: webhook: the API server refuses changes of the configuration", names.ReasonWebhookDown},
		"MetalLB":                     {metalLBManifest, "MetalLB (DaemonSet speaker) runs beside Gantry", names.ReasonOtherController},
		"ipvs without strictARP":      {ipvsWithoutStrictARPManifest, "kube-proxy runs in mode ipvs without strictARP", names.ReasonStrayAnswer},
		"a second Gantry":             {"apiVersion: gantry.dev/v1alpha1\nkind: SpeakerStatus\nmetadata: {name: node1, namespace: network}\n---\n", "another Gantry is in namespace network", names.ReasonOtherController},
	} {
		r, err := newTestExplainer(clustertest.NewAPIBuilder(t, installationManifests+workingServiceManifests+c.more).Build()).ExplainInstallation(t.Context())
		if err != nil || r.Result != report.ResultNotWell || r.Reason != c.reason || !strings.Contains(r.AnswerWithReason(), c.want) {
			t.Errorf("%s: %v, %+v, want %s", name, err, r, c.want)
		}
	}
}

// TestMissingPoolNamesUnansweredWebhook asks about a pool that the API server refused.
func TestMissingPoolNamesUnansweredWebhook(t *testing.T) {
	r, err := newTestExplainer(clustertest.NewAPIBuilder(t, installationManifests+workingServiceManifests+webhookManifest).Build()).ExplainPool(t.Context(), "dmz")
	if err != nil || r.Reason != names.ReasonWebhookDown || !strings.Contains(r.AnswerWithReason(), "there is no IPAddressPool dmz") {
		t.Errorf("%v, %+v", err, r)
	}
}

// kubeVIPWritesStatusEdit makes kube-vip write the addresses of the Service after Gantry did.
var kubeVIPWritesStatusEdit = manifestEdit{"metadata: {name: web, namespace: default,", `metadata: {name: web, namespace: default, managedFields: [` +
	`{manager: controller, operation: Update, apiVersion: v1, subresource: status, time: "2026-03-01T11:59:00Z", fieldsType: FieldsV1, fieldsV1: {"f:status": {"f:conditions": {'k:{"type":"gantry.dev/AddressAssigned"}': {}}}}},` +
	`{manager: kube-vip, operation: Update, apiVersion: v1, subresource: status, time: "2026-03-01T11:59:01Z", fieldsType: FieldsV1, fieldsV1: {"f:status": {"f:loadBalancer": {"f:ingress": {}}}}}],`}

// TestStatusNamesProgramThatWritesAddresses: a rival that is no MetalLB has no workload that can be
// known, but it writes.
func TestStatusNamesProgramThatWritesAddresses(t *testing.T) {
	manifests := replaceManifestText(t, installationManifests+workingServiceManifests, kubeVIPWritesStatusEdit.oldText, kubeVIPWritesStatusEdit.newText)
	r, err := newTestExplainer(clustertest.NewAPIBuilder(t, manifests).Build()).ExplainInstallation(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if want := "another program (kube-vip) writes the addresses of default/web too"; r.Reason != names.ReasonOtherController || !strings.Contains(r.Answer, want) {
		t.Errorf("it says %s, want %q", r.AnswerWithReason(), want)
	}
}
