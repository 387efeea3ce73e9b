package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/test/cluster"
	"github.com/gantry-lb/gantry/test/lab"
	"github.com/gantry-lb/gantry/test/lab/router"
	"github.com/gantry-lb/gantry/test/packages"
)

// TestInstallAndUninstallByEveryPackage installs Gantry in each way that the README describes, with
// the programs of the container image, checks it, and uninstalls it. ARP, NDP, BGP, BFD and the
// steering around dead nodes run under the default seccomp profile. At the end the test reads the
// audit log: no request of the service accounts was denied, and no right of any overlay, or of any
// values of the chart that change the rights, was unused.
func TestInstallAndUninstallByEveryPackage(t *testing.T) {
	t.Parallel()
	if m := packages.DescribeUnbuiltHelmOrKustomize(); m != "" {
		t.Skip(m)
	}
	if m := router.DescribeMissingPrerequisite(router.FRR); m != "" {
		t.Skip(m)
	}
	ctx, s := startLabWithoutGantry(t, lab.Options{Nodes: 2, Families: lab.DualStack, GantryBinDir: unpackImage(t), AuditedNamespace: names.DefaultNamespace})
	failOnError(t, s.ApplyManifests(ctx, fakePrometheusOperatorCRDsManifest))
	failOnError(t, s.ApplyManifests(ctx, backendManifest))
	failOnError(t, s.RouterOnHost("router", router.FRR).StartWithConfig(ctx, readFRRConfigFromDocs(t)+frrBFDConfig+"router bgp 65000\n neighbor nodes password p\n"))
	t.Run("dist/gantry.yaml", func(t *testing.T) {
		text, err := packages.RenderKustomize(ctx, "default")
		failOnError(t, err)
		failOnError(t, s.ApplyManifests(ctx, text))
		failOnError(t, s.AwaitGantryRollout(ctx))
		applyAndCheckFirstService(ctx, t, s, "plain")
		for _, account := range []string{"gantry-speaker", "gantry-controller"} {
			checkWhetherServiceAccountMay(ctx, t, s, account, "get secrets/router-password", "yes")
			checkWhetherServiceAccountMay(ctx, t, s, account, "list secrets", "no")
			checkWhetherServiceAccountMay(ctx, t, s, account, "watch secrets", "no")
		}
		checkNoEndpointsReported(ctx, t, s)
		checkProbedServiceReachable(ctx, t, s)
		awaitBGPSessionBFDStates(ctx, t, s, "node1 router Up Watched", "node2 router Up Watched")
		runKubectl(ctx, t, s, "", "-n", names.DefaultNamespace, "delete", "bgppeer", "router")
		runKubectl(ctx, t, s, "", "-n", names.DefaultNamespace, "wait", "bgpsessions", "--all", "--for=delete", "--timeout=3m")
		runKubectl(ctx, t, s, text, "delete", "-f", "-")
		checkNoInstalledObjectLeft(ctx, t, s)
	})
	for overlay, check := range map[string]func(context.Context, *testing.T, *cluster.Cluster){
		"l2-only": checkNoAccessToSecrets, "continuity": checkSteeringAroundDeadNode, "prometheus": checkMetricsEndpoints, "webhook": checkWebhookRefusals,
	} {
		t.Run("config/"+overlay, func(t *testing.T) {
			dir := filepath.Join(lab.RepositoryRoot(), "config", overlay)
			runKubectl(ctx, t, s, "", "apply", "-k", dir)
			failOnError(t, s.AwaitGantryRollout(ctx))
			applyAndCheckFirstService(ctx, t, s, overlay)
			check(ctx, t, s)
			runKubectl(ctx, t, s, "", "delete", "-k", dir)
			checkNoInstalledObjectLeft(ctx, t, s)
		})
	}
	t.Run("all overlays are uninstalled with config/default", func(t *testing.T) { testOverlaysGoWithDefaultInstallation(ctx, t, s) })
	t.Run("charts/gantry", func(t *testing.T) { testHelmChartInstallsAndUninstalls(ctx, t, s) })
	rights := append(readRightsOfOverlays(t), testReleasesWithOtherRights(ctx, t, s)...)
	checkRBACMatchesAuditLog(t, filepath.Join(s.Dir(), "logs", "audit.log"), rights)
}

