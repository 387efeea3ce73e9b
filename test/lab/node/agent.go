// Package node stands in for the kubelet in the lab. An Agent registers its node, renews the node's lease, and runs the
// Pods that are scheduled to it: each in a network namespace of its own, Gantry's images as the real binaries with the
// rights, the variables, the volumes and the service account of their manifest, the image MachineImage as a program of this
// machine, every other image as a responder that answers on the container's ports. It pulls no images, and of volumes it
// knows configMap, secret, emptyDir, hostPath and the service account's.
package node

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"github.com/gantry-lb/gantry/test/lab/netns"
)

// Config describes one node.
type Config struct {
	Name  string
	NetNS netns.Handle
	// Addresses are the node's own, IPv4 first; PodCIDRs the networks of its Pods in the same order.
	Addresses []netip.Addr
	PodCIDRs  []netip.Prefix
	// REST reaches the API server from inside the node.
	REST *rest.Config
	// BinDir holds Gantry's binaries, Image is the prefix of the images that mean them.
	BinDir, Image string
	// Self is a program that calls Reexec before anything else.
	Self string
	// LogDir takes a file for each container; RunDir holds service account tokens.
	LogDir, RunDir string
	Log            *slog.Logger
}

// Agent runs one node. Make it with New.
type Agent struct {
	c      Config
	client *kubernetes.Clientset

	mu   sync.Mutex // guards all that follows
	pods map[types.UID]*pod
	used map[netip.Addr]bool
	next int
	dead bool
	wait sync.WaitGroup
}

// New returns an Agent that does nothing before Run.
func New(c Config) (*Agent, error) {
	client, err := kubernetes.NewForConfig(c.REST)
	if err != nil {
		return nil, fmt.Errorf("making a client for node %s: %w", c.Name, err)
	}
	return &Agent{c: c, client: client, pods: map[types.UID]*pod{}, used: map[netip.Addr]bool{}, next: 2}, nil
}

// leaseInterval is how often the lease is renewed, and leaseSeconds how long it holds: the kubelet's own figures.
const (
	leaseInterval = 10 * time.Second
	leaseSeconds  = 40
	retryInterval = 500 * time.Millisecond
)

// Run serves until ctx ends; then every container is stopped.
func (a *Agent) Run(ctx context.Context) error {
	if err := a.persist(ctx, a.register); err != nil {
		return err
	}
	go a.renew(ctx)
	source := cache.NewListWatchFromClient(a.client.CoreV1().RESTClient(), "pods", "", fields.OneTermEqualSelector("spec.nodeName", a.c.Name))
	_, informer := cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: source, ObjectType: &corev1.Pod{},
		Handler: cache.ResourceEventHandlerFuncs{
			AddFunc:    func(o any) { a.sync(ctx, o.(*corev1.Pod)) },
			UpdateFunc: func(_, o any) { a.sync(ctx, o.(*corev1.Pod)) },
			DeleteFunc: func(o any) {
				if gone, ok := o.(cache.DeletedFinalStateUnknown); ok {
					o = gone.Obj
				}
				a.forget(o.(*corev1.Pod).UID)
			},
		},
	})
	informer.RunWithContext(ctx)
	a.wait.Wait()
	return nil
}

// persist calls f until it succeeds or ctx ends.
func (a *Agent) persist(ctx context.Context, f func(context.Context) error) error {
	for {
		err := f(ctx)
		if err == nil {
			return nil
		}
		a.c.Log.Warn("talking to the API server", "node", a.c.Name, "error", err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(retryInterval):
		}
	}
}

