package layer2

import (
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/gantry-lb/gantry/internal/ipfamily"
	"github.com/gantry-lb/gantry/internal/latest"
	"github.com/gantry-lb/gantry/speaker/facts"
)

// waitingProbeQueue has the Probes that Run has not begun yet. It has no limit of its own: a node
// may have to probe every address of a node that died.
type waitingProbeQueue struct {
	pendingSignal *latest.Wake
	mu            sync.Mutex // guards pending
	pending       []Probe
}

func newWaitingProbeQueue() *waitingProbeQueue {
	return &waitingProbeQueue{pendingSignal: latest.NewWake()}
}

func (i *waitingProbeQueue) enqueue(p Probe) {
	i.mu.Lock()
	i.pending = append(i.pending, p)
	i.mu.Unlock()
	i.pendingSignal.Signal()
}

func (i *waitingProbeQueue) takePendingProbes() []Probe {
	i.mu.Lock()
	defer i.mu.Unlock()
	all := i.pending
	i.pending = nil
	return all
}

// beginProbe begins a Probe.
func (e *Engine) beginProbe(p Probe) {
	if replaced := e.runningProbes.beginProbe(p, e.now()); replaced != nil {
		leaveSolicitedNodeGroupsOfProbe(replaced)
	}
	for _, l := range p.LinkIndexes {
		e.openPortIfNeeded(portKey{l, ipfamily.FamilyOf(p.Address)})
	}
}

// leaveSolicitedNodeGroupsOfProbe leaves the groups that a probe joined.
func leaveSolicitedNodeGroupsOfProbe(q *runningProbe) {
	for _, p := range q.portsInAddressGroup {
		p.LeaveGroupOfAddress(q.Address)
	}
}

// advanceProbes sends the frames that are due, reports the probes that are finished, and returns
// when the next step is due.
func (e *Engine) advanceProbes(now time.Time) time.Time {
	// before the first frame, which may be answered at once
	if e.runningProbes.updateProbedAddressesIfChanged() {
		e.publishResponderTable()
	}
	steps, next := e.runningProbes.TakeDue(now)
	for _, q := range steps {
		if q.isFinished {
			leaveSolicitedNodeGroupsOfProbe(q)
			e.reports.PutDroppingOldest(q.result())
			continue
		}
		for _, l := range q.LinkIndexes {
			e.sendProbeFrame(q, l)
		}
	}
	return next
}

func (e *Engine) sendProbeFrame(q *runningProbe, link int) {
	p := e.ports[portKey{link, ipfamily.FamilyOf(q.Address)}]
	if p == nil || p.openedPort == nil || !q.Address.IsValid() {
		return
	}
	// Other hosts that probe for the address send to its group, too (RFC 4862 section 5.4.2).
	if q.Kind == ProbeKindAcquire && !slices.Contains(q.portsInAddressGroup, p.openedPort) && p.openedPort.JoinGroupOfAddress(q.Address) == nil {
		q.portsInAddressGroup = append(q.portsInAddressGroup, p.openedPort)
	}
	f := ARPOrNDPFrame{
		EthernetDestination: RequestDestinationMAC(q.Address), EthernetSource: p.link.MAC, Operation: Request,
		SenderMAC: p.link.MAC, SenderIP: unspecifiedAddress(p.key.family), TargetIP: q.Address,
	}
	if q.TargetMAC != (facts.MAC{}) {
		f.EthernetDestination = q.TargetMAC
	}
	if q.Kind == ProbeKindReachability || q.TargetMAC != (facts.MAC{}) {
		f.SenderIP = probeSourceAddress(p.link, q.Address)
	}
	q.sentOnSomeLink = e.writeFrame(p, f) || q.sentOnSomeLink
}

// probeSourceAddress returns the link's address in the subnet of a, or else any
// address of the same family.
func probeSourceAddress(l facts.Link, a netip.Addr) netip.Addr {
	own := unspecifiedAddress(ipfamily.FamilyOf(a))
	for _, p := range l.AddressesWithPrefixLength {
		if p.Contains(a) {
			return p.Addr()
		}
		if ipfamily.FamilyOf(p.Addr()) == ipfamily.FamilyOf(a) {
			own = p.Addr()
		}
	}
	return own
}
