package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/test/cluster"
	"github.com/gantry-lb/gantry/test/packages"
)

// releaseWithOtherRights is a release of the chart whose values change the rights. Its name is how
// the names of its objects begin, so that the audit log shows which release made a request.
type releaseWithOtherRights struct {
	name, values string
	// prepare creates what the values name; nil for nothing.
	prepare func(context.Context, *testing.T, *cluster.Cluster)
	// check checks what the values change, while a Service is announced.
	check func(context.Context, *testing.T, *cluster.Cluster)
	// isLayer2Only says that the release has no BGP, hasOwnRoles that the user creates the roles.
	isLayer2Only, hasOwnRoles bool
}

// releasesWithOtherRights have together every value of the chart that changes the rights.
var releasesWithOtherRights = []releaseWithOtherRights{
	{
		name: "own-secrets", values: `bgp: {passwordSecrets: [router-password]}
controller: {metricsCertificateSecret: own-metrics-certificate}
speaker: {gossip: {secretName: own-gossip-key}, metricsCertificateSecret: own-metrics-certificate}
`,
		prepare: createOwnSecrets, check: checkOwnSecretsUsed,
	},
	{name: "layer2-only", values: "bgp: {enabled: false}\nmetrics: {protocol: http}\n", check: checkPlainMetrics, isLayer2Only: true},
	{name: "own-certificate", values: "webhook: {enabled: true, certificate: Secret}\n", prepare: createOwnWebhookCertificate, check: checkWebhookRefusals},
	{
		name: "for-prometheus", values: `prometheus: {enabled: true, dashboards: {enabled: false}, rbac: {create: true, serviceAccountName: prometheus, serviceAccountNamespace: metallb-system}}
controller: {serviceAccount: {name: address-controller}}
speaker: {serviceAccount: {name: address-speaker}}
`,
		prepare: createServiceAccountOfPrometheus, check: checkPrometheusFindsTargets,
	},
	{name: "own-roles", values: "rbac: {create: false}\nwebhook: {enabled: true}\n", check: checkWebhookRefusals, hasOwnRoles: true},
}

// testReleasesWithOtherRights installs each of the releases, and uses all that it may do. It
// returns their rights.
func testReleasesWithOtherRights(ctx context.Context, t *testing.T, s *cluster.Cluster) (rights []serviceAccountRight) {
	createNamespaceForSpeakers(ctx, t, s)
	for _, r := range releasesWithOtherRights {
		t.Run("charts/gantry, "+r.name, func(t *testing.T) {
			values := "fullnameOverride: " + r.name + "\n" + r.values
			manifests, err := packages.RenderHelm(ctx, names.DefaultNamespace, values, "--set", "rbac.create=true")
			failOnError(t, err)
			rights = append(rights, readGrantedRights(t, manifests)...)
			roles := selectRolesAndAccounts(t, manifests)
			if r.hasOwnRoles {
				failOnError(t, s.ApplyManifests(ctx, roles))
			}
			if r.prepare != nil {
				r.prepare(ctx, t, s)
			}
			installChart(ctx, t, s, values, r.name)
			useRightsOfRelease(ctx, t, s, r)
			runHelm(ctx, t, s, "", "uninstall", "gantry", "--cascade", "foreground", "--wait")
			if r.hasOwnRoles {
				runKubectl(ctx, t, s, roles, "delete", "-f", "-")
			}
			// The next release begins without what this one has written.
			runKubectl(ctx, t, s, "", "-n", names.DefaultNamespace, "delete", "--all", "configurationstates,addressledgers,speakerstatuses,bgpsessions,addressprobes,"+
				"ipaddresspools,l2advertisements,bgpadvertisements,bgppeers,bfdprofiles,communities,addressreservations,leases,secrets")
		})
	}
	return rights
}

// selectRolesAndAccounts returns the manifests of what rbac.create leaves to the user.
func selectRolesAndAccounts(t *testing.T, manifests string) string {
	t.Helper()
	objects, err := packages.SplitObjects(manifests)
	failOnError(t, err)
	var out []string
	for _, o := range objects {
		if slices.Contains([]string{"ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"}, o.GetKind()) {
			text, err := yaml.Marshal(o.Object)
			failOnError(t, err)
			out = append(out, string(text))
		}
	}
	return strings.Join(out, "---\n")
}

