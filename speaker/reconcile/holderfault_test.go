package reconcile

import (
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/events"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/agent"
	"github.com/gantry-lb/gantry/speaker/plan"
)

// A Service asks for a node that cannot hold its address. The holder says so once for each cause.
// Other nodes say nothing, and neither does anyone about a Service that is not known yet.
func TestHolderSaysOnceWhyRequestedNodeIsNotTheHolder(t *testing.T) {
	address := netip.MustParseAddr("192.0.2.1")
	recorder, isServiceKnown := events.NewFakeRecorder(8), false
	w := NewStatusWriter(StatusWriterOptions{
		Events: recorder, Log: slog.New(slog.DiscardHandler), Self: "self", Namespace: names.DefaultNamespace, Now: time.Now,
		ServiceReference: func(k view.ObjectKey) *corev1.Service {
			if !isServiceKnown {
				return nil
			}
			return &corev1.Service{}
		},
	})
	statusWithFault := func(text string, held ...netip.Addr) agent.Status {
		v := &plan.Layer2Verdict{Service: view.ObjectKey{Namespace: "default", Name: "web"}, Addresses: []netip.Addr{address}}
		if text != "" {
			v.RequestedHolderFault = names.Explanation{Reason: names.ReasonHolderUnavailable, Text: text}
		}
		return agent.Status{HeldAddresses: held, Plan: plan.Plan{Layer2Verdicts: plan.NewSortedList(v)}}
	}
	for _, tc := range []struct {
		what           string
		status         agent.Status
		isServiceKnown bool
		wantEvent      string
	}{
		{"another node holds it", statusWithFault("it is gone"), true, ""},
		{"the Service is not known yet", statusWithFault("it is gone", address), false, ""},
		{"the Service is known", statusWithFault("it is gone", address), true, "it is gone"},
		{"nothing is new", statusWithFault("it is gone", address), true, ""},
		{"another cause", statusWithFault("it is drained", address), true, "it is drained"},
		{"the node can hold it", statusWithFault("", address), true, ""},
		{"the same cause comes back", statusWithFault("it is drained", address), true, "it is drained"},
	} {
		isServiceKnown = tc.isServiceKnown
		w.reportRequestedNodeFaults(tc.status)
		event := ""
		select {
		case event = <-recorder.Events:
		default:
		}
		if (event == "") != (tc.wantEvent == "") || !strings.Contains(event, tc.wantEvent) {
			t.Errorf("%s: the event is %q, want %q", tc.what, event, tc.wantEvent)
		}
	}
}
