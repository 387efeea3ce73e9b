package node

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/gantry-lb/gantry/test/lab/netns"
)

// pod is a Pod that runs here.
type pod struct {
	a      *Agent
	object *corev1.Pod // as last seen; guarded by the agent's mutex
	ns     netns.Handle
	own    bool         // ns is the Pod's alone
	ip     netip.Addr   // the first of ips
	ips    []netip.Addr // one for each family
	runs   []*run
	ctx    context.Context
	cancel context.CancelFunc
	change chan struct{} // asks for the status to be written
}

// sync brings a Pod in line with what the API server says of it.
func (a *Agent) sync(ctx context.Context, o *corev1.Pod) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.dead || ctx.Err() != nil {
		return
	}
	p := a.pods[o.UID]
	switch {
	case p == nil && o.DeletionTimestamp != nil:
		a.background(func() { a.remove(ctx, o) })
	case p == nil && (o.Status.Phase == corev1.PodSucceeded || o.Status.Phase == corev1.PodFailed):
	case p == nil:
		p = &pod{a: a, object: o, change: make(chan struct{}, 1)}
		p.ctx, p.cancel = context.WithCancel(ctx)
		a.pods[o.UID] = p
		a.background(p.live)
	case o.DeletionTimestamp != nil && p.object.DeletionTimestamp == nil:
		p.object = o
		a.background(func() { p.terminate(ctx) })
	default:
		p.object = o
		p.changed()
	}
}

func (a *Agent) background(f func()) {
	a.wait.Add(1)
	go func() {
		defer a.wait.Done()
		f()
	}()
}

// forget kills a Pod whose object is gone.
func (a *Agent) forget(uid types.UID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if p := a.pods[uid]; p != nil {
		p.kill()
		p.cancel()
		delete(a.pods, uid)
	}
}

// live runs the Pod until its context ends.
func (p *pod) live() {
	defer p.clean()
	if err := p.a.persist(p.ctx, func(context.Context) error { return p.connect() }); err != nil {
		return
	}
	p.a.mu.Lock()
	for i := range p.object.Spec.Containers {
		p.runs = append(p.runs, newRun(p, &p.object.Spec.Containers[i]))
	}
	p.a.mu.Unlock()
	for _, r := range p.runs {
		p.a.background(r.loop)
		p.a.background(r.probes)
	}
	p.report()
}

// report writes the status after each change, the latest only.
func (p *pod) report() {
	p.changed()
	for {
		select {
		case <-p.ctx.Done():
			return
		case <-p.change:
		}
		_ = p.a.persist(p.ctx, p.writeStatus)
	}
}

func (p *pod) changed() {
	select {
	case p.change <- struct{}{}:
	default:
	}
}

// connect gives the Pod a network namespace, an address and a route to its node.
func (p *pod) connect() error {
	a := p.a
	if p.object.Spec.HostNetwork {
		p.ns, p.ip, p.ips = a.c.NetNS, a.c.Addresses[0], a.c.Addresses
		return nil
	}
	if len(p.ips) == 0 { // this may be another attempt
		a.mu.Lock()
		addresses, err := a.allocate()
		a.mu.Unlock()
		if err != nil {
			return err
		}
		p.ip, p.ips = addresses[0], addresses
	}
	addresses := p.ips
	sum := sha256.Sum256([]byte(p.object.UID))
	id := hex.EncodeToString(sum[:5])
	ns, err := netns.New("pod-" + id)
	if err != nil {
		return err
	}
	if err := p.plug(ns, id, addresses); err != nil {
		_ = ns.Delete() // with its link: the next attempt makes both anew
		return err
	}
	p.ns, p.own = ns, true
	return nil
}

