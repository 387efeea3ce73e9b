package preview

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/clustertest"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/explain"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/objects"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/report"
)

// clusterManifests are a Gantry on two nodes. Service default/web has 192.168.0.201, which node1
// answers for, and which the router tor gets from both nodes.
const clusterManifests = `
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
spec: {replicas: 1, template: {spec: {containers: [{name: controller, command: [/controller]}]}}}
---
apiVersion: gantry.dev/v1alpha1
kind: SpeakerStatus
metadata: {name: node1, namespace: metallb-system}
status: {node: node1, held: 1, lastSeen: "2026-03-01T11:59:30Z", usableLinks: [eth0]}
---
apiVersion: gantry.dev/v1alpha1
kind: SpeakerStatus
metadata: {name: node2, namespace: metallb-system}
status: {node: node2, lastSeen: "2026-03-01T11:59:30Z", usableLinks: [eth0]}
---
apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata: {name: first-pool, namespace: metallb-system}
spec: {addresses: [192.168.0.201-192.168.0.202], autoAssign: true}
---
apiVersion: metallb.io/v1beta1
kind: L2Advertisement
metadata: {name: example, namespace: metallb-system}
spec: {ipAddressPools: [first-pool]}
---
apiVersion: metallb.io/v1beta1
kind: BGPAdvertisement
metadata: {name: routed, namespace: metallb-system}
spec: {ipAddressPools: [first-pool]}
---
apiVersion: metallb.io/v1beta2
kind: BGPPeer
metadata: {name: tor, namespace: metallb-system}
spec: {myASN: 64512, peerASN: 64513, peerAddress: 192.168.0.254}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default, creationTimestamp: "2026-03-01T11:00:00Z"}
spec: {type: LoadBalancer, clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10], ipFamilies: [IPv4], selector: {app: web}, ports: [{port: 80, protocol: TCP}]}
status:
  loadBalancer: {ingress: [{ip: 192.168.0.201}]}
  conditions:
  - {type: gantry.dev/AddressAssigned, status: "True", reason: Assigned, message: "", lastTransitionTime: "2026-03-01T11:00:00Z"}
  - {type: gantry.dev/AllocatedFromPool, status: "True", reason: Assigned, message: first-pool, lastTransitionTime: "2026-03-01T11:00:00Z"}
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
metadata: {name: default.web.node1, namespace: metallb-system, labels: {metallb.io/node: node1, metallb.io/service-name: web, metallb.io/service-namespace: default}}
status: {node: node1, serviceName: web, serviceNamespace: default, gantry: {addresses: [192.168.0.201]}}
`

const (
	poolHead          = "apiVersion: metallb.io/v1beta1\nkind: IPAddressPool\nmetadata: {name: first-pool, namespace: metallb-system}\n"
	layer2Head        = "apiVersion: metallb.io/v1beta1\nkind: L2Advertisement\nmetadata: {name: example, namespace: metallb-system}\n"
	serviceHead       = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: default"
	otherPoolManifest = "apiVersion: metallb.io/v1beta1\nkind: IPAddressPool\nmetadata: {name: other-pool, namespace: metallb-system}\nspec: {addresses: [192.168.1.1-192.168.1.9]}\n"
	servicePorts      = "ports: [{port: 80, protocol: TCP}]"
	otherServiceSpec  = "spec: {type: LoadBalancer, clusterIP: 10.96.0.11, clusterIPs: [10.96.0.11], ipFamilies: [IPv4], selector: {app: other}, ports: [{port: 80, protocol: TCP}]}\n"
)

// previewCase is an edit, and the effects that its Preview must have, and no others: the kind, the
// subject, the Reason, and the addresses or the nodes.
type previewCase struct {
	edit        string
	isDeletion  bool
	wantEffects []string
	wantResult  report.Result
}

