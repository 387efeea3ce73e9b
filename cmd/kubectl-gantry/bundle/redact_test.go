package bundle

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/clustertest"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/objects"
)

// manifestsWithSecrets have PLANTED wherever a secret may be, and KEPT in what the bundle needs.
const manifestsWithSecrets = `
apiVersion: v1
kind: Secret
metadata: {name: tor, namespace: metallb-system}
type: kubernetes.io/basic-auth
data: {password: UExBTlRFRA==, username: UExBTlRFRA==}
---
apiVersion: v1
kind: Secret
metadata: {name: other, namespace: metallb-system}
data: {token: UExBTlRFRA==}
---
apiVersion: metallb.io/v1beta2
kind: BGPPeer
metadata: {name: tor, namespace: metallb-system, labels: {peer: KEPT}}
spec: {myASN: 64512, peerASN: 64513, peerAddress: 192.0.2.1, passwordSecret: {name: tor}}
---
apiVersion: metallb.io/v1beta2
kind: BGPPeer
metadata: {name: spine, namespace: metallb-system, annotations: {kubectl.kubernetes.io/last-applied-configuration: '{"spec":{"password":"PLANTED"}}'}}
spec: {myASN: 64512, peerASN: 64513, peerAddress: 192.0.2.1, password: PLANTED}
---
apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata: {name: first-pool, namespace: metallb-system, annotations: {example.com/owner: PLANTED, gantry.dev/lift-withheld: KEPT-lift}}
spec: {addresses: [192.0.2.0/28]}
---
apiVersion: v1
kind: Service
metadata:
  name: web
  namespace: shop
  labels: {app: KEPT-label}
  annotations: {example.com/token: PLANTED, metallb.io/address-pool: KEPT-pool, metalb.io/address-pool: KEPT-misspelt}
  managedFields:
  - {manager: kubectl, operation: Update, apiVersion: v1, time: "2026-03-01T11:59:01Z", fieldsType: FieldsV1, fieldsV1: {"f:metadata": {"f:annotations": {"f:example.com/PLANTED": {}}}}}
  - {manager: KEPT-manager, operation: Update, apiVersion: v1, subresource: status, time: "2026-03-01T11:59:01Z", fieldsType: FieldsV1, fieldsV1: {"f:metadata": {"f:annotations": {"f:example.com/PLANTED": {}}}, "f:status": {"f:loadBalancer": {"f:KEPT-ingress": {}}}}}
spec: {type: LoadBalancer, externalName: PLANTED.example.com, ports: [{port: 80}]}
status:
  conditions:
  - {type: gantry.dev/Announced, status: "True", reason: KEPT, message: "", lastTransitionTime: "2026-03-01T11:00:00Z"}
  - {type: example.com/Ready, status: "True", reason: X, message: PLANTED, lastTransitionTime: "2026-03-01T11:00:00Z"}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web, other: PLANTED}, annotations: {x: PLANTED}}
addressType: IPv4
endpoints: [{addresses: [10.244.0.5], nodeName: KEPT-node, hostname: planted-PLANTED, targetRef: {kind: Pod, name: PLANTED}}]
---
apiVersion: v1
kind: Node
metadata: {name: node1, labels: {rack: KEPT-rack}, annotations: {x/y: PLANTED, gantry.dev/drain: KEPT-drain}}
status: {conditions: [{type: Ready, status: "False", message: 'KEPT, and then https://me:PLANTED@registry.invalid/v2'}]}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {team: KEPT-team}, annotations: {x/y: PLANTED}}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: gantry-speaker, namespace: metallb-system, labels: {app.kubernetes.io/name: gantry, app.kubernetes.io/component: speaker}}
spec:
  template:
    metadata: {annotations: {x/y: PLANTED}}
    spec:
      serviceAccountName: KEPT-account
      volumes: [{name: PLANTED, secret: {secretName: PLANTED}}]
      containers:
      - name: speaker
        command: [/speaker, --load-balancer-class=KEPT-class, --bgp, KEPT-bgp, --token=PLANTED, --password, PLANTED, PLANTED]
        env: [{name: GANTRY_LB_CLASS, value: KEPT-env}, {name: GANTRY_KEEP_CONNECTIONS, value: KEPT-switch}, {name: GANTRY_TOKEN, value: PLANTED}, {name: PASSWORD, value: PLANTED}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: PLANTED-shop, namespace: shop}
spec: {template: {spec: {containers: [{name: x, env: [{name: X, value: PLANTED}]}]}}}
---
apiVersion: v1
kind: Pod
metadata: {name: gantry-speaker-1, namespace: metallb-system, labels: {app.kubernetes.io/name: gantry, app.kubernetes.io/component: speaker}, annotations: {x: PLANTED}}
spec: {nodeName: KEPT-podnode, containers: [{name: speaker, env: [{name: X, value: PLANTED}]}]}
status:
  phase: Running
  containerStatuses:
  - {name: speaker, image: x, imageID: "", ready: false, restartCount: 3, state: {waiting: {reason: KEPT-reason, message: "pulling with Bearer PLANTED.abc failed"}}, lastState: {terminated: {exitCode: 1, message: "PLANTED"}}}
---
apiVersion: v1
kind: Event
metadata: {name: e, namespace: metallb-system}
reason: FailedCreate
message: 'KEPT-event: eyJhbGciOiJSUzI1NiJ9.PLANTED.sig and password: "PLANTED" and api_key=PLANTED'
involvedObject: {kind: DaemonSet, name: gantry-speaker}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: kube-proxy, namespace: kube-system}
data: {config.conf: "mode: KEPT-mode\nclientConnection:\n  token: PLANTED\nipvs:\n  strictARP: true\n", kubeconfig.conf: "users: [{user: {token: PLANTED}}]"}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: other, namespace: kube-system}
data: {x: PLANTED}
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {name: gantry-webhook}
webhooks:
- {name: w, clientConfig: {caBundle: UExBTlRFRA==, service: {name: KEPT-webhook, namespace: x}}, sideEffects: None, admissionReviewVersions: [v1]}
- {name: v, clientConfig: {url: "https://x.invalid/PLANTED"}, sideEffects: None, admissionReviewVersions: [v1]}
---
apiVersion: gantry.dev/v1alpha1
kind: SpeakerStatus
metadata: {name: node1, namespace: metallb-system, annotations: {x: PLANTED}}
status: {node: KEPT-speaker}
---
`