// plug joins the Pod's namespace to its node's.
func (p *pod) plug(ns netns.Handle, id string, addresses []netip.Addr) error {
	a := p.a
	veth := "veth" + id
	if err := netns.Cable(a.c.NetNS, veth, ns, "eth0"); err != nil {
		return err
	}
	gateways := []netip.Addr{netip.MustParseAddr("169.254.1.1"), netip.MustParseAddr("fe80::1")}
	err := a.c.NetNS.Do(func() error { return nodeSide(veth, gateways[:len(addresses)], addresses) })
	if err != nil {
		return err
	}
	return ns.Do(func() error { return podSide(gateways[:len(addresses)], addresses) })
}

func nodeSide(veth string, gateways, addresses []netip.Addr) error {
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

func podSide(gateways, addresses []netip.Addr) error {
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

// allocate takes the next host number, the same in each family; one that was just freed is used last.
func (a *Agent) allocate() ([]netip.Addr, error) {
	for range 252 {
		n := a.next
		if a.next++; a.next > 253 {
			a.next = 2
		}
		first := host(a.c.PodCIDRs[0], n)
		if a.used[first] {
			continue
		}
		a.used[first] = true
		out := []netip.Addr{first}
		for _, p := range a.c.PodCIDRs[1:] {
			out = append(out, host(p, n))
		}
		return out, nil
	}
	return nil, fmt.Errorf("no address of %s is free", a.c.PodCIDRs[0])
}

func host(p netip.Prefix, n int) netip.Addr {
	b := p.Addr().AsSlice()
	b[len(b)-1] = byte(n)
	a, _ := netip.AddrFromSlice(b)
	return a
}

// terminate ends the Pod in order, then tells the API server that it is gone.
func (p *pod) terminate(ctx context.Context) {
	grace := 30 * time.Second
	if s := p.object.DeletionGracePeriodSeconds; s != nil {
		grace = time.Duration(*s) * time.Second
	}
	p.changed()
	p.signal(syscall.SIGTERM, true)
	deadline := time.After(grace)
	for _, r := range p.runs {
		select {
		case <-r.ended:
		case <-deadline:
			p.kill()
			<-r.ended
		case <-p.ctx.Done():
		}
	}
	p.cancel()
	p.a.mu.Lock()
	o := p.object
	delete(p.a.pods, o.UID)
	dead := p.a.dead
	p.a.mu.Unlock()
	if !dead {
		p.a.remove(ctx, o)
	}
}

// remove deletes the object of a Pod that does not run any more.
func (a *Agent) remove(ctx context.Context, o *corev1.Pod) {
	zero := int64(0)
	_ = a.persist(ctx, func(ctx context.Context) error {
		err := a.client.CoreV1().Pods(o.Namespace).Delete(ctx, o.Name, metav1.DeleteOptions{
			GracePeriodSeconds: &zero, Preconditions: metav1.NewUIDPreconditions(string(o.UID)),
		})
		if goneOrOther(err) {
			return nil
		}
		return err
	})
}

// signal sends a signal to every container; final says that none is to be started again.
func (p *pod) signal(s syscall.Signal, final bool) {
	for _, r := range p.runs {
		r.signal(s, final)
	}
}

func (p *pod) kill() { p.signal(syscall.SIGKILL, true) }

// clean removes what the Pod left.
func (p *pod) clean() {
	p.kill()
	for _, r := range p.runs {
		<-r.ended
	}
	p.a.mu.Lock()
	delete(p.a.used, p.ip)
	p.a.mu.Unlock()
	if p.own {
		if err := p.ns.Delete(); err != nil {
			p.a.c.Log.Warn("cleaning up", "pod", p.object.Name, "error", err)
		}
	}
	os.RemoveAll(p.dir())
}

func (p *pod) dir() string { return filepath.Join(p.a.c.RunDir, string(p.object.UID)) }

// Signal sends a signal to the containers of the Pod whose name begins so; they are started again if it ends them.
func (a *Agent) Signal(name string, s syscall.Signal) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, p := range a.pods {
		if len(p.object.Name) >= len(name) && p.object.Name[:len(name)] == name {
			p.signal(s, false)
			return nil
		}
	}
	return fmt.Errorf("no Pod %q runs on node %s", name, a.c.Name)
}
