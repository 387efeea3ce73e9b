package assign

import (
	"fmt"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"pgregory.net/rapid"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/controller/assign/apitest"
)

// The holder of an address gets its first sharing key: a Service with that key has waited for it.
func TestFirstSharingKeyOfTheHolderServesAWaitingService(t *testing.T) {
	runWithFakeTime(t, func(t *testing.T) {
		s := apitest.NewServer(nil)
		s.SetPool("p", poolSpec("192.0.2.1/32"))
		c := startController(t, s, nil, ServiceWorkerOptions{})
		defer c.stopAndWait()
		s.CreateService(newLoadBalancer("a"))
		time.Sleep(time.Second)
		b := newSharer("b", 81, "")
		delete(b.Annotations, names.AnnotationLoadBalancerIPs)
		s.CreateService(b)
		time.Sleep(time.Second)
		wantAddressAndReason(t, s, "b", "", names.ReasonPoolExhausted)
		s.EditService(serviceKey("a"), func(o *corev1.Service) {
			o.Annotations[names.AnnotationSharingKey], o.Spec.Selector = "k", b.Spec.Selector
		})
		time.Sleep(time.Second)
		wantAddressAndReason(t, s, "a", "192.0.2.1", names.ReasonAssigned)
		wantAddressAndReason(t, s, "b", "192.0.2.1", names.ReasonAssigned)
	})
}

// A reservation that follows its Service lets go of the old address when the Service has moved.
func TestReservationFreesOldAddressWhenServiceGetsAnother(t *testing.T) {
	runWithFakeTime(t, func(t *testing.T) {
		s := apitest.NewServer(nil)
		s.SetPool("p", poolSpec("192.0.2.0/31"))
		s.SetReservation("r", v1alpha1.AddressReservationSpec{Service: v1alpha1.ServiceReference{Namespace: "default", Name: "a"}})
		c := startController(t, s, nil, ServiceWorkerOptions{})
		defer c.stopAndWait()
		s.CreateService(newLoadBalancer("a"))
		time.Sleep(5 * time.Second)
		waits := newLoadBalancer("waits")
		waits.Annotations = map[string]string{names.AnnotationLoadBalancerIPs: "192.0.2.0"}
		s.CreateService(waits)
		time.Sleep(5 * time.Second)
		wantAddressAndReason(t, s, "waits", "", names.ReasonAddressInUse)
		s.EditService(serviceKey("a"), func(o *corev1.Service) { o.Annotations[names.AnnotationAddressesToExchange] = "192.0.2.0" })
		time.Sleep(10 * time.Second)
		wantAddressAndReason(t, s, "a", "192.0.2.1", names.ReasonAssigned)
		wantAddressAndReason(t, s, "waits", "192.0.2.0", names.ReasonAssigned)
	})
}

// randomEdit is an edit of a Service or of the pools.
type randomEdit struct {
	action                      string
	serviceIndex, actionVariant int
}

func randomEditsGenerator() *rapid.Generator[[]randomEdit] {
	what := []string{"create", "create", "create", "create", "delete", "key", "key", "key", "port", "port", "policy", "selector", "ask", "ask", "release", "count", "pool", "pin", "dual", "quota", "reserve", "type", "retire", "label", "limits", "limits", "lift", "status"}
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) randomEdit {
		return randomEdit{rapid.SampledFrom(what).Draw(t, "what"), rapid.IntRange(0, 6).Draw(t, "service"), rapid.IntRange(0, 5).Draw(t, "value")}
	}), 5, 40)
}

