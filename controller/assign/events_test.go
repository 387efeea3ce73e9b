package assign

import (
	"fmt"
	"log/slog"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/controller/assign/apitest"
	"github.com/gantry-lb/gantry/controller/events"
)

// TestEventReasons checks the event reasons that users of the metallb.io API filter on.
func TestEventReasons(t *testing.T) {
	runWithFakeTime(t, func(t *testing.T) {
		s := apitest.NewServer(nil)
		s.SetPool("p", poolSpec("192.0.2.0/30"))
		s.SetPool("q", poolSpec("198.51.100.7"))
		recorder := &eventRecorder{}
		c := startController(t, s, nil, ServiceWorkerOptions{RecordEvent: recorder.recordEvent})
		defer c.stopAndWait()
		old := newLoadBalancer("old")
		old.Annotations = map[string]string{names.AnnotationRequestedPoolOld: "p"}
		malformed := newLoadBalancer("malformed")
		malformed.Annotations = map[string]string{names.AnnotationLoadBalancerIPs: "192.0.2.x"}
		both := newLoadBalancer("both")
		both.Spec.ClusterIPs = append(both.Spec.ClusterIPs, "fd00::1")
		both.Spec.IPFamilies = append(both.Spec.IPFamilies, corev1.IPv6Protocol)
		prefer := corev1.IPFamilyPolicyPreferDualStack
		both.Spec.IPFamilyPolicy = &prefer
		moving := newLoadBalancer("moving")
		require, headless := corev1.IPFamilyPolicyRequireDualStack, newLoadBalancer("headless")
		headless.Spec.ClusterIPs, headless.Spec.ClusterIP = []string{"None"}, "None"
		single := newLoadBalancer("single")
		single.Spec.IPFamilyPolicy = &require
		for _, o := range []*corev1.Service{old, malformed, both, moving, headless, single} {
			s.CreateService(o)
			time.Sleep(time.Second)
		}
		s.EditService(serviceKey("moving"), func(o *corev1.Service) {
			o.Annotations[names.AnnotationRequestedPool] = "q"
		})
		time.Sleep(3 * time.Second)
		for name, want := range map[string][]string{
			"old":       {"Normal IPAllocated ", "Warning deprecatedAnnotation the annotation metallb.universe.tf/address-pool is an older spelling: write metallb.io/address-pool"},
			"malformed": {"Warning LoadBalancerFailed "},
			"both":      {"Normal IPAllocated ", "Normal AdditionalAssignFailed "},
			"headless":  {"Warning noclusterIPsIPFamily NoClusterIP: "},
			"single":    {"Warning not enough clusterips FamilyMismatch: "},
			"moving":    {"Normal IPAllocated ", "Normal ClearAssignment given up: 192.0.2.2", "Normal IPAllocated "},
		} {
			got := recorder.eventsOf(name)
			for i := range max(len(got), len(want)) {
				if i >= len(got) || i >= len(want) || !strings.HasPrefix(got[i], want[i]) {
					t.Errorf("the events of %s are %q, want %q", name, got, want)
					break
				}
			}
		}
	})
}

// TestLongEventNoteIsTruncated quotes a text that is longer than an event's note may be.
func TestLongEventNoteIsTruncated(t *testing.T) {
	runWithFakeTime(t, func(t *testing.T) {
		s := apitest.NewServer(nil)
		s.SetPool("p", poolSpec("192.0.2.0/30"))
		recorder := &eventRecorder{}
		c := startController(t, s, nil, ServiceWorkerOptions{RecordEvent: recorder.recordEvent})
		defer c.stopAndWait()
		o := newLoadBalancer("long")
		o.Annotations = map[string]string{names.AnnotationLoadBalancerIPs: strings.Repeat("é", 2000)}
		s.CreateService(o)
		time.Sleep(time.Second)
		got := recorder.eventsOf("long")
		if len(got) != 1 || !strings.HasPrefix(got[0], "Warning LoadBalancerFailed InvalidRequest: ") || len(got[0]) > len("Warning LoadBalancerFailed ")+events.MaxNoteBytes || !utf8.ValidString(got[0]) {
			t.Errorf("the events are %.200q, want one that the API server takes", got)
		}
	})
}

// TestEventsDelayNoAddress creates Services faster than the API server writes them. Their events
// come when all have an address, and all of them come, also if the controller stops before.
func TestEventsDelayNoAddress(t *testing.T) {
	for _, stops := range []bool{false, true} {
		runWithFakeTime(t, func(t *testing.T) {
			const n = 200
			s := apitest.NewServer(nil)
			s.SetPool("p", poolSpec("10.0.0.0/16"))
			recorder := &eventRecorder{}
			c := startController(t, s, newSlowAPIServerDelivery, ServiceWorkerOptions{RecordEvent: recorder.recordEvent})
			time.Sleep(time.Minute)
			for i := range n {
				s.CreateService(newLoadBalancer(fmt.Sprint("s", i)))
			}
			for addresses := 0; addresses < n; addresses = countServicesWithAddress(s) {
				time.Sleep(time.Millisecond)
				if events := recorder.countEvents(); events > 0 {
					t.Fatalf("%d events are recorded when %d of %d Services have an address", events, addresses, n)
				}
			}
			if !stops {
				time.Sleep(2 * time.Second)
			}
			c.stopAndWait()
			if events := recorder.countEvents(); events != n {
				t.Errorf("%d events are recorded (the controller stops before: %t), want %d", events, stops, n)
			}
		})
	}
}

