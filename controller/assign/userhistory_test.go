package assign

import (
	"errors"
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
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"pgregory.net/rapid"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/controller/assign/apitest"
	"github.com/gantry-lb/gantry/internal/ipfamily"
	"github.com/gantry-lb/gantry/internal/view"
)

// randomNetwork delivers requests at random until isReliable is set.
type randomNetwork struct {
	mu         sync.Mutex // guards all that follows
	rand       *rand.Rand
	isReliable bool
	// serviceWritesPerTimeout: one in this many writes of a Service takes longer than the
	// controller waits.
	serviceWritesPerTimeout int
}

func newRandomNetwork(seed uint64) *randomNetwork {
	r := rand.New(rand.NewPCG(seed, 1))
	return &randomNetwork{rand: r, serviceWritesPerTimeout: []int{2, 4, 24}[r.IntN(3)]}
}

func (c *randomNetwork) nextDelivery(what string) apitest.Delivery {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.isReliable {
		return apitest.Delivery{RequestDelay: time.Millisecond, AnswerDelay: time.Millisecond}
	}
	long := func(most time.Duration) time.Duration {
		if c.rand.IntN(3) == 0 {
			return time.Duration(c.rand.Int64N(int64(most)))
		}
		return time.Duration(c.rand.Int64N(int64(10 * time.Millisecond)))
	}
	w := apitest.Delivery{RequestDelay: long(500 * time.Millisecond), AnswerDelay: long(500 * time.Millisecond)}
	if what == "watch" {
		return w
	}
	if what == "service" && c.rand.IntN(c.serviceWritesPerTimeout) == 0 {
		w.RequestDelay = time.Duration(c.rand.Int64N(int64(15 * time.Second)))
		return w
	}
	switch c.rand.IntN(24) {
	case 0:
		w.RequestLost = true
	case 1:
		w.AnswerLost = true
	case 2:
		w.RequestDelay = time.Duration(c.rand.Int64N(int64(15 * time.Second)))
	case 3:
		w.DuplicateRequestDelay = time.Duration(c.rand.Int64N(int64(10 * time.Second)))
	case 4:
		if what == "read" || what == "list" { // outdated when it arrives
			w.AnswerDelay = time.Duration(c.rand.Int64N(int64(9 * time.Second)))
		}
	}
	return w
}

// arrivesAfterSenderWasKilled says whether a request arrives whose sender was killed.
func (c *randomNetwork) arrivesAfterSenderWasKilled() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rand.IntN(2) == 0
}

// userHistory is a series of acts of a user, and failures.
type userHistory struct {
	seed  uint64
	steps []historyStep
}

type historyStep struct {
	action      string
	targetIndex int // which Service, pool or controller
	delayAfter  time.Duration
	// actionVariant selects an address, a pool's order or a number.
	actionVariant int
}

func userHistoryGenerator() *rapid.Generator[userHistory] {
	// Each act is as frequent as it is listed here.
	deeds := []string{
		"create", "create", "create", "create", "create", "create", "delete", "delete", "delete", "ask", "no longer ask", "ask a pool",
		"release", "release", "release", "release", "count", "count", "port", "port", "port", "no load balancer", "load balancer", "pool", "pool", "retire", "retire", "pause", "resume",
		"crash", "kill", "kill", "start", "start", "start", "rest", "refuse entry", "refuse status", "fail status", "allow", "allow",
	}
	return rapid.Custom(func(t *rapid.T) userHistory {
		h := userHistory{seed: rapid.Uint64().Draw(t, "seed")}
		h.steps = rapid.SliceOfN(rapid.Custom(func(t *rapid.T) historyStep {
			return historyStep{
				action: rapid.SampledFrom(deeds).Draw(t, "action"), targetIndex: rapid.IntRange(0, 7).Draw(t, "index"),
				delayAfter:    time.Duration(rapid.SampledFrom([]int{0, 1, 20, 300, 1000, 3000}).Draw(t, "wait")) * time.Millisecond,
				actionVariant: rapid.IntRange(0, 11).Draw(t, "choice"),
			}
		}), 10, 60).Draw(t, "steps")
		return h
	})
}