// testOverlaysGoWithDefaultInstallation installs the overlays one over the other, and uninstalls
// the default installation. Nothing of the overlays is left: the webhook's configuration goes with
// its Namespace, and a new installation takes a pool.
func testOverlaysGoWithDefaultInstallation(ctx context.Context, t *testing.T, s *cluster.Cluster) {
	dir := filepath.Join(lab.RepositoryRoot(), "config")
	for _, overlay := range []string{"prometheus", "continuity", "l2-only", "webhook"} {
		runKubectl(ctx, t, s, "", "apply", "-k", filepath.Join(dir, overlay))
	}
	failOnError(t, s.AwaitGantryRollout(ctx))
	applyAndCheckFirstService(ctx, t, s, "refused")
	runKubectl(ctx, t, s, "", "delete", "-k", filepath.Join(dir, "default"))
	runKubectl(ctx, t, s, "", "wait", "validatingwebhookconfiguration/gantry-webhook", "--for=delete", "--timeout=1m")
	checkNoInstalledObjectLeft(ctx, t, s)
	runKubectl(ctx, t, s, "", "apply", "-k", filepath.Join(dir, "default"))
	failOnError(t, s.AwaitGantryRollout(ctx))
	applyAndCheckFirstService(ctx, t, s, "accepted")
	runKubectl(ctx, t, s, "", "delete", "-k", filepath.Join(dir, "default"))
	checkNoInstalledObjectLeft(ctx, t, s)
}

// backendManifest is the backend of every Service in this test, with a Pod on each node.
const backendManifest = `apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: web}}}
      containers:
      - {name: web, image: web, ports: [{containerPort: 80}]}
`

// fakePrometheusOperatorCRDsManifest replace those of the Prometheus operator. The API server
// accepts any object of these kinds.
const fakePrometheusOperatorCRDsManifest = `apiVersion: apiextensions.k8s.io/v1
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

// oneObjectOfEveryUserKindManifest has an object of each kind that users write, except the pool and
// its L2Advertisement.
const oneObjectOfEveryUserKindManifest = `apiVersion: metallb.io/v1beta1
kind: Community
metadata: {name: communities, namespace: metallb-system}
spec: {communities: [{name: vpn-only, value: "1234:1"}]}
---
apiVersion: metallb.io/v1beta1
kind: BFDProfile
metadata: {name: fast, namespace: metallb-system}
spec: {receiveInterval: 200, transmitInterval: 200, detectMultiplier: 15}
---
apiVersion: metallb.io/v1beta2
kind: BGPPeer
metadata: {name: router, namespace: metallb-system}
spec: {myASN: 64512, peerASN: 65000, peerAddress: 192.168.0.1, bfdProfile: fast, passwordSecret: {name: router-password}}
---
apiVersion: v1
kind: Secret
metadata: {name: router-password, namespace: metallb-system}
type: kubernetes.io/basic-auth
stringData: {password: p}
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

// unpackImage builds the container image, as `make image` does, and returns a directory with its
// files.
func unpackImage(t *testing.T) string {
	t.Helper()
	bin, dir := filepath.Join(lab.RepositoryRoot(), "bin"), t.TempDir()
	archive := filepath.Join(dir, "image.tar")
	out, err := exec.Command(filepath.Join(bin, "image"), "-bin", bin, "-o", archive).CombinedOutput()
	if err != nil {
		t.Fatalf("building the image: %v\n%s", err, out)
	}
	img, err := packages.ReadImageArchive(archive)
	failOnError(t, err)
	failOnError(t, img.WriteFiles(filepath.Join(dir, "root")))
	return filepath.Join(dir, "root")
}

func runKubectl(ctx context.Context, t *testing.T, s *cluster.Cluster, stdin string, args ...string) string {
	t.Helper()
	out, err := s.RunKubectl(ctx, stdin, args...)
	failOnError(t, err)
	return out
}

// applyAndCheckFirstService applies a pool, an advertisement and a Service, and checks that a
// client reaches its address.
func applyAndCheckFirstService(ctx context.Context, t *testing.T, s *cluster.Cluster, service string) {
	t.Helper()
	failOnError(t, s.ApplyManifests(ctx, cluster.FirstPoolAndL2AdvertisementManifest+"---\n"+oneObjectOfEveryUserKindManifest))
	runKubectl(ctx, t, s, "", "expose", "deployment", "web", "--name", service, "--port=80", "--type=LoadBalancer")
	checkFirstPoolAddressReachable(ctx, t, s, service)
	runKubectl(ctx, t, s, "", "delete", "service", service)
}

