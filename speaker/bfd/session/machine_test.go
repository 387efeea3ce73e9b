package session_test

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/gantry-lb/gantry/speaker/bfd/session"
)

var testStart = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

const (
	ourDiscriminator, theirDiscriminator = 11, 22
	oneMillisecond                       = time.Millisecond
)

func exampleConfig() session.Config {
	return session.Config{DesiredMinTxInterval: 50 * oneMillisecond, RequiredMinRxInterval: 100 * oneMillisecond, DetectMultiplier: 3}
}

// machineInVirtualTime is a Machine and its virtual time.
type machineInVirtualTime struct {
	t          *testing.T
	machine    *session.Machine
	now        time.Time
	lastOutput session.Output
}

func newMachineInVirtualTime(t *testing.T, c session.Config) *machineInVirtualTime {
	return &machineInVirtualTime{t: t, machine: session.NewMachine(ourDiscriminator, c, session.NewTransmitScheduler(rand.New(rand.NewPCG(1, 2)), testStart), testStart), now: testStart}
}

// stepMachine steps the machine at the current time.
func (k *machineInVirtualTime) stepMachine(in session.Input) session.Output {
	k.lastOutput = k.machine.Step(k.now, in)
	return k.lastOutput
}

// receivePacket steps the machine with a packet of the
// neighbour. Fields without a value get usual ones.
func (k *machineInVirtualTime) receivePacket(p session.Packet) session.Output {
	if p.DetectMultiplier == 0 {
		p.DetectMultiplier = 4
	}
	if p.MyDiscriminator == 0 {
		p.MyDiscriminator = theirDiscriminator
	}
	if p.DesiredMinTxInterval == 0 {
		p.DesiredMinTxInterval = 60 * oneMillisecond
	}
	if p.RequiredMinRxInterval == 0 {
		p.RequiredMinRxInterval = 70 * oneMillisecond
	}
	return k.stepMachine(session.PacketReceived{Packet: p})
}

// advanceTime lets time pass and returns the sent packets.
func (k *machineInVirtualTime) advanceTime(d time.Duration) []session.Packet {
	k.t.Helper()
	end, sent := k.now.Add(d), []session.Packet(nil)
	for range 100000 {
		next := k.machine.NextStepDeadline()
		if next.IsZero() || next.After(end) {
			k.now = end
			return sent
		}
		if next.After(k.now) {
			k.now = next
		}
		sent = append(sent, k.stepMachine(session.TimePassed{}).PacketsToSend...)
	}
	k.t.Fatal("the machine wants to be stepped without end")
	return nil
}

// bringUp brings the session Up and answers its Poll Sequence.
func (k *machineInVirtualTime) bringUp() {
	k.t.Helper()
	k.advanceTime(0)
	k.receivePacket(session.Packet{State: session.Down, DesiredMinTxInterval: time.Second})
	k.receivePacket(session.Packet{State: session.Init, YourDiscriminator: ourDiscriminator, DesiredMinTxInterval: time.Second})
	k.requireState("the neighbour is in Init", session.Up)
	k.advanceTime(50 * oneMillisecond)
	k.receivePacket(session.Packet{State: session.Up, YourDiscriminator: ourDiscriminator, Final: true})
	if k.machine.Status().IsPolling {
		k.t.Fatal("the Final did not end the Poll Sequence")
	}
}

func (k *machineInVirtualTime) requireState(sentence string, s session.State) {
	k.t.Helper()
	if v := k.machine.Status(); v.State != s {
		k.t.Fatalf("%s: state %s, want %s", sentence, v.State, s)
	}
}

// lastSentPacket returns the last packet of the last step.
func (k *machineInVirtualTime) lastSentPacket(sentence string) session.Packet {
	k.t.Helper()
	if len(k.lastOutput.PacketsToSend) == 0 {
		k.t.Fatalf("%s: nothing was sent", sentence)
	}
	return k.lastOutput.PacketsToSend[len(k.lastOutput.PacketsToSend)-1]
}

