package preflight

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/explain"
	"github.com/gantry-lb/gantry/internal/nodefacts"
)

// NodeQuestions say how to ask the nodes themselves: by Pods of Gantry's image.
type NodeQuestions struct {
	API client.Client
	// Image is Gantry's image; empty for that of the speakers.
	Image string
	// FetchPage fetches a page of a Pod from nodefacts.PagePort.
	FetchPage func(ctx context.Context, pod client.ObjectKey, path string) ([]byte, error)
	// Now returns the time of the API server.
	Now func() time.Time
	// AnswerTimeout is how long the nodes may take until all have answered.
	AnswerTimeout time.Duration
	// ShowProgress is called before each step.
	ShowProgress func(string)
}

const (
	// podsListInterval is the time between two looks at the Pods.
	podsListInterval = 500 * time.Millisecond
	// cleanUpTimeout bounds the removal of what was created, also if the user interrupts.
	cleanUpTimeout = 20 * time.Second
	// maxNodesForAllPairs is up to how many nodes each asks each other one. Above, each node asks
	// this many.
	maxNodesForAllPairs = 50
	// maxParallelQuestions bounds how many nodes are asked at once.
	maxParallelQuestions = 8
)

// podName begins the names of what is created.
const podName = "gantry-preflight"

// ErrNoImage says that there is no image to ask the nodes with.
var ErrNoImage = errors.New("no speaker runs, whose image could be used: name Gantry's image with --image")

// AskNodes lets each node say its facts, and whom it reaches on the port of the gossip. It creates
// a DaemonSet, and a namespace if Gantry is not installed, and deletes both again.
func (c *Cluster) AskNodes(ctx context.Context, q NodeQuestions) (err error) {
	if q.Image == "" && c.speakerPodSpec == nil {
		return ErrNoImage
	}
	namespace, removeNamespace, err := c.createNamespace(ctx, q)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, removeNamespace()) }()
	d := c.newDaemonSet(q.Image, namespace)
	if err := q.API.Create(ctx, d); err != nil {
		return fmt.Errorf("creating a DaemonSet in namespace %s: %w", namespace, err)
	}
	defer func() { err = errors.Join(err, deleteObject(ctx, q.API, d)) }()
	podsByNode, err := c.awaitAnswers(ctx, q, d)
	if err != nil {
		return err
	}
	return c.askForPaths(ctx, q, podsByNode)
}

// createNamespace returns the namespace for the Pods: that of the speakers, or else a new one that
// admits them.
func (c *Cluster) createNamespace(ctx context.Context, q NodeQuestions) (string, func() error, error) {
	if c.speakerPodSpec != nil {
		return c.Namespace, func() error { return nil }, nil
	}
	n := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: podName + "-", Labels: map[string]string{podSecurityLabel: privilegedLevel}}}
	if err := q.API.Create(ctx, n); err != nil {
		return "", nil, fmt.Errorf("creating a namespace: %w", err)
	}
	return n.Name, func() error { return deleteObject(ctx, q.API, n) }, nil
}

// deleteObject deletes what was created, also after the user has interrupted.
func deleteObject(ctx context.Context, api client.Client, o client.Object) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanUpTimeout)
	defer cancel()
	if err := client.IgnoreNotFound(api.Delete(ctx, o, client.PropagationPolicy(metav1.DeletePropagationBackground))); err != nil {
		return fmt.Errorf("%s is left over: delete it: %w", o.GetName(), err)
	}
	return nil
}

// newDaemonSet runs Gantry's image on each node, with the rights of a speaker.
func (c *Cluster) newDaemonSet(image, namespace string) *appsv1.DaemonSet {
	labels := map[string]string{names.LabelAppName: podName, names.LabelComponent: "preflight"}
	root, no, yes, noGrace := int64(0), false, true, int64(1)
	container := corev1.Container{
		Name: "facts", Image: image, Command: []string{"/speaker", nodefacts.Subcommand},
		Env: []corev1.EnvVar{{Name: "GANTRY_NODE_NAME", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "spec.nodeName"}}}},
		SecurityContext: &corev1.SecurityContext{
			RunAsUser: &root, AllowPrivilegeEscalation: &no, ReadOnlyRootFilesystem: &yes,
			Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}, Add: []corev1.Capability{"NET_RAW"}},
		},
	}
	spec := corev1.PodSpec{
		HostNetwork: true, AutomountServiceAccountToken: &no, TerminationGracePeriodSeconds: &noGrace, NodeSelector: map[string]string{corev1.LabelOSStable: "linux"},
		Tolerations:     []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
		SecurityContext: &corev1.PodSecurityContext{SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}},
	}
	if c.speakerPodSpec != nil {
		spec.ImagePullSecrets = c.speakerPodSpec.ImagePullSecrets
		container.Command = append(container.Command, nodefacts.BesideSpeakerArgument)
		if image == "" && len(c.speakerPodSpec.Containers) > 0 {
			container.Image, container.ImagePullPolicy = c.speakerPodSpec.Containers[0].Image, c.speakerPodSpec.Containers[0].ImagePullPolicy
		}
	}
	if c.Needs.AroundDeadNodes || c.Needs.KeepConnections {
		container.SecurityContext.Capabilities.Add = append(container.SecurityContext.Capabilities.Add, "NET_ADMIN")
	}
	spec.Containers = []corev1.Container{container}
	return &appsv1.DaemonSet{
		ObjectMeta: metav1.ObjectMeta{GenerateName: podName + "-", Namespace: namespace, Labels: labels},
		Spec:       appsv1.DaemonSetSpec{Selector: &metav1.LabelSelector{MatchLabels: labels}, Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: spec}},
	}
}