var previewCases = map[string]previewCase{
	"an edit that changes nothing": {
		edit: poolHead + "spec: {addresses: [192.168.0.201-192.168.0.202], autoAssign: true}\n", wantResult: report.ResultWell,
	},
	"a pool without an address that a Service has": {
		edit: poolHead + "spec: {addresses: [192.168.0.202/32]}\n", wantResult: report.ResultNotWell,
		wantEffects: []string{"PoolLost Service default/web AddressNotInPool 192.168.0.201", "ReasonAppears Service default/web AddressNotInPool"},
	},
	"a pool with an entry that cannot be read": {
		edit: poolHead + "spec: {addresses: [192.168.0.201-192.168.0.202, 192.168.0.300/33]}\n", wantResult: report.ResultNotWell,
		wantEffects: []string{"ProblemAppears IPAddressPool first-pool InvalidAddress"},
	},
	"a new Service whose Pods do not exist": {
		edit: strings.Replace(serviceHead, "web", "other", 1) + "}\n" + otherServiceSpec, wantResult: report.ResultNotWell,
		wantEffects: []string{"ReasonAppears Service default/other NoEndpoints", "AddressGained Service default/other  192.168.0.202"},
	},
	"a Service that asks for another address": {
		edit: serviceHead + ", annotations: {metallb.io/loadBalancerIPs: 192.168.0.202}}\n", wantResult: report.ResultNotWell,
		wantEffects: []string{
			"AddressReplaced Service default/web  192.168.0.201 192.168.0.202",
			"RouteVanishes BGPPeer tor  192.168.0.201/32 node1 node2", "RouteAppears BGPPeer tor  192.168.0.202/32 node1 node2",
		},
	},
	"a Service that asks for an address of no pool": {
		edit: serviceHead + ", annotations: {metallb.io/loadBalancerIPs: 192.168.7.7}}\n", wantResult: report.ResultNotWell,
		wantEffects: []string{"ReasonAppears Service default/web AddressNotInPool"},
	},
	"a Service of another type": {
		edit: serviceHead + "}\nspec: {type: ClusterIP, " + servicePorts + "}\n", wantResult: report.ResultNotWell,
		wantEffects: []string{"AddressLost Service default/web  192.168.0.201", "RouteVanishes BGPPeer tor  192.168.0.201/32 node1 node2"},
	},
	"a deleted Service": {
		edit: serviceHead + "}\n", isDeletion: true, wantResult: report.ResultWell,
		wantEffects: []string{"AddressLost Service default/web  192.168.0.201", "RouteVanishes BGPPeer tor  192.168.0.201/32 node1 node2"},
	},
	"an L2Advertisement that does not select the holder": {
		edit: layer2Head + "spec: {ipAddressPools: [first-pool], nodeSelectors: [{matchLabels: {kubernetes.io/hostname: node2}}]}\n", wantResult: report.ResultWell,
		wantEffects: []string{"HolderChanges Service default/web  192.168.0.201 node1 > node2"},
	},
	"a Service that asks for another holder": {
		edit: serviceHead + ", annotations: {gantry.dev/holder: node2}}\n", wantResult: report.ResultWell,
		wantEffects: []string{"HolderChanges Service default/web  192.168.0.201 node1 > node2"},
	},
	"a Service that asks for a holder that does not exist": {
		edit: serviceHead + ", annotations: {gantry.dev/holder: node9}}\n", wantResult: report.ResultNotWell,
		wantEffects: []string{"ReasonAppears Service default/web HolderUnavailable 192.168.0.201"},
	},
	"a BGPAdvertisement with a community": {
		edit: "apiVersion: metallb.io/v1beta1\nkind: BGPAdvertisement\nmetadata: {name: routed, namespace: metallb-system}\nspec: {communities: [\"65000:1\"]}\n", wantResult: report.ResultWell,
		wantEffects: []string{"RouteChanges BGPPeer tor  192.168.0.201/32 node1 node2"},
	},
	"a BGPPeer in the older version for one node": {
		edit: "apiVersion: metallb.io/v1beta1\nkind: BGPPeer\nmetadata: {name: tor, namespace: metallb-system}\nspec: {nodeSelectors: [{matchLabels: {kubernetes.io/hostname: node2}}]}\n", wantResult: report.ResultWell,
		wantEffects: []string{"SessionEnds BGPPeer tor  node1", "RouteVanishes BGPPeer tor  192.168.0.201/32 node1"},
	},
	"a pool that is retired while another one has room": {
		edit: poolHead + "spec: {gantry: {retire: {}}}\n---\n" + otherPoolManifest, wantResult: report.ResultNotWell,
		wantEffects: []string{
			"AddressReplaced Service default/web  192.168.0.201 192.168.1.1",
			"ReasonAppears Service default/web NoAdvertisement", "RouteVanishes BGPPeer tor  192.168.0.201/32 node1 node2",
		},
	},
	"both advertisements are deleted": {
		edit:       layer2Head + "---\napiVersion: metallb.io/v1beta1\nkind: BGPAdvertisement\nmetadata: {name: routed, namespace: metallb-system}\n",
		isDeletion: true, wantResult: report.ResultNotWell,
		wantEffects: []string{
			"ReasonAppears Service default/web NoAdvertisement", "HolderChanges Service default/web  192.168.0.201 node1 > ",
			"RouteVanishes BGPPeer tor  192.168.0.201/32 node1 node2",
		},
	},
	"a node that is drained": {
		edit: "apiVersion: v1\nkind: Node\nmetadata: {name: node1, annotations: {gantry.dev/drain: \"\"}}\n", wantResult: report.ResultWell,
		wantEffects: []string{"HolderChanges Service default/web  192.168.0.201 node1 > node2", "RouteVanishes BGPPeer tor  192.168.0.201/32 node1"},
	},
	"objects that have no part in it": {
		edit:       "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\n---\n" + strings.Replace(poolHead, "metallb-system", "default", 1) + "---\napiVersion: example.com/v1\nkind: Other\nmetadata: {name: x}\n",
		wantResult: report.ResultWell,
	},
}

