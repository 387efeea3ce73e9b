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
	"github.com/gantry-lb/gantry/speaker/survey"
)

// Layer2 answers for addresses and asks the wire. Every method hands over a value and returns at once.
type Layer2 interface {
	Apply(claims []intent.Claim)
	// Announce repeats the gratuitous burst of addresses that are answered for already.
	Announce(addresses []netip.Addr)
	// Defend says that a host that is no member claims an address that is answered for.
	Defend(address netip.Addr)
	// Overhear says on which links the node may come to answer for addresses, as far as that changed, and which are out of
	// the question now.
	Overhear(changed []intent.Claim, gone []netip.Addr)
	SetLinks(links facts.LinkSet)
	Probe(p layer2.Probe)
	// Renew lets the engine answer until the given time.
	Renew(until time.Time)
	Reports() <-chan layer2.Report
}

// BGP keeps sessions with routers. Set hands over a value and returns at once.
type BGP interface {
	Set(d bgp.Desired)
}

// Members carries messages between the speakers. Every method returns at once.
type Members interface {
	Send(to string, payload []byte)
	SetState(state []byte)
	SetMACs(macs []facts.MAC)
	Rejoin()
	Sets() <-chan facts.MemberSet
	Messages() <-chan members.Message
	RemoteStates() <-chan []byte
}

// Options are what an Agent is made of. All fields but Class, Observe, Surveyed, Remember and Remembered are required.
type Options struct {
	// Self is the name of this node; Nonce tells this life of the process from others.
	Self  string
	Nonce uint64
	// Class is the load balancer class to serve.
	Class   string
	Timing  elect.Timing
	Layer2  Layer2
	BGP     BGP
	Members Members
	// Links delivers the usable links of the node.
	Links <-chan facts.LinkSet
	// Now reads the clock.
	Now func() time.Time
	Log *slog.Logger
	// Surveyed receives what was found about a question of Survey. It must not block.
	Surveyed func(survey.Answer)
	// Observe receives a Status after each change that a person may see. It must not block.
	Observe func(Status)
	// Remember receives what a later life of the process on the same boot of the node may go on from, once a second at
	// most. It must not block.
	Remember func(Memory)
	// Remembered is what an earlier life knew.
	Remembered *Memory
}

// Status is what the agent knows, for status objects, events and explanations.
type Status struct {
	Plan    plan.Plan
	Holders []elect.Holder
	// Held are the addresses that this node answers for, sorted.
	Held []netip.Addr
	// Claims are the same with the links that each is answered for on.
	Claims []intent.Claim
	// Links are the node's usable links, marked with what cannot be sent on them.
	Links facts.LinkSet
	// Faults say what cannot be sent on a link and why, by its index.
	Faults map[int]string
	// Members are the names of the nodes whose speakers are alive, this one included, sorted.
	Members []string
	// Denied holds a sentence when raw sockets are refused on this node, empty otherwise.
	Denied string
	// Notes are what the election found worth telling since the last Status.
	Notes []elect.Note
}

// Agent is the owner of this node's decisions. Make it with New; only Run touches its state.
type Agent struct {
	o       Options
	changes chan []Change
	usable  chan usable // the latest only
	// questions are those of Survey, the latest only.
	questions chan []survey.Question
	planned   chan planned
	leave     chan struct{}
	drained   chan struct{}
	metrics   metrics

	links   facts.LinkSet
	ports   ports
	members []string              // the live ones, by name
	peers   map[string]netip.Addr // where members are or were, by name
	asks    asks
	machine *elect.Machine
	plan    plan.Plan
	surveys surveys
	claims  map[netip.Addr]intent.Claim
	memory  memory
	notes   []elect.Note
	// restate and tell say what the end of a turn has to do.
	restate, tell bool
	stated        time.Time // when the full state was last handed to Members
	told          time.Time // when the last Status was handed to Observe
}

// New returns an Agent that does nothing before Run.
func New(o Options) *Agent {
	if o.Observe == nil {
		o.Observe = func(Status) {}
	}
	if o.Surveyed == nil {
		o.Surveyed = func(survey.Answer) {}
	}
	return &Agent{
		o:         o,
		changes:   make(chan []Change, 64),
		usable:    make(chan usable, 1),
		questions: make(chan []survey.Question, 1),
		planned:   make(chan planned),
		leave:     make(chan struct{}, 1),
		drained:   make(chan struct{}),
		metrics:   newMetrics(),
		ports:     ports{denied: map[portID]string{}, failed: map[portID]string{}},
		peers:     map[string]netip.Addr{},
		asks:      asks{open: map[uint64]*asking{}, of: map[uint64]uint64{}},
		claims:    map[netip.Addr]intent.Claim{},
	}
}

