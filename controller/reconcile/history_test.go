package reconcile

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"pgregory.net/rapid"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/controller/reconcile/memory"
	"github.com/gantry-lb/gantry/internal/view"
)

// climate is weather at random, until it is calm.
type climate struct {
	mu   sync.Mutex // guards all that follows
	rand *rand.Rand
	calm bool
	// late is one in how many writes of a Service that take longer than anybody waits.
	late int
}

func newClimate(seed uint64) *climate {
	r := rand.New(rand.NewPCG(seed, 1))
	return &climate{rand: r, late: []int{2, 4, 24}[r.IntN(3)]}
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
	if what == "service" && c.rand.IntN(c.late) == 0 {
		w.Out = time.Duration(c.rand.Int64N(int64(15 * time.Second)))
		return w
	}
	switch c.rand.IntN(24) {
	case 0:
		w.Lost = true
	case 1:
		w.Unanswered = true
	case 2:
		w.Out = time.Duration(c.rand.Int64N(int64(15 * time.Second)))
	case 3:
		w.Again = time.Duration(c.rand.Int64N(int64(10 * time.Second)))
	case 4:
		if what == "read" { // a list that is old when it is read
			w.Back = time.Duration(c.rand.Int64N(int64(9 * time.Second)))
		}
	}
	return w
}

// lands says of a request that was out when its sender was killed whether it arrives.
func (c *climate) lands() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rand.IntN(2) == 0
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
	// choice is what the step chooses: an address, a pool's order, a number.
	choice int
}

