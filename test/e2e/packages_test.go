package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/test/lab"
	"github.com/gantry-lb/gantry/test/packages"
	"github.com/gantry-lb/gantry/test/stage"
)

// TestPackages installs Gantry in each of the ways that the README names, from the programs in the container image, tries
// it, and takes it away again. At the end it looks at what the service accounts did: nothing was refused, and no right was
// unused.
func TestPackages(t *testing.T) {
	if m := packages.Missing(); m != "" {
		t.Skip(m)
	}
	ctx, s := startBare(t, lab.Options{Nodes: 2, BinDir: unpackImage(t), Audited: names.Namespace})
	must(t, s.Apply(ctx, monitoringKinds))
	must(t, s.Apply(ctx, backend))
	t.Run("dist/gantry.yaml", func(t *testing.T) {
		text, err := packages.Kustomize(ctx, "default")
		must(t, err)
		must(t, s.Apply(ctx, text))
		must(t, s.AwaitRollout(ctx))
		tryOut(ctx, t, s, "plain")
		mayRead(ctx, t, s, "gantry-speaker", "secrets", "yes")
		unserved(ctx, t, s)
		kubectl(ctx, t, s, "", "-n", names.Namespace, "delete", "bgppeer", "router")
		kubectl(ctx, t, s, "", "-n", names.Namespace, "wait", "bgpsessions", "--all", "--for=delete", "--timeout=30s")
		kubectl(ctx, t, s, text, "delete", "-f", "-")
		nothingIsLeft(ctx, t, s)
	})
	for overlay, check := range map[string]func(context.Context, *testing.T, *stage.Stage){
		"l2-only": layer2Only, "prometheus": scraped, "webhook": refused,
	} {
		t.Run("config/"+overlay, func(t *testing.T) {
			dir := filepath.Join(lab.Root(), "config", overlay)
			kubectl(ctx, t, s, "", "apply", "-k", dir)
			must(t, s.AwaitRollout(ctx))
			tryOut(ctx, t, s, overlay)
			check(ctx, t, s)
			kubectl(ctx, t, s, "", "delete", "-k", dir)
			nothingIsLeft(ctx, t, s)
		})
	}
	t.Run("charts/gantry", func(t *testing.T) { chart(ctx, t, s) })
	checkRights(t, filepath.Join(s.Dir(), "logs", "audit.log"))
}

// backend answers for every Service of this test.
const backend = `apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - {name: web, image: web, ports: [{containerPort: 80}]}
`

// monitoringKinds stand in for the Prometheus operator's: the API server takes any object of them.
const monitoringKinds = `apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: servicemonitors.monitoring.coreos.com}
spec:
  group: monitoring.coreos.com
  scope: Namespaced
  names: {kind: ServiceMonitor, plural: servicemonitors, singular: servicemonitor, listKind: ServiceMonitorList}
  versions:
  - {name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: prometheusrules.monitoring.coreos.com}
spec:
  group: monitoring.coreos.com
  scope: Namespaced
  names: {kind: PrometheusRule, plural: prometheusrules, singular: prometheusrule, listKind: PrometheusRuleList}
  versions:
  - {name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}
`

// everyKind is an object of each kind that users write beside the pool and its advertisement.
const everyKind = `apiVersion: metallb.io/v1beta1
kind: Community
metadata: {name: communities, namespace: metallb-system}
spec: {communities: [{name: vpn-only, value: "1234:1"}]}
---
apiVersion: metallb.io/v1beta1
kind: BFDProfile
metadata: {name: fast, namespace: metallb-system}
spec: {receiveInterval: 300}
---
apiVersion: metallb.io/v1beta2
kind: BGPPeer
metadata: {name: router, namespace: metallb-system}
spec: {myASN: 64500, peerASN: 64501, peerAddress: 192.168.0.1, bfdProfile: fast}
---
apiVersion: metallb.io/v1beta1
kind: BGPAdvertisement
metadata: {name: everything, namespace: metallb-system}
spec: {communities: [vpn-only]}
---
apiVersion: gantry.dev/v1alpha1
kind: AddressReservation
metadata: {name: later, namespace: metallb-system}
spec: {service: {namespace: default, name: later}, addresses: [192.168.0.233]}
`

