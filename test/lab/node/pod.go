package node

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/gantry-lb/gantry/internal/latest"
	"github.com/gantry-lb/gantry/test/lab/netns"
)

// pod is a Pod on this node.
type pod struct {
	agent                *Agent
	firstObject          *corev1.Pod // as first seen; its name and specification never change
	latestObject         *corev1.Pod // as last seen; guarded by the agent's mutex
	networkNamespace     netns.Path
	ownsNetworkNamespace bool       // namespace belongs to this Pod only
	primaryIP            netip.Addr // the first of ips
	// One for each family; set under the agent's mutex before any container starts.
	podIPs              []netip.Addr
	containers          []*podContainer // one for each container
	ctx                 context.Context
	cancel              context.CancelFunc
	statusWriteRequests *latest.Wake // requests a write of the status
}

// startUpdateOrEndPod starts, updates or ends a Pod after a change of its object.
func (a *Agent) startUpdateOrEndPod(ctx context.Context, o *corev1.Pod) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.isPoweredOff || ctx.Err() != nil {
		return
	}
	p := a.podByUID[o.UID]
	switch {
	case p == nil && o.DeletionTimestamp != nil:
		a.runInBackground(func() { a.deletePodObject(ctx, o) })
	case p == nil && (o.Status.Phase == corev1.PodSucceeded || o.Status.Phase == corev1.PodFailed):
	case p == nil:
		p = &pod{agent: a, firstObject: o, latestObject: o, statusWriteRequests: latest.NewWake()}
		for i := range o.Spec.Containers {
			p.containers = append(p.containers, newContainer(p, &o.Spec.Containers[i]))
		}
		p.ctx, p.cancel = context.WithCancel(ctx)
		a.podByUID[o.UID] = p
		a.runInBackground(p.runUntilCancelled)
	case o.DeletionTimestamp != nil && p.latestObject.DeletionTimestamp == nil:
		p.latestObject = o
		a.runInBackground(func() { p.terminateGracefullyAndDeleteObject(ctx) })
	default:
		p.latestObject = o
		p.requestStatusUpdate()
	}
}

// currentObject returns the Pod's object as last seen.
func (p *pod) currentObject() *corev1.Pod {
	p.agent.mu.Lock()
	defer p.agent.mu.Unlock()
	return p.latestObject
}

func (a *Agent) runInBackground(f func()) {
	a.runningTasks.Add(1)
	go func() {
		defer a.runningTasks.Done()
		f()
	}()
}

// killPodOfDeletedObject kills a Pod whose object was deleted.
func (a *Agent) killPodOfDeletedObject(uid types.UID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if p := a.podByUID[uid]; p != nil {
		p.killContainers()
		p.cancel()
		delete(a.podByUID, uid)
	}
}

// runUntilCancelled runs the Pod until its context ends.
func (p *pod) runUntilCancelled() {
	defer p.cleanUp()
	if err := p.agent.retryUntilNoError(p.ctx, func(context.Context) error { return p.createPodNetworkNamespace() }); err != nil {
		for _, r := range p.containers { // none of them has been started
			close(r.endedForGoodSignal)
		}
		return
	}
	for _, r := range p.containers {
		p.agent.runInBackground(r.runAndRestart)
		p.agent.runInBackground(r.runProbes)
	}
	p.writeStatusAfterEachChange()
}

// writeStatusAfterEachChange writes the current status after each change.
func (p *pod) writeStatusAfterEachChange() {
	p.requestStatusUpdate()
	for {
		select {
		case <-p.ctx.Done():
			return
		case <-p.statusWriteRequests.C():
		}
		_ = p.agent.retryUntilNoError(p.ctx, p.writeStatus)
	}
}

func (p *pod) requestStatusUpdate() { p.statusWriteRequests.Signal() }

// createPodNetworkNamespace creates the Pod's network namespace, with an address and a route to its
// node.
func (p *pod) createPodNetworkNamespace() error {
	a := p.agent
	addresses, err := p.assignAddresses()
	if p.firstObject.Spec.HostNetwork || err != nil {
		p.networkNamespace = a.config.NetNS
		return err
	}
	sum := sha256.Sum256([]byte(p.firstObject.UID))
	id := hex.EncodeToString(sum[:5])
	ns, err := netns.NewNamed("pod-" + id)
	if err != nil {
		return err
	}
	if err := p.connectToNode(ns, id, addresses); err != nil {
		_ = ns.DeleteNamespaceFile() // its link goes with it; the next attempt creates both again
		return err
	}
	p.networkNamespace, p.ownsNetworkNamespace = ns, true
	return nil
}

// assignAddresses assigns the Pod its addresses. Later calls return the same ones.
func (p *pod) assignAddresses() ([]netip.Addr, error) {
	p.agent.mu.Lock()
	defer p.agent.mu.Unlock()
	if len(p.podIPs) > 0 { // an earlier attempt has assigned them
		return p.podIPs, nil
	}
	addresses := p.agent.config.Addresses
	if !p.firstObject.Spec.HostNetwork {
		var err error
		if addresses, err = p.agent.allocateAddresses(); err != nil {
			return nil, err
		}
	}
	p.primaryIP, p.podIPs = addresses[0], addresses
	return addresses, nil
}

// connectToNode connects the Pod's namespace to that of its node.
func (p *pod) connectToNode(ns netns.Path, id string, addresses []netip.Addr) error {
	a := p.agent
	veth := "veth" + id
	if err := netns.AddCable(a.config.NetNS, veth, ns, "eth0"); err != nil {
		return err
	}
	err := a.config.NetNS.RunInside(func() error { return configureNodeEndOfPodVeth(veth, addresses) })
	if err != nil {
		return err
	}
	return ns.RunInside(func() error { return configurePodEndOfPodVeth(addresses) })
}

