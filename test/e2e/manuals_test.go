package e2e

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/test/cluster"
	"github.com/gantry-lb/gantry/test/lab"
	"github.com/gantry-lb/gantry/test/lab/netns"
	"github.com/gantry-lb/gantry/test/lab/node"
)

// TestServiceManifestsOfManualsWork applies the manifests of manuals on Services, as their readers
// do, in one cluster. testdata/manuals has these manifests unchanged, except where they were not
// valid YAML.
func TestServiceManifestsOfManualsWork(t *testing.T) {
	t.Parallel()
	ctx, s := startLabWithGantry(t, lab.Options{Nodes: 3})
	failOnError(t, s.ApplyManifests(ctx, cluster.FirstPoolAndL2AdvertisementManifest))
	// The manuals use cluster IPs of other Service networks.
	failOnError(t, s.ApplyManifests(ctx, serviceCIDRManifest))
	for _, c := range []struct {
		name string
		f    func(context.Context, *testing.T, *cluster.Cluster)
	}{
		{"only ready Pods of a Deployment answer", testUnreadyPodsAreWithdrawn},
		{"a headless Service is not changed", testHeadlessServiceIsLeftAlone},
		{"a Service keeps its fixed cluster IP", testServiceWithFixedClusterIPAnswers},
		{"session affinity keeps a client with one Pod", testSessionAffinityKeepsClientOnPod},
		{"one port serves TCP and UDP", testServiceWithTCPAndUDPPort53Answers},
		{"a Service without a selector uses manual endpoints", testServiceWithManualEndpointsAnswers},
		{"a Service of kubectl expose is reachable", testServiceOfKubectlExposeAnswers},
		{"a Service in JSON keeps its NodePort", testLoadBalancerAnswersOnNodePorts},
		{"an ingress controller routes by host behind one address", testIngressControllerServiceServesHTTP},
		{"a Service can change its type and back", testChangedServiceTypeReleasesAddress},
	} {
		t.Run(c.name, func(t *testing.T) { c.f(ctx, t, s) })
	}
}

const serviceCIDRManifest = `apiVersion: networking.k8s.io/v1
kind: ServiceCIDR
metadata: {name: manuals}
spec: {cidrs: [10.0.171.0/24]}
---
apiVersion: networking.k8s.io/v1
kind: ServiceCIDR
metadata: {name: manuals-3}
spec: {cidrs: [172.17.188.0/24]}
`

// readManualManifest reads a manifest of a manual.
func readManualManifest(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "manuals", name))
	failOnError(t, err)
	return string(b)
}

// createNamespaceAndKubectlFunc creates a namespace, and returns a function that runs kubectl in
// it, with a manifest as its input.
func createNamespaceAndKubectlFunc(ctx context.Context, t *testing.T, s *cluster.Cluster, name string) func(manifest string, args ...string) string {
	t.Helper()
	_, err := s.RunKubectl(ctx, "", "create", "namespace", name)
	failOnError(t, err)
	return func(manifest string, args ...string) string {
		t.Helper()
		out, err := s.RunKubectl(ctx, manifest, append([]string{"-n", name}, args...)...)
		failOnError(t, err)
		return out
	}
}

// findAnsweringPods sends n requests, some at a time and each over a new connection, and returns
// the Pods that answered. A request without an answer is an error.
func findAnsweringPods(ctx context.Context, s *cluster.Cluster, host, url string, n int) ([]string, error) {
	pods := make([]string, n)
	requests, ctx := errgroup.WithContext(ctx)
	requests.SetLimit(8)
	for i := range n {
		requests.Go(func() error {
			body, err := s.FetchURLFromHost(ctx, host, url)
			_, pod, _ := strings.Cut(body, "pod: ")
			pods[i], _, _ = strings.Cut(pod, "\n")
			return err
		})
	}
	if err := requests.Wait(); err != nil {
		return nil, err
	}
	slices.Sort(pods)
	return slices.Compact(pods), nil
}