// twoControllerHarness is a server with two controllers, neither of which knows whether it leads.
type twoControllerHarness struct {
	t           *testing.T
	server      *apitest.Server
	network     *randomNetwork
	controllers [2]*runningController
	// maxPending is how many pending assignments a controller keeps open.
	maxPending int
	// recordRetiredRanges tells the oracle what a pool retires.
	recordRetiredRanges func(entries []string)
}

// newTwoControllerHarness sets the pools and starts two controllers.
func newTwoControllerHarness(t *testing.T, o *assignmentOracle, seed uint64) *twoControllerHarness {
	w := &twoControllerHarness{t: t, server: apitest.NewServer(o.checkServiceChange), network: newRandomNetwork(seed), recordRetiredRanges: o.recordRetiredRanges}
	w.maxPending = []int{1, 3, maxPendingAssignments}[w.network.rand.IntN(3)]
	w.setInitialPools(assignmentOrderNames[w.network.rand.IntN(len(assignmentOrderNames))])
	w.runHistoryStep(historyStep{action: "start", targetIndex: 0})
	w.runHistoryStep(historyStep{action: "start", targetIndex: 1})
	return w
}

// possibleRangesByPool: one pool has IPv4, one IPv6, one both, with few addresses each. An edit
// selects one of the variants.
var possibleRangesByPool = map[string][][]string{
	"p":  {{"192.0.2.0/30"}, {"192.0.2.0/31"}, {"192.0.2.2-192.0.2.5"}},
	"p6": {{"fd00:1::/126"}, {"fd00:1::/127"}, {"fd00:1::2-fd00:1::5"}},
	"q":  {{"192.0.2.8/31", "fd00:1::8/127"}, {"192.0.2.8/31"}, {"fd00:1::8-fd00:1::a", "192.0.2.9/32"}},
}

// assignmentOrderNames are the orders in which a pool assigns its addresses.
var assignmentOrderNames = []string{"Lowest", "RoundRobin", "Hash"}

// setInitialPools sets the pools of the start and the end.
func (w *twoControllerHarness) setInitialPools(order string) {
	for name, edits := range possibleRangesByPool {
		spec := poolSpec(edits[0]...)
		spec.Gantry = &v1beta1.PoolExtension{MaxPerService: 16, Order: order}
		w.server.SetPool(name, spec)
	}
}

// editedPoolSpec returns a pool as edited by the step.
func editedPoolSpec(s historyStep) (name string, spec v1beta1.IPAddressPoolSpec) {
	name = []string{"p", "p6", "q"}[s.targetIndex%3]
	spec = poolSpec(possibleRangesByPool[name][s.actionVariant%3]...)
	spec.Gantry = &v1beta1.PoolExtension{MaxPerService: 16, Order: assignmentOrderNames[s.actionVariant/4]}
	if s.actionVariant%4 == 0 {
		spec.Gantry.Cooldown = &metav1.Duration{Duration: 20 * time.Second}
	}
	return name, spec
}

