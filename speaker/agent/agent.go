// Package agent joins the speaker's parts. One goroutine, Run, owns the inputs, builds a Plan when they change, steps
// the election with it, and hands what the election decides to the engines. It holds no policy and opens no socket;
// what it needs of the engines is declared here in small interfaces, so that tests join it to an in-memory segment.
package agent

import (
	"context"
	"log/slog"
	"net/netip"
	"time"

	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/elect"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/intent"
	"github.com/gantry-lb/gantry/speaker/layer2"
	"github.com/gantry-lb/gantry/speaker/members"
	"github.com/gantry-lb/gantry/speaker/plan"
)

// Layer2 answers for addresses and asks the wire. Every method hands over a value and returns at once.
type Layer2 interface {
	Apply(claims []intent.Claim)
	// Announce repeats the gratuitous burst of addresses that are answered for already.
	Announce(addresses []netip.Addr)
	SetLinks(links facts.LinkSet)
	Probe(p layer2.Probe)
	// Renew lets the engine answer until the given time.
	Renew(until time.Time)
	Reports() <-chan layer2.Report
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

// Options are what an Agent is made of. All fields but Class and Observe are required.
type Options struct {
	// Self is the name of this node; Nonce tells this life of the process from others.
	Self  string
	Nonce uint64
	// Class is the load balancer class to serve.
	Class   string
	Timing  elect.Timing
	Layer2  Layer2
	Members Members
	// Links delivers the usable links of the node.
	Links <-chan facts.LinkSet
	// Now reads the clock.
	Now func() time.Time
	Log *slog.Logger
	// Observe receives a Status after each change that a person may see. It must not block.
	Observe func(Status)
}

// Status is what the agent knows, for status objects, events and explanations.
type Status struct {
	Plan    plan.Plan
	Holders []elect.Holder
	// Held are the addresses that this node answers for, sorted.
	Held []netip.Addr
	// Denied holds a sentence when raw sockets are refused on this node, empty otherwise.
	Denied string
	// Notes are what the election found worth telling since the last Status.
	Notes []elect.Note
}

// Change is an edit of the agent's inputs; see the functions that make one.
type Change func(*inputs)

// Agent is the owner of this node's decisions. Make it with New; only Run touches its state.
type Agent struct {
	o       Options
	changes chan []Change
	leave   chan struct{}
	drained chan struct{}

	in      inputs
	machine *elect.Machine
	plan    plan.Plan
	claims  []intent.Claim
	notes   []elect.Note
	// replan, restate and tell say what the end of a turn has to do.
	replan, restate, tell bool
	stated                time.Time // when the full state was last handed to Members
}

// inputs is the agent's copy of the cluster.
type inputs struct {
	plan   plan.Inputs
	synced bool
	links  facts.LinkSet
	denied map[portID]string // why the port is closed for lack of permission
	failed map[portID]bool   // the port could not be opened
}

// New returns an Agent that does nothing before Run.
func New(o Options) *Agent {
	if o.Observe == nil {
		o.Observe = func(Status) {}
	}
	return &Agent{
		o:       o,
		changes: make(chan []Change, 64),
		leave:   make(chan struct{}, 1),
		drained: make(chan struct{}),
		in: inputs{
			plan: plan.Inputs{
				Self: o.Self, Class: o.Class,
				Services: map[view.Key]view.Service{}, Endpoints: map[view.Key]view.Endpoints{}, Nodes: map[string]view.Node{},
			},
			denied: map[portID]string{}, failed: map[portID]bool{},
		},
	}
}

// Post hands changes to the agent, in order; all changes of one call are seen together. It waits while the agent is
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
	now := a.o.Now()
	a.machine = elect.New(a.o.Self, a.o.Nonce, a.o.Timing, now)
	timer := time.NewTimer(0)
	defer timer.Stop()
	defer a.o.Layer2.Apply(nil)
	for {
		select {
		case <-ctx.Done():
			return nil
		case batch := <-a.changes:
			a.edit(batch)
		case links := <-a.o.Links:
			a.setLinks(links)
		case set := <-a.o.Members.Sets():
			a.step(elect.Members{Set: set})
		case m := <-a.o.Members.Messages():
			a.step(elect.Received{From: m.From, Payload: m.Payload})
		case s := <-a.o.Members.RemoteStates():
			a.step(elect.RemoteState{Payload: s})
		case r := <-a.o.Layer2.Reports():
			a.report(r)
		case <-a.leave:
			a.o.Log.Info("handing over every address before the speaker stops", "held", len(a.claims))
			a.step(elect.Leave{})
		case <-timer.C:
			a.step(elect.Tick{})
		}
		a.settle()
		a.arm(timer)
	}
}

// arm sets the timer to the election's next deadline.
func (a *Agent) arm(timer *time.Timer) {
	next := a.machine.Next()
	if next.IsZero() {
		timer.Stop()
		return
	}
	timer.Reset(max(next.Sub(a.o.Now()), 0))
}

// edit applies a batch of changes and whatever else is waiting, so that a flood of events costs one Plan.
func (a *Agent) edit(batch []Change) {
	for {
		for _, c := range batch {
			c(&a.in)
		}
		a.replan = true
		select {
		case batch = <-a.changes:
		default:
			return
		}
	}
}

// settle ends a turn: it plans if an input changed, and tells the outside what is new.
func (a *Agent) settle() {
	if a.replan && a.in.synced {
		a.replan = false
		a.plan = plan.Build(a.in.usable())
		a.step(elect.Bids{Bids: a.plan.Bids})
		a.tell = true
	}
	now := a.o.Now()
	a.o.Layer2.Renew(a.machine.Fence(now))
	if a.restate && now.Sub(a.stated) >= stateInterval {
		a.restate, a.stated = false, now
		a.o.Members.SetState(a.machine.State())
	}
	if a.tell {
		a.tell = false
		a.o.Observe(a.status())
		a.notes = nil
	}
}

// stateInterval bounds how often the full state is encoded for push/pull, which costs time in proportion to the number
// of addresses. Single claims travel on their own at once.
const stateInterval = 200 * time.Millisecond
