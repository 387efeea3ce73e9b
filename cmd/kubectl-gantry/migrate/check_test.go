package migrate

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/report"
)

// configurationManifests configure MetalLB: a pool for ARP and NDP, one for BGP, and a router.
const configurationManifests = `
apiVersion: v1
kind: Namespace
metadata: {name: metallb-system}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {tier: web}}
---
apiVersion: v1
kind: Node
metadata: {name: node1}
---
apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata: {name: lan, namespace: metallb-system}
spec: {addresses: [192.0.2.10-192.0.2.20]}
---
apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata: {name: routed, namespace: metallb-system}
spec: {addresses: [198.51.100.0/24], autoAssign: false}
---
apiVersion: metallb.io/v1beta1
kind: L2Advertisement
metadata: {name: lan, namespace: metallb-system}
spec: {ipAddressPools: [lan]}
---
apiVersion: metallb.io/v1beta1
kind: BGPAdvertisement
metadata: {name: routed, namespace: metallb-system}
spec: {ipAddressPools: [routed]}
---
apiVersion: metallb.io/v1beta2
kind: BGPPeer
metadata: {name: router, namespace: metallb-system}
spec: {myASN: 64512, peerASN: 64513, peerAddress: 203.0.113.1, passwordSecret: {name: router}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop, annotations: {metallb.universe.tf/address-pool: lan}}
spec: {type: LoadBalancer}
status: {loadBalancer: {ingress: [{ip: 192.0.2.10}]}}
---
apiVersion: v1
kind: Service
metadata: {name: api, namespace: default}
spec: {type: LoadBalancer}
status: {loadBalancer: {ingress: [{ip: 198.51.100.7}]}}
---
apiVersion: v1
kind: Service
metadata: {name: stray, namespace: default}
spec: {type: LoadBalancer}
status: {loadBalancer: {ingress: [{ip: 10.9.9.9}]}}
---
apiVersion: v1
kind: Service
metadata: {name: inner, namespace: default}
spec: {type: ClusterIP}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: metallb-excludel2, namespace: metallb-system}
data: {excludel2.yaml: "announcedInterfacesToExclude: [\"^docker.*\", \"^backup0$\"]"}
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: ipaddresspools.metallb.io, labels: {HELM}, annotations: {OWNER}}
spec: {group: metallb.io}
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: bgppeers.metallb.io, labels: {HELM}, annotations: {OWNER}}
spec:
  group: metallb.io
  conversion: {strategy: Webhook, webhook: {clientConfig: {service: {name: metallb-webhook-service, namespace: metallb-system, path: /convert}}}}
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {name: metallb-webhook-configuration}
webhooks:
- {name: ipaddresspoolvalidationwebhook.metallb.io, clientConfig: {service: {name: metallb-webhook-service, namespace: metallb-system}}}
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {name: policy-engine}
webhooks:
- {name: validate.example.com, clientConfig: {service: {name: policy, namespace: policy}}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: webhook-1, namespace: metallb-system, labels: {kubernetes.io/service-name: metallb-webhook-service}}
endpoints: [{addresses: [10.244.0.9], conditions: {ready: true}}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: CONTROLLER, namespace: metallb-system, labels: {LABELS, COMPONENT: controller}, annotations: {OWNER}}
spec: {replicas: 1, template: {spec: {containers: [{name: controller, image: "quay.io/metallb/controller:v0.14.9", args: [--port=7472]}]}}}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: SPEAKER, namespace: metallb-system, labels: {LABELS, COMPONENT: speaker}, annotations: {OWNER}}
spec:
  template:
    spec:
      hostNetwork: true
      containers:
      - {name: speaker, image: "quay.io/metallb/speaker:v0.14.9", args: [--port=7472], ports: [{containerPort: 7472}, {containerPort: 7946}]}
      - {name: frr-metrics, image: "quay.io/metallb/speaker:v0.14.9", ports: [{containerPort: 7473}]}
---
`

// byHelm are the configuration and the programs as MetalLB's chart leaves them.
func byHelm() string {
	return strings.NewReplacer("OWNER", "meta.helm.sh/release-name: metallb, meta.helm.sh/release-namespace: metallb-system", "HELM", "app.kubernetes.io/managed-by: Helm",
		"LABELS", "app.kubernetes.io/name: metallb, app.kubernetes.io/instance: metallb", "COMPONENT", "app.kubernetes.io/component", "CONTROLLER", "metallb-controller", "SPEAKER", "metallb-speaker").Replace(configurationManifests)
}