// TestStateTransitions checks the table of RFC 5880 section 6.8.6.
func TestStateTransitions(t *testing.T) {
	type table map[session.State]session.State // received state -> state after it
	for from, to := range map[session.State]table{
		session.Down: {session.AdminDown: session.Down, session.Down: session.Init, session.Init: session.Up, session.Up: session.Down},
		session.Init: {session.AdminDown: session.Down, session.Down: session.Init, session.Init: session.Up, session.Up: session.Up},
		session.Up:   {session.AdminDown: session.Down, session.Down: session.Down, session.Init: session.Up, session.Up: session.Up},
		session.AdminDown: {
			session.AdminDown: session.AdminDown, session.Down: session.AdminDown, session.Init: session.AdminDown, session.Up: session.AdminDown,
		},
	} {
		for received, want := range to {
			k := newMachineInVirtualTime(t, exampleConfig())
			switch from {
			case session.Init:
				k.receivePacket(session.Packet{State: session.Down})
			case session.Up:
				k.bringUp()
			case session.AdminDown:
				k.stepMachine(session.StopRequested{})
			}
			k.requireState("to begin with", from)
			k.receivePacket(session.Packet{State: received, YourDiscriminator: ourDiscriminator})
			k.requireState(from.String()+" hears "+received.String(), want)
			if reported := k.lastOutput.StateChange != nil; reported != (from != want) {
				t.Errorf("%s hears %s: change reported: %v", from, received, reported)
			}
		}
	}
}

func TestSessionThatIsDownSendsSlowly(t *testing.T) {
	k := newMachineInVirtualTime(t, exampleConfig())
	for _, p := range k.advanceTime(60 * time.Second) {
		if p.DesiredMinTxInterval != time.Second || p.YourDiscriminator != 0 || p.State != session.Down || p.Poll || p.Final || p.ControlPlaneIndependent || p.Demand || p.RequiredMinEchoRxInterval != 0 {
			t.Fatalf("sent %+v", p)
		}
	}
	if n := len(newMachineInVirtualTime(t, exampleConfig()).advanceTime(60 * time.Second)); n < 60 || n > 81 {
		t.Errorf("%d packets in a minute, want one in 0.75 to 1 s", n)
	}
}

func TestTransmitIntervalsHaveJitter(t *testing.T) {
	k := newMachineInVirtualTime(t, exampleConfig())
	k.bringUp()
	k.receivePacket(session.Packet{State: session.Up, YourDiscriminator: ourDiscriminator, DesiredMinTxInterval: time.Hour, RequiredMinRxInterval: 40 * oneMillisecond})
	var gaps []time.Duration
	last := k.now
	for len(gaps) < 2000 {
		k.now = k.machine.NextStepDeadline()
		if len(k.stepMachine(session.TimePassed{}).PacketsToSend) > 0 {
			gaps, last = append(gaps, k.now.Sub(last)), k.now
		}
	}
	shortest, longest := time.Hour, time.Duration(0)
	for _, g := range gaps[1:] {
		shortest, longest = min(shortest, g), max(longest, g)
	}
	// RFC 5880 section 6.8.7: the interval of 50 ms is reduced by up
	// to 25 %. 2,000 packets come close to both bounds.
	if shortest < 37500*time.Microsecond || shortest > 38*oneMillisecond || longest > 50*oneMillisecond || longest < 49500*time.Microsecond {
		t.Errorf("packets are %s to %s apart, want 37.5 to 50 ms", shortest, longest)
	}
}

func TestSilenceForTheDetectionTimeTakesSessionDown(t *testing.T) {
	for sentence, tc := range map[string]struct {
		theirTx    time.Duration
		multiplier uint8
		want       time.Duration
	}{
		"the neighbour sends slower than we can receive": {150 * oneMillisecond, 4, 600 * oneMillisecond},
		"it would send faster":                           {10 * oneMillisecond, 2, 200 * oneMillisecond},
	} {
		k := newMachineInVirtualTime(t, exampleConfig())
		k.bringUp()
		k.receivePacket(session.Packet{State: session.Up, YourDiscriminator: ourDiscriminator, DesiredMinTxInterval: tc.theirTx, DetectMultiplier: tc.multiplier})
		k.advanceTime(tc.want - time.Nanosecond)
		k.requireState(sentence+", just before", session.Up)
		k.advanceTime(time.Nanosecond)
		k.requireState(sentence, session.Down)
		if p := k.lastSentPacket(sentence); p.Diagnostic != session.DiagnosticDetectionExpired || p.YourDiscriminator != 0 || p.DesiredMinTxInterval != time.Second {
			t.Errorf("%s: sent %+v, want the diagnostic, no discriminator (RFC 5880 section 6.8.1), slow rate", sentence, p)
		}
		if c := k.lastOutput.StateChange; c == nil || c.Cause != session.CauseDetectionExpired {
			t.Errorf("%s: change %+v", sentence, c)
		}
	}
}