func histories() *rapid.Generator[history] {
	// As often as they stand here.
	deeds := []string{
		"create", "create", "create", "create", "create", "create", "delete", "delete", "delete", "ask", "no longer ask", "ask a pool",
		"release", "release", "release", "release", "count", "count", "no load balancer", "load balancer", "pool", "pool", "pause", "resume",
		"crash", "kill", "kill", "start", "start", "start", "rest",
	}
	return rapid.Custom(func(t *rapid.T) history {
		h := history{seed: rapid.Uint64().Draw(t, "seed")}
		h.steps = rapid.SliceOfN(rapid.Custom(func(t *rapid.T) step {
			return step{
				do: rapid.SampledFrom(deeds).Draw(t, "do"), who: rapid.IntRange(0, 7).Draw(t, "who"),
				wait:   time.Duration(rapid.SampledFrom([]int{0, 1, 20, 300, 1000, 3000}).Draw(t, "wait")) * time.Millisecond,
				choice: rapid.IntRange(0, 11).Draw(t, "choice"),
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
	// bound is how many pending assignments a controller keeps open.
	bound int
}

// newWorld starts two controllers beside the pools.
func newWorld(t *testing.T, check func(before, after *corev1.Service), seed uint64) *world {
	w := &world{t: t, server: memory.NewServer(check), climate: newClimate(seed)}
	w.bound = []int{1, 3, maxOpen}[w.climate.rand.IntN(3)]
	w.usualPools(orders[w.climate.rand.IntN(len(orders))])
	w.do(step{do: "start", who: 0})
	w.do(step{do: "start", who: 1})
	return w
}

// The pools: one of IPv4, one of IPv6, one of both, with few addresses, and what an edit makes of each.
var poolEdits = map[string][][]string{
	"p":  {{"192.0.2.0/30"}, {"192.0.2.0/31"}, {"192.0.2.2-192.0.2.5"}},
	"p6": {{"fd00:1::/126"}, {"fd00:1::/127"}, {"fd00:1::2-fd00:1::5"}},
	"q":  {{"192.0.2.8/31", "fd00:1::8/127"}, {"192.0.2.8/31"}, {"fd00:1::8-fd00:1::a", "192.0.2.9/32"}},
}

// orders are those in which a pool gives its addresses.
var orders = []string{"Lowest", "RoundRobin", "Hash"}

// usualPools are those at the start and at the end.
func (w *world) usualPools(order string) {
	for name, edits := range poolEdits {
		spec := pool(edits[0]...)
		spec.Gantry = &v1beta1.PoolExtension{Order: order}
		w.server.SetPool(name, spec)
	}
}

// editedPool is what the step makes of a pool.
func editedPool(s step) (name string, spec v1beta1.IPAddressPoolSpec) {
	name = []string{"p", "p6", "q"}[s.who%3]
	spec = pool(poolEdits[name][s.choice%3]...)
	spec.Gantry = &v1beta1.PoolExtension{Order: orders[s.choice/4]}
	return name, spec
}

// service is the i-th: of four one is IPv4, two dual-stack and one IPv6; the last four share keys, two of those with a port that clashes.
func (w *world) service(i int) *corev1.Service {
	s := balanced(fmt.Sprint("s", i))
	s.Spec.Ports[0].Port = int32(80 + i/2%2)
	if i >= 4 {
		s.Annotations = map[string]string{names.AnnotationSharing: fmt.Sprint("key", i/7)}
	}
	policy := corev1.IPFamilyPolicyPreferDualStack
	switch i % 4 {
	case 2:
		policy = corev1.IPFamilyPolicyRequireDualStack
		fallthrough
	case 1:
		s.Spec.IPFamilyPolicy = &policy
		s.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}
		s.Spec.ClusterIPs = []string{"10.96.0.1", "fd00:96::1"}
	case 3:
		s.Spec.IPFamilies, s.Spec.ClusterIPs = []corev1.IPFamily{corev1.IPv6Protocol}, []string{"fd00:96::1"}
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

// annotate sets an annotation of a Service as its user does, or takes it away when the text is empty.
func (w *world) annotate(k view.ObjectKey, name, text string) {
	w.server.Edit(k, func(o *corev1.Service) {
		delete(o.Annotations, name)
		if text == "" {
			return
		}
		if o.Annotations == nil {
			o.Annotations = map[string]string{}
		}
		o.Annotations[name] = text
	})
}

// request is the list of addresses that the Service asks for: one of each of its families.
func request(o *corev1.Service, choice int) string {
	var out []string
	for _, ip := range o.Spec.ClusterIPs {
		if strings.Contains(ip, ":") {
			out = append(out, fmt.Sprint("fd00:1::", choice%4))
		} else {
			out = append(out, fmt.Sprint("192.0.2.", choice%4))
		}
	}
	return strings.Join(out, ",")
}

// wish changes what a Service asks for.
func (w *world) wish(s step) {
	k := key(fmt.Sprint("s", s.who))
	o := w.server.Service(k)
	if o == nil {
		return
	}
	switch s.do {
	case "ask":
		w.annotate(k, names.AnnotationLoadBalancerIPs, request(o, s.choice))
	case "no longer ask":
		w.annotate(k, names.AnnotationLoadBalancerIPs, "")
	case "ask a pool":
		w.annotate(k, names.AnnotationPool, []string{"", "p", "q"}[s.choice%3])
	case "release":
		if a := addresses(o); len(a) > 0 {
			w.annotate(k, names.AnnotationRelease, a[s.choice%len(a)].String())
		}
	case "count":
		w.annotate(k, names.AnnotationAddressCount, []string{"", "2"}[s.choice%2])
	case "no load balancer":
		w.server.Edit(k, func(o *corev1.Service) { o.Spec.Type = corev1.ServiceTypeClusterIP })
	case "load balancer":
		w.server.Edit(k, func(o *corev1.Service) { o.Spec.Type = corev1.ServiceTypeLoadBalancer })
	}
}

func (w *world) do(s step) {
	c := w.controllers[s.who%2]
	switch {
	case s.do == "create":
		w.server.Create(w.service(s.who))
	case s.do == "delete":
		w.server.Delete(key(fmt.Sprint("s", s.who)))
	case s.do == "pool":
		w.server.SetPool(editedPool(s))
		w.reconfigured()
	case s.do == "start":
		if c == nil {
			w.controllers[s.who%2] = runBounded(w.t, w.server, w.climate.weather, Options{Identity: fmt.Sprint("controller", s.who%2)}, w.bound)
		}
	case c != nil && s.do == "pause":
		c.client.Pause()
	case c != nil && s.do == "resume":
		c.client.Resume()
	case c != nil && s.do == "crash": // what it has sent arrives
		c.end()
		w.controllers[s.who%2] = nil
	case c != nil && s.do == "kill": // what it has sent may arrive
		c.kill(w.climate.lands)
		w.controllers[s.who%2] = nil
	default:
		w.wish(s)
	}
	time.Sleep(s.wait)
}

// settle makes everything work again, and waits until nothing moves.
func (w *world) settle() {
	w.climate.mu.Lock()
	w.climate.calm = true
	w.climate.mu.Unlock()
	w.usualPools("")
	for i := range w.controllers {
		w.do(step{do: "start", who: i})
		w.do(step{do: "resume", who: i})
	}
	w.reconfigured()
	time.Sleep(5 * time.Minute)
	synctest.Wait()
}

// free are the addresses of the usual pools that nobody has, by family.
func (w *world) free() map[view.Family][]netip.Addr {
	taken := map[netip.Addr]bool{}
	for _, s := range w.server.Services() {
		for _, a := range addresses(s) {
			taken[a] = true
		}
	}
	out := map[view.Family][]netip.Addr{}
	for _, text := range []string{"192.0.2.0/30", "192.0.2.8/31", "fd00:1::/126", "fd00:1::8/127"} {
		p := netip.MustParsePrefix(text)
		for a := p.Addr(); p.Contains(a); a = a.Next() {
			if !taken[a] {
				out[view.FamilyOf(a)] = append(out[view.FamilyOf(a)], a)
			}
		}
	}
	return out
}

// leaks returns what is not as it should be at the end: every Service has the addresses of its families, one of each unless it asks for
// something else, unless all are taken that it could have.
func (w *world) leaks() []string {
	var out []string
	free := w.free()
	for _, s := range w.server.Services() {
		v := view.FromService(s)
		if !v.IsLoadBalancer {
			if len(v.AssignedAddresses) > 0 || marked(s) {
				out = append(out, fmt.Sprintf("%s is no load balancer and carries %v", s.Name, s.Status))
			}
			continue
		}
		has := map[view.Family]int{}
		for _, a := range v.AssignedAddresses {
			has[view.FamilyOf(a)]++
		}
		if most := max(v.AddressCount, 1); has[view.IPv4] > most || has[view.IPv6] > most {
			out = append(out, fmt.Sprintf("%s has %v, more than %d of a family", s.Name, v.AssignedAddresses, most))
		}
		if len(v.RequestedAddresses)+len(v.AddressesToRelease) > 0 || v.RequestedPool != "" {
			continue // it may wait for what another has
		}
		out = append(out, waits(&v, s, has, free)...)
	}
	return out
}

// waits says what a Service lacks although it is free.
func waits(v *view.Service, s *corev1.Service, has map[view.Family]int, free map[view.Family][]netip.Addr) []string {
	var lacks []view.Family
	for _, f := range v.ClusterIPFamilies() {
		if has[f] == 0 {
			lacks = append(lacks, f)
		}
	}
	if len(lacks) == 0 {
		return nil
	}
	var out []string
	if len(v.AssignedAddresses) == 0 && reason(s) != names.ReasonPoolExhausted {
		out = append(out, fmt.Sprintf("%s has no address, for the reason %q", s.Name, reason(s)))
	}
	had := func(f view.Family) bool { return len(free[f]) > 0 }
	if v.FamilyPolicy == view.RequireDualStack && slices.ContainsFunc(lacks, had) && len(lacks) > 1 {
		return out // it needs both
	}
	if slices.ContainsFunc(lacks, had) {
		out = append(out, fmt.Sprintf("%s has %v and lacks %v, while %v are free", s.Name, v.AssignedAddresses, lacks, free))
	}
	return out
}