// checkNoEndpointsReported checks that the condition of a Service without Pods says that no node
// announces it.
func checkNoEndpointsReported(ctx context.Context, t *testing.T, s *cluster.Cluster) {
	t.Helper()
	runKubectl(ctx, t, s, "", "create", "service", "loadbalancer", "unserved", "--tcp=80")
	runKubectl(ctx, t, s, "", "wait", "service/unserved", "--for=condition="+names.ConditionAnnounced+"=False", "--timeout=3m")
	runKubectl(ctx, t, s, "", "delete", "service", "unserved")
}

// checkProbedServiceReachable checks that clients reach a Service with addresses of both families,
// for which nodes have asked on the network first.
func checkProbedServiceReachable(ctx context.Context, t *testing.T, s *cluster.Cluster) {
	t.Helper()
	failOnError(t, s.ApplyManifests(ctx, poolWithProbeAndUsedAddressesManifest+`---
apiVersion: v1
kind: Service
metadata: {name: probed, annotations: {metallb.io/address-pool: asking}}
spec: {type: LoadBalancer, ipFamilyPolicy: RequireDualStack, selector: {app: web}, ports: [{port: 80}]}
`))
	addresses, err := s.AwaitServiceAddressCount(ctx, "default", "probed", 2)
	failOnError(t, err)
	for _, a := range addresses {
		_, err = s.FetchURLUntilSuccess(ctx, "client", "http://"+netip.AddrPortFrom(a, 80).String()+"/")
		failOnError(t, err)
	}
	runKubectl(ctx, t, s, "", "delete", "service", "probed")
}

// checkSteeringAroundDeadNode kills a node. The other one steers connections around it until it
// returns, and corrects what its speaker wrote.
func checkSteeringAroundDeadNode(ctx context.Context, t *testing.T, s *cluster.Cluster) {
	awaitBGPSessionBFDStates(ctx, t, s, "node1 router Up Watched", "node2 router Up Watched")
	runKubectl(ctx, t, s, "", "expose", "deployment", "web", "--name", "steered", "--port=80", "--type=LoadBalancer")
	checkFirstPoolAddressReachable(ctx, t, s, "steered")
	failOnError(t, s.KillNode(ctx, "node2"))
	failOnError(t, awaitTable(ctx, s, "node1"))
	runKubectl(ctx, t, s, "", "-n", names.DefaultNamespace, "wait", "speakerstatus/node2", "--for=condition="+names.ConditionSpeakerReady+"=False", "--timeout=1m")
	failOnError(t, s.ReviveNode(ctx, "node2"))
	failOnError(t, s.AwaitGantryRollout(ctx))
	runKubectl(ctx, t, s, "", "delete", "service", "steered")
}

// checkFirstPoolAddressReachable checks that the Service has the first address of the pool and that
// a client reaches it.
func checkFirstPoolAddressReachable(ctx context.Context, t *testing.T, s *cluster.Cluster, service string) {
	t.Helper()
	a, err := s.AwaitFirstAddressOfService(ctx, "default", service)
	failOnError(t, err)
	if a.String() != "192.168.0.201" {
		t.Errorf("the first Service has the address %v, want the first of the pool, 192.168.0.201", a)
	}
	_, err = s.FetchURLUntilSuccess(ctx, "client", "http://"+a.String()+"/")
	failOnError(t, err)
}

// checkNoInstalledObjectLeft checks that the cluster has no object of the installation any more.
func checkNoInstalledObjectLeft(ctx context.Context, t *testing.T, s *cluster.Cluster) {
	t.Helper()
	out := runKubectl(ctx, t, s, "", "get", "-o", "name", "namespaces,customresourcedefinitions,clusterroles,clusterrolebindings,"+
		"validatingwebhookconfigurations,mutatingwebhookconfigurations,validatingadmissionpolicies,validatingadmissionpolicybindings,priorityclasses")
	for _, line := range strings.Fields(out) {
		if strings.Contains(line, "gantry") || strings.Contains(line, "metallb") {
			t.Errorf("%s is left after the uninstallation", line)
		}
	}
}