// requestsToFindAllPods is the number of requests that find all Pods of a Service. If three
// Pods answer with equal probability, forty requests miss one of them once in 3.7 million times.
const requestsToFindAllPods = 40

// awaitExactAnsweringPods waits until exactly those Pods answer.
func awaitExactAnsweringPods(ctx context.Context, t *testing.T, s *cluster.Cluster, url string, want []string) {
	t.Helper()
	failOnError(t, cluster.AwaitNoError(ctx, fmt.Sprintf("answers of %v only", want), func(ctx context.Context) error {
		got, err := findAnsweringPods(ctx, s, "client", url, requestsToFindAllPods)
		if err == nil && !slices.Equal(got, want) {
			err = fmt.Errorf("these answer: %v", got)
		}
		return err
	}))
}

// listL2AnnouncingNodes returns the nodes that announce a Service, according to the API.
func listL2AnnouncingNodes(ctx context.Context, s *cluster.Cluster, namespace, name string) ([]string, error) {
	var list v1beta1.ServiceL2StatusList
	err := s.API.List(ctx, &list, client.InNamespace(names.DefaultNamespace),
		client.MatchingLabels{names.LabelServiceName: name, names.LabelServiceNamespace: namespace})
	var nodes []string
	for _, o := range list.Items {
		nodes = append(nodes, o.Status.Node)
	}
	return nodes, err
}

// awaitServiceUnannounced waits until no node announces the Service and its address does not
// answer.
func awaitServiceUnannounced(ctx context.Context, t *testing.T, s *cluster.Cluster, service serviceKey, url string) {
	t.Helper()
	failOnError(t, cluster.AwaitNoError(ctx, "no announcement of "+service.name, func(ctx context.Context) error {
		nodes, err := listL2AnnouncingNodes(ctx, s, service.namespace, service.name)
		if err != nil || len(nodes) > 0 {
			return fmt.Errorf("these announce it: %v (%v)", nodes, err)
		}
		if body, err := s.FetchURLFromHost(ctx, "client", url); err == nil {
			return fmt.Errorf("it still answers: %s", body)
		}
		return nil
	}))
}

// serviceKey is the namespace and the name of a Service.
type serviceKey struct{ namespace, name string }

func testUnreadyPodsAreWithdrawn(ctx context.Context, t *testing.T, s *cluster.Cluster) {
	kubectl := createNamespaceAndKubectlFunc(ctx, t, s, "readiness")
	kubectl(readManualManifest(t, "000-nginx.yaml"), "apply", "-f", "-")
	kubectl("", "patch", "service", "nginx-service", "-p", `{"spec":{"type":"LoadBalancer"}}`)
	address, err := s.AwaitFirstAddressOfService(ctx, "readiness", "nginx-service")
	failOnError(t, err)
	url := fmt.Sprintf("http://%s/", address)
	kubectl("", "rollout", "status", "deployment/nginx-deployment", "--timeout=5m")
	pods := strings.Fields(kubectl("", "get", "pods", "-l", "app=nginx", "-o", "jsonpath={.items[*].metadata.name}"))
	slices.Sort(pods)
	awaitExactAnsweringPods(ctx, t, s, url, pods)

	kubectl("", "annotate", "pod", pods[0], node.AnnotationUnready+"=true")
	awaitExactAnsweringPods(ctx, t, s, url, pods[1:])
	kubectl("", "annotate", "pod", pods[1], pods[2], node.AnnotationUnready+"=true")
	awaitServiceUnannounced(ctx, t, s, serviceKey{"readiness", "nginx-service"}, url)
	if still, err := s.AwaitFirstAddressOfService(ctx, "readiness", "nginx-service"); err != nil || still != address {
		t.Errorf("without a ready Pod the Service has %s (%v), want it to keep %s", still, err, address)
	}
	kubectl("", "annotate", "pod", "-l", "app=nginx", node.AnnotationUnready+"-")
	awaitExactAnsweringPods(ctx, t, s, url, pods)
}

