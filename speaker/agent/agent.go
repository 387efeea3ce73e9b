// Package agent connects the parts of the speaker.
//
// One goroutine plans when the cluster or the links change. Another one, Run, steps the election
// with the plan and with what the segment and the other speakers send, and passes the decisions to
// the engines. So neither the detection of a dead node nor a takeover waits for planning.
//
// The package opens no socket. It declares what it needs of the engines as small interfaces, so
// that tests can connect it to a segment in memory.
package agent

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"github.com/gantry-lb/gantry/internal/latest"
	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/bgp"
	"github.com/gantry-lb/gantry/speaker/elect"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/fitness"
	"github.com/gantry-lb/gantry/speaker/intent"
	"github.com/gantry-lb/gantry/speaker/layer2"
	"github.com/gantry-lb/gantry/speaker/members"
	"github.com/gantry-lb/gantry/speaker/plan"
	"github.com/gantry-lb/gantry/speaker/probing"
)

// Layer2Engine answers for addresses and sends probes. No method blocks.
type Layer2Engine interface {
	// SetBindingsAndSendDeadline replaces what the node answers for, and lets the engine answer
	// until the deadline. An address without a binding has no answer from the return on.
	SetBindingsAndSendDeadline(bindings []intent.Binding, sendDeadline time.Time)
	// RepeatAnnouncements announces addresses again that the node already answers for.
	RepeatAnnouncements(addresses []netip.Addr)
	// DefendAddress announces an address because another host answers for it (RFC 5227 section
	// 2.4).
	DefendAddress(address netip.Addr)
	// UpdateCandidacies sets the links on which this node may come to answer for addresses, as far
	// as they changed. gone are addresses that it cannot come to answer for any more.
	UpdateCandidacies(changed []intent.Binding, gone []netip.Addr)
	SetLinks(links facts.LinkSet)
	SendProbe(p layer2.Probe)
	// SetSendDeadline lets the engine answer until the given time.
	SetSendDeadline(until time.Time)
	Reports() <-chan layer2.Report
}

// BGPEngine keeps the sessions with routers. Set returns at once.
type BGPEngine interface {
	SetDesiredState(d bgp.DesiredState)
}

// HealthCheckPoller asks the service proxy of this node about Services.
type HealthCheckPoller interface {
	// SetChecks replaces the health checks. It returns at once.
	SetChecks(checks []intent.HealthCheck)
	ChangedResults() <-chan []facts.ServiceHealthCheckResult
}

// GossipMembership carries messages between the speakers. No method blocks.
type GossipMembership interface {
	SendUrgentMessage(to string, payload []byte)
	// SendNormalPriorityMessage sends a message after those of SendUrgentMessage.
	SendNormalPriorityMessage(to string, payload []byte)
	// SendBulkMessage sends a message after all others.
	SendBulkMessage(to string, payload []byte)
	SetFullExchangeState(state []byte)
	PublishOwnNode(p facts.PublishedNode)
	ContactMissingSeeds()
	LiveMemberUpdates() <-chan facts.MemberSet
	ReceivedUrgentMessages() <-chan members.ReceivedMessage
	ReceivedBulkMessages() <-chan members.ReceivedMessage
	ReceivedFullStates() <-chan []byte
}

// Options configure an Agent. LoadBalancerClass, ObserveStatus, ObserveTraffic,
// ProbeQuestionUpdates, ObserveProbeAnswer, SaveCheckpoint and RestoreFrom are optional.
type Options struct {
	// NodeName is the name of this node, Nonce identifies this run of the process.
	NodeName string
	RunNonce uint64
	// LoadBalancerClass is the class of the Services to serve; empty serves those without a class.
	LoadBalancerClass string
	ElectionTiming    elect.Timing
	Layer2Engine      Layer2Engine
	BGPEngine         BGPEngine
	HealthCheckPoller HealthCheckPoller
	GossipMembership  GossipMembership
	// LinkUpdates delivers the links of the node, with those that are down.
	LinkUpdates <-chan facts.LinkSet
	// ServiceProxyHealthUpdates delivers whether the service proxy of this node answered; nil if it
	// is not asked. ServiceProxyOptions says what follows.
	ServiceProxyHealthUpdates <-chan bool
	ServiceProxyOptions       fitness.ServiceProxyOptions
	// Now reads the clock.
	Now func() time.Time
	Log *slog.Logger
	// ProbeQuestionUpdates delivers the open questions of the controller. Each set replaces the one
	// before it.
	ProbeQuestionUpdates <-chan []probing.Question
	// ObserveProbeAnswer receives the answers to ProbeQuestionUpdates. It must not block.
	ObserveProbeAnswer func(probing.Answer)
	// ObserveStatus receives a Status after each change that users can see. It must not block.
	ObserveStatus func(Status)
	// ObserveTraffic receives TrafficFacts after each change of them. It must not block.
	ObserveTraffic func(TrafficFacts)
	// SaveCheckpoint receives what the next run of the process can resume from while this boot of
	// the node lasts. It is called once a second at most. It must not block.
	SaveCheckpoint func(Checkpoint)
	// RestoreFrom is the checkpoint of an earlier run, nil without one.
	RestoreFrom *Checkpoint
}