// TestPacketReadAfterDeadlineIsInTime checks a process that did not run for a
// while and reads a packet from the socket after the deadline.
func TestPacketReadAfterDeadlineIsInTime(t *testing.T) {
	k := newMachineInVirtualTime(t, exampleConfig())
	k.bringUp()
	k.now = k.now.Add(time.Minute)
	k.receivePacket(session.Packet{State: session.Up, YourDiscriminator: ourDiscriminator})
	k.stepMachine(session.TimePassed{})
	k.requireState("after a pause", session.Up)
}

func TestPollIsAnsweredAtOnce(t *testing.T) {
	k := newMachineInVirtualTime(t, exampleConfig())
	k.bringUp()
	k.receivePacket(session.Packet{State: session.Up, YourDiscriminator: ourDiscriminator, Poll: true})
	if p := k.lastSentPacket("a Poll came"); !p.Final || p.Poll || p.State != session.Up {
		t.Errorf("answered %+v, want Final and no Poll", p)
	}
}

// TestLongerTransmitIntervalWaitsForFinal and the next test check RFC 5880 section 6.8.3.
func TestLongerTransmitIntervalWaitsForFinal(t *testing.T) {
	k := newMachineInVirtualTime(t, exampleConfig())
	k.bringUp()
	slower := exampleConfig()
	slower.DesiredMinTxInterval = 500 * oneMillisecond
	k.stepMachine(session.ConfigChanged{Config: slower})
	if p := k.lastSentPacket("a longer interval"); !p.Poll || p.DesiredMinTxInterval != 500*oneMillisecond {
		t.Errorf("sent %+v, want the new interval with Poll, at once", p)
	}
	if d := k.machine.Status().EffectiveTransmitInterval; d != 70*oneMillisecond {
		t.Errorf("sends every %s before the answer, want the previous 70 ms", d)
	}
	for _, p := range k.advanceTime(200 * oneMillisecond) {
		if !p.Poll {
			t.Errorf("sent %+v without Poll before the answer", p)
		}
	}
	k.receivePacket(session.Packet{State: session.Up, YourDiscriminator: ourDiscriminator, Final: true})
	if d := k.machine.Status().EffectiveTransmitInterval; d != 500*oneMillisecond {
		t.Errorf("sends every %s after the answer, want 500 ms", d)
	}
}

func TestShorterReceiveIntervalWaitsForFinal(t *testing.T) {
	k := newMachineInVirtualTime(t, exampleConfig())
	k.bringUp()
	k.receivePacket(session.Packet{State: session.Up, YourDiscriminator: ourDiscriminator, DesiredMinTxInterval: 10 * oneMillisecond})
	faster := exampleConfig()
	faster.RequiredMinRxInterval = 20 * oneMillisecond
	k.stepMachine(session.ConfigChanged{Config: faster})
	if p := k.lastSentPacket("a shorter interval"); !p.Poll || p.RequiredMinRxInterval != 20*oneMillisecond {
		t.Errorf("sent %+v, want the new interval with Poll", p)
	}
	if d := k.machine.Status().DetectionTime; d != 400*oneMillisecond {
		t.Errorf("waits %s before the answer, want the previous 4 x 100 ms", d)
	}
	k.receivePacket(session.Packet{State: session.Up, YourDiscriminator: ourDiscriminator, DesiredMinTxInterval: 10 * oneMillisecond, Final: true})
	if d := k.machine.Status().DetectionTime; d != 80*oneMillisecond {
		t.Errorf("waits %s after the answer, want 4 x 20 ms", d)
	}
}