func testHeadlessServiceIsLeftAlone(ctx context.Context, t *testing.T, s *cluster.Cluster) {
	// in the same manual, applied by the test before
	svc, err := s.GetService(ctx, "readiness", "nginx")
	failOnError(t, err)
	failIfGantryWroteToService(t, svc)
}

// failIfGantryWroteToService fails the test if Gantry has written anything to a Service.
func failIfGantryWroteToService(t *testing.T, svc *corev1.Service) {
	t.Helper()
	if err := errorIfGantryWroteToService(svc); err != nil {
		t.Error(err)
	}
}

func errorIfGantryWroteToService(svc *corev1.Service) error {
	_, annotated := svc.Annotations[names.AnnotationAllocatedFromPool]
	if len(svc.Status.LoadBalancer.Ingress) > 0 || len(svc.Status.Conditions) > 0 || annotated {
		return fmt.Errorf("Service %s of type %s has %v and %v", svc.Name, svc.Spec.Type, svc.Status, svc.Annotations)
	}
	return nil
}

// podResponderDeploymentManifest returns a Deployment whose Pods answer on the ports, each written
// as TCP/80.
func podResponderDeploymentManifest(name, labels string, ports ...string) string {
	var list []string
	for _, p := range ports {
		proto, number, _ := strings.Cut(p, "/")
		list = append(list, fmt.Sprintf("{containerPort: %s, protocol: %s}", number, proto))
	}
	return fmt.Sprintf(`apiVersion: apps/v1
kind: Deployment
metadata: {name: %s}
spec:
  replicas: 2
  selector: {matchLabels: {%[2]s}}
  template:
    metadata: {labels: {%[2]s}}
    spec:
      containers: [{name: main, image: example, ports: [%[3]s]}]
`, name, labels, strings.Join(list, ", "))
}

func testServiceWithFixedClusterIPAnswers(ctx context.Context, t *testing.T, s *cluster.Cluster) {
	for file, label := range map[string]string{"002-my-service.yaml": "app: MyApp", "004-my-service.yaml": "app.kubernetes.io/name: MyApp"} {
		ns := "fixed-" + file[:3]
		kubectl := createNamespaceAndKubectlFunc(ctx, t, s, ns)
		kubectl(podResponderDeploymentManifest("my-app", label, "TCP/9376"), "apply", "-f", "-")
		kubectl(readManualManifest(t, file), "apply", "-f", "-")
		address, err := s.AwaitFirstAddressOfService(ctx, ns, "my-service")
		failOnError(t, err)
		if svc, err := s.GetService(ctx, ns, "my-service"); err != nil || svc.Spec.ClusterIP != "10.0.171.239" {
			t.Errorf("%s: the cluster IP is %s (%v), want what the manifest says", file, svc.Spec.ClusterIP, err)
		}
		for _, host := range []string{"client", "far"} {
			_, err = s.FetchURLUntilSuccess(ctx, host, fmt.Sprintf("http://%s/", address))
			failOnError(t, err)
		}
		_, err = s.FetchURLUntilSuccess(ctx, "node1", "http://10.0.171.239/")
		failOnError(t, err)
		kubectl("", "delete", "service", "my-service") // both manuals use the same cluster IP
	}
}