// Status is what the agent knows, for status objects, events and metrics.
type Status struct {
	Plan    plan.Plan
	Holders []elect.Holder
	// HeldAddresses are the addresses that this node answers for, sorted.
	HeldAddresses []netip.Addr
	// HeldBindings are the held addresses with their links.
	HeldBindings []intent.Binding
	// UsableLinks are the node's usable links. They show which families cannot be sent on them.
	UsableLinks facts.LinkSet
	// DownLinks are the links that are down or without carrier.
	DownLinks facts.LinkSet
	// SendFaultByLinkIndex says which family cannot be sent on a link and why, by the index of the
	// link.
	SendFaultByLinkIndex map[int]string
	// MemberNames are the nodes whose speakers are alive, including this one, sorted.
	MemberNames []string
	// DeclaredDeadMemberNames are those of them that the election has declared dead, sorted.
	DeclaredDeadMemberNames []string
	// DeathAgreedSinceByMember is since when their witnesses agree that they are dead.
	DeathAgreedSinceByMember map[string]time.Time
	// RawSocketDenialText says why this node cannot open raw sockets; empty if it can.
	RawSocketDenialText string
	// NewElectionEvents are the events of the election since the last Status.
	NewElectionEvents []elect.Event
}

// Agent makes the decisions of this node. Only Run uses its state.
type Agent struct {
	options                   Options
	plannerInputChangeBatches chan []PlannerInputChange
	linksForPlanner           *latest.Value[plannerLinks]
	// memberLinksForPlanner passes what other nodes say about their links to the planner.
	memberLinksForPlanner    *latest.Value[map[string]*facts.PublishedLinks]
	fitnessOfNodesForPlanner *latest.Value[plan.FitnessOfNodes]
	planUpdates              chan planUpdate
	handoverRequests         *latest.Wake
	handoverDoneSignal       chan struct{}
	metrics                  electionMetrics

	ownUsableLinks, ownDownLinks facts.LinkSet // the usable ones, and those that are down
	publishedNode                facts.PublishedNode
	linksByKnownMember           map[string]*facts.PublishedLinks // of current and earlier members
	portFaults                   portFaults
	liveMemberNames              []string // of live members, sorted
	// of members that the election declared dead, sorted
	declaredDeadMemberNames []string
	addressByKnownMember    map[string]netip.Addr // of current and earlier members
	reachabilityProbes      reachabilityProbes
	electionMachine         *elect.Machine
	plan                    plan.Plan
	addressProbes           addressProbingState
	fitness                 fitnessState
	heldBindingByAddress    map[netip.Addr]intent.Binding
	checkpoint              checkpointState
	traffic                 trafficState
	unreportedEvents        []elect.Event
	eventLog                eventLog
	// gossipStateChanged and statusChanged are set when the end of a turn has to publish the state
	// or the Status.
	gossipStateChanged, statusChanged bool
	gossipStateSetAt                  time.Time // when GossipMembership last got the full state
	statusLastReportedAt              time.Time // when ObserveStatus was last called
}

