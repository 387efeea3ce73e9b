package reconcile

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/controller/reconcile/memory"
)

// refusing says of an AddressLedger that shows one of the Services that it is not wanted.
func refusing(services ...string) func(*v1alpha1.AddressLedger) error {
	return func(l *v1alpha1.AddressLedger) error {
		for _, p := range l.Spec.Pending {
			if len(services) == 0 || slices.Contains(services, p.Name) {
				return apierrors.NewForbidden(schema.GroupResource{Resource: "addressledgers"}, l.Name, errors.New("a policy does not want it"))
			}
		}
		return nil
	}
}

// TestARefusedPendingAssignmentHoldsUpNobody has the API server refuse every AddressLedger that shows one of three Services in a crowd: the
// others are served, the three say why they are not, and are served when they may be.
func TestARefusedPendingAssignmentHoldsUpNobody(t *testing.T) {
	bubble(t, func(t *testing.T) {
		bad := []string{"s17", "s18", "s150"}
		s := memory.NewServer(nil)
		s.SetPool("p", pool("10.0.0.0/16"))
		s.RefuseLedger(refusing(bad...))
		told := &recorder{}
		for i := range 200 {
			s.Create(balanced(fmt.Sprint("s", i)))
		}
		c := run(t, s, briskly, Options{Tell: told.tell})
		defer c.end()
		time.Sleep(10 * time.Second)
		for i := range 200 {
			name := fmt.Sprint("s", i)
			o := s.Service(key(name))
			switch {
			case !slices.Contains(bad, name):
				if !address(o).IsValid() {
					t.Errorf("Service %s has no address: %v", name, o.Status.Conditions)
				}
			case address(o).IsValid() || reason(o) != names.ReasonWriteFailed:
				t.Errorf("Service %s has %v for the reason %q, want none for WriteFailed", name, addresses(o), reason(o))
			case len(told.of(name)) != 1 || !strings.Contains(told.of(name)[0], "Warning AllocationFailed WriteFailed: "):
				t.Errorf("the events of %s are %q", name, told.of(name))
			}
		}
		before := s.Writes("service")
		for i := range 20 { // who comes later does not wait for them either
			name, begun := fmt.Sprint("late", i), time.Now()
			s.Create(balanced(name))
			time.Sleep(500 * time.Millisecond)
			if !address(s.Service(key(name))).IsValid() {
				t.Errorf("Service %s has no address after %s", name, time.Since(begun))
			}
		}
		refused := s.Refused()
		time.Sleep(10 * time.Minute)
		if n := s.Refused() - refused; n > 3*25 {
			t.Errorf("what is refused was tried %d times in 10 minutes", n)
		}
		if n := s.Writes("service") - before; n > 20 {
			t.Errorf("%d status writes for 20 Services", n)
		}
		s.RefuseLedger(nil)
		time.Sleep(lastDelay + time.Second)
		for _, name := range bad {
			if o := s.Service(key(name)); !address(o).IsValid() || reason(o) != names.ReasonAssigned {
				t.Errorf("Service %s is not served when it is allowed: %v", name, o.Status.Conditions)
			}
		}
	})
}

// TestAnAddressLedgerThatIsRefusedAltogether has the API server refuse every pending assignment, as it does a controller without the
// right: it is not asked more than once a second in the long run, and all are served when it allows it.
func TestAnAddressLedgerThatIsRefusedAltogether(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := memory.NewServer(nil)
		s.SetPool("p", pool("10.0.0.0/16"))
		s.RefuseLedger(refusing())
		for i := range 100 {
			s.Create(balanced(fmt.Sprint("s", i)))
		}
		c := run(t, s, briskly, Options{})
		defer c.end()
		time.Sleep(5 * time.Minute)
		if n := s.Refused(); n > 2*100+5*60 { // the first is what it takes to find each
			t.Errorf("the AddressLedger was written %d times in 5 minutes", n)
		}
		s.RefuseLedger(nil)
		time.Sleep(2 * time.Minute)
		for _, o := range s.Services() {
			if !address(o).IsValid() {
				t.Errorf("Service %s has no address: %v", o.Name, o.Status.Conditions)
			}
		}
	})
}
