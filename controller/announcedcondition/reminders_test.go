package announcedcondition

import (
	"fmt"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
)

// TestWarningOfRefusedRequestIsRepeated checks a Service that keeps its address because it does not
// get the one that it asks for.
func TestWarningOfRefusedRequestIsRepeated(t *testing.T) {
	h := newConditionWriterHarness(t)
	h.setSessionWithTor("node1", names.Explanation{})
	h.reportRoutesOfServiceWeb("node1")
	var s corev1.Service
	setReason := func(reason names.Reason) {
		t.Helper()
		if err := h.api.Get(t.Context(), client.ObjectKey{Namespace: "default", Name: "web"}, &s); err != nil {
			t.Fatal(err)
		}
		s.Status.Conditions = []metav1.Condition{{Type: names.ConditionAddressAssigned, Status: metav1.ConditionTrue, Reason: string(reason), Message: "it has another owner", LastTransitionTime: metav1.NewTime(h.now.Add(-time.Hour))}}
		if err := h.api.Status().Update(t.Context(), &s); err != nil {
			t.Fatal(err)
		}
	}
	const warning = "Warning AllocationFailed AddressInUse: it has another owner"
	h.reconcileAndAdvanceTimeFor("web", time.Minute)
	setReason(names.ReasonAddressInUse)
	if h.reconcileAndAdvanceTimeFor("web", 10*time.Minute); h.countEvents(warning) != 0 {
		t.Errorf("the first Warning is that of the worker, and there is %q", h.sentEvents)
	}
	if h.reconcileAndAdvanceTimeFor("web", time.Hour); h.countEvents(warning) != 2 {
		t.Errorf("there are %d Warnings after 70 minutes, want 2 besides the first: %q", h.countEvents(warning), h.sentEvents)
	}
	if n := testutil.CollectAndCount(h.writer, "gantry_services_without_address"); n != 0 {
		t.Error("the Service counts as one without an address")
	}
	h.restartController()
	if h.reconcileAndAdvanceTimeFor("web", 10*time.Minute); h.countEvents(warning) != 3 {
		t.Errorf("there are %d Warnings after a restart of the controller, want one more, 3: %q", h.countEvents(warning), h.sentEvents)
	}
	setReason(names.ReasonAssigned)
	if h.reconcileAndAdvanceTimeFor("web", time.Hour); h.countEvents(warning) != 3 {
		t.Errorf("the Warning is repeated after the end of the fault: %q", h.sentEvents)
	}
}

// TestWarningThatWasNotWrittenIsTriedAgain has an API server that takes no events for a while.
func TestWarningThatWasNotWrittenIsTriedAgain(t *testing.T) {
	h := newConditionWriterHarness(t)
	h.setSessionWithTor("node1", wrongASNumberFault)
	h.setSessionWithTor("node2", wrongASNumberFault)
	h.areEventsRefused = true
	h.reconcileAndAdvanceTimeFor("web", 5*time.Minute)
	h.areEventsRefused = false
	const warning = "Warning announceFailed NoSession: "
	if h.reconcileAndAdvanceTimeFor("web", 2*time.Minute); h.countEvents(warning) != 1 {
		t.Errorf("there are %d Warnings after the API server takes events again, want 1: %q", h.countEvents(warning), h.sentEvents)
	}
	if h.reconcileAndAdvanceTimeFor("web", 10*time.Minute); h.countEvents(warning) != 1 {
		t.Errorf("there are %d Warnings ten minutes later, want 1: %q", h.countEvents(warning), h.sentEvents)
	}
}

// writeDueTexts writes the texts of all Services that may be written, second by second. It returns
// the highest number of writes in one second, and how many there are.
func writeDueTexts(m *faultMemory, services []client.ObjectKey, now *time.Time, during time.Duration) (busiestSecond, all int) {
	dueAt := map[client.ObjectKey]time.Time{}
	for _, k := range services {
		dueAt[k] = *now
	}
	for end := now.Add(during); now.Before(end); *now = now.Add(time.Second) {
		writes := 0
		for k, at := range dueAt {
			if at.After(*now) {
				continue
			}
			if wait := m.delayOrRecordTextChange(k, *now); wait > 0 {
				dueAt[k] = now.Add(wait)
				continue
			}
			delete(dueAt, k)
			writes++
		}
		busiestSecond, all = max(busiestSecond, writes), all+writes
	}
	return busiestSecond, all
}

