package reconcile

import (
	"net/netip"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/agent"
	"github.com/gantry-lb/gantry/speaker/intent"
	"github.com/gantry-lb/gantry/speaker/plan"
)

// TestMetricsDoNotWaitForTheAPIServer checks what is exported while the writer cannot write.
func TestMetricsDoNotWaitForTheAPIServer(t *testing.T) {
	m := NewAnnouncedMetrics("node1", nil)
	w := NewStatusWriter(StatusWriterOptions{Metrics: m, Self: "node1"}) // does not run
	address := netip.MustParseAddr("192.0.2.1")
	verdict := &plan.Layer2Verdict{Service: view.ObjectKey{Namespace: "default", Name: "web"}, Addresses: []netip.Addr{address}}
	w.ObserveStatus(agent.Status{HeldBindings: []intent.Binding{{Address: address}}, Plan: plan.Plan{Layer2Verdicts: plan.NewSortedList(verdict)}})
	if n := testutil.CollectAndCount(m, "metallb_speaker_announced"); n != 1 {
		t.Errorf("%d announced addresses are exported, want 1", n)
	}
	w.ObserveStatus(agent.Status{})
	if n := testutil.CollectAndCount(m, "metallb_speaker_announced"); n != 0 {
		t.Errorf("%d announced addresses are exported after the last one is given up, want none", n)
	}
}