// New returns an Agent that does nothing before Run.
func New(o Options) *Agent {
	if o.ObserveStatus == nil {
		o.ObserveStatus = func(Status) {}
	}
	if o.ObserveProbeAnswer == nil {
		o.ObserveProbeAnswer = func(probing.Answer) {}
	}
	return &Agent{
		options:                   o,
		plannerInputChangeBatches: make(chan []PlannerInputChange, 64),
		linksForPlanner:           latest.NewValue[plannerLinks](),
		memberLinksForPlanner:     latest.NewValue[map[string]*facts.PublishedLinks](),
		fitnessOfNodesForPlanner:  latest.NewValue[plan.FitnessOfNodes](),
		fitness:                   newFitnessState(o.ServiceProxyOptions, o.RestoreFrom),
		planUpdates:               make(chan planUpdate),
		handoverRequests:          latest.NewWake(),
		handoverDoneSignal:        make(chan struct{}),
		metrics:                   newElectionMetrics(),
		eventLog:                  eventLog{log: o.Log},
		portFaults: portFaults{
			denialReasonByPort: map[portID]string{}, openErrorByPort: map[portID]string{},
		},
		addressByKnownMember: map[string]netip.Addr{},
		reachabilityProbes: reachabilityProbes{
			openProbeByElectionProbeID: map[uint64]*pendingReachabilityProbe{}, electionProbeIDBySentProbeID: map[uint64]uint64{},
		},
		heldBindingByAddress: map[netip.Addr]intent.Binding{},
	}
}

// PostChanges passes changes to the agent. It applies the changes of one call together. It blocks
// while the planner is busy, until ctx ends.
func (a *Agent) PostChanges(ctx context.Context, changes ...PlannerInputChange) {
	select {
	case a.plannerInputChangeBatches <- changes:
	case <-ctx.Done():
	}
}

// RequestHandover asks the agent to hand over all addresses. HandoverDoneSignal is closed when it
// holds none.
func (a *Agent) RequestHandover() { a.handoverRequests.Signal() }

// IsElectionLate reports whether the election of this node runs late, so that other work has to
// wait.
func (a *Agent) IsElectionLate() bool {
	return time.Duration(a.metrics.electionLatenessNanoseconds.Load()) > a.options.ElectionTiming.BeaconInterval
}

// HandoverDoneSignal is closed when nothing is held any more after RequestHandover.
func (a *Agent) HandoverDoneSignal() <-chan struct{} { return a.handoverDoneSignal }

// Run runs the agent until ctx ends. It then stops answering for all addresses.
func (a *Agent) Run(ctx context.Context) error {
	done := make(chan struct{})
	go func() {
		defer close(done)
		a.runPlanner(ctx, plan.NewPlanner(plan.Inputs{
			SelfNode: a.options.NodeName, LoadBalancerClass: a.options.LoadBalancerClass,
			Services: map[view.ObjectKey]view.Service{}, Endpoints: map[view.ObjectKey]view.Endpoints{},
			Nodes: map[string]view.Node{},
		}))
	}()
	defer func() { <-done }()
	a.electionMachine = elect.NewMachine(a.options.NodeName, a.options.RunNonce, a.options.ElectionTiming, a.options.Now())
	timer := time.NewTimer(0)
	defer timer.Stop()
	defer a.options.Layer2Engine.SetBindingsAndSendDeadline(nil, time.Time{})
	a.restoreCheckpoint(a.options.RestoreFrom)
	for {
		var in []elect.Input
		select {
		case <-ctx.Done():
			return nil
		case p := <-a.planUpdates:
			a.eventLog.clearServicesByAddress()
			a.plan, a.statusChanged, a.traffic.hasChanged, a.addressProbes.snapshot = p.plan, true, true, p.snapshot
			a.dropRestoredBidsNotInPlan(p)
			in = append(in, p.toBidsChanged())
		case links := <-a.options.LinkUpdates:
			a.updateLinks(links)
		case set := <-a.options.GossipMembership.LiveMemberUpdates():
			in = append(in, a.updateMembers(set))
		case m := <-a.options.GossipMembership.ReceivedUrgentMessages():
			in = a.dispatchMemberMessage(in, m)
		case m := <-a.options.GossipMembership.ReceivedBulkMessages():
			in = a.dispatchMemberMessage(in, m)
		case answered := <-a.options.ServiceProxyHealthUpdates:
			a.recordProxyCheck(answered)
		case s := <-a.options.GossipMembership.ReceivedFullStates():
			in = append(in, elect.RemoteStateReceived{EncodedClaims: s})
		case r := <-a.options.Layer2Engine.Reports():
			in = a.handleLayer2Report(in, r)
		case <-a.handoverRequests.C():
			a.options.Log.Info("handing over all addresses before the speaker stops",
				"addresses", len(a.heldBindingByAddress))
			a.traffic.isHandingOver, a.traffic.hasChanged = true, true
			in = append(in, elect.ShutdownHandoverRequested{})
		case q := <-a.options.ProbeQuestionUpdates:
			a.addressProbes.questionQueue.SetQuestions(q, a.collectProbingInputs(), a.options.Now())
		case <-timer.C:
		}
		a.stepElection(a.appendPendingInputs(a.appendRestoredBidsUntilFirstPlan(in)))
		a.runAddressProbes()
		a.publishFitnessChanges()
		a.extendSendDeadlineSaveAndReport()
		timer.Reset(max(a.nextActionDeadline().Sub(a.options.Now()), 0))
	}
}

