package elect

import (
	"net/netip"
	"testing"
	"time"

	"github.com/gantry-lb/gantry/speaker/facts"
)

// newTestLease returns the lease of a node that has just taken its first address, and the facts of
// that step.
func newTestLease() (*lease, stepContext) {
	_, f := newTestLivenessWatch("b")
	l := &lease{}
	l.startWithFirstAddress(f.now, 1)
	return l, f
}

func TestLeaseExpiresWithoutAnswers(t *testing.T) {
	l, f := newTestLease()
	if end := l.deadline(f, f.now); !end.Equal(testStart.Add(f.timing.LeaseAfterOwnBeaconTimeout)) {
		t.Errorf("this node may answer until %v, want LeaseTimeout after its last beacon", end)
	}
	f.now = testStart.Add(f.timing.UnconfirmedBeforeReachabilityProbeDelay)
	if o := l.maintainLease(f, 1, 4); o.reachabilityProbeCount != 1 {
		t.Errorf("%d reachability probes are sent when acknowledgements are missing, want 1", o.reachabilityProbeCount)
	}
	if end := l.deadline(f, f.now); !end.Equal(testStart.Add(f.timing.LeaseConfirmationTimeout)) {
		t.Errorf("this node may answer until %v, want ConfirmationTimeout after the last confirmation", end)
	}
	f.now = testStart.Add(f.timing.LeaseConfirmationTimeout)
	if o := l.maintainLease(f, 1, 4); !l.isExpired || !o.askMembersForClaims {
		t.Error("without answers this node goes on to answer, or asks no member for its claims")
	}
	if end := l.deadline(f, f.now); !end.IsZero() {
		t.Errorf("with an expired lease this node may answer until %v, want not at all", end)
	}
}

func TestLeaseStaysWhileAnswersArrive(t *testing.T) {
	l, f := newTestLease()
	for range 20 {
		f.now = f.now.Add(f.timing.ReachabilityProbeInterval)
		l.recordConfirmation(f.now)
		if o := l.maintainLease(f, 1, 4); l.isExpired || o != (leaseActions{}) {
			t.Fatalf("with acknowledgements the lease expires or asks for %+v", o)
		}
	}
}

func TestLeaseIsRegainedByASyncAfterThePause(t *testing.T) {
	l, f := newTestLease()
	l.expireLease(f.now, 4)
	if l.recordFinishedSync(3, f.now, f.now) || !l.isExpired {
		t.Error("an answer to a request from before the pause lets this node answer again")
	}
	if !l.recordFinishedSync(4, f.now, f.now) || l.isExpired {
		t.Error("the claims of a member do not let this node answer again")
	}
	if l.recordFinishedSync(5, f.now, f.now) {
		t.Error("a lease that is valid is regained once more")
	}
}

func TestLeaseIsRegainedByProbesInIsolation(t *testing.T) {
	l, f := newTestLease()
	held := &addressState{ip: netip.MustParseAddr("192.0.2.1"), isHeldBySelf: true, isRechecking: true}
	l.expireLease(f.now, 4)
	f.now = f.now.Add(f.timing.LeaseConfirmationTimeout)
	if o := l.maintainLease(f, 1, 4); !o.recheckHeldAddresses {
		t.Error("when no member answers, the held addresses are not probed")
	}
	f.now = f.now.Add(time.Millisecond)
	if o := l.maintainLease(f, 1, 4); o.recheckHeldAddresses || o.isRegained {
		t.Errorf("while the probes run the lease asks for %+v", o)
	}
	if l.handleRecheckResult(held, facts.ProbeResult{}, f.now) {
		t.Error("a probe without an answer shows another holder")
	}
	if o := l.maintainLease(f, 1, 4); !o.isRegained || l.isExpired || !l.isAnsweringInIsolation {
		t.Error("after probes without an answer this node does not answer again")
	}
	l.handleReachabilityProbeResult(f.now, f.now, 4)
	if !l.isExpired {
		t.Error("when others can be reached again, this node answers before it knows what they did")
	}
}

func TestLeaseRecheckFindsAnotherHolder(t *testing.T) {
	l, f := newTestLease()
	held := &addressState{ip: netip.MustParseAddr("192.0.2.1"), isHeldBySelf: true, isRechecking: true}
	l.expireLease(f.now, 4)
	answered := facts.ProbeResult{AnsweringMACs: []facts.MAC{{2}}}
	if l.handleRecheckResult(held, answered, f.now) {
		t.Error("a late result counts while no recheck runs")
	}
	f.now = f.now.Add(f.timing.LeaseConfirmationTimeout)
	l.maintainLease(f, 1, 4)
	if !l.handleRecheckResult(held, answered, f.now) {
		t.Error("an answer to the probe of a held address shows no other holder")
	}
	l.maintainLease(f, 1, 4)
	if l.isExpired {
		t.Error("after all results arrived this node does not answer for its other addresses")
	}
	l.expireLease(f.now, 5)
	f.now = f.now.Add(f.timing.UnconfirmedBeforeReachabilityProbeDelay)
	l.maintainLease(f, 1, 5)
	l.handleRecheckResult(held, facts.ProbeResult{NoFrameSent: true}, f.now)
	if l.maintainLease(f, 1, 5); !l.isExpired {
		t.Error("a probe that no link could send lets this node answer again")
	}
}
