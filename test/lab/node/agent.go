// Package node stands in for the kubelet in the lab. An Agent registers its node, renews the node's lease, and runs the
// Pods that are scheduled to it: each in a network namespace of its own, Gantry's images as the real binaries with the
// rights, the variables, the volumes and the service account of their manifest, the image MachineImage as a program of this
// machine, every other image as a responder that answers on the container's ports. It pulls no images, and of volumes it
// knows readConfigMap, secret, emptyDir, hostPath and the service account's.
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
	// SelfPath is a program that calls Reexec before anything else.
	SelfPath string
	// LogDir takes a file for each container; RunDir holds service account tokens.
	LogDir, RunDir string
	Log            *slog.Logger
}

// Agent runs one node. Make it with New.
type Agent struct {
	config Config
	client *kubernetes.Clientset

	mu             sync.Mutex // guards all that follows
	podByUID       map[types.UID]*pod
	usedAddresses  map[netip.Addr]bool
	nextHostNumber int
	killed         bool
	running        sync.WaitGroup
}

// New returns an Agent that does nothing before Run.
func New(c Config) (*Agent, error) {
	client, err := kubernetes.NewForConfig(c.REST)
	if err != nil {
		return nil, fmt.Errorf("making a client for node %s: %w", c.Name, err)
	}
	return &Agent{config: c, client: client, podByUID: map[types.UID]*pod{}, usedAddresses: map[netip.Addr]bool{}, nextHostNumber: 2}, nil
}

// leaseInterval is how often the lease is renewed, and leaseDurationSeconds how long it holds: the kubelet's own figures.
const (
	leaseInterval        = 10 * time.Second
	leaseDurationSeconds = 40
	retryInterval        = 500 * time.Millisecond
)

// Run serves until ctx ends; then every container is stopped.
func (a *Agent) Run(ctx context.Context) error {
	if err := a.retryUntilDone(ctx, a.registerNode); err != nil {
		return err
	}
	go a.keepLeaseRenewed(ctx)
	source := cache.NewListWatchFromClient(a.client.CoreV1().RESTClient(), "pods", "", fields.OneTermEqualSelector("spec.nodeName", a.config.Name))
	_, informer := cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: source, ObjectType: &corev1.Pod{},
		Handler: cache.ResourceEventHandlerFuncs{
			AddFunc:    func(o any) { a.syncPod(ctx, o.(*corev1.Pod)) },
			UpdateFunc: func(_, o any) { a.syncPod(ctx, o.(*corev1.Pod)) },
			DeleteFunc: func(o any) {
				if gone, ok := o.(cache.DeletedFinalStateUnknown); ok {
					o = gone.Obj
				}
				a.forgetPod(o.(*corev1.Pod).UID)
			},
		},
	})
	informer.RunWithContext(ctx)
	a.running.Wait()
	return nil
}

// retryUntilDone calls f until it succeeds or ctx ends.
func (a *Agent) retryUntilDone(ctx context.Context, f func(context.Context) error) error {
	for {
		err := f(ctx)
		if err == nil {
			return nil
		}
		a.config.Log.Warn("talking to the API server", "node", a.config.Name, "error", err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(retryInterval):
		}
	}
}

