package allocate

import (
	"net/netip"
	"slices"

	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
)

// SettledAssignment is what a Service has when the controller has carried out all its Decisions.
type SettledAssignment struct {
	// Service is the Service with the addresses that its status then shows.
	Service view.Service
	// LastDecision is the last Decision about it.
	LastDecision Decision
	// WasProbed says that an acquire probe for one of its addresses comes first.
	WasProbed bool
	// GaveUpRetired says that the Service gets its addresses in its turn of a retirement.
	GaveUpRetired bool
}

// maxSettleRounds bounds how often all Services are decided about. Each round hands addresses that
// became free in the one before to waiting Services, so that a few rounds are enough.
const maxSettleRounds = 64

// SettleAssignments decides about the Services again and again, as the controller does, until
// nothing changes any more: every write succeeds, no probe finds a host, and every Service has its
// turn to give up retired addresses. It changes the Ledger. The Services are decided about in their
// order; the result has the same one. No Service may be there twice.
func SettleAssignments(services []view.Service, l *Ledger, snap *snapshot.Snapshot) []SettledAssignment {
	out := make([]SettledAssignment, len(services))
	indexByKey := make(map[view.ObjectKey]int, len(services))
	for i := range services {
		out[i].Service, indexByKey[services[i].Key] = services[i], i
	}
	l.UseSnapshot(snap)
	for range maxSettleRounds {
		isChanged := settleRound(out, l, snap)
		if !isChanged && !settleRetirementRound(out, indexByKey, l, snap) {
			break
		}
	}
	return out
}

// settleRound decides about each Service once, and says whether one got other addresses, or may now
// get one: another one may have given an address back, or may share its own. All Services are
// decided about before the first write ends, as in the controller.
func settleRound(all []SettledAssignment, l *Ledger, snap *snapshot.Snapshot) (isChanged bool) {
	freed, shareable := l.FreedAddressesVersion(), l.ShareableAddressesVersion()
	for i := range all {
		s := &all[i]
		s.decide(l, func(v *view.Service) Decision { return DecideAssignment(v, l, snap) })
		l.CommitOldAndNewAddresses(&s.Service, s.LastDecision)
	}
	for i := range all {
		isChanged = all[i].carryOut(l) || isChanged
	}
	return isChanged || freed != l.FreedAddressesVersion() || shareable != l.ShareableAddressesVersion()
}

// settleRetirementRound gives each Service with a retired address its turn, and says whether one
// got other addresses.
func settleRetirementRound(all []SettledAssignment, indexByKey map[view.ObjectKey]int, l *Ledger, snap *snapshot.Snapshot) (isChanged bool) {
	for _, p := range snap.Pools {
		if p.Retirement == nil {
			continue
		}
		for _, k := range l.ServicesHoldingRetiredAddresses(p, snap) {
			i, isKnown := indexByKey[k]
			if !isKnown {
				continue
			}
			s, hasMoved := &all[i], false
			s.decide(l, func(v *view.Service) (d Decision) {
				d, hasMoved = DecideAssignmentWithoutRetired(v, l, snap)
				return d
			})
			if s.carryOut(l) && hasMoved {
				s.GaveUpRetired, isChanged = true, true
			}
		}
	}
	return isChanged
}

// decide records the Decision, after probes that find no host.
func (s *SettledAssignment) decide(l *Ledger, decideFunc func(*view.Service) Decision) {
	s.LastDecision = decideFunc(&s.Service)
	if len(s.LastDecision.AddressesToProbe) == 0 {
		return
	}
	s.WasProbed = true
	l.WithholdAddressesUntilProbed(&s.Service, s.LastDecision.AddressesToProbe)
	for _, a := range s.LastDecision.AddressesToProbe {
		l.RecordAcquireProbeFoundNoHost(a)
	}
	s.LastDecision = decideFunc(&s.Service)
}

// carryOut records that the Decision is written, and says whether that changed the addresses.
func (s *SettledAssignment) carryOut(l *Ledger) bool {
	before := s.Service.AssignedAddresses
	l.CommitAssignment(&s.Service, s.LastDecision.Addresses, s.LastDecision.PoolOfFirstAddress)
	s.Service.AssignedAddresses = slices.Clone(s.LastDecision.Addresses)
	if len(s.LastDecision.Addresses) > 0 {
		s.Service.RecordedPool = s.LastDecision.PoolOfFirstAddress
	} else {
		s.Service.RecordedPool = ""
	}
	return !slices.EqualFunc(before, s.Service.AssignedAddresses, func(x, y netip.Addr) bool { return x == y })
}
