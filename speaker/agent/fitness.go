package agent

import (
	"net/netip"
	"slices"
	"time"

	"github.com/gantry-lb/gantry/speaker/elect"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/fitness"
	"github.com/gantry-lb/gantry/speaker/layer2"
	"github.com/gantry-lb/gantry/speaker/members"
	"github.com/gantry-lb/gantry/speaker/plan"
)

// fitnessState is what this node knows of its own fitness and of that of the others.
type fitnessState struct {
	ownFitnessJudge       *fitness.Judge
	memberNotifier        fitness.FitnessMessageSchedule
	fitnessOfOtherMembers *fitness.UnfitMembersTable
	// fitnessPassedToPlanner is what the planner knows. mustCheck is set after an input that may
	// change it.
	fitnessPassedToPlanner plan.FitnessOfNodes
	mustCheck              bool
	lastCheckedAt          time.Time
	linkProbes             linkProbeState
}

// linkProbeState are the probes that test whether a link reaches its neighbours.
type linkProbeState struct {
	lastRoundAt       time.Time
	lastProbeID       uint64
	roundByProbeID    map[uint64]*linkProbeRound
	wasAnsweredByLink map[int]bool // by link index: whether the last round was answered
	// targetRotationIndex is where the next round starts in the list of neighbours, since some may
	// be dead.
	targetRotationIndex int
}

// linkProbeRound are the probes that were sent on one link at one time.
type linkProbeRound struct {
	link                     facts.Link
	probesWithoutResult      int
	isAnswered, hasSentFrame bool
}

func newFitnessState(o fitness.ServiceProxyOptions, c *Checkpoint) fitnessState {
	o.HasAnsweredThisBoot = o.HasAnsweredThisBoot || c != nil && c.ServiceProxyAnswered
	return fitnessState{
		ownFitnessJudge: fitness.NewJudge(o), fitnessOfOtherMembers: fitness.NewUnfitMembersTable(),
		linkProbes: linkProbeState{roundByProbeID: map[uint64]*linkProbeRound{}, wasAnsweredByLink: map[int]bool{}},
	}
}

// linkProbeIDBase keeps the IDs of these probes apart from those of other probes.
const linkProbeIDBase = 1 << 61

const (
	// fitnessCheckInterval bounds how long a change of fitness is not noticed.
	fitnessCheckInterval = time.Second
	// maxTargetsPerSilentLink is how many neighbours are probed on a link that did not answer the
	// last time. One is enough on others.
	maxTargetsPerSilentLink = 3
	linkProbeFrameInterval  = 30 * time.Millisecond
)

// dispatchMemberMessage passes a message of another member on to the part that it is for.
func (a *Agent) dispatchMemberMessage(in []elect.Input, m members.ReceivedMessage) []elect.Input {
	if fitness.IsFitnessMessage(m.Payload) {
		a.fitness.fitnessOfOtherMembers.RecordMessage(m.SenderName, m.Payload, a.options.Now())
		a.fitness.mustCheck = true
		return in
	}
	return append(in, elect.MessageReceived{From: m.SenderName, Payload: m.Payload})
}

// recordProxyCheck records whether the service proxy of this node answered.
func (a *Agent) recordProxyCheck(answered bool) {
	before := a.fitness.ownFitnessJudge.HasProxyAnswered()
	if answered {
		a.fitness.ownFitnessJudge.RecordProxyAnswer()
	} else {
		a.fitness.ownFitnessJudge.RecordProxySilence(a.options.Now())
	}
	if a.fitness.ownFitnessJudge.HasProxyAnswered() != before {
		a.checkpoint.changedSinceSave = true
	}
	a.fitness.mustCheck = true
}

// publishFitnessChanges tells the members and the planner what changed. While a node is unfit, it
// matters at once which nodes live.
func (a *Agent) publishFitnessChanges() {
	f, now := &a.fitness, a.options.Now()
	a.probeLinksIfDue(now)
	if !f.mustCheck && len(f.fitnessPassedToPlanner.UnfitOrDoubtfulNodes) == 0 && now.Sub(f.lastCheckedAt) < fitnessCheckInterval {
		return
	}
	f.mustCheck, f.lastCheckedAt = false, now
	own := f.ownFitnessJudge.JudgeFitness(now)
	if message := f.memberNotifier.DueMessage(own, now); message != nil {
		for _, n := range a.liveMemberNames {
			if n != a.options.NodeName {
				a.options.GossipMembership.SendUrgentMessage(n, message)
			}
		}
	}
	known := plan.FitnessOfNodes{UnfitOrDoubtfulNodes: f.fitnessOfOtherMembers.UnfitOrDoubtfulMembers(a.liveMemberNames, now), LiveMembers: elect.ListAliveMembers(a.electionMachine)}
	if !own.Equal(facts.Fitness{}) {
		known.UnfitOrDoubtfulNodes[a.options.NodeName] = own
	}
	if !known.EqualsFitness(f.fitnessPassedToPlanner) {
		f.fitnessPassedToPlanner = known
		a.fitnessOfNodesForPlanner.Put(known)
	}
}

