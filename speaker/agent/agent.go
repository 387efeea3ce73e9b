// Package agent joins the speaker's parts. Two goroutines own the state: one plans, when the cluster or the links change;
// the other, Run, steps the election with the plan and with what the wire and the other speakers say, and hands what the
// election decides to the engines. So neither detection nor a takeover ever waits for planning. The package holds no
// policy and opens no socket; what it needs of the engines is declared here in small interfaces, so that tests join it
// to an in-memory segment.
package agent

import (
	"context"
	"log/slog"
	"net/netip"
	"time"

	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/bgp"
	"github.com/gantry-lb/gantry/speaker/elect"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/intent"
	"github.com/gantry-lb/gantry/speaker/layer2"
	"github.com/gantry-lb/gantry/speaker/members"
	"github.com/gantry-lb/gantry/speaker/plan"
	"github.com/gantry-lb/gantry/speaker/probing"
)

// Layer2 answers for addresses and asks the wire. Every method hands over a value and returns at once.
type Layer2 interface {
	ApplyBindings(claims []intent.Binding)
	// RepeatAnnouncements repeats the gratuitous burst of addresses that are answered for already.
	RepeatAnnouncements(addresses []netip.Addr)
	// DefendAddress says that a host that is no member claims an address that is answered for.
	DefendAddress(address netip.Addr)
	// SetCandidacies says on which links the node may come to answer for addresses, as far as that changed, and which are out of
	// the question now.
	SetCandidacies(changed []intent.Binding, gone []netip.Addr)
	SetLinks(links facts.LinkSet)
	SendProbe(p layer2.Probe)
	// SetSendDeadline lets the engine answer until the given time.
	SetSendDeadline(until time.Time)
	Reports() <-chan layer2.Report
}

// BGP keeps sessions with routers. Set hands over a value and returns at once.
type BGP interface {
	Set(d bgp.Desired)
}

// Members carries messages between the speakers. Every method returns at once.
type Members interface {
	SendMessage(to string, payload []byte)
	SetState(state []byte)
	SetMACs(macs []facts.MAC)
	Rejoin()
	MemberSets() <-chan facts.MemberSet
	Messages() <-chan members.Message
	RemoteStates() <-chan []byte
}

// Options are what an Agent is made of. All fields but Class, Observe, Surveyed, Remember and Remembered are required.
type Options struct {
	// Self is the name of this node; Nonce tells this life of the process from others.
	Self  string
	Nonce uint64
	// LoadBalancerClass is the load balancer class to serve.
	LoadBalancerClass string
	Timing            elect.Timing
	Layer2            Layer2
	BGP               BGP
	Members           Members
	// Links delivers the usable links of the node.
	Links <-chan facts.LinkSet
	// Now reads the clock.
	Now func() time.Time
	Log *slog.Logger
	// ObserveProbeAnswer receives what was found about a question of Survey. It must not block.
	ObserveProbeAnswer func(probing.Answer)
	// ObserveStatus receives a Status after each change that a person may see. It must not block.
	ObserveStatus func(Status)
	// SaveCheckpoint receives what a later life of the process on the same boot of the node may go on from, once a second at
	// most. It must not block.
	SaveCheckpoint func(Checkpoint)
	// RestoreFrom is what an earlier life knew.
	RestoreFrom *Checkpoint
}

// Status is what the agent knows, for status objects, events and explanations.
type Status struct {
	Plan    plan.Plan
	Holders []elect.Holder
	// HeldAddresses are the addresses that this node answers for, sorted.
	HeldAddresses []netip.Addr
	// Bindings are the same with the links that each is answered for on.
	Bindings []intent.Binding
	// Links are the node's usable links, marked with what cannot be sent on them.
	Links facts.LinkSet
	// FaultsByLink say what cannot be sent on a link and why, by its index.
	FaultsByLink map[int]string
	// MemberNames are the names of the nodes whose speakers are alive, this one included, sorted.
	MemberNames []string
	// RawSocketsDenied holds a sentence when raw sockets are refused on this node, empty otherwise.
	RawSocketsDenied string
	// Events are what the election found worth telling since the last Status.
	Events []elect.Event
}

// Agent is the owner of this node's decisions. Make it with New; only Run touches its state.
type Agent struct {
	options       Options
	changeBatches chan []Change
	usableLinks   chan usableLinks // the latest only
	// probeQuestions are those of Survey, the latest only.
	probeQuestions   chan []probing.Question
	planUpdates      chan planUpdate
	handoverRequests chan struct{}
	handedOver       chan struct{}
	metrics          metrics

	links             facts.LinkSet
	portStates        portStates
	memberNames       []string              // the live ones, by name
	addressesByMember map[string]netip.Addr // where members are or were, by name
	livenessProbes    livenessProbes
	machine           *elect.Machine
	plan              plan.Plan
	addressProbes     addressProbes
	bindingsByAddress map[netip.Addr]intent.Binding
	checkpoint        checkpointState
	events            []elect.Event
	// stateChanged and tell say what the end of a turn has to do.
	stateChanged, statusChanged bool
	stateSetAt                  time.Time // when the full state was last handed to Members
	statusObservedAt            time.Time // when the last Status was handed to Observe
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
		options:           o,
		changeBatches:     make(chan []Change, 64),
		usableLinks:       make(chan usableLinks, 1),
		probeQuestions:    make(chan []probing.Question, 1),
		planUpdates:       make(chan planUpdate),
		handoverRequests:  make(chan struct{}, 1),
		handedOver:        make(chan struct{}),
		metrics:           newMetrics(),
		portStates:        portStates{deniedByPort: map[portID]string{}, failedByPort: map[portID]string{}},
		addressesByMember: map[string]netip.Addr{},
		livenessProbes:    livenessProbes{openByElectionID: map[uint64]*openLivenessProbe{}, electionIDByWireID: map[uint64]uint64{}},
		bindingsByAddress: map[netip.Addr]intent.Binding{},
	}
}

