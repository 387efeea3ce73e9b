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

// stepElection feeds the election and performs its effects in order: the order matters in a planned move. What is answered for
// is handed over before the first message goes out.
func (a *Agent) stepElection(in []elect.Input) {
	var h engineUpdate
	a.reportCandidacies(in)
	for _, e := range a.machine.Step(a.options.Now(), in...) {
		switch e := e.(type) {
		case elect.HoldAddress:
			a.bindingsByAddress[e.Binding.Address] = e.Binding
			h.bindingsChanged = true
		case elect.DropAddress:
			delete(a.bindingsByAddress, e.Address)
			h.bindingsChanged = true
		case elect.RepeatAnnouncement:
			h.announceAgain = append(h.announceAgain, e.Address)
		default:
			a.updateEngine(&h)
			a.performEffect(e)
		}
	}
	a.updateEngine(&h)
	a.stateChanged = a.stateChanged || len(in) > 0
}

// reportCandidacies tells the engine for what the node is a candidate.
func (a *Agent) reportCandidacies(in []elect.Input) {
	for _, i := range in {
		bids, ok := i.(elect.BidsChanged)
		if !ok {
			continue
		}
		candidate, gone := make([]intent.Binding, 0, len(bids.Bids)), slices.Clone(bids.GoneAddresses)
		for _, b := range bids.Bids {
			if b.IsEligible(a.options.Self) && len(b.Links) > 0 {
				candidate = append(candidate, intent.Binding{Address: b.Address, Links: b.Links})
			} else {
				gone = append(gone, b.Address)
			}
		}
		a.options.Layer2.SetCandidacies(candidate, gone)
	}
}

// engineUpdate gathers what the engine has to be told.
type engineUpdate struct {
	bindingsChanged bool
	announceAgain   []netip.Addr
}

// updateEngine tells the engine what to answer for. The fence is renewed first: a holder that has just begun must answer at once.
func (a *Agent) updateEngine(h *engineUpdate) {
	if !h.bindingsChanged && len(h.announceAgain) == 0 {
		return
	}
	a.options.Layer2.SetSendDeadline(a.machine.LeaseDeadline(a.options.Now()))
	if h.bindingsChanged {
		claims := make([]intent.Binding, 0, len(a.bindingsByAddress))
		for _, c := range a.bindingsByAddress {
			claims = append(claims, c)
		}
		a.options.Layer2.ApplyBindings(claims)
		a.stateChanged, a.statusChanged = true, true
	}
	if len(h.announceAgain) > 0 {
		a.options.Layer2.RepeatAnnouncements(h.announceAgain)
	}
	*h = engineUpdate{}
}

func (a *Agent) performEffect(e elect.Effect) {
	switch e := e.(type) {
	case elect.SendMessage:
		a.options.Members.SendMessage(e.To, e.Payload)
	case elect.AcquireProbe:
		a.options.Layer2.SendProbe(layer2.Probe{ID: e.ID, Address: e.Address, Links: e.Links, Attempts: e.Attempts, Interval: e.Interval})
	case elect.LivenessProbe:
		a.probeLiveness(e)
	case elect.RejoinGossip:
		a.options.Members.Rejoin()
	case elect.Event:
		if e.IsForeignAnswer() { // the engine passes over what is not held
			a.options.Layer2.DefendAddress(e.Address)
		}
		a.events = append(a.events, e)
		a.statusChanged = true
		a.metrics.countEvent(e)
		a.options.Log.Info(e.Text, "address", e.Address, "reason", eventReason(e))
	case elect.HandoverFinished:
		select {
		case <-a.handedOver:
		default:
			close(a.handedOver)
		}
	}
}

func eventReason(n elect.Event) string {
	if n.Reason != "" {
		return string(n.Reason)
	}
	return n.Kind
}

// livenessProbes are the questions whether anybody answers on the wire. One question of the election is several on the wire.
type livenessProbes struct {
	lastWireID         uint64
	openByElectionID   map[uint64]*openLivenessProbe // by the election's ID
	electionIDByWireID map[uint64]uint64             // the wire's ID -> the election's
	firstMember        int                           // which of the other nodes was asked first
}

type openLivenessProbe struct{ partsLeft int }

// livenessProbeIDBase keeps their IDs apart from those of the election's own questions.
const livenessProbeIDBase = 1 << 63

// maxTargetsPerKind bounds how many gateways, and how many other nodes, are asked.
const maxTargetsPerKind = 3

