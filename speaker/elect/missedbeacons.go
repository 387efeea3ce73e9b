package elect

import "time"

// missedBeaconCounter counts the beacons that watched members should have sent and that this node
// did not receive. The zero value has counted none.
type missedBeaconCounter struct {
	total uint64
	// presentSilenceCountByMember has what is counted of the present silence of a member.
	presentSilenceCountByMember map[string]uint64
}

// countBeaconsMissedInGap counts the beacons between two that arrived. What was counted while the
// member was silent is not counted again.
func (m *missedBeaconCounter) countBeaconsMissedInGap(member string, lastSeq, seq uint64) {
	if missed := seq - lastSeq - 1; lastSeq != 0 && missed > m.presentSilenceCountByMember[member] {
		m.total += missed - m.presentSilenceCountByMember[member]
	}
	delete(m.presentSilenceCountByMember, member)
}

// countBeaconsMissedInSilence counts the beacons that a silent member should have sent so far.
func (m *missedBeaconCounter) countBeaconsMissedInSilence(member string, silence, interval time.Duration) {
	due := uint64(silence / interval)
	if due <= m.presentSilenceCountByMember[member] {
		return
	}
	if m.presentSilenceCountByMember == nil {
		m.presentSilenceCountByMember = map[string]uint64{}
	}
	m.total += due - m.presentSilenceCountByMember[member]
	m.presentSilenceCountByMember[member] = due
}

// forgetMember forgets the silence of a member that is gone.
func (m *missedBeaconCounter) forgetMember(member string) {
	delete(m.presentSilenceCountByMember, member)
}

// CountMissedBeacons returns how many beacons of watched members did not arrive at the node of m.
func CountMissedBeacons(m *Machine) uint64 { return m.liveness.missedBeacons.total }