// PostChanges hands changes to the agent, in order; all changes of one call are seen together. It waits while the planning is
// busy, until ctx ends.
func (a *Agent) PostChanges(ctx context.Context, changes ...Change) {
	select {
	case a.changeBatches <- changes:
	case <-ctx.Done():
	}
}

// RequestHandover asks the agent to hand over every address. Drained is closed when nothing is held any more.
func (a *Agent) RequestHandover() {
	select {
	case a.handoverRequests <- struct{}{}:
	default:
	}
}

// HandedOver is closed once, after Leave, nothing is held any more.
func (a *Agent) HandedOver() <-chan struct{} { return a.handedOver }

// Run owns the agent's state until ctx ends. It answers for nothing afterwards.
func (a *Agent) Run(ctx context.Context) error {
	done := make(chan struct{})
	go func() {
		defer close(done)
		a.runPlanner(ctx, plan.NewPlanner(plan.Inputs{
			Self: a.options.Self, Class: a.options.LoadBalancerClass,
			Services: map[view.ObjectKey]view.Service{}, Endpoints: map[view.ObjectKey]view.Endpoints{}, Nodes: map[string]view.Node{},
		}))
	}()
	defer func() { <-done }()
	a.machine = elect.New(a.options.Self, a.options.Nonce, a.options.Timing, a.options.Now())
	timer := time.NewTimer(0)
	defer timer.Stop()
	defer a.options.Layer2.ApplyBindings(nil)
	a.restoreCheckpoint(a.options.RestoreFrom)
	for {
		var in []elect.Input
		select {
		case <-ctx.Done():
			return nil
		case p := <-a.planUpdates:
			a.plan, a.statusChanged, a.addressProbes.snapshot = p.plan, true, p.snapshot
			a.replaceRestoredBids(p)
			in = append(in, p.electionInput())
		case links := <-a.options.Links:
			a.updateLinks(links)
		case set := <-a.options.Members.MemberSets():
			in = append(in, a.updateMembers(set))
		case m := <-a.options.Members.Messages():
			in = append(in, elect.MessageReceived{From: m.From, Payload: m.Payload})
		case s := <-a.options.Members.RemoteStates():
			in = append(in, elect.RemoteStateReceived{Payload: s})
		case r := <-a.options.Layer2.Reports():
			in = a.handleReport(in, r)
		case <-a.handoverRequests:
			a.options.Log.Info("handing over every address before the speaker stops", "held", len(a.bindingsByAddress))
			in = append(in, elect.HandoverRequested{})
		case q := <-a.probeQuestions:
			a.addressProbes.queue.SetQuestions(q, a.probingState(), a.options.Now())
		case <-timer.C:
		}
		a.stepElection(a.appendPendingInputs(a.appendRestoredBids(in)))
		a.runAddressProbes()
		a.finishTurn()
		timer.Reset(max(a.nextDeadline().Sub(a.options.Now()), 0))
	}
}

// maxInputsPerStep bounds how many messages and reports make one step.
const maxInputsPerStep = 512

// appendPendingInputs adds what else is there already, so that a flood of messages costs one step.
func (a *Agent) appendPendingInputs(in []elect.Input) []elect.Input {
	for range maxInputsPerStep {
		select {
		case m := <-a.options.Members.Messages():
			in = append(in, elect.MessageReceived{From: m.From, Payload: m.Payload})
		case r := <-a.options.Layer2.Reports():
			in = a.handleReport(in, r)
		default:
			return in
		}
	}
	return in
}

// finishTurn ends a turn: it lets the engine answer, and tells the outside what is new.
func (a *Agent) finishTurn() {
	now := a.options.Now()
	a.options.Layer2.SetSendDeadline(a.machine.LeaseDeadline(now))
	if a.stateChanged && now.Sub(a.stateSetAt) >= stateInterval {
		a.stateChanged, a.stateSetAt = false, now
		a.options.Members.SetState(a.machine.EncodeState())
	}
	a.saveCheckpoint(now)
	if a.options.RestoreFrom != nil && !a.checkpoint.hasPlan { // nobody shall hear of a Plan without Services
		return
	}
	if a.statusChanged && now.Sub(a.statusObservedAt) >= a.statusInterval() {
		a.statusChanged, a.statusObservedAt = false, now
		a.options.ObserveStatus(a.buildStatus())
		a.events = nil
	}
}

// statusInterval bounds how often a Status is told, which costs time in proportion to the number of Services: with 10,000 of them ten
// times a second.
func (a *Agent) statusInterval() time.Duration {
	return time.Duration(max(a.plan.Bids.Len(), a.plan.Verdicts.Len(), a.plan.BGP.Len())) * 10 * time.Microsecond
}

// stateInterval bounds how often the full state is encoded for push/pull, which costs time in proportion to the number
// of addresses. Single claims travel on their own at once.
const stateInterval = 200 * time.Millisecond
