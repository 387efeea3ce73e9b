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

	"github.com/gantry-lb/gantry/test/lab/netns"
)

// pod is a Pod that runs here.
type pod struct {
	agent         *Agent
	firstObject   *corev1.Pod // as first seen: its name and its specification are good for ever
	latestObject  *corev1.Pod // as last seen; guarded by the agent's mutex
	namespace     netns.Handle
	ownsNamespace bool         // ns is the Pod's alone
	primaryIP     netip.Addr   // the first of ips
	ips           []netip.Addr // one for each family; set under the agent's mutex, before any container starts
	containers    []*container // one for each container
	ctx           context.Context
	cancel        context.CancelFunc
	statusChanged chan struct{} // asks for the status to be written
}

// syncPod brings a Pod in line with what the API server says of it.
func (a *Agent) syncPod(ctx context.Context, o *corev1.Pod) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.killed || ctx.Err() != nil {
		return
	}
	p := a.podByUID[o.UID]
	switch {
	case p == nil && o.DeletionTimestamp != nil:
		a.runInBackground(func() { a.deletePodObject(ctx, o) })
	case p == nil && (o.Status.Phase == corev1.PodSucceeded || o.Status.Phase == corev1.PodFailed):
	case p == nil:
		p = &pod{agent: a, firstObject: o, latestObject: o, statusChanged: make(chan struct{}, 1)}
		for i := range o.Spec.Containers {
			p.containers = append(p.containers, newContainer(p, &o.Spec.Containers[i]))
		}
		p.ctx, p.cancel = context.WithCancel(ctx)
		a.podByUID[o.UID] = p
		a.runInBackground(p.runUntilDone)
	case o.DeletionTimestamp != nil && p.latestObject.DeletionTimestamp == nil:
		p.latestObject = o
		a.runInBackground(func() { p.terminatePod(ctx) })
	default:
		p.latestObject = o
		p.requestStatusUpdate()
	}
}

// currentObject is the Pod as last seen.
func (p *pod) currentObject() *corev1.Pod {
	p.agent.mu.Lock()
	defer p.agent.mu.Unlock()
	return p.latestObject
}

func (a *Agent) runInBackground(f func()) {
	a.running.Add(1)
	go func() {
		defer a.running.Done()
		f()
	}()
}

// forgetPod kills a Pod whose object is gone.
func (a *Agent) forgetPod(uid types.UID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if p := a.podByUID[uid]; p != nil {
		p.killContainers()
		p.cancel()
		delete(a.podByUID, uid)
	}
}

// runUntilDone runs the Pod until its context ends.
func (p *pod) runUntilDone() {
	defer p.cleanUp()
	if err := p.agent.retryUntilDone(p.ctx, func(context.Context) error { return p.connectNetwork() }); err != nil {
		for _, r := range p.containers { // they have never begun
			close(r.ended)
		}
		return
	}
	for _, r := range p.containers {
		p.agent.runInBackground(r.runAndRestart)
		p.agent.runInBackground(r.runProbes)
	}
	p.keepStatusReported()
}

// keepStatusReported writes the status after each change, the latest only.
func (p *pod) keepStatusReported() {
	p.requestStatusUpdate()
	for {
		select {
		case <-p.ctx.Done():
			return
		case <-p.statusChanged:
		}
		_ = p.agent.retryUntilDone(p.ctx, p.writeStatus)
	}
}

func (p *pod) requestStatusUpdate() {
	select {
	case p.statusChanged <- struct{}{}:
	default:
	}
}

// connectNetwork gives the Pod a network namespace, an address and a route to its node.
func (p *pod) connectNetwork() error {
	a := p.agent
	addresses, err := p.assignAddresses()
	if p.firstObject.Spec.HostNetwork || err != nil {
		p.namespace = a.config.NetNS
		return err
	}
	sum := sha256.Sum256([]byte(p.firstObject.UID))
	id := hex.EncodeToString(sum[:5])
	ns, err := netns.New("pod-" + id)
	if err != nil {
		return err
	}
	if err := p.connectToNode(ns, id, addresses); err != nil {
		_ = ns.Delete() // with its link: the next attempt makes both anew
		return err
	}
	p.namespace, p.ownsNamespace = ns, true
	return nil
}

// assignAddresses gives the Pod its addresses, once.
func (p *pod) assignAddresses() ([]netip.Addr, error) {
	p.agent.mu.Lock()
	defer p.agent.mu.Unlock()
	if len(p.ips) > 0 { // this is another attempt
		return p.ips, nil
	}
	addresses := p.agent.config.Addresses
	if !p.firstObject.Spec.HostNetwork {
		var err error
		if addresses, err = p.agent.allocateAddresses(); err != nil {
			return nil, err
		}
	}
	p.primaryIP, p.ips = addresses[0], addresses
	return addresses, nil
}

// connectToNode joins the Pod's namespace to its node's.
func (p *pod) connectToNode(ns netns.Handle, id string, addresses []netip.Addr) error {
	a := p.agent
	veth := "veth" + id
	if err := netns.AddCable(a.config.NetNS, veth, ns, "eth0"); err != nil {
		return err
	}
	gateways := []netip.Addr{netip.MustParseAddr("169.254.1.1"), netip.MustParseAddr("fe80::1")}
	err := a.config.NetNS.Do(func() error { return configureNodeSide(veth, gateways[:len(addresses)], addresses) })
	if err != nil {
		return err
	}
	return ns.Do(func() error { return configurePodSide(gateways[:len(addresses)], addresses) })
}

