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

// runningProbe is a Probe under way.
type runningProbe struct {
	Probe
	attemptsSent  int
	nextAttemptAt time.Time
	isFinished    bool // to be deleted from probesByAge
	wasSent       bool // at least one link sent a frame
	answeringMACs []facts.MAC
	rivalMACs     []facts.MAC
	joinedPorts   []Port // the ports that joined the group of the address for this probe
}

// probeInbox has the Probes that Run has not begun yet. It has no limit of its own: a node may have
// to probe every address of a node that died.
type probeInbox struct {
	wake    *latest.Wake
	mu      sync.Mutex // guards pending
	pending []Probe
}

func newProbeInbox() *probeInbox { return &probeInbox{wake: latest.NewWake()} }

func (i *probeInbox) enqueue(p Probe) {
	i.mu.Lock()
	i.pending = append(i.pending, p)
	i.mu.Unlock()
	i.wake.Signal()
}

func (i *probeInbox) takePending() []Probe {
	i.mu.Lock()
	defer i.mu.Unlock()
	all := i.pending
	i.pending = nil
	return all
}

// probeBatchSize is how many acquire probes are sent each announcementBatchInterval. A node that
// takes thousands of addresses must not overrun the segment.
const probeBatchSize = 100

// beginProbe begins a Probe.
func (e *Engine) beginProbe(p Probe) {
	if q := e.probeByID[p.ID]; q != nil { // otherwise its result would count for the new probe
		e.endProbe(q)
	}
	q := &runningProbe{Probe: p, nextAttemptAt: e.now()}
	e.probeByID[p.ID] = q
	e.probesByAge = append(e.probesByAge, q)
	e.probesByAddress[p.Address] = append(e.probesByAddress[p.Address], q)
	e.probedAddressesChanged = true
	for _, l := range p.Links {
		e.ensurePort(portKey{l, ipfamily.FamilyOf(p.Address)})
	}
}

// endProbe ends a Probe.
func (e *Engine) endProbe(q *runningProbe) {
	delete(e.probeByID, q.ID)
	q.isFinished = true
	for _, p := range q.joinedPorts {
		p.LeaveGroup(q.Address)
	}
	others := slices.DeleteFunc(e.probesByAddress[q.Address], func(o *runningProbe) bool { return o == q })
	if e.probesByAddress[q.Address] = others; len(others) == 0 {
		delete(e.probesByAddress, q.Address)
		e.probedAddressesChanged = true
	}
}

// advanceProbes sends the frames that are due, reports the probes that are finished, and returns
// when the next step is due.
func (e *Engine) advanceProbes(now time.Time) time.Time {
	if e.probedAddressesChanged { // before the first frame, which may be answered at once
		e.probedAddressesChanged = false
		e.publishProbedAddresses()
	}
	var next time.Time
	room := probeBatchSize
	if now.Before(e.nextProbeBatchAt) {
		room = 0
	}
	for _, q := range e.probesByAge { // the oldest first, so that probes under way finish
		if q.isFinished {
			continue
		}
		due, at := !now.Before(q.nextAttemptAt), q.nextAttemptAt
		switch more := due && len(q.answeringMACs) == 0 && q.attemptsSent < q.Attempts; {
		case more && q.Kind == AcquireProbe && room == 0:
			at = e.nextProbeBatchAt
		case more:
			// liveness probes are not paced: they must not wait behind acquire probes
			if q.Kind == AcquireProbe {
				if room--; room == 0 {
					e.nextProbeBatchAt = now.Add(announcementBatchInterval)
				}
			}
			q.attemptsSent++
			q.nextAttemptAt = now.Add(q.Interval)
			at = q.nextAttemptAt
			for _, l := range q.Links {
				e.sendProbeFrame(q, l)
			}
		case len(q.answeringMACs) > 0 || due:
			e.endProbe(q)
			e.reports.Put(facts.ProbeResult{ID: q.ID, Address: q.Address, AnsweringMACs: q.answeringMACs, RivalMACs: q.rivalMACs, NotSent: !q.wasSent})
			continue
		}
		if next.IsZero() || at.Before(next) {
			next = at
		}
	}
	e.probesByAge = slices.DeleteFunc(e.probesByAge, func(q *runningProbe) bool { return q.isFinished })
	return next
}

func (e *Engine) sendProbeFrame(q *runningProbe, link int) {
	p := e.ports[portKey{link, ipfamily.FamilyOf(q.Address)}]
	if p == nil || p.socket == nil || !q.Address.IsValid() {
		return
	}
	// Other hosts that probe for the address send to its group, too (RFC 4862 section 5.4.2).
	if q.Kind == AcquireProbe && !slices.Contains(q.joinedPorts, p.socket) && p.socket.JoinGroup(q.Address) == nil {
		q.joinedPorts = append(q.joinedPorts, p.socket)
	}
	f := Frame{
		EthernetDestination: RequestDestinationMAC(q.Address), EthernetSource: p.link.MAC, Operation: Request,
		SenderMAC: p.link.MAC, SenderIP: unspecifiedAddress(p.key.family), TargetIP: q.Address,
	}
	if q.Kind == LivenessProbe {
		f.SenderIP = probeSourceAddress(p.link, q.Address)
	}
	q.wasSent = e.writeFrame(p, f) || q.wasSent
}

// probeSourceAddress returns the link's address in the subnet of a, or else any
// address of the same family.
func probeSourceAddress(l facts.Link, a netip.Addr) netip.Addr {
	own := unspecifiedAddress(ipfamily.FamilyOf(a))
	for _, p := range l.Prefixes {
		if p.Contains(a) {
			return p.Addr()
		}
		if ipfamily.FamilyOf(p.Addr()) == ipfamily.FamilyOf(a) {
			own = p.Addr()
		}
	}
	return own
}

// recordProbeAnswer counts the sender of a frame as an answer to the probes of its address.
func (e *Engine) recordProbeAnswer(a netip.Addr, mac facts.MAC) {
	for _, q := range e.probesByAddress[a] {
		if !slices.Contains(q.answeringMACs, mac) && len(q.answeringMACs) < probeHostsLimit {
			q.answeringMACs = append(q.answeringMACs, mac)
			e.hasNewWork = true
		}
	}
}

// recordRivalProber stores a host that itself probes whether it may use an address that is being
// probed here (RFC 5227 section 2.1.1, RFC 4862 section 5.4.3).
func (e *Engine) recordRivalProber(a netip.Addr, mac facts.MAC) {
	for _, q := range e.probesByAddress[a] {
		if q.Kind == AcquireProbe && !slices.Contains(q.rivalMACs, mac) && len(q.rivalMACs) < probeHostsLimit {
			q.rivalMACs = append(q.rivalMACs, mac)
		}
	}
}

// probeHostsLimit bounds how many hosts are listed in one result. One would do, but all members of
// the gossip may probe at once.
const probeHostsLimit = 256