// TestTextsOfManyServicesAreWrittenFiveASecond changes the texts of all Services, changes them back
// before they are written, and changes them again much later.
func TestTextsOfManyServicesAreWrittenFiveASecond(t *testing.T) {
	var pacer writeSlotPacer
	m := newFaultMemory(&pacer)
	now := time.Unix(1_700_000_000, 0)
	services := make([]client.ObjectKey, 5000)
	for i := range services {
		services[i].Name = fmt.Sprint(i)
	}
	const perSecond = int(time.Second / minOverallReminderInterval)
	for round := range 3 {
		busiest, all := writeDueTexts(m, services, &now, 20*time.Second)
		if busiest > perSecond || round == 0 && all < 19*perSecond {
			t.Errorf("round %d: %d texts are written in one second, want at most %d; %d in all", round, busiest, perSecond, all)
		}
		for _, k := range services {
			m.cancelTextChange(k)
		}
		now = now.Add(time.Hour)
	}
	if busiest, all := writeDueTexts(m, services, &now, 20*time.Minute); busiest > perSecond || all != len(services) {
		t.Errorf("%d texts are written, %d of them in one second; want all %d, and at most %d in a second", all, busiest, len(services), perSecond)
	}
}

// TestTextThatIsRightAgainGivesItsSlotBack lets one of two routers end its session, return soon,
// and end its session again a day later.
func TestTextThatIsRightAgainGivesItsSlotBack(t *testing.T) {
	h := newConditionWriterHarness(t)
	services := []string{"web"}
	for i := range 20 {
		services = append(services, fmt.Sprint("web", i))
		h.createService(services[i+1])
	}
	look := func() {
		t.Helper()
		for _, name := range services {
			if _, err := h.writer.Reconcile(t.Context(), ctrl.Request{NamespacedName: client.ObjectKey{Namespace: "default", Name: name}}); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, fault := range []names.Explanation{{}, wrongASNumberFault, {}} {
		h.setSessionWithTor("node1", names.Explanation{})
		h.setSessionWithTor("node2", fault)
		h.now = h.now.Add(time.Second)
		look()
	}
	h.now = h.now.Add(24 * time.Hour)
	h.setSessionWithTor("node2", wrongASNumberFault)
	h.serviceWrites = 0
	look()
	h.now = h.now.Add(time.Second)
	if look(); h.serviceWrites > 6 {
		t.Errorf("%d texts are written within a second, want at most 6", h.serviceWrites)
	}
}

// TestTextsThatNeedNotBeWrittenDelayNoOther lets the texts of thousands of Services wait for their
// slots. Most need not be written any more: a router returns. The rest do not wait for the slots of
// those, and neither does a new text.
func TestTextsThatNeedNotBeWrittenDelayNoOther(t *testing.T) {
	var pacer writeSlotPacer
	m := newFaultMemory(&pacer)
	now := time.Unix(1_700_000_000, 0)
	const serviceCount, keptCount = 5000, 10
	key := func(i int) client.ObjectKey { return client.ObjectKey{Name: fmt.Sprint(i)} }
	dueAt := map[client.ObjectKey]time.Time{}
	for i := range serviceCount {
		if wait := m.delayOrRecordTextChange(key(i), now); i >= serviceCount-keptCount {
			dueAt[key(i)] = now.Add(wait)
		}
	}
	for i := range serviceCount - keptCount {
		if i%2 == 0 {
			m.cancelTextChange(key(i))
		} else {
			m.forgetFault(key(i))
		}
	}
	added := client.ObjectKey{Name: "new"}
	dueAt[added] = now
	end, writtenAt := now.Add(2*slotRecheckInterval), map[client.ObjectKey]time.Time{}
	for ; now.Before(end); now = now.Add(minOverallReminderInterval) {
		writes := 0
		for k, at := range dueAt {
			if at.After(now) {
				continue
			}
			if wait := m.delayOrRecordTextChange(k, now); wait > 0 {
				dueAt[k] = now.Add(wait)
				continue
			}
			delete(dueAt, k)
			writtenAt[k] = now
			writes++
		}
		if writes > 1 {
			t.Errorf("%d texts are written at once", writes)
		}
	}
	if len(dueAt) > 0 {
		t.Errorf("%d texts wait for longer than %s", len(dueAt), 2*slotRecheckInterval)
	}
	if at := writtenAt[added]; at.IsZero() || end.Sub(at) < slotRecheckInterval {
		t.Errorf("the new text is written at %v, want at once", at)
	}
}
