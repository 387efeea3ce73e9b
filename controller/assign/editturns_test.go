package assign

import (
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/controller/assign/apitest"
	"github.com/gantry-lb/gantry/internal/view"
)

// startWithServices starts a controller with Services of the namespace default, and a pool if there
// is one.
func startWithServices(t *testing.T, count int, pools ...string) (*apitest.Server, *runningController) {
	s := apitest.NewServer(nil)
	if len(pools) > 0 {
		s.SetPool("p", poolSpec(pools...))
	}
	for i := range count {
		s.CreateService(newLoadBalancer(fmt.Sprint("s", i)))
	}
	c := startController(t, s, deliverRequestsIn(15*time.Millisecond), ServiceWorkerOptions{})
	time.Sleep(time.Minute)
	return s, c
}

func requestAddress(a string) func(*corev1.Service) {
	return func(s *corev1.Service) {
		s.Annotations = map[string]string{names.AnnotationLoadBalancerIPs: a}
	}
}

// One edit of many Services, as of an application with all of its Services, does not wait for
// turns. Neither do the Services that get their addresses because a pool comes.
func TestEditOfManyServicesDoesNotWaitForTurns(t *testing.T) {
	const services = 1000
	runWithFakeTime(t, func(t *testing.T) {
		s, c := startWithServices(t, services)
		defer c.stopAndWait()
		s.SetPool("p", poolSpec("10.0.0.0/16"))
		c.ConfigurationReader.NotifyAllocationObjectChanged()
		time.Sleep(10 * time.Second)
		if n := countServicesWithAddress(s); n < services {
			t.Errorf("10 s after the pool came, %d of %d Services have an address", n, services)
		}
		for i := range services {
			s.EditService(serviceKey(fmt.Sprint("s", i)), requestAddress(fmt.Sprintf("10.0.%d.%d", 200+i/250, 1+i%250)))
		}
		time.Sleep(10 * time.Second)
		for i := range services {
			if got, want := firstAddress(s.ServiceByKey(serviceKey(fmt.Sprint("s", i)))).String(), fmt.Sprintf("10.0.%d.%d", 200+i/250, 1+i%250); got != want {
				t.Fatalf("10 s after all Services were edited, Service %d has %s, want %s", i, got, want)
			}
		}
	})
}

// A tenant edits 300 Services again and again. The status of each is written seldom, and in the end
// each has what was asked for last. A user of another namespace who edits one Service several times
// gets what he asks for soon.
func TestServicesThatAreEditedAgainAndAgainTakeTurns(t *testing.T) {
	const services, rounds = 300, 20
	runWithFakeTime(t, func(t *testing.T) {
		s, c := startWithServices(t, services, "10.0.0.0/16")
		defer c.stopAndWait()
		other := newLoadBalancer("other")
		other.Namespace = "other"
		s.CreateService(other)
		time.Sleep(time.Second)
		before := s.CountWriteRequestsOfKind("service")
		for n := range rounds {
			for i := range services {
				s.EditService(serviceKey(fmt.Sprint("s", i)), requestAddress(fmt.Sprintf("10.0.%d.%d", 100+n*2+i/250, 1+i%250)))
			}
			time.Sleep(3 * time.Second)
		}
		// Each was written once at first. The others took turns.
		if n, most := s.CountWriteRequestsOfKind("service")-before, services+maxRepeatedEditBurst+repeatedEditsPerSecond*rounds*3+1; n > most {
			t.Errorf("the API server got %d writes for %d edits, want at most %d", n, services*rounds, most)
		}
		for n := range 5 {
			k, want := view.ObjectKey{Namespace: "other", Name: "other"}, fmt.Sprint("10.0.250.", n+1)
			s.EditService(k, requestAddress(want))
			time.Sleep(time.Second)
			if got := firstAddress(s.ServiceByKey(k)).String(); got != want {
				t.Errorf("a second after its user asked for %s, the Service of another namespace has %s", want, got)
			}
		}
		time.Sleep(services / repeatedEditsPerSecond * time.Second)
		for i := range services {
			if got, want := firstAddress(s.ServiceByKey(serviceKey(fmt.Sprint("s", i)))).String(), fmt.Sprintf("10.0.%d.%d", 100+(rounds-1)*2+i/250, 1+i%250); got != want {
				t.Errorf("Service %d has %s, and its user asked for %s last", i, got, want)
			}
		}
	})
}

