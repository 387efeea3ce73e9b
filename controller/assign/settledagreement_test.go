package assign

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/controller/allocate"
	"github.com/gantry-lb/gantry/controller/assign/apitest"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
)

// editOfServer changes one object, and returns the Service that it names first, if it is one.
type editOfServer func(r *rand.Rand, s *apitest.Server) (edited string)

func randomServiceName(r *rand.Rand) string { return fmt.Sprintf("s%d", r.IntN(7)) }

func randomPoolAddress(r *rand.Rand) string { return fmt.Sprintf("192.0.2.%d", r.IntN(5)) }

// editServiceByAnnotation sets an annotation of a Service, or removes it.
func editServiceByAnnotation(key string, value func(*rand.Rand) string) editOfServer {
	return func(r *rand.Rand, s *apitest.Server) string {
		name := randomServiceName(r)
		s.EditService(serviceKey(name), func(o *corev1.Service) {
			delete(o.Annotations, key)
			if r.IntN(4) > 0 {
				if o.Annotations == nil {
					o.Annotations = map[string]string{}
				}
				o.Annotations[key] = value(r)
			}
		})
		return name
	}
}

func newPoolSpecEdit(name string, spec func(*rand.Rand) v1beta1.IPAddressPoolSpec) editOfServer {
	return func(r *rand.Rand, s *apitest.Server) string {
		s.SetPool(name, spec(r))
		return ""
	}
}

var isNotAssignedByItself = false

// editsOfServer are edits of Services and pools of all kinds.
var editsOfServer = []editOfServer{
	editServiceByAnnotation(names.AnnotationLoadBalancerIPs, randomPoolAddress),
	editServiceByAnnotation(names.AnnotationAddressesToExchange, randomPoolAddress),
	editServiceByAnnotation(names.AnnotationRequestedPool, func(r *rand.Rand) string { return []string{"a", "b", "c"}[r.IntN(3)] }),
	editServiceByAnnotation(names.AnnotationSharingKey, func(*rand.Rand) string { return "key" }),
	editServiceByAnnotation(names.AnnotationAddressesPerFamily, func(r *rand.Rand) string { return fmt.Sprint(1 + r.IntN(3)) }),
	func(r *rand.Rand, s *apitest.Server) string {
		name := randomServiceName(r)
		s.EditService(serviceKey(name), func(o *corev1.Service) { o.Spec.Ports[0].Port = int32(80 + r.IntN(3)) })
		return name
	},
	func(r *rand.Rand, s *apitest.Server) string {
		name := randomServiceName(r)
		s.DeleteService(serviceKey(name))
		return name
	},
	func(r *rand.Rand, s *apitest.Server) string {
		name := randomServiceName(r)
		s.CreateService(newLoadBalancer(name))
		return name
	},
	newPoolSpecEdit("a", func(r *rand.Rand) v1beta1.IPAddressPoolSpec {
		return poolSpec(fmt.Sprintf("192.0.2.%d-192.0.2.4", r.IntN(5)))
	}),
	newPoolSpecEdit("a", func(r *rand.Rand) v1beta1.IPAddressPoolSpec {
		spec := poolSpec("192.0.2.0-192.0.2.4")
		spec.Gantry.Retire = &v1beta1.PoolRetirement{Addresses: []string{fmt.Sprintf("192.0.2.%d/32", r.IntN(5))}, ServicesPerMinute: 600}
		return spec
	}),
	newPoolSpecEdit("a", func(r *rand.Rand) v1beta1.IPAddressPoolSpec {
		spec := poolSpec("192.0.2.0-192.0.2.4")
		spec.Gantry.Exclude = []string{randomPoolAddress(r) + "/32"}
		return spec
	}),
	newPoolSpecEdit("b", func(r *rand.Rand) v1beta1.IPAddressPoolSpec {
		spec := poolSpec("198.51.100.0/31")
		if r.IntN(2) == 0 {
			spec.AutoAssign = &isNotAssignedByItself
		}
		return spec
	}),
	newPoolSpecEdit("b", func(*rand.Rand) v1beta1.IPAddressPoolSpec {
		spec := poolSpec("198.51.100.0/31")
		spec.AllocateTo = &v1beta1.ServiceAllocation{Namespaces: []string{"other"}}
		return spec
	}),
	newPoolSpecEdit("c", func(*rand.Rand) v1beta1.IPAddressPoolSpec { return poolSpec("203.0.113.0/31") }),
}