// checkWhetherServiceAccountMay checks whether a service account has a right in Gantry's namespace:
// a verb and a resource, with the name of an object or without.
func checkWhetherServiceAccountMay(ctx context.Context, t *testing.T, s *cluster.Cluster, account, right, want string) {
	t.Helper()
	// The API server sees a Role some time after it was written.
	failOnError(t, cluster.AwaitNoError(ctx, "the rights of "+account, func(ctx context.Context) error {
		verb, resource, _ := strings.Cut(right, " ")
		out, _ := s.RunKubectl(ctx, "", "auth", "can-i", verb, resource, "-n", names.DefaultNamespace, "--as=system:serviceaccount:"+names.DefaultNamespace+":"+account)
		if strings.TrimSpace(out) != want {
			return fmt.Errorf("may %s %s: %s, want %s", account, right, out, want)
		}
		return nil
	}))
}

func checkNoAccessToSecrets(ctx context.Context, t *testing.T, s *cluster.Cluster) {
	for _, account := range []string{"gantry-speaker", "gantry-controller"} {
		checkWhetherServiceAccountMay(ctx, t, s, account, "get secrets", "no")
		checkWhetherServiceAccountMay(ctx, t, s, account, "list secrets", "no")
	}
}

// checkMetricsEndpoints fetches the metrics as Prometheus does: from each endpoint of the Services
// that the ServiceMonitors select, with the token of its service account. Others get no metrics.
func checkMetricsEndpoints(ctx context.Context, t *testing.T, s *cluster.Cluster) {
	failOnError(t, s.ApplyManifests(ctx, "apiVersion: v1\nkind: Namespace\nmetadata: {name: monitoring}\n---\napiVersion: v1\nkind: ServiceAccount\nmetadata: {name: prometheus-k8s, namespace: monitoring}\n"))
	token := strings.TrimSpace(runKubectl(ctx, t, s, "", "create", "token", "prometheus-k8s", "-n", "monitoring"))
	tenants := strings.TrimSpace(runKubectl(ctx, t, s, "", "create", "token", "default", "-n", "default"))
	for component, port := range map[string]string{"controller": "7472", "speaker": "7473"} {
		runKubectl(ctx, t, s, "", "-n", names.DefaultNamespace, "get", "servicemonitor", "gantry-"+component)
		// The EndpointSlices follow the Pods.
		failOnError(t, cluster.AwaitNoError(ctx, "the metrics of the "+component, func(ctx context.Context) error {
			out, err := s.RunKubectl(ctx, "", "-n", names.DefaultNamespace, "get", "endpointslices", "-l", "app.kubernetes.io/component="+component,
				"-o", `jsonpath={range .items[*].endpoints[*]}{.addresses[0]}{"\n"}{end}`)
			if err != nil {
				return err
			}
			endpoints, loaded := strings.Fields(out), 0
			for _, e := range endpoints {
				text, err := s.FetchMetrics(ctx, "client", e+":"+port, token)
				if err != nil {
					return err
				}
				if _, err := s.FetchMetrics(ctx, "client", e+":"+port, tenants); err == nil || !strings.Contains(err.Error(), "403") {
					return fmt.Errorf("a tenant gets the metrics of %s, or another error than 403: %v", e, err)
				}
				if strings.Contains(text, "\nmetallb_k8s_client_config_loaded_bool 1\n") {
					loaded++
				}
			}
			// Only the leader of the controllers has a configuration, and every speaker has one.
			if want := map[string]int{"controller": 1, "speaker": 2}[component]; loaded != want || len(endpoints) != 2 {
				return fmt.Errorf("the endpoints are %v, want two; %d report a loaded configuration, want %d", endpoints, loaded, want)
			}
			return nil
		}))
	}
	runKubectl(ctx, t, s, "", "-n", names.DefaultNamespace, "get", "prometheusrule", "gantry")
}

