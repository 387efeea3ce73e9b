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

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/test/lab"
	"github.com/gantry-lb/gantry/test/lab/netns"
	"github.com/gantry-lb/gantry/test/lab/node"
	"github.com/gantry-lb/gantry/test/stage"
)

// TestManuals applies what texts on Services show, as their readers type it in, in one cluster: testdata/manuals has the
// manifests word by word, mended only where they were no YAML.
func TestManuals(t *testing.T) {
	ctx, s := start(t, lab.Options{Nodes: 3})
	must(t, s.Apply(ctx, stage.Pool))
	// The texts' cluster IPs are in networks that their clusters have.
	must(t, s.Apply(ctx, serviceNetworks))
	for _, c := range []struct {
		name string
		f    func(context.Context, *testing.T, *stage.Stage)
	}{
		{"a Deployment's readiness decides who answers", readiness},
		{"a headless Service is left alone", headless},
		{"a Service keeps its fixed cluster IP", fixedClusterIP},
		{"one client stays with one Pod as long as the Service says", affinity},
		{"one port serves TCP and UDP", bothProtocols},
		{"a Service without a selector leads to hand-made endpoints", handMade},
		{"kubectl expose makes a Service that is reached", expose},
		{"a Service in JSON keeps its NodePort", nodePort},
		{"an ingress controller routes by host behind one address", ingress},
		{"a Service may change its type and come back", types},
	} {
		t.Run(c.name, func(t *testing.T) { c.f(ctx, t, s) })
	}
}

const serviceNetworks = `apiVersion: networking.k8s.io/v1
kind: ServiceCIDR
metadata: {name: manuals}
spec: {cidrs: [10.0.171.0/24]}
---
apiVersion: networking.k8s.io/v1
kind: ServiceCIDR
metadata: {name: manuals-3}
spec: {cidrs: [172.17.188.0/24]}
`

// manual reads a manifest.
func manual(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "manuals", name))
	must(t, err)
	return string(b)
}

// room makes a namespace and returns kubectl for it, which is given a manifest and words.
func room(ctx context.Context, t *testing.T, s *stage.Stage, name string) func(manifest string, args ...string) string {
	t.Helper()
	_, err := s.Kubectl(ctx, "", "create", "namespace", name)
	must(t, err)
	return func(manifest string, args ...string) string {
		t.Helper()
		out, err := s.Kubectl(ctx, manifest, append([]string{"-n", name}, args...)...)
		must(t, err)
		return out
	}
}

// answering asks n times, each by a connection of its own, and returns the Pods that answered; a question without an answer
// is an error.
func answering(ctx context.Context, s *stage.Stage, host, url string, n int) ([]string, error) {
	var pods []string
	for range n {
		body, err := s.Fetch(ctx, host, url)
		if err != nil {
			return nil, err
		}
		_, pod, _ := strings.Cut(body, "pod: ")
		pod, _, _ = strings.Cut(pod, "\n")
		if !slices.Contains(pods, pod) {
			pods = append(pods, pod)
		}
	}
	slices.Sort(pods)
	return pods, nil
}

// asked is how often a Service is asked before its answers count as all of them: of three Pods, each with the same chance,
// one is missed by forty questions once in three million times.
const asked = 40

// awaitAnswering waits until exactly those Pods answer.
func awaitAnswering(ctx context.Context, t *testing.T, s *stage.Stage, url string, want []string) {
	t.Helper()
	must(t, stage.Await(ctx, fmt.Sprintf("answers of %v alone", want), func(ctx context.Context) error {
		got, err := answering(ctx, s, "client", url, asked)
		if err == nil && !slices.Equal(got, want) {
			err = fmt.Errorf("these answer: %v", got)
		}
		return err
	}))
}

// announced returns the nodes that say that they announce a Service.
func announced(ctx context.Context, s *stage.Stage, namespace, name string) ([]string, error) {
	var list v1beta1.ServiceL2StatusList
	err := s.API.List(ctx, &list, client.InNamespace(names.Namespace),
		client.MatchingLabels{names.LabelServiceName: name, names.LabelServiceNamespace: namespace})
	var nodes []string
	for _, o := range list.Items {
		nodes = append(nodes, o.Status.Node)
	}
	return nodes, err
}

// awaitSilence waits until no node announces the Service any more and its address does not answer.
func awaitSilence(ctx context.Context, t *testing.T, s *stage.Stage, service serviceName, url string) {
	t.Helper()
	must(t, stage.Await(ctx, "silence of "+service.name, func(ctx context.Context) error {
		nodes, err := announced(ctx, s, service.namespace, service.name)
		if err != nil || len(nodes) > 0 {
			return fmt.Errorf("these announce it: %v (%v)", nodes, err)
		}
		if body, err := s.Fetch(ctx, "client", url); err == nil {
			return fmt.Errorf("it still answers: %s", body)
		}
		return nil
	}))
}

// serviceName is the name of a Service.
type serviceName struct{ namespace, name string }

