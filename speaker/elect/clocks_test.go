package elect

import (
	"math/rand"
	"testing"
	"time"
)

// simClock is the clock of a node. It shows another time than those of other nodes, and runs faster
// or slower.
type simClock struct {
	offset time.Duration
	// extraPerSecond is how much more than a second passes on the clock in a second.
	extraPerSecond time.Duration
	// lag is how far the clock is behind, because a hypervisor paused the node.
	lag time.Duration
}

// simulationStart is when each simulation begins.
var simulationStart = time.Unix(1000, 0)

// maxClockDifference and maxExtraPerSecond bound how different the clocks of the nodes are. A
// quartz is a hundred times as exact.
const (
	maxClockDifference = 1000 * time.Hour
	maxExtraPerSecond  = 10 * time.Millisecond
)

// newDifferentClocks returns a clock for each of n nodes.
func newDifferentClocks(seed int64, n int) []simClock {
	random := rand.New(rand.NewSource(seed))
	out := make([]simClock, n)
	for i := range out {
		out[i].offset = time.Duration(random.Int63n(int64(2*maxClockDifference))) - maxClockDifference
		out[i].extraPerSecond = time.Duration(random.Int63n(int64(2*maxExtraPerSecond))) - maxExtraPerSecond
	}
	return out
}

// readAt returns what the clock shows.
func (c simClock) readAt(now time.Time) time.Time {
	passed := now.Sub(simulationStart)
	return now.Add(c.offset - c.lag + time.Duration(passed.Seconds()*float64(c.extraPerSecond)))
}

// convertDelay returns how long it takes until d has passed on the clock, rounded up.
func (c simClock) convertDelay(d time.Duration) time.Duration {
	return time.Duration(float64(d)/(1+c.extraPerSecond.Seconds())) + 1
}

// clockOf returns the time on the clock of the node.
func (w *clusterSimulation) clockOf(n *simNode) time.Time { return n.clock.readAt(w.now) }

// pauseByHypervisor stops a node with its clock for a while. If hasLostInputs is true, the frames
// of this time are lost.
func (w *clusterSimulation) pauseByHypervisor(name string, d time.Duration, hasLostInputs bool) {
	n := w.nodesByName[name]
	n.isPaused = true
	w.scheduleEvent(d, func() {
		n.isPaused, n.clock.lag = false, n.clock.lag+d
		inbox := append(n.inputsWhilePaused, TimePassed{})
		if n.inputsWhilePaused = nil; hasLostInputs {
			inbox = []Input{TimePassed{}}
		}
		w.stepNode(n, inbox...)
	})
}

// A hypervisor pauses the holder, and no clock of the node shows it. Other nodes take its addresses
// meanwhile. The node cannot know that, so both may answer, but not for longer than an answer of
// another member or a gateway confirms its lease. If it hears the claims of the pause, it stops at
// once.
func TestHolderPausedByHypervisorStopsSoonAfter(t *testing.T) {
	for name, c := range map[string]struct {
		hasLostInputs bool
		overlap       time.Duration
	}{
		"the messages of the pause wait":     {false, 5 * time.Millisecond},
		"the messages of the pause are lost": {true, DefaultTiming().LeaseConfirmationTimeout},
	} {
		t.Run(name, func(t *testing.T) {
			for seed := range seedCountPerTest() {
				w := newClusterSimulation(t, seed, 3+int(seed%4), 1+int(seed%5))
				w.startAllSpeakers()
				old := w.runThenRequireOneHolderEach(6*time.Second, "start")
				w.pauseByHypervisor(old, time.Duration(300+w.random.Intn(3000))*time.Millisecond, c.hasLostInputs)
				w.runSimulationFor(10*time.Second, w.newTwoHoldersCheck(c.overlap))
				w.runThenRequireOneHolderEach(time.Millisecond, "after the pause")
				// the clocks differ from now on, and that does not matter
				w.killSpeaker(w.answeringNodes(w.addresses[0])[0])
				w.runSimulationFor(2*time.Second, w.newTwoHoldersCheck(handoverOverlapTimeout))
				w.runThenRequireOneHolderEach(time.Millisecond, "a death after the pause")
			}
		})
	}
}