// gatewayOfPods returns the address of the node by which Pods reach others, of the family of an
// address.
func gatewayOfPods(a netip.Addr) netip.Addr {
	if a.Is4() {
		return netip.MustParseAddr("169.254.1.1")
	}
	return netip.MustParseAddr("fe80::1")
}

func configureNodeEndOfPodVeth(veth string, addresses []netip.Addr) error {
	if err := netns.SetLinkUp(veth); err != nil {
		return err
	}
	for _, ip := range addresses {
		gateway := gatewayOfPods(ip)
		if err := netns.AddAddress(veth, netip.PrefixFrom(gateway, gateway.BitLen())); err != nil {
			return err
		}
		if err := netns.AddRoute(veth, netip.PrefixFrom(ip, ip.BitLen()), netip.Addr{}); err != nil {
			return err
		}
	}
	return nil
}

func configurePodEndOfPodVeth(addresses []netip.Addr) error {
	if err := netns.SetLinkUp("eth0"); err != nil {
		return err
	}
	for _, ip := range addresses {
		gateway := gatewayOfPods(ip)
		if err := netns.AddAddress("eth0", netip.PrefixFrom(ip, ip.BitLen())); err != nil {
			return err
		}
		if err := netns.AddRoute("eth0", netip.PrefixFrom(gateway, gateway.BitLen()), netip.Addr{}); err != nil {
			return err
		}
		all := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if ip.Is6() {
			all = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		if err := netns.AddRoute("eth0", all, gateway); err != nil {
			return err
		}
	}
	return nil
}

// allocateAddresses takes the next free host number, which is the same in each family. It reuses a
// freed number as late as possible.
func (a *Agent) allocateAddresses() ([]netip.Addr, error) {
	for range 252 {
		n := a.nextHostNumber
		if a.nextHostNumber++; a.nextHostNumber > 253 {
			a.nextHostNumber = 2
		}
		first := addressWithHostNumber(a.config.PodCIDRs[0], n)
		if a.usedAddresses[first] {
			continue
		}
		a.usedAddresses[first] = true
		out := []netip.Addr{first}
		for _, p := range a.config.PodCIDRs[1:] {
			out = append(out, addressWithHostNumber(p, n))
		}
		return out, nil
	}
	return nil, fmt.Errorf("no address of %s is free", a.config.PodCIDRs[0])
}

func addressWithHostNumber(p netip.Prefix, n int) netip.Addr {
	b := p.Addr().AsSlice()
	b[len(b)-1] = byte(n)
	a, _ := netip.AddrFromSlice(b)
	return a
}

// terminateGracefullyAndDeleteObject ends the Pod as the kubelet does, with SIGTERM and a grace
// period, and then deletes its object.
func (p *pod) terminateGracefullyAndDeleteObject(ctx context.Context) {
	grace := 30 * time.Second
	if s := p.currentObject().DeletionGracePeriodSeconds; s != nil {
		grace = time.Duration(*s) * time.Second
	}
	p.requestStatusUpdate()
	p.sendSignal(syscall.SIGTERM, true)
	deadline := time.After(grace)
	for _, r := range p.containers {
		select {
		case <-r.endedForGoodSignal:
		case <-deadline:
			p.killContainers()
			p.cancel() // for a Pod whose network was not connected yet
			<-r.endedForGoodSignal
		case <-p.ctx.Done():
		}
	}
	p.cancel()
	p.agent.mu.Lock()
	o := p.latestObject
	delete(p.agent.podByUID, o.UID)
	dead := p.agent.isPoweredOff
	p.agent.mu.Unlock()
	if !dead {
		p.agent.deletePodObject(ctx, o)
	}
}

// deletePodObject deletes the object of a Pod that is not running any more.
func (a *Agent) deletePodObject(ctx context.Context, o *corev1.Pod) {
	zero := int64(0)
	_ = a.retryUntilNoError(ctx, func(ctx context.Context) error {
		err := a.client.CoreV1().Pods(o.Namespace).Delete(ctx, o.Name, metav1.DeleteOptions{
			GracePeriodSeconds: &zero, Preconditions: metav1.NewUIDPreconditions(string(o.UID)),
		})
		if isNotFoundOrConflict(err) {
			return nil
		}
		return err
	})
}

// sendSignal sends a signal to every container. If final is true, no container is started again.
func (p *pod) sendSignal(s syscall.Signal, final bool) {
	for _, r := range p.containers {
		r.sendSignal(s, final)
	}
}

func (p *pod) killContainers() { p.sendSignal(syscall.SIGKILL, true) }

// cleanUp removes what is left of the Pod.
func (p *pod) cleanUp() {
	p.killContainers()
	for _, r := range p.containers {
		<-r.endedForGoodSignal
	}
	p.agent.mu.Lock()
	delete(p.agent.usedAddresses, p.primaryIP)
	p.agent.mu.Unlock()
	if p.ownsNetworkNamespace {
		if err := p.networkNamespace.DeleteNamespaceFile(); err != nil {
			p.agent.config.Log.Warn("cleaning up", "pod", p.firstObject.Name, "error", err)
		}
	}
	os.RemoveAll(p.volumesAndTokensDir())
}

func (p *pod) volumesAndTokensDir() string {
	return filepath.Join(p.agent.config.VolumesAndTokensDir, string(p.firstObject.UID))
}

// SignalPod sends a signal to the containers of the Pod whose name has this prefix. A container
// that the signal ends is started again.
func (a *Agent) SignalPod(name string, s syscall.Signal) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, p := range a.podByUID {
		if strings.HasPrefix(p.firstObject.Name, name) {
			p.sendSignal(s, false)
			return nil
		}
	}
	return fmt.Errorf("no Pod %q is running on node %s", name, a.config.Name)
}