// The last edit of a Service is carried out, however soon it comes after others, and though nothing
// else happens.
func TestLastEditIsCarriedOut(t *testing.T) {
	const services = 2 * maxRepeatedEditBurst
	runWithFakeTime(t, func(t *testing.T) {
		s, c := startWithServices(t, services, "10.0.0.0/16")
		defer c.stopAndWait()
		third := 0
		for gap := 60 * time.Millisecond; gap <= 150*time.Millisecond; gap += 5 * time.Millisecond {
			third++
			request := func(i, fourth int) string {
				want := fmt.Sprintf("10.0.%d.%d", 100+third, fourth)
				s.EditService(serviceKey(fmt.Sprint("s", i)), requestAddress(want))
				return want
			}
			for i := range services {
				request(i, 1+i)
			}
			// The last of these has had its turn by then, and there are no other turns left.
			time.Sleep((services-maxRepeatedEditBurst)/repeatedEditsPerSecond*time.Second + 200*time.Millisecond)
			want := ""
			for n := range 4 {
				want = request(0, 201+n)
				time.Sleep(gap)
			}
			time.Sleep(3 * time.Second)
			if got := firstAddress(s.ServiceByKey(serviceKey("s0"))).String(); got != want {
				t.Errorf("%v after another edit, a Service asked for %s; 3 s later it has %s", gap, want, got)
			}
			time.Sleep(maxRepeatedEditBurst / repeatedEditsPerSecond * time.Second)
		}
	})
}

// A Service that is no LoadBalancer any more gives its address up at once, though edits wait for
// their turns, and a Service of another namespace gets this address.
func TestReleaseOfAddressesDoesNotWaitForTurn(t *testing.T) {
	const services = 200
	runWithFakeTime(t, func(t *testing.T) {
		s, c := startWithServices(t, services, "10.0.0.0/16")
		defer c.stopAndWait()
		for n := range 3 {
			for i := range services {
				s.EditService(serviceKey(fmt.Sprint("s", i)), requestAddress(fmt.Sprintf("10.0.%d.%d", 100+n, 1+i)))
			}
			time.Sleep(time.Second)
		}
		s.CreateService(newLoadBalancer("rare"))
		time.Sleep(time.Second)
		s.EditService(serviceKey("rare"), requestAddress("10.0.250.1"))
		time.Sleep(time.Second)
		s.EditService(serviceKey("rare"), func(o *corev1.Service) { o.Spec.Type = corev1.ServiceTypeClusterIP })
		heir := newLoadBalancer("heir")
		heir.Namespace = "other"
		requestAddress("10.0.250.1")(heir)
		s.CreateService(heir)
		time.Sleep(2 * time.Second)
		if got := firstAddress(s.ServiceByKey(view.ObjectKey{Namespace: "other", Name: "heir"})).String(); got != "10.0.250.1" {
			t.Errorf("2 s after the Service that had 10.0.250.1 gave it up, the Service that asks for it has %s", got)
		}
	})
}

// Services that change their type again and again take turns, too.
func TestServicesThatChangeTheirTypeTakeTurns(t *testing.T) {
	const services, rounds = 100, 10
	runWithFakeTime(t, func(t *testing.T) {
		s, c := startWithServices(t, services, "10.0.0.0/16")
		defer c.stopAndWait()
		before := s.CountWriteRequestsOfKind("service")
		for range rounds {
			for _, kind := range []corev1.ServiceType{corev1.ServiceTypeClusterIP, corev1.ServiceTypeLoadBalancer} {
				for i := range services {
					s.EditService(serviceKey(fmt.Sprint("s", i)), func(s *corev1.Service) { s.Spec.Type = kind })
				}
				time.Sleep(time.Second)
			}
		}
		// Each turn can be followed by a release.
		turns := maxRepeatedEditBurst + repeatedEditsPerSecond*rounds*2
		if n, most := s.CountWriteRequestsOfKind("service")-before, services+2*turns; n > most {
			t.Errorf("the API server got %d writes for %d edits, want at most %d", n, services*rounds*2, most)
		}
		time.Sleep(services / repeatedEditsPerSecond * time.Second)
		if n := countServicesWithAddress(s); n < services {
			t.Errorf("%d of %d Services have an address again", n, services)
		}
	})
}
