package assign

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/controller/assign/apitest"
	"github.com/gantry-lb/gantry/internal/view"
)

// A user edits the annotations that the controller writes. They get their right value again, and
// have no effect, neither on the running controller nor on one that starts.
func TestEditedPoolAnnotationsOfServiceAreRestored(t *testing.T) {
	runWithFakeTime(t, func(t *testing.T) {
		s := apitest.NewServer(nil)
		s.SetPool("a", poolSpec("192.0.2.0/30"))
		s.SetPool("b", poolSpec("198.51.100.0/30"))
		c := startController(t, s, nil, ServiceWorkerOptions{})
		defer func() { c.stopAndWait() }()
		s.CreateService(newLoadBalancer("web"))
		time.Sleep(time.Second)
		check := func(address string, why names.Reason, pool string) {
			t.Helper()
			wantAddressAndReason(t, s, "web", address, why)
			o := s.ServiceByKey(serviceKey("web"))
			if v := view.FromService(o); v.RecordedPool != pool || o.Annotations[names.AnnotationAllocatedFromPool] != pool || o.Annotations[names.AnnotationAllocatedFromSeveralPools] != "" {
				t.Errorf("the recorded pool is %q and the annotations are %v, want %q", v.RecordedPool, o.Annotations, pool)
			}
			if text := meta.FindStatusCondition(o.Status.Conditions, names.ConditionAddressAssigned).Message; strings.Contains(text, "b no longer contains") || strings.Contains(text, "b does not contain") {
				t.Errorf("pool b never had the address: %s", text)
			}
		}
		check("192.0.2.0", names.ReasonAssigned, "a")
		forge := func(more ...string) {
			s.EditService(serviceKey("web"), func(o *corev1.Service) {
				o.Annotations[names.AnnotationAllocatedFromPool], o.Annotations[names.AnnotationAllocatedFromSeveralPools] = "b", "b,a"
				for _, key := range more {
					o.Annotations[key] = "b"
				}
			})
			time.Sleep(2 * time.Second)
		}
		forge()
		check("192.0.2.0", names.ReasonAssigned, "a")
		// Its pool goes. The other pool must not take the address over.
		s.SetPool("a", poolSpec("203.0.113.0/30"))
		c.ConfigurationReader.NotifyAllocationObjectChanged()
		time.Sleep(2 * time.Second)
		forge()
		check("192.0.2.0", names.ReasonAddressNotInPool, "a")
		c.stopAndWait()
		c = startController(t, s, nil, ServiceWorkerOptions{})
		forge()
		check("192.0.2.0", names.ReasonAddressNotInPool, "a")
		// It asks for the other pool, and gets an address of that one.
		forge(names.AnnotationRequestedPool)
		check("198.51.100.0", names.ReasonAssigned, "b")
	})
}
