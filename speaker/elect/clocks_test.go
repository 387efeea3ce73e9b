package elect

import (
	"testing"
	"time"
)

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