func TestIntervalChangeDuringPollStartsAnotherPoll(t *testing.T) {
	k := newMachineInVirtualTime(t, exampleConfig())
	k.bringUp()
	for _, tx := range []time.Duration{500 * oneMillisecond, 900 * oneMillisecond} {
		c := exampleConfig()
		c.DesiredMinTxInterval = tx
		k.stepMachine(session.ConfigChanged{Config: c})
	}
	k.receivePacket(session.Packet{State: session.Up, YourDiscriminator: ourDiscriminator, Final: true})
	if v := k.machine.Status(); !v.IsPolling || v.EffectiveTransmitInterval != 70*oneMillisecond {
		t.Fatalf("the first answer ended both sequences: %+v", v)
	}
	k.receivePacket(session.Packet{State: session.Up, YourDiscriminator: ourDiscriminator, Final: true})
	if !k.machine.Status().IsPolling {
		t.Fatal("a second answer to the first sequence ended the second, of which nothing was sent")
	}
	k.advanceTime(70 * oneMillisecond)
	k.receivePacket(session.Packet{State: session.Up, YourDiscriminator: ourDiscriminator, Final: true})
	if v := k.machine.Status(); v.IsPolling || v.EffectiveTransmitInterval != 900*oneMillisecond {
		t.Errorf("after the second answer: %+v, want 900 ms", v)
	}
}

func TestUnrequestedFinalIsIgnored(t *testing.T) {
	k := newMachineInVirtualTime(t, exampleConfig())
	k.bringUp()
	before := k.machine.Status()
	k.receivePacket(session.Packet{State: session.Up, YourDiscriminator: ourDiscriminator, Final: true})
	if k.machine.Status() != before || len(k.lastOutput.PacketsToSend) != 0 {
		t.Errorf("a stray Final made %+v of %+v", k.machine.Status(), before)
	}
}

func TestNeighbourLimitsTransmitRate(t *testing.T) {
	k := newMachineInVirtualTime(t, exampleConfig())
	k.bringUp()
	k.receivePacket(session.Packet{State: session.Up, YourDiscriminator: ourDiscriminator, RequiredMinRxInterval: 400 * oneMillisecond, DesiredMinTxInterval: 10 * time.Second})
	if n := len(k.advanceTime(4 * time.Second)); n < 9 || n > 14 {
		t.Errorf("%d packets in 4 s to a neighbour that takes one in 400 ms", n)
	}
	k.receivePacket(session.Packet{State: session.Up, YourDiscriminator: ourDiscriminator, RequiredMinRxInterval: 10 * oneMillisecond, DesiredMinTxInterval: 10 * time.Second})
	if n := len(k.advanceTime(time.Second)); n < 20 || n > 27 {
		t.Errorf("%d packets in 1 s once it takes more than our 50 ms, want the change to act at once", n)
	}
	k.stepMachine(session.PacketReceived{Packet: session.Packet{State: session.Up, MyDiscriminator: theirDiscriminator, YourDiscriminator: ourDiscriminator, DetectMultiplier: 4, DesiredMinTxInterval: 10 * time.Second}})
	if sent := k.advanceTime(5 * time.Second); len(sent) != 0 {
		t.Errorf("%d periodic packets to a neighbour that wants none (Required Min RX 0)", len(sent))
	}
}

func TestNeighbourInDemandModeGetsNoPeriodicPackets(t *testing.T) {
	k := newMachineInVirtualTime(t, exampleConfig())
	k.bringUp()
	demand := session.Packet{State: session.Up, YourDiscriminator: ourDiscriminator, Demand: true, DesiredMinTxInterval: 10 * time.Second}
	k.receivePacket(demand)
	if n := len(k.advanceTime(5 * time.Second)); n != 0 {
		t.Errorf("%d periodic packets to a neighbour in demand mode (RFC 5880 section 6.8.7)", n)
	}
	demand.Poll = true
	k.receivePacket(demand)
	if !k.lastSentPacket("it polls").Final {
		t.Error("its Poll was not answered")
	}
	slower := exampleConfig()
	slower.RequiredMinRxInterval = 200 * oneMillisecond
	k.stepMachine(session.ConfigChanged{Config: slower})
	if n := len(k.advanceTime(time.Second)); n == 0 {
		t.Error("no Poll is sent to a neighbour in demand mode")
	}
	demand.Poll, demand.Final = false, true
	k.receivePacket(demand)
	if n := len(k.advanceTime(5 * time.Second)); n != 0 {
		t.Errorf("%d periodic packets after the Poll Sequence", n)
	}
	demand.Final, demand.Demand = false, false
	k.receivePacket(demand)
	if n := len(k.advanceTime(time.Second)); n < 10 {
		t.Errorf("%d packets in a second after demand mode ended", n)
	}
}

