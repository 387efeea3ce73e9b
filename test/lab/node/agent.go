// Package node replaces the kubelet in the lab. An Agent registers its node, renews the node's
// lease and runs the Pods that are scheduled to it, each in a network namespace of its own. It
// never pulls an image. Gantry's images run as the real binaries, with the privileges, variables,
// volumes and service account of their manifest. The image ImageRunningMachineProgram runs a
// program of this machine. Every other image runs a responder that answers on the container's
// ports. The volume types are configMap, secret, emptyDir, hostPath and the service account's. Of
// the kubelet's API only pods/portforward exists.
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
	NetNS netns.Path
	// Addresses are the node's own addresses, IPv4 first. PodCIDRs are the networks of its Pods, in
	// the same order.
	Addresses []netip.Addr
	PodCIDRs  []netip.Prefix
	// RESTConfig reaches the API server from the node's network namespace.
	RESTConfig *rest.Config
	// APIServerClusterIPAddress is the address by which Pods reach the API server.
	APIServerClusterIPAddress string
	// GantryBinDir has Gantry's binaries. GantryImageName is the name of the image that stands for
	// them, in any registry.
	GantryBinDir, GantryImageName string
	// SelfPath is the path of a program that calls Reexec before anything else.
	SelfPath string
	// LogDir gets a file for each container. VolumesAndTokensDir gets volumes and service account
	// tokens.
	LogDir, VolumesAndTokensDir string
	Log                         *slog.Logger
}

// Agent runs one node. New creates it.
type Agent struct {
	config Config
	client *kubernetes.Clientset

	mu             sync.Mutex // guards the fields below
	podByUID       map[types.UID]*pod
	usedAddresses  map[netip.Addr]bool
	nextHostNumber int
	isPoweredOff   bool
	runningTasks   sync.WaitGroup
}

// NewAgent returns an Agent, which does nothing before Run.
func NewAgent(c Config) (*Agent, error) {
	client, err := kubernetes.NewForConfig(c.RESTConfig)
	if err != nil {
		return nil, fmt.Errorf("creating a client for node %s: %w", c.Name, err)
	}
	return &Agent{config: c, client: client, podByUID: map[types.UID]*pod{}, usedAddresses: map[netip.Addr]bool{}, nextHostNumber: 2}, nil
}

// leaseRenewInterval is the time between renewals of the lease, and leaseDurationSeconds how long
// it is valid: both are the kubelet's defaults.
const (
	leaseRenewInterval   = 10 * time.Second
	leaseDurationSeconds = 40
	apiRetryInterval     = 500 * time.Millisecond
)

// Run runs the node until ctx ends. Then it kills every container.
func (a *Agent) Run(ctx context.Context) error {
	if err := a.retryUntilNoError(ctx, a.registerNode); err != nil {
		return err
	}
	go a.renewLeaseOrReregisterForever(ctx)
	a.runInBackground(func() {
		if err := a.servePortForwards(ctx); err != nil {
			a.config.Log.Warn("no port-forward", "node", a.config.Name, "error", err)
		}
	})
	source := cache.NewListWatchFromClient(a.client.CoreV1().RESTClient(), "pods", "", fields.OneTermEqualSelector("spec.nodeName", a.config.Name))
	_, informer := cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: source, ObjectType: &corev1.Pod{},
		Handler: cache.ResourceEventHandlerFuncs{
			AddFunc:    func(o any) { a.startUpdateOrEndPod(ctx, o.(*corev1.Pod)) },
			UpdateFunc: func(_, o any) { a.startUpdateOrEndPod(ctx, o.(*corev1.Pod)) },
			DeleteFunc: func(o any) {
				if gone, ok := o.(cache.DeletedFinalStateUnknown); ok {
					o = gone.Obj
				}
				a.killPodOfDeletedObject(o.(*corev1.Pod).UID)
			},
		},
	})
	informer.RunWithContext(ctx)
	a.runningTasks.Wait()
	return nil
}

// retryUntilNoError calls f until it succeeds or ctx ends.
func (a *Agent) retryUntilNoError(ctx context.Context, f func(context.Context) error) error {
	for {
		err := f(ctx)
		if err == nil {
			return nil
		}
		a.config.Log.Warn("talking to the API server", "node", a.config.Name, "error", err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(apiRetryInterval):
		}
	}
}

// registerNode creates the Node, or uses an existing one, and marks it Ready.
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
	capacity := corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("16"), corev1.ResourceMemory: resource.MustParse("64Gi"), corev1.ResourcePods: resource.MustParse("200"),
	}
	n.Status.Capacity, n.Status.Allocatable = capacity, capacity
	n.Status.NodeInfo.KubeletVersion, n.Status.NodeInfo.OperatingSystem, n.Status.NodeInfo.Architecture = "v1.37.0", "linux", "amd64"
	n.Status.DaemonEndpoints.KubeletEndpoint.Port = kubeletPort
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
		return fmt.Errorf("writing the status of node %s: %w", a.config.Name, err)
	}
	// The control plane would remove the not-ready taint too, but only after some seconds.
	n, err = nodes.Get(ctx, a.config.Name, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("reading node %s: %w", a.config.Name, err)
	}
	taints := slices.DeleteFunc(slices.Clone(n.Spec.Taints), func(t corev1.Taint) bool { return t.Key == corev1.TaintNodeNotReady })
	if len(taints) != len(n.Spec.Taints) {
		n.Spec.Taints = taints
		if _, err := nodes.Update(ctx, n, metav1.UpdateOptions{}); err != nil {
			return fmt.Errorf("removing the taint of node %s: %w", a.config.Name, err)
		}
	}
	return a.renewLease(ctx)
}

// renewLeaseOrReregisterForever renews the lease: without it the control plane marks the node
// NotReady. If it has done so, the node registers again.
func (a *Agent) renewLeaseOrReregisterForever(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(leaseRenewInterval):
		}
		short, cancel := context.WithTimeout(ctx, leaseRenewInterval)
		n, err := a.client.CoreV1().Nodes().Get(short, a.config.Name, metav1.GetOptions{})
		if err == nil && !isNodeReadyOrShuttingDown(n) {
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

func isNodeReadyOrShuttingDown(n *corev1.Node) bool {
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			// which a test has set on purpose
			return c.Status == corev1.ConditionTrue || strings.Contains(c.Message, "shutting down")
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

// SimulatePowerFailure simulates a power failure: every container dies and nothing is
// reported. The caller has to end the context of Run as well.
func (a *Agent) SimulatePowerFailure() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.isPoweredOff = true
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
