package reconcile

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"pgregory.net/rapid"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/controller/reconcile/memory"
	"github.com/gantry-lb/gantry/internal/view"
)

// oracle watches every change on the server, slowly and without help from the code that it judges.
type oracle struct {
	mu     sync.Mutex // guards all that follows
	held   map[view.ObjectKey]*corev1.Service
	edited map[view.ObjectKey]bool // the user gave a reason to move
	faults []string
}

func newOracle() *oracle {
	return &oracle{held: map[view.ObjectKey]*corev1.Service{}, edited: map[view.ObjectKey]bool{}}
}

func addresses(s *corev1.Service) []netip.Addr {
	var out []netip.Addr
	if s != nil {
		for _, in := range s.Status.LoadBalancer.Ingress {
			out = append(out, netip.MustParseAddr(in.IP))
		}
	}
	return out
}

// mayShare is the right to share, for Services of policy Cluster with one port each.
func mayShare(a, b *corev1.Service) bool {
	k := a.Annotations[names.AnnotationSharing]
	return k != "" && k == b.Annotations[names.AnnotationSharing] && a.Spec.Ports[0].Port != b.Spec.Ports[0].Port
}

// wishes are a Service's annotations without ours.
func wishes(s *corev1.Service) map[string]string {
	out := maps.Clone(s.Annotations)
	delete(out, names.AnnotationFromPool)
	return out
}

// check is told of every change of a Service.
func (o *oracle) check(before, after *corev1.Service) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if after == nil {
		k := view.ObjectKey{Namespace: before.Namespace, Name: before.Name}
		delete(o.held, k)
		delete(o.edited, k)
		return
	}
	k := view.ObjectKey{Namespace: after.Namespace, Name: after.Name}
	o.held[k] = after
	if before != nil && (!reflect.DeepEqual(before.Spec, after.Spec) || !maps.Equal(wishes(before), wishes(after))) {
		o.edited[k] = true // until it is made anew: a controller may come to know of it late
		return
	}
	for _, a := range addresses(after) {
		if slices.Contains(addresses(before), a) {
			continue
		}
		for other, s := range o.held {
			if other != k && slices.Contains(addresses(s), a) && !mayShare(s, after) {
				o.faults = append(o.faults, fmt.Sprintf("%s was given %s, which %s holds", k, a, other))
			}
		}
	}
	for _, a := range addresses(before) {
		if !o.edited[k] && !slices.Contains(addresses(after), a) {
			o.faults = append(o.faults, fmt.Sprintf("%s was taken from %s, which had given no reason: %v", a, k, after.Status.Conditions))
		}
	}
}

// climate is weather at random, until it is calm.
type climate struct {
	mu   sync.Mutex // guards all that follows
	rand *rand.Rand
	calm bool
}

func (c *climate) weather(what string) memory.Weather {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.calm {
		return memory.Weather{Out: time.Millisecond, Back: time.Millisecond}
	}
	long := func(most time.Duration) time.Duration {
		if c.rand.IntN(3) == 0 {
			return time.Duration(c.rand.Int64N(int64(most)))
		}
		return time.Duration(c.rand.Int64N(int64(10 * time.Millisecond)))
	}
	w := memory.Weather{Out: long(500 * time.Millisecond), Back: long(500 * time.Millisecond)}
	if what == "watch" {
		return w
	}
	switch c.rand.IntN(30) {
	case 0:
		w.Lost = true
	case 1:
		w.Unanswered = true
	case 2:
		w.Out = time.Duration(c.rand.Int64N(int64(15 * time.Second))) // longer than anybody waits for it
	}
	return w
}

// history is what a user and fate do.
type history struct {
	seed  uint64
	steps []step
}

type step struct {
	do   string
	who  int // which Service, pool or controller
	wait time.Duration
}

func histories() *rapid.Generator[history] {
	// As often as they stand here.
	deeds := []string{
		"create", "create", "create", "create", "delete", "delete", "ask", "no longer ask", "no load balancer", "load balancer",
		"pool", "pause", "resume", "crash", "start", "rest",
	}
	return rapid.Custom(func(t *rapid.T) history {
		h := history{seed: rapid.Uint64().Draw(t, "seed")}
		h.steps = rapid.SliceOfN(rapid.Custom(func(t *rapid.T) step {
			return step{
				do: rapid.SampledFrom(deeds).Draw(t, "do"), who: rapid.IntRange(0, 7).Draw(t, "who"),
				wait: time.Duration(rapid.SampledFrom([]int{0, 0, 1, 20, 300, 3000}).Draw(t, "wait")) * time.Millisecond,
			}
		}), 10, 60).Draw(t, "steps")
		return h
	})
}

// world is a server with two controllers, neither of which knows whether it leads.
type world struct {
	t           *testing.T
	server      *memory.Server
	climate     *climate
	controllers [2]*controller
}

// service is the i-th: of four, two share a key, one of those with a port that clashes.
func (w *world) service(i int) *corev1.Service {
	s := balanced(fmt.Sprint("s", i))
	s.Spec.Ports[0].Port = int32(80 + i%2)
	if i >= 4 {
		s.Annotations = map[string]string{names.AnnotationSharing: fmt.Sprint("key", i/6)}
	}
	return s
}

