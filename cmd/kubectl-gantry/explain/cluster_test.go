package explain

import (
	"context"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/clustertest"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/objects"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/report"
)

// fakeNow is the time of the tests; the objects below are from shortly before.
var fakeNow = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// installationManifests are a Gantry that works on two nodes, with a pool, and nothing to serve.
const installationManifests = `
apiVersion: v1
kind: Namespace
metadata: {name: metallb-system}
---
apiVersion: v1
kind: Namespace
metadata: {name: default}
---
apiVersion: v1
kind: Node
metadata: {name: node1, labels: {kubernetes.io/hostname: node1}}
---
apiVersion: v1
kind: Node
metadata: {name: node2, labels: {kubernetes.io/hostname: node2}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: gantry-controller, namespace: metallb-system, labels: {app.kubernetes.io/name: gantry, app.kubernetes.io/component: controller}}
spec: {replicas: 2, template: {spec: {containers: [{name: controller, command: [/controller]}]}}}
status: {replicas: 2, readyReplicas: 2}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: gantry-speaker, namespace: metallb-system, labels: {app.kubernetes.io/name: gantry, app.kubernetes.io/component: speaker}}
spec: {template: {spec: {containers: [{name: speaker}]}}}
status: {desiredNumberScheduled: 2, numberReady: 2}
---
apiVersion: coordination.k8s.io/v1
kind: Lease
metadata: {name: gantry-controller, namespace: metallb-system}
spec: {holderIdentity: gantry-controller-1_x, renewTime: "2026-03-01T11:59:59.000000Z"}
---
apiVersion: gantry.dev/v1alpha1
kind: SpeakerStatus
metadata: {name: node1, namespace: metallb-system}
status:
  node: node1
  held: 1
  lastSeen: "2026-03-01T11:59:30Z"
  usableLinks: [eth0]
  conditions: [{type: gantry.dev/Ready, status: "True", reason: SpeakerRuns, message: "", lastTransitionTime: "2026-03-01T11:00:00Z"}]
---
apiVersion: gantry.dev/v1alpha1
kind: SpeakerStatus
metadata: {name: node2, namespace: metallb-system}
status:
  node: node2
  lastSeen: "2026-03-01T11:59:30Z"
  usableLinks: [eth0]
  conditions: [{type: gantry.dev/Ready, status: "True", reason: SpeakerRuns, message: "", lastTransitionTime: "2026-03-01T11:00:00Z"}]
---
apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata: {name: first-pool, namespace: metallb-system}
spec: {addresses: [192.168.0.201-192.168.0.202]}
status: {assignedIPv4: 1, assignedIPv6: 0, availableIPv4: 1, availableIPv6: 0}
---
apiVersion: metallb.io/v1beta1
kind: L2Advertisement
metadata: {name: example, namespace: metallb-system}
spec: {ipAddressPools: [first-pool]}
---
`

// workingServiceManifests are a Service that works, with an endpoint on node1.
const workingServiceManifests = `
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default, creationTimestamp: "2026-03-01T11:00:00Z"}
spec: {type: LoadBalancer, clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10], selector: {app: web}, ports: [{port: 80, protocol: TCP}]}
status:
  loadBalancer: {ingress: [{ip: 192.168.0.201}]}
  conditions:
  - {type: gantry.dev/AddressAssigned, status: "True", reason: Assigned, message: 'assigned 192.168.0.201 from pool "first-pool"', lastTransitionTime: "2026-03-01T11:00:00Z"}
  - {type: gantry.dev/AllocatedFromPool, status: "True", reason: Assigned, message: first-pool, lastTransitionTime: "2026-03-01T11:00:00Z"}
  - {type: gantry.dev/Announced, status: "True", reason: Announced, message: announced by layer 2, lastTransitionTime: "2026-03-01T11:00:00Z"}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: default, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints: [{addresses: [10.244.0.5], nodeName: node1, conditions: {ready: true}}]
ports: [{name: "", port: 8080, protocol: TCP}]
---
apiVersion: metallb.io/v1beta1
kind: ServiceL2Status
metadata: {name: default.web.node1, namespace: metallb-system, creationTimestamp: "2026-03-01T11:00:05Z", labels: {metallb.io/node: node1, metallb.io/service-name: web, metallb.io/service-namespace: default}}
status: {node: node1, serviceName: web, serviceNamespace: default, gantry: {addresses: [192.168.0.201]}}
---
`

func newTestExplainer(api client.WithWatch) *Explainer {
	return NewExplainer(ExplainerOptions{
		ObjectReader: objects.NewReader(api, LabelsFuncByIndex), GantryNamespace: names.DefaultNamespace,
		Now: func() time.Time { return fakeNow }, ShowProgress: func(string) {},
	})
}

// explainTestService explains the Service default/web: from the cluster, and from a support bundle
// of it, which has to answer alike.
func explainTestService(t *testing.T, manifests string) *report.Report {
	t.Helper()
	api := clustertest.NewAPIBuilder(t, manifests).Build()
	ask := func(ctx context.Context, e *Explainer) (*report.Report, error) {
		return e.ExplainService(ctx, client.ObjectKey{Namespace: "default", Name: "web"})
	}
	r, err := ask(t.Context(), newTestExplainer(api))
	if err != nil {
		t.Fatal(err)
	}
	expectBundleAnswersAlike(t, api, r, ask)
	return r
}

// replaceManifestText replaces a text that must be there.
func replaceManifestText(t *testing.T, manifests, old, now string) string {
	t.Helper()
	if !strings.Contains(manifests, old) {
		t.Fatalf("the manifests have no %q", old)
	}
	return strings.Replace(manifests, old, now, 1)
}
