package elect

import (
	"testing"
	"time"
)

// declaredDeadDelay cuts a node off and returns how long another one needs to declare it dead.
func (w *clusterSimulation) declaredDeadDelay(victim, observer string) time.Duration {
	w.t.Helper()
	cutAt := w.now
	w.cutOffNodes(1, victim)
	for w.now.Sub(cutAt) < 5*time.Second {
		w.runSimulationFor(10*time.Millisecond, nil)
		if !w.nodesByName[observer].machine.isAlive(victim) {
			return w.now.Sub(cutAt)
		}
	}
	w.t.Fatalf("%s never declares %s dead", observer, victim)
	return 0
}

// A node is cut off, returns, and is cut off again three seconds later. The beacons that were lost
// meanwhile do not make the others wait longer for the next ones: only the confirmation is added
// that follows a death which was taken back. The timers of all nodes are late by some milliseconds,
// as on real machines.
func TestNodeCutOffAgainIsSoonDeclaredDead(t *testing.T) {
	for name, c := range map[string]struct {
		cutDuration           time.Duration
		nodeCount             int
		doesVictimLoseMembers bool
		doKernelsQueue        bool
	}{
		"a short cut of one of two nodes":                    {cutDuration: 2 * time.Second, nodeCount: 2},
		"a cut of one of two nodes that gossip just misses":  {cutDuration: 4500 * time.Millisecond, nodeCount: 2},
		"the node that is cut off loses the other one":       {cutDuration: 4500 * time.Millisecond, nodeCount: 2, doesVictimLoseMembers: true},
		"a long cut of one of two nodes":                     {cutDuration: 9 * time.Second, nodeCount: 2},
		"a cut of one of four nodes that gossip just misses": {cutDuration: 4500 * time.Millisecond, nodeCount: 4},
		"kernels queue during a cut of half a second":        {cutDuration: 500 * time.Millisecond, nodeCount: 2, doKernelsQueue: true},
		"kernels queue during a cut of two seconds":          {cutDuration: 2 * time.Second, nodeCount: 2, doKernelsQueue: true},
		"kernels of four nodes queue during a cut":           {cutDuration: 2 * time.Second, nodeCount: 4, doKernelsQueue: true},
	} {
		t.Run(name, func(t *testing.T) {
			w := newClusterSimulation(t, 1, c.nodeCount, 4)
			w.timerLateness, w.doKernelsQueueDuringCuts = 8*time.Millisecond, c.doKernelsQueue
			w.startAllSpeakers()
			w.runSimulationFor(6*time.Second, nil)
			victim, observer := w.nodeNames[0], w.nodeNames[1]
			first := w.declaredDeadDelay(victim, observer)
			left := c.cutDuration - first
			if c.doesVictimLoseMembers {
				w.runSimulationFor(3*time.Second, nil)
				w.stepNode(w.nodesByName[victim], MembersChanged{})
				left -= 3 * time.Second
			}
			w.runSimulationFor(left, nil)
			w.healCuts()
			w.runSimulationFor(3*time.Second, nil)
			confirmation := DefaultTiming().MemberSilenceTimeout + 2*DefaultTiming().BeaconInterval
			again := w.declaredDeadDelay(victim, observer)
			if again > first+confirmation {
				t.Errorf("the node is declared dead after %v, and after %v when it is cut off again, want %v more at most", first, again, confirmation)
			}
			const checkInterval = 10 * time.Millisecond // of declaredDeadDelay
			if agreed := w.now.Sub(DeathAgreedSince(w.nodesByName[observer].machine, victim)); agreed < again-first-checkInterval {
				t.Errorf("when it is declared dead, the witnesses agree for %v, want %v", agreed, again-first)
			}
		})
	}
}