func (w *world) reconfigured() {
	for _, c := range w.controllers {
		if c != nil {
			c.Reconfigured()
		}
	}
}

func (w *world) do(s step) {
	k, c := key(fmt.Sprint("s", s.who)), s.who%2
	switch s.do {
	case "create":
		w.server.Create(w.service(s.who))
	case "delete":
		w.server.Delete(k)
	case "ask", "no longer ask":
		w.server.Edit(k, func(o *corev1.Service) {
			delete(o.Annotations, names.AnnotationLoadBalancerIPs)
			if s.do == "ask" {
				if o.Annotations == nil {
					o.Annotations = map[string]string{}
				}
				o.Annotations[names.AnnotationLoadBalancerIPs] = fmt.Sprint("192.0.2.", s.wait.Milliseconds()%4)
			}
		})
	case "no load balancer":
		w.server.Edit(k, func(o *corev1.Service) { o.Spec.Type = corev1.ServiceTypeClusterIP })
	case "load balancer":
		w.server.Edit(k, func(o *corev1.Service) { o.Spec.Type = corev1.ServiceTypeLoadBalancer })
	case "pool":
		w.server.SetPool("p", pool([]string{"192.0.2.0/30", "192.0.2.0/31", "192.0.2.2-192.0.2.5"}[s.who%3]))
		w.reconfigured()
	case "pause":
		if w.controllers[c] != nil {
			w.controllers[c].client.Pause()
		}
	case "resume":
		if w.controllers[c] != nil {
			w.controllers[c].client.Resume()
		}
	case "crash": // what it has sent arrives
		if w.controllers[c] != nil {
			w.controllers[c].end()
			w.controllers[c] = nil
		}
	case "start":
		if w.controllers[c] == nil {
			w.controllers[c] = run(w.t, w.server, w.climate.weather, Options{Identity: fmt.Sprint("controller", c)})
		}
	}
	time.Sleep(s.wait)
}

// settle makes everything work again, and waits until nothing moves.
func (w *world) settle() {
	w.climate.mu.Lock()
	w.climate.calm = true
	w.climate.mu.Unlock()
	w.server.SetPool("p", pool("192.0.2.0/30"))
	for i := range w.controllers {
		w.do(step{do: "start", who: i})
		w.do(step{do: "resume", who: i})
	}
	w.reconfigured()
	time.Sleep(5 * time.Minute)
	synctest.Wait()
}

// leaks returns what is not as it should be at the end: every Service has an address, unless all are taken that it could have.
func (w *world) leaks() []string {
	var out []string
	taken := map[netip.Addr]bool{}
	for _, s := range w.server.Services() {
		for _, a := range addresses(s) {
			taken[a] = true
		}
	}
	pending := map[string]bool{}
	for _, s := range w.server.Services() {
		has := len(addresses(s)) > 0
		switch {
		case s.Spec.Type != corev1.ServiceTypeLoadBalancer:
			if has || marked(s) {
				out = append(out, fmt.Sprintf("%s is no load balancer and carries %v", s.Name, s.Status))
			}
		case has:
		case s.Annotations[names.AnnotationLoadBalancerIPs] == "":
			pending[s.Name] = true
			if reason(s) != names.ReasonPoolExhausted {
				out = append(out, fmt.Sprintf("%s has no address, for the reason %q", s.Name, reason(s)))
			}
		}
	}
	for i := range 4 {
		if a := netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}); !taken[a] && len(pending) > 0 {
			out = append(out, fmt.Sprintf("%s is free, while %v wait", a, pending))
		}
	}
	return out
}

// TestTwoControllersNeverGiveOneAddressTwice lets two controllers work at once through slow and faulty ways to the API server, with
// caches that lag, pauses, crashes with requests under way, and a user who creates, edits and deletes. At no moment may two
// Services hold an address that they may not share, or one lose an address that it did not give up; and in the end all is served.
func TestTwoControllersNeverGiveOneAddressTwice(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		h := histories().Draw(rt, "history")
		o := newOracle()
		var leaks []string
		bubble(t, func(t *testing.T) {
			w := &world{t: t, server: memory.NewServer(o.check), climate: &climate{rand: rand.New(rand.NewPCG(h.seed, 1))}}
			w.server.SetPool("p", pool("192.0.2.0/30"))
			w.do(step{do: "start", who: 0})
			w.do(step{do: "start", who: 1})
			for _, s := range h.steps {
				w.do(s)
			}
			w.settle()
			leaks = w.leaks()
			writes := w.server.Writes("service") + w.server.Writes("ledger") + w.server.Writes("pool")
			time.Sleep(5 * time.Minute)
			if n := w.server.Writes("service") + w.server.Writes("ledger") + w.server.Writes("pool") - writes; n > 0 {
				leaks = append(leaks, fmt.Sprintf("%d more writes when nothing happens", n))
			}
			for _, c := range w.controllers {
				c.end()
			}
			time.Sleep(time.Minute) // whatever is out arrives
		})
		for _, f := range append(o.faults, leaks...) {
			rt.Error(f)
		}
	})
}