// byManifests are the same as kubectl apply of MetalLB's manifests leaves them.
func byManifests() string {
	return strings.NewReplacer("OWNER", "", "HELM", "", "LABELS", "app: metallb", "COMPONENT", "component", "CONTROLLER", "controller", "SPEAKER", "speaker").Replace(configurationManifests)
}

// findIn reads a cluster in memory.
func findIn(t *testing.T, a *memoryAccess, helmReleaseOfGantry string) *Findings {
	t.Helper()
	f, err := ReadFindings(t.Context(), a, ReadQuestion{GantryNamespace: "metallb-system", HelmReleaseOfGantry: helmReleaseOfGantry})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// checkTexts checks that each text is in the answer, and that the others are not.
func checkTexts(t *testing.T, answer string, wanted, unwanted []string) {
	t.Helper()
	for _, w := range wanted {
		if !strings.Contains(answer, w) {
			t.Errorf("the answer lacks %q:\n%s", w, answer)
		}
	}
	for _, u := range unwanted {
		if strings.Contains(answer, u) {
			t.Errorf("the answer has %q:\n%s", u, answer)
		}
	}
}

func TestCheckOfClusterThatHelmInstalled(t *testing.T) {
	r := BuildCheckReport(findIn(t, newMemoryAccess(t, byHelm()), ""))
	checkTexts(t, FormatCheckReport(r), []string{
		"MetalLB v0.14.9 in namespace metallb-system, by Helm: release metallb-system/metallb",
		"its BGP mode is native",
		"2 ipaddresspools",
		"DaemonSet metallb-speaker uses these ports of the nodes: 7472 7946 7473",
		"webhook metallb-webhook-configuration, for which MetalLB's controller answers",
		"CRD bgppeers.metallb.io has a conversion webhook",
		"the CRDs belong to Helm's release metallb-system/metallb: helm uninstall of it deletes them, and all pools with them",
		"the list of excluded interfaces is edited: ^docker.* ^backup0$",
		"3 Services of type LoadBalancer, of which 3 have addresses",
		"the addresses of default/stray are in no pool",
		"1 Services have one address, for which one node answers: their clients see the failover when MetalLB's speakers stop: shop/web",
		"1 Services have annotations in the older spelling",
		"its BGPPeer needs `ebgpMultiHop: true`",
		"Gantry reads the Secret of a BGPPeer by its name",
		"the condition and the event do not name that Service",
		"kubectl -n metallb-system scale deployment/metallb-controller --replicas=0",
		"helm get values metallb --namespace metallb-system --output yaml | kubectl gantry migrate --values -",
		"--set speaker.gossip.port=7947 --set speaker.ports.metrics=9473 --take-ownership --force-conflicts\n", "Helm 3 does not have this flag: leave it out",
		"unless the router has graceful restart or you stop the speakers node by node", "kubectl -n metallb-system delete daemonset metallb-speaker",
		"kubectl -n metallb-system delete secret -l owner=helm,name=metallb",
	}, []string{"policy-engine", "namespaceSelectors", "unless the pool allows more", "It rejects a range"})
}

func TestCheckOfClusterWithManifests(t *testing.T) {
	r := BuildCheckReport(findIn(t, newMemoryAccess(t, byManifests()), ""))
	checkTexts(t, FormatCheckReport(r), []string{
		"by manifests", "kubectl -n metallb-system wait --for=delete pod -l app=metallb,component=controller", "kubectl apply -k .", "GANTRY_GOSSIP_BIND_PORT",
		"Do not run kubectl delete -f with its manifest", "kubectl -n metallb-system delete deployment,daemonset,service,serviceaccount,role,rolebinding -l app=metallb",
	}, []string{"helm "})
}

// TestStepsInTheirOrder: each step makes the next one possible.
func TestStepsInTheirOrder(t *testing.T) {
	for name, manifests := range map[string]string{"Helm": byHelm(), "manifests": byManifests()} {
		var commands []string
		for _, s := range findIn(t, newMemoryAccess(t, manifests), "").ListSteps() {
			commands = append(commands, strings.Join(s.Commands, " "))
		}
		last := -1
		for _, part := range []string{"--replicas=0", "kubectl gantry migrate", "install", "rollout status", "delete daemonset", "kubectl gantry status", "delete clusterrole"} {
			if name == "manifests" && part == "install" {
				part = "apply -k"
			}
			at := slices.IndexFunc(commands, func(c string) bool { return strings.Contains(c, part) && !strings.Contains(c, "--values -") })
			if at <= last {
				t.Errorf("%s: %q is step %d, after step %d:\n%s", name, part, at+1, last+1, strings.Join(commands, "\n"))
			}
			last = at
		}
	}
}

// encodeRelease is what Helm stores in a Secret.
func encodeRelease(t *testing.T, text string) string {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return base64.StdEncoding.EncodeToString([]byte(base64.StdEncoding.EncodeToString(b.Bytes())))
}

// TestCheckReadsValuesOfNewestRevision: the values of the release say what has no counterpart.
func TestCheckReadsValuesOfNewestRevision(t *testing.T) {
	secret := func(revision, release string) string {
		return "apiVersion: v1\nkind: Secret\nmetadata: {name: sh.helm.release.v1.metallb.v" + revision + ", namespace: metallb-system, labels: {owner: helm, name: metallb, version: \"" + revision + "\"}}\ndata: {release: " + encodeRelease(t, release) + "}\n---\n"
	}
	manifests := byHelm() + secret("9", `{"config":{},"chart":{"metadata":{"version":"0.13.12"}}}`) + secret("10", `{"config":{"speaker":{"wanConfig":true}},"chart":{"metadata":{"version":"0.14.9"}}}`)
	r := BuildCheckReport(findIn(t, newMemoryAccess(t, manifests), ""))
	checkTexts(t, FormatCheckReport(r), []string{"chart 0.14.9", "value speaker.wanConfig of the chart: the timers of the gossip are fixed"}, nil)
	if r.Result != report.ResultNotWell {
		t.Errorf("the result is %s", r.Result)
	}
}

func TestCheckSaysWhichRightsLack(t *testing.T) {
	a := newMemoryAccess(t, byHelm())
	a.forbidden = []string{"secrets", "endpointslices"}
	f := findIn(t, a, "")
	r := BuildCheckReport(f)
	checkTexts(t, FormatCheckReport(r), []string{
		"chart unknown: reading it needs the right to list Secrets in namespace metallb-system",
		"Not seen, because you have no right to: list secrets in namespace metallb-system; list endpointslices.discovery.k8s.io in namespace metallb-system",
	}, []string{"nobody answers"})
	if r.Result != report.ResultUnknown {
		t.Errorf("the result is %s", r.Result)
	}
	a.forbidden = []string{"deployments"}
	for _, action := range findIn(t, a, "").ListActions() {
		if strings.Contains(action.Text, "conversion webhook") {
			t.Errorf("a user who cannot see whether MetalLB's controller runs may %s", action.Text)
		}
	}
}

// TestCheckNamesWhatHasNoCounterpart has objects that only MetalLB, or an older one, reads.
func TestCheckNamesWhatHasNoCounterpart(t *testing.T) {
	frrMode := strings.Replace(byHelm(), "name: speaker, image", "name: speaker, env: [{name: METALLB_BGP_TYPE, value: frr}], image", 1)
	a := newMemoryAccess(t, frrMode+`
apiVersion: metallb.io/v1beta1
kind: AddressPool
metadata: {name: old, namespace: metallb-system}
---
apiVersion: frrk8s.metallb.io/v1beta1
kind: FRRConfiguration
metadata: {name: own, namespace: frr-k8s-system}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: bgpextras, namespace: metallb-system}
data: {extras: "ip nht resolve-via-default"}
---
apiVersion: frrk8s.metallb.io/v1beta1
kind: FRRConfiguration
metadata: {name: metallb-node1, namespace: metallb-system}
spec: {nodeSelector: {matchLabels: {kubernetes.io/hostname: node1}}}
---
apiVersion: metallb.io/v1beta2
kind: BGPPeer
metadata: {name: second, namespace: metallb-system}
spec: {myASN: 64512, peerASN: 64513, peerAddress: 203.0.113.2, bfdProfile: missing}
---
apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata: {name: mixed, namespace: metallb-system}
spec: {addresses: ["192.0.2.1-2001:db8::1"], serviceAllocation: {namespaceSelectors: [{matchLabels: {tier: none}}]}}
---
`)
	checkTexts(t, FormatCheckReport(BuildCheckReport(findIn(t, a, ""))), []string{
		"AddressPool metallb-system/old: Gantry reads IPAddressPools only", "FRRConfiguration frr-k8s-system/own: Gantry reads none", "ConfigMap metallb-system/bgpextras", "its BGP mode is frr",
		"BGPPeer second", "IPAddressPool mixed", "If the `namespaceSelectors` of a pool match no namespace", "It rejects a range that starts in one address family",
	}, []string{"FRRConfiguration metallb-system/metallb-node1"})
}

// frrK8sManifests are FRR-K8s and what the speakers of MetalLB write for it, on two nodes.
const frrK8sManifests = `
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: NAME, namespace: metallb-system, labels: {app.kubernetes.io/name: frr-k8s, app.kubernetes.io/component: frr-k8s}, annotations: {OWNER}}
spec:
  template:
    spec:
      hostNetwork: true
      containers:
      - {name: frr-k8s, image: "quay.io/metallb/frr-k8s:v0.0.17", ports: [{containerPort: 7572}]}
      - {name: frr, image: "quay.io/frrouting/frr:9.1.0"}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: WEBHOOK, namespace: metallb-system, labels: {app.kubernetes.io/name: frr-k8s, app.kubernetes.io/component: frr-k8s}, annotations: {OWNER}}
spec: {template: {spec: {containers: [{name: webhook, image: "quay.io/metallb/frr-k8s:v0.0.17"}]}}}
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {name: frr-k8s-validating-webhook-configuration}
webhooks:
- {name: frrconfigurationsvalidationwebhook.metallb.io, clientConfig: {service: {name: PREFIXfrr-k8s-webhook-service, namespace: metallb-system}}}
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: frrconfigurations.frrk8s.metallb.io, annotations: {OWNER}}
spec: {group: frrk8s.metallb.io}
---
apiVersion: frrk8s.metallb.io/v1beta1
kind: FRRConfiguration
metadata: {name: metallb-node1, namespace: metallb-system}
spec: {nodeSelector: {matchLabels: {kubernetes.io/hostname: node1}}, bgp: {routers: [{asn: 64512, neighbors: [{asn: 64513, address: 203.0.113.1, port: 179}], prefixes: [198.51.100.7/32]}]}}
---
apiVersion: frrk8s.metallb.io/v1beta1
kind: FRRConfiguration
metadata: {name: metallb-node2, namespace: metallb-system}
spec: {nodeSelector: {matchLabels: {kubernetes.io/hostname: node2}}}
---
`

// withFRRK8s adds FRR-K8s as MetalLB's chart or its manifests leave it.
func withFRRK8s(manifests string) string {
	values := []string{"OWNER", "", "NAME", "frr-k8s-daemon", "WEBHOOK", "frr-k8s-webhook-server", "PREFIX", ""}
	if strings.Contains(manifests, "meta.helm.sh") {
		values = []string{"OWNER", "meta.helm.sh/release-name: metallb, meta.helm.sh/release-namespace: metallb-system", "NAME", "metallb-frr-k8s", "WEBHOOK", "metallb-frr-k8s-statuscleaner", "PREFIX", "metallb-"}
	}
	return withModeFRRK8s(manifests) + strings.NewReplacer(values...).Replace(frrK8sManifests)
}

// withModeFRRK8s lets MetalLB's speakers leave BGP to FRR-K8s.
func withModeFRRK8s(manifests string) string {
	return strings.Replace(manifests, "name: speaker, image", "name: speaker, env: [{name: METALLB_BGP_TYPE, value: frr-k8s}], image", 1)
}

// TestCheckStopsFRRK8sThatOnlyMetalLBUses: it has the BGP sessions, and would keep them when the
// speakers of MetalLB are gone.
func TestCheckStopsFRRK8sThatOnlyMetalLBUses(t *testing.T) {
	for name, want := range map[string]struct {
		manifests string
		texts     []string
	}{
		"Helm":      {byHelm(), []string{"kubectl -n metallb-system delete daemonset metallb-frr-k8s\n", "kubectl -n metallb-system delete deployment metallb-frr-k8s-statuscleaner\n"}},
		"manifests": {byManifests(), []string{"kubectl -n metallb-system delete daemonset frr-k8s-daemon\n", "kubectl -n metallb-system delete deployment frr-k8s-webhook-server\n"}},
	} {
		t.Run(name, func(t *testing.T) {
			f := findIn(t, newMemoryAccess(t, withFRRK8s(want.manifests)), "")
			answer := FormatCheckReport(BuildCheckReport(f))
			checkTexts(t, answer, append(want.texts,
				"its BGP mode is frr-k8s", "it has the BGP sessions, also after MetalLB's speakers have stopped", "2 frrconfigurations.frrk8s.metallb.io that MetalLB's speakers wrote",
				"stop FRR-K8s, which nobody but MetalLB uses", "kubectl delete validatingwebhookconfiguration frr-k8s-validating-webhook-configuration\n",
				"kubectl -n metallb-system delete frrconfigurations.frrk8s.metallb.io metallb-node1 metallb-node2\n",
			), []string{"Gantry reads none", "webhook frr-k8s-validating"})
			if stopped := strings.Index(answer, "stop MetalLB's speakers"); stopped < 0 || stopped > strings.Index(answer, "stop FRR-K8s") {
				t.Errorf("FRR-K8s stops before MetalLB's speakers, which would write its configuration again:\n%s", answer)
			}
		})
	}
}

// TestCheckKeepsFRRK8sOfUsers: users have an FRRConfiguration, which needs FRR-K8s.
func TestCheckKeepsFRRK8sOfUsers(t *testing.T) {
	f := findIn(t, newMemoryAccess(t, withFRRK8s(byManifests())+`
apiVersion: frrk8s.metallb.io/v1beta1
kind: FRRConfiguration
metadata: {name: metallb-extras, namespace: metallb-system}
spec: {nodeSelector: {}, bgp: {routers: [{asn: 64512, neighbors: [{asn: 64513, address: 203.0.113.9}]}]}}
---
`), "")
	checkTexts(t, FormatCheckReport(BuildCheckReport(f)), []string{
		"FRRConfiguration metallb-system/metallb-extras: Gantry reads none", "FRR-K8s stays for your own FRRConfigurations",
		"kubectl -n metallb-system delete frrconfigurations.frrk8s.metallb.io metallb-node1 metallb-node2\n",
	}, []string{"delete daemonset frr-k8s", "delete deployment frr-k8s", "validatingwebhookconfiguration frr-k8s"})
}

// TestCheckHasNoStepForFRRK8sThatIsGone: MetalLB's speakers still have the mode.
func TestCheckHasNoStepForFRRK8sThatIsGone(t *testing.T) {
	f := findIn(t, newMemoryAccess(t, withModeFRRK8s(byManifests())), "")
	checkTexts(t, FormatCheckReport(BuildCheckReport(f)), []string{"its BGP mode is frr-k8s", "stop MetalLB's speakers"}, []string{"stop FRR-K8s", "end the BGP sessions"})
}

// TestBrokenConversionIsNoError: the list of BGPPeers fails when nobody answers for the webhook.
func TestBrokenConversionIsNoError(t *testing.T) {
	a := newMemoryAccess(t, byHelm())
	a.failures["bgppeers"] = errors.New("conversion webhook for metallb.io/v1beta1, Kind=BGPPeer failed")
	r := BuildCheckReport(findIn(t, a, ""))
	checkTexts(t, FormatCheckReport(r), []string{"bgppeers.metallb.io: conversion webhook for"}, nil)
}

// TestCheckNamesOtherProducts: kube-vip gave the addresses.
func TestCheckNamesOtherProducts(t *testing.T) {
	manifests := strings.Replace(byHelm(), "metadata: {name: stray, namespace: default}", `metadata: {name: stray, namespace: default, managedFields: [{manager: kube-vip, operation: Update, apiVersion: v1, subresource: status, time: "2026-03-01T11:59:01Z", fieldsType: FieldsV1, fieldsV1: {"f:status": {"f:loadBalancer": {"f:ingress": {}}}}}]}`, 1)
	manifests = strings.Replace(manifests, "[{ip: 10.9.9.9}]", "[{ip: 10.9.9.9}, {ip: 10.9.9.8}]", 1)
	r := BuildCheckReport(findIn(t, newMemoryAccess(t, manifests), ""))
	checkTexts(t, FormatCheckReport(r), []string{
		"1 Services have addresses from another program (kube-vip): they keep them if a pool has them", "kubectl -n default annotate service stray gantry.dev/address-count=2", "unless the pool allows more",
	}, nil)
}

// TestEmptyClusterHasNoSteps has nothing of MetalLB.
func TestEmptyClusterHasNoSteps(t *testing.T) {
	r := BuildCheckReport(findIn(t, newMemoryAccess(t, ""), ""))
	if r.Answer != "there is nothing of MetalLB in the cluster" || r.Result != report.ResultWell {
		t.Errorf("it says %+v", r)
	}
}

// TestDifferencesAreThoseOfPage compares the list with that of docs/differences.md.
func TestDifferencesAreThoseOfPage(t *testing.T) {
	text, err := os.ReadFile("../../../docs/differences.md")
	if err != nil {
		t.Fatal(err)
	}
	var want, got []string
	for _, item := range strings.Split(string(text), "\n- ")[1:] {
		want = append(want, strings.Join(strings.Fields(item), " "))
	}
	for _, d := range differences() {
		got = append(got, d.text)
	}
	if !slices.Equal(got, want) || len(got) == 0 {
		t.Errorf("the list of the plugin is\n%s\nand that of the page\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
