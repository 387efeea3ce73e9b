package agent

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/gantry-lb/gantry/speaker/elect"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/intent"
	"github.com/gantry-lb/gantry/speaker/layer2"
)

// stepElection steps the election and performs its effects in order. In a planned move the engine
// has to answer before the first message is sent.
func (a *Agent) stepElection(in []elect.Input) {
	var u engineUpdate
	a.passCandidaciesToEngine(in)
	for _, e := range a.machine.Step(a.options.Now(), in...) {
		switch e := e.(type) {
		case elect.HoldAddress:
			a.bindingsByAddress[e.Binding.Address] = e.Binding
			u.bindingsChanged = true
		case elect.DropAddress:
			delete(a.bindingsByAddress, e.Address)
			u.bindingsChanged = true
		case elect.RepeatAnnouncement:
			u.addressesToAnnounceAgain = append(u.addressesToAnnounceAgain, e.Address)
		default:
			a.passHeldAddressesToEngine(&u)
			a.performElectionEffect(e)
		}
	}
	a.passHeldAddressesToEngine(&u)
	a.gossipStateChanged = a.gossipStateChanged || len(in) > 0
}

// passCandidaciesToEngine passes the addresses that this node is a candidate for to the engine.
func (a *Agent) passCandidaciesToEngine(in []elect.Input) {
	for _, i := range in {
		bids, ok := i.(elect.BidsChanged)
		if !ok {
			continue
		}
		candidacies := make([]intent.Binding, 0, len(bids.Bids))
		gone := slices.Clone(bids.GoneAddresses)
		for _, b := range bids.Bids {
			if b.IsEligible(a.options.Self) && len(b.LinkIndexes) > 0 {
				candidacies = append(candidacies, intent.Binding{Address: b.Address, LinkIndexes: b.LinkIndexes})
			} else {
				gone = append(gone, b.Address)
			}
		}
		a.options.Layer2.SetCandidacies(candidacies, gone)
	}
}

// engineUpdate collects what changes for the engine.
type engineUpdate struct {
	bindingsChanged          bool
	addressesToAnnounceAgain []netip.Addr
}

// passHeldAddressesToEngine passes the held addresses to the engine. It also renews the deadline,
// so that a new holder answers at once.
func (a *Agent) passHeldAddressesToEngine(u *engineUpdate) {
	if !u.bindingsChanged && len(u.addressesToAnnounceAgain) == 0 {
		return
	}
	deadline := a.machine.LeaseDeadline(a.options.Now())
	if u.bindingsChanged {
		a.options.Layer2.ApplyBindings(slices.Collect(maps.Values(a.bindingsByAddress)), deadline)
		a.gossipStateChanged, a.statusChanged = true, true
	}
	if len(u.addressesToAnnounceAgain) > 0 {
		a.options.Layer2.SetSendDeadline(deadline)
		a.options.Layer2.RepeatAnnouncements(u.addressesToAnnounceAgain)
	}
	*u = engineUpdate{}
}

func (a *Agent) performElectionEffect(e elect.Effect) {
	switch e := e.(type) {
	case elect.SendMessage:
		a.options.Members.SendMessage(e.To, e.Payload)
	case elect.AcquireProbe:
		a.options.Layer2.SendProbe(layer2.Probe{
			ID: e.ID, Address: e.Address, Links: e.Links, Attempts: e.Attempts, Interval: e.Interval,
		})
	case elect.LivenessProbe:
		a.probeLiveness(e)
	case elect.RejoinGossip:
		a.options.Members.RejoinSeeds()
	case elect.Event:
		if e.IsForeignAnswer() { // the engine ignores addresses that it does not hold
			a.options.Layer2.DefendAddress(e.Address)
		}
		a.unreportedEvents = append(a.unreportedEvents, e)
		a.statusChanged = true
		a.metrics.countEvent(e)
		a.options.Log.Info(e.Text, "address", e.Address, "reason", eventReasonText(e))
	case elect.HandoverFinished:
		select {
		case <-a.handoverDone:
		default:
			close(a.handoverDone)
		}
	}
}

func eventReasonText(e elect.Event) string {
	if e.Reason != "" {
		return string(e.Reason)
	}
	return e.Kind
}

// livenessProbes are the liveness probes without a result. One probe of the election is several
// probes on the segment.
type livenessProbes struct {
	lastWireProbeID       uint64
	openProbeByElectionID map[uint64]*openLivenessProbe // by the election's ID
	electionIDByWireID    map[uint64]uint64             // by the ID on the segment
	firstMemberIndex      int                           // index of the member that is probed first
}

type openLivenessProbe struct{ partsWithoutResult int }

// livenessProbeIDBase keeps the IDs of liveness probes apart from those of acquire probes.
const livenessProbeIDBase = 1 << 63

// maxLivenessTargetsPerKind bounds how many gateways, and how many other nodes, one liveness probe
// asks.
const maxLivenessTargetsPerKind = 3