func TestPreviewNamesEveryEffectOfAnEdit(t *testing.T) {
	for name, tc := range previewCases {
		t.Run(name, func(t *testing.T) {
			p := previewTestEdit(t, newFakeAPI(t, interceptor.Funcs{}), tc)
			if got := describeEffects(p); !slices.Equal(got, tc.wantEffects) || p.Result != tc.wantResult {
				t.Errorf("%s: %s\ngot  %q\nwant %q, %s", p.Result, p.Answer, got, tc.wantEffects, tc.wantResult)
			}
		})
	}
}

// previewTestEdit previews the edit of a case.
func previewTestEdit(t *testing.T, api client.WithWatch, tc previewCase) *Preview {
	t.Helper()
	manifests, err := ReadManifests(ManifestSource{Paths: []string{"-"}, Input: strings.NewReader(tc.edit)})
	if err != nil {
		t.Fatal(err)
	}
	runner := &DryRunner{API: api, GantryNamespace: names.DefaultNamespace, UserNamespace: "default"}
	var edited []EditedObject
	for _, m := range manifests {
		dryRun := runner.DryRunApply
		if tc.isDeletion {
			dryRun = runner.DryRunDelete
		}
		o, err := dryRun(t.Context(), m)
		if err != nil {
			t.Fatal(err)
		}
		edited = append(edited, o)
	}
	p, err := PreviewEdit(t.Context(), newTestExplainer(api), edited)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func newTestExplainer(api client.WithWatch) *explain.Explainer {
	return explain.NewExplainer(explain.ExplainerOptions{
		ObjectReader: objects.NewReader(api, explain.LabelsFuncByIndex), GantryNamespace: names.DefaultNamespace,
		Now: func() time.Time { return time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC) }, ShowProgress: func(string) {},
	})
}

// describeEffects has one line for each effect.
func describeEffects(p *Preview) []string {
	var out []string
	for _, e := range p.Effects {
		parts := slices.Concat([]string{string(e.Kind), e.Subject, string(e.Reason)}, e.Addresses, e.NewAddresses, e.Nodes)
		if e.From != "" {
			parts = append(parts, e.From, ">", e.To)
		}
		out = append(out, strings.Join(parts, " "))
	}
	return out
}