func TestPassiveSessionWaitsForNeighbour(t *testing.T) {
	c := exampleConfig()
	c.Passive = true
	k := newMachineInVirtualTime(t, c)
	if n := len(k.advanceTime(time.Minute)); n != 0 {
		t.Fatalf("%d packets before the neighbour's first", n)
	}
	k.receivePacket(session.Packet{State: session.Down, DesiredMinTxInterval: time.Second})
	if p := k.lastSentPacket("the neighbour began"); p.State != session.Init || p.YourDiscriminator != theirDiscriminator {
		t.Errorf("answered %+v, want Init at once", p)
	}
	k.receivePacket(session.Packet{State: session.Up, YourDiscriminator: ourDiscriminator})
	k.requireState("it is Up", session.Up)
	k.advanceTime(time.Minute)
	k.requireState("it is gone", session.Down)
	if n := len(k.advanceTime(time.Minute)); n != 0 {
		t.Errorf("%d packets after it is gone: a passive session waits", n)
	}
}

func TestShutdownSendsAdminDown(t *testing.T) {
	k := newMachineInVirtualTime(t, exampleConfig())
	k.bringUp()
	sent := k.stepMachine(session.StopRequested{}).PacketsToSend
	if k.machine.IsStopped() {
		t.Fatal("stopped after one packet, which may be lost")
	}
	sent = append(sent, k.advanceTime(100*oneMillisecond)...)
	if len(sent) != 3 || !k.machine.IsStopped() {
		t.Fatalf("%d packets within 100 ms, stopped: %v; want 3 and stopped", len(sent), k.machine.IsStopped())
	}
	for _, p := range sent {
		if p.State != session.AdminDown || p.Diagnostic != session.DiagnosticAdminDown || p.YourDiscriminator != theirDiscriminator {
			t.Errorf("sent %+v", p)
		}
	}
	if sent := k.advanceTime(time.Minute); len(sent) != 0 {
		t.Errorf("%d packets after the end", len(sent))
	}
	k.receivePacket(session.Packet{State: session.Down, YourDiscriminator: ourDiscriminator})
	if k.requireState("it hears the neighbour", session.AdminDown); k.lastOutput.DiscardReason != session.DiscardSessionAdminDown {
		t.Errorf("discarded as %q", k.lastOutput.DiscardReason)
	}
	k.stepMachine(session.RestartRequested{})
	k.requireState("it starts again", session.Down)
	if p := k.lastSentPacket("it starts again"); p.YourDiscriminator != 0 || p.State != session.Down {
		t.Errorf("sent %+v, want what a new session sends", p)
	}
}

func TestShutdownWithoutNeighbourEndsAtOnce(t *testing.T) {
	k := newMachineInVirtualTime(t, exampleConfig())
	k.advanceTime(5 * time.Second)
	k.stepMachine(session.StopRequested{})
	if !k.machine.IsStopped() {
		t.Error("IsStopped waits for a neighbour that never sent a packet")
	}
}

func TestNeighbourRestartTakesSessionDown(t *testing.T) {
	k := newMachineInVirtualTime(t, exampleConfig())
	k.bringUp()
	k.receivePacket(session.Packet{State: session.Down, MyDiscriminator: 99, DesiredMinTxInterval: time.Second})
	if k.requireState("a packet after the restart", session.Down); k.lastOutput.StateChange.Cause != session.CauseNeighbourSignalledDown {
		t.Errorf("change %+v", k.lastOutput.StateChange)
	}
	k.receivePacket(session.Packet{State: session.Down, MyDiscriminator: 99, DesiredMinTxInterval: time.Second})
	k.requireState("another", session.Init)
	if p := k.lastSentPacket("another"); p.YourDiscriminator != 99 {
		t.Errorf("sent %+v, want the new discriminator", p)
	}
}

func TestAuthenticatedPacketsAreDiscarded(t *testing.T) {
	k := newMachineInVirtualTime(t, exampleConfig())
	k.bringUp()
	before := k.machine.Status()
	k.receivePacket(session.Packet{State: session.Down, AuthenticationPresent: true, YourDiscriminator: ourDiscriminator})
	if k.lastOutput.DiscardReason != session.DiscardUnexpectedAuthentication || k.machine.Status() != before {
		t.Errorf("%q, %+v", k.lastOutput.DiscardReason, k.machine.Status())
	}
}
