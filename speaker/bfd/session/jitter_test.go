package session_test

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/gantry-lb/gantry/speaker/bfd/session"
)

// TestPacketsOfManySessionsAreDueTogether checks that a speaker with many fast sessions wakes for
// several packets at once, while the interval of each session keeps its jitter.
func TestPacketsOfManySessionsAreDueTogether(t *testing.T) {
	const sessions, seconds = 100, 10
	jitter := session.NewTransmitScheduler(rand.New(rand.NewPCG(1, 2)), testStart)
	times, gaps, packets := map[time.Time]bool{}, map[time.Duration]bool{}, 0
	for i := range sessions {
		start := testStart.Add(time.Duration(i) * 317 * time.Microsecond)
		k := &machineInVirtualTime{t: t, now: start, machine: session.NewMachine(uint32(i+1), exampleConfig(), jitter, start)}
		k.bringUp()
		k.receivePacket(session.Packet{State: session.Up, YourDiscriminator: uint32(i + 1), DesiredMinTxInterval: time.Minute})
		last := k.now
		for k.now.Before(testStart.Add(seconds * time.Second)) {
			k.now = k.machine.NextStepDeadline()
			if len(k.stepMachine(session.TimePassed{}).PacketsToSend) > 0 {
				times[k.now], gaps[k.now.Sub(last)] = true, true
				last = k.now
				packets++
			}
		}
	}
	if packets < 5*len(times)/2 {
		t.Errorf("%d packets are due at %d different times, want 2.5 packets or more at each", packets, len(times))
	}
	if len(gaps) < 4 {
		t.Errorf("the packets of a session are %v apart, want several intervals", gaps)
	}
}

// TestPacketsOfEachIntervalHaveJitter checks the bounds of RFC 5880 section 6.8.7 for intervals
// from the shortest to the longest.
func TestPacketsOfEachIntervalHaveJitter(t *testing.T) {
	for _, interval := range []time.Duration{10 * oneMillisecond, 11 * oneMillisecond, 50 * oneMillisecond, 333 * oneMillisecond, time.Second, time.Minute} {
		c := exampleConfig()
		c.DesiredMinTxInterval = interval
		jitter := session.NewTransmitScheduler(rand.New(rand.NewPCG(1, 2)), testStart.Add(-time.Hour-123*time.Nanosecond))
		k := &machineInVirtualTime{t: t, now: testStart, machine: session.NewMachine(ourDiscriminator, c, jitter, testStart)}
		k.bringUp()
		k.receivePacket(session.Packet{State: session.Up, YourDiscriminator: ourDiscriminator, DesiredMinTxInterval: time.Hour, RequiredMinRxInterval: time.Microsecond})
		var gaps []time.Duration
		for last := k.now; len(gaps) < 200; {
			k.now = k.machine.NextStepDeadline()
			if len(k.stepMachine(session.TimePassed{}).PacketsToSend) > 0 {
				// The process runs a little later than it should.
				late := time.Duration(len(gaps)%7) * 31 * time.Microsecond
				gaps, last = append(gaps, k.now.Sub(last)), k.now.Add(late)
				k.now = last
			}
		}
		gaps = gaps[1:] // the first begins before the session was Up
		if shortest := slices.Min(gaps); shortest < interval*3/4-200*time.Microsecond || shortest > interval*81/100 {
			t.Errorf("with an interval of %s packets are %s apart or more, want about three quarters of it", interval, shortest)
		}
		if longest := slices.Max(gaps); longest > interval || longest < interval*95/100 {
			t.Errorf("with an interval of %s packets are %s apart at most, want about the interval", interval, longest)
		}
		if different := map[time.Duration]bool{}; true {
			for _, g := range gaps {
				different[g.Round(100*time.Microsecond)] = true
			}
			if len(different) < 4 {
				t.Errorf("with an interval of %s packets are %v apart, want several intervals", interval, different)
			}
		}
	}
}

// TestUnchangedSessionAllocatesNothing checks what happens most often: a packet arrives that
// changes nothing, and a periodic packet is due.
func TestUnchangedSessionAllocatesNothing(t *testing.T) {
	k := newMachineInVirtualTime(t, exampleConfig())
	k.bringUp()
	packet := session.Packet{State: session.Up, YourDiscriminator: ourDiscriminator, MyDiscriminator: theirDiscriminator, DetectMultiplier: 3, DesiredMinTxInterval: 50 * oneMillisecond, RequiredMinRxInterval: 50 * oneMillisecond}
	k.receivePacket(packet)
	sent := 0
	if n := testing.AllocsPerRun(1000, func() {
		k.machine.Step(k.now, session.PacketReceived{Packet: packet})
		k.now = k.machine.NextStepDeadline()
		sent += len(k.machine.Step(k.now, session.TimePassed{}).PacketsToSend)
	}); n > 0 {
		t.Errorf("%v allocations for each packet", n)
	}
	if sent < 1000 {
		t.Errorf("%d packets were sent, too few for a result", sent)
	}
}