func testSessionAffinityKeepsClientOnPod(ctx context.Context, t *testing.T, s *cluster.Cluster) {
	kubectl := createNamespaceAndKubectlFunc(ctx, t, s, "affinity")
	kubectl(readManualManifest(t, "002-webapp.yaml"), "apply", "-f", "-")
	const affinityTimeout = 3 * time.Second // short enough to wait for
	kubectl("", "patch", "service", "webapp", "-p",
		fmt.Sprintf(`{"spec":{"type":"LoadBalancer","sessionAffinity":"ClientIP","sessionAffinityConfig":{"clientIP":{"timeoutSeconds":%d}}}}`, int(affinityTimeout.Seconds())))
	address, err := s.AwaitFirstAddressOfService(ctx, "affinity", "webapp")
	failOnError(t, err)
	url := fmt.Sprintf("http://%s:8080/", address)
	kubectl("", "rollout", "status", "deployment/webapp", "--timeout=5m")
	_, err = s.FetchURLUntilSuccess(ctx, "client", url)
	failOnError(t, err)
	var first []string
	failOnError(t, cluster.AwaitNoError(ctx, "forty requests without a long pause", func(ctx context.Context) error {
		var longest time.Duration
		first = nil
		for range requestsToFindAllPods {
			begun := time.Now()
			pod, err := findAnsweringPods(ctx, s, "client", url, 1)
			if err != nil {
				return err
			}
			first, longest = append(first, pod...), max(longest, time.Since(begun))
		}
		// Otherwise kube-proxy may have forgotten the client meanwhile.
		if longest > affinityTimeout/2 {
			return fmt.Errorf("one request took %s", longest)
		}
		return nil
	}))
	slices.Sort(first)
	if first = slices.Compact(first); len(first) != 1 {
		t.Errorf("one client was answered by %v, want one Pod", first)
	}
	failOnError(t, cluster.AwaitNoError(ctx, "another Pod after the affinity timeout", func(ctx context.Context) error {
		// The client sends nothing for this time.
		<-time.After(affinityTimeout + 200*time.Millisecond)
		next, err := findAnsweringPods(ctx, s, "client", url, 1)
		if err == nil && next[0] == first[0] {
			err = fmt.Errorf("%s still answers", next[0])
		}
		return err
	}))
}

func testServiceWithTCPAndUDPPort53Answers(ctx context.Context, t *testing.T, s *cluster.Cluster) {
	kubectl := createNamespaceAndKubectlFunc(ctx, t, s, "dns")
	kubectl(podResponderDeploymentManifest("dns", "app: dns", "TCP/53", "UDP/53"), "apply", "-f", "-")
	kubectl(`apiVersion: v1
kind: Service
metadata:
  name: dns
spec:
  type: LoadBalancer
  selector: {app: dns}
  ports:
  - name: dns
    port: 53
    targetPort: 53
    protocol: UDP
  - name: dns-tcp
    port: 53
    targetPort: 53
    protocol: TCP
`, "apply", "-f", "-")
	address, err := s.AwaitFirstAddressOfService(ctx, "dns", "dns")
	failOnError(t, err)
	target := netip.AddrPortFrom(address, 53).String()
	_, err = s.FetchURLUntilSuccess(ctx, "client", "http://"+target+"/")
	failOnError(t, err)
	stream, err := s.StartUDPStream(ctx, "client", target, 50)
	failOnError(t, err)
	failOnError(t, stream.AwaitMoreAnswers(ctx, 10))
	stream.StopSending()
}