// useRightsOfRelease makes the programs use all their rights.
func useRightsOfRelease(ctx context.Context, t *testing.T, s *cluster.Cluster, r releaseWithOtherRights) {
	t.Helper()
	// The API server sees the CA of a webhook some time after it was written.
	failOnError(t, cluster.AwaitNoError(ctx, "the configuration", func(ctx context.Context) error {
		return s.ApplyManifests(ctx, cluster.FirstPoolAndL2AdvertisementManifest+"---\n"+oneObjectOfEveryUserKindManifest)
	}))
	if !r.isLayer2Only {
		awaitBGPSessionBFDStates(ctx, t, s, "node1 router Up Watched", "node2 router Up Watched")
	}
	runKubectl(ctx, t, s, "", "expose", "deployment", "web", "--name", r.name, "--port=80", "--type=LoadBalancer")
	checkFirstPoolAddressReachable(ctx, t, s, r.name)
	checkProbedServiceReachable(ctx, t, s)
	if !r.isLayer2Only {
		awaitStatusesOfService(ctx, t, s, "servicebgpstatuses", true)
		requestMetricsAsTenant(ctx, t, s)
	}
	r.check(ctx, t, s)
	runKubectl(ctx, t, s, "", "delete", "service", r.name)
	runKubectl(ctx, t, s, "", "-n", names.DefaultNamespace, "delete", "bgppeer", "router")
	for _, kind := range []string{"servicel2statuses", "servicebgpstatuses", "bgpsessions"} {
		awaitStatusesOfService(ctx, t, s, kind, false)
	}
}

// awaitStatusesOfService waits until there are objects of a kind that speakers write, or none.
func awaitStatusesOfService(ctx context.Context, t *testing.T, s *cluster.Cluster, kind string, want bool) {
	t.Helper()
	failOnError(t, cluster.AwaitNoError(ctx, kind, func(ctx context.Context) error {
		out, err := s.RunKubectl(ctx, "", "get", kind, "--all-namespaces", "-o", "name")
		if err == nil && want != (strings.TrimSpace(out) != "") {
			err = errors.New("there are these: " + out)
		}
		return err
	}))
}

// listPodAddresses returns the addresses of the Pods of a program.
func listPodAddresses(ctx context.Context, t *testing.T, s *cluster.Cluster, component string) []string {
	t.Helper()
	return strings.Fields(runKubectl(ctx, t, s, "", "-n", names.DefaultNamespace, "get", "pods", "-l", names.LabelComponent+"="+component, "-o", "jsonpath={.items[*].status.podIP}"))
}

// requestMetricsAsTenant checks that a tenant gets no metrics of any program.
func requestMetricsAsTenant(ctx context.Context, t *testing.T, s *cluster.Cluster) {
	t.Helper()
	token := strings.TrimSpace(runKubectl(ctx, t, s, "", "create", "token", "default", "-n", "default"))
	for component, port := range map[string]string{names.ComponentController: "7472", names.ComponentSpeaker: "7473"} {
		for _, a := range listPodAddresses(ctx, t, s, component) {
			if _, err := s.FetchMetrics(ctx, "client", a+":"+port, token); err == nil || !strings.Contains(err.Error(), "403") {
				t.Errorf("a tenant who asks the %s at %s for metrics gets %v, want the error 403", component, a, err)
			}
		}
	}
}

func checkPlainMetrics(ctx context.Context, t *testing.T, s *cluster.Cluster) {
	for component, port := range map[string]string{names.ComponentController: "7472", names.ComponentSpeaker: "7473"} {
		for _, a := range listPodAddresses(ctx, t, s, component) {
			text, err := s.FetchURLFromHost(ctx, "client", "http://"+a+":"+port+"/metrics")
			if err != nil || !strings.Contains(text, "\ngantry_build_info{") {
				t.Errorf("the %s at %s has no metrics by plain HTTP: %v", component, a, err)
			}
		}
	}
}

// ownMetricsName is the name for which the certificate of the metrics holds.
const ownMetricsName = "metrics.example"

func createOwnSecrets(ctx context.Context, t *testing.T, s *cluster.Cluster) {
	runKubectl(ctx, t, s, "", "-n", names.DefaultNamespace, "create", "secret", "generic", "own-gossip-key", "--from-literal=key=0123456789abcdef0123456789abcdef")
	createCertificateSecret(ctx, t, s, "own-metrics-certificate", ownMetricsName)
}

