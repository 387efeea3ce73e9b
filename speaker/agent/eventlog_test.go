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

// TestMoveAndRepeatedConflictAreLogged checks that a line about a move names everything, and that a
// host that keeps answering is a warning, once a minute.
func TestMoveAndRepeatedConflictAreLogged(t *testing.T) {
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
	l.logEvent(elect.Event{Kind: elect.EventAnswerWithoutClaim, Address: address, AnsweringMAC: facts.MAC{2}, Text: "a node answers"}, &p, now)
	// as docs/reasons.md has them
	for _, want := range []string{"reason=ForeignClaim", "reason=StrayAnswer"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no line has %s: %s", want, &out)
		}
	}
}

func TestADeadLinkIsLogged(t *testing.T) {
	var out strings.Builder
	l := eventLog{log: slog.New(slog.NewTextHandler(&out, nil))}
	eth0, eth1 := facts.Link{Index: 1, Name: "eth0"}, facts.Link{Index: 2, Name: "eth1"}
	l.logLinkChanges(nil, facts.LinkSet{eth0, eth1})
	l.logLinkChanges(facts.LinkSet{eth0, eth1}, facts.LinkSet{eth0, eth1})
	if out.Len() > 0 {
		t.Errorf("links that are there from the start are logged: %s", out.String())
	}
	l.logLinkChanges(facts.LinkSet{eth0, eth1}, facts.LinkSet{eth0})
	if got := out.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "level=WARN") || !strings.Contains(got, "link=eth1 reason=LinkDown") {
		t.Errorf("the death of eth1 is logged as %q", got)
	}
	out.Reset()
	l.logLinkChanges(facts.LinkSet{eth0}, facts.LinkSet{eth0, eth1})
	if got := out.String(); !strings.Contains(got, "level=INFO") || !strings.Contains(got, "link=eth1") {
		t.Errorf("the return of eth1 is logged as %q", got)
	}
}

// A broken host answers for every address, with another Ethernet address in each frame.
func TestAHostThatFloodsConflictsFillsNeitherLogNorMemory(t *testing.T) {
	var text strings.Builder
	l := eventLog{log: slog.New(slog.NewTextHandler(&text, nil))}
	var waiting []elect.Event
	now := time.Unix(1_000_000, 0)
	for i := range 10_000 {
		e := elect.Event{Kind: elect.EventForeignHostAnswers, Address: netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)}), AnsweringMAC: facts.MAC{2, 0, 0, 0, byte(i >> 8), byte(i)}, Text: "another host"}
		l.logEvent(e, &plan.Plan{}, now)
		waiting = AppendEventBoundingConflicts(waiting, e)
	}
	if lines := strings.Count(text.String(), "another host"); lines != maxConflictLinesPerSecond || len(waiting) != maxUnreportedConflicts {
		t.Errorf("%d lines are logged and %d events wait, want %d and %d", lines, len(waiting), maxConflictLinesPerSecond, maxUnreportedConflicts)
	}
	waiting = AppendEventBoundingConflicts(waiting, elect.Event{Kind: elect.EventAddressTaken})
	if last := waiting[len(waiting)-1]; last.Kind != elect.EventAddressTaken {
		t.Error("the flood hides that an address was taken")
	}
}