func testServiceWithManualEndpointsAnswers(ctx context.Context, t *testing.T, s *cluster.Cluster) {
	// 1.2.3.4 is the external server in the manual. Here it is behind the router.
	failOnError(t, s.NamespaceOfHost("far").RunInside(func() error { return netns.AddAddress("lo", netip.MustParsePrefix("1.2.3.4/32")) }))
	failOnError(t, s.NamespaceOfHost("router").RunInside(func() error {
		return netns.AddRoute("eth1", netip.MustParsePrefix("1.2.3.4/32"), netip.MustParseAddr("10.99.0.2"))
	}))
	l, err := s.NamespaceOfHost("far").Listen("tcp", "1.2.3.4:80")
	failOnError(t, err)
	server := http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "pod: none, a server of old\n") })}
	go func() { _ = server.Serve(l) }()
	defer server.Close()

	kubectl := createNamespaceAndKubectlFunc(ctx, t, s, "external")
	kubectl(readManualManifest(t, "002-external.yaml"), "apply", "-f", "-")
	_, err = s.FetchURLUntilSuccess(ctx, "node1", "http://"+kubectl("", "get", "service", "my-service", "-o", "jsonpath={.spec.clusterIP}")+"/")
	failOnError(t, err)
	svc, err := s.GetService(ctx, "external", "my-service")
	failOnError(t, err)
	failIfGantryWroteToService(t, svc)

	kubectl("", "patch", "service", "my-service", "-p", `{"spec":{"type":"LoadBalancer"}}`)
	address, err := s.AwaitFirstAddressOfService(ctx, "external", "my-service")
	failOnError(t, err)
	url := fmt.Sprintf("http://%s/", address)
	body, err := s.FetchURLUntilSuccess(ctx, "client", url)
	failOnError(t, err)
	if !strings.Contains(body, "a server of old") {
		t.Errorf("the Service answers %q", body)
	}
	// The same with an EndpointSlice, the successor of Endpoints.
	kubectl("", "delete", "endpoints", "my-service")
	awaitServiceUnannounced(ctx, t, s, serviceKey{"external", "my-service"}, url)
	kubectl(`apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: my-service-1
  labels: {`+discoveryv1.LabelServiceName+`: my-service}
addressType: IPv4
ports: [{port: 80, protocol: TCP, name: ""}]
endpoints: [{addresses: [1.2.3.4]}]
`, "apply", "-f", "-")
	_, err = s.FetchURLUntilSuccess(ctx, "client", url)
	failOnError(t, err)
}

func testServiceOfKubectlExposeAnswers(ctx context.Context, t *testing.T, s *cluster.Cluster) {
	kubectl := createNamespaceAndKubectlFunc(ctx, t, s, "expose")
	kubectl("", "create", "deployment", "nginxv1", "--image=nginx", "--port=80")
	kubectl("", "expose", "deployment", "nginxv1", "--port=8081", "--target-port=80", "--type=LoadBalancer")
	address, err := s.AwaitFirstAddressOfService(ctx, "expose", "nginxv1")
	failOnError(t, err)
	body, err := s.FetchURLUntilSuccess(ctx, "client", fmt.Sprintf("http://%s:8081/", address))
	failOnError(t, err)
	if !strings.Contains(body, "pod: nginxv1-") || !strings.Contains(body, "port: 80\n") {
		t.Errorf("port 8081 answers\n%s", body)
	}
}

func testLoadBalancerAnswersOnNodePorts(ctx context.Context, t *testing.T, s *cluster.Cluster) {
	kubectl := func(manifest string, args ...string) {
		_, err := s.RunKubectl(ctx, manifest, args...)
		failOnError(t, err)
	}
	kubectl(podResponderDeploymentManifest("nginx", "app: nginx", "TCP/80"), "apply", "-f", "-")
	// No API server accepts a new object with a resourceVersion.
	kubectl(strings.Replace(readManualManifest(t, "003-nginx.json"), `"resourceVersion": "613764",`, "", 1), "create", "-f", "-")
	address, err := s.AwaitFirstAddressOfService(ctx, "default", "nginx")
	failOnError(t, err)
	for _, url := range []string{
		fmt.Sprintf("http://%s:30080/", address), "http://192.168.0.11:31455/", "http://192.168.0.12:31455/", "http://192.168.0.13:31455/",
	} {
		body, err := s.FetchURLUntilSuccess(ctx, "client", url)
		failOnError(t, err)
		if !strings.Contains(body, "pod: nginx-") {
			t.Errorf("%s answers\n%s", url, body)
		}
	}
	if svc, err := s.GetService(ctx, "default", "nginx"); err != nil || svc.Spec.ClusterIP != "172.17.188.189" {
		t.Errorf("the cluster IP is %s (%v), want what the manifest says", svc.Spec.ClusterIP, err)
	}
}