// maxElectionInputsPerStep bounds the messages and reports that one step processes.
const maxElectionInputsPerStep = 512

// appendPendingInputs adds the messages and reports that already wait, so that a burst of them
// costs one step.
func (a *Agent) appendPendingInputs(in []elect.Input) []elect.Input {
	for range maxElectionInputsPerStep {
		select {
		case m := <-a.options.GossipMembership.ReceivedUrgentMessages():
			in = a.dispatchMemberMessage(in, m)
		case r := <-a.options.Layer2Engine.Reports():
			in = a.handleLayer2Report(in, r)
		default:
			return a.appendPendingBulkMessages(in)
		}
	}
	return in
}

// maxBulkMessagesPerStep bounds the claims that one step processes: some 2,000. Beacons and
// acknowledgements do not wait for more.
const maxBulkMessagesPerStep = 64

// appendPendingBulkMessages adds bulk messages when no urgent one waits.
func (a *Agent) appendPendingBulkMessages(in []elect.Input) []elect.Input {
	for range maxBulkMessagesPerStep {
		select {
		case m := <-a.options.GossipMembership.ReceivedBulkMessages():
			in = a.dispatchMemberMessage(in, m)
		default:
			return in
		}
	}
	return in
}

// extendSendDeadlineSaveAndReport renews the engine's deadline and publishes what changed.
func (a *Agent) extendSendDeadlineSaveAndReport() {
	now := a.options.Now()
	a.options.Layer2Engine.SetSendDeadline(a.electionMachine.LeaseDeadline(now))
	if a.gossipStateChanged && now.Sub(a.gossipStateSetAt) >= gossipStateEncodingInterval {
		a.gossipStateChanged, a.gossipStateSetAt = false, now
		a.options.GossipMembership.SetFullExchangeState(a.electionMachine.EncodeAllClaims())
	}
	a.saveCheckpoint(now)
	if dead := a.electionMachine.DeadMembers(); !slices.Equal(dead, a.declaredDeadMemberNames) {
		a.declaredDeadMemberNames, a.statusChanged, a.traffic.hasChanged = dead, true, true
	}
	if a.options.RestoreFrom != nil && !a.checkpoint.hasFirstPlan { // the plan has no Services yet
		return
	}
	a.reportTraffic(now)
	if a.statusChanged && now.Sub(a.statusLastReportedAt) >= a.minStatusInterval() {
		a.statusChanged, a.statusLastReportedAt = false, now
		a.options.ObserveStatus(a.buildStatus())
		a.unreportedEvents = nil
	}
}

// minStatusInterval bounds how often a Status is built. The cost is proportional to the number of
// Services; with 10,000 of them the interval is 100 ms. An election that runs late goes first.
func (a *Agent) minStatusInterval() time.Duration {
	services := max(a.plan.Bids.Len(), a.plan.Layer2Verdicts.Len(), a.plan.BGPVerdicts.Len())
	interval := time.Duration(services) * 10 * time.Microsecond
	if a.IsElectionLate() {
		return max(interval, lateElectionMinStatusInterval)
	}
	return interval
}

// lateElectionMinStatusInterval is the time between two Statuses while the election runs late: what
// follows from each of them makes the node busier.
const lateElectionMinStatusInterval = 500 * time.Millisecond

// gossipStateEncodingInterval bounds how often the full state is encoded for push/pull. The cost is
// proportional to the number of addresses. A new claim does not wait for it: it is sent at once.
const gossipStateEncodingInterval = 200 * time.Millisecond
