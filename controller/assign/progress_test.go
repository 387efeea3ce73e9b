package assign

import (
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/gantry-lb/gantry/controller/assign/apitest"
)

// errRefusedByTest is the refusal of an admission webhook.
var errRefusedByTest = apierrors.NewForbidden(schema.GroupResource{Resource: "services"}, "any", errors.New("not now"))

func TestWorkerWithoutProgressIsNotReady(t *testing.T) {
	now := time.Unix(10000, 0)
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	tests := map[string]struct {
		activity       phaseActivity
		unready, ended bool
	}{
		"idle for a day":                      {activity: phaseActivity{lastAttemptEnd: ago(24 * time.Hour), lastSuccessEnd: ago(24 * time.Hour)}},
		"work that has just come":             {activity: phaseActivity{busySince: ago(time.Second), lastAttemptEnd: ago(time.Hour), lastSuccessEnd: ago(time.Hour)}},
		"busy for a day, and getting on":      {activity: phaseActivity{busySince: ago(24 * time.Hour), lastAttemptEnd: ago(time.Second), lastSuccessEnd: ago(time.Second)}},
		"one request that hangs":              {activity: phaseActivity{busySince: ago(requestTimeout), lastAttemptEnd: ago(time.Hour)}},
		"refused for a minute":                {activity: phaseActivity{busySince: ago(time.Minute), lastAttemptEnd: ago(time.Second), lastSuccessEnd: ago(time.Hour)}, unready: true},
		"refused for a day":                   {activity: phaseActivity{busySince: ago(24 * time.Hour), lastAttemptEnd: ago(maxRetryDelay)}, unready: true},
		"stuck for a minute":                  {activity: phaseActivity{busySince: ago(time.Minute), lastAttemptEnd: ago(time.Hour)}, unready: true},
		"stuck for ten minutes":               {activity: phaseActivity{busySince: ago(10 * time.Minute)}, unready: true, ended: true},
		"stuck since long after work came":    {activity: phaseActivity{busySince: ago(time.Hour), lastAttemptEnd: ago(10 * time.Minute), lastSuccessEnd: ago(10 * time.Minute)}, unready: true, ended: true},
		"the longest reading of all Services": {activity: phaseActivity{busySince: ago(loadLedgerTimeout)}, unready: true},
	}
	for name, tc := range tests {
		for p := range phaseCount {
			t.Run(fmt.Sprint(name, ", ", p), func(t *testing.T) {
				var all [phaseCount]phaseActivity
				all[p] = tc.activity
				if err := checkReadiness(all, now); (err != nil) != tc.unready {
					t.Errorf("readiness says %v", err)
				}
				if err := checkLiveness(all, now); (err != nil) != tc.ended {
					t.Errorf("liveness says %v", err)
				}
			})
		}
	}
}

// TestLeaderWithUnansweredWritesIsNotReady loses every write of one kind, and then lets them
// arrive.
func TestLeaderWithUnansweredWritesIsNotReady(t *testing.T) {
	for _, lost := range []string{"ledger", "service"} {
		t.Run(lost, func(t *testing.T) {
			runWithFakeTime(t, func(t *testing.T) {
				s := apitest.NewServer(nil)
				s.SetPool("p", poolSpec("10.0.0.0/24"))
				var away atomic.Bool
				c := startController(t, s, func(what string) apitest.Delivery {
					return apitest.Delivery{RequestLost: away.Load() && what == lost}
				}, ServiceWorkerOptions{})
				defer c.stopAndWait()
				time.Sleep(time.Hour)
				if err := c.CheckReady(time.Now()); err != nil {
					t.Error("an idle leader:", err)
				}
				away.Store(true)
				s.CreateService(newLoadBalancer("s"))
				time.Sleep(time.Minute)
				if c.CheckReady(time.Now()) == nil {
					t.Error("it counts as ready after a minute without progress")
				}
				time.Sleep(time.Hour)
				if err := c.CheckAlive(time.Now()); err != nil {
					t.Error("it tries, and is to be restarted all the same:", err)
				}
				away.Store(false)
				time.Sleep(time.Minute)
				synctest.Wait()
				if err := c.CheckReady(time.Now()); err != nil {
					t.Error("when it works again:", err)
				}
			})
		})
	}
}