// TestDeferredEventsAreRecordedDespiteConstantWork creates a Service every 10 ms for a minute.
func TestDeferredEventsAreRecordedDespiteConstantWork(t *testing.T) {
	runWithFakeTime(t, func(t *testing.T) {
		s := apitest.NewServer(nil)
		s.SetPool("p", poolSpec("10.0.0.0/16"))
		recorder := &eventRecorder{}
		c := startController(t, s, newSlowAPIServerDelivery, ServiceWorkerOptions{RecordEvent: recorder.recordEvent})
		defer c.stopAndWait()
		for i := range 6000 {
			s.CreateService(newLoadBalancer(fmt.Sprint("s", i)))
			time.Sleep(10 * time.Millisecond)
			if late := i - int((maxEventDelay+time.Second)/(10*time.Millisecond)); late >= 0 && len(recorder.eventsOf(fmt.Sprint("s", late))) != 1 {
				t.Fatalf("Service %d has no event when Service %d is created", late, i)
			}
		}
	})
}

func countServicesWithAddress(s *apitest.Server) int {
	n := 0
	for _, o := range s.AllServices() {
		if firstAddress(o).IsValid() {
			n++
		}
	}
	return n
}

func (r *eventRecorder) countEvents() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, e := range r.eventsByService {
		n += len(e)
	}
	return n
}

// A misspelt annotation is named in the condition and in an event, and the Service is served.
func TestUnknownAnnotationIsReported(t *testing.T) {
	runWithFakeTime(t, func(t *testing.T) {
		s := apitest.NewServer(nil)
		s.SetPool("p", poolSpec("192.0.2.0/30"))
		recorder := &eventRecorder{}
		c := startController(t, s, nil, ServiceWorkerOptions{RecordEvent: recorder.recordEvent})
		defer c.stopAndWait()
		o := newLoadBalancer("a")
		o.Annotations = map[string]string{"metallb.io/allow-shared": "k"}
		s.CreateService(o)
		time.Sleep(time.Second)
		wantAddressAndReason(t, s, "a", "192.0.2.0", names.ReasonAssigned)
		const want = "the annotation metallb.io/allow-shared is unknown and ignored: did you mean metallb.io/allow-shared-ip?"
		if text := meta.FindStatusCondition(s.ServiceByKey(serviceKey("a")).Status.Conditions, names.ConditionAddressAssigned).Message; !strings.Contains(text, want) {
			t.Errorf("the condition says %q", text)
		}
		if all := recorder.eventsOf("a"); !slices.Contains(all, "Warning unknownAnnotation "+want) {
			t.Errorf("the events are %q", all)
		}
		// The annotation is corrected: the text goes.
		s.EditService(serviceKey("a"), func(o *corev1.Service) { delete(o.Annotations, "metallb.io/allow-shared") })
		time.Sleep(time.Second)
		if text := meta.FindStatusCondition(s.ServiceByKey(serviceKey("a")).Status.Conditions, names.ConditionAddressAssigned).Message; strings.Contains(text, "unknown") {
			t.Errorf("the condition says %q", text)
		}
	})
}

// TestRefusalsAreLoggedAsWarnings checks the log level of a Service that gets an address, and of
// one that gets none.
func TestRefusalsAreLoggedAsWarnings(t *testing.T) {
	runWithFakeTime(t, func(t *testing.T) {
		s := apitest.NewServer(nil)
		s.SetPool("p", poolSpec("192.0.2.1"))
		var log strings.Builder
		c := startController(t, s, nil, ServiceWorkerOptions{Log: slog.New(slog.NewTextHandler(&log, nil))})
		s.CreateService(newLoadBalancer("first"))
		time.Sleep(5 * time.Second)
		s.CreateService(newLoadBalancer("second"))
		time.Sleep(time.Minute)
		c.stopAndWait()
		level := regexp.MustCompile(`level=(\w+) .*service=default/(\w+) reason=(\w+)\n`)
		var got []string
		for _, m := range level.FindAllStringSubmatch(log.String(), -1) {
			got = append(got, strings.Join(m[1:], " "))
		}
		if want := []string{"INFO first Assigned", "WARN second PoolExhausted"}; !slices.Equal(got, want) {
			t.Errorf("the log has %q, want %q:\n%s", got, want, log.String())
		}
	})
}
