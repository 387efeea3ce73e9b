package reconcile

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/controller/reconcile/memory"
)

// TestWhatMayStillArriveIsNotGivenToAnother has a leader lost whose write of a second address is still on its way. The next leader
// decides otherwise, and its own write takes longer; meanwhile a Service comes that could have the address.
func TestWhatMayStillArriveIsNotGivenToAnother(t *testing.T) {
	o := newOracle()
	bubble(t, func(t *testing.T) {
		s := memory.NewServer(o.check)
		s.SetPool("p4", pool("192.0.2.0/30"))
		s.SetPool("p6", pool("fd00:1::/126"))
		w := &world{server: s}
		d := w.service(1)
		d.Name = "d"
		d.Status.LoadBalancer.Ingress = ingress("192.0.2.0")
		s.Create(d)
		d = s.Service(key("d"))
		lost := memory.NewClient(s, func(what string) memory.Weather {
			if what == "service" {
				return memory.Weather{Out: 8 * time.Second}
			}
			return memory.Weather{}
		})
		assigned := addressesOf("192.0.2.0", "fd00:1::1")
		show(t, lost, pendingAssignment("d", d.ResourceVersion, assigned...))
		after := d.DeepCopy()
		after.Status.LoadBalancer.Ingress = ingress("192.0.2.0", "fd00:1::1")
		go func() { _, _ = lost.PatchStatus(context.Background(), d, after) }()
		time.Sleep(time.Second)
		var written atomic.Bool
		c := run(t, s, func(what string) memory.Weather {
			if what == "service" && !written.Swap(true) {
				return memory.Weather{Out: 9 * time.Second}
			}
			return memory.Weather{}
		}, Options{})
		defer c.end()
		time.Sleep(time.Second)
		e := w.service(3)
		e.Name = "e"
		s.Create(e)
		time.Sleep(time.Minute)
		if got := addresses(s.Service(key("d"))); len(got) != 2 {
			t.Errorf("d has %v, want one address of each family", got)
		}
		if got := addresses(s.Service(key("e"))); len(got) != 1 {
			t.Errorf("e has %v, want one address", got)
		}
	})
	for _, f := range o.faults {
		t.Error(f)
	}
}

// TestAnAddressThatAStatusGivesUpGoesToTheServiceThatWaits has somebody write another address over the only one of the pool.
func TestAnAddressThatAStatusGivesUpGoesToTheServiceThatWaits(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := memory.NewServer(nil)
		s.SetPool("p", pool("192.0.2.0/32"))
		c := run(t, s, nil, Options{})
		defer c.end()
		s.Create(balanced("a"))
		time.Sleep(time.Second)
		s.Create(balanced("b"))
		time.Sleep(time.Second)
		want(t, s, "b", "", names.ReasonPoolExhausted)
		s.Edit(key("a"), func(o *corev1.Service) { o.Status.LoadBalancer.Ingress[0].IP = "198.51.100.1" })
		time.Sleep(time.Minute)
		want(t, s, "b", "192.0.2.0", names.ReasonAssigned)
	})
}
