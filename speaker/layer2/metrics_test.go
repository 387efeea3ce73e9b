package layer2_test

import (
	"maps"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/gantry-lb/gantry/speaker/layer2"
)

func TestFramesOfHeldAddressAreCounted(t *testing.T) {
	simulateIPv4(t, func(s engineWithClientInMemory) {
		if n := s.engine.CountersByAddress(); len(n) != 0 {
			t.Fatalf("counters before anything is held: %v", n)
		}
		s.holdAddresses(heldIPv4, unheldIPv4)
		time.Sleep(10 * time.Second)
		for range 3 {
			s.sendFrame(s.newClientRequest(heldIPv4))
		}
		synctest.Wait()
		s.engine.SetSendDeadline(time.Time{})
		s.sendFrame(s.newClientRequest(heldIPv4))
		synctest.Wait()
		want := map[netip.Addr]layer2.AddressCounters{heldIPv4: {RequestsReceived: 4, RepliesSent: 3, AnnouncementsSent: 14}, unheldIPv4: {AnnouncementsSent: 14}}
		if got := s.engine.CountersByAddress(); !maps.Equal(got, want) {
			t.Fatalf("counters %v, want %v", got, want)
		}
		s.holdAddresses(heldIPv4)
		synctest.Wait()
		delete(want, unheldIPv4)
		if got := s.engine.CountersByAddress(); !maps.Equal(got, want) {
			t.Fatalf("after the other address is given up: %v, want %v", got, want)
		}
		r := prometheus.NewPedanticRegistry()
		r.MustRegister(s.engine)
		families, err := r.Gather()
		if err != nil || len(families) != 6 {
			t.Fatalf("%d metrics are exported (%v), want 6", len(families), err)
		}
	})
}