// TestSettledAssignmentsAgreeWithTheWorker lets a controller settle after random edits, makes one
// more edit, and compares what allocate.SettleAssignments says with what the controller does.
func TestSettledAssignmentsAgreeWithTheWorker(t *testing.T) {
	changed := 0
	for seed := range uint64(150) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			runWithFakeTime(t, func(t *testing.T) {
				if testSettledAssignmentsAgree(t, rand.New(rand.NewPCG(seed, 7))) {
					changed++
				}
			})
		})
	}
	if t.Logf("%d of 150 last edits changed what Services have", changed); changed < 40 {
		t.Errorf("only %d of 150 last edits changed what Services have: the edits are too weak", changed)
	}
}

// testSettledAssignmentsAgree reports whether the last edit changed what Services have.
func testSettledAssignmentsAgree(t *testing.T, r *rand.Rand) (isChanged bool) {
	s := apitest.NewServer(nil)
	s.SetPool("a", poolSpec("192.0.2.0-192.0.2.4"))
	s.SetPool("b", poolSpec("198.51.100.0/31"))
	c := startController(t, s, nil, ServiceWorkerOptions{})
	defer c.stopAndWait()
	for i := range 6 {
		s.CreateService(newLoadBalancer(fmt.Sprintf("s%d", i)))
	}
	const settleDelay = 5 * time.Minute
	time.Sleep(settleDelay)
	for range r.IntN(6) {
		editsOfServer[r.IntN(len(editsOfServer))](r, s)
		c.ConfigurationReader.NotifyAllocationObjectChanged()
		time.Sleep(settleDelay)
	}
	before := stateBeforeEdit{s.AllServices(), readTestSnapshot(t, c, nil)}
	edited := editsOfServer[r.IntN(len(editsOfServer))](r, s)
	want := expectSettled(t, s, before, readTestSnapshot(t, c, before.snapshot), edited)
	c.ConfigurationReader.NotifyAllocationObjectChanged()
	time.Sleep(2 * settleDelay)
	if got := describeAssignments(s.AllServices()); got != want {
		t.Errorf("after an edit of %q the Services have\n%s\nand SettleAssignments says\n%s", edited, got, want)
	}
	return describeAssignments(before.services) != want
}

// stateBeforeEdit is what there was before the last edit.
type stateBeforeEdit struct {
	services []*corev1.Service
	snapshot *snapshot.Snapshot
}

func readTestSnapshot(t *testing.T, c *runningController, previous *snapshot.Snapshot) *snapshot.Snapshot {
	t.Helper()
	o, err := c.client.ReadCachedPoolsAndReservations(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	o.PreviousSnapshot = previous
	snap, _ := snapshot.BuildSnapshot(o)
	return snap
}

// expectSettled returns what the Services have by SettleAssignments, in the form of
// describeAssignments.
func expectSettled(t *testing.T, s *apitest.Server, before stateBeforeEdit, after *snapshot.Snapshot, edited string) string {
	t.Helper()
	l := allocate.NewLedger()
	l.AdvanceTime(time.Now())
	l.UseSnapshot(before.snapshot)
	for _, o := range before.services {
		v := view.FromService(o)
		l.CommitAssignment(&v, v.AssignedAddresses, v.RecordedPool)
	}
	var services []view.Service
	for _, o := range s.AllServices() {
		services = append(services, view.FromService(o))
	}
	for _, k := range l.ServicesHoldingAddresses() {
		if !slices.ContainsFunc(services, func(v view.Service) bool { return v.Key == k }) {
			l.ReleaseService(k)
		}
	}
	rank := func(v *view.Service) int {
		switch {
		case v.Key.Name == edited:
			return 0
		case len(v.AssignedAddresses) > 0:
			return 1
		}
		return 2
	}
	slices.SortStableFunc(services, func(x, y view.Service) int {
		if d := rank(&x) - rank(&y); d != 0 {
			return d
		}
		return x.Key.Compare(y.Key)
	})
	var lines []string
	for _, a := range allocate.SettleAssignments(services, l, after) {
		lines = append(lines, fmt.Sprintf("%s: %s %s", a.Service.Key.Name, view.JoinAddresses(a.Service.AssignedAddresses), a.LastDecision.Reason))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// describeAssignments has a line for each Service, with its addresses and the Reason of its
// condition.
func describeAssignments(all []*corev1.Service) string {
	var lines []string
	for _, o := range all {
		lines = append(lines, fmt.Sprintf("%s: %s %s", o.Name, view.JoinAddresses(view.FromService(o).AssignedAddresses), addressAssignedConditionReason(o)))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}
