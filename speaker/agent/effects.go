package agent

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/gantry-lb/gantry/speaker/elect"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/intent"
	"github.com/gantry-lb/gantry/speaker/layer2"
)

// stepElection steps the election and performs its effects in order. In a planned move the engine
// has to answer before the first message is sent.
func (a *Agent) stepElection(in []elect.Input) {
	var u layer2EngineUpdate
	a.passCandidaciesToEngine(in)
	for _, e := range a.electionMachine.Step(a.options.Now(), in...) {
		switch e := e.(type) {
		case elect.HoldAddress:
			a.heldBindingByAddress[e.Binding.Address] = e.Binding
			u.bindingsChanged = true
		case elect.DropAddress:
			delete(a.heldBindingByAddress, e.Address)
			u.bindingsChanged = true
		case elect.RepeatAnnouncement:
			u.addressesToAnnounceAgain = append(u.addressesToAnnounceAgain, e.Address)
		default:
			a.passHeldAddressesToEngine(&u)
			a.performElectionEffect(e)
		}
	}
	a.passHeldAddressesToEngine(&u)
	a.metrics.missedBeaconCount.Store(elect.CountMissedBeacons(a.electionMachine))
	a.metrics.electionLatenessNanoseconds.Store(int64(elect.LongestRecentStepDelay(a.electionMachine)))
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
		gone := slices.Clone(bids.AddressesWithoutBid)
		for _, b := range bids.Bids {
			if b.IsCandidate(a.options.NodeName) && len(b.OwnLinkIndexes) > 0 {
				candidacies = append(candidacies, intent.Binding{Address: b.Address, LinkIndexes: b.OwnLinkIndexes})
			} else {
				gone = append(gone, b.Address)
			}
		}
		a.options.Layer2Engine.UpdateCandidacies(candidacies, gone)
	}
}

// layer2EngineUpdate collects what changes for the engine.
type layer2EngineUpdate struct {
	bindingsChanged          bool
	addressesToAnnounceAgain []netip.Addr
}

// passHeldAddressesToEngine passes the held addresses to the engine. It also renews the deadline,
// so that a new holder answers at once.
func (a *Agent) passHeldAddressesToEngine(u *layer2EngineUpdate) {
	if !u.bindingsChanged && len(u.addressesToAnnounceAgain) == 0 {
		return
	}
	deadline := a.electionMachine.LeaseDeadline(a.options.Now())
	if u.bindingsChanged {
		a.options.Layer2Engine.SetBindingsAndSendDeadline(slices.Collect(maps.Values(a.heldBindingByAddress)), deadline)
		a.gossipStateChanged, a.statusChanged, a.traffic.hasChanged = true, true, true
	}
	if len(u.addressesToAnnounceAgain) > 0 {
		a.options.Layer2Engine.SetSendDeadline(deadline)
		a.options.Layer2Engine.RepeatAnnouncements(u.addressesToAnnounceAgain)
	}
	*u = layer2EngineUpdate{}
}

func (a *Agent) performElectionEffect(e elect.Effect) {
	switch e := e.(type) {
	case elect.SendMessage:
		switch e.Priority {
		case elect.PriorityUrgent:
			a.options.GossipMembership.SendUrgentMessage(e.To, e.Payload)
		case elect.PriorityNormal:
			a.options.GossipMembership.SendNormalPriorityMessage(e.To, e.Payload)
		default:
			a.options.GossipMembership.SendBulkMessage(e.To, e.Payload)
		}
	case elect.AcquireProbe:
		a.options.Layer2Engine.SendProbe(layer2.Probe{
			ID: e.ID, Address: e.Address, LinkIndexes: e.LinkIndexes, FramesPerLink: e.FramesPerLink, FrameInterval: e.FrameInterval, TargetMAC: e.TargetMAC,
		})
	case elect.ReachabilityProbe:
		a.sendReachabilityProbes(e)
	case elect.RejoinGossip:
		a.options.GossipMembership.ContactMissingSeeds()
	case elect.Event:
		if e.IsAnswerOfAnotherHost() { // the engine ignores addresses that it does not hold
			a.options.Layer2Engine.DefendAddress(e.Address)
		}
		a.unreportedEvents = AppendEventBoundingConflicts(a.unreportedEvents, e)
		a.statusChanged = true
		a.metrics.countEvent(e)
		a.eventLog.logEvent(e, &a.plan, a.options.Now())
	case elect.ShutdownHandoverFinished:
		select {
		case <-a.handoverDoneSignal:
		default:
			close(a.handoverDoneSignal)
		}
	}
}

// maxUnreportedConflicts bounds how many answers of other hosts wait to be reported. A broken host
// may send thousands a second.
const maxUnreportedConflicts = 256