// probeLiveness asks the default gateways, and nodes on the same segment. When there are none the answer is that nobody was asked.
func (a *Agent) probeLiveness(e elect.LivenessProbe) {
	var targets []layer2.Probe
	for _, l := range a.links {
		for _, g := range l.Gateways[:min(len(l.Gateways), maxTargetsPerKind)] {
			targets = append(targets, layer2.Probe{Address: g, Links: []int{l.Index}})
		}
	}
	gateways := min(len(targets), maxTargetsPerKind)
	targets = targets[:gateways]
	for _, name := range a.membersInTurn() {
		peer := a.addressesByMember[name]
		for _, l := range a.links {
			on := slices.ContainsFunc(l.Prefixes, func(p netip.Prefix) bool { return p.Contains(peer) })
			if on && len(targets) < gateways+maxTargetsPerKind {
				targets = append(targets, layer2.Probe{Address: peer, Links: []int{l.Index}})
			}
		}
	}
	if len(targets) == 0 {
		a.stepElection([]elect.Input{elect.ProbeFinished{Result: facts.ProbeResult{ID: e.ID, NotSent: true}}})
		return
	}
	a.livenessProbes.openByElectionID[e.ID] = &openLivenessProbe{partsLeft: len(targets)}
	for _, p := range targets {
		a.livenessProbes.lastWireID++
		p.ID, p.Attempts, p.Interval, p.Kind = livenessProbeIDBase+a.livenessProbes.lastWireID, e.Attempts, e.Interval, layer2.LivenessProbe
		a.livenessProbes.electionIDByWireID[p.ID] = e.ID
		a.options.Layer2.SendProbe(p)
	}
}

// membersInTurn lists the other nodes in the order in which they are asked: members first, since of those that were members many may
// be gone, and others first each time, since some may be dead.
func (a *Agent) membersInTurn() []string {
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
		a.livenessProbes.firstMember = (a.livenessProbes.firstMember + 1) % len(live)
		live = slices.Concat(live[a.livenessProbes.firstMember:], live[:a.livenessProbes.firstMember])
	}
	return append(live, gone...)
}

// handleLivenessResult turns the wire's answer to a part of a question into the election's: the first that came, or that there was none.
func (a *Agent) handleLivenessResult(in []elect.Input, r facts.ProbeResult) []elect.Input {
	id := a.livenessProbes.electionIDByWireID[r.ID]
	delete(a.livenessProbes.electionIDByWireID, r.ID)
	q := a.livenessProbes.openByElectionID[id]
	if q == nil {
		return in
	}
	if q.partsLeft--; len(r.Answers) == 0 && q.partsLeft > 0 {
		return in
	}
	delete(a.livenessProbes.openByElectionID, id)
	r.ID = id
	return append(in, elect.ProbeFinished{Result: r})
}

// handleReport takes in what the layer-2 engine found.
func (a *Agent) handleReport(in []elect.Input, r layer2.Report) []elect.Input {
	switch r := r.(type) {
	case facts.ProbeResult:
		if r.ID >= livenessProbeIDBase {
			return a.handleLivenessResult(in, r)
		}
		if r.ID >= addressProbeIDBase {
			r.ID -= addressProbeIDBase
			a.addressProbes.queue.RecordResult(r, a.probingState(), a.options.Now())
			return in
		}
		return append(in, elect.ProbeFinished{Result: r})
	case facts.Conflict:
		return append(in, elect.ConflictDetected{Conflict: r})
	case layer2.PortFailed:
		a.portStates.recordFailure(r)
		a.options.Log.Error("layer 2 is not usable on a link", "link", r.Link.Name, "family", r.Family.String(), "error", r.Err)
		a.statusChanged = true
		a.publishUsableLinks()
	case layer2.PortOpened:
		a.portStates.recordOpened(r)
		a.statusChanged = true
		a.publishUsableLinks()
	}
	return in
}

// updateMembers notes where the members are: they can be asked on the wire when the gossip is silent.
func (a *Agent) updateMembers(set facts.MemberSet) elect.Input {
	a.addressProbes.members = set
	a.memberNames, a.statusChanged, a.checkpoint.contentChanged = make([]string, 0, len(set.Members)), true, true
	for _, m := range set.Members {
		a.addressesByMember[m.Name] = m.Address
		a.memberNames = append(a.memberNames, m.Name)
	}
	return elect.MembersChanged{Set: set}
}

// updateLinks takes in a new set of links and hands it to the engine.
func (a *Agent) updateLinks(links facts.LinkSet) {
	a.links = links
	a.portStates.pruneLinks(links)
	macs := make([]facts.MAC, 0, len(links))
	for _, l := range links {
		macs = append(macs, l.MAC)
	}
	slices.SortFunc(macs, func(x, y facts.MAC) int { return slices.Compare(x[:], y[:]) })
	if len(macs) > 0 { // a node without links is still known by those it had
		a.options.Members.SetMACs(slices.Compact(macs))
	}
	a.options.Layer2.SetLinks(links)
	a.statusChanged = true
	a.publishUsableLinks()
}

// publishUsableLinks hands the links to the planning, in the place of those that it did not take yet.
func (a *Agent) publishUsableLinks() {
	u := a.portStates.usableLinks(a.links)
	a.checkpoint.restoredBidsChanged = true
	for {
		select {
		case a.usableLinks <- u:
			return
		default:
		}
		select {
		case <-a.usableLinks:
		default:
		}
	}
}

func (a *Agent) buildStatus() Status {
	held := slices.SortedFunc(maps.Keys(a.bindingsByAddress), netip.Addr.Compare)
	s := Status{Plan: a.plan, Holders: a.machine.Holders(), HeldAddresses: held, Events: a.events, Links: a.portStates.markLinks(a.links), FaultsByLink: a.portStates.faultsByLink(), MemberNames: a.memberNames}
	for _, ip := range held {
		s.Bindings = append(s.Bindings, a.bindingsByAddress[ip])
	}
	s.RawSocketsDenied, _ = a.portStates.deniedEverywhere(a.links)
	return s
}