// checkWebhookRefusals checks that the webhook denies faulty objects, and only warns of what
// another object may still mend.
func checkWebhookRefusals(ctx context.Context, t *testing.T, s *cluster.Cluster) {
	overlapping := strings.Replace(strings.Split(cluster.FirstPoolAndL2AdvertisementManifest, "---")[0], "first-pool", "second-pool", 1)
	faulty := strings.Replace(overlapping, "192.168.0.201-192.168.0.233", "192.168.0.243-192.168.0.240", 1)
	// The API server sees the webhook's configuration some time after it was written.
	failOnError(t, cluster.AwaitNoError(ctx, "the webhook", func(ctx context.Context) error {
		_, err := s.RunKubectl(ctx, faulty, "apply", "--dry-run=server", "-f", "-")
		if err == nil || !strings.Contains(err.Error(), "denied the request") {
			return fmt.Errorf("a pool whose range ends before it starts gives %v", err)
		}
		return nil
	}))
	_, err := s.RunKubectl(ctx, overlapping, "apply", "--dry-run=server", "--warnings-as-errors", "-f", "-")
	if err == nil || strings.Contains(err.Error(), "denied the request") || !strings.Contains(err.Error(), "first-pool") {
		t.Errorf("a pool that overlaps another gives %v, want a warning with the name of the other", err)
	}
	if _, err := s.RunKubectl(ctx, "", "-n", names.DefaultNamespace, "delete", "bfdprofile", "fast"); err == nil || !strings.Contains(err.Error(), "router") {
		t.Errorf("deleting a BFDProfile in use gives %v, want an error with the name of the BGPPeer", err)
	}
	failOnError(t, s.ApplyManifests(ctx, strings.Replace(overlapping, "192.168.0.201-192.168.0.233", "192.168.0.240/29", 1)))
	elsewhere := strings.NewReplacer("second-pool", "lost-pool", "namespace: metallb-system", "namespace: default", "192.168.0.201-192.168.0.233", "10.9.8.7").Replace(overlapping)
	if err := s.ApplyManifests(ctx, elsewhere); err == nil || !strings.Contains(err.Error(), names.DefaultNamespace) {
		t.Errorf("a pool in another namespace gives %v, want an error with the right namespace", err)
	}
}

// testHelmChartInstallsAndUninstalls installs, upgrades and uninstalls the chart with Helm.
func testHelmChartInstallsAndUninstalls(ctx context.Context, t *testing.T, s *cluster.Cluster) {
	helm := func(args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(ctx, filepath.Join(lab.RepositoryRoot(), "bin", "helm"), append(args, "--namespace", names.DefaultNamespace)...)
		cmd.Env = append(os.Environ(), "KUBECONFIG="+s.Kubeconfig(), "HELM_CACHE_HOME="+t.TempDir(), "HELM_CONFIG_HOME="+t.TempDir(), "HELM_DATA_HOME="+t.TempDir())
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("helm %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return string(out)
	}
	dir := filepath.Join(lab.RepositoryRoot(), "charts", "gantry")
	if out := helm(append([]string{"install", "gantry", dir, "--create-namespace"}, packages.HelmImageArguments()...)...); !strings.Contains(out, "rollout status deployment/gantry-controller") {
		t.Errorf("the notes lack the next step:\n%s", out)
	}
	failOnError(t, s.AwaitGantryRollout(ctx))
	applyAndCheckFirstService(ctx, t, s, "first")
	runKubectl(ctx, t, s, "", "expose", "deployment", "web", "--name", "kept", "--port=80", "--type=LoadBalancer")
	checkFirstPoolAddressReachable(ctx, t, s, "kept")
	helm("upgrade", "gantry", dir, "--reuse-values", "--set", "webhook.enabled=true,prometheus.enabled=true,logLevel=debug")
	failOnError(t, s.AwaitGantryRollout(ctx))
	checkFirstPoolAddressReachable(ctx, t, s, "kept")
	checkWebhookRefusals(ctx, t, s)
	runKubectl(ctx, t, s, "", "delete", "service", "kept")
	helm("uninstall", "gantry")
	if out := runKubectl(ctx, t, s, "", "-n", names.DefaultNamespace, "get", "ipaddresspools", "-o", "name"); !strings.Contains(out, "first-pool") {
		t.Errorf("uninstalling the release has deleted the pools; left are %q", out)
	}
	kinds := strings.Fields(runKubectl(ctx, t, s, "", "get", "customresourcedefinitions", "-o", "name"))
	for i, k := range kinds {
		if strings.HasSuffix(k, ".metallb.io") || strings.HasSuffix(k, ".gantry.dev") {
			runKubectl(ctx, t, s, "", "delete", kinds[i])
		}
	}
	runKubectl(ctx, t, s, "", "delete", "namespace", names.DefaultNamespace)
	checkNoInstalledObjectLeft(ctx, t, s)
}