// probeLiveness probes the default gateways and some nodes on the same segment. Without any target
// the result is that nothing was sent.
func (a *Agent) probeLiveness(e elect.LivenessProbe) {
	var targets []layer2.Probe
	for _, l := range a.links {
		for _, g := range l.Gateways[:min(len(l.Gateways), maxLivenessTargetsPerKind)] {
			targets = append(targets, layer2.Probe{Address: g, Links: []int{l.Index}})
		}
	}
	gateways := min(len(targets), maxLivenessTargetsPerKind)
	targets = targets[:gateways]
	for _, name := range a.nodesInProbeOrder() {
		address := a.addressesByMember[name]
		for _, l := range a.links {
			onLink := slices.ContainsFunc(l.Prefixes, func(p netip.Prefix) bool { return p.Contains(address) })
			if onLink && len(targets) < gateways+maxLivenessTargetsPerKind {
				targets = append(targets, layer2.Probe{Address: address, Links: []int{l.Index}})
			}
		}
	}
	if len(targets) == 0 {
		r := facts.ProbeResult{ID: e.ID, NotSent: true}
		a.stepElection([]elect.Input{elect.ProbeFinished{Result: r}})
		return
	}
	a.livenessProbes.openProbeByElectionID[e.ID] = &openLivenessProbe{partsWithoutResult: len(targets)}
	for _, p := range targets {
		a.livenessProbes.lastWireProbeID++
		p.ID = livenessProbeIDBase + a.livenessProbes.lastWireProbeID
		p.Kind, p.Attempts, p.Interval = layer2.LivenessProbe, e.Attempts, e.Interval
		a.livenessProbes.electionIDByWireID[p.ID] = e.ID
		a.options.Layer2.SendProbe(p)
	}
}

// nodesInProbeOrder returns the other nodes in the order in which they are probed. Members come
// first, since many of the earlier members may be gone. Each call starts with another member, since
// some may be dead.
func (a *Agent) nodesInProbeOrder() []string {
	var live, gone []string
	for _, name := range slices.Sorted(maps.Keys(a.addressesByMember)) {
		switch {
		case name == a.options.Self:
		case slices.Contains(a.memberNames, name):
			live = append(live, name)
		default:
			gone = append(gone, name)
		}
	}
	if len(live) > 0 {
		first := (a.livenessProbes.firstMemberIndex + 1) % len(live)
		a.livenessProbes.firstMemberIndex = first
		live = slices.Concat(live[first:], live[:first])
	}
	return append(live, gone...)
}

// handleLivenessResult combines the results of the probes on the segment. The result for the
// election is the first answer, or no answer when all parts have ended.
func (a *Agent) handleLivenessResult(in []elect.Input, r facts.ProbeResult) []elect.Input {
	id := a.livenessProbes.electionIDByWireID[r.ID]
	delete(a.livenessProbes.electionIDByWireID, r.ID)
	p := a.livenessProbes.openProbeByElectionID[id]
	if p == nil {
		return in
	}
	if p.partsWithoutResult--; len(r.AnsweringMACs) == 0 && p.partsWithoutResult > 0 {
		return in
	}
	delete(a.livenessProbes.openProbeByElectionID, id)
	r.ID = id
	return append(in, elect.ProbeFinished{Result: r})
}

// handleEngineReport processes a report of the layer-2 engine.
func (a *Agent) handleEngineReport(in []elect.Input, r layer2.Report) []elect.Input {
	switch r := r.(type) {
	case facts.ProbeResult:
		if r.ID >= livenessProbeIDBase {
			return a.handleLivenessResult(in, r)
		}
		if r.ID >= addressProbeIDBase {
			r.ID -= addressProbeIDBase
			a.addressProbes.queue.RecordProbeResult(r, a.probingState(), a.options.Now())
			return in
		}
		return append(in, elect.ProbeFinished{Result: r})
	case facts.Conflict:
		return append(in, elect.ConflictDetected{Conflict: r})
	case layer2.PortFailed:
		a.portFaults.recordPortFailure(r)
		a.options.Log.Error("layer 2 is not usable on a link",
			"link", r.Link.Name, "family", r.Family.String(), "error", r.Err)
		a.statusChanged = true
		a.publishUsableLinks()
	case layer2.PortOpened:
		a.portFaults.recordPortOpened(r)
		a.statusChanged = true
		a.publishUsableLinks()
	}
	return in
}

// updateMembers stores the members and their addresses, which are targets of liveness probes.
func (a *Agent) updateMembers(set facts.MemberSet) elect.Input {
	a.addressProbes.members = set
	a.memberNames = make([]string, 0, len(set.Members))
	a.statusChanged, a.checkpoint.changedSinceSave = true, true
	for _, m := range set.Members {
		a.addressesByMember[m.Name] = m.Address
		a.memberNames = append(a.memberNames, m.Name)
	}
	return elect.MembersChanged{MemberSet: set}
}

// updateLinks stores the links and passes them to the engine.
func (a *Agent) updateLinks(links facts.LinkSet) {
	a.links = links
	a.portFaults.forgetGoneLinks(links)
	macs := make([]facts.MAC, 0, len(links))
	for _, l := range links {
		macs = append(macs, l.MAC)
	}
	slices.SortFunc(macs, func(x, y facts.MAC) int { return slices.Compare(x[:], y[:]) })
	if len(macs) > 0 { // without links the other nodes still know its last addresses
		a.options.Members.SetMACs(slices.Compact(macs))
	}
	a.options.Layer2.SetLinks(links)
	a.statusChanged = true
	a.publishUsableLinks()
}

// publishUsableLinks passes the links to the planner. It replaces a value that the planner has not
// read yet.
func (a *Agent) publishUsableLinks() {
	a.checkpoint.restoredBidsPending = true
	a.usableLinks.Put(a.portFaults.usableLinks(a.links))
}

func (a *Agent) buildStatus() Status {
	held := slices.SortedFunc(maps.Keys(a.bindingsByAddress), netip.Addr.Compare)
	s := Status{
		Plan:             a.plan,
		Holders:          a.machine.Holders(),
		HeldAddresses:    held,
		Links:            a.portFaults.markUnusableFamilies(a.links),
		FaultByLinkIndex: a.portFaults.faultByLinkIndex(),
		MemberNames:      a.memberNames,
		Events:           a.unreportedEvents,
	}
	for _, ip := range held {
		s.Bindings = append(s.Bindings, a.bindingsByAddress[ip])
	}
	s.RawSocketsDenied, _ = a.portFaults.findDenialOnAllLinks(a.links)
	return s
}