// apply carries the edit out.
func (e randomEdit) apply(s *apitest.Server, c *runningController) {
	k := serviceKey(fmt.Sprint("s", e.serviceIndex))
	annotate := func(key, value string) {
		s.EditService(k, func(o *corev1.Service) { metav1.SetMetaDataAnnotation(&o.ObjectMeta, key, value) })
	}
	spec := func(f func(*corev1.ServiceSpec)) { s.EditService(k, func(o *corev1.Service) { f(&o.Spec) }) }
	switch e.action {
	case "create":
		s.CreateService(newLoadBalancer(k.Name))
	case "delete":
		s.DeleteService(k)
	case "key":
		annotate(names.AnnotationSharingKey, []string{"", "k", "k", "k", "m", ""}[e.actionVariant])
	case "port":
		spec(func(o *corev1.ServiceSpec) { o.Ports[0].Port = int32(80 + e.actionVariant%3) })
	case "policy":
		spec(func(o *corev1.ServiceSpec) {
			o.ExternalTrafficPolicy = []corev1.ServiceExternalTrafficPolicy{"Cluster", "Local"}[e.actionVariant%2]
		})
	case "selector":
		spec(func(o *corev1.ServiceSpec) { o.Selector = map[string]string{"app": fmt.Sprint(e.actionVariant % 2)} })
	case "ask":
		annotate(names.AnnotationLoadBalancerIPs, []string{"", "192.0.2.0", "192.0.2.1", "192.0.2.9", "192.0.2.0,fd00:1::", ""}[e.actionVariant])
	case "release":
		annotate(names.AnnotationAddressesToExchange, []string{"192.0.2.0", "192.0.2.1", "192.0.2.2", "fd00:1::", "fd00:1::1", "192.0.2.9"}[e.actionVariant])
	case "count":
		annotate(names.AnnotationAddressesPerFamily, fmt.Sprint(1+e.actionVariant%2))
	case "dual":
		spec(func(o *corev1.ServiceSpec) {
			policy := []corev1.IPFamilyPolicy{corev1.IPFamilyPolicyPreferDualStack, corev1.IPFamilyPolicyRequireDualStack}[e.actionVariant%2]
			o.IPFamilyPolicy, o.ClusterIPs = &policy, []string{"10.96.0.1", "fd00:96::1"}
			o.IPFamilies = []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}
		})
	case "label":
		s.EditService(k, func(o *corev1.Service) { o.Labels = map[string]string{"tier": fmt.Sprint(e.actionVariant % 2)} })
	case "status":
		s.EditService(k, func(o *corev1.Service) { o.Status = corev1.ServiceStatus{} })
	case "limits":
		s.SetPool("q", poolSpecWithRestriction(e.actionVariant))
	case "lift":
		if s.PoolByName("q") == nil {
			return
		}
		s.AnnotatePool("q", names.AnnotationLiftWithheld, []string{"all", "192.0.2.8", ""}[e.actionVariant%3])
	case "type":
		spec(func(o *corev1.ServiceSpec) {
			o.Type = []corev1.ServiceType{corev1.ServiceTypeLoadBalancer, corev1.ServiceTypeClusterIP}[e.actionVariant%2]
		})
	case "pin":
		annotate(names.AnnotationRequestedPool, []string{"", "p", "q", "", "p", "none"}[e.actionVariant])
	case "pool":
		s.SetPool("p", poolSpec([][]string{{"192.0.2.0/31", "fd00:1::/127"}, {"192.0.2.0/30"}, {"192.0.2.0/32", "fd00:1::/128"}}[e.actionVariant%3]...))
	case "quota":
		p := poolSpec("192.0.2.8/31", "fd00:1::8/127")
		quota := int32(e.actionVariant)
		p.Gantry = &v1beta1.PoolExtension{MaxPerService: 16, Quota: &v1beta1.PoolQuota{PerNamespace: &quota}}
		s.SetPool("q", p)
	case "retire":
		p := s.PoolByName("p").Spec
		p.Gantry = nil
		if e.actionVariant > 0 {
			p.Gantry = &v1beta1.PoolExtension{MaxPerService: 16, Retire: &v1beta1.PoolRetirement{ServicesPerMinute: 600, Addresses: [][]string{nil, {"192.0.2.0"}, {"fd00:1::"}}[e.actionVariant%3]}}
		}
		s.SetPool("p", p)
	case "reserve":
		r := v1alpha1.AddressReservationSpec{Service: v1alpha1.ServiceReference{Namespace: "default", Name: k.Name}}
		if e.actionVariant > 1 {
			r.Addresses = []string{fmt.Sprint("192.0.2.", e.actionVariant-2)}
		}
		s.SetReservation("r", r)
	}
	if slices.Contains([]string{"pool", "quota", "reserve", "retire", "limits", "lift"}, e.action) {
		c.ConfigurationReader.NotifyAllocationObjectChanged()
	}
}

// poolSpecWithRestriction returns the spec of pool q with one of the limits that a pool may have.
func poolSpecWithRestriction(choice int) v1beta1.IPAddressPoolSpec {
	p := poolSpec("192.0.2.8/31", "fd00:1::8/127")
	p.Gantry = &v1beta1.PoolExtension{MaxPerService: 16}
	switch no := false; choice {
	case 0:
		p.AutoAssign = &no
	case 1:
		p.AllocateTo = &v1beta1.ServiceAllocation{ServiceSelectors: []metav1.LabelSelector{{MatchLabels: map[string]string{"tier": "1"}}}}
	case 2:
		p.AllocateTo = &v1beta1.ServiceAllocation{Namespaces: []string{"other"}}
	case 3:
		p.Gantry.Exclude = []string{"192.0.2.8"}
	case 4:
		p.Gantry.Cooldown = &metav1.Duration{Duration: time.Hour}
	case 5:
		p.Gantry.Cooldown = &metav1.Duration{Duration: 30 * time.Second}
	}
	return p
}

// After any edits, a controller that starts decides nothing that the running one has not decided.
// Otherwise a Service would wait for something that is there, until somebody restarts the
// controller.
func TestRestartAfterRandomEditsDecidesNothingNew(t *testing.T) {
	setDefaultRapidCheckCount(t, "300")
	rapid.Check(t, func(rt *rapid.T) {
		edits := randomEditsGenerator().Draw(rt, "edits")
		runWithFakeTime(t, func(t *testing.T) {
			s := apitest.NewServer(nil)
			s.SetPool("p", poolSpec("192.0.2.0/31", "fd00:1::/127"))
			c := startController(t, s, nil, ServiceWorkerOptions{})
			for _, e := range edits {
				e.apply(s, c)
				time.Sleep(6 * time.Second)
			}
			time.Sleep(time.Minute)
			c.stopAndWait()
			before := s.AllServices()
			c = startController(t, s, nil, ServiceWorkerOptions{})
			time.Sleep(time.Minute)
			c.stopAndWait()
			for _, o := range before {
				now := s.ServiceByKey(serviceKey(o.Name))
				if now.ResourceVersion != o.ResourceVersion {
					rt.Errorf("after a restart %s has %v, %v; before it had %v, %v", o.Name, ingressAddresses(now), now.Status.Conditions, ingressAddresses(o), o.Status.Conditions)
				}
			}
		})
	})
}
