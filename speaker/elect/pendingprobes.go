package elect

import (
	"time"

	"github.com/gantry-lb/gantry/speaker/facts"
)

// pendingProbe is the purpose of a probe without a result. An address means an acquire probe or a
// recheck of a held address. A node means a reachability probe about a silent node. With neither it
// is a reachability probe for this node's lease.
type pendingProbe struct {
	addressToProbe *addressState
	// targetMAC is set if the probe asks only the host that answered an earlier one; see
	// wirecheck.go.
	targetMAC  facts.MAC
	silentNode string
	// asksGateways is set for a reachability probe of the default gateways alone; see gateway.go.
	asksGateways bool
	sentAt       time.Time
}

// pendingProbes are the probes without a result. Each probe is registered before it is sent and
// taken when its result arrives. A lost result costs memory only, up to maxPendingProbes.
type pendingProbes struct {
	lastProbeID uint64
	probesByID  map[uint64]pendingProbe
	// addressesAnsweredEarly are answered for while their probe is under way; see earlyanswer.go.
	addressesAnsweredEarly map[*addressState]struct{}
}

const maxPendingProbes = 1 << 16

// registerProbe returns the ID of a new probe.
func (s *pendingProbes) registerProbe(p pendingProbe, now time.Time) uint64 {
	s.lastProbeID++
	p.sentAt = now
	if len(s.probesByID) > maxPendingProbes { // their results were lost
		clear(s.probesByID)
	}
	s.probesByID[s.lastProbeID] = p
	return s.lastProbeID
}

// takeProbe returns the probe whose result arrived, once.
func (s *pendingProbes) takeProbe(id uint64) (pendingProbe, bool) {
	p, ok := s.probesByID[id]
	delete(s.probesByID, id)
	return p, ok
}

// probeAddress sends an acquire probe for the address.
func (s *pendingProbes) probeAddress(a *addressState, f stepContext, out *outbox) {
	s.probeAddressAtMAC(a, facts.MAC{}, f, out)
}

// probeAddressAtMAC asks only one host about the address, or all hosts if the MAC is zero.
func (s *pendingProbes) probeAddressAtMAC(a *addressState, target facts.MAC, f stepContext, out *outbox) {
	out.emitEffect(AcquireProbe{
		ID: s.registerProbe(pendingProbe{addressToProbe: a, targetMAC: target}, f.now), Address: a.ip, LinkIndexes: a.bid.OwnLinkIndexes,
		FramesPerLink: f.timing.FramesPerProbe, FrameInterval: f.timing.ProbeFrameInterval, TargetMAC: target,
	})
}

// probeReachability sends a reachability probe with the given purpose.
func (s *pendingProbes) probeReachability(p pendingProbe, f stepContext, out *outbox) {
	out.emitEffect(ReachabilityProbe{
		ID: s.registerProbe(p, f.now), FramesPerTarget: f.timing.FramesPerProbe, FrameInterval: f.timing.ProbeFrameInterval,
	})
}

// restartPendingAcquireProbes ignores the results of all probes under way, and schedules the
// acquire probes again for the given time.
func (s *pendingProbes) restartPendingAcquireProbes(due *addressWorkSchedule, at time.Time) {
	for _, p := range s.takeAll() {
		if a := p.addressToProbe; a != nil && a.acquisition != nil && a.acquisition.isProbing {
			a.acquisition.isProbing = false
			due.scheduleAddress(a, at)
		}
	}
}

// takeAll returns all probes. Their results no longer count.
func (s *pendingProbes) takeAll() map[uint64]pendingProbe {
	all := s.probesByID
	s.probesByID = map[uint64]pendingProbe{}
	return all
}
