package assign

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/controller/assign/apitest"
)

// sequentialServiceCreation is Services that come one after the other, and an API server that takes
// the same time for each write.
type sequentialServiceCreation struct {
	creationInterval, apiWriteDelay time.Duration
}

// measureLongestWaitAndWrites creates n Services. It returns how long the last-served one waited
// for its address, counted from its creation, and how often the AddressLedger was written.
func (v sequentialServiceCreation) measureLongestWaitAndWrites(t *testing.T, n int) (longest time.Duration, ledgerWrites int) {
	runWithFakeTime(t, func(t *testing.T) {
		s := apitest.NewServer(nil)
		s.SetPool("p", poolSpec("10.0.0.0/16"))
		c := startController(t, s, deliverRequestsIn(v.apiWriteDelay), ServiceWorkerOptions{})
		defer c.stopAndWait()
		time.Sleep(time.Minute)
		before := s.CountWriteRequestsOfKind("ledger")
		created := map[string]time.Time{}
		for i := 0; i < n || len(created) > 0; i++ {
			if name := fmt.Sprint("s", i); i < n {
				s.CreateService(newLoadBalancer(name))
				created[name] = time.Now()
			}
			for left := v.creationInterval; left > 0; left -= 500 * time.Microsecond {
				time.Sleep(500 * time.Microsecond)
				synctest.Wait()
				for name, at := range created {
					if firstAddress(s.ServiceByKey(serviceKey(name))).IsValid() {
						longest = max(longest, time.Since(at))
						delete(created, name)
					}
				}
			}
		}
		ledgerWrites = s.CountWriteRequestsOfKind("ledger") - before
	})
	return longest, ledgerWrites
}

// TestAssignmentWaitsOnlyForEarlierWrites creates Services at different rates. One that comes when
// nothing is under way has its address after its two writes. Any other one waits at most for the
// write of the AddressLedger and the status writes that were under way when it came.
func TestAssignmentWaitsOnlyForEarlierWrites(t *testing.T) {
	const write, watchStep = 4 * time.Millisecond, 500 * time.Microsecond
	for _, tc := range []struct {
		gap  time.Duration
		most time.Duration
	}{
		{time.Second, 2 * write}, {100 * time.Millisecond, 2 * write}, {25 * time.Millisecond, 2 * write}, {10 * time.Millisecond, 2 * write},
		{3 * time.Millisecond, 4 * write}, {500 * time.Microsecond, 4 * write},
	} {
		if longest, _ := (sequentialServiceCreation{tc.gap, write}).measureLongestWaitAndWrites(t, 120); longest > tc.most+watchStep {
			t.Errorf("one Service every %s: it takes up to %s until it has its address, want at most %s", tc.gap, longest, tc.most)
		}
	}
}

// TestSequentialServicesDoNotAwaitStatusWrites has Services that come after the swap of the one
// before and before the end of its status write. None waits for that.
func TestSequentialServicesDoNotAwaitStatusWrites(t *testing.T) {
	const write, watchStep = 15 * time.Millisecond, 500 * time.Microsecond
	if longest, _ := (sequentialServiceCreation{25 * time.Millisecond, write}).measureLongestWaitAndWrites(t, 120); longest > 2*write+watchStep {
		t.Errorf("it takes up to %s until a Service has its address, want the time of its two writes, %s", longest, 2*write)
	}
}

// TestStreamOfServicesSharesLedgerWrites has Services that come nearly alone, but faster than their
// writes end. Those that come during the two writes of a batch share the next write of the
// AddressLedger.
func TestStreamOfServicesSharesLedgerWrites(t *testing.T) {
	const n = 200
	for perSecond, write := range map[int]time.Duration{
		20: 90 * time.Millisecond, 30: 60 * time.Millisecond, 40: 45 * time.Millisecond, 100: 18 * time.Millisecond, 1000: 4 * time.Millisecond,
	} {
		v := sequentialServiceCreation{time.Second / time.Duration(perSecond), write}
		longest, writes := v.measureLongestWaitAndWrites(t, n)
		if writes*10 > n*3 {
			t.Errorf("%d Services a second, %s for each write: %d writes of the AddressLedger for %d Services, more than 0.3 each", perSecond, write, writes, n)
		}
		if longest > 4*write+time.Millisecond {
			t.Errorf("%d Services a second, %s for each write: one waited %s for its address, want at most four writes", perSecond, write, longest)
		}
	}
}

// TestContendedServiceIsLoggedOncePerInterval edits a Service many times a second in a way that
// changes its addresses.
func TestContendedServiceIsLoggedOncePerInterval(t *testing.T) {
	said := &bytes.Buffer{}
	runWithFakeTime(t, func(t *testing.T) {
		s := apitest.NewServer(nil)
		s.SetPool("p", poolSpec("10.0.0.0/24"))
		c := startController(t, s, nil, ServiceWorkerOptions{Log: slog.New(slog.NewTextHandler(said, nil))})
		s.CreateService(newLoadBalancer("s"))
		for i := range 600 {
			time.Sleep(100 * time.Millisecond)
			s.EditService(serviceKey("s"), func(o *corev1.Service) {
				metav1.SetMetaDataAnnotation(&o.ObjectMeta, names.AnnotationLoadBalancerIPs, fmt.Sprintf("10.0.0.%d", 1+i%2))
			})
		}
		c.stopAndWait()
	})
	if n := strings.Count(said.String(), "another writer changes this Service's status"); n < 1 || n > 7 {
		t.Errorf("it was logged %d times in a minute, want at most once in %s", n, contentionDetectionInterval)
	}
}