// keptTexts are what the bundle must have.
var keptTexts = []string{
	"KEPT-lift", "KEPT-label", "KEPT-pool", "KEPT-misspelt", "KEPT-manager", "f:KEPT-ingress", "KEPT-node", "KEPT-rack", "KEPT-drain", "KEPT-team", "KEPT-account",
	"--load-balancer-class=KEPT-class", "--bgp=KEPT-bgp", "KEPT-env", "KEPT-switch", "KEPT-podnode", "KEPT-reason", "KEPT-event", "mode: KEPT-mode", "strictARP: true", "KEPT-webhook", "KEPT-speaker", "restartCount",
}

// collectionFrom collects everything from an API.
func collectionFrom(api objects.APIClient) Collection {
	return Collection{
		API: api, GantryNamespace: names.DefaultNamespace, UserNamespace: "shop",
		RightsOfProgram: func(string) []authorizationv1.ResourceAttributes { return nil },
		FetchRoutePage: func(_ context.Context, pod string) ([]byte, error) {
			return nil, errors.New("token=PLANTED for " + pod)
		},
		Now:                   func() time.Time { return time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC) },
		FastestAPIAnswerDelay: func() time.Duration { return time.Millisecond },
	}
}

// TestBundleHasNoSecrets plants a word wherever a secret or a note of a tenant may be, and looks
// for it in the archive.
func TestBundleHasNoSecrets(t *testing.T) {
	api := clustertest.NewAPIBuilder(t, manifestsWithSecrets).Build()
	b, err := Collect(t.Context(), collectionFrom(api))
	if err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	if err := b.WriteArchive(&archive, api.Scheme()); err != nil {
		t.Fatal(err)
	}
	all := unpackArchive(t, archive.Bytes())
	for _, planted := range []string{"PLANTED", "UExBTlRFRA"} {
		for at := strings.Index(all, planted); at >= 0; at = -1 {
			t.Errorf("the bundle has the secret: ...%s...", all[max(0, at-300):at+50])
		}
	}
	for _, kept := range keptTexts {
		if !strings.Contains(all, kept) {
			t.Errorf("the bundle lacks %s", kept)
		}
	}
}

