package announcedcondition

import (
	"container/heap"
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
)

// dueReconcile is a Service, and when the ConditionWriter looks at it again.
type dueReconcile struct {
	at   time.Time
	name string
}

// dueReconciles has the next one first.
type dueReconciles []dueReconcile

func (d dueReconciles) Len() int           { return len(d) }
func (d dueReconciles) Less(i, j int) bool { return d[i].at.Before(d[j].at) }
func (d dueReconciles) Swap(i, j int)      { d[i], d[j] = d[j], d[i] }
func (d *dueReconciles) Push(x any)        { *d = append(*d, x.(dueReconcile)) }
func (d *dueReconciles) Pop() any {
	old := *d
	x := old[len(old)-1]
	*d = old[:len(old)-1]
	return x
}

// reconcileQueue is the work queue of the ConditionWriter in virtual time: of several requests for
// a Service only the first counts.
type reconcileQueue struct {
	*conditionWriterHarness
	due         dueReconciles
	dueAtByName map[string]time.Time
}

func (q *reconcileQueue) addAfter(name string, delay time.Duration) {
	at := q.now.Add(delay)
	if before, known := q.dueAtByName[name]; known && !at.Before(before) {
		return
	}
	q.dueAtByName[name] = at
	heap.Push(&q.due, dueReconcile{at, name})
}

// runFor lets time pass.
func (q *reconcileQueue) runFor(d time.Duration) {
	q.t.Helper()
	end := q.now.Add(d)
	for len(q.due) > 0 && !q.due[0].at.After(end) {
		next := heap.Pop(&q.due).(dueReconcile)
		if at, known := q.dueAtByName[next.name]; !known || !at.Equal(next.at) {
			continue // an earlier request came
		}
		delete(q.dueAtByName, next.name)
		q.now = next.at
		r, err := q.writer.Reconcile(q.t.Context(), ctrl.Request{NamespacedName: client.ObjectKey{Namespace: "default", Name: next.name}})
		if err != nil {
			q.t.Fatal(err)
		}
		if r.RequeueAfter > 0 {
			q.addAfter(next.name, r.RequeueAfter)
		}
	}
	q.now = end
}

// readServiceCountOfRouterDeath returns how many Services the test has: SERVICES, or a few.
func readServiceCountOfRouterDeath(t *testing.T) int {
	t.Helper()
	text := os.Getenv("SERVICES")
	if text == "" {
		return 40
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("SERVICES is %q, want a number", text)
	}
	return n
}

// TestDeathOfARouterWritesEachServiceOnce ends the sessions of all nodes within a second, and
// establishes them again a minute later, within ten seconds. Each Service costs one write and one
// event for the death, and the same for the return. A few texts may be written besides, at most 5
// in a second.
func TestDeathOfARouterWritesEachServiceOnce(t *testing.T) {
	const nodeCount = 10
	serviceCount := readServiceCountOfRouterDeath(t)
	q := &reconcileQueue{conditionWriterHarness: newConditionWriterHarness(t), dueAtByName: map[string]time.Time{}}
	q.now = q.now.Add(time.Hour)
	one := "node1"
	q.sessionsInMemory = map[string]v1alpha1.BGPSession{}
	q.sharedEndpointSlice = &discoveryv1.EndpointSlice{Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.0.0.1"}, NodeName: &one}}}
	for i := 3; i <= nodeCount; i++ {
		node := fmt.Sprint("node", i)
		q.createObject(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node}})
		// A node with so many routes has no ServiceBGPStatus.
		q.createObject(&v1alpha1.SpeakerStatus{ObjectMeta: metav1.ObjectMeta{Namespace: names.DefaultNamespace, Name: node},
			Status: v1alpha1.SpeakerStatusStatus{Node: node, LastSeen: &metav1.Time{Time: q.now}, UsableLinks: []string{"eth0"}, Routes: 600}})
	}
	if _, err := q.configurationReader.ReadNow(t.Context()); err != nil {
		t.Fatal(err)
	}
	var services []string
	for i := range serviceCount {
		s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprint("many", i)}, Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer}}
		s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "192.0.2.1"}}
		q.createObject(s)
		services = append(services, s.Name)
	}
	setAllSessions := func(fault names.Explanation, interval time.Duration) {
		for i := range nodeCount {
			q.setSessionWithTor(fmt.Sprint("node", i+1), fault)
			for _, name := range services {
				q.addAfter(name, stateChangeCollectDelay)
			}
			q.runFor(interval)
		}
	}
	setAllSessions(names.Explanation{}, 0)
	q.runFor(time.Minute)
	for _, c := range []struct {
		what     string
		fault    names.Explanation
		interval time.Duration // between two sessions
	}{
		{"death", names.NewExplanation(names.ReasonConnectionLost, "the router closed the connection"), 100 * time.Millisecond},
		{"return", names.Explanation{}, time.Second},
	} {
		q.serviceWrites, q.sentEvents = 0, nil
		setAllSessions(c.fault, c.interval)
		q.runFor(time.Minute)
		t.Logf("the %s of the only router: %d writes of %d Services, %d events", c.what, q.serviceWrites, serviceCount, len(q.sentEvents))
		texts := int(nodeCount * c.interval / minOverallReminderInterval)
		if q.serviceWrites < serviceCount || q.serviceWrites > serviceCount+texts {
			t.Errorf("the %s costs %d writes of %d Services, want one each, and at most %d texts", c.what, q.serviceWrites, serviceCount, texts)
		}
		if len(q.sentEvents) != serviceCount {
			t.Errorf("the %s costs %d events of %d Services, want one each", c.what, len(q.sentEvents), serviceCount)
		}
	}
}