func readiness(ctx context.Context, t *testing.T, s *stage.Stage) {
	kubectl := room(ctx, t, s, "readiness")
	kubectl(manual(t, "000-nginx.yaml"), "apply", "-f", "-")
	kubectl("", "patch", "service", "nginx-service", "-p", `{"spec":{"type":"LoadBalancer"}}`)
	address, err := s.Address(ctx, "readiness", "nginx-service")
	must(t, err)
	url := fmt.Sprintf("http://%s/", address)
	kubectl("", "rollout", "status", "deployment/nginx-deployment", "--timeout=30s")
	pods := strings.Fields(kubectl("", "get", "pods", "-l", "app=nginx", "-o", "jsonpath={.items[*].metadata.name}"))
	slices.Sort(pods)
	awaitAnswering(ctx, t, s, url, pods)

	kubectl("", "annotate", "pod", pods[0], node.AnnotationUnready+"=true")
	awaitAnswering(ctx, t, s, url, pods[1:])
	kubectl("", "annotate", "pod", pods[1], pods[2], node.AnnotationUnready+"=true")
	awaitSilence(ctx, t, s, serviceName{"readiness", "nginx-service"}, url)
	if still, err := s.Address(ctx, "readiness", "nginx-service"); err != nil || still != address {
		t.Errorf("without a ready Pod the Service has %s (%v), want it to keep %s", still, err, address)
	}
	kubectl("", "annotate", "pod", "-l", "app=nginx", node.AnnotationUnready+"-")
	awaitAnswering(ctx, t, s, url, pods)
}

func headless(ctx context.Context, t *testing.T, s *stage.Stage) {
	svc, err := s.Service(ctx, "readiness", "nginx") // the text's own, applied before
	must(t, err)
	untouched(t, svc)
}

// untouched says that Gantry has nothing to do with a Service.
func untouched(t *testing.T, svc *corev1.Service) {
	t.Helper()
	if err := touched(svc); err != nil {
		t.Error(err)
	}
}

func touched(svc *corev1.Service) error {
	_, annotated := svc.Annotations[names.AnnotationFromPool]
	if len(svc.Status.LoadBalancer.Ingress) > 0 || len(svc.Status.Conditions) > 0 || annotated {
		return fmt.Errorf("Service %s of type %s carries %v and %v", svc.Name, svc.Spec.Type, svc.Status, svc.Annotations)
	}
	return nil
}

