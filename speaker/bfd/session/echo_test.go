package session_test

import (
	"strings"
	"testing"
	"time"

	"github.com/gantry-lb/gantry/speaker/bfd/session"
)

// newUpMachineWithEcho is a session that is Up and sends echo packets every 50 ms. The neighbour
// accepts them at the interval.
func newUpMachineWithEcho(t *testing.T, accepted time.Duration) *machineInVirtualTime {
	t.Helper()
	c := exampleConfig()
	c.EchoInterval = 50 * oneMillisecond
	k := newMachineInVirtualTime(t, c)
	k.bringUp()
	k.receiveUpPacket(accepted)
	return k
}

// receiveUpPacket receives a packet of a neighbour that is Up and accepts echo packets at the
// interval.
func (k *machineInVirtualTime) receiveUpPacket(accepted time.Duration) {
	k.receivePacket(session.Packet{State: session.Up, YourDiscriminator: ourDiscriminator, RequiredMinEchoRxInterval: accepted})
}

// advanceTimeAndReturnEchoTimes lets time pass while the neighbour sends a packet every 100 ms.
// isReturned says whether an echo packet returns. The result is the times of the echo packets.
func (k *machineInVirtualTime) advanceTimeAndReturnEchoTimes(d, accepted time.Duration, isReturned func() bool) []time.Time {
	k.t.Helper()
	end, nextPacket, sent := k.now.Add(d), k.now, []time.Time(nil)
	for range 100000 {
		if !nextPacket.After(k.now) {
			nextPacket = k.now.Add(100 * oneMillisecond)
			k.receiveUpPacket(accepted)
		} else {
			k.stepMachine(session.TimePassed{})
		}
		if k.lastOutput.MustSendEcho {
			sent = append(sent, k.now)
			if isReturned() {
				k.stepMachine(session.EchoReturned{})
			}
		}
		if k.machine.Status().State != session.Up {
			return sent
		}
		next := nextPacket
		if at := k.machine.NextStepDeadline(); !at.IsZero() && at.Before(next) {
			next = at
		}
		if next.After(end) {
			k.now = end
			return sent
		}
		if next.After(k.now) {
			k.now = next
		}
	}
	k.t.Fatal("the machine wants to be stepped without end")
	return nil
}

func everyEchoReturns() bool { return true }
func noEchoReturns() bool    { return false }

func TestEchoPacketsAreSentAtTheSlowerInterval(t *testing.T) {
	for accepted, want := range map[time.Duration]time.Duration{
		20 * oneMillisecond:  50 * oneMillisecond, // ours is slower
		200 * oneMillisecond: 200 * oneMillisecond,
	} {
		k := newUpMachineWithEcho(t, accepted)
		sent := k.advanceTimeAndReturnEchoTimes(10*time.Second, accepted, everyEchoReturns)
		if len(sent) < int(10*time.Second/want) {
			t.Fatalf("%d echo packets in 10 s, want one in at most %v", len(sent), want)
		}
		for i := range sent[1:] {
			if d := sent[i+1].Sub(sent[i]); d < want*3/4 || d > want {
				t.Fatalf("echo packet %d comes %v after the one before, want %v less at most a quarter", i+1, d, want)
			}
		}
		k.requireState("every echo packet returns", session.Up)
		if v := k.machine.Status(); v.NoEchoReturned || v.NeighbourRefusesEcho {
			t.Errorf("echo packets lost: %v, refused: %v", v.NoEchoReturned, v.NeighbourRefusesEcho)
		}
	}
}

func TestMissingEchoPacketsTakeTheSessionDown(t *testing.T) {
	k := newUpMachineWithEcho(t, 50*oneMillisecond)
	k.advanceTimeAndReturnEchoTimes(time.Second, 50*oneMillisecond, everyEchoReturns)
	k.requireState("every echo packet returns", session.Up)
	begin := k.now
	k.advanceTimeAndReturnEchoTimes(time.Second, 50*oneMillisecond, noEchoReturns)
	k.requireState("no echo packet returns any more", session.Down)
	if d := k.now.Sub(begin); d > 150*oneMillisecond {
		t.Errorf("the session goes down after %v, want at most 3 intervals of 50 ms", d)
	}
	v := k.machine.Status()
	if v.Diagnostic != session.DiagnosticEchoFailed || v.Diagnostic.String() != "echo function failed" {
		t.Errorf("the diagnostic is %v", v.Diagnostic)
	}
	c := k.lastOutput.StateChange
	if c == nil || c.Cause != session.CauseEchoFailed || c.Cause.String() != "echo packets no longer return" {
		t.Errorf("the change is %+v", c)
	}
	if k.lastSentPacket("after the change").Diagnostic != session.DiagnosticEchoFailed {
		t.Error("the packet after the change does not contain the diagnostic")
	}
}