// TestRefusedServicesDoNotMakeALeaderUnready lets a policy refuse some Services for a long time, or
// makes the API server fail at the write of one, and looks at the readiness again and again.
func TestRefusedServicesDoNotMakeALeaderUnready(t *testing.T) {
	for name, refuse := range map[string]func(*apitest.Server){
		"the AddressLedger with their entries is refused": func(s *apitest.Server) { s.RefuseLedgerWrites(refuseLedgerEntriesOfServices()) },
		"their status is refused": func(s *apitest.Server) {
			s.RefuseServiceWrites(func(*corev1.Service) error { return errRefusedByTest })
		},
		"the write of their status fails": func(s *apitest.Server) {
			s.RefuseServiceWrites(func(*corev1.Service) error { return apierrors.NewInternalError(errors.New("a webhook failed")) })
		},
	} {
		t.Run(name, func(t *testing.T) {
			runWithFakeTime(t, func(t *testing.T) {
				s := apitest.NewServer(nil)
				s.SetPool("p", poolSpec("10.0.0.0/24"))
				refuse(s)
				c := startController(t, s, newSlowAPIServerDelivery, ServiceWorkerOptions{})
				defer c.stopAndWait()
				for i := range 30 {
					s.CreateService(newLoadBalancer(fmt.Sprint("s", i)))
				}
				for range 200 {
					time.Sleep(7 * time.Second)
					if err := c.CheckReady(time.Now()); err != nil {
						t.Fatal(err)
					}
					if n := gatherMetrics(t, c.ServiceWorker)["gantry_controller_no_progress_seconds"]; n > noProgressReadinessTimeout.Seconds() {
						t.Fatalf("it has been without progress for %v s", n)
					}
				}
			})
		})
	}
}

// TestLeaderThatMayWriteNoStatusIsNotReady refuses every status write, as to a controller without
// the permission. New Services come meanwhile, and their entries in the AddressLedger are accepted.
func TestLeaderThatMayWriteNoStatusIsNotReady(t *testing.T) {
	runWithFakeTime(t, func(t *testing.T) {
		s := apitest.NewServer(nil)
		s.SetPool("p", poolSpec("10.0.0.0/16"))
		s.RefuseServiceWrites(func(*corev1.Service) error { return errRefusedByTest })
		c := startController(t, s, newSlowAPIServerDelivery, ServiceWorkerOptions{})
		defer c.stopAndWait()
		for i := range maxRefusedEntriesBeforeSlowdown + 1 {
			s.CreateService(newLoadBalancer(fmt.Sprint("s", i)))
		}
		time.Sleep(time.Minute)
		for i := range 20 {
			s.CreateService(newLoadBalancer(fmt.Sprint("late", i)))
			time.Sleep(7 * time.Second)
			if c.CheckReady(time.Now()) == nil {
				t.Fatalf("it is ready after %d s, although it may write no status", 60+7*i)
			}
			if err := c.CheckAlive(time.Now()); err != nil {
				t.Fatal("it tries, and is to be restarted all the same:", err)
			}
		}
		s.RefuseServiceWrites(nil)
		time.Sleep(maxRetryDelay + time.Second)
		if err := c.CheckReady(time.Now()); err != nil {
			t.Error("when it is allowed again:", err)
		}
		for _, o := range s.AllServices() {
			if !firstAddress(o).IsValid() {
				t.Errorf("%s has no address when it is allowed again", o.Name)
			}
		}
	})
}

// TestServicesRefusedBeforeDoNotCount refuses the status of many Services, until they need none any
// more: they are deleted, or are no LoadBalancers any more, or get another controller's class.
func TestServicesRefusedBeforeDoNotCount(t *testing.T) {
	runWithFakeTime(t, func(t *testing.T) {
		s := apitest.NewServer(nil)
		s.SetPool("p", poolSpec("10.0.0.0/16"))
		s.RefuseServiceWrites(func(*corev1.Service) error { return errRefusedByTest })
		c := startController(t, s, newFastAPIServerDelivery, ServiceWorkerOptions{})
		defer c.stopAndWait()
		const n = 3 * maxRefusedEntriesBeforeSlowdown
		for i := range n {
			s.CreateService(newLoadBalancer(fmt.Sprint("s", i)))
		}
		time.Sleep(time.Minute)
		class := "other"
		for i := range n {
			k := serviceKey(fmt.Sprint("s", i))
			switch i % 3 {
			case 0:
				s.DeleteService(k)
			case 1:
				s.EditService(k, func(o *corev1.Service) { o.Spec.Type = corev1.ServiceTypeClusterIP })
			default:
				s.EditService(k, func(o *corev1.Service) { o.Spec.LoadBalancerClass = &class })
			}
		}
		time.Sleep(5 * time.Minute)
		if err := c.CheckReady(time.Now()); err != nil {
			t.Error(err)
		}
	})
}
