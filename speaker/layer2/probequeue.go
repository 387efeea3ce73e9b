package layer2

import (
	"net/netip"
	"slices"
	"time"

	"github.com/gantry-lb/gantry/speaker/facts"
)

const (
	// probeBatchSize is how many acquire probes are sent each announcementBatchInterval. A node
	// that takes thousands of addresses must not overrun the segment.
	probeBatchSize = 100
	// maxMACsPerProbeResult bounds how many hosts are listed in one result. One would do, but all
	// members of the gossip may probe at once.
	maxMACsPerProbeResult = 256
)

// probeQueue decides when the frames of each Probe are sent and when a Probe is finished. It reads
// no clock and sends nothing. Call Advance at the time that the last call returned, and after
// beginProbe and after recordAnswer returned true. The zero value is not usable.
type probeQueue struct {
	probeByID map[uint64]*runningProbe
	// probesByAge has the same probes, the oldest first, and replaced ones until the next Advance.
	probesByAge []*runningProbe
	// probesByAddress has the running probes of each address.
	probesByAddress map[netip.Addr][]*runningProbe
	// probedAddresses are the keys of probesByAddress at the last call of
	// updateProbedAddressesIfChanged. It is never edited, only replaced.
	probedAddresses        map[netip.Addr]struct{}
	probedAddressesChanged bool
	nextBatchAt            time.Time // when the next acquire probes may be sent
}

// runningProbe is a Probe under way.
type runningProbe struct {
	Probe
	framesSentPerLink int
	nextFrameAt       time.Time
	isFinished        bool
	answeringMACs     []facts.MAC
	rivalProberMACs   []facts.MAC

	// The sender of the frames sets the fields below.
	sentOnSomeLink      bool   // at least one link sent a frame
	portsInAddressGroup []Port // the ports that joined the group of the address for this probe
}

func newProbeQueue() *probeQueue {
	return &probeQueue{probeByID: map[uint64]*runningProbe{}, probesByAddress: map[netip.Addr][]*runningProbe{}}
}

// beginProbe adds a Probe, which is due at once. It returns the running probe with the same ID, if
// there is one: that probe ends without a result, which would count for the new one.
func (q *probeQueue) beginProbe(p Probe, now time.Time) (replaced *runningProbe) {
	if replaced = q.probeByID[p.ID]; replaced != nil {
		q.endProbe(replaced)
	}
	r := &runningProbe{Probe: p, nextFrameAt: now}
	q.probeByID[p.ID] = r
	q.probesByAge = append(q.probesByAge, r)
	q.probesByAddress[p.Address] = append(q.probesByAddress[p.Address], r)
	q.probedAddressesChanged = true
	return replaced
}

func (q *probeQueue) endProbe(r *runningProbe) {
	delete(q.probeByID, r.ID)
	r.isFinished = true
	others := slices.DeleteFunc(q.probesByAddress[r.Address], func(o *runningProbe) bool { return o == r })
	if q.probesByAddress[r.Address] = others; len(others) == 0 {
		delete(q.probesByAddress, r.Address)
		q.probedAddressesChanged = true
	}
}

// TakeDue returns the probes that are due, the oldest first, and the time of the next call, which
// is zero when no probe is left. A returned probe is finished, or has to be sent on its links.
func (q *probeQueue) TakeDue(now time.Time) (due []*runningProbe, next time.Time) {
	room := probeBatchSize
	if now.Before(q.nextBatchAt) {
		room = 0
	}
	for _, r := range q.probesByAge { // the oldest first, so that probes under way finish
		if r.isFinished {
			continue
		}
		isDue, at := !now.Before(r.nextFrameAt), r.nextFrameAt
		switch more := isDue && len(r.answeringMACs) == 0 && r.framesSentPerLink < r.FramesPerLink; {
		case more && r.Kind == ProbeKindAcquire && room == 0:
			at = q.nextBatchAt
		case more:
			// reachability probes are not paced: they must not wait behind acquire probes
			if r.Kind == ProbeKindAcquire {
				if room--; room == 0 {
					q.nextBatchAt = now.Add(announcementBatchInterval)
				}
			}
			r.framesSentPerLink++
			r.nextFrameAt = now.Add(r.FrameInterval)
			at = r.nextFrameAt
			due = append(due, r)
		case len(r.answeringMACs) > 0 || isDue:
			q.endProbe(r)
			due = append(due, r)
			continue
		}
		if next.IsZero() || at.Before(next) {
			next = at
		}
	}
	q.probesByAge = slices.DeleteFunc(q.probesByAge, func(r *runningProbe) bool { return r.isFinished })
	return due, next
}

// updateProbedAddressesIfChanged replaces probedAddresses and reports true if probes of other
// addresses run since the last call.
func (q *probeQueue) updateProbedAddressesIfChanged() bool {
	if !q.probedAddressesChanged {
		return false
	}
	q.probedAddressesChanged = false
	q.probedAddresses = make(map[netip.Addr]struct{}, len(q.probesByAddress))
	for a := range q.probesByAddress {
		q.probedAddresses[a] = struct{}{}
	}
	return true
}

// recordAnswer counts a host as an answer to the probes of an address. It reports true if a probe
// is finished because of it.
func (q *probeQueue) recordAnswer(a netip.Addr, mac facts.MAC) bool {
	isNew := false
	for _, r := range q.probesByAddress[a] {
		if !slices.Contains(r.answeringMACs, mac) && len(r.answeringMACs) < maxMACsPerProbeResult {
			r.answeringMACs = append(r.answeringMACs, mac)
			isNew = true
		}
	}
	return isNew
}

// recordRival stores a host that itself probes whether it may use an address that is being probed
// here (RFC 5227 section 2.1.1, RFC 4862 section 5.4.3).
func (q *probeQueue) recordRival(a netip.Addr, mac facts.MAC) {
	for _, r := range q.probesByAddress[a] {
		if r.Kind == ProbeKindAcquire && !slices.Contains(r.rivalProberMACs, mac) && len(r.rivalProberMACs) < maxMACsPerProbeResult {
			r.rivalProberMACs = append(r.rivalProberMACs, mac)
		}
	}
}

// result is the outcome of a finished probe.
func (r *runningProbe) result() facts.ProbeResult {
	return facts.ProbeResult{
		ID: r.ID, Address: r.Address, AnsweringMACs: r.answeringMACs, RivalProberMACs: r.rivalProberMACs, NoFrameSent: !r.sentOnSomeLink,
	}
}