// checkOwnSecretsUsed checks that the programs read the Secrets that the values name, and no
// others, that the speakers hear each other with the key of the user, and that a reader can check
// the certificate of the metrics.
func checkOwnSecretsUsed(ctx context.Context, t *testing.T, s *cluster.Cluster) {
	for _, account := range []string{"own-secrets-speaker", "own-secrets-controller"} {
		checkWhetherServiceAccountMay(ctx, t, s, account, "get secrets/router-password", "yes")
		checkWhetherServiceAccountMay(ctx, t, s, account, "get secrets/own-gossip-key", "no")
	}
	checkWhetherServiceAccountMay(ctx, t, s, "own-secrets-speaker", "get secrets/gantry-gossip", "no")
	runKubectl(ctx, t, s, "", "-n", names.DefaultNamespace, "wait", "speakerstatus/node1", "speakerstatus/node2", "--for=condition="+names.ConditionGossipComplete, "--timeout=1m")
	var secret corev1.Secret
	failOnError(t, s.API.Get(ctx, client.ObjectKey{Namespace: names.DefaultNamespace, Name: "own-metrics-certificate"}, &secret))
	trusted := x509.NewCertPool()
	trusted.AppendCertsFromPEM(secret.Data[corev1.TLSCertKey])
	for component, port := range map[string]string{names.ComponentController: "7472", names.ComponentSpeaker: "7473"} {
		for _, a := range listPodAddresses(ctx, t, s, component) {
			c, err := s.NamespaceOfHost("client").Dial(ctx, "tcp", a+":"+port)
			failOnError(t, err)
			if err := tls.Client(c, &tls.Config{ServerName: ownMetricsName, RootCAs: trusted}).HandshakeContext(ctx); err != nil {
				t.Errorf("the metrics of the %s at %s have another certificate than the user's: %v", component, a, err)
			}
			failOnError(t, c.Close())
		}
	}
}

func createOwnWebhookCertificate(ctx context.Context, t *testing.T, s *cluster.Cluster) {
	createCertificateSecret(ctx, t, s, "gantry-webhook-certificate", "own-certificate-webhook."+names.DefaultNamespace+".svc")
}

// createCertificateSecret creates a Secret with a certificate, as a program for certificates does.
func createCertificateSecret(ctx context.Context, t *testing.T, s *cluster.Cluster, secret, dnsName string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	failOnError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{dnsName},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), BasicConstraintsValid: true, IsCA: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	failOnError(t, err)
	encodedKey, err := x509.MarshalPKCS8PrivateKey(key)
	failOnError(t, err)
	o := &corev1.Secret{Data: map[string][]byte{
		"ca.crt":                pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate}),
		corev1.TLSCertKey:       pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate}),
		corev1.TLSPrivateKeyKey: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: encodedKey}),
	}}
	o.Namespace, o.Name = names.DefaultNamespace, secret
	failOnError(t, s.API.Create(ctx, o))
}

func createServiceAccountOfPrometheus(ctx context.Context, t *testing.T, s *cluster.Cluster) {
	runKubectl(ctx, t, s, "", "-n", names.DefaultNamespace, "create", "serviceaccount", "prometheus")
}

// checkPrometheusFindsTargets does what a Prometheus does that has no rights of its own: it lists
// and watches the objects by which it finds its targets in the namespace of the release, and gets
// the metrics from them.
func checkPrometheusFindsTargets(ctx context.Context, t *testing.T, s *cluster.Cluster) {
	token := strings.TrimSpace(runKubectl(ctx, t, s, "", "-n", names.DefaultNamespace, "create", "token", "prometheus"))
	admin, err := s.RESTConfig()
	failOnError(t, err)
	config := rest.AnonymousClientConfig(admin)
	config.BearerToken, config.WarningHandler = token, rest.NoWarnings{}
	prometheus, err := client.NewWithWatch(config, client.Options{Scheme: scheme.Scheme})
	failOnError(t, err)
	var slicesOfServices discoveryv1.EndpointSliceList
	for _, list := range []client.ObjectList{&corev1.ServiceList{}, &corev1.EndpointsList{}, &corev1.PodList{}, &slicesOfServices} { //nolint:staticcheck // older versions of Prometheus watch Endpoints
		failOnError(t, prometheus.List(ctx, list, client.InNamespace(names.DefaultNamespace)))
		w, err := prometheus.Watch(ctx, list.DeepCopyObject().(client.ObjectList), client.InNamespace(names.DefaultNamespace))
		failOnError(t, err)
		w.Stop()
	}
	found := map[string]bool{}
	for i := range slicesOfServices.Items {
		for component, port := range map[string]string{names.ComponentController: "7472", names.ComponentSpeaker: "7473"} {
			if slicesOfServices.Items[i].Labels[names.LabelComponent] != component {
				continue
			}
			for _, e := range slicesOfServices.Items[i].Endpoints {
				if _, err := s.FetchMetrics(ctx, "client", e.Addresses[0]+":"+port, token); err != nil {
					t.Errorf("Prometheus asks the %s at %s for metrics, and gets %v", component, e.Addresses[0], err)
				}
				found[component] = true
			}
		}
	}
	if len(found) != 2 {
		t.Errorf("Prometheus finds targets of %v, want those of both programs", found)
	}
}
