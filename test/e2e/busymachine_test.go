package e2e

import (
	"strings"
	"testing"
	"time"
)

// tolerableSchedulingDelay is a delay that speakers bear: they declare a member dead after 200 ms
// of silence, and an offer is over after 150 ms.
const tolerableSchedulingDelay = 50 * time.Millisecond

// startMeasuringSchedulingDelay measures for how long a goroutine of this process is ready and does
// not run, until stop is called. stop returns the longest time. The programs of the lab wait about
// as long for a processor.
func startMeasuringSchedulingDelay(t *testing.T) (stop func() time.Duration) {
	const step = 5 * time.Millisecond
	ended, result := make(chan struct{}), make(chan time.Duration)
	go func() {
		ticker := time.NewTicker(step)
		defer ticker.Stop()
		var worst time.Duration
		for last := time.Now(); ; {
			select {
			case <-t.Context().Done():
				return
			case <-ended:
				result <- worst
				return
			case <-ticker.C:
			}
			now := time.Now()
			worst, last = max(worst, now.Sub(last)-step), now
		}
	}()
	return func() time.Duration {
		close(ended)
		return <-result
	}
}

// maxRoundsOnBusyMachine is how often a check is repeated on a machine that is busy. A fault of the
// product shows in each round.
const maxRoundsOnBusyMachine = 3

// repeatCheckIfMachineWasBusy calls check, which returns what speakers did wrong. If processes had
// to wait for a processor meanwhile, the speakers may have been right to assume a death, and
// another round decides.
func repeatCheckIfMachineWasBusy(t *testing.T, check func() []string) {
	t.Helper()
	for round := 1; ; round++ {
		stopMeasuring := startMeasuringSchedulingDelay(t)
		faults := check()
		delay := stopMeasuring()
		switch {
		case len(faults) == 0:
			return
		case delay <= tolerableSchedulingDelay || round == maxRoundsOnBusyMachine:
			t.Errorf("in round %d, with a delay of processes of %s: %s", round, delay, strings.Join(faults, "; "))
			return
		}
		t.Logf("round %d proves nothing, since processes waited %s for a processor: %s", round, delay, strings.Join(faults, "; "))
	}
}
