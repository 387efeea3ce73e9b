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
	a      *Agent
	first  *corev1.Pod // as first seen: its name and its specification are good for ever
	object *corev1.Pod // as last seen; guarded by the agent's mutex
	ns     netns.Handle
	own    bool         // ns is the Pod's alone
	ip     netip.Addr   // the first of ips
	ips    []netip.Addr // one for each family; set under the agent's mutex, before any container starts
	runs   []*run       // one for each container
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
		p = &pod{a: a, first: o, object: o, change: make(chan struct{}, 1)}
		for i := range o.Spec.Containers {
			p.runs = append(p.runs, newRun(p, &o.Spec.Containers[i]))
		}
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

// latest is the Pod as last seen.
func (p *pod) latest() *corev1.Pod {
	p.a.mu.Lock()
	defer p.a.mu.Unlock()
	return p.object
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
		for _, r := range p.runs { // they have never begun
			close(r.ended)
		}
		return
	}
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
	addresses, err := p.take()
	if p.first.Spec.HostNetwork || err != nil {
		p.ns = a.c.NetNS
		return err
	}
	sum := sha256.Sum256([]byte(p.first.UID))
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

// take gives the Pod its addresses, once.
func (p *pod) take() ([]netip.Addr, error) {
	p.a.mu.Lock()
	defer p.a.mu.Unlock()
	if len(p.ips) > 0 { // this is another attempt
		return p.ips, nil
	}
	addresses := p.a.c.Addresses
	if !p.first.Spec.HostNetwork {
		var err error
		if addresses, err = p.a.allocate(); err != nil {
			return nil, err
		}
	}
	p.ip, p.ips = addresses[0], addresses
	return addresses, nil
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
	if s := p.latest().DeletionGracePeriodSeconds; s != nil {
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
			p.cancel() // for one that could not be connected until now
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
			p.a.c.Log.Warn("cleaning up", "pod", p.first.Name, "error", err)
		}
	}
	os.RemoveAll(p.dir())
}

func (p *pod) dir() string { return filepath.Join(p.a.c.RunDir, string(p.first.UID)) }

// Signal sends a signal to the containers of the Pod whose name begins so; they are started again if it ends them.
func (a *Agent) Signal(name string, s syscall.Signal) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, p := range a.pods {
		if strings.HasPrefix(p.first.Name, name) {
			p.signal(s, false)
			return nil
		}
	}
	return fmt.Errorf("no Pod %q runs on node %s", name, a.c.Name)
}