// probeLinksIfDue probes neighbours on each link in turn: gateways and other nodes, and if these
// are silent, addresses that other nodes hold. A link without any of them is not judged.
func (a *Agent) probeLinksIfDue(now time.Time) {
	s := &a.fitness.linkProbes
	if now.Sub(s.lastRoundAt) < fitness.LinkProbeInterval {
		return
	}
	s.lastRoundAt, s.targetRotationIndex = now, s.targetRotationIndex+1
	clear(s.roundByProbeID)
	var judged []int
	holders := a.electionMachine.Holders()
	for _, l := range a.ownUsableLinks {
		wasAnswered, known := s.wasAnsweredByLink[l.Index]
		targets, count := a.gatewaysAndMembersOnLink(&l), 1
		if held := a.addressesHeldByOtherNodesOnLink(&l, holders); len(held) > 0 && (len(targets) == 0 || known && !wasAnswered) {
			targets = append(targets, held[s.targetRotationIndex%len(held)])
		}
		if len(targets) == 0 {
			continue
		}
		judged = append(judged, l.Index)
		if known && !wasAnswered {
			count = min(maxTargetsPerSilentLink, len(targets))
			slices.Reverse(targets) // another kind of neighbour first
		}
		round := &linkProbeRound{link: l, probesWithoutResult: count}
		for i := range count {
			s.lastProbeID++
			s.roundByProbeID[s.lastProbeID] = round
			a.options.Layer2Engine.SendProbe(layer2.Probe{
				ID: linkProbeIDBase + s.lastProbeID, Kind: layer2.ProbeKindReachability, Address: targets[s.targetIndex(count, i, len(targets))],
				LinkIndexes: []int{l.Index}, FramesPerLink: 2, FrameInterval: linkProbeFrameInterval,
			})
		}
	}
	a.fitness.ownFitnessJudge.ForgetLinksExcept(judged)
}

// targetIndex returns which of n targets the i-th of count probes asks. A single probe asks another
// target each time.
func (s *linkProbeState) targetIndex(count, i, n int) int {
	if count == 1 {
		return s.targetRotationIndex % n
	}
	return i
}

// gatewaysAndMembersOnLink returns the gateways and the other nodes on the link.
func (a *Agent) gatewaysAndMembersOnLink(l *facts.Link) []netip.Addr {
	out := slices.Clone(l.DefaultGateways)
	for _, n := range a.liveMemberNames {
		if address := a.addressByKnownMember[n]; n != a.options.NodeName && l.CoversAddress(address) {
			out = append(out, address)
		}
	}
	return out
}

// addressesHeldByOtherNodesOnLink returns the addresses in the subnets of the link that other nodes
// hold.
func (a *Agent) addressesHeldByOtherNodesOnLink(l *facts.Link, holders []elect.Holder) []netip.Addr {
	var out []netip.Addr
	for _, h := range holders {
		if h.Node != a.options.NodeName && h.IsAlive && l.CoversAddress(h.Address) {
			out = append(out, h.Address)
		}
	}
	return out
}

// recordLinkProbeResult records the result of one probe of a round.
func (a *Agent) recordLinkProbeResult(r facts.ProbeResult) {
	s, id := &a.fitness.linkProbes, r.ID-linkProbeIDBase
	round := s.roundByProbeID[id]
	if round == nil {
		return
	}
	delete(s.roundByProbeID, id)
	round.hasSentFrame = round.hasSentFrame || !r.NoFrameSent
	round.isAnswered = round.isAnswered || len(r.AnsweringMACs) > 0
	if round.probesWithoutResult--; round.probesWithoutResult > 0 || !round.hasSentFrame {
		return
	}
	s.wasAnsweredByLink[round.link.Index] = round.isAnswered
	if round.isAnswered {
		a.fitness.ownFitnessJudge.RecordLinkAnswer(round.link.Index)
	} else {
		a.fitness.ownFitnessJudge.RecordUnansweredLinkProbes(round.link, a.options.Now())
	}
	a.fitness.mustCheck = true
}