// responder is a Deployment whose Pods answer on ports.
func responder(name, labels string, ports ...string) string {
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

func fixedClusterIP(ctx context.Context, t *testing.T, s *stage.Stage) {
	for file, label := range map[string]string{"002-my-service.yaml": "app: MyApp", "004-my-service.yaml": "app.kubernetes.io/name: MyApp"} {
		ns := "fixed-" + file[:3]
		kubectl := room(ctx, t, s, ns)
		kubectl(responder("my-app", label, "TCP/9376"), "apply", "-f", "-")
		kubectl(manual(t, file), "apply", "-f", "-")
		address, err := s.Address(ctx, ns, "my-service")
		must(t, err)
		if svc, err := s.Service(ctx, ns, "my-service"); err != nil || svc.Spec.ClusterIP != "10.0.171.239" {
			t.Errorf("%s: the cluster IP is %s (%v), want what the manifest says", file, svc.Spec.ClusterIP, err)
		}
		for _, host := range []string{"client", "far"} {
			_, err = s.AwaitFetch(ctx, host, fmt.Sprintf("http://%s/", address))
			must(t, err)
		}
		_, err = s.AwaitFetch(ctx, "node1", "http://10.0.171.239/")
		must(t, err)
		kubectl("", "delete", "service", "my-service") // both texts fix the same cluster IP
	}
}

func affinity(ctx context.Context, t *testing.T, s *stage.Stage) {
	kubectl := room(ctx, t, s, "affinity")
	kubectl(manual(t, "002-webapp.yaml"), "apply", "-f", "-")
	// Long enough for forty questions, short enough to wait for.
	kubectl("", "patch", "service", "webapp", "-p",
		`{"spec":{"type":"LoadBalancer","sessionAffinity":"ClientIP","sessionAffinityConfig":{"clientIP":{"timeoutSeconds":2}}}}`)
	address, err := s.Address(ctx, "affinity", "webapp")
	must(t, err)
	url := fmt.Sprintf("http://%s:8080/", address)
	kubectl("", "rollout", "status", "deployment/webapp", "--timeout=30s")
	_, err = s.AwaitFetch(ctx, "client", url)
	must(t, err)
	first, err := answering(ctx, s, "client", url, asked)
	must(t, err)
	if len(first) != 1 {
		t.Errorf("one client was answered by %v, want one Pod", first)
	}
	must(t, stage.Await(ctx, "another Pod once the client was quiet for longer than the timeout", func(ctx context.Context) error {
		<-time.After(2200 * time.Millisecond) // the client's quiet
		next, err := answering(ctx, s, "client", url, 1)
		if err == nil && next[0] == first[0] {
			err = fmt.Errorf("%s still answers", next[0])
		}
		return err
	}))
}

func bothProtocols(ctx context.Context, t *testing.T, s *stage.Stage) {
	kubectl := room(ctx, t, s, "dns")
	kubectl(responder("dns", "app: dns", "TCP/53", "UDP/53"), "apply", "-f", "-")
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
	address, err := s.Address(ctx, "dns", "dns")
	must(t, err)
	target := netip.AddrPortFrom(address, 53).String()
	_, err = s.AwaitFetch(ctx, "client", "http://"+target+"/")
	must(t, err)
	stream, err := s.UDP(ctx, "client", target, 50)
	must(t, err)
	must(t, stream.AwaitAnswers(ctx, 10))
	stream.Stop()
}

func handMade(ctx context.Context, t *testing.T, s *stage.Stage) {
	// 1.2.3.4 is the text's external server: here it is far away, behind the router.
	must(t, s.Host("far").Do(func() error { return netns.AddAddress("lo", netip.MustParsePrefix("1.2.3.4/32")) }))
	must(t, s.Host("router").Do(func() error {
		return netns.AddRoute("eth1", netip.MustParsePrefix("1.2.3.4/32"), netip.MustParseAddr("10.99.0.2"))
	}))
	l, err := s.Host("far").Listen("tcp", "1.2.3.4:80")
	must(t, err)
	server := http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "pod: none, a server of old\n") })}
	go func() { _ = server.Serve(l) }()
	defer server.Close()

	kubectl := room(ctx, t, s, "external")
	kubectl(manual(t, "002-external.yaml"), "apply", "-f", "-")
	_, err = s.AwaitFetch(ctx, "node1", "http://"+kubectl("", "get", "service", "my-service", "-o", "jsonpath={.spec.clusterIP}")+"/")
	must(t, err)
	svc, err := s.Service(ctx, "external", "my-service")
	must(t, err)
	untouched(t, svc)

	kubectl("", "patch", "service", "my-service", "-p", `{"spec":{"type":"LoadBalancer"}}`)
	address, err := s.Address(ctx, "external", "my-service")
	must(t, err)
	url := fmt.Sprintf("http://%s/", address)
	body, err := s.AwaitFetch(ctx, "client", url)
	must(t, err)
	if !strings.Contains(body, "a server of old") {
		t.Errorf("the Service leads to %q", body)
	}
	// The same with an EndpointSlice, which is what Endpoints became.
	kubectl("", "delete", "endpoints", "my-service")
	awaitSilence(ctx, t, s, serviceName{"external", "my-service"}, url)
	kubectl(`apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: my-service-1
  labels: {`+discoveryv1.LabelServiceName+`: my-service}
addressType: IPv4
ports: [{port: 80, protocol: TCP, name: ""}]
endpoints: [{addresses: [1.2.3.4]}]
`, "apply", "-f", "-")
	_, err = s.AwaitFetch(ctx, "client", url)
	must(t, err)
}

func expose(ctx context.Context, t *testing.T, s *stage.Stage) {
	kubectl := room(ctx, t, s, "expose")
	kubectl("", "create", "deployment", "nginxv1", "--image=nginx", "--port=80")
	kubectl("", "expose", "deployment", "nginxv1", "--port=8081", "--target-port=80", "--type=LoadBalancer")
	address, err := s.Address(ctx, "expose", "nginxv1")
	must(t, err)
	body, err := s.AwaitFetch(ctx, "client", fmt.Sprintf("http://%s:8081/", address))
	must(t, err)
	if !strings.Contains(body, "pod: nginxv1-") || !strings.Contains(body, "port: 80\n") {
		t.Errorf("port 8081 leads to\n%s", body)
	}
}

func nodePort(ctx context.Context, t *testing.T, s *stage.Stage) {
	kubectl := func(manifest string, args ...string) {
		_, err := s.Kubectl(ctx, manifest, args...)
		must(t, err)
	}
	kubectl(responder("nginx", "app: nginx", "TCP/80"), "apply", "-f", "-")
	// What the API server prints cannot be created again with its version in it, whoever serves it.
	kubectl(strings.Replace(manual(t, "003-nginx.json"), `"resourceVersion": "613764",`, "", 1), "create", "-f", "-")
	address, err := s.Address(ctx, "default", "nginx")
	must(t, err)
	for _, url := range []string{
		fmt.Sprintf("http://%s:30080/", address), "http://192.168.0.11:31455/", "http://192.168.0.12:31455/", "http://192.168.0.13:31455/",
	} {
		body, err := s.AwaitFetch(ctx, "client", url)
		must(t, err)
		if !strings.Contains(body, "pod: nginx-") {
			t.Errorf("%s leads to\n%s", url, body)
		}
	}
	if svc, err := s.Service(ctx, "default", "nginx"); err != nil || svc.Spec.ClusterIP != "172.17.188.189" {
		t.Errorf("the cluster IP is %s (%v), want what the manifest says", svc.Spec.ClusterIP, err)
	}
}