func TestEchoThatNeverReturnedKeepsSessionUp(t *testing.T) {
	k := newUpMachineWithEcho(t, 50*oneMillisecond)
	if sent := k.advanceTimeAndReturnEchoTimes(200*oneMillisecond, 50*oneMillisecond, noEchoReturns); len(sent) == 0 || k.machine.Status().NoEchoReturned {
		t.Fatalf("after %d echo packets they are lost: %v, want not yet", len(sent), k.machine.Status().NoEchoReturned)
	}
	k.advanceTimeAndReturnEchoTimes(time.Second, 50*oneMillisecond, noEchoReturns)
	k.requireState("the neighbour has never returned an echo packet", session.Up)
	if !k.machine.Status().NoEchoReturned {
		t.Error("the session does not report that echo packets do not return")
	}
	k.stepMachine(session.EchoReturned{})
	if k.machine.Status().NoEchoReturned {
		t.Error("an echo packet has returned, and they are still reported as lost")
	}
}

func TestEchoIsSentOnlyIfNeighbourAcceptsIt(t *testing.T) {
	k := newUpMachineWithEcho(t, 0)
	if sent := k.advanceTimeAndReturnEchoTimes(time.Second, 0, everyEchoReturns); len(sent) > 0 {
		t.Errorf("%d echo packets are sent to a neighbour that accepts none", len(sent))
	}
	if !k.machine.Status().NeighbourRefusesEcho {
		t.Error("the session does not report that the neighbour accepts no echo packets")
	}
	if sent := k.advanceTimeAndReturnEchoTimes(time.Second, 50*oneMillisecond, everyEchoReturns); len(sent) == 0 || k.machine.Status().NeighbourRefusesEcho {
		t.Errorf("the neighbour accepts them now: %d are sent, refused: %v", len(sent), k.machine.Status().NeighbourRefusesEcho)
	}
	k.advanceTimeAndReturnEchoTimes(time.Second, 0, noEchoReturns)
	k.requireState("the neighbour accepts none any more", session.Up)
}

func TestPacketsContainTheAcceptedEchoInterval(t *testing.T) {
	k := newUpMachineWithEcho(t, 50*oneMillisecond)
	packets := k.advanceTime(200 * oneMillisecond)
	if len(packets) == 0 {
		t.Fatal("nothing is sent in 200 ms")
	}
	for _, p := range packets {
		if p.RequiredMinEchoRxInterval != 50*oneMillisecond {
			t.Fatalf("the packet accepts echo packets every %v, want every 50 ms", p.RequiredMinEchoRxInterval)
		}
	}
}

func TestEchoReturnWithoutEchoModeIsIgnored(t *testing.T) {
	k := newMachineInVirtualTime(t, exampleConfig())
	k.bringUp()
	before := k.machine.Status()
	k.stepMachine(session.EchoReturned{})
	if after := k.machine.Status(); after != before {
		t.Errorf("the session is %+v, want %+v", after, before)
	}
	for range 20 {
		k.now = k.now.Add(100 * oneMillisecond)
		k.receiveUpPacket(50 * oneMillisecond)
		if k.stepMachine(session.TimePassed{}).MustSendEcho {
			t.Fatal("an echo packet is requested without an interval for them")
		}
	}
	k.requireState("control packets arrive", session.Up)
}

func TestRepeatedStopAndStartWhileRunningAreIgnored(t *testing.T) {
	k := newMachineInVirtualTime(t, exampleConfig())
	k.bringUp()
	if c := k.stepMachine(session.RestartRequested{}).StateChange; c != nil {
		t.Errorf("a start of a running session changes it: %+v", c)
	}
	k.requireState("a start of a running session", session.Up)
	if c := k.stepMachine(session.StopRequested{}).StateChange; c == nil || c.Cause.String() != "stopped here" {
		t.Errorf("the stop reports %+v", c)
	}
	k.advanceTime(time.Hour)
	if out := k.stepMachine(session.StopRequested{}); out.StateChange != nil || len(out.PacketsToSend) > 0 {
		t.Errorf("the second stop leads to %+v", out)
	}
	if c := k.stepMachine(session.RestartRequested{}).StateChange; c == nil || c.To != session.Down || c.Cause.String() != "started here" {
		t.Errorf("the start reports %+v", c)
	}
}

func TestEachDiagnosticHasItsOwnText(t *testing.T) {
	seen := map[string]session.Diagnostic{}
	for d := session.Diagnostic(0); d < 9; d++ { // RFC 5880 section 4.1 assigns 0 to 8
		words := d.String()
		if other, ok := seen[words]; ok || strings.Contains(words, "unassigned") {
			t.Errorf("the diagnostics %d and %d are both %q", other, d, words)
		}
		seen[words] = d
	}
	if got := session.Diagnostic(9).String(); got != "an unassigned diagnostic" {
		t.Errorf("the diagnostic 9 is %q", got)
	}
}