func newFakeAPI(t *testing.T, funcs interceptor.Funcs) client.WithWatch {
	t.Helper()
	return clustertest.NewAPIBuilder(t, clusterManifests).WithInterceptorFuncs(funcs).Build()
}

// TestPreviewSaysWhatTheAPIServerRefuses refuses an edit for its content, and then for a right.
func TestPreviewSaysWhatTheAPIServerRefuses(t *testing.T) {
	resource := schema.GroupResource{Group: "metallb.io", Resource: "ipaddresspools"}
	invalid := apierrors.NewInvalid(schema.GroupKind{Group: "metallb.io", Kind: "IPAddressPool"}, "first-pool", nil)
	forbidden := apierrors.NewForbidden(resource, "first-pool", nil)
	forbidden.ErrStatus.Message = `ipaddresspools.metallb.io "first-pool" is forbidden: User "ci" cannot patch resource "ipaddresspools" in API group "metallb.io"`
	for name, c := range map[string]struct {
		err         error
		wantEffects int
	}{"its content": {invalid, 0}, "a missing right": {forbidden, 2}} {
		t.Run(name, func(t *testing.T) {
			api := newFakeAPI(t, interceptor.Funcs{Patch: func(context.Context, client.WithWatch, client.Object, client.Patch, ...client.PatchOption) error {
				return c.err
			}})
			p := previewTestEdit(t, api, previewCases["a pool without an address that a Service has"])
			if p.Result != report.ResultNotWell || p.Objects[0].Refusal == "" || len(p.Effects) != c.wantEffects {
				t.Errorf("%s, %+v, want %d effects: %q", p.Result, p.Objects[0], c.wantEffects, describeEffects(p))
			}
			if text := p.NewReport(WithFieldChanges).Checks[0].Text; !strings.Contains(text, "refused by the API server: ") {
				t.Errorf("the refusal is not said: %q", text)
			}
		})
	}
}

func TestPreviewListsChangedFieldsAndHidesSecrets(t *testing.T) {
	p := previewTestEdit(t, newFakeAPI(t, interceptor.Funcs{}), previewCase{edit: poolHead + "spec: {addresses: [192.168.0.201/32]}\n---\napiVersion: v1\nkind: Secret\nmetadata: {name: tor, namespace: metallb-system}\ntype: kubernetes.io/basic-auth\nstringData: {password: hidden-word}\n"})
	var all []string
	for _, o := range p.Objects {
		for _, c := range o.Changes {
			all = append(all, c.String())
		}
	}
	text := strings.Join(all, "\n")
	if !strings.Contains(text, `spec.addresses: ["192.168.0.201-192.168.0.202"] -> ["192.168.0.201/32"]`) || strings.Contains(text, "hidden-word") {
		t.Errorf("the changes are\n%s", text)
	}
}

// TestDryRunOfOneChangeIsPreviewed drains a node, as kubectl gantry drain does.
func TestDryRunOfOneChangeIsPreviewed(t *testing.T) {
	api := newFakeAPI(t, interceptor.Funcs{})
	var node corev1.Node
	if err := api.Get(t.Context(), client.ObjectKey{Name: "node1"}, &node); err != nil {
		t.Fatal(err)
	}
	runner := &DryRunner{API: api, GantryNamespace: names.DefaultNamespace}
	o, err := runner.DryRunEdit(t.Context(), &node, func(o client.Object) { o.SetAnnotations(map[string]string{names.AnnotationDrainNode: ""}) })
	if err != nil {
		t.Fatal(err)
	}
	if o.Action != ActionConfigured || len(o.Changes) != 1 || o.Changes[0].String() != `metadata.annotations.gantry.dev/drain: (none) -> ""` {
		t.Errorf("the change is %+v", o)
	}
	p, err := PreviewEdit(t.Context(), newTestExplainer(api), []EditedObject{o})
	want := []string{"HolderChanges Service default/web  192.168.0.201 node1 > node2", "RouteVanishes BGPPeer tor  192.168.0.201/32 node1"}
	if err != nil || !slices.Equal(describeEffects(p), want) {
		t.Errorf("%v, %q, want %q", err, describeEffects(p), want)
	}
}
