package session_test

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/gantry-lb/gantry/speaker/bfd/session"
)

// machinePair connects two machines in virtual time by a path that delays and loses
// packets. It keeps their order, as paths do for the packets of one flow. RFC 5880 has no
// remedy without authentication for an old packet that overtakes a new one.
type machinePair struct {
	now                      time.Time
	machines                 [2]*session.Machine
	packetsInFlight          []packetInFlight
	lastArrivalByReceiver    [2]time.Time // of the last packet on its way there
	random                   *rand.Rand
	maxDelay                 time.Duration // the longest
	maxLostPacketsInRow      int           // how many packets in a row may be lost
	lostPacketsInRowBySender [2]int        // in a row
	lossRate                 float64
	isPathCut                bool
	downCountByMachine       [2]int
	lastStateChangeByMachine [2]time.Time // of the last change of state
}

type packetInFlight struct {
	arrivesAt     time.Time
	receiverIndex int
	packet        session.Packet
}

// putPacketsInFlight puts the packets of a machine in flight.
func (l *machinePair) putPacketsInFlight(from int, out session.Output) {
	if out.StateChange != nil {
		l.lastStateChangeByMachine[from] = l.now
		if out.StateChange.From == session.Up {
			l.downCountByMachine[from]++
		}
	}
	for _, p := range out.PacketsToSend {
		if l.isPathCut || (l.lostPacketsInRowBySender[from] < l.maxLostPacketsInRow && l.random.Float64() < l.lossRate) {
			l.lostPacketsInRowBySender[from]++
			continue
		}
		l.lostPacketsInRowBySender[from] = 0
		at := l.now.Add(time.Duration(l.random.Int64N(int64(l.maxDelay) + 1)))
		if at.Before(l.lastArrivalByReceiver[1-from]) {
			at = l.lastArrivalByReceiver[1-from]
		}
		l.lastArrivalByReceiver[1-from] = at
		l.packetsInFlight = append(l.packetsInFlight, packetInFlight{at, 1 - from, p})
	}
}

// runUntil runs the pair until the time, or until check returns true.
func (l *machinePair) runUntil(end time.Time, check func() bool) bool {
	for !check() {
		slices.SortStableFunc(l.packetsInFlight, func(a, b packetInFlight) int { return a.arrivesAt.Compare(b.arrivesAt) })
		next, who := end, -1
		for i, m := range l.machines {
			if at := m.NextStepDeadline(); !at.IsZero() && !at.After(next) {
				next, who = at, i
			}
		}
		// A packet that arrives at a deadline is in time.
		if len(l.packetsInFlight) > 0 && !l.packetsInFlight[0].arrivesAt.After(next) {
			v := l.packetsInFlight[0]
			l.packetsInFlight = l.packetsInFlight[1:]
			l.now = v.arrivesAt
			l.putPacketsInFlight(v.receiverIndex, l.machines[v.receiverIndex].Step(l.now, session.PacketReceived{Packet: v.packet}))
			continue
		}
		if who < 0 {
			l.now = end
			return check()
		}
		if next.After(l.now) {
			l.now = next
		}
		l.putPacketsInFlight(who, l.machines[who].Step(l.now, session.TimePassed{}))
	}
	return true
}

func (l *machinePair) areBothUp() bool {
	return l.machines[0].Status().State == session.Up && l.machines[1].Status().State == session.Up
}

// drawRandomConfig draws a configuration.
func drawRandomConfig(t *rapid.T, name string) session.Config {
	interval := rapid.SampledFrom([]time.Duration{10 * oneMillisecond, 20 * oneMillisecond, 50 * oneMillisecond, 100 * oneMillisecond, 300 * oneMillisecond, time.Second, 3 * time.Second})
	return session.Config{
		DesiredMinTxInterval: interval.Draw(t, name+" transmit"), RequiredMinRxInterval: interval.Draw(t, name+" receive"),
		DetectMultiplier: uint8(rapid.IntRange(2, 6).Draw(t, name+" multiplier")),
	}
}

// newMachinePair connects two machines with drawn configurations.
func newMachinePair(t *rapid.T) (*machinePair, [2]session.Config) {
	configs := [2]session.Config{drawRandomConfig(t, "one"), drawRandomConfig(t, "other")}
	configs[rapid.IntRange(0, 1).Draw(t, "which")].Passive = rapid.Bool().Draw(t, "passive")
	random := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
	l := &machinePair{now: testStart, random: random}
	// At most multiplier-1 intervals may pass without a packet. Each packet arrives at most
	// one interval and the delay's spread after the previous one. With maxLostPacketsInRow packets
	// lost in a row the silence is (maxLostPacketsInRow+1) x interval + delay.
	l.maxLostPacketsInRow = int(min(configs[0].DetectMultiplier, configs[1].DetectMultiplier)) - 2
	l.lossRate = rapid.SampledFrom([]float64{0, 0.1, 0.5, 1}).Draw(t, "loss")
	pace := func(from, to session.Config) time.Duration {
		return max(from.DesiredMinTxInterval, to.RequiredMinRxInterval)
	}
	fastest := min(pace(configs[0], configs[1]), pace(configs[1], configs[0]))
	l.maxDelay = time.Duration(rapid.Float64Range(0, 0.9).Draw(t, "delay") * float64(fastest))
	for i, c := range configs {
		l.machines[i] = session.NewMachine(uint32(i+1), c, session.NewTransmitScheduler(rand.New(rand.NewPCG(random.Uint64(), 0)), l.now), l.now)
	}
	return l, configs
}

