package agent

import (
	"bytes"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/elect"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/plan"
)

// TestLogOfMovesAndConflicts checks that a line about a move names everything, and that a host that
// keeps answering is a warning, once a minute.
func TestLogOfMovesAndConflicts(t *testing.T) {
	var out bytes.Buffer
	l := eventLog{log: slog.New(slog.NewTextHandler(&out, nil))}
	address, now := netip.MustParseAddr("192.0.2.1"), time.Unix(1_700_000_000, 0)
	p := plan.Plan{Layer2Verdicts: plan.NewSortedList(
		&plan.Layer2Verdict{Service: view.ObjectKey{Namespace: "default", Name: "dns"}, Addresses: []netip.Addr{address}},
		&plan.Layer2Verdict{Service: view.ObjectKey{Namespace: "default", Name: "web"}, Addresses: []netip.Addr{address}},
	)}
	l.logEvent(elect.Event{Kind: elect.EventAddressTaken, Address: address, Reason: names.ReasonHolderGone, Text: "taken", FormerHolder: "node2", TakeoverDelay: 250 * time.Millisecond}, &p, now)
	for _, want := range []string{"level=INFO", "service=default/dns,default/web", "formerHolder=node2", "duration=250ms", "reason=HolderGone"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the line lacks %s: %s", want, &out)
		}
	}
	for second := range 90 {
		l.logEvent(elect.Event{Kind: elect.EventForeignHostAnswers, Address: address, AnsweringMAC: facts.MAC{1}, Text: "a host answers"}, &p, now.Add(time.Duration(second)*time.Second))
	}
	if n := strings.Count(out.String(), "level=WARN"); n != 2 {
		t.Errorf("%d warnings in 90 seconds, want 2", n)
	}
}