// unpackImage makes the container image as `make image` does and returns a directory with its programs.
func unpackImage(t *testing.T) string {
	t.Helper()
	bin, dir := filepath.Join(lab.Root(), "bin"), t.TempDir()
	archive := filepath.Join(dir, "image.tar")
	out, err := exec.Command(filepath.Join(bin, "image"), "-bin", bin, "-o", archive).CombinedOutput()
	if err != nil {
		t.Fatalf("making the image: %v\n%s", err, out)
	}
	img, err := packages.ReadImage(archive)
	must(t, err)
	must(t, img.Unpack(filepath.Join(dir, "root")))
	return filepath.Join(dir, "root")
}

func kubectl(ctx context.Context, t *testing.T, s *stage.Stage, stdin string, args ...string) string {
	t.Helper()
	out, err := s.Kubectl(ctx, stdin, args...)
	must(t, err)
	return out
}

// tryOut does what everybody does first: a pool, an advertisement, a Service; then a client fetches from its address.
func tryOut(ctx context.Context, t *testing.T, s *stage.Stage, service string) {
	t.Helper()
	must(t, s.Apply(ctx, stage.Pool+"---\n"+everyKind))
	kubectl(ctx, t, s, "", "expose", "deployment", "web", "--name", service, "--port=80", "--type=LoadBalancer")
	answers(ctx, t, s, service)
	kubectl(ctx, t, s, "", "delete", "service", service)
}

// unserved has a Service without Pods say why nobody announces it.
func unserved(ctx context.Context, t *testing.T, s *stage.Stage) {
	t.Helper()
	kubectl(ctx, t, s, "", "create", "service", "loadbalancer", "unserved", "--tcp=80")
	kubectl(ctx, t, s, "", "wait", "service/unserved", "--for=condition="+names.ConditionAnnounced+"=False", "--timeout=30s")
	kubectl(ctx, t, s, "", "delete", "service", "unserved")
}

// answers checks that the Service has the first address of the pool and that a client reaches it there.
func answers(ctx context.Context, t *testing.T, s *stage.Stage, service string) {
	t.Helper()
	a, err := s.Address(ctx, "default", service)
	must(t, err)
	if a.String() != "192.168.0.201" {
		t.Errorf("the first Service has the address %v, want the first of the pool, 192.168.0.201", a)
	}
	_, err = s.AwaitFetch(ctx, "client", "http://"+a.String()+"/")
	must(t, err)
}

// nothingIsLeft checks that the installation went without a trace.
func nothingIsLeft(ctx context.Context, t *testing.T, s *stage.Stage) {
	t.Helper()
	out := kubectl(ctx, t, s, "", "get", "-o", "name", "namespaces,customresourcedefinitions,clusterroles,clusterrolebindings,validatingwebhookconfigurations")
	for _, line := range strings.Fields(out) {
		if strings.Contains(line, "gantry") || strings.Contains(line, "metallb") {
			t.Errorf("after the uninstallation %s is left", line)
		}
	}
}

// mayRead checks whether a service account may list a resource in Gantry's namespace.
func mayRead(ctx context.Context, t *testing.T, s *stage.Stage, account, resource, want string) {
	t.Helper()
	out, _ := s.Kubectl(ctx, "", "auth", "can-i", "list", resource, "-n", names.Namespace, "--as=system:serviceaccount:"+names.Namespace+":"+account)
	if strings.TrimSpace(out) != want {
		t.Errorf("may %s list %s: %s, want %s", account, resource, out, want)
	}
}

func layer2Only(ctx context.Context, t *testing.T, s *stage.Stage) {
	mayRead(ctx, t, s, "gantry-speaker", "secrets", "no")
	mayRead(ctx, t, s, "gantry-controller", "secrets", "no")
}

// scraped fetches the metrics where the ServiceMonitors send Prometheus: from each endpoint of the Services that they select.
func scraped(ctx context.Context, t *testing.T, s *stage.Stage) {
	for component, port := range map[string]string{"controller": "7472", "speaker": "7473"} {
		kubectl(ctx, t, s, "", "-n", names.Namespace, "get", "servicemonitor", "gantry-"+component)
		out := kubectl(ctx, t, s, "", "-n", names.Namespace, "get", "endpointslices", "-l", "app.kubernetes.io/component="+component,
			"-o", `jsonpath={range .items[*].endpoints[*]}{.addresses[0]}{"\n"}{end}`)
		endpoints := strings.Fields(out)
		if len(endpoints) != 2 {
			t.Errorf("the metrics of the %s have the endpoints %v, want two", component, endpoints)
		}
		loaded := 0
		for _, e := range endpoints {
			text, err := s.AwaitFetch(ctx, "client", "http://"+e+":"+port+"/metrics")
			must(t, err)
			if strings.Contains(text, "\nmetallb_k8s_client_config_loaded_bool 1\n") {
				loaded++
			}
		}
		// Of the controllers, the one that leads has a configuration; every speaker does.
		if want := map[string]int{"controller": 1, "speaker": 2}[component]; loaded != want {
			t.Errorf("%d of the component %s say that they have a configuration, want %d", loaded, component, want)
		}
	}
	kubectl(ctx, t, s, "", "-n", names.Namespace, "get", "prometheusrule", "gantry")
}