// unpackArchive returns the names and contents of all files of an archive.
func unpackArchive(t *testing.T, archive []byte) string {
	t.Helper()
	plain, err := gzip.NewReader(bytes.NewReader(archive))
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for r := tar.NewReader(plain); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			return out.String()
		}
		if err != nil {
			t.Fatal(err)
		}
		out.WriteString(header.Name + "\n")
		if _, err := io.Copy(&out, r); err != nil {
			t.Fatal(err)
		}
	}
}

// TestSecretsAreAbsentButForTheirFaults reads from a bundle what it says about the Secrets of
// BGPPeers.
func TestSecretsAreAbsentButForTheirFaults(t *testing.T) {
	for password, want := range map[string]string{"": "", "secret": "removed", "secret\n": "removed\n", strings.Repeat("s", 81): strings.Repeat("x", 81)} {
		if got := substitutePassword(password); got != want {
			t.Errorf("%q becomes %q, want %q", password, got, want)
		}
	}
	api := clustertest.NewAPIBuilder(t, manifestsWithSecrets).Build()
	b, err := Collect(t.Context(), collectionFrom(api))
	if err != nil {
		t.Fatal(err)
	}
	var listed corev1.SecretList
	from := NewClient(b, api.Scheme(), api.RESTMapper())
	if err := from.List(t.Context(), &listed, client.InNamespace(names.DefaultNamespace), client.MatchingFields{"type": string(corev1.SecretTypeBasicAuth)}); err != nil {
		t.Fatal(err)
	}
	if len(listed.Items) != 1 || listed.Items[0].Name != "tor" || string(listed.Items[0].Data[corev1.BasicAuthPasswordKey]) != "removed" {
		t.Errorf("the Secrets are %+v", listed.Items)
	}
}

// TestTextsThatLookLikeSecretsAreRemoved redacts texts of other programs.
func TestTextsThatLookLikeSecretsAreRemoved(t *testing.T) {
	for text, want := range map[string]string{
		"0/3 nodes are available: 3 node(s) had untolerated taint {a: b}": "0/3 nodes are available: 3 node(s) had untolerated taint {a: b}",
		"Authorization: Bearer abcdefghijk":                               "(removed)",
		"-----BEGIN PRIVATE KEY-----\nabc\n-----END PRIVATE KEY----- x":   "(removed) x",
		"get https://u:p@x.invalid/v2 failed":                             "get https(removed)x.invalid/v2 failed",
		"violates PodSecurity \"baseline\": hostNetwork":                  "violates PodSecurity \"baseline\": hostNetwork",
	} {
		if got := redactText(text); got != want {
			t.Errorf("%q becomes %q, want %q", text, got, want)
		}
	}
}

// TestSpeakersWithoutBGPAreNotAskedForRoutes switches BGP off by an argument, and by a variable as
// the chart does.
func TestSpeakersWithoutBGPAreNotAskedForRoutes(t *testing.T) {
	const speaker = `
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: gantry-speaker, namespace: metallb-system, labels: {app.kubernetes.io/name: gantry, app.kubernetes.io/component: speaker}}
spec: {template: {spec: {containers: [{name: speaker, %}]}}}
---
apiVersion: v1
kind: Pod
metadata: {name: gantry-speaker-1, namespace: metallb-system, labels: {app.kubernetes.io/name: gantry, app.kubernetes.io/component: speaker}}
spec: {nodeName: node1, containers: [{name: speaker}]}
status: {phase: Running}
`
	for container, wantAsked := range map[string]bool{
		"args: []": true, "args: [--bgp=enabled]": true, "args: [--bgp=disabled]": false, "env: [{name: GANTRY_BGP, value: disabled}]": false,
	} {
		api := clustertest.NewAPIBuilder(t, strings.Replace(speaker, "%", container, 1)).Build()
		collection, isAsked := collectionFrom(api), false
		collection.FetchRoutePage = func(context.Context, string) ([]byte, error) {
			isAsked = true
			return nil, nil
		}
		if _, err := Collect(t.Context(), collection); err != nil || isAsked != wantAsked {
			t.Errorf("%s: %v, the speaker is asked: %t, want %t", container, err, isAsked, wantAsked)
		}
	}
}