// registerNode creates the Node or takes over the one that is there, and marks it ready.
func (a *Agent) registerNode(ctx context.Context) error {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: a.config.Name, Labels: map[string]string{
		corev1.LabelHostname: a.config.Name, corev1.LabelOSStable: "linux", corev1.LabelArchStable: "amd64",
	}}}
	for _, p := range a.config.PodCIDRs {
		n.Spec.PodCIDRs = append(n.Spec.PodCIDRs, p.String())
	}
	n.Spec.PodCIDR = n.Spec.PodCIDRs[0]
	nodes := a.client.CoreV1().Nodes()
	if _, err := nodes.Create(ctx, n, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("registering node %s: %w", a.config.Name, err)
	}
	n, err := nodes.Get(ctx, a.config.Name, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("reading node %s: %w", a.config.Name, err)
	}
	room := corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("16"), corev1.ResourceMemory: resource.MustParse("64Gi"), corev1.ResourcePods: resource.MustParse("200"),
	}
	n.Status.Capacity, n.Status.Allocatable = room, room
	n.Status.NodeInfo.KubeletVersion, n.Status.NodeInfo.OperatingSystem, n.Status.NodeInfo.Architecture = "v1.37.0", "linux", "amd64"
	n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: a.config.Name}}
	for _, ip := range a.config.Addresses {
		n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: ip.String()})
	}
	now := metav1.Now()
	n.Status.Conditions = []corev1.NodeCondition{{
		Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "LabNodeReady", Message: "the lab runs this node",
		LastHeartbeatTime: now, LastTransitionTime: now,
	}}
	if _, err := nodes.UpdateStatus(ctx, n, metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("reporting node %s: %w", a.config.Name, err)
	}
	// The control plane would lift the taint of a node that was not ready yet too, but only every few seconds.
	n, err = nodes.Get(ctx, a.config.Name, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("reading node %s: %w", a.config.Name, err)
	}
	taints := slices.DeleteFunc(slices.Clone(n.Spec.Taints), func(t corev1.Taint) bool { return t.Key == corev1.TaintNodeNotReady })
	if len(taints) != len(n.Spec.Taints) {
		n.Spec.Taints = taints
		if _, err := nodes.Update(ctx, n, metav1.UpdateOptions{}); err != nil {
			return fmt.Errorf("lifting the taint of node %s: %w", a.config.Name, err)
		}
	}
	return a.renewLease(ctx)
}

// keepLeaseRenewed keeps the lease; when it lapses the control plane calls the node NotReady. A node that it called so says that it
// is ready again.
func (a *Agent) keepLeaseRenewed(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(leaseInterval):
		}
		short, cancel := context.WithTimeout(ctx, leaseInterval)
		n, err := a.client.CoreV1().Nodes().Get(short, a.config.Name, metav1.GetOptions{})
		if err == nil && !isNodeReady(n) {
			err = a.registerNode(short)
		} else if err == nil {
			err = a.renewLease(short)
		}
		cancel()
		if err != nil && ctx.Err() == nil {
			a.config.Log.Warn("renewing the lease", "node", a.config.Name, "error", err)
		}
	}
}

func isNodeReady(n *corev1.Node) bool {
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status == corev1.ConditionTrue || strings.Contains(c.Message, "shutting down") // which somebody means
		}
	}
	return false
}

func (a *Agent) renewLease(ctx context.Context) error {
	leases := a.client.CoordinationV1().Leases(corev1.NamespaceNodeLease)
	seconds, now := int32(leaseDurationSeconds), metav1.NowMicro()
	spec := coordinationv1.LeaseSpec{HolderIdentity: &a.config.Name, LeaseDurationSeconds: &seconds, RenewTime: &now}
	l, err := leases.Get(ctx, a.config.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		_, err = leases.Create(ctx, &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: a.config.Name}, Spec: spec}, metav1.CreateOptions{})
	} else if err == nil {
		l.Spec = spec
		_, err = leases.Update(ctx, l, metav1.UpdateOptions{})
	}
	if err != nil {
		return fmt.Errorf("renewing the lease of node %s: %w", a.config.Name, err)
	}
	return nil
}

// KillPods is a power failure: every container dies at once and nothing is reported. The context of Run has to be ended too.
func (a *Agent) KillPods() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.killed = true
	for _, p := range a.podByUID {
		p.killContainers()
	}
}

// PrintPods lists the Pods of the node.
func (a *Agent) PrintPods(w io.Writer) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, p := range a.podByUID {
		fmt.Fprintf(w, "  %s/%s %s\n", p.firstObject.Namespace, p.firstObject.Name, p.primaryIP)
	}
}