// refused applies what contradicts an object that is there.
func refused(ctx context.Context, t *testing.T, s *stage.Stage) {
	overlapping := strings.Replace(strings.Split(stage.Pool, "---")[0], "first-pool", "second-pool", 1)
	err := s.Apply(ctx, overlapping)
	if err == nil || !strings.Contains(err.Error(), "denied the request") || !strings.Contains(err.Error(), "first-pool") {
		t.Errorf("a pool that overlaps another gave %v, want a refusal that names the other", err)
	}
	if _, err := s.Kubectl(ctx, "", "-n", names.Namespace, "delete", "bfdprofile", "fast"); err == nil || !strings.Contains(err.Error(), "router") {
		t.Errorf("deleting a BFDProfile in use gave %v, want a refusal that names the BGPPeer", err)
	}
	must(t, s.Apply(ctx, strings.Replace(overlapping, "192.168.0.201-192.168.0.233", "192.168.0.240/29", 1)))
	elsewhere := strings.NewReplacer("second-pool", "lost-pool", "namespace: metallb-system", "namespace: default", "192.168.0.201-192.168.0.233", "10.9.8.7").Replace(overlapping)
	if err := s.Apply(ctx, elsewhere); err == nil || !strings.Contains(err.Error(), names.Namespace) {
		t.Errorf("a pool in another namespace gave %v, want a refusal that names the right one", err)
	}
}

// chart installs, upgrades and uninstalls with Helm itself.
func chart(ctx context.Context, t *testing.T, s *stage.Stage) {
	helm := func(args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(ctx, filepath.Join(lab.Root(), "bin", "helm"), append(args, "--namespace", names.Namespace)...)
		cmd.Env = append(os.Environ(), "KUBECONFIG="+s.Kubeconfig(), "HELM_CACHE_HOME="+t.TempDir(), "HELM_CONFIG_HOME="+t.TempDir(), "HELM_DATA_HOME="+t.TempDir())
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("helm %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return string(out)
	}
	dir := filepath.Join(lab.Root(), "charts", "gantry")
	if out := helm("install", "gantry", dir, "--create-namespace"); !strings.Contains(out, "rollout status deployment/gantry-controller") {
		t.Errorf("the notes do not say how to go on:\n%s", out)
	}
	must(t, s.AwaitRollout(ctx))
	tryOut(ctx, t, s, "first")
	kubectl(ctx, t, s, "", "expose", "deployment", "web", "--name", "kept", "--port=80", "--type=LoadBalancer")
	answers(ctx, t, s, "kept")
	helm("upgrade", "gantry", dir, "--set", "webhook.enabled=true,prometheus.enabled=true,logLevel=debug")
	must(t, s.AwaitRollout(ctx))
	answers(ctx, t, s, "kept")
	refused(ctx, t, s)
	kubectl(ctx, t, s, "", "delete", "service", "kept")
	helm("uninstall", "gantry")
	if out := kubectl(ctx, t, s, "", "-n", names.Namespace, "get", "ipaddresspools", "-o", "name"); !strings.Contains(out, "first-pool") {
		t.Errorf("uninstalling the release took the pools away; left are %q", out)
	}
	kinds := strings.Fields(kubectl(ctx, t, s, "", "get", "customresourcedefinitions", "-o", "name"))
	for i, k := range kinds {
		if strings.HasSuffix(k, ".metallb.io") || strings.HasSuffix(k, ".gantry.dev") {
			kubectl(ctx, t, s, "", "delete", kinds[i])
		}
	}
	kubectl(ctx, t, s, "", "delete", "namespace", names.Namespace)
	nothingIsLeft(ctx, t, s)
}