// AppendEventBoundingConflicts appends an event to those that are not reported yet. Beyond the
// bound, answers of other hosts are left out: a host that goes on to answer is reported later.
func AppendEventBoundingConflicts(waiting []elect.Event, e elect.Event) []elect.Event {
	if e.IsAnswerOfAnotherHost() && len(waiting) >= maxUnreportedConflicts {
		conflicts := 0
		for _, w := range waiting {
			if w.IsAnswerOfAnotherHost() {
				conflicts++
			}
		}
		if conflicts >= maxUnreportedConflicts {
			return waiting
		}
	}
	return append(waiting, e)
}

// reachabilityProbes are the reachability probes without a result. One probe of the election is
// several probes on the segment.
type reachabilityProbes struct {
	lastSentProbeID              uint64
	openProbeByElectionProbeID   map[uint64]*pendingReachabilityProbe // by the election's ID
	electionProbeIDBySentProbeID map[uint64]uint64                    // by the ID on the segment
	// index of the member that is probed first
	firstProbedMemberIndex int
}

type pendingReachabilityProbe struct{ sentProbesWithoutResult int }

// reachabilityProbeIDBase keeps the IDs of reachability probes apart from those of acquire probes.
const reachabilityProbeIDBase = 1 << 63

// maxTargetsOfEachKindPerReachabilityProbe bounds how many gateways, and how many other nodes, one
// reachability probe asks.
const maxTargetsOfEachKindPerReachabilityProbe = 3

// sendReachabilityProbes probes the default gateways and some nodes on the same segment. Without
// any target the result is that nothing was sent.
func (a *Agent) sendReachabilityProbes(e elect.ReachabilityProbe) {
	var targets []layer2.Probe
	for _, l := range a.ownUsableLinks {
		for _, g := range l.DefaultGateways[:min(len(l.DefaultGateways), maxTargetsOfEachKindPerReachabilityProbe)] {
			targets = append(targets, layer2.Probe{Address: g, LinkIndexes: []int{l.Index}})
		}
	}
	gateways := min(len(targets), maxTargetsOfEachKindPerReachabilityProbe)
	targets = targets[:gateways]
	var nodes []string
	if !e.OnlyGateways {
		nodes = a.otherNodesInReachabilityProbeOrder()
	}
	for _, name := range nodes {
		address := a.addressByKnownMember[name]
		for _, l := range a.ownUsableLinks {
			onLink := slices.ContainsFunc(l.AddressesWithPrefixLength, func(p netip.Prefix) bool { return p.Contains(address) })
			if onLink && len(targets) < gateways+maxTargetsOfEachKindPerReachabilityProbe {
				targets = append(targets, layer2.Probe{Address: address, LinkIndexes: []int{l.Index}})
			}
		}
	}
	if len(targets) == 0 {
		r := facts.ProbeResult{ID: e.ID, NoFrameSent: true}
		a.stepElection([]elect.Input{elect.ProbeFinished{Result: r}})
		return
	}
	a.reachabilityProbes.openProbeByElectionProbeID[e.ID] = &pendingReachabilityProbe{sentProbesWithoutResult: len(targets)}
	for _, p := range targets {
		a.reachabilityProbes.lastSentProbeID++
		p.ID = reachabilityProbeIDBase + a.reachabilityProbes.lastSentProbeID
		p.Kind, p.FramesPerLink, p.FrameInterval = layer2.ProbeKindReachability, e.FramesPerTarget, e.FrameInterval
		a.reachabilityProbes.electionProbeIDBySentProbeID[p.ID] = e.ID
		a.options.Layer2Engine.SendProbe(p)
	}
}

// otherNodesInReachabilityProbeOrder returns the other nodes in the order in which they are probed.
// Members come first, since many of the earlier members may be gone. Each call starts with another
// member, since some may be dead.
func (a *Agent) otherNodesInReachabilityProbeOrder() []string {
	var live, gone []string
	for _, name := range slices.Sorted(maps.Keys(a.addressByKnownMember)) {
		switch {
		case name == a.options.NodeName:
		case slices.Contains(a.liveMemberNames, name):
			live = append(live, name)
		default:
			gone = append(gone, name)
		}
	}
	if len(live) > 0 {
		first := (a.reachabilityProbes.firstProbedMemberIndex + 1) % len(live)
		a.reachabilityProbes.firstProbedMemberIndex = first
		live = slices.Concat(live[first:], live[:first])
	}
	return append(live, gone...)
}

