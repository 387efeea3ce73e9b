package elect

import (
	"time"
)

// Timing holds the durations of the protocol.
type Timing struct {
	// BeaconInterval is the interval between two beacons from a member to its two watchers.
	BeaconInterval time.Duration
	// MemberSilenceTimeout is how long a watcher waits for a beacon before it suspects the sender:
	// four lost beacons.
	MemberSilenceTimeout time.Duration
	// PerRankAcquireDelay is the additional delay of each further candidate before it probes. It is
	// longer than a probe takes, so that the claim of the better candidate arrives first.
	PerRankAcquireDelay time.Duration
	// FramesPerProbe and ProbeFrameInterval are the number of requests in a probe and the time
	// between them.
	FramesPerProbe     int
	ProbeFrameInterval time.Duration
	// StartupWithoutMembersDelay is how long a starting speaker that reaches no other member waits
	// before it takes an address.
	StartupWithoutMembersDelay time.Duration
	// OfferTimeout is how long a holder waits for an answer to an offer.
	OfferTimeout time.Duration
	// GracePeriodOfferInterval is the time between two rounds of offers while the endpoints here
	// still serve and no other node is ready for the address.
	GracePeriodOfferInterval time.Duration
	// FirstProbeRetryDelay is the first delay after a host answered an acquire probe.
	FirstProbeRetryDelay time.Duration
	// LeaseAfterOwnBeaconTimeout bounds how long a holder may answer after its last beacon. It is
	// shorter than a takeover by another node, which takes MemberSilenceTimeout and the probe.
	LeaseAfterOwnBeaconTimeout time.Duration
	// LeaseConfirmationTimeout bounds how long a holder may answer after it sent the last message
	// or probe that was answered.
	LeaseConfirmationTimeout time.Duration
	// UnconfirmedBeforeReachabilityProbeDelay is how long after that message or probe it starts to
	// send reachability probes, and ReachabilityProbeInterval is the time between two of them.
	UnconfirmedBeforeReachabilityProbeDelay time.Duration
	ReachabilityProbeInterval               time.Duration
	// RebalanceInterval is the time between two rounds of a rebalance.
	RebalanceInterval time.Duration
	// RebalanceAfterMemberChangeDelay is how long no member must have come or gone before a
	// rebalance.
	RebalanceAfterMemberChangeDelay time.Duration
}

// DefaultTiming returns the durations for production. A takeover starts about 300 ms after the
// holder died.
func DefaultTiming() Timing {
	return Timing{
		BeaconInterval:                          50 * time.Millisecond,
		MemberSilenceTimeout:                    200 * time.Millisecond,
		PerRankAcquireDelay:                     100 * time.Millisecond,
		FramesPerProbe:                          2,
		ProbeFrameInterval:                      30 * time.Millisecond,
		StartupWithoutMembersDelay:              time.Second,
		OfferTimeout:                            150 * time.Millisecond,
		GracePeriodOfferInterval:                100 * time.Millisecond,
		FirstProbeRetryDelay:                    250 * time.Millisecond,
		LeaseAfterOwnBeaconTimeout:              200 * time.Millisecond,
		LeaseConfirmationTimeout:                300 * time.Millisecond,
		UnconfirmedBeforeReachabilityProbeDelay: 200 * time.Millisecond,
		ReachabilityProbeInterval:               100 * time.Millisecond,
		RebalanceInterval:                       time.Second,
		RebalanceAfterMemberChangeDelay:         10 * time.Second,
	}
}