// TestToleratedDelayAndLossNeverTakeSessionDown checks that delay and loss within the detection
// time never take a session down.
func TestToleratedDelayAndLossNeverTakeSessionDown(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l, _ := newMachinePair(t)
		run := l.maxLostPacketsInRow
		l.maxLostPacketsInRow = 0 // loss may delay the start without bound
		if !l.runUntil(testStart.Add(time.Minute), l.areBothUp) {
			t.Fatalf("not up after a minute without loss: %+v, %+v", l.machines[0].Status(), l.machines[1].Status())
		}
		l.runUntil(l.now.Add(10*time.Second), func() bool { return false })
		l.maxLostPacketsInRow = run
		l.downCountByMachine = [2]int{}
		l.runUntil(l.now.Add(2*time.Minute), func() bool { return false })
		if l.downCountByMachine != [2]int{} || !l.areBothUp() {
			t.Fatalf("down %v times; %+v, %+v", l.downCountByMachine, l.machines[0].Status(), l.machines[1].Status())
		}
	})
}

// TestIntervalChangesKeepSessionUp checks random changes of the intervals on a path with delay.
func TestIntervalChangesKeepSessionUp(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l, _ := newMachinePair(t)
		l.maxLostPacketsInRow, l.maxDelay = 0, min(l.maxDelay, 4*oneMillisecond)
		l.runUntil(testStart.Add(time.Minute), l.areBothUp)
		l.runUntil(l.now.Add(10*time.Second), func() bool { return false })
		l.downCountByMachine = [2]int{}
		for range rapid.IntRange(1, 4).Draw(t, "changes") {
			i := rapid.IntRange(0, 1).Draw(t, "end")
			l.putPacketsInFlight(i, l.machines[i].Step(l.now, session.ConfigChanged{Config: drawRandomConfig(t, "changed")}))
			l.runUntil(l.now.Add(time.Duration(rapid.Int64Range(0, int64(5*time.Second)).Draw(t, "pause"))), func() bool { return false })
		}
		l.runUntil(l.now.Add(30*time.Second), func() bool { return false })
		if l.downCountByMachine != [2]int{} || !l.areBothUp() {
			t.Fatalf("down %v times; %+v, %+v", l.downCountByMachine, l.machines[0].Status(), l.machines[1].Status())
		}
		for i := range l.machines {
			if v := l.machines[i].Status(); v.IsPolling {
				t.Fatalf("still polling: %+v", v)
			}
		}
	})
}

// TestCutIsDetectedWithinDetectionTime checks that after a cut each side goes
// Down within its detection time, and comes back Up after it.
func TestCutIsDetectedWithinDetectionTime(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l, configs := newMachinePair(t)
		l.maxLostPacketsInRow = 0
		if !l.runUntil(testStart.Add(time.Minute), l.areBothUp) {
			t.Fatal("not up after a minute without loss")
		}
		l.runUntil(l.now.Add(10*time.Second), func() bool { return false })
		cut := l.now
		l.isPathCut = true
		l.runUntil(cut.Add(2*time.Minute), func() bool { return false })
		for i, m := range l.machines {
			bound := time.Duration(configs[1-i].DetectMultiplier)*max(configs[i].RequiredMinRxInterval, configs[1-i].DesiredMinTxInterval) + l.maxDelay
			if d := l.lastStateChangeByMachine[i].Sub(cut); m.Status().State != session.Down || d > bound {
				t.Fatalf("end %d is %s after %s, want Down within %s", i, m.Status().State, d, bound)
			}
		}
		l.isPathCut = false
		if !l.runUntil(l.now.Add(time.Minute), l.areBothUp) {
			t.Fatalf("not up again after a minute: %+v, %+v", l.machines[0].Status(), l.machines[1].Status())
		}
	})
}

// TestSessionComesUpDespiteLoss checks that a session comes up with half of the packets lost.
func TestSessionComesUpDespiteLoss(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l, _ := newMachinePair(t)
		l.maxLostPacketsInRow, l.lossRate = 1<<30, 0.5
		if !l.runUntil(testStart.Add(10*time.Minute), l.areBothUp) {
			t.Fatalf("not up in ten minutes with half of the packets lost: %+v, %+v", l.machines[0].Status(), l.machines[1].Status())
		}
	})
}