// newService returns the i-th Service. Of four, one has IPv4, two have both families and one has
// IPv6. The last four share keys, two of them with a conflicting port.
func (w *twoControllerHarness) newService(i int) *corev1.Service {
	s := newLoadBalancer(fmt.Sprint("s", i))
	s.Spec.Ports[0].Port = int32(80 + i/2%2)
	if i >= 4 {
		s.Annotations = map[string]string{names.AnnotationSharingKey: fmt.Sprint("key", i/7)}
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

func (w *twoControllerHarness) notifyConfigurationChanged() {
	for _, c := range w.controllers {
		if c != nil {
			c.ConfigurationReader.NotifyAllocationObjectChanged()
		}
	}
}

// setServiceAnnotation sets an annotation of a Service as its user does, or removes it if the text
// is empty.
func (w *twoControllerHarness) setServiceAnnotation(k view.ObjectKey, name, text string) {
	w.server.EditService(k, func(o *corev1.Service) {
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

// addressesToRequest returns the addresses that the Service requests: one of each of its families.
func addressesToRequest(o *corev1.Service, choice int) string {
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

// changeAddressRequestOfService changes what a Service asks for.
func (w *twoControllerHarness) changeAddressRequestOfService(s historyStep) {
	k := serviceKey(fmt.Sprint("s", s.targetIndex))
	o := w.server.ServiceByKey(k)
	if o == nil {
		return
	}
	switch s.action {
	case "ask":
		w.setServiceAnnotation(k, names.AnnotationLoadBalancerIPs, addressesToRequest(o, s.actionVariant))
	case "no longer ask":
		w.setServiceAnnotation(k, names.AnnotationLoadBalancerIPs, "")
	case "ask a pool":
		w.setServiceAnnotation(k, names.AnnotationRequestedPool, []string{"", "p", "q"}[s.actionVariant%3])
	case "release":
		if a := ingressAddresses(o); len(a) > 0 {
			w.setServiceAnnotation(k, names.AnnotationAddressesToExchange, a[s.actionVariant%len(a)].String())
		}
	case "count":
		w.setServiceAnnotation(k, names.AnnotationAddressesPerFamily, []string{"", "2"}[s.actionVariant%2])
	case "port": // which may break a right to share, or restore it
		w.server.EditService(k, editToChangePort(int32(80+s.actionVariant%3)))
	case "no load balancer":
		w.server.EditService(k, func(o *corev1.Service) { o.Spec.Type = corev1.ServiceTypeClusterIP })
	case "load balancer":
		w.server.EditService(k, func(o *corev1.Service) { o.Spec.Type = corev1.ServiceTypeLoadBalancer })
	}
}

// changeAPIServerRefusals lets the API server refuse what concerns one Service, as a policy or a
// webhook of the cluster does, or allows all.
func (w *twoControllerHarness) changeAPIServerRefusals(s historyStep) {
	name := fmt.Sprint("s", s.targetIndex)
	refuse := func(err error) {
		w.server.RefuseServiceWrites(func(o *corev1.Service) error {
			if o.Name == name {
				return err
			}
			return nil
		})
	}
	switch s.action {
	case "refuse entry":
		w.server.RefuseLedgerWrites(refuseLedgerEntriesOfServices(name))
	case "refuse status":
		refuse(errRefusedByTest)
	case "fail status":
		refuse(apierrors.NewInternalError(errors.New("a webhook failed")))
	case "allow":
		w.server.RefuseServiceWrites(nil)
		w.server.RefuseLedgerWrites(nil)
	}
}

func (w *twoControllerHarness) runHistoryStep(s historyStep) {
	c := w.controllers[s.targetIndex%2]
	switch {
	case s.action == "create":
		w.server.CreateService(w.newService(s.targetIndex))
	case s.action == "delete":
		w.server.DeleteService(serviceKey(fmt.Sprint("s", s.targetIndex)))
	case s.action == "pool":
		w.server.SetPool(editedPoolSpec(s))
		w.notifyConfigurationChanged()
	case s.action == "retire":
		w.changeRetirementOfPool(s)
	case s.action == "start":
		if c == nil {
			w.controllers[s.targetIndex%2] = startTestControllerWithMaxPending(w.t, w.server, w.network.nextDelivery, ServiceWorkerOptions{LedgerWriterIdentity: fmt.Sprint("controller", s.targetIndex%2)}, w.maxPending)
		}
	case c != nil && s.action == "pause":
		c.client.PauseProcess()
	case c != nil && s.action == "resume":
		c.client.ResumeProcess()
	case c != nil && s.action == "crash": // its sent requests arrive
		c.stopAndWait()
		w.controllers[s.targetIndex%2] = nil
	case c != nil && s.action == "kill": // its sent requests may arrive
		c.killAndWait(w.network.arrivesAfterSenderWasKilled)
		w.controllers[s.targetIndex%2] = nil
	default:
		w.changeAddressRequestOfService(s)
		w.changeAPIServerRefusals(s)
	}
	time.Sleep(s.delayAfter)
}

// repairFaultsAndAwaitQuiet repairs everything, and waits until nothing changes any more.
func (w *twoControllerHarness) repairFaultsAndAwaitQuiet() {
	w.network.mu.Lock()
	w.network.isReliable = true
	w.network.mu.Unlock()
	w.setInitialPools("")
	w.changeAPIServerRefusals(historyStep{action: "allow"})
	for i := range w.controllers {
		w.runHistoryStep(historyStep{action: "start", targetIndex: i})
		w.runHistoryStep(historyStep{action: "resume", targetIndex: i})
	}
	w.notifyConfigurationChanged()
	time.Sleep(5 * time.Minute)
	synctest.Wait()
}

// findFreeAddressesByFamily returns the addresses of the usual pools without a holder, by family.
func (w *twoControllerHarness) findFreeAddressesByFamily() map[ipfamily.Family][]netip.Addr {
	taken := map[netip.Addr]bool{}
	for _, s := range w.server.AllServices() {
		for _, a := range ingressAddresses(s) {
			taken[a] = true
		}
	}
	out := map[ipfamily.Family][]netip.Addr{}
	for _, text := range []string{"192.0.2.0/30", "192.0.2.8/31", "fd00:1::/126", "fd00:1::8/127"} {
		p := netip.MustParsePrefix(text)
		for a := p.Addr(); p.Contains(a); a = a.Next() {
			if !taken[a] {
				out[ipfamily.FamilyOf(a)] = append(out[ipfamily.FamilyOf(a)], a)
			}
		}
	}
	return out
}

// findFinalFaults returns the faults in the final state: every Service must have one address of
// each of its families, unless it requests something else or no address is available to it.
func (w *twoControllerHarness) findFinalFaults() []string {
	var out []string
	free := w.findFreeAddressesByFamily()
	for _, s := range w.server.AllServices() {
		v := view.FromService(s)
		if !v.IsLoadBalancer {
			if len(v.AssignedAddresses) > 0 || hasOurStatusOrAnnotations(s) {
				out = append(out, fmt.Sprintf("%s is no load balancer and carries %v", s.Name, s.Status))
			}
			continue
		}
		has := map[ipfamily.Family]int{}
		for _, a := range v.AssignedAddresses {
			has[ipfamily.FamilyOf(a)]++
		}
		if most := max(v.RequestedAddressesPerFamily, 1); has[ipfamily.IPv4] > most || has[ipfamily.IPv6] > most {
			out = append(out, fmt.Sprintf("%s has %v, more than %d of a family", s.Name, v.AssignedAddresses, most))
		}
		if len(v.RequestedAddresses)+len(v.AddressesToExchange) > 0 || v.RequestedPool != "" {
			continue // it may wait for an address of another Service
		}
		out = append(out, describeUnassignedFreeAddresses(&v, s, has, free)...)
	}
	return append(out, w.findUnallowedSharing()...)
}

// findUnallowedSharing returns the addresses that Services have at the end without a right to share
// them.
func (w *twoControllerHarness) findUnallowedSharing() []string {
	var out []string
	all := w.server.AllServices()
	for i, x := range all {
		for _, y := range all[:i] {
			for _, a := range ingressAddresses(x) {
				if slices.Contains(ingressAddresses(y), a) && !maySharePerOracle(x, y) {
					out = append(out, fmt.Sprintf("%s and %s both have %s, and may not share it", x.Name, y.Name, a))
				}
			}
		}
	}
	return out
}

// describeUnassignedFreeAddresses says which addresses a Service lacks although they are free.
func describeUnassignedFreeAddresses(v *view.Service, s *corev1.Service, has map[ipfamily.Family]int, free map[ipfamily.Family][]netip.Addr) []string {
	var lacks []ipfamily.Family
	for _, f := range v.ClusterIPFamilies() {
		if has[f] == 0 {
			lacks = append(lacks, f)
		}
	}
	if len(lacks) == 0 {
		return nil
	}
	var out []string
	// a Service that wants to share may be told what keeps it from sharing
	mayBeTold := []names.Reason{names.ReasonPoolExhausted}
	if v.SharingKey != "" {
		mayBeTold = append(mayBeTold, names.ReasonPortConflict, names.ReasonSharingKeyDiffers)
	}
	if len(v.AssignedAddresses) == 0 && !slices.Contains(mayBeTold, addressAssignedConditionReason(s)) {
		out = append(out, fmt.Sprintf("%s has no address, for the reason %q", s.Name, addressAssignedConditionReason(s)))
	}
	had := func(f ipfamily.Family) bool { return len(free[f]) > 0 }
	if v.FamilyPolicy == view.RequireDualStack && slices.ContainsFunc(lacks, had) && len(lacks) > 1 {
		return out // it needs both
	}
	if slices.ContainsFunc(lacks, had) {
		out = append(out, fmt.Sprintf("%s has %v and lacks %v, while %v are free", s.Name, v.AssignedAddresses, lacks, free))
	}
	return out
}