// awaitAnswers waits until each node has answered, or the time is over. It returns the Pods that
// answered.
func (c *Cluster) awaitAnswers(ctx context.Context, q NodeQuestions, d *appsv1.DaemonSet) (map[string]client.ObjectKey, error) {
	q.ShowProgress(fmt.Sprintf("asking %d nodes", len(c.Nodes)))
	bounded, cancel := context.WithTimeout(ctx, q.AnswerTimeout)
	defer cancel()
	podsByNode := map[string]client.ObjectKey{}
	for {
		var pods corev1.PodList
		err := q.API.List(bounded, &pods, client.InNamespace(d.Namespace), client.MatchingLabels(d.Labels))
		if err != nil && bounded.Err() == nil {
			return nil, fmt.Errorf("listing the Pods in namespace %s: %w", d.Namespace, err)
		}
		c.askRunningPods(bounded, q, pods.Items, podsByNode)
		if len(podsByNode) == len(c.Nodes) {
			return podsByNode, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-bounded.Done():
			return podsByNode, nil
		case <-time.After(podsListInterval):
		}
	}
}

// askRunningPods asks the nodes whose Pods run and have not answered yet.
func (c *Cluster) askRunningPods(ctx context.Context, q NodeQuestions, pods []corev1.Pod, podsByNode map[string]client.ObjectKey) {
	var mu sync.Mutex // guards podsByNode
	workqueue.ParallelizeUntil(ctx, maxParallelQuestions, len(c.Nodes), func(i int) {
		n := &c.Nodes[i]
		if n.Asked != nil {
			return
		}
		n.NotAsked = "it has no Pod"
		for j := range pods {
			p := &pods[j]
			if p.Spec.NodeName != n.Name {
				continue
			}
			if p.Status.Phase != corev1.PodRunning {
				n.NotAsked = explain.DescribePodNotRunning(p)
				return
			}
			page, err := q.FetchPage(ctx, client.ObjectKeyFromObject(p), nodefacts.FactsPagePath)
			facts := &nodefacts.Facts{}
			if err == nil {
				err = json.Unmarshal(page, facts)
			}
			if err != nil {
				n.NotAsked = err.Error()
				return
			}
			ahead := facts.Time.Sub(q.Now())
			n.Asked, n.NotAsked, n.ClockAhead = facts, "", &ahead
			mu.Lock()
			podsByNode[n.Name] = client.ObjectKeyFromObject(p)
			mu.Unlock()
			return
		}
	})
}

// askForPaths lets each node ask the others. While speakers run, the port is theirs, and they find
// out themselves.
func (c *Cluster) askForPaths(ctx context.Context, q NodeQuestions, podsByNode map[string]client.ObjectKey) error {
	if c.IsInstalled || len(podsByNode) < 2 {
		return ctx.Err()
	}
	q.ShowProgress("letting the nodes ask each other")
	c.IsOnePartOfPathsChecked = len(podsByNode) > maxNodesForAllPairs
	pathsByNode := make([][]PathBetweenNodes, len(c.Nodes))
	workqueue.ParallelizeUntil(ctx, maxParallelQuestions, len(c.Nodes), func(i int) {
		from := c.Nodes[i].Name
		pod, isAnswering := podsByNode[from]
		if !isAnswering {
			return
		}
		nodeByAddress := c.choosePathTargets(i, podsByNode)
		parameters := url.Values{}
		for address := range nodeByAddress {
			parameters.Add(nodefacts.PathsParameter, address)
		}
		page, err := q.FetchPage(ctx, pod, nodefacts.PathsPagePath+"?"+parameters.Encode())
		var paths []nodefacts.Path
		if err == nil {
			err = json.Unmarshal(page, &paths)
		}
		if err != nil {
			c.Nodes[i].NotAsked = err.Error()
			return
		}
		for _, p := range paths {
			pathsByNode[i] = append(pathsByNode[i], PathBetweenNodes{From: from, To: nodeByAddress[p.To.String()], TCP: p.TCP, UDP: p.UDP})
		}
	})
	for _, of := range pathsByNode {
		c.Paths = append(c.Paths, of...)
	}
	return ctx.Err()
}

// choosePathTargets returns the nodes that one node asks, by their addresses: the next ones in the
// order of names.
func (c *Cluster) choosePathTargets(from int, podsByNode map[string]client.ObjectKey) map[string]string {
	out := map[string]string{}
	for step := 1; step < len(c.Nodes) && len(out) < maxNodesForAllPairs; step++ {
		to := c.Nodes[(from+step)%len(c.Nodes)].Name
		_, isAnswering := podsByNode[to]
		if address := c.addressesByNode[to]; isAnswering && address.IsValid() {
			out[address.String()] = to
		}
	}
	return out
}

// AddNeeds adds parts of Gantry that will be used: bgp, bfd, ipv6, passwords or continuity.
func (n *Needs) AddNeeds(parts []string) error {
	for _, p := range parts {
		switch strings.ToLower(p) {
		case "bgp":
			n.BGP = true
		case "bfd":
			n.BFD = true
		case "ipv6":
			n.IPv6 = true
		case "passwords":
			n.Passwords = true
		case "continuity":
			n.AroundDeadNodes, n.KeepConnections = true, true
		default:
			return fmt.Errorf("unknown part %q: the parts are bgp, bfd, ipv6, passwords and continuity", p)
		}
	}
	return nil
}
