package members

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// simulatedPath says what passes between two members a and b.
type simulatedPath struct{ udpToB, udpToA, tcpToB, tcpToA bool }

// simulatePathChecks runs the checks of two members for some time. It returns what each of them
// finds.
func simulatePathChecks(p simulatedPath, d time.Duration) (a, b []PathFault) {
	start := time.Unix(1_700_000_000, 0)
	checks := map[string]*pathChecks{"a": {recordByName: map[string]*pathCheckRecord{}}, "b": {recordByName: map[string]*pathCheckRecord{}}}
	check := func(from, to string, now time.Time, reaches, answers, connects bool) {
		for _, name := range checks[from].chooseMembersToCheck([]string{to}) {
			sent := checks[from].beginCheck(name, now)
			sent.sender = from
			if reaches {
				checks[to].recordPathMessage(sent, 2, now)
			}
			if reaches && answers {
				checks[from].recordPathMessage(pathMessage{kind: kindPathCheckAnswer, sequence: sent.sequence, sender: to}, 2, now)
			}
			checks[from].recordTCPResult(name, connects, now)
		}
	}
	now := start
	for ; now.Sub(start) < d; now = now.Add(pathCheckInterval) {
		check("a", "b", now, p.udpToB, p.udpToA, p.tcpToB)
		check("b", "a", now, p.udpToA, p.udpToB, p.tcpToA)
	}
	return checks["a"].listFaults([]string{"b"}, now), checks["b"].listFaults([]string{"a"}, now)
}

func TestBlockedPathsAreFoundAtBothEnds(t *testing.T) {
	udp, tcp, both := PathFault{UDPBlocked: true}, PathFault{TCPBlocked: true}, PathFault{UDPBlocked: true, TCPBlocked: true}
	for _, tc := range []struct {
		what string
		path simulatedPath
		want *PathFault // at both ends; nil if nothing is blocked
	}{
		{"nothing is blocked", simulatedPath{true, true, true, true}, nil},
		{"UDP is blocked in both directions", simulatedPath{false, false, true, true}, &udp},
		{"UDP is blocked from a to b", simulatedPath{false, true, true, true}, &udp},
		{"UDP is blocked from b to a", simulatedPath{true, false, true, true}, &udp},
		{"TCP is blocked in both directions", simulatedPath{true, true, false, false}, &tcp},
		{"connections from a to b are blocked", simulatedPath{true, true, false, true}, &tcp},
		{"connections from b to a are blocked", simulatedPath{true, true, true, false}, &tcp},
		{"all is blocked", simulatedPath{}, &both},
	} {
		a, b := simulatePathChecks(tc.path, silentMemberFaultDelay+3*pathCheckInterval)
		var wantA, wantB []PathFault
		if tc.want != nil {
			wantA, wantB = []PathFault{{"b", tc.want.UDPBlocked, tc.want.TCPBlocked}}, []PathFault{{"a", tc.want.UDPBlocked, tc.want.TCPBlocked}}
		}
		if !slices.Equal(a, wantA) || !slices.Equal(b, wantB) {
			t.Errorf("%s: a finds %+v, b finds %+v, want %+v and %+v", tc.what, a, b, wantA, wantB)
		}
	}
}

// TestDeadMemberIsNoBlockedPath checks that a member that does not answer at all counts as blocked
// only after the gossip has had the time to find it dead.
func TestDeadMemberIsNoBlockedPath(t *testing.T) {
	if a, _ := simulatePathChecks(simulatedPath{}, silentMemberFaultDelay-pathCheckInterval); len(a) > 0 {
		t.Errorf("before %s a silent member is reported: %+v", silentMemberFaultDelay, a)
	}
	if a, _ := simulatePathChecks(simulatedPath{tcpToB: true, tcpToA: true}, pathFaultDelay+3*pathCheckInterval); len(a) != 1 {
		t.Errorf("after %s a member that accepts connections and gets no datagram is reported as %+v, want UDP", pathFaultDelay, a)
	}
}

func TestPathChecksTakeMembersInTurn(t *testing.T) {
	checks := pathChecks{recordByName: map[string]*pathCheckRecord{}}
	names := []string{"b", "c", "d"}
	var order []string
	for range 4 {
		for _, n := range checks.chooseMembersToCheck(names) {
			checks.beginCheck(n, time.Unix(0, 0))
			checks.recordPathMessage(pathMessage{kind: kindPathCheckAnswer, sequence: checks.lastSequence, sender: n}, 4, time.Unix(0, 0))
			order = append(order, n)
		}
	}
	if want := []string{"b", "c", "d", "b"}; !slices.Equal(order, want) {
		t.Errorf("the members are checked in the order %v, want %v", order, want)
	}
	checks.recordTCPResult("d", false, time.Unix(0, 0))
	if got := checks.chooseMembersToCheck(names); !slices.Equal(got, []string{"c", "d"}) {
		t.Errorf("%v are checked, want the next one and the one with a fault", got)
	}
	if got := checks.listFaults([]string{"b"}, time.Unix(1000, 0)); len(got) > 0 {
		t.Errorf("a member that has left is reported: %+v", got)
	}
}

func TestPathMessagesAreDecoded(t *testing.T) {
	sent := pathMessage{kind: kindPathCheck, flags: flagTCPBlocked, sequence: 1 << 40, sender: "node1"}
	if got, ok := decodePathMessage(sent.encode()[1:]); !ok || got != sent {
		t.Errorf("%+v is decoded as %+v", sent, got)
	}
	for _, text := range []string{"192.0.2.10:7946", "[2001:db8::10]:7946", "", "\x01"} {
		if got, ok := decodePathMessage([]byte(text)); ok {
			t.Errorf("%q is decoded as %+v", fmt.Sprint(text), got)
		}
	}
}