// register creates the Node or takes over the one that is there, and marks it ready.
func (a *Agent) register(ctx context.Context) error {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: a.c.Name, Labels: map[string]string{
		corev1.LabelHostname: a.c.Name, corev1.LabelOSStable: "linux", corev1.LabelArchStable: "amd64",
	}}}
	for _, p := range a.c.PodCIDRs {
		n.Spec.PodCIDRs = append(n.Spec.PodCIDRs, p.String())
	}
	n.Spec.PodCIDR = n.Spec.PodCIDRs[0]
	nodes := a.client.CoreV1().Nodes()
	if _, err := nodes.Create(ctx, n, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("registering node %s: %w", a.c.Name, err)
	}
	n, err := nodes.Get(ctx, a.c.Name, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("reading node %s: %w", a.c.Name, err)
	}
	room := corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("16"), corev1.ResourceMemory: resource.MustParse("64Gi"), corev1.ResourcePods: resource.MustParse("200"),
	}
	n.Status.Capacity, n.Status.Allocatable = room, room
	n.Status.NodeInfo.KubeletVersion, n.Status.NodeInfo.OperatingSystem, n.Status.NodeInfo.Architecture = "v1.37.0", "linux", "amd64"
	n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: a.c.Name}}
	for _, ip := range a.c.Addresses {
		n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: ip.String()})
	}
	now := metav1.Now()
	n.Status.Conditions = []corev1.NodeCondition{{
		Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "LabNodeReady", Message: "the lab runs this node",
		LastHeartbeatTime: now, LastTransitionTime: now,
	}}
	if _, err := nodes.UpdateStatus(ctx, n, metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("reporting node %s: %w", a.c.Name, err)
	}
	// The control plane would lift the taint of a node that was not ready yet too, but only every few seconds.
	n, err = nodes.Get(ctx, a.c.Name, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("reading node %s: %w", a.c.Name, err)
	}
	taints := slices.DeleteFunc(slices.Clone(n.Spec.Taints), func(t corev1.Taint) bool { return t.Key == corev1.TaintNodeNotReady })
	if len(taints) != len(n.Spec.Taints) {
		n.Spec.Taints = taints
		if _, err := nodes.Update(ctx, n, metav1.UpdateOptions{}); err != nil {
			return fmt.Errorf("lifting the taint of node %s: %w", a.c.Name, err)
		}
	}
	return a.renewOnce(ctx)
}

// renew keeps the lease; when it lapses the control plane calls the node NotReady. A node that it called so says that it
// is ready again.
func (a *Agent) renew(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(leaseInterval):
		}
		short, cancel := context.WithTimeout(ctx, leaseInterval)
		n, err := a.client.CoreV1().Nodes().Get(short, a.c.Name, metav1.GetOptions{})
		if err == nil && !ready(n) {
			err = a.register(short)
		} else if err == nil {
			err = a.renewOnce(short)
		}
		cancel()
		if err != nil && ctx.Err() == nil {
			a.c.Log.Warn("renewing the lease", "node", a.c.Name, "error", err)
		}
	}
}

func ready(n *corev1.Node) bool {
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status == corev1.ConditionTrue || strings.Contains(c.Message, "shutting down") // which somebody means
		}
	}
	return false
}

func (a *Agent) renewOnce(ctx context.Context) error {
	leases := a.client.CoordinationV1().Leases(corev1.NamespaceNodeLease)
	seconds, now := int32(leaseSeconds), metav1.NowMicro()
	spec := coordinationv1.LeaseSpec{HolderIdentity: &a.c.Name, LeaseDurationSeconds: &seconds, RenewTime: &now}
	l, err := leases.Get(ctx, a.c.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		_, err = leases.Create(ctx, &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: a.c.Name}, Spec: spec}, metav1.CreateOptions{})
	} else if err == nil {
		l.Spec = spec
		_, err = leases.Update(ctx, l, metav1.UpdateOptions{})
	}
	if err != nil {
		return fmt.Errorf("renewing the lease of node %s: %w", a.c.Name, err)
	}
	return nil
}

// Kill is a power failure: every container dies at once and nothing is reported. The context of Run has to be ended too.
func (a *Agent) Kill() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.dead = true
	for _, p := range a.pods {
		p.kill()
	}
}

// Print lists the Pods of the node.
func (a *Agent) Print(w io.Writer) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, p := range a.pods {
		fmt.Fprintf(w, "  %s/%s %s\n", p.first.Namespace, p.first.Name, p.ip)
	}
}
