package preflight

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/explain"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/objects"
	"github.com/gantry-lb/gantry/internal/configuration"
	"github.com/gantry-lb/gantry/internal/nodefacts"
)

// newClusterAPI returns an API server in memory with three nodes. A DaemonSet gets Pods on the
// nodes that are given.
func newClusterAPI(t *testing.T, nodesWithPods ...string) client.WithWatch {
	t.Helper()
	scheme, err := configuration.NewScheme()
	if err != nil {
		t.Fatal(err)
	}
	builder := fake.NewClientBuilder().WithScheme(scheme).WithRESTMapper(configuration.NewOfflineRESTMapper(scheme, objects.PluginOnlyAPIGroups...))
	for name, address := range map[string]string{"node1": "192.0.2.1", "node2": "192.0.2.2", "node3": "192.0.2.3"} {
		builder.WithObjects(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: address}}}})
	}
	return builder.WithInterceptorFuncs(interceptor.Funcs{Create: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.CreateOption) error {
		err := c.Create(ctx, o, opts...)
		d, ok := o.(*appsv1.DaemonSet)
		if err != nil || !ok {
			return err
		}
		for _, n := range nodesWithPods {
			p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "on-" + n, Namespace: d.Namespace, Labels: d.Spec.Template.Labels}, Spec: d.Spec.Template.Spec, Status: corev1.PodStatus{Phase: corev1.PodRunning}}
			p.Spec.NodeName = n
			if err := c.Create(ctx, p); err != nil {
				return err
			}
		}
		return nil
	}}).Build()
}

// answerAsNodes answers for the Pods: node2 does not reach node3 by UDP.
func answerAsNodes(_ context.Context, pod client.ObjectKey, path string) ([]byte, error) {
	page, query, _ := strings.Cut(path, "?")
	if page == nodefacts.FactsPagePath {
		return json.Marshal(nodefacts.Facts{Node: strings.TrimPrefix(pod.Name, "on-"), Time: time.Unix(1000, 0)})
	}
	parameters, err := url.ParseQuery(query)
	if err != nil {
		return nil, err
	}
	var out []nodefacts.Path
	for _, a := range parameters[nodefacts.PathsParameter] {
		isBlocked := pod.Name == "on-node2" && a == "192.0.2.3"
		out = append(out, nodefacts.Path{To: netip.MustParseAddr(a), TCP: succeeded, UDP: nodefacts.Attempt{Succeeded: !isBlocked}})
	}
	return json.Marshal(out)
}

// askTestNodes reads the cluster and asks its nodes. Nothing may be left over.
func askTestNodes(t *testing.T, api client.WithWatch, fetch func(context.Context, client.ObjectKey, string) ([]byte, error)) *Cluster {
	t.Helper()
	c, err := ReadCluster(t.Context(), objects.NewReader(api, explain.LabelsFuncByIndex), "metallb-system")
	if err == nil {
		err = c.AskNodes(t.Context(), NodeQuestions{API: api, Image: "gantry", FetchPage: fetch, Now: func() time.Time { return time.Unix(910, 0) }, AnswerTimeout: time.Second, ShowProgress: func(string) {}})
	}
	var daemonSets appsv1.DaemonSetList
	var namespaces corev1.NamespaceList
	if err := errors.Join(err, api.List(t.Context(), &daemonSets), api.List(t.Context(), &namespaces)); err != nil {
		t.Fatal(err)
	}
	if len(daemonSets.Items)+len(namespaces.Items) > 0 {
		t.Errorf("left over are %+v and %+v", daemonSets.Items, namespaces.Items)
	}
	return c
}

// TestNodesAreAskedByPodsThatAreDeletedAgain asks three nodes for their facts and their paths.
func TestNodesAreAskedByPodsThatAreDeletedAgain(t *testing.T) {
	c := askTestNodes(t, newClusterAPI(t, "node1", "node2", "node3"), answerAsNodes)
	if len(c.Paths) != 6 {
		t.Errorf("there are %d paths, want 6", len(c.Paths))
	}
	for _, p := range c.Paths {
		if isBlocked := p.From == "node2" && p.To == "node3"; p.UDP.Succeeded == isBlocked || !p.TCP.Succeeded {
			t.Errorf("the path is %+v", p)
		}
	}
	for _, n := range c.Nodes {
		if n.Asked == nil || n.Asked.Node != n.Name || n.ClockAhead == nil || *n.ClockAhead != 90*time.Second {
			t.Errorf("%s says %+v", n.Name, n)
		}
	}
}

// TestNodesThatDoNotAnswerAreNamed has a node without a Pod, and one whose Pod says nothing.
func TestNodesThatDoNotAnswerAreNamed(t *testing.T) {
	c := askTestNodes(t, newClusterAPI(t, "node1", "node2"), func(ctx context.Context, pod client.ObjectKey, path string) ([]byte, error) {
		if pod.Name == "on-node2" {
			return nil, errors.New("connection refused")
		}
		return answerAsNodes(ctx, pod, path)
	})
	for i, want := range []string{"", "connection refused", "it has no Pod"} {
		if got := c.Nodes[i].NotAsked; got != want {
			t.Errorf("%s: %q, want %q", c.Nodes[i].Name, got, want)
		}
	}
}

// TestNodesAreNotAskedWithoutImage has no installation, and no image.
func TestNodesAreNotAskedWithoutImage(t *testing.T) {
	if err := new(Cluster).AskNodes(t.Context(), NodeQuestions{}); !errors.Is(err, ErrNoImage) {
		t.Errorf("it says %v", err)
	}
}

// TestPodsBesideSpeakersLeaveTheirPortAlone looks at the Pods before and after an installation.
func TestPodsBesideSpeakersLeaveTheirPortAlone(t *testing.T) {
	speakers := &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Name: "gantry-speaker", Namespace: "metallb-system", Labels: map[string]string{"app.kubernetes.io/name": "gantry", "app.kubernetes.io/component": "speaker"}}}
	speakers.Spec.Template.Spec.Containers = []corev1.Container{{Name: "speaker", Image: "gantry", Env: []corev1.EnvVar{{Name: "GANTRY_KEEP_CONNECTIONS", Value: "true"}}}}
	for _, isInstalled := range []bool{false, true} {
		api := newClusterAPI(t)
		if isInstalled {
			if err := api.Create(t.Context(), speakers); err != nil {
				t.Fatal(err)
			}
		}
		c, err := ReadCluster(t.Context(), objects.NewReader(api, explain.LabelsFuncByIndex), "metallb-system")
		if err != nil {
			t.Fatal(err)
		}
		pod := c.newDaemonSet("gantry", "metallb-system").Spec.Template.Spec.Containers[0]
		if slices.Contains(pod.Command, nodefacts.BesideSpeakerArgument) != isInstalled {
			t.Errorf("installed: %t, and the command is %q", isInstalled, pod.Command)
		}
		if slices.Contains(pod.SecurityContext.Capabilities.Add, "NET_ADMIN") != isInstalled {
			t.Errorf("keep-connections: %t, and the capabilities are %v", isInstalled, pod.SecurityContext.Capabilities.Add)
		}
	}
}