// recordReachabilityProbeResult records the result of one of the probes that test whether this node
// is cut off. The election gets the first answer, or no answer when all of these probes have ended.
func (a *Agent) recordReachabilityProbeResult(in []elect.Input, r facts.ProbeResult) []elect.Input {
	id := a.reachabilityProbes.electionProbeIDBySentProbeID[r.ID]
	delete(a.reachabilityProbes.electionProbeIDBySentProbeID, r.ID)
	p := a.reachabilityProbes.openProbeByElectionProbeID[id]
	if p == nil {
		return in
	}
	if p.sentProbesWithoutResult--; len(r.AnsweringMACs) == 0 && p.sentProbesWithoutResult > 0 {
		return in
	}
	delete(a.reachabilityProbes.openProbeByElectionProbeID, id)
	r.ID = id
	return append(in, elect.ProbeFinished{Result: r})
}

// handleLayer2Report processes a report of the layer-2 engine.
func (a *Agent) handleLayer2Report(in []elect.Input, r layer2.Report) []elect.Input {
	switch r := r.(type) {
	case facts.ProbeResult:
		if r.ID >= reachabilityProbeIDBase {
			return a.recordReachabilityProbeResult(in, r)
		}
		if r.ID >= addressProbeIDBase {
			r.ID -= addressProbeIDBase
			a.addressProbes.questionQueue.RecordProbeResult(r, a.collectProbingInputs(), a.options.Now())
			return in
		}
		if r.ID >= linkProbeIDBase {
			a.recordLinkProbeResult(r)
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
		a.passOwnLinksToPlannerAndMembers()
	case layer2.PortOpened:
		a.portFaults.recordPortOpened(r)
		a.statusChanged = true
		a.passOwnLinksToPlannerAndMembers()
	}
	return in
}

// updateMembers stores the members and their addresses, which are targets of reachability probes.
func (a *Agent) updateMembers(set facts.MemberSet) elect.Input {
	a.addressProbes.members = set
	a.liveMemberNames = make([]string, 0, len(set.Members))
	a.statusChanged, a.traffic.hasChanged, a.checkpoint.changedSinceSave = true, true, true
	for _, m := range set.Members {
		a.addressByKnownMember[m.Name] = m.Address
		a.liveMemberNames = append(a.liveMemberNames, m.Name)
	}
	a.passMemberLinksToPlanner(set)
	return elect.MembersChanged{MemberSet: set}
}

// updateLinks stores the links and passes them to the engine.
func (a *Agent) updateLinks(links facts.LinkSet) {
	before := a.ownUsableLinks
	a.ownUsableLinks, a.ownDownLinks = links.SplitUsableAndDown()
	a.portFaults.forgetGoneLinks(a.ownUsableLinks)
	a.options.Layer2Engine.SetLinks(a.ownUsableLinks)
	a.eventLog.logLinkChanges(before, a.ownUsableLinks)
	a.statusChanged, a.traffic.hasChanged = true, true
	a.passOwnLinksToPlannerAndMembers()
}

// passOwnLinksToPlannerAndMembers passes the links to the planner. It replaces a value that the
// planner has not read yet.
func (a *Agent) passOwnLinksToPlannerAndMembers() {
	a.checkpoint.mustPassRestoredBidsToElection = true
	links := a.portFaults.toPlannerLinks(a.ownUsableLinks)
	links.downLinks = a.ownDownLinks
	a.linksForPlanner.Put(links)
	a.publishOwnNode(links)
}

func (a *Agent) buildStatus() Status {
	var held []netip.Addr
	for ip, b := range a.heldBindingByAddress {
		if !b.IsUnannounced { // this node does not hold it yet
			held = append(held, ip)
		}
	}
	slices.SortFunc(held, netip.Addr.Compare)
	s := Status{
		Plan:                     a.plan,
		Holders:                  a.electionMachine.Holders(),
		HeldAddresses:            held,
		UsableLinks:              a.portFaults.markUnusableFamiliesOfLinks(a.ownUsableLinks),
		DownLinks:                a.ownDownLinks,
		SendFaultByLinkIndex:     a.portFaults.faultByLinkIndex(),
		MemberNames:              a.liveMemberNames,
		DeclaredDeadMemberNames:  a.declaredDeadMemberNames,
		DeathAgreedSinceByMember: make(map[string]time.Time, len(a.declaredDeadMemberNames)),
		NewElectionEvents:        a.unreportedEvents,
	}
	for _, name := range a.declaredDeadMemberNames {
		s.DeathAgreedSinceByMember[name] = elect.DeathAgreedSince(a.electionMachine, name)
	}
	for _, ip := range held {
		s.HeldBindings = append(s.HeldBindings, a.heldBindingByAddress[ip])
	}
	s.RawSocketDenialText, _ = a.portFaults.findRawSocketDenialOnAllLinks(a.ownUsableLinks)
	return s
}
