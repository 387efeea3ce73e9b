package reconcile

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

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