// Post hands changes to the agent, in order; all changes of one call are seen together. It waits while the planning is
// busy, until ctx ends.
func (a *Agent) Post(ctx context.Context, changes ...Change) {
	select {
	case a.changes <- changes:
	case <-ctx.Done():
	}
}

// Leave asks the agent to hand over every address. Drained is closed when nothing is held any more.
func (a *Agent) Leave() {
	select {
	case a.leave <- struct{}{}:
	default:
	}
}

// Drained is closed once, after Leave, nothing is held any more.
func (a *Agent) Drained() <-chan struct{} { return a.drained }

// Run owns the agent's state until ctx ends. It answers for nothing afterwards.
func (a *Agent) Run(ctx context.Context) error {
	done := make(chan struct{})
	go func() {
		defer close(done)
		a.planLoop(ctx, plan.NewPlanner(plan.Inputs{
			Self: a.o.Self, Class: a.o.Class,
			Services: map[view.Key]view.Service{}, Endpoints: map[view.Key]view.Endpoints{}, Nodes: map[string]view.Node{},
		}))
	}()
	defer func() { <-done }()
	a.machine = elect.New(a.o.Self, a.o.Nonce, a.o.Timing, a.o.Now())
	timer := time.NewTimer(0)
	defer timer.Stop()
	defer a.o.Layer2.Apply(nil)
	a.recall(a.o.Remembered)
	for {
		var in []elect.Input
		select {
		case <-ctx.Done():
			return nil
		case p := <-a.planned:
			a.plan, a.tell, a.surveys.config = p.plan, true, p.config
			a.supersede(p)
			in = append(in, p.bids())
		case links := <-a.o.Links:
			a.setLinks(links)
		case set := <-a.o.Members.Sets():
			in = append(in, a.setMembers(set))
		case m := <-a.o.Members.Messages():
			in = append(in, elect.Received{From: m.From, Payload: m.Payload})
		case s := <-a.o.Members.RemoteStates():
			in = append(in, elect.RemoteState{Payload: s})
		case r := <-a.o.Layer2.Reports():
			in = a.report(in, r)
		case <-a.leave:
			a.o.Log.Info("handing over every address before the speaker stops", "held", len(a.claims))
			in = append(in, elect.Leave{})
		case q := <-a.questions:
			a.surveys.desk.Set(q, a.world(), a.o.Now())
		case <-timer.C:
		}
		a.step(a.waiting(a.revive(in)))
		a.survey()
		a.settle()
		timer.Reset(max(a.next().Sub(a.o.Now()), 0))
	}
}

// burst bounds how many messages and reports make one step.
const burst = 512

// waiting adds what else is there already, so that a flood of messages costs one step.
func (a *Agent) waiting(in []elect.Input) []elect.Input {
	for range burst {
		select {
		case m := <-a.o.Members.Messages():
			in = append(in, elect.Received{From: m.From, Payload: m.Payload})
		case r := <-a.o.Layer2.Reports():
			in = a.report(in, r)
		default:
			return in
		}
	}
	return in
}

// settle ends a turn: it lets the engine answer, and tells the outside what is new.
func (a *Agent) settle() {
	now := a.o.Now()
	a.o.Layer2.Renew(a.machine.Fence(now))
	if a.restate && now.Sub(a.stated) >= stateInterval {
		a.restate, a.stated = false, now
		a.o.Members.SetState(a.machine.State())
	}
	a.remember(now)
	if a.o.Remembered != nil && !a.memory.planned { // nobody shall hear of a Plan without Services
		return
	}
	if a.tell && now.Sub(a.told) >= a.tellInterval() {
		a.tell, a.told = false, now
		a.o.Observe(a.status())
		a.notes = nil
	}
}

// tellInterval bounds how often a Status is told, which costs time in proportion to the number of Services: with 10,000 of them ten
// times a second.
func (a *Agent) tellInterval() time.Duration {
	return time.Duration(max(a.plan.Bids.Len(), a.plan.Verdicts.Len(), a.plan.BGP.Len())) * 10 * time.Microsecond
}

// stateInterval bounds how often the full state is encoded for push/pull, which costs time in proportion to the number
// of addresses. Single claims travel on their own at once.
const stateInterval = 200 * time.Millisecond
