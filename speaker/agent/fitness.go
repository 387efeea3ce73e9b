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
	judge          *fitness.Judge
	memberNotifier fitness.MemberNotifier
	others         *fitness.Table
	// passedToPlanner is what the planner knows. mustCheck is set after an input that may change
	// it.
	passedToPlanner plan.NodeFitness
	mustCheck       bool
	lastCheckedAt   time.Time
	links           linkProbeState
}

// linkProbeState are the probes that test whether a link reaches its neighbours.
type linkProbeState struct {
	lastRoundAt       time.Time
	lastProbeID       uint64
	roundByProbeID    map[uint64]*linkProbeRound
	wasAnsweredByLink map[int]bool // by link index: whether the last round was answered
	// firstTarget is where the next round starts in the list of neighbours, since some may be dead.
	firstTarget int
}

// linkProbeRound are the probes that were sent on one link at one time.
type linkProbeRound struct {
	link                 facts.Link
	probesWithoutResult  int
	isAnswered, wasAsked bool
}

func newFitnessState(o fitness.ProxyOptions, c *Checkpoint) fitnessState {
	o.HasAnsweredThisBoot = o.HasAnsweredThisBoot || c != nil && c.ServiceProxyAnswered
	return fitnessState{
		judge: fitness.NewJudge(o), others: fitness.NewTable(),
		links: linkProbeState{roundByProbeID: map[uint64]*linkProbeRound{}, wasAnsweredByLink: map[int]bool{}},
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

// receiveMessage passes a message of another member on to the part that it is for.
func (a *Agent) receiveMessage(in []elect.Input, m members.Message) []elect.Input {
	if fitness.IsFitnessMessage(m.Payload) {
		a.fitness.others.RecordMessage(m.SenderName, m.Payload, a.options.Now())
		a.fitness.mustCheck = true
		return in
	}
	return append(in, elect.MessageReceived{From: m.SenderName, Payload: m.Payload})
}

// recordProxyCheck records whether the service proxy of this node answered.
func (a *Agent) recordProxyCheck(answered bool) {
	before := a.fitness.judge.HasProxyAnswered()
	if answered {
		a.fitness.judge.RecordProxyAnswer()
	} else {
		a.fitness.judge.RecordProxySilence(a.options.Now())
	}
	if a.fitness.judge.HasProxyAnswered() != before {
		a.checkpoint.changedSinceSave = true
	}
	a.fitness.mustCheck = true
}

// checkFitness tells the members and the planner what changed. While a node is unfit, it matters
// at once which nodes live.
func (a *Agent) checkFitness() {
	f, now := &a.fitness, a.options.Now()
	a.probeLinksIfDue(now)
	if !f.mustCheck && len(f.passedToPlanner.UnfitNodes) == 0 && now.Sub(f.lastCheckedAt) < fitnessCheckInterval {
		return
	}
	f.mustCheck, f.lastCheckedAt = false, now
	own := f.judge.JudgeFitness(now)
	if message := f.memberNotifier.NextMessage(own, now); message != nil {
		for _, n := range a.liveMemberNames {
			if n != a.options.NodeName {
				a.options.Members.SendMessage(n, message)
			}
		}
	}
	known := plan.NodeFitness{UnfitNodes: f.others.UnfitMembers(a.liveMemberNames, now), LiveMembers: elect.ListAliveMembers(a.electionMachine)}
	if !own.Equal(facts.Fitness{}) {
		known.UnfitNodes[a.options.NodeName] = own
	}
	if !known.EqualsFitness(f.passedToPlanner) {
		f.passedToPlanner = known
		a.nodeFitness.Put(known)
	}
}

// probeLinksIfDue probes neighbours on each link in turn: gateways and other nodes, and if these
// are silent, addresses that other nodes hold. A link without any of them is not judged.
func (a *Agent) probeLinksIfDue(now time.Time) {
	s := &a.fitness.links
	if now.Sub(s.lastRoundAt) < fitness.LinkProbeInterval {
		return
	}
	s.lastRoundAt, s.firstTarget = now, s.firstTarget+1
	clear(s.roundByProbeID)
	var judged []int
	holders := a.electionMachine.Holders()
	for _, l := range a.nodeLinks {
		wasAnswered, known := s.wasAnsweredByLink[l.Index]
		targets, count := a.neighboursOnLink(&l), 1
		if held := a.addressesHeldByOtherNodesOnLink(&l, holders); len(held) > 0 && (len(targets) == 0 || known && !wasAnswered) {
			targets = append(targets, held[s.firstTarget%len(held)])
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
			a.options.Layer2.SendProbe(layer2.Probe{
				ID: linkProbeIDBase + s.lastProbeID, Kind: layer2.ProbeKindReachability, Address: targets[s.targetIndex(count, i, len(targets))],
				LinkIndexes: []int{l.Index}, FramesPerLink: 2, FrameInterval: linkProbeFrameInterval,
			})
		}
	}
	a.fitness.judge.ForgetLinksExcept(judged)
}

// targetIndex returns which of n targets the i-th of count probes asks. A single probe asks another
// target each time.
func (s *linkProbeState) targetIndex(count, i, n int) int {
	if count == 1 {
		return s.firstTarget % n
	}
	return i
}

// neighboursOnLink returns the gateways and the other nodes on the link.
func (a *Agent) neighboursOnLink(l *facts.Link) []netip.Addr {
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
	s, id := &a.fitness.links, r.ID-linkProbeIDBase
	round := s.roundByProbeID[id]
	if round == nil {
		return
	}
	delete(s.roundByProbeID, id)
	round.wasAsked = round.wasAsked || !r.NoFrameSent
	round.isAnswered = round.isAnswered || len(r.AnsweringMACs) > 0
	if round.probesWithoutResult--; round.probesWithoutResult > 0 || !round.wasAsked {
		return
	}
	s.wasAnsweredByLink[round.link.Index] = round.isAnswered
	if round.isAnswered {
		a.fitness.judge.RecordLinkAnswer(round.link.Index)
	} else {
		a.fitness.judge.RecordLinkSilence(round.link, a.options.Now())
	}
	a.fitness.mustCheck = true
}