func configureNodeSide(veth string, gateways, addresses []netip.Addr) error {
	if err := netns.SetUp(veth); err != nil {
		return err
	}
	for i, ip := range addresses {
		if err := netns.AddAddress(veth, netip.PrefixFrom(gateways[i], gateways[i].BitLen())); err != nil {
			return err
		}
		if err := netns.AddRoute(veth, netip.PrefixFrom(ip, ip.BitLen()), netip.Addr{}); err != nil {
			return err
		}
	}
	return nil
}

func configurePodSide(gateways, addresses []netip.Addr) error {
	if err := netns.SetUp("eth0"); err != nil {
		return err
	}
	for i, ip := range addresses {
		if err := netns.AddAddress("eth0", netip.PrefixFrom(ip, ip.BitLen())); err != nil {
			return err
		}
		if err := netns.AddRoute("eth0", netip.PrefixFrom(gateways[i], gateways[i].BitLen()), netip.Addr{}); err != nil {
			return err
		}
		all := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if ip.Is6() {
			all = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		if err := netns.AddRoute("eth0", all, gateways[i]); err != nil {
			return err
		}
	}
	return nil
}

// allocateAddresses takes the next host number, the same in each family; one that was just freed is used last.
func (a *Agent) allocateAddresses() ([]netip.Addr, error) {
	for range 252 {
		n := a.nextHostNumber
		if a.nextHostNumber++; a.nextHostNumber > 253 {
			a.nextHostNumber = 2
		}
		first := hostAddress(a.config.PodCIDRs[0], n)
		if a.usedAddresses[first] {
			continue
		}
		a.usedAddresses[first] = true
		out := []netip.Addr{first}
		for _, p := range a.config.PodCIDRs[1:] {
			out = append(out, hostAddress(p, n))
		}
		return out, nil
	}
	return nil, fmt.Errorf("no address of %s is free", a.config.PodCIDRs[0])
}

func hostAddress(p netip.Prefix, n int) netip.Addr {
	b := p.Addr().AsSlice()
	b[len(b)-1] = byte(n)
	a, _ := netip.AddrFromSlice(b)
	return a
}

// terminatePod ends the Pod in order, then tells the API server that it is gone.
func (p *pod) terminatePod(ctx context.Context) {
	grace := 30 * time.Second
	if s := p.currentObject().DeletionGracePeriodSeconds; s != nil {
		grace = time.Duration(*s) * time.Second
	}
	p.requestStatusUpdate()
	p.sendSignal(syscall.SIGTERM, true)
	deadline := time.After(grace)
	for _, r := range p.containers {
		select {
		case <-r.ended:
		case <-deadline:
			p.killContainers()
			p.cancel() // for one that could not be connected until now
			<-r.ended
		case <-p.ctx.Done():
		}
	}
	p.cancel()
	p.agent.mu.Lock()
	o := p.latestObject
	delete(p.agent.podByUID, o.UID)
	dead := p.agent.killed
	p.agent.mu.Unlock()
	if !dead {
		p.agent.deletePodObject(ctx, o)
	}
}

// deletePodObject deletes the object of a Pod that does not run any more.
func (a *Agent) deletePodObject(ctx context.Context, o *corev1.Pod) {
	zero := int64(0)
	_ = a.retryUntilDone(ctx, func(ctx context.Context) error {
		err := a.client.CoreV1().Pods(o.Namespace).Delete(ctx, o.Name, metav1.DeleteOptions{
			GracePeriodSeconds: &zero, Preconditions: metav1.NewUIDPreconditions(string(o.UID)),
		})
		if isGoneOrReplaced(err) {
			return nil
		}
		return err
	})
}

// sendSignal sends a signal to every container; final says that none is to be started again.
func (p *pod) sendSignal(s syscall.Signal, final bool) {
	for _, r := range p.containers {
		r.sendSignal(s, final)
	}
}

func (p *pod) killContainers() { p.sendSignal(syscall.SIGKILL, true) }

// cleanUp removes what the Pod left.
func (p *pod) cleanUp() {
	p.killContainers()
	for _, r := range p.containers {
		<-r.ended
	}
	p.agent.mu.Lock()
	delete(p.agent.usedAddresses, p.primaryIP)
	p.agent.mu.Unlock()
	if p.ownsNamespace {
		if err := p.namespace.Delete(); err != nil {
			p.agent.config.Log.Warn("cleaning up", "pod", p.firstObject.Name, "error", err)
		}
	}
	os.RemoveAll(p.directory())
}

func (p *pod) directory() string {
	return filepath.Join(p.agent.config.RunDir, string(p.firstObject.UID))
}

// SignalPod sends a signal to the containers of the Pod whose name begins so; they are started again if it ends them.
func (a *Agent) SignalPod(name string, s syscall.Signal) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, p := range a.podByUID {
		if strings.HasPrefix(p.firstObject.Name, name) {
			p.sendSignal(s, false)
			return nil
		}
	}
	return fmt.Errorf("no Pod %q runs on node %s", name, a.config.Name)
}
