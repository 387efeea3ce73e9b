package assign

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/controller/assign/apitest"
)

// TestServiceSaysThatItWaitedForALeader creates Services while no controller leads. The next leader
// says how long they waited, once, in the condition and in the event. A further leader writes
// nothing.
func TestServiceSaysThatItWaitedForALeader(t *testing.T) {
	runWithFakeTime(t, func(t *testing.T) {
		s := apitest.NewServer(nil)
		s.SetPool("p", poolSpec("192.0.2.0/31"))
		since := time.Now()
		time.Sleep(time.Minute)
		s.CreateService(newLoadBalancer("waits"))
		s.EditService(serviceKey("waits"), func(o *corev1.Service) { o.CreationTimestamp = metav1.Now() })
		time.Sleep(20 * time.Second)
		absence := LeaderAbsence{Since: since, Until: time.Now()}
		events := &eventRecorder{}
		options := ServiceWorkerOptions{LeaderAbsence: func() LeaderAbsence { return absence }, RecordEvent: events.recordEvent}
		c := startController(t, s, nil, options)
		time.Sleep(10 * time.Second)
		s.CreateService(newLoadBalancer("later"))
		time.Sleep(10 * time.Second)
		const want = "the Service waited 20s, since no controller led from "
		text := func(name string) string {
			return meta.FindStatusCondition(s.ServiceByKey(serviceKey(name)).Status.Conditions, names.ConditionAddressAssigned).Message
		}
		if got := text("waits"); !strings.Contains(got, want) {
			t.Errorf("the condition says %q, want %q in it", got, want)
		}
		if got := strings.Join(events.eventsOf("waits"), "\n"); !strings.Contains(got, want) {
			t.Errorf("the events say %q, want %q in them", got, want)
		}
		if got := text("later"); strings.Contains(got, "waited") {
			t.Errorf("a Service that was created later says %q", got)
		}
		version := s.ServiceByKey(serviceKey("waits")).ResourceVersion
		c.stopAndWait()
		absence.Since, absence.Until = absence.Until, time.Now()
		c = startController(t, s, nil, options)
		defer c.stopAndWait()
		time.Sleep(20 * time.Second)
		if got := s.ServiceByKey(serviceKey("waits")); got.ResourceVersion != version {
			t.Errorf("a further leader has written the Service again: %q", text("waits"))
		}
		s.EditService(serviceKey("waits"), func(o *corev1.Service) { o.Spec.Ports[0].Port = 81 })
		time.Sleep(10 * time.Second)
		if got := text("waits"); !strings.Contains(got, want) {
			t.Errorf("after an edit the condition says %q, want %q in it", got, want)
		}
	})
}

// TestServiceOfLastRenewalSecondHasWaitText has a creation time that the API server rounded
// down to before the last renewal of the Lease.
func TestServiceOfLastRenewalSecondHasWaitText(t *testing.T) {
	second := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	absence := LeaderAbsence{Since: second.Add(300 * time.Millisecond), Until: second.Add(10 * time.Second)}
	for created, want := range map[time.Time]bool{second: true, second.Add(-time.Second): false} {
		s := newLoadBalancer("web")
		s.CreationTimestamp = metav1.NewTime(created)
		if got := absence.describeWaitOfService(s); (got != "") != want {
			t.Errorf("created at %s: the text is %q, want one: %v", created.Format(time.TimeOnly), got, want)
		}
	}
}
